"""The one call that turns what a user brings into train, validation and test rows of one shape.

The order of the steps is what keeps results honest: unusable rows go first, test rows are fixed next (by a
seed of their own), what also stands in test leaves train, and only then are shots and validation rows drawn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cuelight.data.columns import Columns, cell_text, choose_columns, is_list, is_missing, shown
from cuelight.data.images import as_picture, picture_key
from cuelight.data.labels import encode
from cuelight.data.report import Report, SplitReport
from cuelight.data.sample import draw, shot_rows, strata
from cuelight.data.sources import ROLES, Source, open_source, role_of
from cuelight.data.spec import DataSpec, Kind
from cuelight.errors import DataError, nearest

if TYPE_CHECKING:
    import datasets
    import pandas as pd

__all__ = ["Splits", "read"]

Modality = Literal["text", "image"]

_ROW, _SPLIT, _OTHER = (
    "\x00row",
    "\x00split",
    "\x00column ",
)  # beside the user's columns, under names nobody gives
_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1
_ANSWER: dict[str, str] = {"classification": "label", "multilabel": "labels", "generation": "targets"}


@dataclass
class Splits:
    """Data ready for a task.

    ``train``, ``validation`` and ``test`` are ``datasets.Dataset`` with the columns ``text`` (str) and
    ``text_b`` (str, pairs only), or ``image`` (a dictionary of ``bytes`` and ``path``) and ``key`` (str, the same
    for the same picture); with ``row`` (int, counted from 0 in its file or split of the source), and by
    ``kind`` ``label`` (int), ``labels`` (one 0 or 1 per class) or ``targets`` (list of str; the first is
    trained on).  ``classes`` is empty for generation.  ``fingerprint`` is the same for the same rows and
    classes in the same order, on every machine and from every file format.  ``max_validation`` is what was
    asked for.
    """

    kind: Kind
    classes: tuple[str, ...]
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    report: Report
    fingerprint: str
    max_validation: int | None = None
    modality: Modality = "text"

    def only(self, first: int, stop: int) -> Splits:
        """The rows of classes ``first`` to ``stop - 1`` and those classes alone, numbered from 0.

        For one-label data.  The rows are those that were drawn, so a draw of shots is the same for all classes and
        for a part of them.
        """
        assert self.kind == "classification"
        classes = self.classes[first:stop]

        def part(rows: datasets.Dataset) -> datasets.Dataset:
            labels = rows["label"][:]
            kept = [k for k, label in enumerate(labels) if first <= label < stop]
            numbers = [labels[k] - first for k in kept]
            names = datasets.ClassLabel(names=list(classes))
            place = rows.column_names.index("label")
            made = rows.select(kept).remove_columns("label").add_column("label", numbers)
            order = [n for n in made.column_names if n != "label"]
            order.insert(place, "label")
            return made.select_columns(order).cast_column("label", names)

        import datasets

        digest = hashlib.sha256(json.dumps([self.fingerprint, first, stop]).encode())
        return dataclasses.replace(
            self,
            classes=classes,
            train=part(self.train),
            validation=part(self.validation),
            test=part(self.test),
            fingerprint=digest.hexdigest(),
        )


def read(source: Any, spec: DataSpec | None = None, **overrides: Any) -> Splits:
    """Read texts or pictures; see :class:`DataSpec` for what may be said about them.

    source: a CSV, TSV, JSONL, JSON or Parquet file (pictures as encoded bytes, or as paths relative to the file); a
    folder of class folders of .txt files or pictures (below ``train`` and ``test`` too) or of files named after
    splits; a hub id (``id`` or ``id:config``); a built-in name; a
    ``datasets.Dataset`` or ``DatasetDict``; a pandas ``DataFrame``; a list of dictionaries.

    Raises ``DataError`` for data that can not be read or used and ``ConfigError`` for a wrong option.
    """
    import pandas as pd

    spec = (spec or DataSpec()).changed(**overrides)
    origin = open_source(source)
    for column, value in (spec.where or {}).items():
        _keep_rows(origin, column, value)
    report = Report(
        origin.name, provenance=origin.provenance, licence=origin.licence, notes=list(origin.notes)
    )
    parts = _assign(origin, spec, report)
    every = pd.concat(parts.values(), ignore_index=True).drop(columns=_ROW)
    columns = choose_columns(every, spec, origin.class_names, origin.name)
    report.kind, report.columns = columns.kind, columns.choices
    rows, classes = _normalise(parts, columns, spec, origin, report)
    frames = _divide(rows, spec, classes, origin.name, report)
    _count(frames, classes, columns.kind, report)
    fingerprint = _fingerprint(columns.kind, classes, frames)
    ready = {role: _to_dataset(frame, columns.kind, classes) for role, frame in frames.items()}
    return Splits(
        columns.kind,
        classes,
        report=report,
        fingerprint=fingerprint,
        max_validation=spec.max_validation,
        modality="image" if "image" in columns else "text",
        **ready,
    )


def _keep_rows(origin: Source, column: str, value: str) -> None:
    """Leave only rows whose ``column`` holds ``value``."""
    for name, table in origin.tables.items():
        if column not in table.columns:
            names = list(map(str, table.columns))
            raise DataError(
                f"{origin.name} has no column '{column}' for --where{nearest(column, names)}; "
                f"columns: {', '.join(names)}"
            )
        kept = table[[cell_text(cell, column, origin.name) == value for cell in table[column]]]
        if kept.empty:
            there = sorted({cell_text(cell, column, origin.name) for cell in table[column]})
            raise DataError(
                f"{origin.name} has no row with {column}={value}{nearest(value, there)}: there are "
                f"{', '.join(there[:12])}"
            )
        origin.tables[name] = kept.reset_index(drop=True)
    origin.name += f" ({column}={value})"


# which rows are train, validation and test


def _assign(origin: Source, spec: DataSpec, report: Report) -> dict[str, pd.DataFrame]:
    """Tables by role, each with its row numbers; roles that the source does not have are absent."""
    tables = {name: table.assign(**{_ROW: np.arange(len(table))}) for name, table in origin.tables.items()}
    where = "split"
    if list(tables) == [""]:
        table = tables[""]
        column = next((name for name in table.columns if str(name).strip().lower() == "split"), None)
        if column is not None and column not in (spec.text, spec.text_b, spec.label, spec.target):
            where = f"value of column '{column}'"
            values = table[column].map(lambda value: "" if is_missing(value) else str(value).strip())
            tables = {name: table[values == name] for name in values.unique() if name}
            if (values == "").any():
                report.note(f"{(values == '').sum()} rows without a value in column '{column}' were left out")
    given = {role: getattr(spec, f"{role}_split") for role in ROLES}
    if list(tables) == [""]:
        for role, name in given.items():
            if name is not None:
                raise DataError(
                    f"{origin.name} has no splits and no column 'split': leave out --{role}-split {name}"
                )
        return _reported({"train": ("", tables[""])}, report)
    roles = _roles(list(tables), given, origin.name, where, report)
    return _reported({role: (name, tables[name]) for role, name in roles.items()}, report)


def _roles(
    names: list[str], given: dict[str, str | None], source: str, where: str, report: Report
) -> dict[str, str]:
    shown = ", ".join(f"'{name}'" for name in names)
    roles: dict[str, str] = {}
    for role, name in given.items():
        if name is None:
            continue
        if name not in names:
            raise DataError(
                f"{source} has no {where} '{name}' for --{role}-split{nearest(name, names)}: {shown}"
            )
        if name in roles.values():
            raise DataError(f"split '{name}' is given for two uses: name different splits of {shown}")
        roles[role] = name
    for role, usual in ROLES.items():
        free = [name for name in names if role_of(name) == role and name not in roles.values()]
        if role not in roles and free:
            roles[role] = min(free, key=lambda name: usual.index(name.strip().lower()))
    if "train" not in roles and len(names) == 1:
        roles = {"train": names[0]}
        report.note(f"the only split, '{names[0]}', is divided into train, validation and test")
    if "train" not in roles:
        raise DataError(f"{source} has no training split among {shown}: name one with --train-split")
    unused = [name for name in names if name not in roles.values()]
    if unused:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        report.note(
            f"splits not used: {', '.join(unused[:5])}{more} (name them with --train-split and so on)"
        )
    return roles


def _reported(parts: dict[str, tuple[str, pd.DataFrame]], report: Report) -> dict[str, pd.DataFrame]:
    for role in ROLES:
        if role in parts:
            name = parts[role][0]
            report.splits[role] = SplitReport(f"given as '{name}'" if name else "given")
    return {role: parts[role][1] for role in ROLES if role in parts}


# from the user's columns to ours


def _normalise(
    parts: dict[str, pd.DataFrame], columns: Columns, spec: DataSpec, origin: Source, report: Report
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """All usable rows: ``split``, ``row``, the texts or ``image``, the answer, and ``key`` to compare."""
    import pandas as pd

    for role, part in parts.items():
        for use in ("text", "text_b", "image"):
            if use in columns and columns[use] not in part.columns:
                raise DataError(
                    f"{origin.name}: {role} has no column '{columns[use]}', which train has: rename it"
                )
    for role, part in parts.items():
        for name in spec.columns:
            if name not in part.columns:
                raise DataError(
                    f"{origin.name}: {role} has no column '{name}'{nearest(name, list(map(str, part.columns)))}"
                )
    wanted = list(dict.fromkeys([*(choice.column for choice in columns.choices.values()), *spec.columns]))
    every = pd.concat(
        [part.reindex(columns=[*wanted, _ROW]).assign(**{_SPLIT: role}) for role, part in parts.items()]
    )
    every = every.reset_index(drop=True)
    rows = pd.DataFrame({"split": every[_SPLIT], "row": every[_ROW].astype("int64")})
    for use in ("text", "text_b"):
        if use in columns:
            rows[use] = [cell_text(value, columns[use], origin.name) for value in every[columns[use]]]
    for name in spec.columns:
        rows[_OTHER + name] = [shown(value, name, origin.name) for value in every[name]]
    if "image" in columns:
        _pictures(rows, every[columns["image"]], origin)
        empty = rows["image"].isna()
    else:
        empty = rows["text"].str.strip() == ""
    if "text_b" in columns and columns.kind != "generation":
        empty |= rows["text_b"].str.strip() == ""
    classes: tuple[str, ...] = ()
    answer, reason = _ANSWER[columns.kind], "no label"
    if columns.kind == "generation":
        reason = "no answer"
        rows[answer] = pd.Series(
            [_targets(value, columns["target"]) for value in every[columns["target"]]], dtype=object
        )
    else:
        label = columns["label"]
        hidden = _hidden_labels(every, label)
        every[label] = every[label].astype(object).mask(hidden, None)
        encoded = encode(every, rows, columns, spec, origin.class_names, report)
        classes = encoded.classes
        rows[answer] = pd.Series(encoded.values, dtype=object)
    unanswered = rows[answer].isna() & ~empty
    for role in parts:
        of_role = rows["split"] == role
        report.drop(role, "no image" if "image" in columns else "empty text", (empty & of_role).sum())
        report.drop(role, reason, (unanswered & of_role).sum())
    rows = rows[~empty & ~unanswered].reset_index(drop=True)
    if "image" not in columns:
        # A row is what a model reads of it: one sentence with two pairs of entities is two rows.
        read = [
            name for name in ("text", "text_b", *(_OTHER + name for name in spec.columns)) if name in rows
        ]
        texts = rows[read].agg("\x1f".join, axis=1) if len(read) > 1 else rows["text"]
        rows["key"] = [" ".join(text.lower().split()) for text in texts]
    if not (rows["split"] == "train").any():
        counts = ", ".join(f"{count} with {what}" for what, count in report.splits["train"].dropped.items())
        raise DataError(
            f"{origin.name} has no usable training row ({counts or 'no rows'}): check the columns"
        )
    return rows, classes


def _pictures(rows: pd.DataFrame, values: pd.Series, origin: Source) -> None:
    """Fill ``image`` and ``key``; None where a cell holds nothing."""
    import pandas as pd

    found, keys = [], []
    for value, role, number in zip(values, rows["split"], rows["row"], strict=True):
        where = f"row {number} of {role} in {origin.name}"
        picture = None if is_missing(value) else as_picture(value, origin.folder)
        found.append(picture)
        keys.append("" if picture is None else picture_key(picture, where))
    rows["image"], rows["key"] = pd.Series(found, dtype=object), keys


def _targets(value: Any, column: str) -> list[str] | None:
    """The references of one row, None when there is none."""
    if isinstance(value, dict) and "text" in value:  # answers as SQuAD keeps them
        value = value["text"]
    if isinstance(value, (dict, bytes)):
        kind = type(value).__name__
        raise DataError(
            f"column '{column}' holds a {kind}, not text or a list of texts: choose another --target"
        )
    values = list(value) if is_list(value) else [value]
    found = [cell_text(item, column, "target") for item in values if is_list(item) or not is_missing(item)]
    return found or None


def _hidden_labels(every: pd.DataFrame, label: str) -> pd.Series:
    """Rows of a split whose every label is -1 while train has none: how benchmarks hide test labels."""
    minus = every[label].map(lambda value: not is_list(value) and str(value) in ("-1", "-1.0"))
    hidden = minus & False
    if not minus[every[_SPLIT] == "train"].any():
        for role in every[_SPLIT].unique():
            of_role = every[_SPLIT] == role
            hidden |= of_role & minus[of_role].all()
    return hidden


# draws


def _divide(
    rows: pd.DataFrame, spec: DataSpec, classes: tuple[str, ...], source: str, report: Report
) -> dict[str, pd.DataFrame]:
    """Train, validation and test, never sharing a row; missing ones are drawn from train."""
    answer = next(name for name in _ANSWER.values() if name in rows.columns)
    _note_conflicts(rows, answer, report)
    train, validation, test = (rows[rows["split"] == role] for role in ROLES)
    for role, part in (("validation", validation), ("test", test)):
        if part.empty and role in report.splits:
            count = sum(report.splits[role].dropped.values())
            report.note(f"the given {role} split has no usable row ({count} dropped): one is made from train")
    if test.empty:
        size = spec.test_size or _TEST_SHARE
        test, train = _take(train, answer, size, spec.split_seed, "test", source)
        _made(report, "test", f"made: {_amount(size)} of train, split seed {spec.split_seed}")
    elif spec.test_size is not None:
        report.note("test_size was not used: the data gives a test split")
    if spec.max_test is not None and len(test) > spec.max_test:
        test = _limit(test, answer, spec.max_test, spec.split_seed, "test", report)
    given_validation = not validation.empty
    train = _without(train, test, "train", "also in test", spec, report)
    if given_validation:
        validation = _without(validation, test, "validation", "also in test", spec, report)
        train = _without(train, validation, "train", "also in validation", spec, report)
        if spec.validation_size is not None:
            report.note("validation_size was not used: the data gives a validation split")
    if train.empty:
        raise DataError(f"{source}: every training row also stands in test or validation: give separate data")
    if answer == "label" and train[answer].nunique() < 2:
        only = classes[train[answer].iloc[0]]
        raise DataError(
            f"{source}: train has only the class '{only}': classification needs two classes or more"
        )
    if spec.shots is not None:
        train, rest = _shots(train, answer, spec, classes, report)
        if not given_validation:
            validation = _few_validation(rest, answer, spec, classes, report)
        elif "image" in validation:  # CoOp's convention: few-shot validation too
            few = min(spec.shots, 4)
            validation = validation.iloc[_shot_rows(validation, answer, spec, classes, few)]
            report.splits["validation"].origin += f", {few} per class, seed {spec.seed}"
    elif not given_validation:
        size = spec.validation_size or _VALIDATION_SHARE
        if len(train) > 1 and (size < 1 or size < len(train)):
            validation, train = _take(train, answer, size, spec.seed, "validation", source, must=False)
        elif size >= 1:
            raise DataError(f"validation_size={size} leaves no training row of {len(train)}: give less")
        _made(report, "validation", f"made: {_amount(size)} of train, seed {spec.seed}")
        train = _without(train, validation, "train", "also in validation", spec, report)
    if spec.max_validation is not None and len(validation) > spec.max_validation:
        validation = _limit(validation, answer, spec.max_validation, spec.split_seed, "validation", report)
    if spec.max_train is not None and len(train) > spec.max_train:
        train = _limit(train, answer, spec.max_train, spec.seed, "train", report)
    return {"train": train, "validation": validation, "test": test}


def _amount(size: float | int) -> str:
    return f"{size:.0%}" if size < 1 else f"{size} rows"


def _made(report: Report, role: str, origin: str) -> None:
    dropped = report.splits[role].dropped if role in report.splits else {}
    report.splits[role] = SplitReport(origin, dropped=dropped)


def _groups(rows: pd.DataFrame, answer: str) -> np.ndarray:
    return np.zeros(len(rows), dtype=int) if answer == "targets" else strata(rows[answer].tolist())


def _take(
    rows: pd.DataFrame, answer: str, size: float | int, seed: int, role: str, source: str, must: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A stratified part of ``rows`` and the rest."""
    if size >= len(rows):
        raise DataError(
            f"{role}_size={size} takes all {len(rows)} rows of {source}: give less, or a {role} split"
        )
    size = size if size < 1 else int(size)
    chosen = draw(_groups(rows, answer), size, seed)
    if not chosen and must:
        raise DataError(
            f"{source} has too few rows ({len(rows)}) to make a {role} set: add rows, or a {role} split"
        )
    mask = np.zeros(len(rows), dtype=bool)
    mask[chosen] = True
    return rows[mask], rows[~mask]


