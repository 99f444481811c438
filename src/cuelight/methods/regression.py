"""Logistic regression on frozen features, for methods that only put a classifier on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["fit_best", "fit_logistic"]

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)


def fit_best(
    train: tuple[Tensor, np.ndarray],
    held_out: tuple[Tensor, np.ndarray] | None,
    classes: int,
    strength: float | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Weights and biases of the strength that is most often right on ``held_out``; of ties the strongest.

    Args:
        train, held_out: features ``[N, width]`` and truth: ``[N]`` class numbers, or ``[N, C]`` 0/1.
        classes: C.
        strength: inverse regularisation; None chooses among seven (1.0 without held-out rows).
        seed: of the solver.
    """
    inputs, truth = train[0].cpu().numpy(), train[1]
    if strength is not None or held_out is None:
        return fit_logistic(inputs, truth, classes, strength or 1.0, seed)
    fitted = []
    held, wanted = held_out[0].cpu(), held_out[1]
    for value in _STRENGTHS:
        weight, bias = fit_logistic(inputs, truth, classes, value, seed)
        scores = held @ weight.T + bias
        guess = scores.argmax(1).numpy() if truth.ndim == 1 else (scores > 0).numpy()
        fitted.append((float((guess == wanted).mean()), -value, (weight, bias)))
    return max(fitted, key=lambda entry: entry[:2])[2]


def fit_logistic(
    inputs: np.ndarray, truth: np.ndarray, classes: int, strength: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights ``[C, width]`` and biases ``[C]``; a class without examples keeps a low bias."""
    from sklearn.linear_model import LogisticRegression

    def regression() -> Any:
        return LogisticRegression(C=strength, max_iter=2000, random_state=seed)

    weight, bias = torch.zeros(classes, inputs.shape[1]), torch.full((classes,), -20.0)
    if truth.ndim == 2:
        for c in range(classes):
            if 0 < truth[:, c].sum() < len(truth):
                model = regression().fit(inputs, truth[:, c])
                weight[c], bias[c] = torch.tensor(model.coef_[0]), float(model.intercept_[0])
            elif truth[:, c].all():
                bias[c] = 20.0
        return weight, bias
    if len(set(truth.tolist())) == 1:
        bias[truth[0]] = 20.0
        return weight, bias
    model = regression().fit(inputs, truth)
    rows, offsets = torch.tensor(model.coef_).float(), torch.tensor(model.intercept_).float()
    if len(rows) == 1:  # two classes have one row: the second against the first
        rows, offsets = torch.cat([-rows, rows]) / 2, torch.cat([-offsets, offsets]) / 2
    places = torch.tensor(model.classes_)
    weight[places], bias[places] = rows, offsets
    return weight, bias
