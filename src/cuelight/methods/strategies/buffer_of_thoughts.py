"""Buffer of Thoughts: the way to solve a kind of problem is kept as a template, found again by likeness, and filled in.

Call 1 distils the problem to its variables and constraints.  The template most like it is taken if it is like enough
(``delta``), else a general one; call 2 fills it in and solves.  Call 3 distils a template from the solution; it is added to
the buffer if no other is that like it.

Calls: 3 (2 without ``learn``).  Source: Yang et al., "Buffer of thoughts: thought-augmented reasoning with large language
models", NeurIPS 2024, arXiv 2406.04271.  *Departures*: the paper adds a template after success; whether an answer is right is
not known here, so it is added whenever ``learn`` is set and an answer was found.  The buffer is a JSON file of yours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cuelight.cache import atomic_write
from cuelight.errors import DataError
from cuelight.lm.documents import embed
from cuelight.methods.strategy import Run, StrategyCard, strategy

GENERAL = "List what is given and what is asked. Work from what is given to what is asked, one step a line. Check the result."
START = (
    "Quantities and prices in a story: name each quantity, write an equation for each sentence, solve them in order.",
    "Combine given numbers with + - * / to reach a target: try the operations that come near the target, then mend the rest.",
    "Who has or is what, by clues: draw a table of persons and things, cross out what a clue excludes, read off what is left.",
    "Change of state over time: write down the state at the start, then after each event, and read off the last one.",
)


@strategy(
    StrategyCard(
        name="buffer-of-thoughts",
        title="Buffer of Thoughts (BoT) prompting",
        group="reasoning",
        calls="3 (2 without learn)",
        paper="Yang et al., Buffer of thoughts: thought-augmented reasoning with large language models",
        arxiv="2406.04271",
        year=2024,
    )
)
def buffer_of_thoughts(
    run: Run,
    question: str,
    *,
    buffer: Annotated[
        Path | None, Field(description="JSON file with templates; begun with four if it is not there.")
    ] = None,
    delta: Annotated[float, Field(ge=-1, le=1, description="Likeness from which a template fits.")] = 0.6,
    learn: Annotated[
        bool, Field(description="Distil a template from the solution and keep it in the buffer.")
    ] = True,
    encoder: Annotated[str, Field(description="Sentence encoder; words for TF-IDF.")] = "minilm-l6",
) -> str | None:
    templates = _load(buffer)
    distilled = run.ask(
        f"Problem: {run.asked}\nWrite down its kind, its variables and its constraints, briefly:", "distil"
    )
    like = _likeness(templates, distilled, encoder)
    best = max(range(len(templates)), key=lambda k: like[k])
    template = templates[best] if like[best] >= delta else GENERAL
    run.note("template", template, likeness=like[best], fits=like[best] >= delta)
    text = run.ask(
        f"Problem: {run.asked}\nDistilled: {distilled}\nThought template: {template}\n"
        f"Fill in the template and solve the problem. {run.form}\nA:",
        "solve",
    )
    answer = run.parse(text)
    if learn and answer is not None:
        new = run.ask(
            f"Problem: {run.asked}\nSolution: {text}\nWrite, in one sentence, how to solve problems of this kind:",
            "template",
        )
        closest = max(_likeness(templates, new, encoder))
        run.note("learned", new, likeness=closest, added=closest < delta)
        if closest < delta and new and buffer is not None:
            _save(buffer, [*templates, new])
    return answer


def _likeness(templates: list[str], text: str, encoder: str) -> list[float]:
    vectors = embed([*templates, text or " "], encoder)
    return [float(v) for v in vectors[:-1] @ vectors[-1]]


def _load(buffer: Path | None) -> list[str]:
    if buffer is None or not buffer.exists():
        return list(START)
    try:
        found = json.loads(buffer.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"buffer {buffer}: can not be read ({error}); give a JSON list of texts") from error
    if not isinstance(found, list) or not found or not all(isinstance(t, str) for t in found):
        raise DataError(f"buffer {buffer}: is no list of texts; give a JSON list of texts")
    return found


def _save(buffer: Path, templates: list[str]) -> None:
    with atomic_write(buffer) as temporary:
        temporary.write_text(json.dumps(templates, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
