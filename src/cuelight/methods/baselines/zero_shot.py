"""Zero-shot: the frozen model answers the template as it is.  Nothing learns."""

from __future__ import annotations

from typing import ClassVar

from cuelight.methods.base import Card, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch


class ZeroShot(PromptedLM):
    """The backbone, the template and the label words, and nothing else."""

    card: ClassVar[Card] = Card(
        name="zero-shot",
        title="Zero-shot prompting",
        family="baselines",
        modality="text",
        learns="nothing",
        cost="one pass of the frozen model",
        kinds=("causal", "seq2seq", "masked"),
    )

    def condition(self, batch: TextBatch) -> Condition:
        return Condition()
