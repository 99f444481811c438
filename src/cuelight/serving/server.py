"""An OpenAI-compatible server over a pool: the request's ``model`` picks the prompt.

``/v1/models``, ``/v1/chat/completions``, ``/v1/completions`` (streamed or not) and ``/health``.  A learned prompt knows
one template, so its text is the last user message alone; earlier turns and system messages are refused rather than
dropped.  The backbone's own name is the model without a prompt, in its chat format if it has one; a completion of it
with ``echo`` and ``logprobs`` gives the log-probability of every token of the text that is sent.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cuelight.errors import CuelightError, nearest
from cuelight.serving.engine import Engine, FullError, Job
from cuelight.serving.pool import Pool

__all__ = ["application"]


class _RefusedError(Exception):
    """A request that gets an error of OpenAI's form."""

    def __init__(self, status: int, message: str, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status, self.body = status, {"message": message, "type": kind, "param": field, "code": code}


class _Body(BaseModel):
    """What is read of a request; fields that change nothing here are let pass."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[dict[str, Any]] | None = None
    prompt: Any = None
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    echo: bool = False
    logprobs: int | bool | None = None


def application(
    pool: Pool, engine: Engine, *, api_key: str | None = None, time_limit: float = 300.0
) -> FastAPI:
    """The web application over ``pool``, whose jobs ``engine`` runs.

    Args:
        api_key: if given, requests must carry it as a bearer token.
        time_limit: seconds after which a request is given up.
    """
    app = FastAPI(title="cuelight", docs_url=None, redoc_url=None)
    began = int(time.time())

    @app.exception_handler(_RefusedError)
    async def refused(_: Request, error: _RefusedError) -> JSONResponse:
        return JSONResponse({"error": error.body}, error.status)

    @app.exception_handler(404)
    async def unknown(_: Request, __: Exception) -> JSONResponse:
        paths = "/v1/models, /v1/chat/completions, /v1/completions, /health"
        return JSONResponse(
            {"error": _RefusedError(404, f"there is no such path; there are {paths}").body}, 404
        )

    def allow(request: Request) -> None:
        if api_key and request.headers.get("authorization") != f"Bearer {api_key}":
            raise _RefusedError(401, "api key: is missing or wrong", "invalid_api_key")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "backbone": pool.backbone.id, "prompts": list(pool.prompts)}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        allow(request)
        names = [*pool.prompts, pool.backbone.id]
        return {
            "object": "list",
            "data": [{"id": n, "object": "model", "created": began, "owned_by": "cuelight"} for n in names],
        }

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        allow(request)
        body = await _read(request)
        if not body.messages:
            raise _RefusedError(
                400, "messages: are missing; give at least one of role 'user'", field="messages"
            )
        return await complete(request, body, _Work.of_messages(pool, body), chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        allow(request)
        body = await _read(request)
        if not isinstance(body.prompt, str) or not body.prompt.strip():
            raise _RefusedError(400, "prompt: must be one string that is not empty", field="prompt")
        work = _Work.of_text(pool, body, body.prompt)
        if body.echo:
            work.check_echo(body)
        return await complete(request, body, work, chat=False)

    async def complete(request: Request, body: _Body, work: _Work, *, chat: bool) -> Any:
        if body.max_tokens == 0 and (chat or not body.echo):
            raise _RefusedError(400, "max_tokens: must be at least 1", field="max_tokens")
        events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        job = work.job(body, lambda kind, value: loop.call_soon_threadsafe(events.put_nowait, (kind, value)))
        try:
            engine.submit(job)
        except FullError as error:
            raise _RefusedError(429, str(error), "rate_limit_exceeded") from error
        shape = _Shape(body.model, chat, work)

        async def following() -> AsyncIterator[tuple[str, Any]]:
            """The job's events; it is given up when the client has gone or the time is over."""
            try:
                async with asyncio.timeout(time_limit):
                    while True:
                        kind, value = await events.get()
                        if kind == "error":
                            known = isinstance(value, CuelightError)
                            message = str(value) if known else f"the model failed ({type(value).__name__})"
                            raise _RefusedError(400 if known else 500, message)
                        yield kind, value
                        if kind == "end":
                            return
            except TimeoutError as error:
                raise _RefusedError(504, f"time limit: {time_limit:g} seconds are over") from error
            finally:
                job.cancelled = True

        if body.stream:
            return StreamingResponse(shape.stream(following()), media_type="text/event-stream")
        async for kind, value in following():
            if kind == "end":
                return shape.whole(value)
        raise _RefusedError(500, "the model said nothing")

    return app


async def _read(request: Request) -> _Body:
    try:
        return _Body.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "body"
        raise _RefusedError(
            400, f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}", field=field
        ) from error


