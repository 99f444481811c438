"""Active sampling: which texts to label, when only a few can be.

A selector sees texts (as embeddings) and what a model says of them, never a label: what it chooses is labelled
afterwards.

``diversity``
    needs no model: k-means over the embeddings with as many clusters as rows are wanted, of each the text nearest to
    the centre.
``entropy``, ``margin``
    ask the model: the rows it is least sure of, by the entropy of its class probabilities or by the distance of the two
    likeliest classes.  Of rows that say nearly the same (a cosine above 0.95) one is enough.
``diversity+entropy``
    a plan over rounds: diversity before there is a model worth asking, entropy from then on.
``random``
    what the others have to beat.
``certain``, ``one-cluster``
    controls that should do worse: the rows the model is surest of; the neighbourhood of one text.

Rows as many from every class, an oracle since it looks at labels, are drawn by ``--shots``.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cuelight.errors import ConfigError

__all__ = ["ASKING", "Pool", "Selector", "Strategy", "plan", "select"]

Selector = Literal["diversity", "entropy", "margin", "random", "certain", "one-cluster"]
Strategy = Literal["diversity+entropy", "diversity", "entropy", "margin", "random", "certain", "one-cluster"]
ASKING = ("entropy", "margin", "certain")
"""Selectors that need the model's probabilities, and so can choose better in later rounds."""
NEAR_DUPLICATE = 0.95


@dataclass
class Pool:
    """What a selector may know of ``n`` texts.

    Attributes:
        size: how many texts there are.
        embeddings: ``[n, width]``, of length 1; all selectors but ``random`` need them.
        probabilities: ``[n, C]`` by the model as it stands; those that ask it need them.
        taken: rows labelled before, which are not chosen again.
    """

    size: int
    embeddings: Tensor | None = None
    probabilities: Tensor | None = None
    taken: Sequence[int] = ()

    @property
    def free(self) -> list[int]:
        """The rows that may be chosen."""
        taken = set(self.taken)
        return [row for row in range(self.size) if row not in taken]


def plan(strategy: Strategy, budget: int, rounds: int) -> list[tuple[Selector, int]]:
    """What chooses in each round, and how many rows.

    Rounds are of equal size.  Selectors that ask no model have one round, whatever ``rounds`` says: they would choose
    no better after having seen labels.

    Raises:
        ConfigError: fewer rows than rounds.
    """
    selectors: list[Selector] = ["diversity"]
    if strategy == "diversity+entropy":
        selectors += ["entropy"] * (rounds - 1)
    else:
        selectors = [strategy] * (rounds if strategy in ASKING else 1)
    ends = [budget * k // len(selectors) for k in range(len(selectors) + 1)]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    if 0 in sizes:
        raise ConfigError(
            f"budget: {budget} rows do not fill {len(selectors)} rounds; raise it or lower rounds"
        )
    return list(zip(selectors, sizes, strict=True))


def select(selector: Selector, budget: int, pool: Pool, *, seed: int = 0) -> list[int]:
    """Exactly ``budget`` different rows of the pool, none of them taken; the same for the same seed.

    Raises:
        ConfigError: fewer rows are left.
    """
    free = pool.free
    if budget > len(free):
        raise ConfigError(f"budget: {budget} rows are more than the {len(free)} there are to choose from")
    if selector == "random":
        return [free[k] for k in _drawn(len(free), seed)[:budget]]
    assert pool.embeddings is not None
    if selector == "diversity":
        return [free[k] for k in _spread(pool.embeddings[free], budget, seed)]
    if selector == "one-cluster":
        near = pool.embeddings[free] @ pool.embeddings[free[_drawn(len(free), seed)[0]]]
        return [free[k] for k in near.argsort(descending=True, stable=True)[:budget].tolist()]
    assert pool.probabilities is not None
    order = _doubt(selector, pool.probabilities[free]).argsort(descending=True, stable=True)
    return _different([free[k] for k in order.tolist()], budget, pool.embeddings, pool.taken)


def _drawn(count: int, seed: int) -> list[int]:
    """A permutation of ``count`` numbers."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _doubt(selector: Selector, probabilities: Tensor) -> Tensor:
    """How much labelling each row is worth, ``[n]``."""
    if selector == "margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return second - first
    entropy = torch.special.entr(probabilities).sum(-1)
    return -entropy if selector == "certain" else entropy


def _spread(embeddings: Tensor, budget: int, seed: int) -> list[int]:
    """For each of ``budget`` clusters the member nearest to its centre."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # texts that are the same leave clusters empty
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(budget, n_init=2, random_state=seed % 2**32).fit(embeddings.double().numpy())
    members = torch.from_numpy(found.labels_)
    far = (embeddings.double() - torch.from_numpy(found.cluster_centers_)[members]).norm(dim=1)
    chosen = []
    for cluster in members.unique().tolist():
        own = torch.nonzero(members == cluster)[:, 0]
        chosen.append(int(own[far[own].argmin()]))
    rest = [k for k in _drawn(len(embeddings), seed) if k not in set(chosen)]
    return chosen + rest[: budget - len(chosen)]


def _different(order: list[int], budget: int, embeddings: Tensor, taken: Sequence[int]) -> list[int]:
    """The first ``budget`` of ``order`` that are no near-duplicates; these only when nothing else is left."""
    chosen: list[int] = []
    passed: list[int] = []
    for row in order:
        if len(chosen) == budget:
            break
        others = embeddings[[*taken, *chosen]]
        same = len(others) > 0 and float((others @ embeddings[row]).max()) > NEAR_DUPLICATE
        (passed if same else chosen).append(row)
    return chosen + passed[: budget - len(chosen)]
