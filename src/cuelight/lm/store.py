"""Answers on disk: a table in SQLite from the hash of a request to its answer.

SQLite's write-ahead log lets several processes read and write at once, and a process that is killed at any moment
leaves a whole table with every answer it had stored.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from cuelight.cache import cache_dir
from cuelight.errors import CuelightError

__all__ = ["Store"]

_AT_ONCE = 500  # parameters of one query


class Store:
    """What was answered before, in ``<folder>/answers.sqlite``.

    Args:
        folder: created if missing; without one, ``lm`` in cuelight's cache.

    Raises:
        CuelightError: the folder can not be written to, or holds something else under that name.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = cache_dir("lm") if folder is None else Path(folder).expanduser()
        self.path = self.folder / "answers.sqlite"
        self._lock = threading.Lock()
        self._made: tuple[int, sqlite3.Connection] | None = None
        with self._lock:
            self._connection()

    def get(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The answers there are for ``keys``."""
        found: dict[str, dict[str, Any]] = {}
        with self._lock:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"
                rows = self._tried(lambda c, query=query, part=part: c.execute(query, part).fetchall())
                found.update((key, json.loads(answer)) for key, answer in rows)
        return found

    def put(self, answers: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Remember answers, in one transaction; the first answer of a key stays."""
        now = time.time()
        rows = [(key, json.dumps(answer, ensure_ascii=False), now) for key, answer in answers]

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)

        with self._lock:
            self._tried(write)

    def __len__(self) -> int:
        with self._lock:
            return int(self._tried(lambda c: c.execute("SELECT count(*) FROM answers").fetchone()[0]))

    def _tried(self, act: Any) -> Any:
        try:
            return act(self._connection())
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _connection(self) -> sqlite3.Connection:
        """This process's connection; one that a fork brought along is left alone."""
        if self._made is None or self._made[0] != os.getpid():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                made = sqlite3.connect(self.path, timeout=60.0, check_same_thread=False)
                # Changing to the write-ahead log is the one thing SQLite does not wait for others with.
                with FileLock(self.folder / "answers.lock"):
                    made.execute("PRAGMA journal_mode=WAL")
                    made.execute("PRAGMA synchronous=NORMAL")
                    made.execute(
                        "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT, made REAL) "
                        "WITHOUT ROWID"
                    )
                    made.commit()
            except (OSError, sqlite3.Error) as error:
                raise self._error(error) from error
            self._made = os.getpid(), made
        return self._made[1]

    def _error(self, error: Exception) -> CuelightError:
        return CuelightError(
            f"cache: '{self.path}' can not be used ({error}); give another folder, or none with --no-cache"
        )
