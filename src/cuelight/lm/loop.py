"""The event loop all calls run on, in a thread of its own.

Synchronous callers wait for it, also where an event loop runs already (a notebook); asynchronous callers await it.
So the connections to a server, and all meters, live in one loop whoever calls.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["awaited", "wait_for"]

T = TypeVar("T")
_lock = threading.Lock()
_loop: tuple[int, asyncio.AbstractEventLoop] | None = None


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` and return its result; Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _running())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def awaited(work: Coroutine[Any, Any, T]) -> T:
    """The same for a caller that runs in an event loop."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _running()))


def _running() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None or _loop[0] != os.getpid():  # threads do not survive a fork
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="cuelight-lm", daemon=True).start()
            _loop = os.getpid(), loop
        return _loop[1]
