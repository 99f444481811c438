"""Raw label values to class numbers, and where the names of the classes come from.

Values are compared as text: 1, 1.0, "1" and numpy's 1 are one label whatever file format they passed through.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuelight.data.columns import Columns, as_text, is_list, is_missing, split_delimited
from cuelight.data.report import Report
from cuelight.data.spec import DataSpec
from cuelight.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Encoded", "encode"]

_INTEGER = re.compile(r"-?\d+$")
_WHOLE = re.compile(r"-?\d+\.0+$")
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
_MANY_REALS = 20


@dataclass
class Encoded:
    """The classes in order, and per row a class number, a 0/1 list, or None where the label is missing."""

    classes: tuple[str, ...]
    values: list[Any]


def encode(
    rows: pd.DataFrame,
    where: pd.DataFrame,
    columns: Columns,
    spec: DataSpec,
    declared: Mapping[str, list[str]],
    report: Report,
) -> Encoded:
    """Encode the label column of ``rows``; ``where`` holds their ``row`` and ``split`` for error messages.

    Raises ``DataError`` when the column holds numbers to predict, free text, or a label outside ``classes``.
    """
    label = columns["label"]
    names = declared.get(label)
    words = rows[columns["label_name"]] if "label_name" in columns else None
    if columns.kind == "multilabel":
        keys, order = _several(rows, label, names, words)
    else:
        keys, order = _single(rows, label, names, words)
    present = Counter(key for row in keys if row is not None for key in row)
    if columns.kind == "classification":
        _refuse_free_text(label, present, spec, declared=bool(names))
    renamed = _renaming(present, order, spec, label)
    order = list(dict.fromkeys(renamed.get(key, key) for key in order))
    keys = [None if row is None else [renamed.get(key, key) for key in row] for row in keys]
    classes = _order(order, keys, where, label, spec, report)
    place = {name: index for index, name in enumerate(classes)}
    if all(_INTEGER.match(name) for name in classes):
        report.note(
            f"the classes are only numbers ({', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''}): "
            "methods that use class names work better with words; give label_names"
        )
    if columns.kind == "classification":
        return Encoded(classes, [None if row is None else place[row[0]] for row in keys])
    values = []
    for row in keys:
        have = None if row is None else {place[key] for key in row}
        values.append(None if have is None else [int(index in have) for index in range(len(classes))])
    return Encoded(classes, values)


def _key(value: Any) -> str | None:
    """A label value as text, None when it is missing."""
    if is_missing(value):
        return None
    return as_text(value).strip()


_Keys = list[list[str] | None]


def _single(
    rows: pd.DataFrame, label: str, names: list[str] | None, words: pd.Series | None
) -> tuple[_Keys, list[str]]:
    """One key per row (in a list, as for several) and all keys in class order."""
    values = rows[label]
    bad = next((value for value in values if is_list(value) or isinstance(value, (dict, bytes))), None)
    if bad is not None:
        raise DataError(
            f"label column '{label}' holds a {type(bad).__name__}, not one label: "
            "give task='multilabel' for lists, or another --label"
        )
    raw = [_key(value) for value in values]
    if names is not None and all(key is None or _INTEGER.match(key) for key in raw):
        return [_named(key, names, label) for key in raw], names
    present = {key for key in raw if key is not None}
    if all(_INTEGER.match(key) or _WHOLE.match(key) for key in present):
        raw = [None if key is None else str(int(key.partition(".")[0])) for key in raw]
        present = {key for key in raw if key is not None}
    reals = all(_NUMBER.match(key) for key in present) and not all(_INTEGER.match(key) for key in present)
    if reals and len(present) > _MANY_REALS:
        raise DataError(
            f"label column '{label}' holds {len(present)} different real numbers, a score and no class: "
            "cut it into classes first, or name another column with --label"
        )
    order = _sorted(present)
    if words is not None:
        named = {
            key: as_text(word).strip()
            for key, word in zip(raw, words, strict=True)
            if key and not is_missing(word)
        }
        raw = [None if key is None else named.get(key, key) for key in raw]
        order = [named.get(key, key) for key in order]
    return [None if key is None else [key] for key in raw], order


def _named(key: str | None, names: list[str], label: str) -> list[str] | None:
    if key is None or key == "-1":  # the hub's sign for "no label"
        return None
    return [_declared(key, names, label)]


def _declared(key: str, names: list[str], label: str) -> str:
    if not _INTEGER.match(key) or not 0 <= int(key) < len(names):
        raise DataError(
            f"label column '{label}' holds {key}, but declares only {len(names)} classes: mend the data"
        )
    return names[int(key)]


def _several(
    rows: pd.DataFrame, label: str, names: list[str] | None, words: pd.Series | None
) -> tuple[_Keys, list[str]]:
    """Each row's keys, from 0/1 vectors, lists or delimited text, and all keys in class order."""
    cells = [None if is_missing(value) else value for value in rows[label]]
    lists = [list(cell) if cell is not None and is_list(cell) else None for cell in cells]
    filled = [cell for cell in lists if cell is not None]
    if not filled:
        comma = not any(isinstance(cell, str) and re.search("[;|]", cell) for cell in cells)
        keys: _Keys = [None if cell is None else split_delimited(_key(cell) or "", comma) for cell in cells]
        return keys, _sorted({key for row in keys if row is not None for key in row})
    width = len(filled[0])
    vector = width > 1 and all(len(cell) == width and all(v in (0, 1) for v in cell) for cell in filled)
    vector = vector and (names is None or len(names) == width)
    if not vector:
        keys = [
            None if cell is None else [key for key in map(_key, cell) if key is not None] for cell in lists
        ]
        if names is not None:
            keys = [None if row is None else [_declared(key, names, label) for key in row] for row in keys]
            return keys, names
        return keys, _sorted({key for row in keys if row is not None for key in row})
    if names is None:
        names = _vector_names(lists, words, width)
    keys = [None if cell is None else [names[i] for i, v in enumerate(cell) if v] for cell in lists]
    return keys, names


