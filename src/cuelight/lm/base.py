"""The interface every language model has here, and what all calls share: cache, ledger, meter.

A backend only answers requests (`LM._answer`); this file turns what callers pass into requests, looks for answers that
are there already, lets equal requests that are under way share one answer, and writes down what came of each.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from cuelight.errors import CuelightError, nearest
from cuelight.lm.ledger import Ledger
from cuelight.lm.loop import awaited, wait_for
from cuelight.lm.meter import Budget, Meter, Spent
from cuelight.lm.prices import Price
from cuelight.lm.store import Store

__all__ = ["LM", "Answer", "Completion", "Deliver", "LMError", "Message", "Options", "Request", "Usage"]

Message = Mapping[str, Any]
"""One turn in OpenAI's form: ``{"role": "user", "content": "..."}``."""

_KEYS = 1
"""Raise when the meaning of a request changes, so that older answers are not taken for it."""


class Options(TypedDict, total=False):
    """How answers are written, see `LM.complete`."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: str | Sequence[str]
    seed: int
    draw: int


class LMError(CuelightError):
    """A model or server that can not do what is asked, or failed at it; one line with the remedy."""


@dataclass(frozen=True)
class Usage:
    """What an answer took: tokens, money (in the price table's currency) and seconds.

    A cached answer keeps its tokens, and has cost and seconds 0.  ``priced`` is false when the model's price is not
    known; ``cost`` is 0 then.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    priced: bool = True


@dataclass(frozen=True)
class Completion:
    """What a model wrote.  ``finish`` is ``"length"`` when it was cut off at ``max_tokens``."""

    text: str
    usage: Usage = Usage()
    cached: bool = False
    finish: Literal["stop", "length"] = "stop"


@dataclass(frozen=True)
class Request:
    """One thing asked of a model.

    Attributes:
        kind: ``complete`` has a ``prompt``, ``chat`` has ``messages``, ``score`` has a ``prompt`` and
            ``continuations``.
        draw: which of several samples for one prompt; it matters where ``temperature`` is above 0.
    """

    kind: Literal["complete", "chat", "score"]
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    continuations: tuple[str, ...] = ()
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    draw: int = 0

    @property
    def text(self) -> str:
        """The prompt, or the last message's text."""
        return self.prompt if self.kind != "chat" else str(self.messages[-1].get("content", ""))

    def key(self, fingerprint: str) -> str:
        """SHA-256 over everything that matters to the answer of the model with that ``fingerprint``."""
        said: dict[str, Any] = {"kind": self.kind}
        if self.kind == "chat":
            said["messages"] = [dict(message) for message in self.messages]
        else:
            said["prompt"] = self.prompt
        if self.kind == "score":
            said["continuations"] = self.continuations
        else:
            said |= {"max_tokens": self.max_tokens, "stop": self.stop, "temperature": float(self.temperature)}
            if self.temperature > 0:
                said |= {"top_p": float(self.top_p), "seed": self.seed, "draw": self.draw}
        text = json.dumps([_KEYS, fingerprint, said], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a backend says to a request: a text, or the log-probability of each continuation."""

    text: str = ""
    finish: Literal["stop", "length"] = "stop"
    scores: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


Deliver = Callable[[Sequence[tuple[int, Answer]]], None]
"""Takes answers as they come, each with the place of its request."""


class LM(ABC):
    """A language model: text in, text out.

    Every method has an asynchronous twin (``acomplete``, ``achat``, ``ascore``).  A string gives one answer, a list gives
    a list in its order.

    Attributes:
        name: what the caller connected to.
        meter: counts what calls cost, and holds the budget.
    """

    def __init__(
        self,
        name: str,
        *,
        meter: Meter | None = None,
        store: Store | None = None,
        ledger: Ledger | None = None,
        price: Price | None = None,
    ) -> None:
        self.name = name
        self.meter = meter or Meter()
        self.price = price
        self._store, self._ledger = store, ledger
        self._flights: dict[str, asyncio.Future[Answer | None]] = {}
        self._refuse_money()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.meter.spent})"

    @property
    @abstractmethod
    def can_score(self) -> bool:
        """Whether log-probabilities of given continuations are to be had."""

    @property
    @abstractmethod
    def can_chat(self) -> bool:
        """Whether it takes conversations."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What answers depend on besides the request: weights, or server and model name."""

    @abstractmethod
    async def _answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Answer ``requests``, delivering answers as they come; each is reserved and settled by the backend."""

    # ---- what callers use --------------------------------------------------------------------------------

    @overload
    def complete(  # type: ignore[overload-overlap]
        self,
        prompts: str,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    def complete(
        self,
        prompts: Sequence[str],
        **options: Unpack[Options],
    ) -> list[Completion]: ...

    def complete(
        self, prompts: str | Sequence[str], **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """Go on from each prompt.

        Args:
            prompts: one text, or several.
            max_tokens: most tokens of an answer, 256 unless told.
            temperature: 0 (unless told) takes the likeliest token, above it samples.
            top_p: sample from the likeliest tokens that make up this chance.
            stop: texts to stop before; they are no part of the answer.
            seed: equal requests with an equal seed get an equal answer.
            draw: tells repeated samples of one prompt apart; equal prompts of one list get ``draw``, ``draw + 1``...

        Raises:
            LMError: a wrong option, or the model failed.
            BudgetError: a limit is reached; answers that came before it are in the cache.
        """
        return wait_for(self._completed(prompts, options))

    @overload
    def chat(  # type: ignore[overload-overlap]
        self,
        messages: str | Sequence[Message],
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[str] | Sequence[Sequence[Message]],
        **options: Unpack[Options],
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: str | Sequence[Message] | Sequence[str] | Sequence[Sequence[Message]],
        **options: Unpack[Options],
    ) -> Completion | list[Completion]:
        """Answer each conversation; options and errors as for `complete`.

        Args:
            messages: a text (one turn of the user), messages in OpenAI's form, or a list of either.

        Raises:
            LMError: also when the model takes no conversations.
        """
        return wait_for(self._chatted(messages, options))

    def score(
        self, prompts: str | Sequence[str], continuations: Sequence[str] | Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Log-probability of each continuation behind each prompt, summed over its tokens.

        Args:
            prompts: one text, or several.
            continuations: texts, with the space they begin with; or, for several prompts, a list for each.

        Returns:
            ``[P, C]`` natural logarithms in float64, ``[C]`` for one prompt; ``-inf`` fills the rows of prompts that
            have fewer continuations than others.

        Raises:
            LMError: the model gives no log-probabilities.
            BudgetError: as for `complete`.
        """
        return wait_for(self.ascore(prompts, continuations))

    async def acomplete(
        self, prompts: str | Sequence[str], **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """`complete` for asynchronous callers."""
        return await self._completed(prompts, options)

    @overload
    async def achat(  # type: ignore[overload-overlap]
        self, messages: str | Sequence[Message], **options: Unpack[Options]
    ) -> Completion: ...

    @overload
    async def achat(
        self, messages: Sequence[str] | Sequence[Sequence[Message]], **options: Unpack[Options]
    ) -> list[Completion]: ...

    async def achat(
        self,
        messages: str | Sequence[Message] | Sequence[str] | Sequence[Sequence[Message]],
        **options: Unpack[Options],
    ) -> Completion | list[Completion]:
        """`chat` for asynchronous callers."""
        return await self._chatted(messages, options)

    async def ascore(
        self, prompts: str | Sequence[str], continuations: Sequence[str] | Sequence[Sequence[str]]
    ) -> np.ndarray:
        """`score` for asynchronous callers."""
        one = isinstance(prompts, str)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        lists = _continuations(continuations, len(texts))
        found = await self._score_all(texts, lists)
        table = np.full((len(texts), max(map(len, lists), default=0)), -np.inf)
        for row, (answer, _) in zip(table, found, strict=True):
            row[: len(answer.scores)] = answer.scores
        return table[0] if one else table

    def scored(self, prompt: str, continuations: Sequence[str]) -> tuple[list[float], Usage, bool]:
        """`score` for one prompt: log-probabilities, what they took, and whether they were there already."""
        [(answer, cached)] = wait_for(self._score_all([prompt], [tuple(continuations)]))
        return list(answer.scores), self._usage(answer, cached), cached

    async def _score_all(
        self, prompts: Sequence[str], lists: Sequence[tuple[str, ...]]
    ) -> list[tuple[Answer, bool]]:
        await asyncio.to_thread(self._refuse_scoring)
        requests = [
            Request("score", prompt=text, continuations=each)
            for text, each in zip(prompts, lists, strict=True)
        ]
        return await awaited(self._fetch(requests))

    def metered(self, budget: Budget) -> LM:
        """The same model with the same cache and ledger, whose calls are counted and limited on their own too.

        Raises:
            LMError: money is limited and the model's price is not known.
        """
        made = copy.copy(self)
        made.meter = Meter(budget, self.meter)
        made._refuse_money()
        return made

    # ---- what all backends share -------------------------------------------------------------------------

    def _refuse_money(self) -> None:
        if self.price is None and self.meter.budget.money is not None:
            raise LMError(
                f"budget: money is limited and the price of {self.name} is not known; add it to the price table "
                "('cuelight prices' shows where), or limit calls or tokens"
            )

    async def _completed(
        self, prompts: str | Sequence[str], options: Mapping[str, Any]
    ) -> Completion | list[Completion]:
        one = isinstance(prompts, str)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not all(isinstance(text, str) for text in texts):
            raise LMError("prompts: must be text, or a list of texts")
        base = _request("complete", options)
        requests = _drawn([replace(base, prompt=text) for text in texts])
        found = await awaited(self._fetch(requests))
        answers = [self._completion(*entry) for entry in found]
        return answers[0] if one else answers

    async def _chatted(self, messages: Any, options: Mapping[str, Any]) -> Completion | list[Completion]:
        base = _request("chat", options)
        if not self.can_chat:
            raise LMError(
                f"model {self.name}: takes no conversations (it has no chat template); use complete()"
            )
        one = isinstance(messages, str) or (bool(messages) and isinstance(messages[0], Mapping))
        talks = [messages] if one else list(messages)
        requests = _drawn([replace(base, messages=_conversation(talk)) for talk in talks])
        found = await awaited(self._fetch(requests))
        answers = [self._completion(*entry) for entry in found]
        return answers[0] if one else answers

    def _refuse_scoring(self) -> None:
        if not self.can_score:
            raise LMError(
                f"model {self.name}: gives no log-probabilities of given texts; use a local model, a server that "
                "echoes prompts with logprobs, or a method that needs answers only"
            )

    def _completion(self, answer: Answer, cached: bool) -> Completion:
        return Completion(answer.text, self._usage(answer, cached), cached, answer.finish)

    def _usage(self, answer: Answer, cached: bool) -> Usage:
        read, wrote = answer.prompt_tokens, answer.completion_tokens
        if cached:
            return Usage(read, wrote, priced=self.price is not None)
        cost = 0.0 if self.price is None else self.price.of(read, wrote)
        return Usage(read, wrote, cost, answer.seconds, self.price is not None)

    def _spent(self, prompt_tokens: int, completion_tokens: int, calls: int = 1) -> Spent:
        """What a call of this size is for the meter."""
        money = 0.0 if self.price is None else self.price.of(prompt_tokens, completion_tokens)
        unpriced = calls if self.price is None else 0
        return Spent(calls, prompt_tokens + completion_tokens, money, unpriced=unpriced)

    async def _fetch(self, requests: Sequence[Request]) -> list[tuple[Answer, bool]]:
        """Answers to ``requests`` in their order, and whether each was there already.

        Equal requests are asked once, also when another caller has asked and waits.  Without a cache every request is
        asked.
        """
        if self._store is None:
            answers = await self._ask(requests, [""] * len(requests))
            return [(answer, False) for answer in answers]
        keys = [request.key(self.fingerprint) for request in requests]
        places: dict[str, int] = {}
        for k, key in enumerate(keys):
            places.setdefault(key, k)
        found: dict[str, tuple[Answer, bool]] = {}
        missing = list(places)
        while missing:
            others = {key: self._flights[key] for key in missing if key in self._flights}
            own = [key for key in missing if key not in others]
            # Taken before the cache is asked: who comes after that must find either this or the answer.
            flights = {key: asyncio.get_running_loop().create_future() for key in own}
            self._flights |= flights
            try:
                stored = await asyncio.to_thread(self._store.get, own)
                for key, entry in stored.items():
                    answer = Answer(**{**entry, "scores": tuple(entry.get("scores", ()))})
                    self._note(requests[places[key]], answer, key, True)
                    found[key] = answer, True
                asked = [key for key in own if key not in stored]
                answers = await self._ask([requests[places[key]] for key in asked], asked)
                found.update((key, (answer, False)) for key, answer in zip(asked, answers, strict=True))
            finally:
                for key, flight in flights.items():
                    self._flights.pop(key, None)
                    if not flight.done():
                        flight.set_result(found[key][0] if key in found else None)
            missing = []
            for key, flight in others.items():
                answer_ = await asyncio.shield(flight)
                if answer_ is None:  # that caller gave up: ask ourselves
                    missing.append(key)
                else:
                    found[key] = answer_, True
        return [(found[key][0], found[key][1] or places[key] != k) for k, key in enumerate(keys)]

    async def _ask(self, requests: Sequence[Request], keys: Sequence[str]) -> list[Answer]:
        """Have the backend answer; every answer is remembered, and told to who waits for it, as it comes."""
        found: dict[int, Answer] = {}

        def deliver(answers: Sequence[tuple[int, Answer]]) -> None:
            if self._store is not None:
                self._store.put((keys[k], asdict(answer)) for k, answer in answers)
            for k, answer in answers:
                self._note(requests[k], answer, keys[k], False)
                found[k] = answer
                flight = self._flights.get(keys[k])
                if flight is not None and not flight.done():
                    flight.set_result(answer)

        if requests:
            with self.meter.running():
                await self._answer(requests, deliver)
        return [found[k] for k in range(len(requests))]

    def _note(self, request: Request, answer: Answer, key: str, cached: bool) -> None:
        """A line in the ledger."""
        if self._ledger is None:
            return
        usage = self._usage(answer, cached)
        self._ledger.write(
            {
                "model": self.name,
                "kind": request.kind,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "cost": usage.cost if usage.priced else None,
                "cached": cached,
                "seconds": round(usage.seconds, 4),
                "request": key or request.key(self.fingerprint),
            }
        )


def _request(kind: Literal["complete", "chat"], options: Mapping[str, Any]) -> Request:
    """A request with checked options."""
    allowed = Options.__annotations__
    for name in options:
        if name not in allowed:
            raise LMError(f"{name}: no such option{nearest(name, allowed)}; there are {', '.join(allowed)}")
    stop = options.get("stop") or ()
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    made = Request(kind, stop=texts, **{k: v for k, v in options.items() if k != "stop"})
    if made.max_tokens < 1:
        raise LMError(f"max_tokens: is {made.max_tokens}; give 1 or more")
    if not made.temperature >= 0:
        raise LMError(f"temperature: is {made.temperature}; give 0 or more")
    if not 0 < made.top_p <= 1:
        raise LMError(f"top_p: is {made.top_p}; give more than 0 and at most 1")
    if not all(made.stop):
        raise LMError("stop: has an empty text; leave it out")
    return made


def _drawn(requests: list[Request]) -> list[Request]:
    """Equal requests of a list become draws of their own."""
    times: Counter[str] = Counter()
    made = []
    for request in requests:
        said = json.dumps([request.prompt, [dict(m) for m in request.messages]], sort_keys=True)
        made.append(replace(request, draw=request.draw + times[said]) if times[said] else request)
        times[said] += 1
    return made


def _conversation(talk: Any) -> tuple[Message, ...]:
    if isinstance(talk, str):
        return ({"role": "user", "content": talk},)
    turns = tuple(talk)
    if not turns or any(not isinstance(m, Mapping) or "role" not in m or "content" not in m for m in turns):
        raise LMError("messages: give at least one {'role': 'user', 'content': '...'}")
    return turns


def _continuations(given: Sequence[str] | Sequence[Sequence[str]], prompts: int) -> list[tuple[str, ...]]:
    """One tuple of continuations for each prompt."""
    if isinstance(given, str) or not len(given):
        raise LMError("continuations: give a list of texts, or a list of them for each prompt")
    if all(isinstance(text, str) for text in given):
        lists = [tuple(str(text) for text in given)] * prompts
    else:
        lists = [tuple(each) for each in given]
    if len(lists) != prompts:
        raise LMError(f"continuations: {len(lists)} lists for {prompts} prompts; give one for each prompt")
    if any(not each or not all(isinstance(t, str) and t for t in each) for each in lists):
        raise LMError("continuations: one is empty; every continuation must be a text that is not empty")
    return lists
