"""The ledger: one line of JSON for every call, in a file that only grows."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cuelight.errors import ConfigError

__all__ = ["Ledger"]


class Ledger:
    """Appends to a file; several processes may write to the same one.

    Raises:
        ConfigError: the file can not be written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.write()

    def write(self, *entries: dict[str, Any]) -> None:
        """Add entries, each with the time in front; whole lines, in one write."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = "".join(json.dumps({"time": now, **entry}, ensure_ascii=False) + "\n" for entry in entries)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(handle, lines.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise ConfigError(
                f"ledger: '{self.path}' can not be written to ({error.strerror}); give another file"
            ) from error