def _vector_names(lists: Iterable[list[Any] | None], words: pd.Series | None, width: int) -> list[str]:
    """Names of the places of a 0/1 vector, from a column that lists each row's names in the same order."""
    names = [str(index) for index in range(width)]
    if words is None:
        return names
    found: dict[int, str] = {}
    for cell, listed in zip(lists, words, strict=True):
        places = [index for index, value in enumerate(cell or []) if value]
        if not is_list(listed) or len(listed) != len(places):
            return names
        for index, name in zip(places, listed, strict=True):
            if found.setdefault(index, str(name)) != str(name):
                return names
    return [found.get(index, str(index)) for index in range(width)]


def _sorted(keys: Iterable[str]) -> list[str]:
    """Numbers by size, other labels by the alphabet."""
    keys = list(keys)
    if all(_NUMBER.match(key) for key in keys):
        return sorted(keys, key=lambda key: (float(key), key))  # beyond 2**53 floats tie
    return sorted(keys)


def _refuse_free_text(label: str, present: Counter[str], spec: DataSpec, declared: bool) -> None:
    total = present.total()
    if (
        len(present) <= 5
        or len(present) <= total / 2
        or spec.classes
        or spec.task == "classification"
        or declared
    ):
        return
    raise DataError(
        f"label column '{label}' has {len(present)} different values in {total} rows, which looks like free "
        f"text or an id: name another column with --label, or use --target {label} to generate it"
    )


def _renaming(present: Counter[str], order: list[str], spec: DataSpec, label: str) -> dict[str, str]:
    """What ``label_names``, or ``classes`` for labels 0, 1, 2, ..., call the labels."""
    renamed: dict[str, str] = {}
    for raw, name in (spec.label_names or {}).items():
        key = _key(raw) or ""
        if key not in present and key not in order:
            hint = nearest(key, order)
            shown = ", ".join(f"'{known}'" for known in order[:8])
            raise DataError(
                f"label_names names '{key}', which is no label of column '{label}'{hint}: {shown}"
            )
        renamed[key] = str(name).strip()
    if spec.classes and not renamed and not set(present) & set(spec.classes):
        numbers = {str(index): name for index, name in enumerate(spec.classes)}
        if set(present) <= set(numbers):
            return numbers
    return renamed


def _order(
    order: list[str], keys: _Keys, where: pd.DataFrame, label: str, spec: DataSpec, report: Report
) -> tuple[str, ...]:
    if spec.classes is None:
        return tuple(order)
    for row, split, number in zip(keys, where["split"], where["row"], strict=True):
        for key in row or ():
            if key not in spec.classes:
                hint = nearest(key, spec.classes)
                raise DataError(
                    f"label '{key}' in column '{label}' (row {number}, {split}) is not one of the given "
                    f"classes{hint}: add it to classes, or leave classes out"
                )
    present = {key for row in keys for key in row or ()}
    unseen = [name for name in spec.classes if name not in present]
    if unseen:
        report.note(f"given classes without any row: {', '.join(unseen)}")
    return spec.classes
