"""A Gaussian mixture's score function, and particles moved along it by Stein variational gradient descent.

Stein variational gradient descent (Liu, Wang 2016, arXiv 1608.04471) moves ``n`` points together until they stand like
draws from a density of which only the gradient of its logarithm, the *score function*, is known: each goes uphill with
its neighbours, and away from them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cuelight.progress import track

__all__ = ["Mixture", "bandwidth", "direction", "svgd"]

_NARROW = 1e-6
"""Least bandwidth: the median of one point's distances, or of equal points', is 0."""


@dataclass(frozen=True)
class Mixture:
    """``p(x) = sum_k w_k N(x; m_k, S_k)`` in ``d`` dimensions.

    Attributes:
        log_weights: ``[K]``.
        means: ``[K, d]``.
        precisions: ``[K, d, d]``, the inverse covariances.
        log_dets: ``[K]``, of the covariances.
    """

    log_weights: Tensor
    means: Tensor
    precisions: Tensor
    log_dets: Tensor

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> Self:
        """The mixture of these ``weights [K]``, ``means [K, d]`` and ``covariances [K, d, d]``, inverted once."""
        factors = torch.linalg.cholesky(covariances)
        log_dets = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(weights.log(), means, torch.cholesky_inverse(factors), log_dets)

    @classmethod
    def fit(cls, points: Tensor, components: int, ridge: float, seed: int = 0) -> Self:
        """The mixture that expectation maximisation finds for ``points [n, d]``, in double precision.

        ``ridge`` is added to the diagonal of every covariance; there are at most as many components as points.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        found = GaussianMixture(
            min(components, len(points)), covariance_type="full", reg_covar=ridge, random_state=seed % 2**32
        )
        with warnings.catch_warnings():  # equal points, and a fit that is still improving, are no mistake
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.fit(points.double().cpu().numpy())
        parts = (found.weights_, found.means_, found.covariances_)
        return cls.of(*(torch.from_numpy(part).to(points.device) for part in parts))

    def to(self, kind: torch.dtype) -> Self:
        """The same in another precision."""
        parts = (self.log_weights, self.means, self.precisions, self.log_dets)
        return type(self)(*(part.to(kind) for part in parts))

    def _pulls(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``log w_k N(x; m_k, S_k)`` as ``[K, n]`` and ``S_k^-1 (x - m_k)`` as ``[K, n, d]``."""
        away = x - self.means[:, None]
        pulls = away @ self.precisions
        constant = self.log_dets + x.shape[-1] * math.log(2 * math.pi)
        return self.log_weights[:, None] - 0.5 * (constant[:, None] + (away * pulls).sum(-1)), pulls

    def log_density(self, x: Tensor) -> Tensor:
        """``log p(x)``, ``[n]``, of ``x [n, d]``."""
        return self._pulls(x)[0].logsumexp(0)

    def responsibilities(self, x: Tensor) -> Tensor:
        """How much of ``p(x)`` each component makes up, ``[n, K]``, of ``x [n, d]``.

        Densities are never exponentiated alone: in a thousand dimensions they leave the range of floating point.
        """
        return self._pulls(x)[0].softmax(0).T

    def score(self, x: Tensor) -> Tensor:
        """The gradient of ``log p`` at ``x [n, d]``, ``[n, d]``."""
        logs, pulls = self._pulls(x)
        return -(logs.softmax(0)[..., None] * pulls).sum(0)


def bandwidth(squares: Tensor) -> Tensor:
    """The kernel's width by the median rule, of all squared distances ``[n, n]``."""
    median = squares.flatten().sort().values
    middle = len(median) // 2
    # Of an even number the mean of the middle two: of two points' four distances, two are 0.
    median = median[middle] if len(median) % 2 else (median[middle - 1] + median[middle]) / 2
    return (0.5 * median / math.log(len(squares) + 1)).sqrt().clamp(min=_NARROW)


def direction(points: Tensor, score: Tensor) -> Tensor:
    """Where Stein variational gradient descent moves ``points [n, d]``, given the score there, ``[n, d]``.

    With ``k_ij = exp(-|x_i - x_j|^2 / 2h^2)``: the mean over ``j`` of ``k_ij score_j + k_ij (x_i - x_j) / h^2``.
    """
    squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    width = bandwidth(squares)
    kernel = (-squares / (2 * width**2)).exp()
    apart = (kernel.sum(1, keepdim=True) * points - kernel @ points) / width**2
    return (kernel @ score + apart) / len(points)


@torch.no_grad()
def svgd(
    score: Callable[[Tensor], Tensor],
    points: Tensor,
    *,
    steps: int = 1000,
    rate: float = 0.01,
    decay: float = 0.9,
    away: bool = False,
    progress: str | None = None,
) -> Tensor:
    """``points [n, d]`` after ``steps`` of Stein variational gradient descent along ``score``.

    Steps are scaled by a running mean of squares that forgets (``decay``), so that every coordinate moves by about
    ``rate`` whatever the gradient.  ``away`` goes the other way, a control; ``progress`` names a bar on the terminal.
    """
    points = points.clone()
    squares: Tensor | None = None
    for _ in track(range(steps), progress):
        step = direction(points, score(points))
        squares = step**2 if squares is None else decay * squares + (1 - decay) * step**2
        points += (-rate if away else rate) * step / (1e-6 + squares.sqrt())
    return points
