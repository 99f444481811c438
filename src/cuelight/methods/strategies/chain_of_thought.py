"""Chain of thought: examples that show the way to the answer, so that the model writes its own steps first.

Without examples (``demos=[]``) it is the zero-shot form: a trigger ("Let's think step by step") brings out the steps, and a
second call reads the answer off them.

Calls: 1; 2 without examples.  Source: Wei et al., "Chain-of-thought prompting elicits reasoning in large language
models", NeurIPS 2022, arXiv 2201.11903; zero-shot: Kojima et al., NeurIPS 2022, arXiv 2205.11916.  *Departures*: our own
three arithmetic examples stand for the paper's eight.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import DEMOS, Demos, Run, StrategyCard, demos_of, strategy, worked


@strategy(
    StrategyCard(
        name="chain-of-thought",
        title="Chain-of-Thought (CoT) prompting",
        group="reasoning",
        calls="1 (2 without demos)",
        paper="Wei et al., Chain-of-thought prompting elicits reasoning in large language models",
        arxiv="2201.11903",
        year=2022,
        acquired="manual",
        turns="multi",
        shown_on="PaLM 540B",
    )
)
def chain_of_thought(
    run: Run,
    question: str,
    *,
    demos: Annotated[
        Demos, Field(description="Examples with rationales; none for the zero-shot form.")
    ] = DEMOS,
    trigger: Annotated[str, Field(description="What brings out the steps.")] = "Let's think step by step.",
    temperature: Annotated[float, Field(ge=0, description="Above 0, the steps are sampled.")] = 0.0,
) -> str | None:
    found = demos_of(demos)
    if found:
        return run.parse(run.ask(f"{worked(found)}Q: {run.asked}\nA:", "reasoning", temperature=temperature))
    prompt = f"Q: {run.asked}\nA: {trigger}"
    steps = run.ask(prompt, "reasoning", temperature=temperature)
    said = run.ask(f"{prompt} {steps}\nTherefore, the answer is", "answer", max_tokens=64)
    return run.parse(f"The answer is {said}")
