"""Randomness and batches as functions of (seed, stage, step).

Nothing about random state has to be saved: whoever knows the step knows every random number drawn in it.
That is what makes a resumed run end with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cuelight.errors import CuelightError

__all__ = ["Batches", "own_randomness", "reseed", "stable_hash"]


def stable_hash(*parts: object) -> int:
    """63 bits that depend on nothing but ``parts``; the same in every process and Python version."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(*parts: object) -> None:
    """Seed torch (all devices), numpy and ``random`` from ``parts``."""
    value = stable_hash(*parts)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
    elif torch.accelerator.is_available():
        # Costs a fifth of a millisecond: it notes the call stack for devices to come.
        torch.manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the caller's random state as it was found, so that what follows does not depend on a resume."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def order_by_seed(seed: int, epoch: int, count: int) -> list[int]:
    """A stage's ``batch_order`` that is the same whichever stages come before it."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).tolist()


class Batches(Dataset[Any]):
    """The endless row of micro-batches of a stage; the last one of an epoch may be short.

    Item ``k`` is the part of micro-batch ``k`` that falls to process ``rank`` of ``world``, already collated
    (None when the batch is too short to give this process anything).
    """

    def __init__(
        self,
        examples: Sequence[Any],
        collate: Callable[[list[Any]], Any],
        order: Callable[[int, int, int], list[int]] | None,
        *,
        batch_size: int,
        seed: int,
        stage: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.examples, self.collate, self.custom_order = examples, collate, order
        self.batch_size, self.seed, self.stage, self.rank, self.world = batch_size, seed, stage, rank, world
        self.per_epoch = math.ceil(len(examples) / batch_size)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> list[int]:
        n = len(self.examples)
        if self.custom_order is not None:
            order = list(self.custom_order(self.seed, epoch, n))
            if len(order) != n:
                raise ValueError(f"batch_order gave {len(order)} indices for {n} examples")
            return order
        generator = torch.Generator().manual_seed(stable_hash(self.seed, self.stage, epoch, "order"))
        return torch.randperm(n, generator=generator).tolist()

    def indices(self, k: int) -> list[int]:
        """Indices into the examples of micro-batch ``k``, over all processes."""
        epoch, place = divmod(k, self.per_epoch)
        return self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def sizes(self, k: int) -> tuple[int, int]:
        """How many examples micro-batch ``k`` holds, and how many of them are this process's."""
        whole = len(self.indices(k))
        return whole, len(range(self.rank, whole, self.world))

    def __getitem__(self, k: int) -> Any:
        mine = self.indices(k)[self.rank :: self.world]
        if not mine:
            return None
        reseed(self.seed, self.stage, k, self.rank, "data")
        try:
            return self.collate([self.examples[i] for i in mine])
        except CuelightError as error:  # a worker process would bury its one line in a traceback
            return error

    def stream(self, first: int, stop: int, workers: int, pin: bool) -> Iterator[Any]:
        """Micro-batches ``first`` to ``stop - 1``, prepared by ``workers`` processes (0: by this one)."""
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_size=None,
            sampler=range(first, stop),
            num_workers=workers,
            pin_memory=pin and workers > 0,
        )
        for batch in loader:
            if isinstance(batch, CuelightError):
                raise batch
            yield batch
