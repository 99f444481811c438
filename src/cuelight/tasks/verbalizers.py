"""Verbalizers: from what a language model says in the slot to classes.

Word scores first.  A word of one token is its score at the slot.  Of a word of several tokens *first*, *mean* and
*max* take the scores of those tokens at the one slot, which is quick and no probability; *exact* takes the
log-likelihood of the whole word (as many masks as tokens in a masked model).

Then classes.  With one word each, class scores are word scores.  With several, ``P`` is the softmax over all words of
all classes together, and a class has the mean of its words' ``log P``, or the log of their sum, or their largest.
Soft and prototypical verbalizers read the state at the slot instead of words.

Calibration divides ``P`` by what the model says without (or regardless of) a text: Zhao et al. 2021 (contextual),
Holtzman et al. 2021 (domain), Hu et al. 2022 (the mean over unlabelled texts).

Sources: Schick, Schuetze 2021 (PET), arXiv 2001.07676; Ding et al. 2022 (OpenPrompt), 2111.01998; Hambardzumyan et
al. 2021 (WARP), 2101.00121; Hu et al. 2022 (KPT), 2108.02035; Cui et al. 2022 (ProtoVerb), 2203.09770.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from cuelight.errors import ConfigError

__all__ = [
    "Aggregate",
    "ManualVerbalizer",
    "PrototypeVerbalizer",
    "SoftVerbalizer",
    "WeightedVerbalizer",
    "WordScore",
    "check_first_tokens",
    "combined",
    "pieces_of",
    "word_scores",
]

WordScore = Literal["exact", "first", "mean", "max"]
Aggregate = Literal["mean", "sum", "max"]
_TINY = 1e-15
_NEVER = -1e4


def pieces_of(words: Sequence[Sequence[int]]) -> list[int]:
    """All different tokens of ``words``, each once."""
    return list(dict.fromkeys(token for word in words for token in word))


def word_scores(slot: Tensor, words: Sequence[Sequence[int]], how: WordScore) -> Tensor:
    """Scores of words from the scores of their tokens at one slot.

    Args:
        slot: ``[..., len(pieces_of(words))]``.
        how: ``first``, ``mean`` or ``max`` of a word's tokens.

    Returns:
        ``[..., len(words)]``.
    """
    place = {token: k for k, token in enumerate(pieces_of(words))}
    longest = max(len(word) for word in words)
    table = torch.zeros(len(words), longest, dtype=torch.long)
    real = torch.zeros(len(words), longest, dtype=torch.bool)
    for k, word in enumerate(words):
        table[k, : len(word)] = torch.tensor([place[token] for token in word])
        real[k, : len(word)] = True
    table, real = table.to(slot.device), real.to(slot.device)
    found = slot[..., table]
    if how == "first":
        return found[..., 0]
    if how == "max":
        return found.masked_fill(~real, -torch.inf).amax(-1)
    return (found * real).sum(-1) / real.sum(-1)


def check_first_tokens(words: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Refuse words that score alike because they begin alike.

    Raises:
        ConfigError: names two of them.
    """
    taken: dict[int, str] = {}
    for word, ids in words:
        if ids[0] in taken:
            raise ConfigError(
                f"word_score: '{taken[ids[0]]}' and '{word}' begin with the same token and would score alike; "
                "use another score than 'first', or other words"
            )
        taken[ids[0]] = word


