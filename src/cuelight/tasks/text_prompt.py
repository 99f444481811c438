"""Prompts that are strings: a text with fields, ``{text}`` and the data's columns, that a row fills.

Only the fields of the task are fields; all other braces are text, and nothing is escaped.  So the string that is
searched, saved and sent is one and the same, byte for byte, but for the row in the fields' places.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cuelight.errors import ConfigError, DataError
from cuelight.tasks.template import render, soft_parts
from cuelight.tasks.text import Item, TextTask

__all__ = ["Piece", "continuation", "draw", "example", "few_shot", "fields_of", "fill", "question", "split"]

SEPARATOR = "\n\n"
"""Between two examples, as in-context learning has it."""


def fields_of(task: TextTask) -> tuple[str, ...]:
    """The names that stand for a row in a prompt of ``task``."""
    return (*("text", "text_b")[: 1 + task.pairs], *task.columns)


def question(task: TextTask) -> str:
    """The task's template with its fields left open: the prompt that has nothing else.

    Raises:
        ConfigError: the template has soft words, which no string has.
    """
    if soft_parts(task.template):
        raise ConfigError("template: {soft} words are no text; write words in their place")
    return _rendered(task, {name: "{" + name + "}" for name in fields_of(task)})


def fill(prompt: str, row: Mapping[str, Any], task: TextTask) -> str:
    """``prompt`` with ``row`` in its fields, each text cut to the task's ``max_length`` tokens."""
    names = "|".join(map(re.escape, fields_of(task)))
    return re.sub(r"\{(" + names + r")\}", lambda found: task.shortened(str(row[found[1]])), prompt)


def continuation(task: TextTask, word: str) -> str:
    """``word`` as it stands behind the template."""
    spaced = not task.config.chat and not task.template[-1:].isspace()
    return " " + word if spaced else word


def answer(task: TextTask, row: Mapping[str, Any]) -> str:
    """What a model should say to ``row``."""
    return task.words[row["label"]] if task.kind == "classification" else str(row["targets"][0])


def example(task: TextTask, row: Mapping[str, Any], said: str | None = None) -> str:
    """``row`` in the template, with its answer (or ``said``) behind it.

    Raises:
        DataError: a text that holds a field's name in braces, so that it would be filled.
    """
    values = {name: task.shortened(str(row[name])) for name in fields_of(task)}
    for name, value in values.items():
        for field in values:
            if "{" + field + "}" in value:
                raise DataError(
                    f"{name}: a row holds '{{{field}}}', which is a field of the prompt; remove that row"
                )
    word = answer(task, row) if said is None else said
    spaced = "" if task.template[-1:].isspace() else " "
    return _rendered(task, values) + spaced + word


def few_shot(task: TextTask, rows: Sequence[Mapping[str, Any]], instruction: str = "") -> str:
    """A prompt of an instruction, solved rows and the question."""
    parts = [instruction, *(example(task, row) for row in rows), question(task)]
    return SEPARATOR.join(part for part in parts if part)


def draw(task: TextTask, items: Sequence[Item], count: int, generator: random.Random) -> list[int]:
    """Places of ``count`` items of every class in random order (of ``count`` items in all, for generation)."""
    order = list(range(len(items)))
    generator.shuffle(order)
    if task.kind != "classification":
        return order[:count]
    by_class: dict[int, list[int]] = {}
    for place in order:
        by_class.setdefault(items[place].label, []).append(place)
    found = [place for places in by_class.values() for place in places[:count]]
    generator.shuffle(found)
    return found


@dataclass(frozen=True)
class Piece:
    """A token (or word) of a prompt as the characters it stands for; ``field`` is set where it must stay."""

    text: str
    field: bool = False


def split(prompt: str, names: Sequence[str], tokenizer: Any = None) -> list[Piece]:
    """``prompt`` in pieces, each a token of ``tokenizer``, or without one a word with the space before it.

    Joined they are the prompt again, byte for byte: space that a tokenizer drops is the next token's, and tokens that
    share a character are one piece.  Each of ``{names}`` is a piece of its own kind, which must stay; so are, with
    tokens, those that reach into it.
    """
    places = [
        found.span() for found in re.finditer("|".join(re.escape("{" + n + "}") for n in names), prompt)
    ]
    if not names:
        places = []
    pieces: list[Piece] = []
    last = 0
    for start, end in [*places, (len(prompt), len(prompt))]:
        pieces += [Piece(text) for text in _tokens(prompt[last:start], tokenizer)]
        if start < end:
            pieces.append(Piece(prompt[start:end], True))
        last = end
    return pieces


def _tokens(text: str, tokenizer: Any) -> list[str]:
    """``text`` cut at the ends of its tokens."""
    if not text:
        return []
    if tokenizer is None or not tokenizer.is_fast:
        return re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    ends = sorted({end for _, end in spans if 0 < end < len(text)})
    inside = {k for start, end in spans for k in range(start + 1, end)}
    cuts = [0, *(end for end in ends if end not in inside), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


def _rendered(task: TextTask, values: Mapping[str, str]) -> str:
    return render(task.template, {"text_b": "", "options": ", ".join(task.words), "mask": "", **values})
