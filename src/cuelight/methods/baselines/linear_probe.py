"""Linear probe: logistic regression on the frozen backbone's features.

A causal model is read at its last token, the others by the mean over their tokens.  Features are computed
once; scikit-learn fits the regression, its strength chosen on the validation rows among seven.

Source: Alain, Bengio 2016, *Understanding intermediate layers using linear classifier probes*, arXiv
1610.01644.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, Method, MethodConfig
from cuelight.methods.regression import StandardisedHead
from cuelight.prompts.conditioning import Condition, TextBatch, text_states
from cuelight.tasks.text import Item, Predictions


class LinearProbeConfig(MethodConfig):
    strength: float | None = Field(
        None, gt=0, description="Inverse regularisation; chosen on validation rows by default."
    )


class LinearProbe(StandardisedHead, Method):
    """Logistic regression on frozen features."""

    card: ClassVar[Card] = Card(
        name="linear-probe",
        title="Linear probe",
        family="baselines",
        modality="text",
        learns="classes x (width + 1) values",
        cost="one pass of the frozen model",
        kinds=("causal", "seq2seq", "masked", "text-encoder"),
        tasks=("classification", "multilabel"),
        paper="Understanding intermediate layers using linear classifier probes",
        arxiv="1610.01644",
        year=2016,
    )
    Config: ClassVar[type[MethodConfig]] = LinearProbeConfig
    config: LinearProbeConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.make_head(backbone.tower.width, len(task.classes), backbone.device)

    @torch.no_grad()
    def pooled(self, batch: TextBatch) -> Tensor:
        """The backbone's features ``[B, width]`` as they are."""
        states, mask = text_states(self.backbone, batch, Condition())
        states = states.float()
        if self.backbone.kind == "causal":
            return states[torch.arange(len(batch), device=states.device), mask.sum(1) - 1]
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def features(self, batch: TextBatch) -> Tensor:
        """``[B, width]``, standardised by the training rows."""
        return self.standardised(self.pooled(batch))

    def prepare(self, data: Data, seed: int) -> None:
        if not data.train:
            raise ConfigError("linear-probe: there are no training rows; give data with a train split")
        held_out = self._table(data.validation) if data.validation else None
        self.fit(self._table(data.train), held_out, self.config.strength, seed)

    def _table(self, items: list[Item]) -> tuple[Tensor, np.ndarray]:
        """Features as they are and truth (``[N]`` class numbers, or ``[N, C]`` 0/1) of ``items``."""
        place = self.backbone.device
        parts = [
            self.pooled(self.task.collate(items[k : k + 32]).to(place)) for k in range(0, len(items), 32)
        ]
        truth = [i.labels for i in items] if self.task.kind == "multilabel" else [i.label for i in items]
        return torch.cat(parts), np.asarray(truth)

    def predict(self, batch: TextBatch) -> Predictions:
        with torch.no_grad():
            return self.task.from_scores(self.head(self.features(batch)))
