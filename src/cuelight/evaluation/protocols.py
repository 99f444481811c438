"""Figures that evaluation protocols are read by."""

from __future__ import annotations

import math

__all__ = ["base_classes", "harmonic_mean"]


def base_classes(classes: int) -> int:
    """How many of ``classes``, in order, are base classes; the rest are new ones (CoOp's split)."""
    return math.ceil(classes / 2)


def harmonic_mean(base: float, new: float) -> float:
    """H of accuracies on base and on new classes; 0 when both are 0.

    For several data sets it is taken of the two averages, as in the literature, not averaged itself.
    """
    return 2 * base * new / (base + new) if base + new else 0.0
