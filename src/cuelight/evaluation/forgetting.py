"""What fine-tuning on one task does to the others: answers in the wrong format, and which gradients teach the format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["format_rate", "gradient_alignment"]


def format_rate(answers: Sequence[str], words: Sequence[str]) -> float:
    """Share of free ``answers`` that are one of another task's label ``words`` (case and end marks aside)."""
    known = {word.strip().lower() for word in words}
    return sum(answer.strip().strip(".!,").lower() in known for answer in answers) / max(1, len(answers))


def gradient_alignment(
    loss: Callable[[bool], Tensor], parameters: Mapping[str, nn.Parameter], depth: int = 2
) -> dict[str, float]:
    """Cosine of the gradients with true and with permuted answers: near 1 where a model learns nothing but the format.

    Args:
        loss: the loss on one batch, with permuted answers when called with ``True``.
        parameters: by their dotted names; those that share the first ``depth`` parts of it are a group.

    Returns:
        The cosine of each group, and of ``all``.
    """
    pairs: dict[str, list[Tensor]] = {}
    names, tensors = list(parameters), list(parameters.values())
    gradients = [
        torch.autograd.grad(loss(permuted), tensors, allow_unused=True) for permuted in (False, True)
    ]
    for name, true, false in zip(names, *gradients, strict=True):
        if true is None or false is None:
            continue
        sums = torch.stack([(true * false).sum(), true.square().sum(), false.square().sum()]).double()
        for group in ("all", ".".join(name.split(".")[:depth])):
            pairs.setdefault(group, []).append(sums)
    found = {}
    for group, parts in pairs.items():
        product, one, other = torch.stack(parts).sum(0).tolist()
        found[group] = product / max((one * other) ** 0.5, 1e-30)
    return found
