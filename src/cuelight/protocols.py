"""The protocols that methods of the CLIP family are compared by.

*Few-shot*: 1, 2, 4, 8, 16 pictures a class.  *Base-to-new*: learn on the first half of the classes, answer among these
and among the others.  *Cross-data-set*: learn on one data set, answer on others by swapping the class names.  *Domain
generalisation*: learn in one domain, answer in others.  All over seeds, kept in a folder run by run, so that the same
call goes on where it was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.comparison import Plan, check_names, names_of, seeds_of
from cuelight.config import field_names, route
from cuelight.data import DataSpec, Splits, read
from cuelight.errors import ArtifactError, ConfigError, CuelightError
from cuelight.evaluation import tables
from cuelight.evaluation.evaluate import evaluate
from cuelight.evaluation.protocols import base_classes, harmonic_mean
from cuelight.methods.base import Method
from cuelight.progress import say
from cuelight.tuning import tune

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ProtocolResult", "base_to_new", "cross_data", "domains", "few_shot"]

SHOTS = (1, 2, 4, 8, 16)
_MEAN = "mean"


@dataclass
class ProtocolResult(tables.Tabled):
    """What a protocol found.

    Attributes:
        protocol: ``few-shot``, ``base-to-new``, ``cross-data`` or ``domains``.
        backbone, data: what was learned on.
        seeds: the seeds of every method.
        runs: one dictionary per run: ``setting`` (shots, data set or source domain), ``method``, ``seed``,
            ``metrics``, ``trainable``, ``seconds``, ``peak_memory`` (bytes).
    """

    protocol: str
    backbone: str
    data: str
    seeds: tuple[int, ...]
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Protocol, backbone, data and number of seeds, in a line."""
        count = len(self.seeds)
        return f"{self.protocol}: {self.backbone} on {self.data}, {count} seed{'s' if count != 1 else ''}"

    @property
    def frame(self) -> pd.DataFrame:
        """One row per setting and method (per method for few-shot), figures as means and deviations over seeds.

        H is of the mean accuracies; with several data sets a last setting holds their averages.
        """
        import pandas as pd

        if self.protocol == "few-shot":
            return tables.summary(_by_shots(self.runs), "")
        parts = []
        for setting in _settings(self.runs):
            mine = [run for run in self.runs if run["setting"] == setting]
            parts.append(_with_h(tables.summary(mine, "")).assign(setting=setting))
        if len(parts) > 1:
            parts.append(_with_h(tables.summary(_averaged(self.runs), "")).assign(setting=_MEAN))
        table = pd.concat(parts, ignore_index=True)
        if len(parts) == 1:
            return table.drop(columns="setting")
        return table[["setting", *(c for c in table.columns if c != "setting")]]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything, the raw figures of every run included, as JSON; also written to ``path``."""
        body = {
            "protocol": self.protocol,
            "backbone": self.backbone,
            "data": self.data,
            "seeds": list(self.seeds),
            "runs": self.runs,
        }
        return tables.written(json.dumps(body, indent=1, ensure_ascii=False) + "\n", path)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Curves over shots, or every figure of every method with every seed, as a PNG file."""
        from cuelight.evaluation.plots import plot_curves, plot_figures

        if self.protocol == "few-shot":
            return plot_curves(self.runs, "accuracy", path, self.title)
        several = len(_settings(self.runs)) > 1
        return plot_figures(_averaged(self.runs) if several else self.runs, path, self.title)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> ProtocolResult:
        """A result from what `to_json` wrote.

        Raises:
            ArtifactError: not such a file, or a damaged one.
        """
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            return ProtocolResult(
                body["protocol"], body["backbone"], body["data"], tuple(body["seeds"]), body["runs"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"protocol {path}: can not be read ({error}); run it again") from error


# ---- the protocols ---------------------------------------------------------------------------------------


def few_shot(methods: Sequence[str] | str, *, shots: Sequence[int] = SHOTS, **common: Any) -> ProtocolResult:
    """Accuracy on the test rows by the number of training pictures a class.

    Args:
        methods: names, or one string ``"a,b"``.
        shots: the numbers.
        **common: see `base_to_new`.
    """
    chosen = tuple(dict.fromkeys(shots))
    if not chosen or any(not isinstance(k, int) or k < 1 for k in chosen):
        raise ConfigError(f"shots: is {shots!r}; give whole numbers of 1 or more")
    work = _Work("few-shot", methods, common)
    return work([_Setting(str(k), work.data, {"shots": k}) for k in chosen])


def base_to_new(methods: Sequence[str] | str, **common: Any) -> ProtocolResult:
    """Learn on the first half of the classes; accuracy among these, among the others, and their harmonic mean.

    Args:
        methods: names, or one string ``"a,b"``.
        **common: ``backbone`` and ``data`` as for `cuelight.tune` (``data`` may be a list of data sets here);
            ``seeds`` (a number or a list, default 3); ``output`` (a folder that keeps every run; the same call goes
            on there); ``processes`` (how many seeds run at a time, default 1); ``device``, ``dtype``, ``progress``,
            ``restart``; ``options`` (per-method overrides); and all options of the methods.

    Raises:
        CuelightError: any mistake in the arguments, in one line; also a method that has no answer for new classes.
    """
    work = _Work("base-to-new", methods, common, several=True)
    return work([_Setting(_called(source), source) for source in work.sources])


def cross_data(methods: Sequence[str] | str, *, targets: Sequence[Any], **common: Any) -> ProtocolResult:
    """Learn on ``data``; accuracy there and on every one of ``targets``, with their own class names, and their mean.

    Args:
        methods: names, or one string ``"a,b"``.
        targets: data sets as ``data`` is given.
        **common: see `base_to_new`.
    """
    if not targets or isinstance(targets, str):
        raise ConfigError("targets: give a list of data sets to answer on")
    work = _Work("cross-data", methods, common)
    named = {_called(target): {"data": target} for target in targets}
    if len(named) < len(targets):
        raise ConfigError("targets: two of them have one name; give files of different names")
    return work([_Setting(_called(work.data), work.data, {}, named)])


def domains(
    methods: Sequence[str] | str,
    *,
    column: str = "domain",
    source: str | None = None,
    targets: Sequence[Any] = (),
    **common: Any,
) -> ProtocolResult:
    """Learn in one domain; accuracy there, in every other one, and their mean.

    Args:
        methods: names, or one string ``"a,b"``.
        column: the column of ``data`` that names the domain.
        source: the domain to learn in; every one in turn by default.
        targets: data sets of other domains with the same classes, instead of a column.
        **common: see `base_to_new`.
    """
    work = _Work("domains", methods, common)
    if targets:
        named = {_called(target): {"data": target} for target in targets}
        return work([_Setting(_called(work.data), work.data, {}, named)])
    known = _values(work.data, column, work.data_options)
    if source is not None and source not in known:
        raise ConfigError(f"source: '{source}' is no value of '{column}'; there are {', '.join(known)}")
    if len(known) < 2:
        raise ConfigError(
            f"column: '{column}' has one value only ({known[0]}); give data with several domains"
        )
    settings = []
    for start in [source] if source else known:
        others = {d: {"data": work.data, "where": {column: d}} for d in known if d != start}
        settings.append(_Setting(start, work.data, {"where": {column: start}}, others))
    return work(settings)


# ---- inside ----------------------------------------------------------------------------------------------


@dataclass
class _Setting:
    """One line of a protocol: what is learned on, and by name what else is answered on."""

    name: str
    data: Any
    options: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class _Job:
    """One run: everything a process of its own needs to know."""

    protocol: str
    setting: _Setting
    method: str
    options: dict[str, Any]
    data_options: dict[str, Any]
    seed: int
    backbone: Any
    load: dict[str, Any]
    folder: Path | None
    restart: bool
    progress: bool

    def splits(self) -> Splits:
        """The rows it learns on and is measured on."""
        given = {**self.data_options, **self.setting.options, "seed": self.seed}
        return _read(self.setting.data, given)

    def others(self, splits: Splits, own: Sequence[str]) -> Iterator[tuple[str, Splits]]:
        """By name, rows to answer on besides."""
        if self.protocol == "base-to-new":
            yield "new", splits.only(base_classes(len(splits.classes)), len(splits.classes))
        for name, target in self.setting.targets.items():
            given = {
                k: v for k, v in self.data_options.items() if k in ("max_test", "test_size", "split_seed")
            }
            if "where" in target:
                given |= {**self.data_options, "where": target["where"], "classes": tuple(own), "shots": None}
            yield name, _read(target["data"], {k: v for k, v in given.items() if v is not None})

    def first(self, splits: Splits) -> Splits:
        """What is learned on: of base-to-new the base classes."""
        return splits.only(0, base_classes(len(splits.classes))) if self.protocol == "base-to-new" else splits


_ROWS: dict[str, Splits] = {}
"""Rows that this process read last: methods and seeds share them."""


def _read(source: Any, options: dict[str, Any]) -> Splits:
    if isinstance(source, Splits):
        return source
    key = json.dumps(
        [source if isinstance(source, str) else id(source), options], sort_keys=True, default=str
    )
    if key not in _ROWS:
        while len(_ROWS) >= 24:
            _ROWS.pop(next(iter(_ROWS)))
        _ROWS[key] = read(source, **options)
    return _ROWS[key]


class _Work:
    """A protocol's arguments, checked, and its runs, one after the other or in processes."""

    def __init__(
        self, protocol: str, methods: Sequence[str] | str, common: dict[str, Any], *, several: bool = False
    ) -> None:
        common = dict(common)
        self.protocol = protocol
        for name in ("backbone", "data"):
            if common.get(name) is None:
                raise ConfigError(f"{name}: is missing; give it")
        self.backbone, self.data = common.pop("backbone"), common.pop("data")
        if isinstance(self.data, str | Path):
            self.data = str(self.data)
        listed = several and isinstance(self.data, list | tuple)
        self.sources: list[Any] = list(self.data) if listed else [self.data]
        names = [_called(source) for source in self.sources]
        if len(set(names)) < len(names):
            raise ConfigError("data: two of them have one name; give files of different names")
        self.load = {name: common.pop(name, "auto") for name in ("device", "dtype")}
        self.load["tokenizer"] = common.pop("tokenizer", None)
        output = common.pop("output", None)
        self.output = None if output is None else Path(output)
        self.progress, self.restart = bool(common.pop("progress", False)), bool(common.pop("restart", False))
        self.processes = common.pop("processes", 1)
        if not isinstance(self.processes, int) or self.processes < 1:
            raise ConfigError(f"processes: is {self.processes!r}; give a whole number of 1 or more")
        if self.processes > 1 and not all(isinstance(x, str | Path) for x in (self.backbone, *self.sources)):
            raise ConfigError("processes: more than one needs the backbone and the data by name or path")
        seeds, overrides = common.pop("seeds", 3), common.pop("options", None) or {}
        self.names = names_of(methods)
        self.seeds = seeds_of(seeds, common)
        check_names(self.names, common, overrides)
        self.plans = [Plan(name, common, overrides.get(name, {})) for name in self.names]
        data_options = {k: v for k, v in common.items() if k in field_names(DataSpec)}
        self.data_options: dict[str, Any] = route(data_options, [DataSpec])[0]

    def __call__(self, settings: Sequence[_Setting]) -> ProtocolResult:
        host = load_backbone(self.backbone, **self.load, progress=self.progress)
        jobs = [
            self._job(setting, plan, seed)
            for seed in self.seeds
            for setting in settings
            for plan in self.plans
        ]
        for job in jobs[: len(settings) * len(self.plans)]:
            self._check(job, host)
        data = ", ".join(dict.fromkeys(_called(source) for source in self.sources))
        result = ProtocolResult(self.protocol, host.id, data, self.seeds)
        if self.processes == 1:
            result.runs = [_run(job, host, announced=self.progress) for job in jobs]
        else:
            result.runs = self._parallel(jobs)
        order = {name: k for k, name in enumerate(self.names)}
        places = {setting.name: k for k, setting in enumerate(settings)}
        result.runs.sort(key=lambda run: (places[run["setting"]], order[run["method"]], run["seed"]))
        return result

    def _job(self, setting: _Setting, plan: Plan, seed: int) -> _Job:
        folder = (
            None if self.output is None else self.output / _safe(setting.name) / plan.name / f"seed{seed}"
        )
        return _Job(
            self.protocol,
            setting,
            plan.name,
            plan.options,
            self.data_options,
            seed,
            self.backbone,
            self.load,
            folder,
            self.restart,
            self.progress and self.processes == 1,
        )

    def _check(self, job: _Job, host: Backbone) -> None:
        """Refuse now what would be refused after an hour: data, options, and methods without new classes."""
        splits = job.splits()
        if splits.kind != "classification":
            raise ConfigError(
                f"data: the protocols need one label a row, {splits.report.source} has {splits.kind}"
            )
        rows = job.first(splits)
        plan = next(plan for plan in self.plans if plan.name == job.method)
        with plan.learner(host, rows, job.seed) as learner:
            for _, other in job.others(splits, rows.classes):
                _name_classes(learner, other)

    def _parallel(self, jobs: list[_Job]) -> list[dict[str, Any]]:
        """The jobs of one seed in one process, several processes at a time."""
        threads = max(1, (os.cpu_count() or 1) // self.processes)
        pool = ProcessPoolExecutor(
            self.processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(threads,)
        )
        waiting: list[Future[list[dict[str, Any]]]] = []
        found: list[dict[str, Any]] = []
        with pool:
            for seed in self.seeds:
                waiting.append(pool.submit(_run_all, [job for job in jobs if job.seed == seed]))
            try:
                for future in as_completed(waiting):
                    found += future.result()
                    if self.progress:
                        say(f"{len(found)} of {len(jobs)} runs done")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found


def _begin(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _run_all(jobs: list[_Job]) -> list[dict[str, Any]]:
    """In a process of its own: the jobs one after the other on one backbone."""
    host = load_backbone(jobs[0].backbone, **jobs[0].load, progress=False)
    return [_run(job, host, announced=False) for job in jobs]


def _run(job: _Job, host: Backbone, *, announced: bool) -> dict[str, Any]:
    """Learn (or read what was learned before) and answer on everything."""
    if announced:
        say(f"{job.setting.name}, {job.method}, seed {job.seed}")
    splits = job.splits()
    rows = job.first(splits)
    others = list(job.others(splits, rows.classes))
    try:
        run = tune(
            job.method,
            backbone=host,
            data=rows,
            output=job.folder,
            progress=job.progress,
            restart=job.restart,
            **{**job.options, "seed": job.seed},
        )
    except CuelightError as error:
        raise type(error)(f"{job.setting.name}, {job.method}, seed {job.seed}: {error}") from error
    known = [run.prompt.record["run"], *(other.fingerprint for _, other in others)]
    metrics = _remembered(job.folder, known)
    if metrics is None:
        metrics = _measure(job, run.metrics["accuracy"], run.prompt.method, others)
        if job.folder is not None:
            body = json.dumps({"known": known, "metrics": metrics}, indent=1)
            tables.written(body + "\n", _figures(job.folder))
    return {
        "setting": job.setting.name,
        "method": job.method,
        "seed": job.seed,
        "metrics": metrics,
        "trainable": run.trainable,
        "seconds": round(run.seconds, 3),
        "peak_memory": run.peak_memory,
    }


def _measure(job: _Job, own: float, method: Method, others: Sequence[tuple[str, Splits]]) -> dict[str, float]:
    if job.protocol == "few-shot":
        return {"accuracy": own}
    classes = method.task.classes
    found: dict[str, float] = {}
    for name, rows in others:
        _name_classes(method, rows)
        items = method.task.encode(rows.test if len(rows.test) else rows.validation)
        found[name] = evaluate(method, items)[0]["accuracy"]
    if method.task.classes != classes:
        cast(Any, method).rename(classes)
    if job.protocol == "base-to-new":
        return {"base": own, **found, "h": harmonic_mean(own, found["new"])}
    return {"source": own, **found, _MEAN: sum(found.values()) / len(found)}


def _name_classes(method: Method, rows: Splits) -> None:
    """Have ``method`` answer with the classes of ``rows``.

    Raises:
        ConfigError: it knows no class names, or what it learned belongs to its own classes.
    """
    if tuple(rows.classes) == tuple(method.task.classes):
        return
    rename: Callable[[Sequence[str]], None] | None = getattr(method, "rename", None)
    if rename is None:
        raise ConfigError(
            f"methods: {method.card.name} reads no class names, so it has no answer for new classes; leave it out"
        )
    rename(rows.classes)


def _figures(folder: Path) -> Path:
    return folder.with_name(folder.name + ".json")


def _remembered(folder: Path | None, known: list[str]) -> dict[str, float] | None:
    """The figures of a run that was measured before on the same rows."""
    if folder is None or not _figures(folder).exists():
        return None
    try:
        body = json.loads(_figures(folder).read_text(encoding="utf-8"))
        return dict(body["metrics"]) if body["known"] == known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _called(source: Any) -> str:
    """A data set's name in a table."""
    if isinstance(source, str | Path):
        path = Path(source)
        return path.stem if path.suffix else path.name
    report = getattr(source, "report", None)
    return Path(str(report.source)).stem if report else "data"


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _values(source: Any, column: str, options: dict[str, Any]) -> list[str]:
    """The different values of a column, in order."""
    if isinstance(source, Splits):
        raise ConfigError("data: is read already; domains are told by a column, give the file or the folder")
    rows = read(source, **{**options, "columns": (column,), "deduplicate": False})
    return sorted({value for part in (rows.train, rows.validation, rows.test) for value in part[column][:]})


def _settings(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(run["setting"]) for run in runs))


def _by_shots(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A run a method and seed, with a figure for every number of shots; costs are those of the most shots."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for run in runs:
        place = joined.setdefault((run["method"], run["seed"]), {"metrics": {}})
        figures = place["metrics"] | {f"{run['setting']} shots": run["metrics"]["accuracy"]}
        joined[run["method"], run["seed"]] = {**run, "metrics": figures}
    return list(joined.values())


def _averaged(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A run a method and seed: the mean over settings of the figures that all of them have."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["seed"]), []).append(run)
    out = []
    for mine in groups.values():
        shared = [name for name in mine[0]["metrics"] if all(name in run["metrics"] for run in mine)]
        metrics = {name: sum(run["metrics"][name] for run in mine) / len(mine) for name in shared}
        if "h" in metrics:
            metrics["h"] = harmonic_mean(metrics["base"], metrics["new"])
        out.append({**mine[0], "metrics": metrics})
    return out


def _with_h(table: pd.DataFrame) -> pd.DataFrame:
    """H of the mean accuracies, where the table has such."""
    if "h" in table:
        pairs = zip(table["base"], table["new"], strict=True)
        table["h"] = [harmonic_mean(base, new) for base, new in pairs]
    return table
