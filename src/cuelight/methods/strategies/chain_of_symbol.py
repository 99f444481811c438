"""Chain-of-Symbol: spatial relations are written as single symbols instead of words, in the examples and by the model.

The prompt has a legend and worked examples in which "A is on B" is ``A/B``; the model writes the chain in symbols and the
answer is read off it.

Calls: 1.  Source: Hu et al., "Chain-of-symbol prompting elicits planning in large language models", COLM 2024, arXiv
2305.10276.  *Departures*: our own two examples, of stacked boxes and of a grid; legend and examples are options.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy, worked

LEGEND = (
    "A/B: A is on B. A>B: A is to the right of B. A^B: A is north of B. A,B: A comes before B. A#: A is gone."
)
EXAMPLES = (
    Demo(
        "The red box is on the blue box, the blue box is on the green box. To take the green box, which boxes are taken "
        "off first, in order?",
        "red/blue/green; take green: red#, blue#.",
        "red, blue",
    ),
    Demo(
        "The well is to the right of the barn. The mill is to the right of the well. Is the barn to the right of the mill?",
        "well>barn, mill>well: mill>well>barn.",
        "no",
    ),
)


@strategy(
    StrategyCard(
        name="chain-of-symbol",
        title="Chain-of-Symbol (CoS) prompting",
        group="reasoning",
        calls="1",
        paper="Hu et al., Chain-of-symbol prompting elicits planning in large language models",
        arxiv="2305.10276",
        year=2023,
        acquired="manual",
        turns="multi",
        shown_on="GPT-3.5, GPT-4",
    )
)
def chain_of_symbol(
    run: Run,
    question: str,
    *,
    demos: Annotated[Demos, Field(description="Examples whose rationales are in symbols.")] = EXAMPLES,
    legend: Annotated[str, Field(description="What the symbols mean.")] = LEGEND,
) -> str | None:
    prompt = f"Reason with symbols. {legend}\n\n{worked(demos_of(demos))}Q: {run.asked}\nA:"
    return run.parse(run.ask(prompt, "symbols"))