class _Work:
    """What a request asks of which prompt."""

    def __init__(self, pool: Pool, name: str | None, ids: list[int], text: Any) -> None:
        self.pool, self.name, self.ids, self.text = pool, name, ids, text

    @staticmethod
    def of_text(pool: Pool, body: _Body, text: Any) -> _Work:
        """A text for the prompt ``body.model``, or for the backbone as it is."""
        if body.model == pool.backbone.id:
            if pool.backbone.kind not in ("causal", "seq2seq"):
                raise _RefusedError(
                    400, f"model: {body.model} is a {pool.backbone.kind} model and writes no text"
                )
            return _Work(pool, None, list(pool.backbone.tokenizer(text).input_ids), text)
        if body.model not in pool.prompts:
            names = [*pool.prompts, pool.backbone.id]
            hint = nearest(body.model, names)
            message = f"model: '{body.model}' is unknown{hint}; there are {', '.join(names)}"
            raise _RefusedError(404, message, "model_not_found", "model")
        try:
            return _Work(pool, body.model, pool.fed(body.model, text), text)
        except CuelightError as error:
            raise _RefusedError(400, str(error)) from error

    @staticmethod
    def of_messages(pool: Pool, body: _Body) -> _Work:
        """A conversation: all of it for the backbone, its one user message for a prompt."""
        messages: list[dict[str, Any]] = [
            {"role": m.get("role"), "content": _content(m.get("content"))} for m in body.messages or ()
        ]
        if body.model == pool.backbone.id and pool.backbone.tokenizer.chat_template:
            plain = [{**m, "content": " ".join(m["content"])} for m in messages]
            tokenizer = pool.backbone.tokenizer
            text = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
            return _Work(pool, None, list(tokenizer(text, add_special_tokens=False).input_ids), text)
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise _RefusedError(
                400,
                f"messages: '{body.model}' was learned on its own template; give one message of role 'user' and "
                "no system message",
                field="messages",
            )
        parts = messages[0]["content"]
        return _Work.of_text(pool, body, parts[0] if len(parts) == 1 else tuple(parts))

    def job(self, body: _Body, emit: Any) -> Job:
        """The engine's job for it."""
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        most = body.max_completion_tokens or body.max_tokens
        if body.echo and body.messages is None:
            return Job(emit, work=lambda: self._echo(bool(most)))
        if self.name is None:
            if self.pool.backbone.kind == "causal":
                job = Job(emit, ids=self.ids, max_tokens=most or 128)
            else:
                return Job(emit, work=lambda: self._plain(most or 128))
        else:
            method = self.pool.prompt(self.name).method
            writes = method.task.kind == "generation" and self.pool.backbone.kind == "causal"
            if not (writes and self.pool.mixes(self.name)):
                return Job(emit, work=self._predicted)
            job = Job(
                emit,
                ids=self.ids,
                condition=self.pool.condition(self.name),
                max_tokens=most or method.task.config.max_new_tokens,
            )
        job.temperature, job.top_p, job.stop, job.seed = body.temperature, body.top_p, stop, body.seed
        return job

    def check_echo(self, body: _Body) -> None:
        """Refuse what an echo can not be asked with."""
        if self.name is not None or self.pool.backbone.kind != "causal":
            raise _RefusedError(
                400, f"echo: needs a causal model without a prompt, not {body.model}", field="echo"
            )
        if body.logprobs is None or body.stream or (body.max_tokens or 0) > 1:
            raise _RefusedError(400, "echo: needs logprobs, max_tokens 0 or 1, and no stream", field="echo")

    def _echo(self, goes_on: bool) -> dict[str, Any]:
        """The prompt with the log-probability of each token, and with the likeliest next one if it ``goes_on``."""
        import torch

        backbone = self.pool.backbone
        spans = backbone.tokenizer(self.text, return_offsets_mapping=True).offset_mapping
        ids = torch.tensor([self.ids], device=backbone.device)
        columns = torch.arange(len(self.ids), device=backbone.device)
        with backbone.scoring(columns * 0, columns):
            table = backbone.model(input_ids=ids).logits.float().log_softmax(-1)
        values = [None, *table[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()]
        tokens, starts, text = [self.text[a:b] for a, b in spans], [a for a, _ in spans], self.text
        if goes_on:
            value, best = table[-1].max(-1)
            more = backbone.tokenizer.decode([int(best)], skip_special_tokens=True)
            tokens, starts, values = [*tokens, more], [*starts, len(text)], [*values, float(value)]
            text += more
        logprobs = {"tokens": tokens, "token_logprobs": values, "text_offset": starts, "top_logprobs": None}
        return {"answer": text, "probabilities": None, "logprobs": logprobs, "count": int(goes_on)}

    def _predicted(self) -> dict[str, Any]:
        """A class, a list of labels, or what a method with weights of its own writes."""
        assert self.name is not None
        task = self.pool.prompt(self.name).method.task
        scored = task.kind == "classification"
        found = self.pool.predict([(self.name, self.text)], probabilities=scored)[0]
        return found if scored else {"answer": found, "probabilities": None}

    def _plain(self, most: int) -> dict[str, Any]:
        import torch

        from cuelight.prompts.conditioning import Condition, TextBatch, generate

        ids = torch.tensor([self.ids], device=self.pool.backbone.device)
        said = generate(
            self.pool.backbone, TextBatch(ids, torch.ones_like(ids)), Condition(), max_new_tokens=most
        )
        text = self.pool.backbone.tokenizer.decode(said[0], skip_special_tokens=True)
        return {"answer": text, "probabilities": None}


def _content(content: Any) -> list[str]:
    """A message's text, or its text parts (two for tasks on pairs)."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    if not parts or any(not isinstance(p, dict) or p.get("type") != "text" for p in parts):
        raise _RefusedError(400, "messages: content must be text, or parts of type 'text'", field="messages")
    return [str(p.get("text", "")) for p in parts]


class _Shape:
    """Answers as OpenAI's clients read them."""

    def __init__(self, model: str, chat: bool, work: _Work) -> None:
        self.model, self.chat, self.work = model, chat, work
        self.id, self.created = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", int(time.time())

    def _frame(self, choice: dict[str, Any], chunk: bool, **more: Any) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": [{"index": 0, "logprobs": None, **choice}], **more}

    def _read(self, value: Any) -> tuple[str, str, int, dict[str, Any]]:
        """Text, reason, tokens and what else there is to say of an end."""
        if isinstance(value, tuple):
            return (*value, {})
        answer = value["answer"]
        text = answer if isinstance(answer, str) else "; ".join(answer)
        more = (
            {} if value["probabilities"] is None else {"cuelight": {"probabilities": value["probabilities"]}}
        )
        return (
            text,
            "stop",
            len(self.work.pool.backbone.tokenizer(text, add_special_tokens=False).input_ids),
            more,
        )

    def whole(self, value: Any) -> dict[str, Any]:
        """The answer in one piece."""
        text, reason, count, more = self._read(value)
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": text}}
        elif isinstance(value, dict) and "logprobs" in value:
            said["logprobs"], count = value["logprobs"], value["count"]
        read = len(self.work.ids)
        usage = {"prompt_tokens": read, "completion_tokens": count, "total_tokens": read + count}
        return self._frame({**said, "finish_reason": reason}, False, usage=usage, **more)

    async def stream(self, events: AsyncIterator[tuple[str, Any]]) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        told = ""

        def event(piece: str, reason: str | None, first: bool, more: dict[str, Any]) -> str:
            role = {"role": "assistant"} if first else {}
            said = {"delta": {**role, "content": piece}} if self.chat else {"text": piece}
            return f"data: {json.dumps(self._frame({**said, 'finish_reason': reason}, True, **more))}\n\n"

        first = True
        try:
            async for kind, value in events:
                text, reason, _, more = (value, None, 0, {}) if kind == "token" else self._read(value)
                if kind == "end" or len(text) > len(told):
                    yield event(text[len(told) :], reason, first, more)
                    told, first = text, False
        except _RefusedError as error:
            yield f"data: {json.dumps({'error': error.body})}\n\n"
        yield "data: [DONE]\n\n"
