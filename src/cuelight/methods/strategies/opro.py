"""OPRO: the model is the optimiser; it reads the best instructions so far with their scores and proposes better ones.

The meta-prompt holds the task, three examples and up to 20 instructions with their scores, in ascending order, so that the
best stand last.  Each step samples some proposals at temperature 1; new ones are scored on the training examples.  The best
instruction answers the question.

Calls: 1; beforehand steps * proposals, and one for each new instruction and example.  Source: Yang et al., "Large language
models as optimizers", ICLR 2024, arXiv 2309.03409.  *Departures*: 4 steps of 4 for the paper's 200 of 8.
"""

from __future__ import annotations

import random
import re
from typing import Annotated

from pydantic import Field

from cuelight.errors import DataError
from cuelight.lm.answers import same
from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy

START = ("Let's solve the problem.", "Let's think step by step.")


@strategy(
    StrategyCard(
        name="opro",
        title="Optimization by PROmpting (OPRO)",
        group="efficiency",
        calls="1; beforehand steps * proposals + one for each new instruction and example",
        paper="Yang et al., Large language models as optimizers",
        arxiv="2309.03409",
        year=2023,
        acquired="manual",
        turns="single",
        shown_on="PaLM-2",
        kind="search",
    )
)
def opro(
    run: Run,
    question: str,
    *,
    examples: Annotated[Demos, Field(description="Questions with right answers: a table or a list.")],
    steps: Annotated[int, Field(ge=1, description="Rounds of proposals.")] = 4,
    proposals: Annotated[int, Field(ge=1, description="Proposals of a round.")] = 4,
    start: Annotated[tuple[str, ...], Field(min_length=1, description="Instructions to begin with.")] = START,
    kept: Annotated[int, Field(ge=1, description="Instructions in the meta-prompt.")] = 20,
    exemplars: Annotated[int, Field(ge=0, description="Examples in the meta-prompt.")] = 3,
    temperature: Annotated[float, Field(gt=0, description="Temperature of proposals.")] = 1.0,
) -> str | None:
    rows = list(demos_of(examples))
    if not rows:
        raise DataError("examples: there are none; OPRO scores instructions on them")
    order = random.Random(run.common.seed)
    with run.preparing():
        scores = {text: _accuracy(run, text, rows) for text in dict.fromkeys(start)}
        for step in range(steps):
            ranked = sorted(scores.items(), key=lambda pair: pair[1])[-kept:]
            listed = "\n".join(f"text: {text}\nscore: {round(100 * score)}" for text, score in ranked)
            shown = "\n\n".join(
                f"Q: {d.question}\nA: <INS>\noutput: {d.answer}"
                for d in order.sample(rows, min(exemplars, len(rows)))
            )
            meta = (
                f"Instructions and their scores, from worst to best:\n{listed}\n\nExamples; the instruction stands at <INS>:\n"
                f"{shown}\n\nWrite a new instruction that is different from those above and has a higher score, in square "
                "brackets: ["
            )
            texts = run.sample(meta, proposals, "propose", temperature, max_tokens=64)
            new = [text for text in map(_bracketed, texts) if text and text not in scores]
            for text in dict.fromkeys(new):
                scores[text] = _accuracy(run, text, rows)
            run.note("step", data=dict(sorted(scores.items(), key=lambda pair: -pair[1])[:5]), step=step + 1)
        best = max(scores, key=lambda text: scores[text])
        run.note("instruction", best, score=scores[best])
    return run.parse(run.ask(f"Q: {run.asked}\nA: {best}", "answer"))


def _accuracy(run: Run, instruction: str, rows: list[Demo]) -> float:
    texts = run.ask_all([f"Q: {d.question}\nA: {instruction}" for d in rows], "score")
    return sum(
        same(run.parse(t), d.answer, run.common.answer) for t, d in zip(texts, rows, strict=True)
    ) / len(rows)


def _bracketed(text: str) -> str:
    found = re.search(r"\[?([^\[\]\n]+)", text)
    return " ".join(found[1].split()).strip(' "') if found else ""
