"""What a watcher sees of a run: a live line on the terminal, and ``log.jsonl`` for programs.

Neither is part of the run's state.  The log is cut back to the checkpoint when a run is resumed.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cuelight.errors import CuelightError

__all__ = ["Log", "Watcher"]


class Watcher:
    """Shows stage, step, smoothed loss, rate, validation metric and time left on stderr.

    A terminal gets one live line per stage, anything else a plain line about every tenth of a stage.
    """

    def __init__(self, enabled: bool) -> None:
        self.console = Console(stderr=True)
        self.enabled = enabled
        self.live = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task: TaskID | None = None
        self.smooth: float | None = None
        self.validation = ""

    def __enter__(self) -> Self:
        if self.enabled and self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled and self.console.is_terminal:
            self.live.stop()

    def stage(self, name: str, step: int, total: int) -> None:
        """Start the line of a stage at ``step`` of ``total``."""
        self.name, self.total, self.smooth, self.validation = name, total, None, ""
        self.began, self.first = time.monotonic(), step
        if self.enabled and self.console.is_terminal:
            self.task = self.live.add_task(name, total=total, completed=step, numbers="")

    def step(self, step: int, loss: float, rate: float) -> None:
        """One optimiser step is done."""
        self.smooth = loss if self.smooth is None else 0.9 * self.smooth + 0.1 * loss
        if not self.enabled:
            return
        numbers = f"loss {self.smooth:.4g}  lr {rate:.3g}{self.validation}"
        if self.console.is_terminal and self.task is not None:
            self.live.update(self.task, completed=step, numbers=numbers)
        elif step % max(1, math.ceil(self.total / 10)) == 0 or step == self.total:
            seconds = (time.monotonic() - self.began) / max(1, step - self.first) * (self.total - step)
            line = f"{self.name}  {step}/{self.total}  {numbers}  {seconds:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def evaluated(self, monitor: str, value: float) -> None:
        """An evaluation gave ``value``."""
        self.validation = f"  {monitor} {value:.4g}"

    def say(self, line: str) -> None:
        """Print a line beside the live one."""
        if self.enabled:
            self.console.print(line, highlight=False, markup=False)

    def shout(self, line: str) -> None:
        """Print a line from within a signal handler, where Python's own streams may be busy."""
        if self.enabled:
            os.write(2, f"\n{line}\n".encode())


class Log:
    """Appends JSON objects to a file, one a line; does nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.file: TextIO | None = None

    def repair(self, stages: list[str], stage: int, step: int) -> None:
        """Drop half-written lines and what lies beyond ``step`` of ``stage``, then open for appending.

        Raises:
            CuelightError: the file can not be written.
        """
        if self.path is None:
            return
        try:
            old = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            good = [line for line in old if _belongs(line, stages, stage, step)]
            if good != old:
                temporary = self.path.with_name(f".{self.path.name}.tmp")
                temporary.write_bytes(b"".join(good))
                os.replace(temporary, self.path)
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            CuelightError: the disk is full.
        """
        if self.file is not None:
            try:
                self.file.write(json.dumps(_strict(entry)) + "\n")
                self.file.flush()
            except OSError as error:
                raise self._unwritable(error) from error

    def sync(self) -> None:
        """Bring every line to the disk, so that a checkpoint never knows more than the log."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            try:
                self.file.close()
            except OSError as error:
                raise self._unwritable(error) from error
            finally:
                self.file = None

    def _unwritable(self, error: OSError) -> CuelightError:
        return CuelightError(f"{self.path}: can not write the log ({error.strerror}); free disk space")


def _belongs(line: bytes, stages: list[str], stage: int, step: int) -> bool:
    try:
        entry = json.loads(line)
        place = (stages.index(entry["stage"]), entry["step"])
    except (ValueError, KeyError, TypeError):
        return False
    return line.endswith(b"\n") and place <= (stage, step)


def _strict(value: Any) -> Any:
    """JSON has no nan and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return value
