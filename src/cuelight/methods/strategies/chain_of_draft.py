"""Chain of Draft: chain of thought with at most about five words a step, the answer behind a separator.

Calls: 1.  Source: Xu et al., "Chain of draft: thinking faster by writing less", 2025, arXiv 2502.18600.  *Departures*: our
own three terse examples; small models need them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy

EXAMPLES = (
    Demo("A baker has 3 trays with 8 rolls each and sells 10 rolls. How many rolls are left?", "3 * 8 = 24; 24 - 10 = 14", "14"),
    Demo("Ida is 6 years older than Tom. Tom is 9. How old are they together?", "9 + 6 = 15; 15 + 9 = 24", "24"),
    Demo("A film of 120 minutes is shown 4 times a day. How many hours is that in 5 days?", "2h; 4 * 2 = 8; 8 * 5 = 40", "40"),
)  # fmt: skip


@strategy(
    StrategyCard(
        name="chain-of-draft",
        title="Chain-of-Draft (CoD) prompting",
        group="reasoning",
        calls="1",
        paper="Xu et al., Chain of draft: thinking faster by writing less",
        arxiv="2502.18600",
        year=2025,
        acquired="hybrid",
        turns="single",
        shown_on="GPT-4o, Claude 3.5",
    )
)
def chain_of_draft(
    run: Run,
    question: str,
    *,
    demos: Annotated[Demos, Field(description="Examples with drafts for rationales.")] = EXAMPLES,
    words: Annotated[int, Field(ge=1, description="Most words of a step.")] = 5,
) -> str | None:
    shown = "".join(f"Q: {d.question}\nA: {d.rationale}\n#### {d.answer}\n\n" for d in demos_of(demos))
    prompt = (
        f"Think step by step, but write only a draft of {words} words at most for each step. "
        f"Give the answer behind the separator ####.\n\n{shown}Q: {run.asked}\nA:"
    )
    return run.parse(run.ask(prompt, "draft"))
