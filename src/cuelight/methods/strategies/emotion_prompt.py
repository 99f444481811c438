"""EmotionPrompt: a sentence about stakes, confidence or effort stands behind the instruction.

There are eleven; ``stimulus`` picks one by its number.  Given labelled examples, the one with the best accuracy on them is
used.

Calls: 1; beforehand, with examples, one for each stimulus and example.  Source: Li et al., "Large language models understand
and can be enhanced by emotional stimuli", 2023, arXiv 2307.11760.  *Departures*: the sentences are our own, of the paper's
three kinds (self-monitoring, social-cognitive, emotion regulation); give the paper's with ``text``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.lm.answers import same
from cuelight.methods.strategy import Demos, Run, StrategyCard, demos_of, strategy

STIMULI = (
    "Say how sure you are of your answer, from 0 to 1.",
    "A lot in my work depends on this.",
    "Please be certain before you answer.",
    "Look at it once more: is that really your final answer?",
    "It would mean a great deal to me if this were right.",
    "Trust what you know, and do your best.",
    "Take this as a chance to do excellent work.",
    "Stay with it: careful work pays off.",
    "Be proud of your work and give it all you have.",
    "Every difficulty here is a chance to learn.",
    "Keep your mind on the goal; step by step you will get there.",
)


@strategy(
    StrategyCard(
        name="emotion-prompt",
        title="EmotionPrompt",
        group="emotion",
        calls="1; beforehand, with examples, one for each stimulus and example",
        paper="Li et al., Large language models understand and can be enhanced by emotional stimuli",
        arxiv="2307.11760",
        year=2023,
        acquired="manual",
        turns="single",
        shown_on="GPT-4",
    )
)
def emotion_prompt(
    run: Run,
    question: str,
    *,
    stimulus: Annotated[int, Field(ge=1, le=len(STIMULI), description="Number of the sentence.")] = 2,
    text: Annotated[str, Field(description="A sentence of your own.")] = "",
    examples: Annotated[Demos, Field(description="Labelled questions that choose the sentence.")] = (),
) -> str | None:
    chosen = text or STIMULI[stimulus - 1]
    rows = demos_of(examples)
    if rows and not text:
        with run.preparing():
            right = {}
            for sentence in STIMULI:
                said = run.ask_all([f"Q: {d.question}\n{run.form} {sentence}\nA:" for d in rows], "validate")
                right[sentence] = sum(
                    same(run.parse(t), d.answer, run.common.answer) for t, d in zip(said, rows, strict=True)
                )
            chosen = max(STIMULI, key=lambda s: right[s])
            run.note("chosen", chosen, right=right)
    return run.parse(run.ask(f"Q: {run.asked}\n{run.form} {chosen}\nA:", "answer"))
