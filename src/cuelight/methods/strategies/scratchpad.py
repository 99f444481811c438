"""Scratchpad: examples write every intermediate state of a computation between markers before they give the output.

Only what follows the closing marker is read as the answer.

Calls: 1.  Source: Nye et al., "Show your work: scratchpads for intermediate computation with language models", 2021, arXiv
2112.00114.  *Departures*: the paper trains models on scratchpads and also prompts them; here they are prompted, with our own
two examples.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy

EXAMPLES = (
    Demo("What is 29 + 57?", "29 + 57\n9 + 7 = 16, write 6, carry 1\n2 + 5 + 1 = 8, write 8\n86", "86"),
    Demo("x = 2; x = x + 3; x = x * 4. What is x?", "x = 2\nx = 2 + 3 = 5\nx = 5 * 4 = 20", "20"),
)


@strategy(
    StrategyCard(
        name="scratchpad",
        title="Scratchpad prompting",
        group="code",
        calls="1",
        paper="Nye et al., Show your work: scratchpads for intermediate computation with language models",
        arxiv="2112.00114",
        year=2021,
        acquired="manual",
        turns="single",
        shown_on="GPT-3",
    )
)
def scratchpad(
    run: Run,
    question: str,
    *,
    demos: Annotated[
        Demos, Field(description="Examples whose rationales are the states, a line each.")
    ] = EXAMPLES,
) -> str | None:
    shown = "".join(
        f"Q: {d.question}\n<scratch>\n{d.rationale}\n</scratch>\nThe answer is {d.answer}.\n\n"
        for d in demos_of(demos)
    )
    text = run.ask(f"{shown}Q: {run.asked}\n<scratch>\n", "scratchpad")
    pad, marker, said = text.partition("</scratch>")
    run.note("states", pad.strip())
    return run.parse(said) if marker else None
