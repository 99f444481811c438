"""What a user may say about their data: every field is optional, and every field is a command-line option."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from cuelight.errors import ConfigError, nearest

__all__ = ["DataSpec", "Kind"]

Kind = Literal["classification", "multilabel", "generation"]
_KINDS = ("classification", "multilabel", "generation")
_NAMES = ("text", "text_b", "image", "label", "target", "train_split", "validation_split", "test_split")
_COUNTS = ("shots", "max_train", "max_validation", "max_test")


@dataclass(frozen=True)
class DataSpec:
    """How to read a source; what is left at ``None`` is guessed from the data and said in the report.

    text, text_b, image, label, target: names of columns (``target`` is what a generation task should answer).
    columns: other columns to keep, as text; those that a template names are kept without saying so.
    where: column to value: only rows that have it are read, as if there were no others.
    task: ``classification``, ``multilabel`` or ``generation``.
    train_split, validation_split, test_split: names of splits, or values of a ``split`` column.
    shots: training rows per class (rows in all for generation), drawn with ``seed``.
    max_train, max_validation, max_test: upper limits of rows, drawn class by class.
    test_size, validation_size: share (0 to 1) or number of rows, for splits that have to be made.
    split_seed: draws a test set that has to be made; kept apart from ``seed`` so that the seeds of a
        comparison share their test rows.
    classes: the classes in order; they also name integer labels 0, 1, 2, ...
    label_names: raw label to class name; two labels with one name become one class.
    deduplicate: remove from train what also stands in validation or test.

    Raises ``ConfigError`` for a value out of range.
    """

    text: str | None = None
    text_b: str | None = None
    image: str | None = None
    columns: tuple[str, ...] = ()
    where: Mapping[str, str] | None = None
    label: str | None = None
    target: str | None = None
    task: Kind | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    shots: int | None = None
    seed: int = 0
    max_train: int | None = None
    max_test: int | None = None
    max_validation: int | None = None
    test_size: float | int | None = None
    validation_size: float | int | None = None
    split_seed: int = 0
    classes: tuple[str, ...] | None = None
    label_names: Mapping[Any, str] | None = None
    deduplicate: bool = True

    def __post_init__(self) -> None:
        for name in _NAMES:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"{name}={value!r} should be a name: give one word or leave it out")
        if self.task is not None and self.task not in _KINDS:
            hint = nearest(str(self.task), _KINDS)
            raise ConfigError(f"task={self.task!r} is unknown{hint}: choose one of {', '.join(_KINDS)}")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not _is_int(value) or value < 1):
                raise ConfigError(f"{name}={value!r} is out of range: give a whole number of 1 or more")
        for name in ("seed", "split_seed"):
            value = getattr(self, name)
            if not _is_int(value) or not 0 <= value < 2**32:
                raise ConfigError(
                    f"{name}={value!r} is out of range: give a whole number from 0 to 2**32 - 1"
                )
        for name in ("test_size", "validation_size"):
            value = getattr(self, name)
            if value is None or (_is_int(value) and value >= 1):
                continue
            if not isinstance(value, float) or not 0 < value < 1:
                raise ConfigError(
                    f"{name}={value!r} is out of range: give a share between 0 and 1, or a number of rows"
                )
        if not isinstance(self.deduplicate, bool):
            raise ConfigError(f"deduplicate={self.deduplicate!r} is no switch: give True or False")
        if self.label_names is not None and not isinstance(self.label_names, Mapping):
            raise ConfigError(
                f"label_names={self.label_names!r} should map labels to names: give {{0: 'bad', 1: 'good'}}, "
                "in the shell 0=bad,1=good"
            )
        if self.image is not None and (self.text or self.text_b):
            raise ConfigError(
                f"image='{self.image}' and text='{self.text or self.text_b}' exclude each other: "
                "give the column that is to be classified"
            )
        if self.where is not None and not isinstance(self.where, Mapping):
            raise ConfigError(
                f"where={self.where!r} should map columns to values: give {{'domain': 'photo'}}, in the shell "
                "domain=photo"
            )
        if isinstance(self.columns, str):
            raise ConfigError(f"columns={self.columns!r} should be names: give a list, in the shell a,b")
        object.__setattr__(self, "columns", tuple(self.columns))
        if self.classes is not None:
            if isinstance(self.classes, str | Mapping | Set) or not isinstance(self.classes, Iterable):
                raise ConfigError(
                    f"classes={self.classes!r} should be names in order: give a list, in the shell a,b"
                )
            object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
            if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
                raise ConfigError(f"classes={list(self.classes)} should be two or more different names")
        if self.task == "generation" and self.label is not None:
            raise ConfigError(
                f"label='{self.label}' does not fit task='generation': name the answers by target"
            )
        if self.task in ("classification", "multilabel") and self.target is not None:
            raise ConfigError(f"target='{self.target}' does not fit task='{self.task}': use label")
        if self.label is not None and self.target is not None:
            raise ConfigError(
                f"label='{self.label}' and target='{self.target}' exclude each other: "
                "give label for classification or target for generation"
            )

    def changed(self, **overrides: Any) -> DataSpec:
        """A copy with some fields replaced; an unknown field is a ``ConfigError`` naming the nearest one."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in names:
                raise ConfigError(f"unknown data option '{name}'{nearest(name, names)}: {', '.join(names)}")
        return dataclasses.replace(self, **overrides)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
