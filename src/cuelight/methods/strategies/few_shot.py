"""Few-shot (in-context learning): some questions with their answers in one fixed form, then the question.

The example nearest to the question stands last (``nearest``), where it weighs most.

Calls: 1.  Source: Brown et al., "Language models are few-shot learners", NeurIPS 2020, arXiv 2005.14165.  *Ours*: the
order by likeness of words; the paper draws examples at random.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.lm.documents import embed
from cuelight.methods.strategy import DEMOS, Demos, Run, StrategyCard, demos_of, strategy, worked


@strategy(
    StrategyCard(
        name="few-shot",
        title="Few-shot prompting",
        group="new-tasks",
        calls="1",
        paper="Brown et al., Language models are few-shot learners",
        arxiv="2005.14165",
        year=2020,
        acquired="manual",
        turns="single",
        shown_on="GPT-3",
    )
)
def few_shot(
    run: Run,
    question: str,
    *,
    demos: Annotated[Demos, Field(description="Worked examples: a table or a list.")] = DEMOS,
    nearest: Annotated[bool, Field(description="Put the example most like the question last.")] = True,
) -> str | None:
    found = list(demos_of(demos))
    if nearest and len(found) > 1:
        vectors = embed([*(d.question for d in found), question], "words")
        likeness = vectors[:-1] @ vectors[-1]
        found = [found[k] for k in sorted(range(len(found)), key=lambda k: likeness[k])]
    return run.parse(run.ask(f"{worked(found, rationales=False)}Q: {run.asked}\nA:", "answer"))
