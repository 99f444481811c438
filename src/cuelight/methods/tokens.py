"""What CLIP methods share that look at every token the frozen image tower puts out, not at the class token alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.methods.base import Data
from cuelight.methods.contrastive import Contrastive
from cuelight.tasks.image import ImageBatch

__all__ = ["TokenReader"]

_AT_ONCE = 64
_KEPT = 512 * 2**20  # bytes of the training pictures' tokens that are kept


class TokenReader(Contrastive):
    """Reads all tokens of a picture in the joint space; those of training pictures that stay are computed once."""

    prompts_images: ClassVar[bool] = True  # so that batches hold pictures

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self._known: dict[str, Tensor] = {}

    def prepare(self, data: Data, seed: int) -> None:
        super().prepare(data, seed)
        self._known = {}
        if self.task.augments:
            return
        for k in range(0, len(data.train), _AT_ONCE):
            part = data.train[k : k + _AT_ONCE]
            found = self.image_tokens(self.task.collate(part).to(self.backbone.device)).cpu()
            if (len(self._known) + len(found)) * found[0].numel() * found.element_size() > _KEPT:
                return
            self._known |= {item.key: tokens for item, tokens in zip(part, found, strict=True)}

    @torch.no_grad()
    def image_tokens(self, batch: ImageBatch) -> Tensor:
        """Output tokens in the joint space, not normalised, ``[B, 1 + patches, d]``, the class token first."""
        known = [self._known.get(item.key) for item in batch.items]
        tokens = [one for one in known if one is not None]
        if not self.task.augments and len(tokens) == len(batch):
            return torch.stack(tokens).to(self.backbone.device)
        assert batch.pixels is not None
        return self.dual.token_features(batch.pixels.to(self.backbone.dtype), normalised=False)
