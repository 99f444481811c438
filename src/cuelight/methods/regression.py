"""Logistic regression on frozen features, for methods that only put a classifier on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["StandardisedHead", "fit_best", "fit_logistic"]

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


class StandardisedHead(nn.Module):
    """A linear head on features that are standardised by the training rows; a method is one beside its other base.

    Attributes:
        head: from features ``[.., width]`` to scores ``[.., C]``.
        centre, spread: ``[width]``, of the training rows.
    """

    centre: Tensor
    spread: Tensor

    def make_head(self, width: int, classes: int, place: torch.device) -> None:
        """A head that says nothing yet."""
        self.head = nn.Linear(width, classes).to(place)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("centre", torch.zeros(width, device=place))
        self.register_buffer("spread", torch.ones(width, device=place))

    def standardised(self, features: Tensor) -> Tensor:
        """``features`` less the training rows' mean, by their deviation."""
        return (features - self.centre) / self.spread

    @torch.no_grad()
    def fit(
        self,
        train: tuple[Tensor, np.ndarray],
        held_out: tuple[Tensor, np.ndarray] | None,
        strength: float | None,
        seed: int,
    ) -> None:
        """Standardise by ``train`` and fit the head, see `fit_best`."""
        self.centre.copy_(train[0].mean(0))
        self.spread.copy_(train[0].std(0, correction=0).clamp(min=1e-6))
        if held_out is not None:
            held_out = self.standardised(held_out[0]), held_out[1]
        inputs = self.standardised(train[0])
        weight, bias = fit_best((inputs, train[1]), held_out, self.head.out_features, strength, seed)
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)