def _limit(rows: pd.DataFrame, answer: str, limit: int, seed: int, role: str, report: Report) -> pd.DataFrame:
    report.note(f"{role} was limited from {len(rows)} to {limit} rows (max_{role}), class by class")
    return rows.iloc[draw(_groups(rows, answer), limit, seed, leave=0)]


def _without(
    rows: pd.DataFrame, other: pd.DataFrame, role: str, reason: str, spec: DataSpec, report: Report
) -> pd.DataFrame:
    """``rows`` less those whose text stands in ``other``."""
    repeated = rows["key"].isin(set(other["key"]))
    if not spec.deduplicate:
        if repeated.any():
            report.note(f"{repeated.sum()} rows of {role} {reason} were kept (deduplicate is off)")
        return rows
    what = "image" if "image" in rows else "text"
    report.drop(role, f"{what} {reason}", repeated.sum())
    return rows[~repeated]


def _shots(
    train: pd.DataFrame, answer: str, spec: DataSpec, classes: tuple[str, ...], report: Report
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The few-shot rows, all of different texts, and the rows left that share no text with them."""
    assert spec.shots is not None
    pool = train.drop_duplicates("key") if spec.deduplicate else train
    mask = np.zeros(len(pool), dtype=bool)
    mask[_shot_rows(pool, answer, spec, classes, spec.shots)] = True
    taken, rest = pool[mask], pool[~mask]
    have = _per_class(taken, answer, classes)
    short = [f"{name} {count}" for name, count in have.items() if count < spec.shots]
    if short:
        report.note(
            f"classes with fewer than {spec.shots} training rows use all they have: {', '.join(short)}"
        )
    if answer == "targets" and len(taken) < spec.shots:
        report.note(f"train has only {len(taken)} rows for {spec.shots} shots: all are used")
    report.splits["train"].origin += f", {spec.shots} {'rows' if not classes else 'per class'} of {len(pool)}"
    report.splits["train"].origin += f", seed {spec.seed}"
    return taken, rest


def _shot_rows(
    rows: pd.DataFrame, answer: str, spec: DataSpec, classes: tuple[str, ...], shots: int
) -> list[int]:
    labels = [0] * len(rows) if answer == "targets" else rows[answer].tolist()
    return shot_rows(labels, shots, spec.seed, max(len(classes), 1))


def _few_validation(
    rest: pd.DataFrame, answer: str, spec: DataSpec, classes: tuple[str, ...], report: Report
) -> pd.DataFrame:
    """As many validation rows as shots, as LM-BFF does: a larger validation set would not be few-shot.

    Of pictures at most 4 a class, as CoOp does.
    """
    if rest.empty:
        report.note("no training rows were left for validation: it is empty")
        _made(report, "validation", "made: nothing left")
        return rest
    if spec.validation_size is not None:
        size = spec.validation_size
        amount = min(size, len(rest)) if size >= 1 else size
        chosen = draw(_groups(rest, answer), amount, spec.seed, leave=0)
        origin = f"made: {_amount(size)} of the rest of train, seed {spec.seed}"
    else:
        assert spec.shots is not None
        shots = min(spec.shots, 4) if "image" in rest else spec.shots
        chosen = _shot_rows(rest, answer, spec, classes, shots)
        amount_of = "per class" if classes else "rows"
        origin = f"made: {shots} {amount_of} of the rest of train, seed {spec.seed}"
    _made(report, "validation", origin)
    return rest.iloc[chosen]


# what came out


def _note_conflicts(rows: pd.DataFrame, answer: str, report: Report) -> None:
    if answer == "targets":
        return
    labels = rows[answer].map(str)
    differing = labels.groupby(rows["key"]).nunique()
    count = int((differing > 1).sum())
    if count:
        key = differing.index[differing > 1][0].replace("\x1f", " / ")
        shown = key if len(key) <= 60 else key[:57] + "..."
        if "image" in rows:
            report.note(f"{count} pictures stand with different labels")
        else:
            report.note(f"{count} texts stand with different labels, the first: '{shown}'")


def _per_class(rows: pd.DataFrame, answer: str, classes: tuple[str, ...]) -> dict[str, int]:
    if answer == "label":
        counts = Counter(rows[answer])
        return {name: counts[index] for index, name in enumerate(classes)}
    if answer == "labels":
        return {name: sum(row[index] for row in rows[answer]) for index, name in enumerate(classes)}
    return {}


def _count(frames: dict[str, pd.DataFrame], classes: tuple[str, ...], kind: str, report: Report) -> None:
    answer = _ANSWER[kind]
    report.splits = {role: report.splits[role] for role in frames}
    for role, frame in frames.items():
        report.splits[role].rows = len(frame)
        report.splits[role].per_class = _per_class(frame, answer, classes)
    train = report.splits["train"].per_class
    absent = [name for name, count in train.items() if not count and report.splits["test"].per_class[name]]
    if absent:
        report.note(f"classes in test but not in train: {_names(absent)}")
    untested = [name for name, count in report.splits["test"].per_class.items() if not count and train[name]]
    if untested:
        report.note(f"classes in train but not in test: {_names(untested)}")


def _names(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _fingerprint(kind: str, classes: tuple[str, ...], frames: dict[str, pd.DataFrame]) -> str:
    digest = hashlib.sha256(json.dumps([kind, list(classes)]).encode())
    for role, frame in frames.items():
        digest.update(f"\n{role}\n".encode())
        for record in _records(frame, kind):
            digest.update(json.dumps(record).encode() + b"\n")
    return digest.hexdigest()


def _records(frame: pd.DataFrame, kind: str) -> Iterator[list[Any]]:
    others = [name for name in frame.columns if str(name).startswith(_OTHER)]
    read = ("key",) if "image" in frame.columns else ("text", "text_b")
    names = [name for name in (*read, _ANSWER[kind], *others) if name in frame.columns]
    return map(list, zip(*(frame[name].tolist() for name in names), strict=True))


def _to_dataset(frame: pd.DataFrame, kind: str, classes: tuple[str, ...]) -> datasets.Dataset:
    import datasets

    answer = _ANSWER[kind]
    types: dict[str, Any] = {}
    if "image" in frame.columns:
        types = {"image": datasets.Image(decode=False), "key": datasets.Value("string")}
    else:
        types["text"] = datasets.Value("string")
    if "text_b" in frame.columns:
        types["text_b"] = datasets.Value("string")
    types[answer] = {
        "label": datasets.ClassLabel(names=list(classes)) if classes else None,
        "labels": datasets.List(datasets.Value("int64")),
        "targets": datasets.List(datasets.Value("string")),
    }[answer]
    types["row"] = datasets.Value("int64")
    columns = {name: frame[name].tolist() for name in types}
    for name in frame.columns:
        if str(name).startswith(_OTHER):
            types[name.removeprefix(_OTHER)] = datasets.Value("string")
            columns[name.removeprefix(_OTHER)] = frame[name].tolist()
    return datasets.Dataset.from_dict(columns, features=datasets.Features(types))
