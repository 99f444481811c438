"""IVLP: free vectors in the first layers of both towers, independent of each other.

The text tower's stand in place of "a photo of a", the image tower's behind the patches; every layer up to ``--depth``
has vectors of its own.  With ``--image-tokens 0`` it is deep language prompting, with ``--text-tokens 0`` deep vision
prompting.

Learned: depth x (text tokens x text width + image tokens x image width) values.  Cost: forward and backward through
both towers at every step.

Source: the baseline of MaPLe (arXiv 2210.03117) and of PromptSRC (arXiv 2307.06948), whose 4 + 4 tokens in 9 layers and
20 epochs are the default here; MaPLe's has 2 + 2 tokens in 12 layers and 5 epochs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from cuelight.methods.base import Card
from cuelight.methods.contrastive import PromptedTowers, clip_schedule


class IVLP(PromptedTowers):
    """Independent vision-language prompts."""

    card: ClassVar[Card] = Card(
        name="ivlp",
        title="IVLP: independent vision-language prompts",
        family="baselines",
        modality="vision-language",
        learns="depth x (text tokens x text width + image tokens x image width) values",
        cost="forward and backward through both towers",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="MaPLe: Multi-modal Prompt Learning",
        arxiv="2210.03117",
        year=2023,
    )
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=20, batch_size=4)
