"""A real HTTP server on loopback that speaks OpenAI's protocol, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Faulty"]


class Faulty(ThreadingHTTPServer):
    """An OpenAI-compatible server that misbehaves as told, request after request, and then behaves.

    Attributes:
        script: what to do with the next requests: ``429``, ``500``..., ``half``, ``garbage``, ``empty``, ``nothing``,
            ``late``, ``drip``, ``much``; or a dictionary, sent as it is.
        say: what it answers to a body when it behaves.
        seen: the bodies that came, with the times they came at; ``peak``: most requests at a time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Any] = []
        self.seen: list[tuple[float, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.say: Callable[[dict[str, Any]], str] = lambda body: f"said {asked(body)}"
        self.delay, self.now, self.peak = 0.0, 0, 0
        self.lock = threading.Lock()

    @property
    def spec(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1#small"

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are expected."""


class Handler(BaseHTTPRequestHandler):
    server: Faulty
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.seen.append((time.monotonic(), body))
            self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
            act = self.server.script.pop(0) if self.server.script else None
            self.server.now += 1
            self.server.peak = max(self.server.peak, self.server.now)
        try:
            time.sleep(self.server.delay)
            self.act(act, body)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def act(self, act: Any, body: dict[str, Any]) -> None:
        good = json.dumps(answered(body, self.server.say(body))).encode()
        if isinstance(act, dict):
            self.say(200, json.dumps(act).encode())
        elif isinstance(act, tuple):  # status, message, headers
            error = {"error": {"message": act[1], "type": "x", "param": None, "code": None}}
            self.say(act[0], json.dumps(error).encode(), act[2] if len(act) > 2 else {})
        elif act == "half":
            self.say(200, good[: len(good) // 2], length=len(good))
            self.close_connection = True
        elif act == "garbage":
            self.say(200, b"<html>Bad gateway</html>")
        elif act == "empty":
            self.say(200, b"")
        elif act == "nothing":
            self.close_connection = True
        elif act == "late":
            time.sleep(1.5)
            self.say(200, good)
        elif act == "drip":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        elif act == "much":
            self.send_response(200)
            self.send_header("content-length", str(2**40))
            self.end_headers()
            while True:
                self.wfile.write(b" " * 2**16)
        else:
            self.say(200, good)

    def say(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)


def asked(body: dict[str, Any]) -> str:
    """The prompt, or the last message."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def answered(body: dict[str, Any], text: str) -> dict[str, Any]:
    choice = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": len(asked(body).split()), "completion_tokens": len(text.split())}
    usage["total_tokens"] = sum(usage.values())
    kind = "text_completion" if "prompt" in body else "chat.completion"
    choices = [{"index": 0, "finish_reason": "stop", **choice}]
    return {"id": "x", "object": kind, "created": 0, "model": "small", "choices": choices, "usage": usage}
