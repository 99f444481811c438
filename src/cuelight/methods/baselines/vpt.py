"""VPT: learned tokens among the patches of a picture, the class prompts left as they are.

n tokens stand behind the class token; deep, every layer has n of its own that take the place of what the layer before
made of them; shallow, only the first has.  Here the classifier is the frozen text tower's, so new classes can be named.

Learned: n x image width values, times the layers when deep.  Cost: forward and backward through the image tower at
every step, with n more tokens.

Source: Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim, *Visual Prompt Tuning*, ECCV 2022, arXiv 2203.12119; on CLIP
as in Shen et al. 2022 (MVLPT), arXiv 2211.11720.
Departures: CLIP's text features classify, not a learned linear head; SGD and the schedule of the CLIP family.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.methods.base import Card, MethodConfig
from cuelight.methods.contrastive import Contrastive, clip_schedule
from cuelight.prompts.dual import encode_images
from cuelight.tasks.image import ImageBatch, ImageTask
from cuelight.training import ParamGroup


class VPTConfig(MethodConfig):
    tokens: int = Field(16, ge=1, description="Learned tokens, n.")
    depth: Literal["deep", "shallow"] = Field(
        "deep", description="Tokens of its own for every layer, or for the first only."
    )
    init_seed: int = Field(0, ge=0, description="Seed of the tokens.")


class VPT(Contrastive):
    """Learned tokens among the patches.

    Attributes:
        tokens: ``[layers, n, image width]``.
    """

    card: ClassVar[Card] = Card(
        name="vpt",
        title="VPT: visual prompt tuning",
        family="baselines",
        modality="vision-language",
        learns="n x image width values, for every layer (deep) or the first (shallow)",
        cost="forward and backward through the image tower; texts once",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Visual Prompt Tuning",
        arxiv="2203.12119",
        year=2022,
    )
    Config: ClassVar[type[MethodConfig]] = VPTConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=20, batch_size=8)
    prompts_images: ClassVar[bool] = True
    config: VPTConfig

    def __init__(self, backbone: Any, task: ImageTask, config: VPTConfig) -> None:
        super().__init__(backbone, task, config)
        tower = self.dual.vision
        layers = tower.depth if config.depth == "deep" else 1
        limit = (6 / (3 * self.dual.patch_size**2 + tower.width)) ** 0.5
        draw = torch.Generator().manual_seed(config.init_seed)
        start = (torch.rand(layers, config.tokens, tower.width, generator=draw) * 2 - 1) * limit
        self.tokens = nn.Parameter(start.to(backbone.device))

    def class_features(self) -> Tensor:
        return self.zero_shot()

    def image_features(self, batch: ImageBatch) -> Tensor:
        assert batch.pixels is not None
        deep = dict(enumerate(self.tokens[1:], 1))
        return encode_images(self.backbone, batch.pixels, self.tokens[0], deep, after=1, entering=False)

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("tokens", {"tokens": self.tokens}, 0.002)]
