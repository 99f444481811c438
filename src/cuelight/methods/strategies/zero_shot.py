"""Zero-shot: the task in words, no example, one answer.

With choices and a model that gives log-probabilities, the likeliest choice is taken instead of free text; divided by how
likely it is behind a prompt without content (``calibrate``), a choice that is likely anyway gains nothing by that.

Calls: 1; with ``score`` 1, with ``calibrate`` 2.  Source: Radford et al., "Language models are unsupervised multitask
learners" (GPT-2), 2019; not on arXiv.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="zero-shot",
        title="Zero-shot prompting",
        group="new-tasks",
        calls="1 (2 with calibrate)",
        paper="Radford et al., Language models are unsupervised multitask learners",
        year=2019,
        acquired="manual",
        turns="single",
        shown_on="GPT-2",
    )
)
def zero_shot(
    run: Run,
    question: str,
    *,
    task: Annotated[str, Field(description="What is to be done, before the question.")] = "",
    score: Annotated[
        bool, Field(description="Take the likeliest of the choices instead of free text.")
    ] = False,
    calibrate: Annotated[
        bool, Field(description="With score: less what a prompt without content says.")
    ] = False,
) -> str | None:
    head = f"{task}\n\n" if task else ""
    if not score:
        return run.parse(run.ask(f"{head}Q: {run.asked}\n{run.form}\nA:", "answer"))
    choices = run.common.choices
    if not choices:
        raise ConfigError("choices: is empty; score needs the choices it is to compare")
    scores = run.score(f"{head}Q: {run.asked}\nA:", [f" {choice}" for choice in choices], "choices")
    if calibrate:
        empty = run.score(f"{head}Q: N/A\nA:", [f" {choice}" for choice in choices], "without content")
        scores = [a - b for a, b in zip(scores, empty, strict=True)]
    return choices[max(range(len(choices)), key=lambda k: scores[k])]
