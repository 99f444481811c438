"""What methods that read pictures share: frozen image features are computed once where nothing learned touches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from cuelight.methods.base import Data, Method
from cuelight.progress import track
from cuelight.tasks.image import ImageBatch, ImageItem, ImageTask
from cuelight.training import Stage

__all__ = ["ImageMethod"]

_AT_ONCE = 64  # pictures in one pass without gradients


class ImageMethod(Method):
    """A method that reads pictures through a frozen image tower."""

    task: ImageTask
    prompts_images: ClassVar[bool] = False
    """Whether something learned touches the image tower, so that pictures have to be encoded at every step."""

    @property
    def caches(self) -> bool:
        """Whether image features are computed once: nothing learned touches them, and pictures stay as they are."""
        return not self.prompts_images and not self.task.augments

    @torch.no_grad()
    def frozen_features(self, batch: ImageBatch) -> Tensor:
        """The frozen tower's features of the pictures, ``[B, d]``, those known already not computed again."""
        if batch.features is not None:
            return batch.features
        assert batch.pixels is not None
        found = self.backbone.image_features(batch.pixels)
        if not self.training:  # training pictures may be augmented
            for item, feature in zip(batch.items, found.cpu(), strict=True):
                self.task.remember(item, feature)
        return found

    @torch.no_grad()
    def remember(self, items: Sequence[ImageItem], progress: str | None = None) -> None:
        """Compute the frozen features of those ``items`` that have none yet, without augmentation."""
        missing = [item for item in items if item.feature is None]
        for k in track(range(0, len(missing), _AT_ONCE), progress):
            part = missing[k : k + _AT_ONCE]
            pixels = self.task.collate(part).to(self.backbone.device).pixels
            assert pixels is not None
            for item, feature in zip(part, self.backbone.image_features(pixels).cpu(), strict=True):
                self.task.remember(item, feature)

    def prepare(self, data: Data, seed: int) -> None:
        if self.caches and self.groups():
            self.remember([*data.train, *data.validation])

    def batch(self, items: Sequence[ImageItem]) -> ImageBatch:
        if self.caches and all(item.feature is not None for item in items):
            return self.task.collate_features(items)
        return self.task.collate(items)

    def training_batch(self, items: Sequence[ImageItem]) -> ImageBatch:
        """A batch to learn from: as `batch`, augmented where the task says so."""
        return self.task.collate(items, augment=True) if self.task.augments else self.batch(items)

    def stages(self, data: Data) -> list[Stage]:
        stages = super().stages(data)
        for stage in stages:
            stage.collate = self.training_batch
        return stages
