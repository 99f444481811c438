"""Scoring and writing with a local model, many rows at a time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from cuelight.backbones.backbone import Backbone
from cuelight.lm.base import Request
from cuelight.prompts.conditioning import (
    Condition,
    TextBatch,
    answer_logits,
    begin,
    choice_scores,
    end_ids,
    generate,
    some_rows,
    takes_positions,
)

__all__ = ["Row", "scores", "written"]

_SCORES_AT_ONCE = 30_000_000
"""Entries of a score table held in memory at a time (120 MB in float32)."""
_STATES_AT_ONCE = 200_000_000
"""Entries of keys and values repeated for continuations at a time (800 MB in float32)."""


@dataclass(eq=False)
class Row:
    """An answer that is being written.

    Attributes:
        request: what was asked.
        last: the prompt's last token: some tokenizers drop a space that nothing stands before.
        chance: this row's own random numbers, so that its answer does not depend on its neighbours.
        said: the tokens so far.
        ended: whether the model, or a stop mark, has ended it.
    """

    request: Request
    last: int
    chance: random.Random
    said: list[int] = field(default_factory=list)
    ended: bool = False

    @staticmethod
    def of(request: Request, ids: Sequence[int]) -> Row:
        """A row for ``request``, whose prompt has the tokens ``ids``."""
        seed = hashlib.sha256(f"{request.seed}|{request.draw}|{list(ids)}".encode()).digest()
        return Row(request, ids[-1], random.Random(seed))

    def add(self, token: int, ends: set[int], backbone: Backbone) -> bool:
        """Take the next token; whether the row goes on."""
        if token in ends:
            self.ended = True
            return False
        self.said.append(token)
        if self.request.stop:
            # A mark that is complete now lies within its last tokens: each has at least a byte.
            tail = self.said[-max(len(mark.encode()) for mark in self.request.stop) - 1 :]
            text = backbone.tokenizer.decode(tail, skip_special_tokens=True)
            self.ended = any(mark in text for mark in self.request.stop)
        return not self.ended and len(self.said) < self.request.max_tokens

    def text(self, backbone: Backbone) -> tuple[str, Literal["stop", "length"]]:
        """What was said, up to a stop mark, and how it ended."""
        decode = backbone.tokenizer.decode
        head = decode([self.last], skip_special_tokens=True)
        text = decode([self.last, *self.said], skip_special_tokens=True)
        if backbone.kind == "causal" and text.startswith(head):
            text = text[len(head) :]
        else:
            text = decode(self.said, skip_special_tokens=True)
        cut = min((text.find(mark) for mark in self.request.stop if mark in text), default=-1)
        return (text[:cut] if cut >= 0 else text), "stop" if self.ended or cut >= 0 else "length"


def scores(
    backbone: Backbone,
    texts: Sequence[Sequence[int]],
    condition: Condition,
    endings: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Log-probability of each row's endings (token ids) behind its text, summed over the tokens."""
    batch = _batch(backbone, texts)
    same = all(each == endings[0] for each in endings)
    if same and (backbone.kind == "seq2seq" or all(len(ending) == 1 for ending in endings[0])):
        table = choice_scores(backbone, batch, condition, endings[0], normalised=True)
        return table.double().tolist()
    if backbone.kind == "seq2seq":
        return _forced(backbone, texts, endings)
    longest = max(len(ending) for each in endings for ending in each)
    logits, cache, seen = begin(backbone, batch, condition, extra=longest)
    first = logits.float().log_softmax(-1)
    found = [[float(first[k, ending[0]]) for ending in each] for k, each in enumerate(endings)]
    pairs = [(k, j) for k, each in enumerate(endings) for j, ending in enumerate(each) if len(ending) > 1]
    pairs.sort(key=lambda pair: len(endings[pair[0]][pair[1]]))
    states = sum(layer.keys[0].numel() + layer.values[0].numel() for layer in cache.layers)
    most = max(1, min(_SCORES_AT_ONCE // (logits.shape[1] * longest), _STATES_AT_ONCE // max(states, 1)))
    for start in range(0, len(pairs), most):
        part = pairs[start : start + most]
        ids = _padded([endings[k][j][:-1] for k, j in part], 0).to(seen.device)
        targets = _padded([endings[k][j][1:] for k, j in part], -1).to(seen.device)
        rows, steps = torch.nonzero(targets >= 0, as_tuple=True)
        places = [k for k, _ in part]
        before = seen[places]
        options: dict[str, Any] = {"attention_mask": torch.cat([before, (targets >= 0).to(seen.dtype)], 1)}
        if takes_positions(backbone):
            options["position_ids"] = before.sum(1, keepdim=True) + torch.arange(
                ids.shape[1], device=ids.device
            )
        with backbone.scoring(rows, steps):
            out = backbone.model(
                input_ids=ids, past_key_values=some_rows(cache, places), use_cache=True, **options
            ).logits
        for value, row in zip(_likelihoods(out, targets[rows, steps]), rows.tolist(), strict=True):
            k, j = part[row]
            found[k][j] += value
    return found


def written(
    backbone: Backbone,
    texts: Sequence[Sequence[int]],
    condition: Condition,
    rows: Sequence[Row],
    wanted: Callable[[], bool],
) -> bool:
    """Let ``rows`` be written, each behind its text; false when they were not ``wanted`` any more before the end."""
    batch = _batch(backbone, texts)
    if backbone.kind == "seq2seq":
        return _written_by_decoder(backbone, batch, rows, wanted)
    ends = set(end_ids(backbone))
    logits, cache, seen = begin(backbone, batch, condition, extra=max(row.request.max_tokens for row in rows))
    going = list(rows)
    while True:
        on = [
            row.add(token, ends, backbone) for row, token in zip(going, _chosen(going, logits), strict=True)
        ]
        places = [k for k, more in enumerate(on) if more]
        if not places:
            return True
        if not wanted():
            return False
        if len(places) < len(going):
            going, seen = [going[k] for k in places], seen[places]
            first = int((seen.sum(0) == 0).long().cumprod(0).sum())
            cache, seen = some_rows(cache, places, first), seen[:, first:]
        last = torch.tensor([[row.said[-1]] for row in going], device=seen.device)
        options: dict[str, Any] = {}
        if takes_positions(backbone):
            options["position_ids"] = seen.sum(1, keepdim=True)
        seen = torch.cat([seen, seen.new_ones(len(last), 1)], 1)
        logits = backbone.model(
            input_ids=last, attention_mask=seen, past_key_values=cache, use_cache=True, **options
        ).logits[:, -1]


def _written_by_decoder(
    backbone: Backbone, batch: TextBatch, rows: Sequence[Row], wanted: Callable[[], bool]
) -> bool:
    """The same for an encoder-decoder; the loop is transformers' own."""
    ends, given_up = set(end_ids(backbone)), False
    going = dict(enumerate(rows))

    class Choose(LogitsProcessor):
        def __call__(self, _: Tensor, logits: Tensor) -> Tensor:
            nonlocal going
            chosen = _chosen(rows, logits)
            going = {k: row for k, row in going.items() if row.add(chosen[k], ends, backbone)}
            one = torch.full_like(logits, -torch.inf)
            return one.scatter(1, torch.tensor(chosen, device=logits.device)[:, None], 0.0)

    class Done(StoppingCriteria):
        def __call__(self, ids: Tensor, _: Any, **__: Any) -> Tensor:
            nonlocal given_up
            given_up = bool(going) and not wanted()
            return torch.tensor([given_up or k not in going for k in range(len(ids))], device=ids.device)

    generate(
        backbone,
        batch,
        Condition(),
        max_new_tokens=max(row.request.max_tokens for row in rows),
        logits_processor=LogitsProcessorList([Choose()]),
        stopping_criteria=StoppingCriteriaList([Done()]),
    )
    return not given_up


def _chosen(rows: Sequence[Row], logits: Tensor) -> list[int]:
    """The next token of each row: the likeliest, or one drawn at its temperature from the top of the table."""
    chosen = logits.argmax(-1).tolist()
    for k, row in enumerate(rows):
        if row.request.temperature > 0 and not row.ended:
            chances, order = (
                (logits[k].double().cpu() / row.request.temperature).softmax(-1).sort(descending=True)
            )
            sums = chances.cumsum(0)
            kept = int((sums - chances < row.request.top_p).sum())
            place = int(torch.searchsorted(sums[:kept], row.chance.random() * float(sums[kept - 1])))
            chosen[k] = int(order[min(place, kept - 1)])
    return chosen


def _forced(
    backbone: Backbone, texts: Sequence[Sequence[int]], endings: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Every pair of a text and an ending on its own, for encoder-decoders whose rows have endings of their own."""
    found = [[0.0] * len(each) for each in endings]
    pairs = [(k, j) for k, each in enumerate(endings) for j in range(len(each))]
    for start in range(0, len(pairs), 16):
        part = pairs[start : start + 16]
        batch = _batch(backbone, [texts[k] for k, _ in part])
        answers = [endings[k][j] for k, j in part]
        batch.answer = _padded(answers, 0).to(backbone.device)
        batch.answer_mask = _padded([[1] * len(a) for a in answers], 0).to(backbone.device)
        logits, targets = answer_logits(backbone, batch, Condition())
        rows = torch.nonzero(batch.answer_mask, as_tuple=True)[0].tolist()
        for value, row in zip(_likelihoods(logits, targets), rows, strict=True):
            found[part[row][0]][part[row][1]] += value
    return found


def _likelihoods(logits: Tensor, targets: Tensor) -> list[float]:
    return (-torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")).tolist()


def _batch(backbone: Backbone, texts: Sequence[Sequence[int]]) -> TextBatch:
    masks = _padded([[1] * len(text) for text in texts], 0)
    return TextBatch(_padded(texts, 0), masks).to(backbone.device)


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
