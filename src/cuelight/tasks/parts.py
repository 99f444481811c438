"""Text prompts in four parts, with fields for what is typed: ``{text}``, ``{context}``.

Instruction (role and task), Actions (what to do, step by step), Facts (what is always so) and Examples, then a line a
field.  Literal braces are doubled, as in Python's formats; what is put into a field is never read as a field again.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Parts", "compose", "fill", "items", "literal", "prompt_defect", "read_parts"]

_HEADING = re.compile(
    r"^[\s#*_>-]*(instructions?|actions?|steps|facts?|examples?|input|output)[\s*_]*:[*_]*[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*")
_MOST_ITEMS, _LONGEST_ITEM, _SHORTEST_LEAK = 6, 400, 12


@dataclass(frozen=True)
class Parts:
    """What a writer gives; examples come from the user and fields are put behind it."""

    instruction: str
    actions: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


def read_parts(answer: str) -> Parts | None:
    """The parts in a model's answer with headings at the starts of lines; None without an instruction."""
    found: dict[str, str] = {}
    marks = list(_HEADING.finditer(answer))
    ends = [*(mark.start() for mark in marks[1:]), len(answer)]
    for mark, end in zip(marks, ends, strict=False):
        name = {"steps": "action"}.get(mark[1].lower(), mark[1].lower().rstrip("s"))
        found.setdefault(name, answer[mark.end() : end])
    # an instruction is sentences: of a list in its place the first entry, of a list behind it nothing
    lines = [line for line in found.get("instruction", "").splitlines() if line.strip()]
    listed = next((n for n, line in enumerate(lines) if _BULLET.match(line)), len(lines))
    instruction = " ".join(" ".join(_BULLET.sub("", line) for line in lines[: max(listed, 1)]).split())
    if len(instruction.split()) < 2 or len(instruction) > 2 * _LONGEST_ITEM:
        return None
    return Parts(instruction, items(found.get("action", "")), items(found.get("fact", "")))


def items(text: str) -> tuple[str, ...]:
    """The lines of a list without bullets and numbers, different ones, six at most."""
    lines = (" ".join(_BULLET.sub("", line).split()) for line in text.splitlines())
    kept = dict.fromkeys(line for line in lines if 1 < len(line) <= _LONGEST_ITEM)
    return tuple(kept)[:_MOST_ITEMS]


def compose(
    parts: Parts, fields: Sequence[str], examples: Sequence[tuple[Mapping[str, str], str]] = ()
) -> str:
    """The prompt of four parts; ``examples`` are values of the fields with the answer, taken literally."""
    lines = [f"Instruction: {parts.instruction}"]
    if parts.actions:
        lines += ["Actions:", *(f"{n}. {line}" for n, line in enumerate(parts.actions, 1))]
    if parts.facts:
        lines += ["Facts:", *(f"- {line}" for line in parts.facts)]
    if examples:
        lines.append("Examples:")
        for values, answer in examples:
            lines += [*(f"{_title(name, fields)}: {literal(values[name])}" for name in fields)]
            lines += [f"Output: {literal(answer)}", ""]
        lines.pop()
    return "\n".join([*lines, "", *(f"{_title(name, fields)}: {{{name}}}" for name in fields), "Output:"])


def _title(name: str, fields: Sequence[str]) -> str:
    return "Input" if len(fields) == 1 else name.replace("_", " ").capitalize()


def literal(text: str) -> str:
    """``text`` as it stands in a prompt, braces doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """The string a model reads: every field replaced by its value, verbatim."""
    pieces = string.Formatter().parse(prompt)
    return "".join(text + ("" if name is None else values[name]) for text, name, _, _ in pieces)


def prompt_defect(prompt: str, fields: Sequence[str], *, longest: int, hidden: Sequence[str] = ()) -> str:
    """What keeps ``prompt`` from being used, in a few words; empty if nothing does.

    Args:
        fields: exactly these occur, each at least once.
        longest: most characters.
        hidden: texts it must not hold, such as what it is tested on.
    """
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        return f"braces do not balance ({error}); double literal ones"
    names = [name for _, name, _, _ in pieces if name is not None]
    for _, name, form, turn in pieces:
        if name is not None and name not in fields:
            known = ", ".join(f"{{{f}}}" for f in fields)
            return f"'{{{name}}}' is no field; use {known} and double literal braces"
        if form or turn:
            return f"'{{{name}}}' takes no format; write it alone"
    missing = [name for name in fields if name not in names]
    if missing:
        return f"{{{missing[0]}}} is missing; put it where what is typed belongs"
    if len(prompt) > longest:
        return f"it has {len(prompt)} characters; {longest} are allowed"
    text = " ".join(prompt.lower().split())
    for secret in hidden:
        plain = " ".join(literal(secret).lower().split())
        if len(plain) >= _SHORTEST_LEAK and plain in text:
            return f"it holds '{secret[:40]}' of a test; tests must stay unseen"
    return ""
