"""What CLIP methods with prompts in both towers share.

Words of a template become vectors in the text tower, tokens stand at the end of the image tower's sequence, and the
first layers of both see vectors of their own.  A method says how the two stacks are made and what is minimised.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError
from cuelight.methods.base import MethodConfig
from cuelight.methods.contrastive import Contrastive
from cuelight.prompts.dual import dual_of, encode_images, encode_text, template_context
from cuelight.prompts.multimodal import CoupledPrompts, IndependentPrompts, by_layer
from cuelight.tasks.image import ImageBatch

__all__ = ["DeepConfig", "DeepPrompted"]


class DeepConfig(MethodConfig):
    layers: int | None = Field(
        None,
        ge=1,
        description="Layers with prompts of their own, from the first; default 9, or all of the shallower tower.",
    )
    init_text: str = Field(
        "a photo of a {}.", description="Words the text's prompt starts from, {} being the class name."
    )
    init_seed: int = Field(0, ge=0, description="Seed of what does not start from words.")

    def depth(self, backbone: Backbone) -> int:
        """How many layers of both towers see prompts of their own.

        Raises:
            ConfigError: more than a tower has.
        """
        dual = dual_of(backbone)
        most = min(dual.text.depth, dual.vision.depth)
        if self.layers is not None and self.layers > most:
            raise ConfigError(f"layers: is {self.layers}; {backbone.id} has {most} in its shallower tower")
        return min(9, most) if self.layers is None else self.layers


class DeepPrompted(Contrastive):
    """Deep prompts in both towers.

    Attributes:
        prompts: the two stacks.
        tokens: class prompts with slots where the text's vectors stand.
    """

    prompts_images: ClassVar[bool] = True
    config: Any
    prompts: IndependentPrompts | CoupledPrompts

    def start(self, length: int) -> Tensor:
        """Write the context's first ``length`` words into slots; their embeddings ``[length, width]``."""
        self._length = length
        self.renamed()
        assert self.tokens.start is not None
        with torch.no_grad():
            return self.backbone.embed(self.tokens.start).float()

    def renamed(self) -> None:
        found = template_context(self.backbone, self.names, self.config.init_text, self._length)
        self.tokens = self.on_device(found)

    def class_features(self) -> Tensor:
        return self.prompted_classes()

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self.prompted_images(batch)

    def prompted_classes(self, *, normalised: bool = True, states: list[Tensor] | None = None) -> Tensor:
        """What the prompted text tower makes of the classes, ``[C, d]``."""
        first, deep = by_layer(self.prompts.text)
        return encode_text(self.backbone, self.tokens, first, deep, normalised=normalised, states=states)

    def prompted_images(
        self, batch: ImageBatch, *, normalised: bool = True, states: list[Tensor] | None = None
    ) -> Tensor:
        """What the prompted image tower makes of the pictures, ``[B, d]``."""
        assert batch.pixels is not None
        first, deep = by_layer(self.prompts.vision)
        return encode_images(self.backbone, batch.pixels, first, deep, normalised=normalised, states=states)

    @torch.no_grad()
    def frozen_images(self, batch: ImageBatch) -> Tensor:
        """What the image tower makes of the same pictures without prompts, ``[B, d]``; once a picture that stays."""
        if self.task.augments:
            return self.frozen_features(batch)
        self.remember(batch.items)
        known = torch.stack([item.feature for item in batch.items if item.feature is not None])
        return known.to(self.backbone.device, self.backbone.dtype)

    def token_shifts(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """How far the prompts move the ordinary tokens of each layer, of images and of texts, ``[layers]`` each.

        The mean distance from where they are without prompts, relative to their mean length there; for as many
        layers as the shallower tower has.
        """
        assert batch.pixels is not None and self.tokens.start is not None
        ours: list[Tensor] = []
        plain: list[Tensor] = []
        with torch.no_grad():
            encode_images(self.backbone, batch.pixels, states=plain)
        self.prompted_images(batch, states=ours)
        length = plain[0].shape[1]
        image = _moved([states[:, :length] for states in ours], plain, torch.ones(plain[0].shape[:2]) > 0)
        ours, plain = [], []
        with torch.no_grad():
            words = self.backbone.embed(self.tokens.start)
            encode_text(self.backbone, self.tokens, words, states=plain)
        self.prompted_classes(states=ours)
        text = _moved(ours, plain, (self.tokens.ids >= 0) & (self.tokens.mask > 0))
        layers = min(len(image), len(text))
        return image[:layers], text[:layers]


def _moved(ours: list[Tensor], plain: list[Tensor], ordinary: Tensor) -> Tensor:
    """Mean distance of each layer's states ``[N, T, w]``, over the mean length, for tokens ``ordinary [N, T]``."""
    return torch.stack(
        [
            (a - b)[ordinary].norm(dim=-1).mean() / b[ordinary].norm(dim=-1).mean()
            for a, b in zip(ours, plain, strict=True)
        ]
    )


class CoupledConfig(DeepConfig):
    length: int = Field(2, ge=1, description="Vectors in each layer of each tower.")
    shared: bool = Field(False, description="One map from text to image prompts for all layers.")


class CoupledPrompted(DeepPrompted):
    """Deep prompts whose image side is a linear image of the text side (MaPLe's)."""

    prompts: CoupledPrompts

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.prompts = CoupledPrompts(
            self.start(config.length),
            config.depth(backbone),
            self.dual.vision.width,
            shared=config.shared,
            seed=config.init_seed,
        )
