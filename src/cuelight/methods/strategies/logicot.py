"""LogiCoT: every step of a chain of thought is checked by reductio ad absurdum, and rewritten when it falls.

For each step the model argues that it is true, argues on the assumption that it is false, and says which argument stands.
If the negation stands, the step is rewritten from the critique and the chain is written on from there.

Calls: 1 + 3 for each step that stands, 5 for one that falls (with the continuation).  Source: Zhao et al., "Enhancing
zero-shot chain-of-thought reasoning in large language models through logic", LREC-COLING 2024, arXiv 2309.13339.
*Departures*: the wording is our own; a step is a sentence.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="logicot",
        title="Logical Chain-of-Thought (LogiCoT) prompting",
        group="reasoning",
        calls="at most 1 + 5 for each step",
        paper="Zhao et al., Enhancing zero-shot chain-of-thought reasoning in large language models through logic",
        arxiv="2309.13339",
        year=2023,
        acquired="manual",
        turns="multi",
        shown_on="Vicuna-33B, GPT-4",
    )
)
def logicot(
    run: Run,
    question: str,
    *,
    steps: Annotated[int, Field(ge=1, description="Most steps that are checked.")] = 8,
) -> str | None:
    head = f"Q: {run.asked}\nA: Let's think step by step. {run.form}\n"
    kept: list[str] = []
    left = _sentences(run.ask(head, "reasoning"))
    while left and len(kept) < steps:
        step = left.pop(0)
        so_far = f"{head}{' '.join(kept)}\n\nNext step: {step}\n"
        true = run.ask(f"{so_far}Argue in one or two sentences that this step is true:", "for")
        false = run.ask(
            f"{so_far}Assume this step is false. Argue in one or two sentences for that:", "against"
        )
        verdict = run.ask(
            f"{so_far}(A) {true}\n(B) {false}\nWhich argument stands, (A) the step is true or (B) it is false? "
            "Answer with the letter:",
            "verdict",
            max_tokens=16,
        )
        stands = re.search(r"\b([AB])\b", verdict)
        if stands is None or stands[1] == "A":
            kept.append(step)
        else:
            fixed = run.ask(
                f"{so_far}The step is wrong: {false}\nWrite the right step, in one sentence:", "rewrite"
            )
            kept.append(fixed)
            if not _ends(fixed) and len(kept) < steps:
                left = _sentences(run.ask(f"{head}{' '.join(kept)}\nGo on:", "reasoning"))
        if _ends(kept[-1]):
            break
    return run.parse(" ".join(kept if _ends(kept[-1]) else [*kept, *left]) if kept else "")


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def _ends(step: str) -> bool:
    return "answer is" in step.lower()