class ManualVerbalizer(nn.Module):
    """Words given for each class.

    Args:
        counts: how many words each class has; words come class by class.
        aggregate: ``mean`` of log P, log of the ``sum`` of P, or log of the ``max``.

    Attributes:
        prior: ``[words]``, log of what words score regardless of the text; zeros without calibration.
        used: ``[words]``, False for words that were dropped.
    """

    def __init__(self, counts: Sequence[int], aggregate: Aggregate = "mean") -> None:
        super().__init__()
        self.counts, self.aggregate = tuple(counts), aggregate
        owner = [c for c, count in enumerate(counts) for _ in range(count)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        self.register_buffer("prior", torch.zeros(len(owner)))
        self.register_buffer("used", torch.ones(len(owner), dtype=torch.bool))
        self.owner: Tensor
        self.prior: Tensor
        self.used: Tensor

    def weights(self) -> Tensor:
        """How much each word counts in its class, ``[words]``; they sum to 1 in every class."""
        used = self.used.float()
        return used / self._by_class(used)[self.owner]

    def log_probabilities(self, words: Tensor) -> Tensor:
        """Calibrated log P over all words together, ``[B, words]``, of word scores."""
        scores = words.float().masked_fill(~self.used, _NEVER)
        return (scores.log_softmax(-1) - self.prior).log_softmax(-1)

    def forward(self, words: Tensor) -> Tensor:
        """Class scores ``[B, C]`` of word scores ``[B, words]``."""
        found = self.log_probabilities(words)
        if len(self.counts) == len(self.owner):
            return found
        if self.aggregate == "mean":
            return self._by_class(self.weights() * (found.exp() + _TINY).log())
        parts = found.masked_fill(~self.used, -torch.inf).split(self.counts, -1)
        if self.aggregate == "sum":
            return torch.stack([part.logsumexp(-1) for part in parts], -1)
        return torch.stack([part.amax(-1) for part in parts], -1)

    @torch.no_grad()
    def calibrate(self, words: Tensor) -> None:
        """Take word scores ``[words]`` as what is said regardless of the text."""
        scores = words.float().masked_fill(~self.used, _NEVER)
        self.prior.copy_(scores.log_softmax(-1).clamp(min=-100))

    @torch.no_grad()
    def drop(self, unused: Tensor) -> None:
        """Leave out words ``[words]``; the first word of a class always stays."""
        firsts = torch.tensor([sum(self.counts[:c]) for c in range(len(self.counts))])
        unused = unused.clone().to(self.used.device)
        unused[firsts.to(unused.device)] = False
        self.used &= ~unused

    def _by_class(self, values: Tensor) -> Tensor:
        shape = (*values.shape[:-1], len(self.counts))
        return values.new_zeros(shape).index_add(-1, self.owner, values)


class WeightedVerbalizer(ManualVerbalizer):
    """Words whose weights learn: ``softmax`` over each class's words of ``strength``, zeros (equal) at the start.

    Args:
        strength: ``[words]``, another start.
    """

    def __init__(self, counts: Sequence[int], strength: Tensor | None = None) -> None:
        super().__init__(counts)
        start = torch.zeros(len(self.owner)) if strength is None else strength.detach().clone().float()
        self.strength = nn.Parameter(start)

    def weights(self) -> Tensor:
        parts = self.strength.masked_fill(~self.used, -torch.inf).split(self.counts)
        return torch.cat([part.softmax(-1) for part in parts])


class SoftVerbalizer(nn.Module):
    """One vector for each class, against what the language-model head reads: ``z = A u``.

    Args:
        rows: ``[C, width]``, the start of ``A``.
        bias: ``[C]``, added and not learned.
    """

    def __init__(self, rows: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone().float())
        self.bias: Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().clone().float())

    def forward(self, states: Tensor) -> Tensor:
        """Class scores ``[B, C]`` of slot states ``[B, width]``."""
        found = states.float() @ self.rows.T
        return found if self.bias is None else found + self.bias


class PrototypeVerbalizer(nn.Module):
    """A prototype for each class in a small space; scores are cosines.

    Args:
        width: of the slot's states.
        classes: how many.
        size: of the small space.
    """

    def __init__(self, width: int, classes: int, size: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.map = nn.Parameter(torch.randn(size, width, generator=draw) / width**0.5)
        self.prototypes = nn.Parameter(torch.randn(classes, size, generator=draw))

    def forward(self, states: Tensor) -> Tensor:
        """Cosines ``[B, C]`` of slot states ``[B, width]`` to the prototypes."""
        return normalize(states.float() @ self.map.T, dim=-1) @ normalize(self.prototypes, dim=-1).T

    def contrast(self, states: Tensor, labels: Tensor) -> Tensor:
        """The loss: instances against instances of their class, and against prototypes, without a temperature."""
        found = normalize(states.float() @ self.map.T, dim=-1)
        near = found @ found.T
        same = (labels[:, None] == labels[None]).float()
        alone = torch.eye(len(labels), device=states.device)
        others = near.masked_fill(alone.bool(), -torch.inf).log_softmax(-1).masked_fill(alone.bool(), 0)
        pairs = (same - alone).sum().clamp(min=1)
        between = -((same - alone) * others).sum() / pairs
        to_class = found @ normalize(self.prototypes, dim=-1).T
        truth = one_hot(labels, len(self.prototypes)).float()
        to_prototype = -(truth * to_class.log_softmax(-1)).sum(-1).mean()
        # Every prototype against the batch's instances: those of its class are the positives.
        present = truth.sum(0) > 0
        from_prototype = -((truth * to_class.log_softmax(0)).sum(0) / truth.sum(0).clamp(min=1))[
            present
        ].mean()
        return between + to_prototype + from_prototype


def combined(parts: Sequence[Tensor]) -> Tensor:
    """Class scores ``[B, C]`` of several verbalizers as one: each to mean 0 and deviation 1 over classes, then their mean."""
    scaled = [
        (z - z.mean(-1, keepdim=True)) / z.std(-1, correction=0, keepdim=True).clamp(min=1e-6) for z in parts
    ]
    return torch.stack(scaled).mean(0)
