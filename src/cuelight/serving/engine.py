"""Generation that requests join while it runs.

One thread owns the model.  Between two steps it takes what is waiting, reads it in one pass (every row behind its own
prompt), and puts it beside the rows that are being generated; a row leaves as soon as it has ended.  So a long answer
never keeps a short one waiting, and prompts of any number of tenants share every step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cuelight.errors import CuelightError
from cuelight.prompts.conditioning import (
    Condition,
    TextBatch,
    begin,
    end_ids,
    joined_rows,
    some_rows,
    takes_positions,
)
from cuelight.serving.pool import Pool

__all__ = ["Engine", "FullError", "Job"]


class FullError(CuelightError):
    """More requests are waiting than the queue takes."""


@dataclass(eq=False)
class Job:
    """One request: token ids behind a condition, or any piece of work to be done in the model's thread.

    ``emit`` is called from that thread: with ``("token", text so far)``, ``("end", (text, reason, tokens))`` or
    ``("error", exception)``; ``("end", result)`` for a piece of ``work``.
    """

    emit: Callable[[str, Any], None]
    ids: list[int] = field(default_factory=list)
    condition: Condition | None = None
    work: Callable[[], Any] | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    cancelled: bool = False
    said: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None


class Engine:
    """Runs jobs on a pool's backbone, which must be used by nobody else until the engine is closed.

    Args:
        pool: the prompts and their backbone.
        max_batch: rows generated at a time.
        max_waiting: requests that may wait; more are refused with `FullError`.
    """

    def __init__(self, pool: Pool, *, max_batch: int = 16, max_waiting: int = 256) -> None:
        self.pool, self.max_batch = pool, max_batch
        self._waiting: queue.Queue[Job | None] = queue.Queue(max_waiting)
        self._rows: list[Job] = []
        self._cache: DynamicCache | None = None
        self._seen: Tensor | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="cuelight-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            FullError: too many are waiting.
        """
        try:
            self._waiting.put_nowait(job)
        except queue.Full as error:
            raise FullError("server: too many requests are waiting; try again in a moment") from error

    def close(self) -> None:
        """Finish the rows that run, and stop."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    # ---- the model's thread ----------------------------------------------------------------------------

    @torch.no_grad()
    def _work(self) -> None:
        while True:
            jobs = self._taken()
            if jobs is None:
                return
            texts = []
            for job in jobs:
                if job.work is None:
                    texts.append(job)
                elif not job.cancelled:
                    self._try([job], partial(_done, job))
            if texts:
                self._try(texts, partial(self._join, texts))
            if self._rows:
                self._try(list(self._rows), self._step)

    def _taken(self) -> list[Job] | None:
        """What is waiting, as far as there is room; waits when nothing runs.  None when all is done."""
        found: list[Job] = []
        while len(self._rows) + len(found) < self.max_batch:
            try:
                job = self._waiting.get(block=not self._rows and not found and not self._closed)
            except queue.Empty:
                break
            if job is not None:
                found.append(job)
        return None if self._closed and not found and not self._rows and self._waiting.empty() else found

    def _try(self, jobs: list[Job], act: Callable[[], None]) -> None:
        """A failure ends the jobs it is of, and no others."""
        try:
            act()
        except Exception as error:
            left = [row for row in self._rows if row not in jobs]
            self._keep([k for k, row in enumerate(self._rows) if row in left])
            if len(jobs) > 1 and jobs[0] not in left and not any(job.said for job in jobs):
                for job in jobs:  # one bad request among several: find it
                    self._try([job], partial(self._join, [job]))
                return
            for job in jobs:
                job.emit("error", error)

    def _join(self, jobs: list[Job]) -> None:
        """Read new texts and put them beside the rows that run."""
        backbone = self.pool.backbone
        text = torch.nn.utils.rnn.pad_sequence([torch.tensor(job.ids) for job in jobs], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(job.ids), dtype=torch.long) for job in jobs], batch_first=True
        )
        batch = TextBatch(text, mask).to(backbone.device)
        conditions = [job.condition or Condition() for job in jobs]
        condition = conditions[0] if len({id(c) for c in conditions}) == 1 else Condition(rows=conditions)
        most = max(job.max_tokens for job in jobs)
        logits, cache, seen = begin(backbone, batch, condition, extra=most)
        going = self._choose(jobs, logits)
        kept = [k for k, on in enumerate(going) if on]
        if not kept:
            return
        cache, seen = some_rows(cache, kept), seen[kept]
        if self._cache is None or self._seen is None:
            self._cache, self._seen = cache, seen
        else:
            self._cache, self._seen = joined_rows(self._cache, self._seen, cache, seen)
        self._rows += [jobs[k] for k in kept]

    def _step(self) -> None:
        """One more token for every row."""
        backbone = self.pool.backbone
        assert self._cache is not None and self._seen is not None
        last = torch.tensor([[job.said[-1]] for job in self._rows], device=backbone.device)
        options: dict[str, Any] = {}
        if takes_positions(backbone):
            options["position_ids"] = self._seen.sum(1, keepdim=True)
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(last), 1)], 1)
        everyone = torch.arange(len(last), device=backbone.device)
        with backbone.scoring(everyone, everyone * 0):
            out = backbone.model(
                input_ids=last,
                attention_mask=self._seen,
                past_key_values=self._cache,
                use_cache=True,
                **options,
            )
        going = self._choose(self._rows, out.logits)
        self._keep([k for k, on in enumerate(going) if on])

    def _keep(self, places: list[int]) -> None:
        """Let the other rows go, and the columns that nobody sees any more."""
        if len(places) == len(self._rows):
            return
        self._rows = [self._rows[k] for k in places]
        if not places:
            self._cache = self._seen = None
            return
        assert self._cache is not None and self._seen is not None
        self._seen = self._seen[places]
        first = int((self._seen.sum(0) == 0).long().cumprod(0).sum())
        self._seen = self._seen[:, first:]
        self._cache = some_rows(self._cache, places, first)

    def _choose(self, jobs: list[Job], logits: Tensor) -> list[bool]:
        """Give every job its next token; whether it goes on."""
        ends, going = set(end_ids(self.pool.backbone)), []
        best = logits.argmax(-1).tolist()
        for job, row, greedy in zip(jobs, logits, best, strict=True):
            token = greedy if job.temperature <= 0 else _sampled(job, row)
            ended = token in ends
            if not ended:
                job.said.append(token)
            going.append(self._tell(job, ended))
        return going

    def _tell(self, job: Job, ended: bool) -> bool:
        """Emit what a job has said so far; whether it goes on."""
        if job.cancelled:
            return False
        text = self.pool.backbone.tokenizer.decode(job.said, skip_special_tokens=True)
        cut = min((text.find(mark) for mark in job.stop if mark in text), default=-1)
        full = len(job.said) >= job.max_tokens
        if cut >= 0 or ended or full:
            reason = "stop" if cut >= 0 or ended else "length"
            job.emit("end", (text[:cut] if cut >= 0 else text, reason, len(job.said)))
            return False
        # A stop mark may have begun, and a character may still lack a byte: hold those back.
        held = max((len(m) - 1 for m in job.stop), default=0)
        job.emit("token", text[: len(text) - held].rstrip("\ufffd"))
        return True


def _done(job: Job) -> None:
    assert job.work is not None
    job.emit("end", job.work())


def _sampled(job: Job, logits: Tensor) -> int:
    """A token drawn at the job's temperature from the likeliest that make up ``top_p``."""
    if job.generator is None:
        job.generator = torch.Generator()
        if job.seed is None:
            job.generator.seed()
        else:
            job.generator.manual_seed(job.seed)
    chances, order = (logits.float().cpu() / job.temperature).softmax(-1).sort(descending=True)
    chances = chances.masked_fill(chances.cumsum(0) - chances >= job.top_p, 0)
    return int(order[torch.multinomial(chances, 1, generator=job.generator)])
