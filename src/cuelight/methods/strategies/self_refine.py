"""Self-Refine: the model criticises its draft, aspect by aspect with a mark, and rewrites it until it is good enough.

The critique ends with a mark from 0 to 10; the best marked version is returned, which need not be the last.  A mark of
``enough`` or more ends it.

Calls: at most 2 + 2 * ``rounds``: the draft, and critique and rewrite in each round, and a critique of the last version.
Source: Madaan et al., "Self-refine: iterative refinement with self-feedback", NeurIPS 2023, arXiv 2303.17651.
*Departures*: general wording; the paper writes feedback prompts for each task.  The last version is criticised too, else it
could not be compared.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="self-refine",
        title="Self-Refine prompting",
        group="reasoning",
        calls="at most 2 + 2 * rounds",
        paper="Madaan et al., Self-refine: iterative refinement with self-feedback",
        arxiv="2303.17651",
        year=2023,
        acquired="manual",
        turns="multi",
        shown_on="GPT-3.5, GPT-4",
    )
)
def self_refine(
    run: Run,
    question: str,
    *,
    rounds: Annotated[int, Field(ge=0, description="Most rewrites.")] = 4,
    enough: Annotated[float, Field(ge=0, le=10, description="A mark that ends it.")] = 9.0,
    aspects: Annotated[
        str, Field(description="What the critique looks at.")
    ] = "correctness, completeness, clarity",
) -> str | None:
    draft = run.ask(f"Q: {run.asked}\n{run.form}\nA:", "draft")
    history = ""
    best = (-1.0, draft)
    for number in range(rounds + 1):
        critique = run.ask(
            f"Q: {run.asked}\nA: {draft}\n\nCriticise this answer: {aspects}. Say what to change. "
            "End with 'Score: ' and a mark from 0 to 10.",
            "critique",
        )
        said = re.findall(r"score:?\s*(\d+(?:\.\d+)?)", critique.lower())
        mark = min(float(said[-1]), 10.0) if said else 0.0
        best = max(best, (mark, draft), key=lambda version: version[0])
        if mark >= enough or number == rounds:
            break
        history += f"Answer: {draft}\nCritique: {critique}\n\n"
        draft = run.ask(f"Q: {run.asked}\n\n{history}Write a better answer. {run.form}\nA:", "rewrite")
    run.note("best", best[1], score=best[0])
    return run.parse(best[1])
