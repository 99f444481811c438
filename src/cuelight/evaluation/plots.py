"""Plots as PNG files: a comparison of methods, and the curve of one training.  No display is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cuelight.cache import atomic_write
from cuelight.errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_attention", "plot_comparison", "plot_curves", "plot_figures", "plot_training", "read_log"]

_INK, _SOFT, _SECOND = "#1f4e79", "#8fb3d9", "#b8860b"
_FIRST = ("accuracy", "micro_f1", "rouge_l", "validation_loss")


def plot_comparison(
    runs: Sequence[Mapping[str, Any]],
    metric: str,
    path: str | os.PathLike[str],
    title: str = "",
    cost: tuple[str, str] = ("seconds", "training seconds (mean)"),
) -> Path:
    """``metric`` of every method (mean, standard deviation, every seed a dot) beside its ``cost``: field and label."""
    methods = list(dict.fromkeys(str(r["method"]) for r in runs))
    figure = _figure(10, 1.7 + 0.45 * len(methods))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, method in enumerate(methods):
        mine = [r for r in runs if r["method"] == method]
        values = np.array([r["metrics"].get(metric, np.nan) for r in mine], dtype=float)
        deviation = values.std(ddof=1) if len(values) > 1 else 0.0
        left.errorbar(
            values.mean(), place, xerr=deviation, fmt="D", color=_INK, capsize=4, markersize=6, zorder=3
        )
        offsets = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
        left.scatter(values, place + offsets, s=16, color=_SOFT, zorder=2)
        paid = float(np.mean([r[cost[0]] for r in mine]))
        right.barh(place, paid, height=0.5, color=_SOFT)
        right.annotate(f" {paid:,.1f}", (paid, place), va="center", fontsize=8)
    left.set_yticks(range(len(methods)), methods)
    left.set_ylim(len(methods) - 0.5, -0.5)
    left.set_xlabel(f"{metric.replace('_', ' ')} (mean, standard deviation, every seed)")
    right.set_xlabel(cost[1])
    right.margins(x=0.18)
    for axis in (left, right):
        _tidy(axis, "x")
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def plot_attention(
    picture: np.ndarray,
    rows: Sequence[Sequence[tuple[str, np.ndarray]]],
    path: str | os.PathLike[str],
    title: str = "",
) -> Path:
    """The picture ``[H, W, 3]``, then maps ``[h, w]`` over it, row by row, each under its name."""
    across = max(len(row) for row in rows)
    figure = _figure(1.5 * across + 0.4, 1.75 * len(rows) + 0.4)
    axes = figure.subplots(len(rows), across, squeeze=False)
    height, width = picture.shape[:2]
    for line, row in zip(axes, rows, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, (name, grid) in zip(line, row, strict=False):
            axis.imshow(picture)
            axis.set_title(name, fontsize=7)
            if grid.size:
                spread = (grid - grid.min()) / max(float(grid.max() - grid.min()), 1e-12)
                axis.imshow(
                    spread, cmap="inferno", alpha=0.55, extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                    interpolation="bilinear",
                )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=9)
    return _save(figure, path)


def plot_curves(
    runs: Sequence[Mapping[str, Any]], metric: str, path: str | os.PathLike[str], title: str = ""
) -> Path:
    """``metric`` over the runs' ``setting`` (numbers, on a scale of powers of 2), a line a method, seeds as dots."""
    figure = _figure(7, 4.2)
    axis = figure.subplots()
    for method in dict.fromkeys(str(r["method"]) for r in runs):
        mine = [r for r in runs if r["method"] == method]
        places = sorted({int(r["setting"]) for r in mine})
        table = [[r["metrics"][metric] for r in mine if int(r["setting"]) == k] for k in places]
        deviation = [np.std(row, ddof=1) if len(row) > 1 else 0.0 for row in table]
        line = axis.errorbar(
            places,
            [np.mean(row) for row in table],
            yerr=deviation,
            marker="o",
            markersize=4,
            capsize=3,
            label=method,
        )
        for k, row in zip(places, table, strict=True):
            axis.scatter([k] * len(row), row, s=8, color=line[0].get_color(), alpha=0.4)
    axis.set_xscale("log", base=2)
    ticks = sorted({int(r["setting"]) for r in runs})
    axis.set_xticks(ticks, [str(k) for k in ticks])
    axis.set_xlabel("training rows a class")
    axis.set_ylabel(f"{metric.replace('_', ' ')} (mean, standard deviation, every seed)")
    axis.legend(frameon=False, fontsize=8)
    _tidy(axis, "both")
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def plot_figures(runs: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], title: str = "") -> Path:
    """A panel for every figure: each method's mean, standard deviation, and every seed a dot."""
    methods = list(dict.fromkeys(str(r["method"]) for r in runs))
    names = list(dict.fromkeys(name for r in runs for name in r["metrics"]))
    figure = _figure(2.2 + 2.1 * len(names), 1.7 + 0.45 * len(methods))
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axis, name in zip(axes, names, strict=True):
        for place, method in enumerate(methods):
            found = [r["metrics"].get(name, np.nan) for r in runs if r["method"] == method]
            values = np.array(found, dtype=float)
            deviation = values.std(ddof=1) if len(values) > 1 else 0.0
            axis.errorbar(
                values.mean(), place, xerr=deviation, fmt="D", color=_INK, capsize=4, markersize=5, zorder=3
            )
            offsets = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
            axis.scatter(values, place + offsets, s=14, color=_SOFT, zorder=2)
        axis.set_title(name.replace("_", " "), fontsize=9)
        _tidy(axis, "x")
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def plot_training(folder: str | os.PathLike[str], path: str | os.PathLike[str], title: str = "") -> Path:
    """Loss, and the validation figure where there is one, over the steps of the run in ``folder``.

    Raises:
        ArtifactError: ``folder`` holds no training log.
    """
    entries = read_log(Path(folder))
    ends: dict[str, int] = {}  # a stage's steps begin after those of the stages before
    for entry in entries:
        ends[entry["stage"]] = max(ends.get(entry["stage"], 0), entry["step"])
    starts = dict(zip(ends, np.cumsum([0, *ends.values()]).tolist(), strict=False))
    steps = [starts[e["stage"]] + e["step"] for e in entries]
    watched = [(step, e["validation"]) for step, e in zip(steps, entries, strict=True) if e.get("validation")]
    panels = 2 if watched else 1
    figure = _figure(8, 2.4 * panels + 0.6)
    axes = np.atleast_1d(figure.subplots(panels, 1, sharex=True))
    known = [(s, e["loss"]) for s, e in zip(steps, entries, strict=True) if e.get("loss") is not None]
    axes[0].plot([s for s, _ in known], [v for _, v in known], color=_INK, marker=".", markersize=4)
    axes[0].set_ylabel("training loss")
    if watched:
        name = _watched_figure(watched[-1][1])
        points = [(s, v[name]) for s, v in watched if v.get(name) is not None]
        axes[1].plot([s for s, _ in points], [v for _, v in points], color=_SECOND, marker="o", markersize=4)
        axes[1].set_ylabel(
            name.replace("_", " ") if "validation" in name else f"validation {name.replace('_', ' ')}"
        )
    for axis in axes:
        _tidy(axis, "both")
        for name, start in starts.items():
            if start:
                axis.axvline(start, color="0.6", linewidth=1, linestyle="--")
            if len(starts) > 1 and axis is axes[0]:
                axis.annotate(
                    f" {name}", (start, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8
                )
    axes[-1].set_xlabel("optimiser step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's training log.

    Raises:
        ArtifactError: there is none, or nothing readable in it.
    """
    file = folder / "training" / "log.jsonl"
    if not file.exists():
        raise ArtifactError(
            f"folder {folder}: has no training/log.jsonl; give the --output of a run that trained by gradient"
        )
    entries = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # an interrupt may leave half a line
            continue
        if isinstance(entry, dict) and {"stage", "step"} <= entry.keys():
            entries.append(entry)
    if not entries:
        raise ArtifactError(f"folder {folder}: its training/log.jsonl is empty; train some steps first")
    return entries


def _watched_figure(validation: Mapping[str, Any]) -> str:
    return next((name for name in _FIRST if name in validation), next(iter(validation)))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _tidy(axis: Axes, grid: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)


def _save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return Path(path)
