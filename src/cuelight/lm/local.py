"""A transformers model on this machine.

Whatever callers wait for is answered together, in batches of similar length.  What prompts have in common at their
beginning is read once, and stays for later calls; only the scores that are asked for leave the model.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch

from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.lm.base import LM, Answer, Deliver, LMError, Request
from cuelight.lm.engine import Row, scores, written
from cuelight.lm.meter import BudgetError, Spent
from cuelight.lm.prefixes import Group, Prefixes, grouped
from cuelight.lm.prices import Price
from cuelight.prompts.conditioning import Condition

__all__ = ["LocalLM"]

_LOCKS: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
"""One for each loaded model: it may run for several callers, but not at the same time."""
_TOKENS_AT_ONCE = 2**15
"""Tokens a batch may have, padding included: long prompts make smaller batches."""
_ANCHORS = (".", "x", "1", "\n", "\u2014")


@dataclass(eq=False)
class _Job:
    """The requests of one caller; ``open`` are the places not answered yet."""

    requests: Sequence[Request]
    ids: list[list[int]]
    endings: list[list[list[int]]]
    deliver: Deliver
    done: asyncio.Future[None]
    open: set[int] = field(default_factory=set)

    def take(self, answers: Sequence[tuple[int, Answer]]) -> None:
        """Hand on answers."""
        answers = [(k, answer) for k, answer in answers if k in self.open]
        self.open -= {k for k, _ in answers}
        self.deliver(answers)
        if not self.open:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """Nothing more is to come."""
        self.open.clear()
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


@dataclass(frozen=True)
class _Item:
    """A request in a batch: whose it is, its place there, and how many tokens it begins with that stay in memory."""

    job: _Job
    place: int
    shared: int

    @property
    def request(self) -> Request:
        return self.job.requests[self.place]

    @property
    def ids(self) -> list[int]:
        return self.job.ids[self.place]

    @property
    def endings(self) -> list[list[int]]:
        return self.job.endings[self.place]


class LocalLM(LM):
    """A causal or encoder-decoder language model of transformers.

    Args:
        spec: as for `cuelight.load_backbone`.
        batch_size: prompts read at a time.
        shared: meter, store and ledger, as for `LM`.
    """

    def __init__(
        self,
        spec: Any,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 16,
        tokenizer: Any = None,
        **shared: Any,
    ) -> None:
        if batch_size < 1:
            raise LMError(f"batch_size: is {batch_size}; give 1 or more")
        self.backbone: Backbone = load_backbone(spec, device=device, dtype=dtype, tokenizer=tokenizer)
        super().__init__(self.backbone.id, price=Price(0, 0), **shared)
        if self.backbone.kind not in ("causal", "seq2seq"):
            raise LMError(
                f"model {self.name}: a {self.backbone.kind} model writes no text; use a causal or seq2seq LM"
            )
        self.batch_size = batch_size
        self.prefixes = Prefixes(self.backbone)
        self._lock = _LOCKS.setdefault(self.backbone.model, threading.Lock())
        self._jobs: list[_Job] = []
        self._worker: asyncio.Task[None] | None = None
        self._ending = lru_cache(maxsize=65536)(self._ending_ids)

    def __copy__(self) -> LocalLM:
        """Another caller's view of the model, with callers of its own."""
        made = object.__new__(type(self))
        made.__dict__ |= self.__dict__ | {"_jobs": [], "_worker": None}
        return made

    @property
    def can_score(self) -> bool:
        return True

    @property
    def can_chat(self) -> bool:
        return bool(self.backbone.tokenizer.chat_template)

    @cached_property
    def fingerprint(self) -> str:
        """The hash of the weights, their type, and the chat template."""
        template = hashlib.sha256(str(self.backbone.tokenizer.chat_template).encode()).hexdigest()[:16]
        return f"{self.backbone.fingerprint}|{self.backbone.dtype}|{template}"

    def prompt_text(self, messages: Sequence[Any]) -> str:
        """The text a conversation becomes: what the model reads, up to where its answer begins."""
        return str(
            self.backbone.tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
        )

    # ---- in the event loop -------------------------------------------------------------------------------

    async def _answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        ids = await asyncio.to_thread(self._encoded, requests)
        endings = [[self._ending(text) for text in request.continuations] for request in requests]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job = _Job(requests, ids, endings, deliver, done, set(range(len(requests))))
        self._jobs.append(job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        try:
            await job.done
        finally:
            job.open.clear()  # a caller that gives up leaves nothing to do

    async def _work(self) -> None:
        """Answer what callers wait for, batch after batch, until nothing is left."""
        planned: list[list[_Item]] = []
        known: list[_Job] = []
        try:
            while self._jobs:
                if known != self._jobs:  # somebody came or went
                    known = list(self._jobs)
                    planned = self._plan(known)
                if planned and not await self._run(planned.pop(0)):
                    known = []
                self._jobs = [job for job in self._jobs if job.open]
        except BaseException as error:
            jobs, self._jobs = self._jobs, []
            for job in jobs:
                job.end(error)

    def _plan(self, jobs: Sequence[_Job]) -> list[list[_Item]]:
        """What is open, in batches of similar requests."""
        batches = []
        for scoring in (True, False):
            rows = [
                (job, k)
                for job in jobs
                for k in sorted(job.open)
                if (job.requests[k].kind == "score") is scoring
            ]
            ids = [job.ids[k] for job, k in rows]
            causal = self.backbone.kind == "causal"
            groups = grouped(ids) if causal else [Group(0, tuple(range(len(rows))))]
            mixed: list[_Item] = []
            for group in groups:
                places = sorted(group.rows, key=lambda r: (len(ids[r]), r))
                items = [_Item(*rows[r], group.length) for r in places]
                if len(items) * 2 >= self.batch_size:
                    batches += self._cut(items)
                else:
                    mixed += items
            mixed.sort(key=lambda item: len(item.ids) - item.shared)
            batches += self._cut(mixed)
        return batches

    def _cut(self, items: Sequence[_Item]) -> list[list[_Item]]:
        """Batches of ``items``, which come in order of length."""
        batches: list[list[_Item]] = []
        for item in items:
            full = not batches or len(batches[-1]) == self.batch_size
            if full or (len(batches[-1]) + 1) * len(item.ids) > _TOKENS_AT_ONCE:
                batches.append([])
            batches[-1].append(item)
        return batches

    async def _run(self, batch: Sequence[_Item]) -> bool:
        """Answer a batch, or as much of it as the budget takes; whether that was all of it.

        A caller whose request does not fit is told so, and gets nothing more.
        """
        items: list[_Item] = []
        held: list[Spent] = []
        for item in batch:
            if item.place not in item.job.open:
                continue
            read = len(item.ids) + sum(map(len, item.endings))
            worst = self._spent(read, item.request.max_tokens if item.request.kind != "score" else 0)
            try:
                if not self.meter.try_reserve(worst):
                    if items:
                        break  # those may leave enough; the rest is planned again
                    await self.meter.reserve(worst)
            except BudgetError as error:
                item.job.end(error)
                continue
            items.append(item)
            held.append(worst)
        jobs = list({id(item.job): item.job for item in items}.values())
        try:
            left = self.meter.seconds_left()
            answers = await asyncio.to_thread(self._read, items, left) if items else []
        except Exception as error:
            for worst in held:
                self.meter.settle(worst, worst)
            for job in jobs:
                job.end(error)
            return False
        for worst, answer in zip(held, answers, strict=True):
            self.meter.settle(worst, self._spent(answer.prompt_tokens, answer.completion_tokens))
        for job in jobs:
            job.take([(i.place, a) for i, a in zip(items, answers, strict=True) if i.job is job])
        return len(items) == len(batch)

    # ---- in a worker thread ------------------------------------------------------------------------------

    def _encoded(self, requests: Sequence[Request]) -> list[list[int]]:
        """Token ids of each request's prompt."""
        tokenizer, found = self.backbone.tokenizer, []
        for request in requests:
            if request.kind == "chat":
                ids = tokenizer(self.prompt_text(request.messages), add_special_tokens=False).input_ids
            else:
                ids = tokenizer(request.prompt).input_ids
            found.append(list(ids) or [self._start])
        return found

    @cached_property
    def _start(self) -> int:
        """What an empty prompt begins with."""
        tokenizer = self.backbone.tokenizer
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return next((int(token) for token in ids if token is not None), 0)

    def _ending_ids(self, text: str) -> list[int]:
        """Token ids of a continuation, as they stand behind other text.

        Some tokenizers put a space before a text that stands alone; behind a character that joins with nothing they
        do not.
        """
        tokenizer = self.backbone.tokenizer
        for anchor in _ANCHORS if self.backbone.kind == "causal" else ():
            alone = tokenizer(anchor, add_special_tokens=False).input_ids
            both = tokenizer(anchor + text, add_special_tokens=False).input_ids
            if len(both) > len(alone) and both[: len(alone)] == alone:
                return list(both[len(alone) :])
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if not ids:
            raise LMError(f"continuations: '{text}' has no token for {self.name}; give another text")
        return list(ids)

    @torch.no_grad()
    def _read(self, items: Sequence[_Item], seconds: float | None) -> list[Answer]:
        """Answer ``items`` in one batch, which all are scored or all are written to."""
        began = time.perf_counter()

        def late() -> bool:
            return seconds is not None and time.perf_counter() - began > seconds

        def wanted() -> bool:
            return not late() and any(item.place in item.job.open for item in items)

        with self._lock:
            conditions = [self.prefixes.condition(item.ids[: item.shared]) for item in items]
            one = all(condition is conditions[0] for condition in conditions)
            condition = conditions[0] if one else Condition(rows=conditions)
            texts = [item.ids[item.shared :] for item in items]
            if items[0].request.kind == "score":
                found = scores(self.backbone, texts, condition, [item.endings for item in items])
                answers = [
                    Answer(scores=tuple(row), prompt_tokens=len(item.ids) + sum(map(len, item.endings)))
                    for row, item in zip(found, items, strict=True)
                ]
            else:
                rows = [Row.of(item.request, item.ids) for item in items]
                if not written(self.backbone, texts, condition, rows, wanted):
                    raise self.meter.error("seconds") if late() else LMError("call: was given up")
                answers = [
                    Answer(*row.text(self.backbone), (), len(item.ids), len(row.said))
                    for row, item in zip(rows, items, strict=True)
                ]
        each = (time.perf_counter() - began) / len(items)
        return [
            Answer(a.text, a.finish, a.scores, a.prompt_tokens, a.completion_tokens, each) for a in answers
        ]
