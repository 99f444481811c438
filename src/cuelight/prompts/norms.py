"""A tower's layer norms as something to learn: weights of its own in place of the frozen ones, while a pass runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from cuelight.backbones.towers import Tower

__all__ = ["TunedNorms"]


class TunedNorms(nn.Module):
    """Copies of the layer norms inside a tower's layers.

    Attributes:
        values: weight and bias of every norm, in the order of the tower.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self._norms = [m for layer in tower.layers for m in layer.modules() if isinstance(m, nn.LayerNorm)]
        self.values = nn.ParameterList(
            [
                nn.Parameter(p.detach().float().clone())
                for norm in self._norms
                for p in (norm.weight, norm.bias)
            ]
        )

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the tower computes with these."""

        def with_values(k: int) -> Any:
            def hook(norm: nn.LayerNorm, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
                weight, bias = (self.values[2 * k + n].to(args[0].dtype) for n in (0, 1))
                return layer_norm(args[0], norm.normalized_shape, weight, bias, norm.eps)

            return hook

        handles = [norm.register_forward_hook(with_values(k)) for k, norm in enumerate(self._norms)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
