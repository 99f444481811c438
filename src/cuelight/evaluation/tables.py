"""Tables of a comparison or a protocol: a row per method, each figure as mean and sample standard deviation over seeds."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from cuelight.cache import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Tabled", "cells", "markdown", "rich_table", "summary", "written"]

_STD = "_std"
_COSTS = {
    "trainable": ("trained values", "{:,.0f}"),
    "calls": ("calls", "{:,.1f}"),
    "read": ("tokens read", "{:,.0f}"),
    "written": ("tokens written", "{:,.0f}"),
    "prepared": ("calls beforehand", "{:,.0f}"),
    "cost": ("cost", "{:.6f}"),
    "seconds": ("seconds", "{:.1f}"),
    "memory_mb": ("peak MB", "{:,.0f}"),
}
"""Columns that say what a method took, with their headings; a comparison has some of them."""


def summary(runs: Sequence[Mapping[str, Any]], metric: str) -> pd.DataFrame:
    """One row per method in the order of ``runs``; ``metric`` is the first figure.

    Columns: ``method``, ``seeds``, for every figure its mean under its own name and ``<name>_std`` (NaN for
    one seed), and the means of what the runs say they took: ``trainable``, ``seconds`` and ``memory_mb`` of trained
    methods; ``calls``, ``read``, ``written``, ``prepared``, ``cost`` and ``seconds`` of strategies.
    """
    flat = pd.DataFrame([{"method": r["method"], **r["metrics"]} for r in runs])
    took = [{**r, "memory_mb": r["peak_memory"] / 2**20} if "peak_memory" in r else r for r in runs]
    kinds = [kind for kind in _COSTS if kind in took[0]]
    cost = pd.DataFrame([{"method": r["method"], **{kind: r[kind] for kind in kinds}} for r in took])
    names = sorted((str(c) for c in flat.columns if c != "method"), key=lambda c: c != metric)
    by_method = flat.groupby("method", sort=False)
    table = by_method.size().rename("seeds").to_frame()
    for name in names:
        table[name] = by_method[name].mean()
        table[name + _STD] = by_method[name].std(ddof=1)
    costs = cost.groupby("method", sort=False).mean()
    for kind in kinds:
        digits = {"trainable": 0, "memory_mb": 1, "cost": 8}.get(kind, 3)
        table[kind] = costs[kind].round(digits)
    if "trainable" in kinds:
        table["trainable"] = table["trainable"].astype("int64")
    return table.reset_index()


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows as people read them: ``0.871 ± 0.012``."""
    metrics = [c for c in table.columns if f"{c}{_STD}" in table.columns]
    costs = [kind for kind in _COSTS if kind in table.columns]
    lead = [c for c in ("setting",) if c in table.columns]
    head = [*lead, "method", "seeds", *metrics, *(_COSTS[kind][0] for kind in costs)]
    rows = []
    for record in table.to_dict("records"):
        row = [*(str(record[c]) for c in lead), str(record["method"]), str(record["seeds"])]
        row += [_spread(record[name], record[name + _STD]) for name in metrics]
        row += [_COSTS[kind][1].format(record[kind]) for kind in costs]
        rows.append(row)
    return head, rows


def rich_table(table: pd.DataFrame, title: str = "") -> Table:
    """The table for a terminal."""
    from rich.table import Table

    head, rows = cells(table)
    out = Table(title=title or None, title_justify="left")
    for k, name in enumerate(head):
        out.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
    for row in rows:
        out.add_row(*row)
    return out


def markdown(table: pd.DataFrame) -> str:
    """The table for a document."""
    head, rows = cells(table)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _spread(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


class Tabled:
    """What has a table, and shows and writes it."""

    @property
    def frame(self) -> pd.DataFrame:
        """The table."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What stands above it, in a line."""
        raise NotImplementedError

    def table(self) -> Table:
        """The table for a terminal (``rich.print`` it)."""
        return rich_table(self.frame, self.title)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """`frame` as CSV, also written to ``path``."""
        buffer = io.StringIO()
        self.frame.to_csv(buffer, index=False)
        return written(buffer.getvalue(), path)

    def to_markdown(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table for a document, also written to ``path``."""
        return written(markdown(self.frame), path)


def written(text: str, path: str | os.PathLike[str] | None) -> str:
    """``text``, also written to ``path``, whole or not at all."""
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text
