"""Run a method over rows and say how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cuelight.progress import track
from cuelight.tasks.predictions import Predictions

if TYPE_CHECKING:
    from cuelight.methods.base import Method

__all__ = ["evaluate", "predict_items"]


def predict_items(
    method: Method, items: Sequence[Any], *, batch_size: int = 32, progress: str | None = None
) -> Predictions:
    """Answers for ``items`` in their order.  Rows of like length share a batch, so little is spent on padding.

    ``progress`` names a progress bar on the terminal; ``None`` shows none.
    """
    order = sorted(range(len(items)), key=lambda k: -method.task.length(items[k]))
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    was_training = method.training
    method.eval()
    parts: list[Predictions] = []
    try:
        for places in track(batches, progress):
            batch = method.batch([items[k] for k in places])
            parts.append(method.predict(batch.to(method.backbone.device)))
    finally:
        method.train(was_training)
    return Predictions.joined(parts, order)


def evaluate(
    method: Method, items: Sequence[Any], *, batch_size: int = 32, progress: str | None = None
) -> tuple[dict[str, float], Predictions]:
    """The task's figures on ``items``, and the answers they come from."""
    predictions = predict_items(method, items, batch_size=batch_size, progress=progress)
    return method.task.metrics(predictions, items), predictions
