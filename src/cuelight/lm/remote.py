"""A model behind an OpenAI-compatible server.

The `openai` package speaks to it; what it says is not trusted.  A request that failed for a passing reason is sent
again after a growing, random pause, and never before the server's own ``Retry-After``.  An attempt the server refused
with an error costs nothing; one that broke off (too late, half a body, not JSON) may have been charged for, and is
counted at its worst case.
"""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from cuelight.errors import ConfigError
from cuelight.lm.base import LM, Answer, Deliver, LMError, Message, Request
from cuelight.lm.loop import wait_for
from cuelight.lm.prices import find_price, price_table

try:
    import openai
except ImportError as error:
    raise ConfigError(
        "lm: a server needs openai, which is not installed; pip install 'cuelight[search]'"
    ) from error

__all__ = ["RemoteLM"]

_MOST_BYTES = 2**25
"""A longer body is no answer (32 MiB)."""
_FIRST_PAUSE, _LONGEST_PAUSE, _MOST_PATIENCE = 0.5, 30.0, 120.0
"""Seconds: the pause before the first repetition, the longest one, and the longest a server may ask for."""
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
_TEMPLATE = 64
"""Tokens a chat template may add beside the messages, and the few that each message takes."""
_TURN = 8


class _BrokenError(Exception):
    """An answer that broke off or can not be read: worth another attempt, and perhaps charged for."""


class _TooMuchError(Exception):
    """A body that does not end."""


