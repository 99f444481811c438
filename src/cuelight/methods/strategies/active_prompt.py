"""Active-Prompt: of a pool of questions, those the model is least sure of are the ones worth a written-out example.

Every pool question is answered ``samples`` times.  Its uncertainty is the share of different answers (``disagreement``), the
entropy of the answers, or their variance when they are numbers.  The most uncertain become the demonstrations, with
rationales that a person wrote.

The pool is a table with question, rationale and answer; only the rationales of chosen questions are needed.  If one is not
there, the question is named in the error, so that a person may write it, unless the model may (``self_write``).

Calls: 1; beforehand samples for each pool question.  Source: Diao et al., "Active prompting with chain-of-thought for large
language models", ACL 2024, arXiv 2302.12246.  *Ours*: ``self_write``, the majority's own chain in place of a person's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from cuelight.errors import DataError
from cuelight.lm.answers import normal
from cuelight.methods.self_demos import Pool, pool_of
from cuelight.methods.strategy import Demo, Run, StrategyCard, demos_of, majority, strategy, worked


@strategy(
    StrategyCard(
        name="active-prompt",
        title="Active-Prompt",
        group="interaction",
        calls="1; beforehand samples for each question of the pool",
        paper="Diao et al., Active prompting with chain-of-thought for large language models",
        arxiv="2302.12246",
        year=2023,
        acquired="manual",
        turns="single",
    )
)
def active_prompt(
    run: Run,
    question: str,
    *,
    pool: Annotated[
        Pool, Field(description="Questions, with rationale and answer where a person wrote them.")
    ],
    count: Annotated[int, Field(ge=1, description="Questions that become demonstrations.")] = 4,
    samples: Annotated[int, Field(ge=2, description="Answers to each pool question.")] = 5,
    measure: Annotated[
        Literal["disagreement", "entropy", "variance"], Field(description="Uncertainty.")
    ] = "disagreement",
    temperature: Annotated[float, Field(gt=0, description="Temperature of the answers.")] = 0.7,
    self_write: Annotated[
        bool, Field(description="Let the model write rationales that are not there.")
    ] = False,
) -> str | None:
    written = _written(pool)
    questions = pool_of(pool if not written else list(written))
    with run.preparing():
        unsure: dict[str, float] = {}
        chains: dict[str, list[tuple[str, str | None]]] = {}
        for asked in questions:
            texts = run.sample(
                f"Q: {asked}\nA: Let's think step by step. {run.form}", samples, "pool", temperature
            )
            chains[asked] = [(text, run.parse(text)) for text in texts]
            unsure[asked] = uncertainty([a for _, a in chains[asked]], measure)
        chosen = sorted(questions, key=lambda q: -unsure[q])[:count]
        run.note("uncertainty", data=unsure, chosen=chosen)
    demos = [_demo(q, written, chains[q], self_write) for q in chosen]
    return run.parse(run.ask(f"{worked(demos)}Q: {run.asked}\nA:", "reasoning"))


def uncertainty(answers: Sequence[str | None], measure: str = "disagreement") -> float:
    """How unsure answers are: different ones over all, entropy in nats, or the variance of numbers.

    An answer that could not be read counts as one of its own kind; for the variance it is left out, and answers that are no
    numbers have the variance of a 0-1 code of the commonest.
    """
    kinds = Counter("" if a is None else normal(a) or a for a in answers)
    total = len(answers)
    if measure == "disagreement":
        return len(kinds) / total
    if measure == "entropy":
        return -sum(n / total * math.log(n / total) for n in kinds.values())
    try:
        numbers = [float(a.replace(",", "")) for a in answers if a is not None]
    except ValueError:
        numbers = [float(n) for a in kinds for n in [a == kinds.most_common(1)[0][0]] * kinds[a]]
    mean = sum(numbers) / max(len(numbers), 1)
    return sum((x - mean) ** 2 for x in numbers) / max(len(numbers), 1)


def _written(pool: Pool) -> dict[str, Demo]:
    """Pool entries that have an answer, by question; a pool of bare questions has none."""
    try:
        return {demo.question: demo for demo in demos_of(pool)}
    except DataError:
        return {}


def _demo(
    asked: str, written: dict[str, Demo], chains: Sequence[tuple[str, str | None]], self_write: bool
) -> Demo:
    if asked in written and written[asked].rationale:
        return written[asked]
    if not self_write:
        raise DataError(
            f"pool: '{asked[:80]}' is among the most uncertain and has no rationale; write one, or set self_write"
        )
    best = written[asked].answer if asked in written else majority([a for _, a in chains])[0]
    text = next(
        (t for t, a in chains if a is not None and best is not None and normal(a) == normal(best)),
        chains[0][0],
    )
    return Demo(asked, " ".join(text.split("The answer is")[0].split()), best or "unknown")
