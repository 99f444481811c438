"""Progress on the terminal, for everything that takes long and is not training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")


def track(items: Sequence[T], what: str | None) -> Iterable[T]:
    """``items`` with a bar and the time left on stderr; plain ``items`` without a name or a terminal."""
    if what is None or len(items) < 2 or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, description=what, console=Console(stderr=True), transient=True)
