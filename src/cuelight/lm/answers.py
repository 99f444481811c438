"""From what a model wrote to its answer, and whether two answers are the same.

A kind of answer says both: ``number``, ``choice`` (one of given choices, by letter or by text), ``yes-no``, ``text``
(what follows the last marker, else the last line).  What can not be read is ``None``: a wrong answer that still cost a call.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal

__all__ = ["AnswerKind", "code_in", "extract", "normal", "same"]

AnswerKind = Literal["text", "number", "choice", "yes-no"]

_MARKER = re.compile(r"(?:(?:final|correct)?\s*answer\s*(?:is|:)|\bans\s*=|####)\s*[:=]?\s*", re.IGNORECASE)
_NUMBER = re.compile(r"[-−]?\s?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?")
_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_LETTER = re.compile(r"\(([A-Za-z])\)|\b([A-Z])\b(?=[\s).:,]|$)")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def extract(text: str, kind: AnswerKind = "text", choices: Sequence[str] = ()) -> str | None:
    """The answer in ``text``, ``None`` if there is none.

    Args:
        choices: for ``choice``; each may begin with its letter: ``A) five``, ``(A) five``, ``A. five``.

    Returns:
        A number without commas and currency, a choice as it stands in ``choices`` (a letter when there are none),
        ``yes`` or ``no``, or a text without quotes and full stop.
    """
    behind = _MARKER.split(text)
    marked = len(behind) > 1
    tail = behind[-1] if marked else text
    for part in dict.fromkeys((tail, text)):
        found = _READERS[kind](part, choices, marked and part is tail)
        if found is not None:
            return found
    return None


def _number(text: str, choices: Sequence[str], marked: bool) -> str | None:
    found = _NUMBER.findall(text)
    if not found:
        return None
    raw = re.sub(r"[\s$,]", "", found[0] if marked else found[-1]).replace("−", "-")
    over, slash, under = raw.partition("/")
    try:
        value = Decimal(over) / Decimal(under) if slash else Decimal(over)
    except (InvalidOperation, ZeroDivisionError):
        return None
    return f"{value.normalize():f}" if value == value.to_integral_value() else format(value, "f")


def _choice(text: str, choices: Sequence[str], marked: bool) -> str | None:
    if not choices:
        letters = [a or b for a, b in _LETTER.findall(text)]
        return (letters[0] if marked else letters[-1]).upper() if letters else None
    by_letter = {
        _letter(choice) or string.ascii_uppercase[k]: choice for k, choice in enumerate(choices[:26])
    }
    letters = [(a or b).upper() for a, b in _LETTER.findall(text)]
    letters = [letter for letter in letters if letter in by_letter]
    if letters:
        return by_letter[letters[0] if marked else letters[-1]]
    plain = normal(text)
    said = [
        (plain.rfind(normal(_body(c))), -len(c), c) for c in choices if normal(_body(c)) in plain and _body(c)
    ]
    return max(said)[2] if said else None


def _yes_no(text: str, choices: Sequence[str], marked: bool) -> str | None:
    found = _YES_NO.findall(text)
    if not found:
        return None
    return "yes" if (found[0] if marked else found[-1]).lower() in ("yes", "true") else "no"


def _text(text: str, choices: Sequence[str], marked: bool) -> str | None:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    return (lines[0] if marked else lines[-1]).strip(" \"'`*").rstrip(".").strip() or None


_READERS = {"number": _number, "choice": _choice, "yes-no": _yes_no, "text": _text}


def _letter(choice: str) -> str:
    found = re.match(r"\(?([A-Za-z])[).:]\s*", choice)
    return found[1].upper() if found else ""


def _body(choice: str) -> str:
    return re.sub(r"^\(?[A-Za-z][).:]\s*", "", choice)


def normal(text: str) -> str:
    """Lower case without articles and punctuation, single spaces; numbers keep point and sign."""
    lowered = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    lowered = _ARTICLES.sub(" ", lowered)
    kept = re.sub(r"[^\w\s.\-]|(?<!\d)[.\-](?!\d)|(?<=\d)\.(?!\d)", " ", lowered)
    return " ".join(kept.split())


def same(given: str | None, wanted: str, kind: AnswerKind = "text", choices: Sequence[str] = ()) -> bool:
    """Whether an extracted answer is the wanted one: equal numbers, the same choice, or equal in `normal` form."""
    if given is None:
        return False
    if kind == "number":
        return _equal_numbers(given, wanted)
    if kind == "choice":
        letters = [
            _letter(t) or (t.strip("() ").upper() if len(t.strip("() ")) == 1 else "")
            for t in (given, wanted)
        ]
        if all(letters):
            return letters[0] == letters[1]
        return normal(_body(given)) == normal(_body(wanted))
    if kind == "yes-no":
        return extract(given, "yes-no") == extract(wanted, "yes-no") is not None
    return normal(given) == normal(wanted)


def _equal_numbers(given: str, wanted: str) -> bool:
    left, right = extract(given, "number"), extract(wanted, "number")
    if left is None or right is None:
        return False
    a, b = float(left), float(right)
    return abs(a - b) <= 1e-4 * max(1.0, abs(b)) if "." in left + right else a == b


def code_in(text: str) -> str:
    """The program in what a model wrote: the first fenced block if there is one, else all up to the first line of prose."""
    fenced = re.search(r"```(?:python)?[ \t]*\n(.*?)(?:```|$)", text, re.DOTALL)
    if fenced:
        return fenced[1].strip("\n")
    lines: list[str] = []
    for line in text.split("```")[0].strip("\n").splitlines():
        if re.match(r"(Q:|A:|The answer|Requirement:)", line):
            break
        lines.append(line)
    return "\n".join(lines)