class RemoteLM(LM):
    """A model of an OpenAI-compatible server; only ``URL#model`` is needed.

    Args:
        spec: ``https://host/v1#model``; without a model, the only one the server has.
        api_key: else ``$CUELIGHT_API_KEY``, and for OpenAI's own servers ``$OPENAI_API_KEY``.
        concurrency: most requests at a time.
        timeout: seconds for a whole answer.
        retries: most repetitions of a request.
        prices: a price table over the user's own.
        shared: meter, store and ledger, as for `LM`.

    Raises:
        LMError: a wrong option, or no model named and not just one there.
    """

    def __init__(
        self,
        spec: str,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        prices: str | os.PathLike[str] | None = None,
        **shared: Any,
    ) -> None:
        for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if value < least:
                raise LMError(f"{name}: is {value}; give {least} or more")
        if not timeout > 0:
            raise LMError(f"timeout: is {timeout}; give more than 0 seconds")
        url, _, model = spec.partition("#")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        host = urlsplit(self.url).hostname
        if not host:
            raise LMError(f"server: '{spec}' is no address; give http(s)://host/v1#model")
        key = api_key or os.environ.get("CUELIGHT_API_KEY")
        if not key and host.endswith(("openai.com", "openai.azure.com")):
            key = os.environ.get("OPENAI_API_KEY")  # sent to nobody else
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=self.url,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [_bounded]}, headers={"Accept-Encoding": "identity"}
            ),
        )
        self.model = model or wait_for(self._only_model())
        self._room = asyncio.Semaphore(concurrency)
        self._lacks: set[str] = set()
        self._echoes: bool | None = None  # whether it gives the log-probabilities of a prompt
        price = find_price(price_table(prices), self.model, self.url)
        super().__init__(f"{self.url}#{self.model}", price=price, **shared)

    @property
    def can_score(self) -> bool:
        """Asks the server once, with a prompt of a few tokens."""
        if self._echoes is None:
            self._echoes = wait_for(self._ask_for_echo())
        return self._echoes

    @property
    def can_chat(self) -> bool:
        return True

    @property
    def fingerprint(self) -> str:
        return self.name

    # ---- requests ----------------------------------------------------------------------------------------

    async def _answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        failed: list[Exception] = []

        async def one(k: int) -> None:
            if failed:  # what runs is paid for and goes on; nothing more is begun
                return
            try:
                answer = await (self._scored if requests[k].kind == "score" else self._written)(requests[k])
                deliver([(k, answer)])
            except Exception as error:
                failed.append(error)

        tasks = [asyncio.ensure_future(one(k)) for k in range(len(requests))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if failed:
            raise failed[0]

    async def _written(self, request: Request) -> Answer:
        body: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.temperature > 0:
            body |= {"top_p": request.top_p, "seed": (request.seed + 1_000_003 * request.draw) % 2**31}
        if request.stop:
            body["stop"] = list(request.stop[:4])  # more are refused; the rest is cut off below
        if request.kind == "chat":
            body["messages"] = [dict(message) for message in request.messages]
        else:
            body["prompt"] = request.prompt
        began = time.perf_counter()
        choice, read, wrote = await self._call(body, _most_tokens(request))
        said = choice.get("message", {}).get("content") if request.kind == "chat" else choice.get("text")
        text = said or ""
        cut = min((text.find(mark) for mark in request.stop if mark in text), default=-1)
        long = choice.get("finish_reason") == "length" and cut < 0
        return Answer(
            text[:cut] if cut >= 0 else text,
            "length" if long else "stop",
            (),
            read,
            wrote,
            time.perf_counter() - began,
        )

    async def _scored(self, request: Request) -> Answer:
        began = time.perf_counter()
        asked = [self._behind(request.prompt, text) for text in request.continuations]
        found = await asyncio.gather(*asked, return_exceptions=True)  # each is paid for: let all end
        for entry in found:
            if isinstance(entry, BaseException):
                raise entry
        good = [entry for entry in found if not isinstance(entry, BaseException)]
        return Answer(
            scores=tuple(score for score, _ in good),
            prompt_tokens=sum(read for _, read in good),
            seconds=time.perf_counter() - began,
        )

    async def _behind(self, prompt: str, text: str) -> tuple[float, int]:
        """Log-probability of ``text`` behind ``prompt``, and how many tokens were read."""
        most = len((prompt + text).encode()) + _TEMPLATE
        choice, read, wrote = await self._call(_echoing(prompt + text), most)
        score = _echoed(choice, prompt, text)
        if score is None:
            raise LMError(
                f"server {self.url}: left out log-probabilities of the prompt; use a local model, or a method that "
                "needs answers only"
            )
        return score, read + wrote

    async def _ask_for_echo(self) -> bool:
        """Whether the server scores given texts; asked once, and remembered."""
        key = f"echo|{self.fingerprint}"
        if self._store is not None:
            known = (await asyncio.to_thread(self._store.get, [key])).get(key)
            if known is not None:
                return bool(known["echoes"])
        try:
            with self.meter.running():
                choice, _, _ = await self._call(_echoing("One two"), _TEMPLATE)
            echoes = _echoed(choice, "One", " two") is not None
        except _RefusedError as error:
            if error.status not in (400, 404, 422):
                raise
            echoes = False
        if self._store is not None:
            self._store.put([(key, {"echoes": echoes})])
        return echoes

    async def _only_model(self) -> str:
        try:
            async with asyncio.timeout(self.timeout):
                names = [model.id async for model in self._client.models.list()]
        except (openai.APIError, TimeoutError, ValueError, AttributeError, TypeError) as error:
            raise LMError(
                f"server {self.url}: did not say which models it has ({_short(error)}); give {self.url}#model"
            ) from error
        if len(names) == 1:
            return names[0]
        raise LMError(
            f"server {self.url}: has {len(names)} models ({', '.join(names[:9])}); give {self.url}#model"
        )

    # ---- one call ----------------------------------------------------------------------------------------

    async def _call(self, body: Mapping[str, Any], most_read: int) -> tuple[dict[str, Any], int, int]:
        """Send a request until it is answered.

        Returns:
            The answer's one choice, and the tokens read and written.
        """
        most_wrote = int(body["max_tokens"])
        worst = self._spent(most_read, most_wrote)
        async with self._room:
            for attempt in itertools.count():
                held = await self.meter.reserve(worst)
                actual = self._spent(0, 0, calls=0)
                try:
                    limit = self.meter.seconds_left()
                    actual = worst  # unless we learn better
                    late = limit is not None and limit < self.timeout
                    try:
                        async with asyncio.timeout(limit if late else self.timeout):
                            text = await self._sent(body)
                    except TimeoutError as error:
                        if late:
                            raise self.meter.error("seconds") from error
                        raise _BrokenError(f"no whole answer in {self.timeout:g} seconds") from error
                    choice, usage = _parsed(text)
                    read = _count(usage.get("prompt_tokens"), most_read)
                    wrote = _count(usage.get("completion_tokens"), most_wrote)
                    actual = self._spent(read, wrote)
                    return choice, read, wrote
                except openai.APIStatusError as error:
                    actual = self._spent(0, 0, calls=0)
                    if self._mended(error, body):
                        continue
                    if error.status_code not in _PASSING or _is_out_of_money(error):
                        raise self._refusal(error) from error
                    failure, asked = (
                        f"{error.status_code}: {_message(error)}",
                        _retry_after(error.response.headers),
                    )
                except _BrokenError as error:
                    failure, asked = str(error), 0.0
                except Exception as error:
                    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
                    if isinstance(cause, _TooMuchError):
                        raise LMError(
                            f"server {self.url}: its answer is longer than {_MOST_BYTES >> 20} MiB; lower max_tokens "
                            "or use another server"
                        ) from error
                    if not type(cause).__module__.startswith("http"):
                        raise
                    if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                        actual = self._spent(0, 0, calls=0)  # never reached it
                    failure, asked = f"{type(cause).__name__}: {_short(cause)}", 0.0
                finally:
                    self.meter.settle(held, actual)
                await self._pause(attempt, failure, asked)
        raise AssertionError

    async def _pause(self, attempt: int, failure: str, asked: float) -> None:
        """Wait before the next attempt, if there is to be one.

        Raises:
            LMError: there is none left, or the server asks for more patience than we have.
        """
        if attempt >= self.retries:
            times = f"{attempt + 1} attempts" if attempt else "1 attempt"
            raise LMError(
                f"server {self.url}: {failure} ({times}); is it up and not overloaded? Run again to go on, with a "
                "lower concurrency, a longer timeout, or more retries"
            )
        if asked > _MOST_PATIENCE:
            raise LMError(f"server {self.url}: {failure}; it asks to wait {asked:g} seconds: run again then")
        grown = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
        pause = max(asked * random.uniform(1, 1.1), grown * random.uniform(0.5, 1))
        left = self.meter.seconds_left()
        if left is not None and pause >= left:
            raise self.meter.error("seconds")
        await asyncio.sleep(pause)

    async def _sent(self, body: Mapping[str, Any]) -> str:
        """One attempt: the text of the server's answer."""
        options = {name: value for name, value in body.items() if name not in self._lacks}
        if "max_tokens" in self._lacks:
            options["max_completion_tokens"] = body["max_tokens"]
        made = self._client.chat.completions if "messages" in body else self._client.completions
        raw = await made.with_raw_response.create(model=self.model, **options)
        return str(raw.http_response.text)

    def _mended(self, error: openai.APIStatusError, body: Mapping[str, Any]) -> bool:
        """Whether the server refused an option that can be left out or named otherwise; then it is, from now on."""
        if error.status_code not in (400, 422):
            return False
        said = f"{getattr(error, 'param', '')} {_message(error)}"
        for name in ("seed", "max_tokens"):
            named = name in said and (name != "max_tokens" or "max_completion_tokens" in said)
            if name in body and name not in self._lacks and named:
                self._lacks.add(name)
                return True
        return False

    def _refusal(self, error: openai.APIStatusError) -> _RefusedError:
        remedy = {
            400: "change the request",
            401: "set CUELIGHT_API_KEY",
            403: "use a key that may use this model",
            404: "check the address and the model's name; a chat model takes chat() only",
            413: "shorten the prompt",
        }.get(error.status_code, "see the server's documentation")
        return _RefusedError(
            f"server {self.url}: {error.status_code}: {_message(error)}; {remedy}", error.status_code
        )


class _RefusedError(LMError):
    """A request the server will not take however often it is sent."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _most_tokens(request: Request) -> int:
    """What a prompt can not have more tokens than: its bytes, and what a template adds."""
    if request.kind != "chat":
        return len(request.prompt.encode()) + _TEMPLATE
    return _TEMPLATE + sum(_TURN + len(_said(message).encode()) for message in request.messages)


def _said(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _echoing(text: str) -> dict[str, Any]:
    # A token is written too, and not looked at: some servers refuse to write none.
    return {"prompt": text, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}


def _echoed(choice: Mapping[str, Any], prompt: str, text: str) -> float | None:
    """Sum over the tokens that reach into ``text``, which stands behind ``prompt``; ``None`` if any is missing."""
    table = choice.get("logprobs")
    if not isinstance(table, Mapping):
        return None
    tokens, values = table.get("tokens") or [], table.get("token_logprobs") or []
    if not tokens or len(tokens) != len(values):
        return None
    lengths = [len(str(token)) for token in tokens]
    starts = table.get("text_offset") or [0, *itertools.accumulate(lengths)]
    total, reached = 0.0, 0
    for value, start, length in zip(values, starts, lengths, strict=False):
        if start + length <= len(prompt) or start >= len(prompt) + len(text):
            continue
        if value is None and start > 0:
            return None
        total += float(value or 0.0)
        reached = max(reached, start + length)
    return total if reached >= len(prompt) + len(text) else None


def _parsed(text: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The one choice and the usage of an answer."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise _BrokenError(f"its answer is not JSON ('{text[:60]}')") from error
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise _BrokenError("its answer has no choices")
    said = choice.get("text", "") if "text" in choice else choice.get("message")
    said = said.get("content") if isinstance(said, Mapping) else said
    if not ((said is None and "message" in choice) or isinstance(said, str)):
        raise _BrokenError("its answer has no text")
    usage = body.get("usage")
    return choice, usage if isinstance(usage, Mapping) else {}


def _count(value: Any, most: int) -> int:
    """Tokens as the server counts them; the most there can be where it does not say."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else most


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the server asks to wait."""
    with suppress(ValueError, KeyError):
        return max(float(headers["retry-after-ms"]) / 1000, 0.0)
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(float(value), 0.0)
    with suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return 0.0


def _is_out_of_money(error: openai.APIStatusError) -> bool:
    return getattr(error, "code", None) == "insufficient_quota"


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    said = inner.get("message") if isinstance(inner, Mapping) else inner
    return _short(said or error.message)


def _short(text: object) -> str:
    return " ".join(str(text).split())[:200].rstrip(".")


async def _bounded(response: Any) -> None:
    """Let a body be read up to a limit only."""
    # httpx or httpx2, whichever openai stands on.
    web = sys.modules[type(response).__module__.partition(".")[0]]
    inner = response.stream

    class Bounded(web.AsyncByteStream):  # type: ignore[name-defined]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in inner:
                size += len(chunk)
                if size > _MOST_BYTES:
                    raise _TooMuchError
                yield chunk

        async def aclose(self) -> None:
            await inner.aclose()

    response.stream = Bounded()
