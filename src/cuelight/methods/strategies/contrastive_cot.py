"""Contrastive chain of thought: every example shows a right explanation and a wrong one.

The wrong one is made from the right one: its numbers and names are taken out, shuffled, and put back, which keeps the
language and breaks the reasoning.

Calls: 1.  Source: Chia et al., "Contrastive chain-of-thought prompting", 2023, arXiv 2311.09277.  *Departures*: objects are
numbers and capitalised words within a sentence (the paper uses a named-entity tagger); with ``samples`` above 1 the answers
vote, as in the paper's combination with self-consistency.
"""

from __future__ import annotations

import random
import re
from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import DEMOS, Demos, Run, StrategyCard, demos_of, majority, strategy

_OBJECT = re.compile(r"\d+(?:\.\d+)?|(?<=[a-z,] )[A-Z]\w+")


@strategy(
    StrategyCard(
        name="contrastive-cot",
        title="Contrastive Chain-of-Thought (CCoT) prompting",
        group="consistency",
        calls="1 (samples when they vote)",
        paper="Chia et al., Contrastive chain-of-thought prompting",
        arxiv="2311.09277",
        year=2023,
        acquired="model-generated",
        turns="multi",
        shown_on="GPT-3.5",
    )
)
def contrastive_cot(
    run: Run,
    question: str,
    *,
    demos: Annotated[Demos, Field(description="Examples with right rationales.")] = DEMOS,
    samples: Annotated[int, Field(ge=1, description="Answers that vote.")] = 1,
    temperature: Annotated[float, Field(ge=0, description="Temperature where answers vote.")] = 0.7,
) -> str | None:
    order = random.Random(run.common.seed)
    shown = ""
    for demo in demos_of(demos):
        wrong, wrong_answer = shuffled(demo.rationale, demo.answer, order)
        shown += (
            f"Q: {demo.question}\nA: {demo.rationale} The answer is {demo.answer}.\n"
            f"Wrong explanation: {wrong} The answer is {wrong_answer}.\n\n"
        )
    prompt = f"{shown}Q: {run.asked}\nA:"
    if samples == 1:
        return run.parse(_first(run.ask(prompt, "reasoning")))
    texts = run.sample(prompt, samples, "reasoning", temperature)
    best, votes = majority([run.parse(_first(text)) for text in texts])
    run.note("votes", data=votes)
    run.trace.confidence = votes[best] / samples if best else None
    return best


def shuffled(rationale: str, answer: str, order: random.Random) -> tuple[str, str]:
    """The rationale with its objects in another order, and the object that stands where the answer stood last."""
    places = list(_OBJECT.finditer(rationale))
    objects = [place[0] for place in places]
    moved = objects[:]
    for _ in range(20):
        order.shuffle(moved)
        if moved != objects:
            break
    text, end = "", 0
    for place, new in zip(places, moved, strict=True):
        text += rationale[end : place.start()] + new
        end = place.end()
    others = [new for new in moved if new != answer]
    return text + rationale[end:], others[-1] if others else "unknown"


def _first(text: str) -> str:
    """The right explanation: small models go on with a wrong one."""
    return text.split("Wrong explanation:")[0]
