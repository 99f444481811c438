"""``cuelight predict`` and ``cuelight evaluate``: using what was learned."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuelight.cache import atomic_write
from cuelight.cli.common import BackboneType, DataType, data_settings, device_options, say
from cuelight.cli.options import HeadedCommand, HeadedOption, given
from cuelight.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from cuelight.artifact import Prompt

__all__ = ["evaluate", "predict"]

_SINGLE = "text_b: the run learned from single texts; leave it out"
_SPLITS = ("test", "validation", "train", "all")


def _loading() -> list[click.Parameter]:
    return [
        HeadedOption(
            ["--backbone"],
            type=BackboneType(),
            metavar="NAME",
            help="Where the backbone is now.  [default: as recorded]",
        ),
        HeadedOption(["--force"], is_flag=True, help="Take a backbone with other weights all the same."),
        HeadedOption(
            ["--batch-size"],
            type=click.IntRange(1),
            metavar="INT",
            default=32,
            help="Rows at a time.  [default: 32]",
        ),
        *device_options(),
        HeadedOption(["--quiet"], is_flag=True, help="Show no progress."),
    ]


@click.pass_context
def _predict(ctx: click.Context, **params: Any) -> None:
    """Answer texts, or name pictures, with what was learned.

    DIR is the --output of a run.  Texts (paths of pictures) are given as words of the command, as lines on stdin, or
    as a column of --data.  Answers are printed one a line, in the order of the texts, or written to --output with them.
    """
    if params["output"] and Path(params["output"]).suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"output: '{params['output']}' is of no known format; give a .csv or .jsonl file")
    if params["texts"] and params["data"]:
        raise ConfigError("data: is given together with texts; give one of them")
    texts: list[Any]
    if params["data"]:
        prompt = _load(params)
        from_source = _pictures_from_source if _reads_pictures(prompt) else _from_source
        rows, texts = from_source(prompt, params)
    else:
        if params["text"]:
            raise ConfigError("text: names a column of --data; give --data, or the texts behind DIR")
        texts, piped = _typed(params)
        prompt = _load(params)
        if piped and prompt.method.task.pairs:
            texts = [tuple(t.split("\t", 1)) if isinstance(t, str) and "\t" in t else t for t in texts]
        use = "image" if _reads_pictures(prompt) else "text"
        rows = [{use: t} if isinstance(t, str) else {"text": t[0], "text_b": t[1]} for t in texts]
    _check_pairs(prompt, texts)
    found = prompt.predict(
        texts,
        probabilities=params["probabilities"],
        batch_size=params["batch_size"],
        progress=None if params["quiet"] else "predicting",
    )
    if params["output"]:
        renamed = _write(Path(params["output"]), rows, found)
        say(f"{len(found)} answers in {params['output']}")
        say(*(f"column '{old}' is the data's own; the new one is '{new}'" for old, new in renamed.items()))
    else:
        say(*(_line(answer) for answer in found))


predict = HeadedCommand(
    "predict",
    callback=_predict,
    help=_predict.__doc__,
    params=[
        click.Argument(["folder"], metavar="DIR", type=click.Path()),
        click.Argument(["texts"], nargs=-1, metavar="[TEXT]..."),
        HeadedOption(
            ["--data"],
            heading="Texts",
            type=DataType(),
            metavar="SOURCE",
            help="Read the texts from a file, folder, hub id or built-in name.",
        ),
        HeadedOption(
            ["--text"],
            heading="Texts",
            metavar="COLUMN",
            help="The column of --data; by default the one that was learned from.",
        ),
        HeadedOption(
            ["--image"],
            heading="Texts",
            metavar="COLUMN",
            help="For pictures: their column of --data.",
        ),
        HeadedOption(
            ["--text-b"],
            heading="Texts",
            multiple=True,
            metavar="TEXT|COLUMN",
            help="For pairs: the second text (one for each TEXT), or its column of --data.",
        ),
        HeadedOption(
            ["--output"],
            type=click.Path(),
            metavar="FILE",
            help="Write rows and answers to a .csv or .jsonl file.",
        ),
        HeadedOption(["--probabilities"], is_flag=True, help="Give the chance of every class too."),
        *_loading(),
    ],
    epilog="\b\nExamples\n  cuelight predict runs/mine 'what a film'\n"
    "  cuelight predict runs/pictures cat.jpg dog.png\n"
    "  cuelight predict runs/mine --data new.csv --text review --output answers.csv\n"
    "  cat lines.txt | cuelight predict runs/mine",
)


@click.pass_context
def _evaluate(ctx: click.Context, **params: Any) -> None:
    """Measure what was learned on labelled rows.

    DIR is the --output of a run.  The test split of --data is used, drawn as 'cuelight tune' draws it where
    the data has none; --split all takes every row.
    """
    if params["split"] not in _SPLITS:
        hint = nearest(params["split"], _SPLITS)
        raise ConfigError(f"split: is '{params['split']}'{hint}; give {', '.join(_SPLITS)}")
    from cuelight.data import read

    card = _card(params["folder"])
    task = card["task"]
    options = given(ctx, [s.name for s in data_settings()])
    columns = card.get("data", {}).get("columns", {})
    recorded = {role: c["column"] for role, c in columns.items() if c["why"].startswith("given")}
    if task["classes"]:
        recorded["classes"] = tuple(task["classes"])
    if params["split"] == "all":
        recorded["deduplicate"] = False
    recorded["columns"] = tuple(task.get("columns", ()))
    splits = read(params["data"], **{"task": task["kind"], **recorded, **options})
    pairs = "text_b" in splits.train.column_names
    if splits.modality != task.get("modality", "text"):
        raise DataError(f"{splits.report.source}: holds no {task.get('modality', 'text')} column; name it")
    if pairs != task.get("pairs", False):
        names = [f"'{splits.report.columns[role].column}'" for role in ("text", "text_b")[: 1 + pairs]]
        mend = (
            "pairs; name the second column with --text-b" if task.get("pairs") else "one; name it with --text"
        )
        raise DataError(
            f"{splits.report.source}: texts are in {' and '.join(names)}, but the run learned from {mend}"
        )
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    chosen = list(parts) if params["split"] == "all" else [params["split"]]
    rows = [row for name in chosen for row in parts[name]]
    if not rows:
        raise DataError(
            f"split: {splits.report.source} has no row in '{params['split']}'; choose another --split"
        )
    progress = None if params["quiet"] else "measuring"
    metrics = _load(params).evaluate(rows, batch_size=params["batch_size"], progress=progress)
    if params["json"]:
        say(json.dumps({"rows": len(rows), "split": params["split"], "metrics": metrics}))
        return
    where = " + ".join(f"{name} {len(parts[name])}" for name in chosen)
    say(f"{len(rows)} rows of {splits.report.source} ({where})")
    say(*(f"{key:<16}{value:.4f}" for key, value in metrics.items()))


evaluate = HeadedCommand(
    "evaluate",
    callback=_evaluate,
    help=_evaluate.__doc__,
    params=[
        click.Argument(["folder"], metavar="DIR", type=click.Path()),
        HeadedOption(
            ["--data"],
            heading="Required",
            required=True,
            type=DataType(),
            metavar="SOURCE",
            help="File, folder, hub id or built-in name.",
        ),
        *(s.option() for s in data_settings()),
        HeadedOption(
            ["--split"],
            metavar="NAME",
            default="test",
            help="test, validation, train or all.  [default: test]",
        ),
        HeadedOption(["--json"], is_flag=True, help="Print the figures as JSON."),
        *_loading(),
    ],
    epilog="\b\nExample\n  cuelight evaluate runs/mine --data reviews.csv",
)


def _load(params: dict[str, Any]) -> Prompt:
    import cuelight

    names = ("backbone", "device", "dtype", "force")
    return cuelight.load(params["folder"], **{name: params[name] for name in names})


def _card(folder: str) -> dict[str, Any]:
    from cuelight.artifact import read_card

    return read_card(Path(folder))


def _typed(params: dict[str, Any]) -> tuple[list[Any], bool]:
    """Texts from the command or from stdin, and whether from stdin."""
    texts, seconds = list(params["texts"]), list(params["text_b"])
    piped = not texts and not sys.stdin.isatty()
    if piped:
        texts = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise ConfigError("texts: none given; type them behind DIR, pipe lines in, or give --data")
    if seconds:
        if len(seconds) != len(texts):
            raise ConfigError(
                f"text_b: {len(seconds)} second texts for {len(texts)} first ones; give one for each"
            )
        return list(zip(texts, seconds, strict=True)), piped
    return texts, piped


def _from_source(prompt: Prompt, params: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Every row of ``--data``, and the texts in it."""
    import pandas as pd

    from cuelight.data.columns import cell_text, is_missing
    from cuelight.data.sources import open_source

    source = open_source(params["data"])
    frame = pd.concat(source.tables.values(), ignore_index=True)
    if len(params["text_b"]) > 1:
        raise ConfigError("text_b: is given twice; name one column of --data")
    pairs = prompt.method.task.pairs
    if params["text_b"] and not pairs:
        raise ConfigError(_SINGLE)
    wanted = {"text": params["text"], "text_b": next(iter(params["text_b"]), None)}
    names = [
        _column(frame, role, wanted[role], prompt, source.name) for role in ("text", "text_b")[: 1 + pairs]
    ]
    columns = [[cell_text(v, name, source.name) for v in frame[name]] for name in names]
    for number, row in enumerate(zip(*columns, strict=True), 1):
        for name, value in zip(names, row, strict=True):
            if not value.strip():
                raise DataError(f"{source.name}: row {number} has an empty '{name}'; remove it or fill it in")
    rows = [
        {str(k): None if not isinstance(v, str) and is_missing(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]
    if others := prompt.method.task.columns:
        for name in others:
            if name not in frame.columns:
                raise DataError(f"{source.name}: has no column '{name}', which the template names; add it")
        texts = [dict(zip(("text", "text_b"), row, strict=False)) for row in zip(*columns, strict=True)]
        return rows, [
            {**row, **{n: row[n] for n in others}, **text} for row, text in zip(rows, texts, strict=True)
        ]
    return rows, list(zip(*columns, strict=True)) if pairs else columns[0]


def _reads_pictures(prompt: Prompt) -> bool:
    return bool(prompt.method.task.modality == "image")


def _pictures_from_source(prompt: Prompt, params: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Every picture of ``--data``: of a folder, class folders or not, or of a table's column."""
    import pandas as pd

    from cuelight.data.columns import choose_picture
    from cuelight.data.images import as_picture, pictures_in
    from cuelight.data.sources import open_source

    path = Path(params["data"]).expanduser()
    if path.is_dir() and (files := pictures_in(path)):
        return [{"image": str(file)} for file in files], list(files)
    source = open_source(params["data"])
    frame = pd.concat(source.tables.values(), ignore_index=True)
    name = choose_picture(frame, params["image"], source.name)
    others = frame.drop(columns=name).to_dict("records")
    rows = [
        {**{str(k): v for k, v in row.items()}, "image": value if isinstance(value, str) else f"row {k}"}
        for k, (row, value) in enumerate(zip(others, frame[name], strict=True))
    ]
    return rows, [as_picture(value, source.folder) for value in frame[name]]


def _column(frame: Any, role: str, name: str | None, prompt: Prompt, source: str) -> str:
    columns = [str(c) for c in frame.columns]
    flag = "--" + role.replace("_", "-")
    if name is None:
        learned = prompt.record.get("data", {}).get("columns", {}).get(role, {}).get("column")
        name = (
            learned if learned in columns else (columns[0] if len(columns) == 1 and role == "text" else None)
        )
        if name is None:
            raise DataError(
                f"{source}: has no column '{learned or role}'; name one of {', '.join(columns)} with {flag}"
            )
    elif name not in columns:
        raise DataError(
            f"{source}: has no column '{name}'{nearest(name, columns)}; columns are {', '.join(columns)}"
        )
    return name


def _check_pairs(prompt: Prompt, texts: Sequence[Any]) -> None:
    if _reads_pictures(prompt):
        return
    pairs = prompt.method.task.pairs
    for text in texts:
        if pairs and isinstance(text, str):
            raise ConfigError(
                "text_b: the run learned from pairs; give --text-b, or a tab between the two on stdin"
            )
        if not pairs and not isinstance(text, str):
            raise ConfigError(_SINGLE)


def _line(found: Any) -> str:
    if isinstance(found, dict):
        chances = "\t".join(f"{name}={chance:.4f}" for name, chance in found["probabilities"].items())
        return f"{_plain(found['answer'])}\t{chances}"
    return _plain(found)


def _plain(answer: Any) -> str:
    text = "; ".join(answer) if isinstance(answer, list) else str(answer)
    return text.replace("\n", "\\n")


def _write(path: Path, rows: Sequence[dict[str, Any]], found: Sequence[Any]) -> dict[str, str]:
    """The rows with their answers, whole or not at all; returns new names where the rows have the usual."""
    lines = path.suffix.lower() == ".jsonl"
    names: dict[str, str] = {}
    out = []
    for row, answer in zip(rows, found, strict=True):
        chances = answer["probabilities"] if isinstance(answer, dict) else {}
        value = answer["answer"] if isinstance(answer, dict) else answer
        new = {"prediction": value if lines else _plain(value)}
        if lines:
            new |= {"probabilities": chances} if chances else {}
        else:
            new |= {f"p({c})": p for c, p in chances.items()}
        names = names or {name: _free(name, row) for name in new}
        out.append(row | {names[name]: v for name, v in new.items()})
    buffer = io.StringIO()
    if lines:
        buffer.writelines(json.dumps(row, ensure_ascii=False, default=_listed) + "\n" for row in out)
    else:
        writer = csv.DictWriter(buffer, fieldnames=list(out[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(out)
    with atomic_write(path) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    return {old: new for old, new in names.items() if old != new}


def _free(name: str, row: dict[str, Any]) -> str:
    while name in row:
        name += "_"
    return name


def _listed(value: Any) -> Any:
    """What JSON has no word for: an array as a list, all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
