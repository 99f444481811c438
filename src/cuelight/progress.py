"""Progress on the terminal, for everything that takes long and is not training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

__all__ = ["Bar", "say", "track"]

T = TypeVar("T")


def say(line: str) -> None:
    """A line on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


def track(items: Sequence[T], what: str | None) -> Iterable[T]:
    """``items`` with a bar and the time left on stderr; plain ``items`` without a name or a terminal."""
    if what is None or len(items) < 2 or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, description=what, console=Console(stderr=True), transient=True)


class Bar:
    """A bar on stderr for work that is counted as it is done; none without a name or a terminal.

    ``total`` None is work of unknown length.
    """

    def __init__(self, what: str | None, total: int | None = None) -> None:
        self._shown: Any = None
        if what is None or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._shown = Progress(
            *columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True
        )
        self._task = self._shown.add_task(what, total=total, note="")
        self._shown.start()

    def advance(self, note: str = "", by: int = 1) -> None:
        """Count ``by`` more; ``note`` stands behind the bar."""
        if self._shown is not None:
            self._shown.update(self._task, advance=by, note=note)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None
