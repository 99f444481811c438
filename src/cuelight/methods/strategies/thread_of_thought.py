"""Thread of Thought: a confused context is walked through in parts, each summarised and analysed, before answering.

Calls: 2.  Source: Zhou et al., "Thread of thought unraveling chaotic contexts", 2023, arXiv 2311.08734.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy

TRIGGER = "Walk me through this context in manageable parts, summarising and analysing each as we go."


@strategy(
    StrategyCard(
        name="thread-of-thought",
        title="Thread of Thought (ThoT) prompting",
        group="reasoning",
        calls="2",
        paper="Zhou et al., Thread of thought unraveling chaotic contexts",
        arxiv="2311.08734",
        year=2023,
        acquired="hybrid",
        turns="multi",
        shown_on="GPT-3.5, Llama-2-70B",
    )
)
def thread_of_thought(
    run: Run,
    question: str,
    *,
    context: Annotated[str, Field(description="Text that comes with the question.")] = "",
    trigger: Annotated[str, Field(description="What has the context walked through.")] = TRIGGER,
) -> str | None:
    prompt = f"{context}\nQ: {run.asked}\n{trigger}\nA:".lstrip()
    walked = run.ask(prompt, "walk")
    said = run.ask(f"{prompt} {walked}\nTherefore, the answer is", "answer", max_tokens=64)
    return run.parse(f"The answer is {said}")
