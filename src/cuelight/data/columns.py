"""Which column is what: given by the user, else guessed by name, else by type and cardinality.

A guess is only made where one column stands out; otherwise the user is told the columns and which option to
give.  Names are compared in lower case with every other sign as an underscore.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from cuelight.data.images import holds_pictures
from cuelight.data.report import Choice
from cuelight.data.spec import DataSpec, Kind
from cuelight.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Columns",
    "as_text",
    "cell_text",
    "choose_columns",
    "choose_picture",
    "choose_texts",
    "is_list",
    "is_missing",
    "shown",
    "split_delimited",
]

_PAIRS = (
    ("text", "text_b"), ("text_a", "text_b"), ("text1", "text2"), ("text", "text_pair"), ("text_1", "text_2"),
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"), ("question1", "question2"), ("question_1", "question_2"),
    ("question", "sentence"), ("question", "passage"), ("question", "context"), ("story", "question"),
    ("query", "passage"), ("query", "document"), ("instruction", "input"),
)  # fmt: skip
_TEXT = (
    "text", "sentence", "review", "review_text", "content", "question", "document", "article", "dialogue",
    "tweet", "comment", "message", "utterance", "query", "body", "input", "prompt", "instruction", "source",
    "snippet", "passage", "abstract", "post", "email", "sms", "headline", "description", "premise", "story",
    "sentence1", "text_a", "text1", "context", "title",
)  # fmt: skip
_STRONG_LABEL = ("label", "labels", "class")
_LABEL = (
    *_STRONG_LABEL, "category", "categories", "sentiment", "label_text", "class_name", "label_name",
    "label_names", "gold_label", "gold", "coarse_label", "label_coarse", "intent", "topic", "topics",
    "emotion", "emotions", "polarity", "stance", "genre", "genres", "tag", "tags", "rating",
    "stars", "score", "y",
)  # fmt: skip
_LABEL_WORDS = ("label_name", "label_text", "class_name", "label_names")  # words beside an integer label
_TARGET = (
    "target", "targets", "output", "outputs", "answer", "answers", "response", "completion", "summary",
    "summaries", "highlights", "reference", "references", "translation", "simplification", "simplifications",
    "ground_truth", "solution",
)  # fmt: skip
_IMAGE = (
    "image", "img", "picture", "photo", "image_path", "img_path", "path", "file", "filename", "file_name",
    "filepath", "file_path",
)  # fmt: skip
_PLURAL = ("labels", "tags", "genres", "topics", "categories", "emotions", "label_names")
_SPLIT = "split"


class Columns:
    """The columns taken: ``kind``, and per role (text, text_b, image, label, label_name, target) a ``Choice``."""

    def __init__(self, kind: Kind, choices: dict[str, Choice]) -> None:
        self.kind = kind
        self.choices = choices

    def __getitem__(self, role: str) -> str:
        return self.choices[role].column

    def __contains__(self, role: str) -> bool:
        return role in self.choices


def is_list(value: Any) -> bool:
    """Whether a cell holds several values."""
    return isinstance(value, (list, tuple, np.ndarray))


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or a blank string."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if is_list(value) or isinstance(value, (dict, bytes)):
        return False
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas' NA is neither equal nor unequal to itself
        return True


def as_text(value: Any) -> str:
    """A cell as text: whole numbers without a point, and no half of a character pair (JSON may hold one)."""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def cell_text(value: Any, column: str, source: str) -> str:
    """A cell of a text column, empty where it holds nothing.

    Raises ``DataError`` for a cell that holds several values or none that can be read as text.
    """
    if is_list(value) or isinstance(value, (dict, bytes)):
        raise DataError(
            f"{source}: column '{column}' holds a {type(value).__name__}, not text: choose another --text"
        )
    return "" if is_missing(value) else as_text(value)


def shown(value: Any, column: str, source: str) -> str:
    """A cell of any other column as text; several values with spaces between them."""
    return " ".join(map(str, value)) if is_list(value) else cell_text(value, column, source)


def split_delimited(value: str, comma: bool = False) -> list[str]:
    """``"a;b"`` or ``"a|b"`` (with ``comma`` also ``"a, b"``) as its parts."""
    return [part.strip() for part in re.split("[;|,]" if comma else "[;|]", value) if part.strip()]


def choose_columns(
    frame: pd.DataFrame, spec: DataSpec, declared: dict[str, list[str]], where: str = "the data"
) -> Columns:
    """Take the columns of ``frame`` that ``spec`` names and guess the others.

    Raises ``DataError`` naming the columns there are and the option to give.
    """
    return _Chooser(frame, spec, declared, where).columns()


def choose_texts(frame: pd.DataFrame, spec: DataSpec, where: str = "the data") -> dict[str, str]:
    """The columns of texts, ``text`` and maybe ``text_b``, of rows that need no label.

    Raises ``DataError`` as `choose_columns`.
    """
    return _Chooser(frame, spec, {}, where).texts()


def choose_picture(frame: pd.DataFrame, name: str | None, where: str = "the data") -> str:
    """The column of pictures, of rows that need no label.

    Raises ``DataError`` as `choose_columns`.
    """
    return _Chooser(frame, DataSpec(image=name), {}, where).picture()


class _Chooser:
    def __init__(
        self, frame: pd.DataFrame, spec: DataSpec, declared: dict[str, list[str]], where: str
    ) -> None:
        self.frame, self.spec, self.declared, self.where = frame, spec, declared, where
        self.names = [name for name in frame.columns if _plain(name) != _SPLIT]
        self.by_plain: dict[str, str] = {}
        for name in self.names:
            self.by_plain.setdefault(_plain(name), name)
        self.choices: dict[str, Choice] = {}

    def columns(self) -> Columns:
        for role in ("text", "text_b", "image", "label", "target"):
            name = getattr(self.spec, role)
            if name is not None:
                self.choices[role] = Choice(self._existing(role, name), "given")
        self._image()
        kind = self._answer()
        if "image" not in self.choices:
            self._text()
        if kind == "classification":
            kind = self._classification_kind()
        if kind != "generation":
            self._label_words()
        order = ("text", "text_b", "image", "label", "label_name", "target")
        return Columns(kind, {role: self.choices[role] for role in order if role in self.choices})

    def texts(self) -> dict[str, str]:
        for role in ("text", "text_b"):
            name = getattr(self.spec, role)
            if name is not None:
                self.choices[role] = Choice(self._existing(role, name), "given")
        if "text" not in self.choices and len(self.names) == 1:
            self.choices["text"] = Choice(self.names[0], "the only column")
        else:
            self._text()
        return {role: choice.column for role, choice in self.choices.items()}

    def picture(self) -> str:
        if self.spec.image is not None:
            return self._existing("image", self.spec.image)
        self._image()
        if "image" not in self.choices:
            raise self._error("no column holds pictures", "image")
        return self["image"]

    # the answer: a label or a target

    def _answer(self) -> Kind:
        task = self.spec.task
        if "target" in self.choices:
            return "generation"
        if "label" in self.choices:
            return task or "classification"
        label = self._first(_LABEL) if task != "generation" else None
        target = self._first(_TARGET)
        if label and target and _plain(label) not in _STRONG_LABEL and not self._repeats(label):
            label = None
        if task == "generation":
            if target is None:
                raise self._error("which column holds the answers is not clear", "target")
            return self._take("target", target, "guessed by its name", "generation")
        if target is not None and task is None and label is None and not self._few_values(target):
            return self._take("target", target, "guessed by its name", "generation")
        if target is not None and label is not None and task is None:
            unlike = not self._few_values(target)
            if unlike and _plain(label) not in _STRONG_LABEL:
                raise DataError(
                    f"{self.where}: '{label}' may be a label and '{target}' an answer to generate: give "
                    f"--label {label} or --target {target}; {self._list()}"
                )
        if label is None and target is not None and self._few_values(target):
            why = "guessed by its name and its few different values"
            return self._take("label", target, why, task or "classification")
        if label is None:
            label = self._label_by_values()
            return self._take("label", label, "guessed by its few different values", task or "classification")
        return self._take("label", label, "guessed by its name", task or "classification")

    def _take(self, role: str, column: str, why: str, kind: Kind) -> Kind:
        self.choices[role] = Choice(column, why)
        return kind

    def _few_values(self, column: str) -> bool:
        values = self._values(column)
        if not values or any(is_list(value) or isinstance(value, dict) for value in values):
            return False
        different = {str(value) for value in values}
        few = 2 <= len(different) <= max(2, min(20, len(values) // 20))
        return few and len(values) > len(different) and max(map(len, different)) <= 40

    def _repeats(self, column: str) -> bool:
        values = self._values(column)
        return len({str(value) for value in values}) <= len(values) / 2

    def _label_by_values(self) -> str:
        taken = {choice.column for choice in self.choices.values()}
        found = []
        for column in self.names:
            values = self._values(column)
            if column in taken or not values or any(not isinstance(v, _SCALARS) for v in values):
                continue
            different = {str(value) for value in values}
            real = any(isinstance(v, float) and not v.is_integer() for v in values)
            if 2 <= len(different) <= len(values) / 2 and max(map(len, different)) <= 60 and not real:
                found.append(column)
        if len(found) == 1:
            return found[0]
        if not found:
            raise self._error("no column looks like a label or an answer", "label", "target")
        raise self._error(f"several columns may be the label ({_quoted(found)})", "label", "target")

    def _classification_kind(self) -> Kind:
        column = self["label"]
        values = self._values(column)
        if self.spec.task in ("classification", "multilabel"):
            return self.spec.task
        if values and any(is_list(value) for value in values):
            return "multilabel"
        texts = [value for value in values if isinstance(value, str)]
        plural = _plain(column) in _PLURAL
        several = sum(len(split_delimited(text, comma=plural)) > 1 for text in texts)
        words = [word for text in set(texts) for word in split_delimited(text, comma=plural)]
        recur = len(set(words)) < len(words)  # the same word stands in different combinations
        if several and recur and (plural or several >= 0.05 * len(texts)):
            return "multilabel"
        return "classification"

    def _label_words(self) -> None:
        """A column of names beside a column of integers, given that each integer has its own name."""
        label = self["label"]
        if label in self.declared or _plain(label) in _LABEL_WORDS:
            return
        for plain in _LABEL_WORDS:
            column = self.by_plain.get(plain)
            if column is None or column == label:
                continue
            values, names = self.frame[label], self.frame[column]
            if any(is_list(value) for value in values) != any(is_list(value) for value in names):
                continue
            if not any(is_list(value) for value in values) and not _one_to_one(values, names):
                continue
            self.choices["label_name"] = Choice(column, "guessed by its name: it names the labels")
            return

    # the picture

    def _image(self) -> None:
        if any(role in self.choices for role in ("image", "text", "text_b")):
            return
        named = [self.by_plain[plain] for plain in _IMAGE if plain in self.by_plain]
        for column in dict.fromkeys([*named, *self.names]):
            if holds_pictures(self._values(column)):
                why = (
                    "guessed by its name: it holds pictures" if column in named else "guessed: holds pictures"
                )
                self.choices["image"] = Choice(column, why)
                return

    # the text

    def _text(self) -> None:
        answer = {self.choices[role].column for role in ("label", "target") if role in self.choices}
        names = {
            plain: name for plain, name in self.by_plain.items() if name not in answer and self._is_text(name)
        }
        if "text" not in self.choices and "text_b" not in self.choices:
            for first, second in _PAIRS:
                if first in names and second in names:
                    self.choices["text"] = Choice(names[first], "guessed by its name")
                    self.choices["text_b"] = Choice(
                        names[second], "guessed by its name: the second of a pair"
                    )
                    return
        if "text" not in self.choices:
            used = self.choices["text_b"].column if "text_b" in self.choices else None
            column = next((names[plain] for plain in _TEXT if plain in names and names[plain] != used), None)
            if column is not None:
                self.choices["text"] = Choice(column, "guessed by its name")
                return
            self.choices["text"] = Choice(
                self._text_by_values({*answer, used}), "guessed: its values are texts"
            )

    def _text_by_values(self, taken: set[str | None]) -> str:
        lengths = {}
        for column in self.names:
            values = self._values(column)
            if column in taken or not self._is_text(column):
                continue
            share = len(set(values)) / len(values)
            average = sum(map(len, values)) / len(values)
            if share > 0.5 and average >= 8 and any(" " in value for value in values):
                lengths[column] = average
        best = sorted(lengths, key=lambda column: -lengths[column])
        if not best:
            raise self._error("no column looks like text", "text")
        if len(best) > 1 and lengths[best[0]] < 2 * lengths[best[1]]:
            raise self._error(f"several columns may be the text ({_quoted(best)})", "text")
        return best[0]

    def _is_text(self, column: str) -> bool:
        values = self._values(column)
        return bool(values) and all(isinstance(value, str) for value in values)

    # helpers

    def __getitem__(self, role: str) -> str:
        return self.choices[role].column

    def _first(self, plains: Iterable[str]) -> str | None:
        taken = {choice.column for choice in self.choices.values()}
        found = (self.by_plain.get(plain) for plain in plains)
        return next((name for name in found if name is not None and name not in taken), None)

    def _values(self, column: str) -> list[Any]:
        return [
            value
            for value in self.frame[column].iloc[:: len(self.frame) // 20000 + 1]
            if not is_missing(value)
        ]

    def _existing(self, role: str, name: str) -> str:
        if name in self.frame.columns:
            return name
        hint = nearest(name, self.names)
        raise DataError(f"{self.where} has no column '{name}' for --{_option(role)}{hint}; {self._list()}")

    def _list(self) -> str:
        return f"columns: {_quoted(self.names)}"

    def _error(self, what: str, *roles: str) -> DataError:
        options = " or ".join(f"--{_option(role)} COLUMN" for role in roles)
        return DataError(f"{self.where}: {what}: give {options}; {self._list()}")


_SCALARS = (str, int, float, bool, np.integer, np.floating, np.bool_)


def _one_to_one(values: pd.Series, names: pd.Series) -> bool:
    pairs = {(str(v), str(n)) for v, n in zip(values, names, strict=True) if not is_missing(v)}
    return 0 < len(pairs) == len({value for value, _ in pairs}) == len({name for _, name in pairs})


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower()).strip("_")


def _option(role: str) -> str:
    return role.replace("_", "-")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
