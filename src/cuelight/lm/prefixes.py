"""What prompts have in common at their beginning, read once by a causal model and kept.

Prompts of a call are sorted, so that those with a common beginning stand together; each group's beginning is read once.
Beginnings stay for later calls: a new one goes on from the longest that is there already.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from cuelight.backbones.backbone import Backbone
from cuelight.prompts.conditioning import Condition, prefix_states

__all__ = ["Group", "Prefixes", "grouped"]

_LEAST = 16
"""Tokens of a beginning that is worth remembering."""
_WORTH = 64
"""Tokens that must be spared, over all rows of a group, for its beginning to be read on its own."""
_DEEPEST = 200


@dataclass(frozen=True)
class Group:
    """Rows whose first ``length`` tokens are the same."""

    length: int
    rows: tuple[int, ...]


def grouped(ids: Sequence[list[int]]) -> list[Group]:
    """Sort rows into groups by what they begin with; at least the last token of each is left over.

    One row alone is all beginning: the next call may go on from it.
    """
    if len(ids) == 1:
        length = len(ids[0]) - 1
        return [Group(length if length >= _LEAST else 0, (0,))]
    order = sorted(range(len(ids)), key=lambda k: ids[k])
    # How many tokens each row has in common with the one before it in that order.
    common = [0, *(_common(ids[a], ids[b]) for a, b in pairwise(order))]
    groups: list[Group] = []

    def split(low: int, high: int, length: int, depth: int) -> list[int]:
        """Rows of ``order[low:high]``, which share ``length`` tokens, that no group of their own is made of."""
        if high - low == 1 or depth == _DEEPEST:
            return order[low:high]
        most = min(common[low + 1 : high])
        own = min(most, *(len(ids[k]) - 1 for k in order[low:high]))
        own = own if own >= _LEAST and (own - length) * (high - low - 1) >= _WORTH else length
        rest, start = [], low
        for k in range(low + 1, high + 1):
            if k == high or common[k] == most:
                rest += split(start, k, own, depth + 1)
                start = k
        if own == length:
            return rest
        if rest:
            groups.append(Group(own, tuple(rest)))
        return []

    rest = split(0, len(order), 0, 0) if order else []
    return [*groups, Group(0, tuple(rest))] if rest else groups


class Prefixes:
    """Beginnings a model has read, the latest first to be used again.

    Args:
        backbone: a causal model.
        room: bytes of keys and values that may stay.
    """

    def __init__(self, backbone: Backbone, room: int = 2**29) -> None:
        self.backbone, self.room = backbone, room
        self._kept: OrderedDict[tuple[int, ...], Condition] = OrderedDict()
        self._bytes: dict[tuple[int, ...], int] = {}

    def condition(self, ids: Sequence[int]) -> Condition:
        """What puts ``ids`` before every row."""
        if not ids:
            return Condition()
        key = tuple(ids)
        if key not in self._kept:
            self._kept[key] = self._made(key)
            states = prefix_states(self.backbone, self._kept[key])
            self._bytes[key] = sum(keys.nbytes + values.nbytes for keys, values in states)
            while sum(self._bytes.values()) > self.room and len(self._kept) > 1:
                oldest, _ = self._kept.popitem(last=False)
                del self._bytes[oldest]
        self._kept.move_to_end(key)
        return self._kept[key]

    def _made(self, key: tuple[int, ...]) -> Condition:
        best = max(self._kept, key=lambda kept: _common(kept, key), default=())
        length, states = _common(best, key), None
        if length >= _LEAST:
            self._kept.move_to_end(best)
            known = prefix_states(self.backbone, self._kept[best])
            states = [(keys[:, :, :length], values[:, :, :length]) for keys, values in known]
        else:
            length = 0
        rest = torch.tensor(key[length:], dtype=torch.long, device=self.backbone.device)
        if not len(rest) and states is not None:
            return Condition(keys_values=[(keys.clone(), values.clone()) for keys, values in states])
        read = Condition(prompt=self.backbone.embed(rest), keys_values=states)
        return Condition(keys_values=prefix_states(self.backbone, read))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(k for k in range(length) if one[k] != other[k])
