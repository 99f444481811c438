"""What methods of the CLIP family share.

A picture's class is the one whose prompt lies nearest in the joint space of a dual encoder; the logits are cosines
times the pre-trained temperature.  A method says what its class features and its image features are; what it leaves
frozen is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cuelight.backbones.backbone import Backbone
from cuelight.methods.images import ImageMethod
from cuelight.prompts.dual import (
    ClassTokens,
    dual_of,
    encode_text,
    mean_features,
    plain_texts,
)
from cuelight.tasks.image import ImageBatch, ImageTask
from cuelight.tasks.predictions import Predictions

__all__ = ["Contrastive", "clip_schedule"]

_AT_ONCE = 64  # texts in one pass without gradients


def clip_schedule(epochs: float, batch_size: int) -> dict[str, Any]:
    """The training that CoOp and all its descendants share: SGD, one epoch at 1e-5, then the cosine.

    Momentum 0.9, weight decay 5e-4, no clipping, and the last step's tensors, not the best on the validation rows.
    A short last batch is kept and weighs what it holds, where the published loader drops it.
    """
    return {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": "sgd",
        "schedule": "clip",
        "weight_decay": 5e-4,
        "clip": 0.0,
        "keep": "last",
    }


class Contrastive(ImageMethod):
    """A method whose scores are cosines between image features and class features.

    Subclasses give `class_features`, or `image_features` too and say so by `prompts_images`; those whose class
    features depend on the picture override `scores`.

    Attributes:
        dual: the backbone's towers and joint space.
    """

    def __init__(self, backbone: Backbone, task: ImageTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.dual = dual_of(backbone)
        self._class_features: tuple[Any, Tensor] | None = None
        self._zero_shot: dict[Any, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Class names as they are read."""
        return self.task.names

    # ---- what a method is ------------------------------------------------------------------------------

    def class_features(self) -> Tensor:
        """Features of the classes ``[C, d]``, normalised, with a gradient to what is learned."""
        raise NotImplementedError

    def image_features(self, batch: ImageBatch) -> Tensor:
        """Features of the pictures ``[B, d]``, normalised; the frozen tower's by default."""
        return self.frozen_features(batch)

    def scores(self, batch: ImageBatch) -> Tensor:
        """Logits ``[B, C]``."""
        return self.dual.scale * self.image_features(batch) @ self._features().T

    def loss(self, batch: ImageBatch) -> Tensor:
        return cross_entropy(self.scores(batch).float(), batch.label)

    @torch.no_grad()
    def predict(self, batch: ImageBatch) -> Predictions:
        return self.task.from_scores(self.scores(batch))

    def rename(self, classes: Sequence[str]) -> None:
        """Answer with other classes from now on; what was learned stays (base-to-new, cross-data-set).

        Raises:
            ConfigError: what was learned belongs to the classes it was learned on.
        """
        self.task = self.task.renamed(classes)
        self._class_features = None
        self.renamed()

    def renamed(self) -> None:
        """Make anew what depends on the class names; called by `rename`."""

    def _features(self) -> Tensor:
        """`class_features`; without gradients computed once for the learned tensors as they are."""
        if torch.is_grad_enabled():
            return self.class_features()
        tensors = [*self.parameters(), *self.buffers()]
        state = (self.names, *((id(t), t.data_ptr(), t._version) for t in tensors))
        if self._class_features is None or self._class_features[0] != state:
            self._class_features = state, self.class_features()
        return self._class_features[1]

    # ---- what is frozen --------------------------------------------------------------------------------

    @torch.no_grad()
    def zero_shot(
        self,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        *,
        normalise_each: bool = True,
    ) -> Tensor:
        """The frozen text tower's class features ``[C, d]``, normalised, computed once.

        Args:
            templates: texts with ``{}``, the task's by default; several are averaged.
            names: class names as they are read, the task's by default.
            normalise_each: normalise every template's feature before the mean.
        """
        chosen = tuple(templates or self.task.templates), tuple(names or self.names), normalise_each
        if chosen not in self._zero_shot:
            parts = [self.texts([t.replace("{}", n) for n in chosen[1]]) for t in chosen[0]]
            self._zero_shot[chosen] = mean_features(parts, first=normalise_each)
        return self._zero_shot[chosen]

    @torch.no_grad()
    def texts(self, texts: Sequence[str], *, cut: bool = False) -> Tensor:
        """The frozen text tower's features of any texts, ``[N, d]``, not normalised; ``cut`` cuts long ones."""
        parts = []
        for k in range(0, len(texts), _AT_ONCE):
            tokens = self.on_device(plain_texts(self.backbone, texts[k : k + _AT_ONCE], cut=cut))
            parts.append(encode_text(self.backbone, tokens, normalised=False))
        return torch.cat(parts)

    def on_device(self, tokens: ClassTokens) -> ClassTokens:
        """``tokens`` where the backbone is."""
        return tokens.to(self.backbone.device)
