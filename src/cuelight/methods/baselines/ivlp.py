"""IVLP: free vectors in the first layers of both towers, independent of each other.

The text tower's stand in place of "a photo of a", the image tower's behind the patches; every layer up to ``--layers``
has vectors of its own.  With ``--vision-length 0`` it is deep language prompting, with ``--length 0`` deep vision
prompting.

Learned: layers x (length x text width + vision length x image width) values, 46,080 on CLIP ViT-B/16.  Cost: forward and
backward through both towers at every step.

Source: the baseline of MaPLe (arXiv 2210.03117) and of PromptSRC (arXiv 2307.06948), whose 4 + 4 tokens in 9 layers and
20 epochs are the default here; MaPLe's has 2 + 2 tokens in 12 layers and 5 epochs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError
from cuelight.methods.base import Card, MethodConfig
from cuelight.methods.contrastive import clip_schedule
from cuelight.methods.deep import DeepConfig, DeepPrompted
from cuelight.prompts.multimodal import IndependentPrompts
from cuelight.tasks.image import ImageBatch
from cuelight.training import ParamGroup


class IVLPConfig(DeepConfig):
    length: int = Field(4, ge=0, description="Vectors in each layer of the text tower; 0 leaves it as it is.")
    vision_length: int = Field(
        4, ge=0, description="Tokens in each layer of the image tower; 0 leaves it as it is."
    )


class IVLP(DeepPrompted):
    """Independent vision-language prompts."""

    card: ClassVar[Card] = Card(
        name="ivlp",
        title="IVLP: independent vision-language prompts",
        family="baselines",
        modality="vision-language",
        learns="length vectors in the first layers of both towers",
        cost="forward and backward through both towers",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="MaPLe: Multi-modal Prompt Learning",
        arxiv="2210.03117",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = IVLPConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=20, batch_size=4)
    config: IVLPConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        if not config.length and not config.vision_length:
            raise ConfigError("length: and vision_length are both 0, so nothing would learn; give one")
        self.prompts = IndependentPrompts(
            self.start(config.length),
            config.depth(backbone),
            config.vision_length,
            self.dual.vision.width,
            seed=config.init_seed,
        )

    @property
    def caches(self) -> bool:
        return not self.config.vision_length and not self.task.augments

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self.prompted_images(batch) if self.config.vision_length else self.frozen_features(batch)

    def groups(self) -> list[ParamGroup]:
        learned = {name: p for name, p in self.prompts.named_parameters() if p.numel()}
        return [ParamGroup("prompts", learned, lr=0.0025)]
