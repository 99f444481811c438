"""`tune`: one method, one backbone, one data set, from start to saved artifact."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuelight.artifact import FILES, Prompt, read_card, restore, writing
from cuelight.backbones.backbone import load_backbone
from cuelight.config import build, field_names, route
from cuelight.data import DataSpec, Splits, read
from cuelight.data.sample import draw, strata
from cuelight.data.sources import contents
from cuelight.errors import ConfigError, DataError
from cuelight.evaluation.evaluate import evaluate
from cuelight.evaluation.memory import PeakMemory
from cuelight.methods.base import Data, Method, get_method
from cuelight.tasks.kinds import make_task, task_options
from cuelight.tasks.predictions import Predictions
from cuelight.training import Stage, TrainConfig, TrainResult, checkpoint, forget, train

__all__ = ["VALIDATION_ROWS", "Run", "option_homes", "tune"]

VALIDATION_ROWS = 200
"""Most validation rows that training looks at, ten times a stage; ``max_validation`` sets another number."""


@dataclass
class Run:
    """One method trained on one task.

    Attributes:
        metrics: figures on the test rows (on the validation rows when there is no test split).
        prompt: what was learned; ``run.prompt.save("dir")``, ``run.prompt.predict([...])``.
        report: what was read from the data, as lines to show.
        training: steps, losses and validation figures, ``None`` when nothing was trained by gradient.
        seconds: training time, looks at the validation rows included, the test rows not.
        peak_memory: bytes, the process's (or the GPU's) peak while training, over all sittings.
        predictions: the answers on the test rows; ``None`` when ``output`` held the finished run already.
        folder: where the artifact was saved, if ``output`` was given.
    """

    metrics: dict[str, float]
    prompt: Prompt
    report: list[str]
    training: TrainResult | None
    seconds: float
    peak_memory: int
    predictions: Predictions | None = None
    folder: Path | None = None

    @property
    def trainable(self) -> int:
        """How many values were trained."""
        return self.prompt.method.trainable


def option_homes(method: str) -> list[type]:
    """The models whose fields `tune` takes as options for ``method``: its own, training, task, data."""
    kind = get_method(method)
    return [kind.Config, TrainConfig, task_options(kind.card.reads), DataSpec]


def tune(
    method: str,
    *,
    backbone: Any,
    data: Any,
    output: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    restart: bool = False,
    tokenizer: Any = None,
    on_report: Callable[[list[str]], None] | None = None,
    **options: Any,
) -> Run:
    """Learn a prompt (or whatever ``method`` learns) and measure it on rows it has not seen.

    Args:
        method: a name of ``cuelight.methods()``.
        backbone: built-in name, folder, hub id, transformers model, or a loaded `Backbone`.
        data: built-in name, CSV/TSV/JSONL/Parquet file, folder, hub id, ``datasets.Dataset`` or data frame.
        output: folder for the artifact, checkpoints and log.  The same call goes on where it was interrupted,
            and returns at once when it had finished.
        device, dtype, tokenizer: see `cuelight.backbones.load_backbone`.
        progress: show progress on stderr.
        restart: forget what ``output`` holds and begin anew.
        on_report: called with the data's report before learning starts.
        **options: any field of the method's own options, `TrainConfig`, the task's (`TaskConfig` for texts,
            `ImageConfig` for pictures) and `DataSpec`.
            Training looks at 200 of the validation rows, drawn class by class; ``max_validation`` sets
            another number.

    Raises:
        CuelightError: any mistake in the arguments, in one line.
    """
    kind = get_method(method)
    own, training, task_given, data_options = route(options, option_homes(method))
    train_config = build(TrainConfig, training)
    if "init_seed" in field_names(kind.Config):
        own.setdefault("init_seed", train_config.seed)
    config = build(kind.Config, own)
    task_config: Any = build(task_options(kind.card.reads), task_given)
    named = task_config.columns
    if named and not isinstance(data, Splits):
        data_options["columns"] = tuple(dict.fromkeys([*data_options.get("columns", ()), *named]))
    splits = read_rows(data, data_options)
    if on_report:
        on_report(splits.report.lines())
    host = load_backbone(backbone, device=device, dtype=dtype, tokenizer=tokenizer, progress=progress)
    kind.check(host, splits.kind, splits.modality)
    task = make_task(host, splits, task_config)
    learner = kind(host, task, config)
    learner.progress = progress

    fingerprint = run_fingerprint(learner, splits)
    folder = None if output is None else Path(output)
    given = given_options(train_config)
    if folder is not None:
        finished = _check_output(folder, fingerprint, given, restart)
        if finished is not None:
            return _finished(learner, finished, splits, folder)
    held_out = splits.test if len(splits.test) else splits.validation
    if not len(held_out):
        raise DataError("data: no rows are left to measure on; add a test split or more rows")
    watched = _watched(splits)
    rows = Data(task.encode(splits.train), task.encode(watched), splits.train)
    plan = learner.forecast(rows)
    if on_report and plan:
        on_report(plan)
    report = [*splits.report.lines(), *plan, *task.lines()]
    if len(watched) < len(splits.validation):
        report.append(
            f"validation during training: {len(watched)} of {len(splits.validation)} rows (max_validation)"
        )
    if held_out is splits.validation:
        report.append("no test rows: the figures are of the validation rows, which training saw too")

    began = time.perf_counter()
    at_once = min(32, 2 * train_config.batch_size)
    with PeakMemory(host.device) as memory:
        learner.prepare(rows, train_config.seed)
        stages = learner.stages(rows)
        for stage in stages:
            _add_validation(stage, learner, rows, at_once)
        result = None
        if stages:
            result = train(
                stages,
                learner,
                train_config,
                workdir=None if folder is None else folder / "training",
                fingerprint=fingerprint,
                device=host.device,
                progress=progress,
            )
    report += learner.notes
    seconds = result.seconds if result else time.perf_counter() - began
    peak = max(memory.bytes, result.peak_memory) if result else memory.bytes
    metrics, predictions = evaluate(
        learner, task.encode(held_out), batch_size=at_once, progress="testing" if progress else None
    )
    record = {
        "metrics": metrics,
        "data": splits.report.to_dict() | {"fingerprint": splits.fingerprint},
        "training": train_config.model_dump(mode="json", exclude_none=True)
        | {"steps_done": result.steps if result else 0},
        "given": given,
        "seconds": round(seconds, 3),
        "peak_memory": peak,
        "run": fingerprint,
        **({"search": learner.facts} if learner.facts else {}),
    }
    run = Run(metrics, Prompt(learner, record), report, result, seconds, peak, predictions, folder)
    if folder is not None:
        _save(run, folder)
    return run


def given_options(config: TrainConfig) -> dict[str, Any]:
    """The training options a user said, and the seed; a card records them as ``given``."""
    said = {k: v for k, v in config.model_dump(mode="json", exclude_unset=True).items() if v is not None}
    return {**said, "seed": config.seed}


def read_rows(data: Any, options: dict[str, Any]) -> Splits:
    """``data`` as `Splits`, read with ``options`` unless it was read already.

    Raises:
        ConfigError: options for data that is read already.
    """
    if not isinstance(data, Splits):
        return read(data, **options)
    for name in options:
        if name != "seed":
            raise ConfigError(f"{name}: has no effect on data that is read already; give it to data.read")
    return data


def _watched(splits: Splits) -> Any:
    """The validation rows that training looks at: all, or so many drawn class by class."""
    rows, most = splits.validation, splits.max_validation or VALIDATION_ROWS
    if len(rows) <= most:
        return rows
    column = next((name for name in ("label", "labels") if name in rows.column_names), None)
    groups = strata(rows[column][:] if column else [0] * len(rows))
    return rows.select(draw(groups, most, 0, leave=0))


def _add_validation(stage: Stage, method: Method, rows: Data, at_once: int) -> None:
    """Watch the task's figure on the validation rows, unless the stage watches something itself."""
    if stage.validate is not None or not rows.validation:
        return
    if method.task.kind == "classification":
        stage.validate = lambda: evaluate(method, rows.validation, batch_size=at_once)[0]
        stage.monitor, stage.higher_is_better = method.task.metric, True
        return

    def loss() -> dict[str, float]:
        total, count = 0.0, 0
        for k in range(0, len(rows.validation), at_once):
            batch = method.batch(rows.validation[k : k + at_once]).to(method.backbone.device)
            total += float(method.loss(batch)) * len(batch)
            count += len(batch)
        return {"validation_loss": total / count}

    stage.validate, stage.monitor = loss, "validation_loss"


