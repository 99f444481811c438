"""Image linear probe: logistic regression on the frozen image tower's features.

Features are computed once; scikit-learn fits the regression, its strength chosen on the validation rows among seven.
It knows nothing of the class names, so it has no answer for new classes.

Source: the linear probe of Radford et al. 2021 (CLIP), arXiv 2103.00020; Alain, Bengio 2016, arXiv 1610.01644.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.images import ImageMethod
from cuelight.methods.regression import StandardisedHead
from cuelight.tasks.image import ImageBatch, ImageItem
from cuelight.tasks.predictions import Predictions


class ImageLinearProbeConfig(MethodConfig):
    strength: float | None = Field(
        None, gt=0, description="Inverse regularisation; chosen on validation rows by default."
    )


class ImageLinearProbe(StandardisedHead, ImageMethod):
    """Logistic regression on frozen image features."""

    card: ClassVar[Card] = Card(
        name="image-linear-probe",
        title="Image linear probe",
        family="baselines",
        modality="vision",
        learns="classes x (feature width + 1) values",
        cost="one pass of the frozen image tower",
        kinds=("vision-language", "vision-encoder"),
        tasks=("classification",),
        paper="Learning Transferable Visual Models From Natural Language Supervision",
        arxiv="2103.00020",
        year=2021,
    )
    Config: ClassVar[type[MethodConfig]] = ImageLinearProbeConfig
    config: ImageLinearProbeConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        width = backbone.dual.width if backbone.dual else backbone.towers["vision"].width
        self.make_head(width, len(task.classes), backbone.device)

    def prepare(self, data: Data, seed: int) -> None:
        if not data.train:
            raise ConfigError("image-linear-probe: there are no training rows; give data with a train split")
        self.remember([*data.train, *data.validation])
        held_out = self._table(data.validation) if data.validation else None
        self.fit(self._table(data.train), held_out, self.config.strength, seed)

    def _table(self, items: list[ImageItem]) -> tuple[Tensor, np.ndarray]:
        batch = self.task.collate_features(items).to(self.backbone.device)
        assert batch.features is not None
        return batch.features.float(), batch.label.cpu().numpy()

    @torch.no_grad()
    def predict(self, batch: ImageBatch) -> Predictions:
        return self.task.from_scores(self.head(self.standardised(self.frozen_features(batch).float())))
