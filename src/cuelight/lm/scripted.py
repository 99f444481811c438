"""A function in the place of a model: for tests of control flow, and for models of the user's own making."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from cuelight.lm.base import LM, Answer, Deliver, LMError, Request
from cuelight.lm.prices import Price

__all__ = ["ScriptedLM"]

_WORD = re.compile(r"\S+")


class ScriptedLM(LM):
    """Answers with what ``function(request)`` returns, one request after the other in their order.

    Args:
        function: takes a `Request`, returns the text.
        name: what the model is called; with a cache it stands for the function, so give each function its own.
        score: takes a `Request` of kind ``score``, returns one log-probability for each of its continuations.

    Tokens are counted in words.
    """

    def __init__(
        self,
        function: Callable[[Request], str],
        name: str = "scripted",
        *,
        score: Callable[[Request], Sequence[float]] | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(name, price=Price(0, 0), **shared)
        self._function, self._score = function, score

    @property
    def can_score(self) -> bool:
        return self._score is not None

    @property
    def can_chat(self) -> bool:
        return True

    @property
    def fingerprint(self) -> str:
        return f"scripted#{self.name}"

    async def _answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        for k, request in enumerate(requests):
            said = request.prompt + " ".join(str(m.get("content", "")) for m in request.messages)
            read = len(_WORD.findall(said))
            most = request.max_tokens if request.kind != "score" else 0
            reserved = await self.meter.reserve(self._spent(read, most))
            answer = None
            try:
                began = time.perf_counter()
                answer = await asyncio.to_thread(self._called, request, read, began)
            finally:
                actual = self._spent(read, 0 if answer is None else answer.completion_tokens)
                self.meter.settle(reserved, actual)
            deliver([(k, answer)])

    def _called(self, request: Request, read: int, began: float) -> Answer:
        if request.kind == "score":
            assert self._score is not None
            scores = tuple(float(value) for value in self._score(request))
            if len(scores) != len(request.continuations):
                raise LMError(
                    f"model {self.name}: {len(scores)} scores for {len(request.continuations)} continuations; "
                    "return one for each"
                )
            return Answer(scores=scores, prompt_tokens=read, seconds=time.perf_counter() - began)
        text = self._function(request)
        if not isinstance(text, str):
            raise LMError(f"model {self.name}: answered with a {type(text).__name__}; return a text")
        cut = min((text.find(mark) for mark in request.stop if mark in text), default=-1)
        text = text[:cut] if cut >= 0 else text
        words = list(_WORD.finditer(text))
        long = len(words) > request.max_tokens
        return Answer(
            text[: words[request.max_tokens - 1].end()] if long else text,
            "length" if long else "stop",
            prompt_tokens=read,
            completion_tokens=min(len(words), request.max_tokens),
            seconds=time.perf_counter() - began,
        )
