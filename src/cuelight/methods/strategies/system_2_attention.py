"""System 2 Attention: the context is rewritten without opinions and irrelevant parts, and only that is answered from.

The second call does not see the original.

Calls: 2.  Source: Weston and Sukhbaatar, "System 2 attention (is something you might need too)", 2023, arXiv 2311.11829.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="system-2-attention",
        title="System 2 Attention (S2A) prompting",
        group="reasoning",
        calls="2",
        paper="Weston and Sukhbaatar, System 2 attention (is something you might need too)",
        arxiv="2311.11829",
        year=2023,
        acquired="manual",
        turns="single",
        shown_on="Llama-2-70B",
    )
)
def system_2_attention(
    run: Run,
    question: str,
    *,
    context: Annotated[str, Field(description="Text that comes with the question.")] = "",
) -> str | None:
    given = f"{context}\n{run.asked}" if context else run.asked
    rewritten = run.ask(
        "Take from this text what is relevant and unbiased, and leave out opinions and what does not matter for the "
        "question. Write two parts, 'Context:' and 'Question:'.\n\n"
        f"Text: {given}\n\nContext:",
        "rewrite",
    )
    return run.parse(run.ask(f"Context: {rewritten}\n\nAnswer the question. {run.form}\nA:", "answer"))
