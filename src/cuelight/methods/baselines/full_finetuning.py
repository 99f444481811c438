"""Full fine-tuning: every weight of a copy of the backbone learns.

Language models learn the answer as text; text encoders get a linear head on the mean of their states.  The
artifact holds the whole model, so it is as large as the backbone.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cuelight.methods.base import Card, Method
from cuelight.prompts.conditioning import Condition, TextBatch, text_states
from cuelight.tasks.text import Predictions
from cuelight.training import ParamGroup


class FullFineTuning(Method):
    """All weights learn, in a copy."""

    card: ClassVar[Card] = Card(
        name="full-finetuning",
        title="Full fine-tuning",
        family="baselines",
        modality="text",
        learns="all weights of the backbone, in a copy",
        cost="a second copy of the model, its gradients and two optimiser states",
        kinds=("causal", "seq2seq", "masked", "text-encoder"),
    )
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.tuned, weights = backbone.copy()
        self.task = copy.copy(task)
        self.task.backbone = self.tuned
        self.weights = nn.ParameterDict({n.replace(".", "/"): p for n, p in weights.items()})
        self.head: nn.Linear | None = None
        # A masked language model has one answer token, so several labels need a head as in an encoder.
        if backbone.kind == "text-encoder" or (backbone.kind == "masked" and task.kind == "multilabel"):
            self.head = nn.Linear(backbone.tower.width, len(task.classes)).to(backbone.device)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def _scores(self, batch: TextBatch) -> Tensor:
        assert self.head is not None
        states, mask = text_states(self.tuned, batch, Condition())
        return self.head((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def loss(self, batch: TextBatch) -> Tensor:
        self.tuned.model.train(self.training)
        if self.head is None:
            return self.task.loss(batch, Condition())
        scores = self._scores(batch)
        if self.task.kind == "multilabel":
            return nn.functional.binary_cross_entropy_with_logits(scores, batch.extra["labels"])
        return nn.functional.cross_entropy(scores, batch.extra["label"])

    def predict(self, batch: TextBatch) -> Predictions:
        self.tuned.model.eval()
        with torch.no_grad():
            if self.head is None:
                return self.task.predict(batch, Condition())
            return self.task.from_scores(self._scores(batch))

    def groups(self) -> list[ParamGroup]:
        weights = dict(self.weights.items())
        body = ParamGroup("weights", weights, lr=3e-4 if self.backbone.kind == "seq2seq" else 3e-5)
        return (
            [body]
            if self.head is None
            else [body, ParamGroup("head", dict(self.head.named_parameters()), lr=1e-3)]
        )
