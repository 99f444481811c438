"""Deep prompts of two towers: what a text tower and an image tower see in the slots of their first layers.

A stack of prompts is ``[layers, tokens, width]``; row ``j`` is what layer ``j`` sees, and from layer ``layers`` on the
slots keep what the tower makes of them.  In independent prompts both stacks learn; in coupled ones the text's do, and
the image's are linear images of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CoupledPrompts", "IndependentPrompts", "by_layer", "stacked"]

_DEVIATION = 0.02


def by_layer(stack: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """What the first layer sees, and what each later one does."""
    return stack[0], {j: stack[j] for j in range(1, len(stack))}


def stacked(first: Tensor, layers: int, draw: torch.Generator) -> Tensor:
    """``first [tokens, width]`` for the first layer and normal draws (deviation 0.02) for the later ones."""
    later = torch.randn(layers - 1, *first.shape, generator=draw) * _DEVIATION
    return torch.cat([first[None].float(), later.to(first.device)])


class IndependentPrompts(nn.Module):
    """A stack for each tower.

    Args:
        words: ``[tokens, text width]``, where the text's first layer starts.
        layers: how many layers of each tower see prompts of their own.
        vision_tokens, vision_width: of the image tower's prompts; no tokens, no prompts there.
        seed: of the normal draws.

    Attributes:
        text: ``[layers, tokens, text width]``.
        vision: ``[layers, vision_tokens, vision_width]``.
    """

    def __init__(
        self, words: Tensor, layers: int, vision_tokens: int, vision_width: int, *, seed: int = 0
    ) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.text = nn.Parameter(stacked(words, layers, draw))
        vision = torch.randn(layers, vision_tokens, vision_width, generator=draw) * _DEVIATION
        self.vision = nn.Parameter(vision.to(words.device))


class CoupledPrompts(nn.Module):
    """A stack for the text tower, and for each layer a linear map of it to the image tower's.

    Args:
        words: ``[tokens, text width]``, where the text's first layer starts.
        layers: how many layers of each tower see prompts of their own.
        vision_width: of the image tower.
        shared: one map for all layers.
        seed: of all draws.

    Attributes:
        text: ``[layers, tokens, text width]``.
        weight, bias: ``[layers, vision_width, text width]`` and ``[layers, vision_width]``; one layer if shared.  The
            maps of the later layers start as copies of one draw, the first layer's is drawn by itself.
    """

    def __init__(
        self, words: Tensor, layers: int, vision_width: int, *, shared: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.text = nn.Parameter(stacked(words, layers, draw))
        width, maps = words.shape[1], 1 if shared else layers
        bound = width**-0.5  # as torch draws a linear layer
        kinds = min(maps, 2)
        place = torch.tensor([0] + [1] * (maps - 1))
        weight = (2 * torch.rand(kinds, vision_width, width, generator=draw) - 1) * bound
        bias = (2 * torch.rand(kinds, vision_width, generator=draw) - 1) * bound
        self.weight = nn.Parameter(weight[place].to(words.device))
        self.bias = nn.Parameter(bias[place].to(words.device))

    @property
    def vision(self) -> Tensor:
        """The image tower's stack ``[layers, tokens, vision_width]``."""
        layers = len(self.text)
        weight, bias = self.weight.expand(layers, -1, -1), self.bias.expand(layers, -1)
        return torch.baddbmm(bias[:, None], self.text, weight.transpose(1, 2))