def run_fingerprint(method: Method, splits: Splits) -> str:
    """What decides a run's result besides the training options."""
    parts = [
        method.card.name,
        method.config.model_dump(mode="json"),
        method.task.to_dict(),
        method.backbone.fingerprint,
        splits.fingerprint,
        splits.max_validation or VALIDATION_ROWS,
    ]
    for option in method.opens:
        named = (getattr(method.config, option) or "").split(",")
        parts += [contents(name.strip()) for name in named if name.strip()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_output(
    folder: Path, fingerprint: str, given: dict[str, Any], restart: bool
) -> dict[str, Any] | None:
    """The card of the finished run that ``folder`` holds, if it is this one.

    Raises:
        ConfigError: it holds another run, or what is no run.
        ArtifactError: it holds a damaged one.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ConfigError(f"output: {folder} is a file; give a folder")
    ours = {"training", *FILES}
    for file in sorted(folder.iterdir()):
        if file.name not in ours and not file.name.startswith((".artifact", "..artifact")):
            raise ConfigError(f"output: {folder} holds other files ({file.name}); give another folder")
    card = folder / "cuelight.json"
    if restart:
        for name in ("cuelight.json", *FILES):  # the card first: what is left without it is no artifact
            (folder / name).unlink(missing_ok=True)
        forget(folder / "training")
        return None
    if not card.exists():
        return None
    found = read_card(folder)
    if found.get("run") != fingerprint:
        raise ConfigError(
            f"output: {folder} holds another run; give another --output, or --restart to replace it"
        )
    before = found["given"]
    checkpoint.compare(folder, {"seed": before["seed"]}, {"seed": given["seed"]})
    # Other options may still come to the same, as when one repeats a default: the training loop knows.
    return found if before == given else None


def _finished(method: Method, card: dict[str, Any], splits: Splits, folder: Path) -> Run:
    """A run that ended before, from what it saved."""
    restore(method, card, folder)
    saved = checkpoint.read(folder / "training")
    result = None if saved is None else TrainResult(**saved[0]["result"])
    names = ("metrics", "data", "training", "given", "seconds", "peak_memory", "run", "search")
    record = {name: card[name] for name in names if name in card}
    return Run(
        card["metrics"],
        Prompt(method, record),
        [*splits.report.lines(), *method.task.lines()],
        result,
        card["seconds"],
        card["peak_memory"],
        folder=folder,
    )


def _save(run: Run, folder: Path) -> None:
    """The artifact beside the training's checkpoints and log; its card comes last and makes it one."""
    for left in (*folder.glob(".artifact*"), *folder.glob("..artifact*")):  # of a run that was killed here
        shutil.rmtree(left, ignore_errors=True)
    made = folder / ".artifact"
    with writing(made, set(FILES), "artifact") as new:
        run.prompt.write(new)
    for file in sorted(made.iterdir(), key=lambda f: f.name == "cuelight.json"):
        os.replace(file, folder / file.name)
    made.rmdir()
