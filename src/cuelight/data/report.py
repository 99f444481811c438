"""What reading did, in words: which columns and splits were taken and why, and what was left out.

A guess that nobody sees is a bug waiting in somebody's results, so every decision lands here.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Choice", "Report", "SplitReport"]


@dataclass(frozen=True)
class Choice:
    """One column taken for one role; ``why`` starts with ``given`` or ``guessed``."""

    column: str
    why: str


@dataclass
class SplitReport:
    """One split: where it came from, its rows, its rows per class (empty for generation)."""

    origin: str
    rows: int = 0
    per_class: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """What :func:`cuelight.data.read` decided; ``lines()`` is for people, ``to_dict()`` for files."""

    source: str
    kind: str = ""
    columns: dict[str, Choice] = field(default_factory=dict)
    splits: dict[str, SplitReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    provenance: str = ""
    licence: str = ""

    def note(self, text: str) -> None:
        """Add a remark once."""
        if text not in self.notes:
            self.notes.append(text)

    def drop(self, split: str, reason: str, count: int) -> None:
        """Count rows of ``split`` that were left out for ``reason``."""
        if count:
            dropped = self.splits[split].dropped
            dropped[reason] = dropped.get(reason, 0) + int(count)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out of all splits together, by reason."""
        total: Counter[str] = Counter()
        for split in self.splits.values():
            total.update(split.dropped)
        return dict(total)

    def lines(self) -> list[str]:
        """The report as short lines of text."""
        out = [f"{self.kind} data from {self.source}"]
        if self.provenance:
            out.append(f"provenance: {self.provenance}")
        if self.licence:
            out.append(f"licence: {self.licence}")
        out += [f"{role}: column '{choice.column}' ({choice.why})" for role, choice in self.columns.items()]
        for name, split in self.splits.items():
            line = f"{name}: {split.rows} rows ({split.origin})"
            if split.per_class:
                line += ": " + _shorten([f"{key} {count}" for key, count in split.per_class.items()])
            out.append(line)
            out += [f"{name}: {count} rows dropped: {reason}" for reason, count in split.dropped.items()]
        return out + [f"note: {text}" for text in self.notes]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers."""
        return dataclasses.asdict(self)


def _shorten(items: list[str], limit: int = 12) -> str:
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f", and {rest} more" if rest > 0 else "")
