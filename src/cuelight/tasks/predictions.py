"""What a method answers, whatever it read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Predictions"]


@dataclass
class Predictions:
    """Answers for some rows: names (for multilabel lists of names), and class probabilities if there are."""

    answers: list[Any]
    probabilities: Tensor | None = None

    @staticmethod
    def joined(parts: Sequence[Predictions], order: Sequence[int]) -> Predictions:
        """Several parts as one; entry ``k`` of the concatenation belongs at place ``order[k]``."""
        answers = [a for part in parts for a in part.answers]
        places = sorted(range(len(order)), key=order.__getitem__)
        tables = [part.probabilities for part in parts if part.probabilities is not None]
        return Predictions([answers[k] for k in places], torch.cat(tables)[places] if tables else None)
