"""`compare`: several methods on one backbone and one data set, over seeds, as a table and a plot."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuelight.artifact import read_card
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.config import build, field_names, route, unknown
from cuelight.data import DataSpec, Splits
from cuelight.errors import ArtifactError, ConfigError, CuelightError
from cuelight.evaluation import tables
from cuelight.methods.base import Method, get_method
from cuelight.progress import say
from cuelight.tasks.kinds import make_task, task_options
from cuelight.training import TrainConfig
from cuelight.tuning import given_options, option_homes, read_rows, run_fingerprint, tune

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "Plan", "check_names", "compare", "names_of", "seeds_of"]


@dataclass
class Comparison(tables.Tabled):
    """What a comparison found.

    Attributes:
        backbone, data: what was compared on.
        metric: the figure that heads the table and is plotted.
        seeds: the seeds of every method.
        runs: one dictionary per run: ``method``, ``seed``, ``metrics``, ``trainable``, ``seconds``,
            ``peak_memory`` (bytes), ``resumed`` (its figures were read, not made anew).
    """

    backbone: str
    data: str
    metric: str
    seeds: tuple[int, ...]
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per method, see `cuelight.evaluation.tables.summary`."""
        return tables.summary(self.runs, self.metric)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`frame` as dictionaries."""
        return [{str(k): v for k, v in row.items()} for row in self.frame.to_dict("records")]

    @property
    def title(self) -> str:
        """Backbone, data and number of seeds, in a line."""
        count = len(self.seeds)
        return f"{self.backbone} on {self.data}, {count} seed{'s' if count != 1 else ''}"

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything, the raw figures of every run included, as JSON; also written to ``path``."""
        rows = [{k: None if v != v else v for k, v in row.items()} for row in self.rows]
        body = {
            "backbone": self.backbone,
            "data": self.data,
            "metric": self.metric,
            "seeds": list(self.seeds),
            "rows": rows,
            "runs": self.runs,
        }
        return tables.written(json.dumps(body, indent=2, ensure_ascii=False) + "\n", path)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """The main figure with every seed beside the training time, as a PNG file."""
        from cuelight.evaluation.plots import plot_comparison

        return plot_comparison(self.runs, self.metric, path, self.title)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Comparison:
        """A comparison from what `to_json` wrote.

        Raises:
            ArtifactError: not such a file, or a damaged one.
        """
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            seeds = tuple(body["seeds"])
            return Comparison(body["backbone"], body["data"], body["metric"], seeds, body["runs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"comparison {path}: can not be read ({error}); run the comparison again"
            ) from error


def compare(
    methods: Sequence[str] | str,
    *,
    backbone: Any,
    data: Any,
    seeds: int | Sequence[int] = 3,
    output: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    tokenizer: Any = None,
    progress: bool = False,
    restart: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **common: Any,
) -> Comparison:
    """Run `cuelight.tune` for every method and seed; a seed also draws the shots.

    Whatever can be refused is refused before anything is trained.  With ``output`` the same call goes on
    where it was interrupted: finished runs are not run again, their recorded figures are read.

    Args:
        methods: names, or one string ``"a,b"``.
        backbone, data, device, dtype, tokenizer: as for `cuelight.tune`; the backbone is loaded once.
        seeds: how many (0, 1, 2, ...), or which.
        output: every run is kept in ``output/<method>/seed<k>``.
        progress: show progress on stderr.
        restart: forget what ``output`` holds and begin anew.
        options: per-method overrides, ``{"dept": {"rank": 4}}``.
        **common: options of all runs; one that only some methods have goes to those.

    Raises:
        CuelightError: any mistake in the arguments, in one line.
    """
    names = names_of(methods)
    chosen = seeds_of(seeds, common)
    plans = [Plan(name, common, (options or {}).get(name, {})) for name in names]
    check_names(names, common, options or {})
    shared = route({k: v for k, v in common.items() if k in field_names(DataSpec)}, [DataSpec])[0]

    named = dict.fromkeys(name for plan in plans for name in plan.task.columns)
    if named and not isinstance(data, Splits):
        shared["columns"] = tuple(dict.fromkeys([*shared.get("columns", ()), *named]))

    def rows(seed: int) -> Splits:
        return read_rows(data, {**shared, "seed": seed})

    first = rows(chosen[0])
    host = load_backbone(backbone, device=device, dtype=dtype, tokenizer=tokenizer, progress=progress)
    metric = "accuracy"
    for plan in plans:
        with plan.learner(host, first, chosen[0]) as learner:
            metric = learner.task.metric
    folder = None if output is None else Path(output)
    done = {} if folder is None or restart else _finished(folder, plans, chosen, host, rows)
    result = Comparison(host.id, first.report.source, metric, chosen)
    if progress and done:
        say(f"{len(done)} of {len(plans) * len(chosen)} runs were finished before and are not run again")
    for seed in chosen:
        splits = rows(seed) if any((p.name, seed) not in done for p in plans) else first
        for plan in plans:
            found = done.get((plan.name, seed))
            if found is None:
                if progress:
                    say(f"{plan.name}, seed {seed}")
                place = None if folder is None else folder / plan.name / f"seed{seed}"
                found = _run(plan, host, splits, seed, place, progress, restart)
            result.runs.append({"method": plan.name, "seed": seed, **found})
    order = {name: k for k, name in enumerate(names)}
    result.runs.sort(key=lambda run: order[run["method"]])
    return result


class Plan:
    """One method with its options, checked.

    Attributes:
        kind: the method.
        options: what `tune` is called with, the data's options left out.
    """

    def __init__(self, name: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        self.name, self.kind = name, get_method(name)
        homes = [home for home in option_homes(name) if home is not DataSpec]
        fields = {f for home in homes for f in field_names(home)}
        for key in own:
            if key not in fields or key == "seed":
                raise ConfigError(f"{name}.{unknown(key, fields - {'seed'})}")
        self.options = {**{k: v for k, v in common.items() if k in fields}, **own}
        self.parts = route(self.options, homes)
        models: list[Any] = [build(home, part) for home, part in zip(homes, self.parts, strict=True)]
        self.training = next(m for m in models if isinstance(m, TrainConfig))
        self.task: Any = next(m for m in models if isinstance(m, task_options(self.kind.card.reads)))

    @contextmanager
    def learner(self, host: Backbone, splits: Splits, seed: int) -> Iterator[Method]:
        """The method on the backbone, for a look at it; its memory is let go behind the ``with``."""
        own = dict(self.parts[0])
        if "init_seed" in field_names(self.kind.Config):
            own.setdefault("init_seed", seed)
        yield self.kind(host, make_task(host, splits, self.task), build(self.kind.Config, own))
        _let_go()

    def given(self, seed: int) -> dict[str, Any]:
        """The training options as a card records them."""
        return given_options(
            build(TrainConfig, {**self.training.model_dump(exclude_unset=True), "seed": seed})
        )


def names_of(methods: Sequence[str] | str) -> list[str]:
    """Method names from a list or ``"a,b"``, each once.

    Raises:
        ConfigError: none, or an unknown one.
    """
    names = methods.split(",") if isinstance(methods, str) else list(methods)
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise ConfigError("methods: none given; name some, e.g. zero-shot,prompt-tuning")
    for name in names:
        get_method(name)
    return names


def seeds_of(seeds: int | Sequence[int], common: Mapping[str, Any]) -> tuple[int, ...]:
    """The seeds that a number or a list of them means.

    Raises:
        ConfigError: none, twice the same, or a ``seed`` among the common options.
    """
    if "seed" in common:
        raise ConfigError("seed: a comparison runs several; give seeds, as a number of them or a list")
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen) or any(not isinstance(s, int) or s < 0 for s in chosen):
        raise ConfigError(
            f"seeds: is {seeds!r}; give how many (1 or more), or different whole numbers from 0"
        )
    return chosen


def check_names(names: Sequence[str], common: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a common option that no method has, and overrides of methods that do not take part.

    Raises:
        ConfigError: names it.
    """
    fields = {f for name in names for home in option_homes(name) for f in field_names(home)} - {"seed"}
    for key in common:
        if key not in fields:
            raise ConfigError(unknown(key, fields))
    for name in options:
        if name not in names:
            raise ConfigError(f"options: '{name}' is not compared; compared are {', '.join(names)}")


def _finished(
    folder: Path, plans: Sequence[Plan], seeds: Sequence[int], host: Backbone, rows: Callable[[int], Splits]
) -> dict[tuple[str, int], dict[str, Any]]:
    """The figures of finished runs; a folder that holds another run is refused now, not in an hour."""
    done = {}
    for seed in seeds:
        there = [(plan, folder / plan.name / f"seed{seed}") for plan in plans]
        there = [(plan, place) for plan, place in there if (place / "cuelight.json").exists()]
        splits = rows(seed) if there else None
        for plan, place in there:
            assert splits is not None
            card = read_card(place)
            with plan.learner(host, splits, seed) as learner:
                same = card.get("run") == run_fingerprint(learner, splits)
            if not same or card.get("given") != plan.given(seed):
                raise ConfigError(
                    f"output: {place} holds another run; give another --output, or --restart to replace it"
                )
            figures = {k: card[k] for k in ("metrics", "trainable", "seconds", "peak_memory")}
            done[plan.name, seed] = {**figures, "resumed": True}
    return done


def _run(
    plan: Plan, host: Backbone, splits: Splits, seed: int, folder: Path | None, progress: bool, restart: bool
) -> dict[str, Any]:
    try:
        run = tune(
            plan.name,
            backbone=host,
            data=splits,
            output=folder,
            progress=progress,
            restart=restart,
            **{**plan.options, "seed": seed},
        )
    except CuelightError as error:
        raise type(error)(f"{plan.name}, seed {seed}: {error}") from error
    figures = {
        "metrics": run.metrics,
        "trainable": run.trainable,
        "seconds": round(run.seconds, 3),
        "peak_memory": run.peak_memory,
        "resumed": False,
    }
    del run
    _let_go()
    return figures


def _let_go() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
