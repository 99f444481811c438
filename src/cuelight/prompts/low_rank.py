"""Two thin matrices whose product is an offset of the text's embeddings, by position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["low_rank_pair", "truncated"]


def low_rank_pair(
    positions: int, rank: int, width: int, seed: int, device: torch.device
) -> tuple[nn.Parameter, nn.Parameter]:
    """``A [positions, rank]`` drawn as a linear layer is (Kaiming, uniform) and ``B [rank, width]`` zero."""
    A = torch.empty(positions, rank)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(A.to(device)), nn.Parameter(torch.zeros(rank, width, device=device))


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``A``, ``B`` whose product is the nearest to ``matrix [n, width]`` of that rank, the scale shared equally.

    Raises:
        ValueError: ``rank`` above what the matrix has.
    """
    if rank > min(matrix.shape):
        raise ValueError(f"rank: {rank} is more than a {list(matrix.shape)} matrix has")
    U, S, V = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * V[:rank]
