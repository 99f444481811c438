"""What the user sees while a built-in backbone is made: a bar on a terminal, else one line per phase."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

__all__ = ["Progress"]


class Progress:
    """Reports on stderr, and says nothing at all when ``enabled`` is false."""

    def __init__(self, name: str, *, enabled: bool) -> None:
        self._name, self._enabled = name, enabled
        self._bar = None
        if enabled and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, text: str, *, total: int | None = None) -> None:
        """Begin a phase; ``total`` is its length in bytes where that is known."""
        if self._bar is not None:
            self._bar.remove_task(self._task)  # a task's length can not be made unknown again
            self._task = self._bar.add_task(f"{self._name}: {text}", total=total)
        elif self._enabled:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def reached(self, completed: int) -> None:
        """Say how many bytes of the phase are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed)
