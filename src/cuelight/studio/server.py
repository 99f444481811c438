"""A page for `cuelight.Promptor`: the conversation lives here, the page shows it and sends what the designer does.

One thing is done at a time, in a thread of its own, so that the page can look at the state while a model works, and be
closed and opened again.  Only requests from the page itself are taken: the ``Host`` and ``Origin`` headers must name the
place that is listened on.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict

from cuelight.conversation.promptor import Promptor
from cuelight.conversation.state import SLOTS, Verdict, best_version, load_cases
from cuelight.errors import ConfigError, CuelightError

__all__ = ["application", "view"]

PAGE = Path(__file__).parent / "page"
_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'none'"
_LARGEST, _AT_ONCE = 4 * 2**20, 0.25


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Reply(_Body):
    """One of three: text, examples, a verdict."""

    text: str | None = None
    examples: list[dict[str, str]] | None = None
    verdict: Verdict | None = None


class _Slot(_Body):
    slot: str
    text: str


class _Text(_Body):
    text: str


class _File(_Body):
    name: str
    text: str


class _Values(_Body):
    values: dict[str, str]


class _Work:
    """The agent, and what is being done with it."""

    def __init__(self, agent: Promptor) -> None:
        self.agent, self.step, self.error = agent, "", ""
        self.lock = threading.Lock()
        agent.on_step = self.tell

    def tell(self, text: str) -> None:
        self.step = text

    def begin(self, action: Callable[[], Any]) -> None:
        """Do ``action`` in a thread; what is done at once is waited for, so that a mistake is answered as one.

        Raises:
            ConfigError: something is being done already, or ``action`` was a mistake.
        """
        if not self.lock.acquire(blocking=False):
            raise ConfigError(f"busy: {self.step or 'a model is working'}; wait until it is done")
        self.error, self.step = "", "thinking"

        def work() -> None:
            try:
                action()
            except CuelightError as error:
                self.error = str(error)
            except Exception as error:
                self.error = f"{type(error).__name__}: {str(error)[:300]}; this is a defect of cuelight"
            finally:
                self.step = ""
                self.lock.release()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(_AT_ONCE)
        if not thread.is_alive() and self.error and self.agent.waiting:
            mistake, self.error = self.error, ""
            raise ConfigError(mistake)


def application(agent: Promptor, *, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> FastAPI:
    """The web application over ``agent``.

    Args:
        hosts: names the page may be asked for under; ``*`` takes any.
    """
    app = FastAPI(title="cuelight studio", docs_url=None, redoc_url=None, openapi_url=None)
    work = _Work(agent)

    @app.middleware("http")
    async def guarded(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        host = urlsplit(f"//{request.headers.get('host', '')}")
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host.netloc
        if ("*" not in hosts and host.hostname not in hosts) or foreign:
            return JSONResponse({"error": "host: this page is not served under that name"}, 403)
        if int(request.headers.get("content-length") or 0) > _LARGEST:
            return JSONResponse({"error": "file: is larger than 4 MB; give fewer examples"}, 413)
        response = await call(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.exception_handler(CuelightError)
    async def refused(_: Request, error: CuelightError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409 if str(error).startswith("busy") else 400)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return JSONResponse({"error": f"{where}: {first['msg'].lower()}"}, 400)

    def begun(action: Callable[[], Any]) -> dict[str, Any]:
        work.begin(action)
        return seen()

    def seen() -> dict[str, Any]:
        return {**view(agent), "busy": work.step, "error": work.error}

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        path = PAGE / name
        if path.parent != PAGE or not path.is_file():
            return JSONResponse({"error": f"there is no {name}"}, 404)
        return FileResponse(path)

    @app.get("/api/state")
    async def state() -> dict[str, Any]:
        return seen()

    @app.get("/prompt.txt")
    async def prompt() -> Response:
        if not agent.prompt:
            raise ConfigError("prompt: there is none yet; answer what is asked first")
        where = {"Content-Disposition": "attachment; filename=prompt.txt"}
        return PlainTextResponse(agent.prompt, headers=where)

    @app.post("/api/reply")
    def reply(body: _Reply) -> dict[str, Any]:
        given = [part for part in (body.text, body.examples, body.verdict) if part is not None]
        if len(given) != 1:
            raise ConfigError("reply: give one of text, examples and verdict")
        return begun(lambda: agent.reply(given[0]))

    @app.post("/api/file")
    def file(body: _File) -> dict[str, Any]:
        suffix = Path(body.name).suffix
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"examples{suffix}"
            path.write_text(body.text, encoding="utf-8")
            try:
                rows = load_cases(path, agent.config.fields)
            except CuelightError as error:
                raise ConfigError(str(error).replace(str(path), body.name)) from error
        return begun(lambda: agent.reply(rows))

    @app.post("/api/suggest")
    def suggest() -> dict[str, Any]:
        return begun(agent.suggest)

    @app.post("/api/slot")
    def slot(body: _Slot) -> dict[str, Any]:
        return begun(lambda: agent.set_slot(body.slot, body.text))

    @app.post("/api/version")
    def version(body: _Text) -> dict[str, Any]:
        return begun(lambda: agent.add_version(body.text))

    @app.post("/api/more")
    def more() -> dict[str, Any]:
        return begun(agent.more)

    @app.post("/api/retry")
    def retry() -> dict[str, Any]:
        return begun(agent.run)

    @app.post("/api/restart")
    def restart() -> dict[str, Any]:
        return begun(agent.restart)

    @app.post("/api/try")
    def attempt(body: _Values) -> dict[str, Any]:
        if not work.lock.acquire(blocking=False):
            raise ConfigError(f"busy: {work.step or 'a model is working'}; wait until it is done")
        try:
            return {"answer": agent.predict([body.values])[0]}
        finally:
            work.lock.release()

    if not agent.waiting:
        work.begin(agent.run)
    return app


def view(agent: Promptor) -> dict[str, Any]:
    """The conversation as the page shows it."""
    state = (
        agent.state
    )  # replaced as a whole after every step, never changed: safe to read from another thread
    best = best_version(state)
    turn = agent.turn if agent.waiting else None
    spent = agent.target.meter.spent
    return {
        "turn": turn.model_dump() if turn else None,
        "phase": state.phase,
        "steps": state.steps,
        "slots": [
            {"name": name, "title": slot.title, "question": slot.question, "text": state.brief.get(name)}
            for name, slot in SLOTS.items()
        ],
        "asked": state.slot if state.phase == "answer" else "",
        "dialogue": [line.model_dump() for line in state.dialogue],
        "cases": [{"number": n, **case.model_dump()} for n, case in enumerate(state.cases)],
        "versions": [
            {**version.model_dump(), "score": version.score, "best": number == best}
            for number, version in enumerate(state.versions)
        ],
        "best": best,
        "prompt": agent.prompt,
        "reported": state.reported,
        "round": state.round,
        "rounds": state.rounds_allowed,
        "fields": list(state.config.fields),
        "metric": state.metric,
        "agent": agent.lm.name,
        "target": agent.target.name,
        "projected": agent.projected(),
        "calls": state.calls,
        "failures": state.failures,
        "spent": asdict(spent),
        "folder": str(agent.folder) if agent.folder else "",
    }
