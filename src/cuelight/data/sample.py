"""Drawing rows: few-shot samples and stratified splits, the same on every machine for the same seed.

Draws use ``numpy.random.RandomState``, whose stream numpy guarantees never to change (its newer
generators may), with one independent stream per class, so that adding a class moves no other class's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cuelight.errors import ConfigError

if TYPE_CHECKING:
    import datasets

__all__ = ["draw", "sample_shots", "shot_rows", "strata"]


def sample_shots(dataset: datasets.Dataset, shots: int, seed: int, n_classes: int) -> datasets.Dataset:
    """A few-shot subset of a normalised data set, in the order of the data set.

    With a ``label`` column: ``shots`` rows of each class (all of a class that has fewer).  With ``labels``:
    rows until every class has at least ``shots`` positive rows, or all it has.  With neither, or
    ``n_classes=0``: ``shots`` rows in all.  For one seed a smaller ``shots`` is a subset of a larger one
    (with ``label`` and for generation).  Raises ``ConfigError`` when ``shots`` is below 1.
    """
    column = next((name for name in ("label", "labels") if n_classes and name in dataset.column_names), None)
    labels: Sequence[Any] = dataset[column][:] if column else [0] * len(dataset)
    return dataset.select(shot_rows(labels, shots, seed, n_classes if column else 1))


def shot_rows(labels: Sequence[Any], shots: int, seed: int, n_classes: int) -> list[int]:
    """The positions :func:`sample_shots` takes, sorted; ``labels`` holds integers or 0/1 lists."""
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise ConfigError(f"shots={shots!r} is out of range: give a whole number of 1 or more")
    array = np.asarray(labels)
    if array.ndim == 2:
        return _multilabel_rows(array, shots, seed)
    taken: list[int] = []
    for index in range(n_classes):
        rows = np.flatnonzero(array == index)
        taken += _stream(seed, index).permutation(rows)[:shots].tolist()
    return sorted(taken)


def _multilabel_rows(matrix: np.ndarray, shots: int, seed: int) -> list[int]:
    have = np.zeros(matrix.shape[1], dtype=int)
    taken = []
    for row in _stream(seed, 0).permutation(len(matrix)):
        wanted = (matrix[row] > 0) & (have < shots)
        if wanted.any():
            have += matrix[row] > 0
            taken.append(int(row))
    return sorted(taken)


def strata(labels: Sequence[Any]) -> np.ndarray:
    """One integer per row to stratify by: the label, or for 0/1 lists the row's rarest class (-1: none)."""
    array = np.asarray(labels)
    if array.ndim != 2:
        return array.astype(int)
    frequency = np.where(array > 0, (array > 0).sum(axis=0), np.iinfo(int).max)
    return np.where((array > 0).any(axis=1), frequency.argmin(axis=1), -1)


def draw(groups: np.ndarray, size: float | int, seed: int, leave: int = 1) -> list[int]:
    """Positions of a stratified draw, sorted: ``size`` is a share or a number of rows.

    Every group gives its proportional part, at least one row where it can, and keeps ``leave`` rows.
    A number of rows is met exactly where the groups hold enough.
    """
    values, counts = np.unique(groups, return_counts=True)
    total = round(size * len(groups)) if isinstance(size, float) else size
    room = np.maximum(counts - leave, 0)
    exact = total * counts / max(len(groups), 1)
    quota = np.minimum(np.maximum(np.floor(exact).astype(int), 1), room)
    by_remainder = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while quota.sum() < total and (quota < room).any():
        for index in by_remainder:
            if quota.sum() < total and quota[index] < room[index]:
                quota[index] += 1
    while not isinstance(size, float) and quota.sum() > total:
        quota[quota.argmax()] -= 1
    taken: list[int] = []
    for value, amount in zip(values, quota, strict=True):
        rows = np.flatnonzero(groups == value)
        taken += _stream(seed, int(value) + 1).permutation(rows)[:amount].tolist()
    return sorted(taken)


def _stream(seed: int, index: int) -> np.random.RandomState:
    return np.random.RandomState(np.array([seed, index], dtype=np.uint32))
