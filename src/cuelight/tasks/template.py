"""Templates: how a row of data becomes the text a model reads.

A template is a line with fields, ``Review: {text}\\nSentiment:``.

``{text}``, ``{text_b}``
    the row's text, and for pairs its second one; any other name is a column of the data.
``{options}``
    the label words, separated by commas.
``{mask}``
    the slot, where the answer belongs.  Masked models need it.  The answer of a causal model follows the
    template, so there it may only stand last.  In an encoder-decoder model it is T5's sentinel, in the text and
    before the answer; without it the answer is the decoder's first word, as instruction-tuned models want it.
``{soft:go to}``, ``{soft}``, ``{soft*5}``
    learned vectors: as many as the words have tokens, starting as those, or one, or five, starting at random.
    ``{soft.name:go to}`` and later ``{soft.name}`` share theirs.
``{text:head,tail}``
    the text, with what these columns hold between two learned vectors each, which start as ``[`` and ``]``.  A column
    holds the words themselves, or, if its name ends in ``_span``, where they stand: ``2 4`` are the words number 2 and
    3, counted from 0 at white space.  Words that are not in the text (or were cut off) are not marked.

A template that begins with ``{# jinja #}`` is Jinja instead, with the same names as variables (PromptSource's
templates work: what follows their ``|||`` is the answer, which the label words say here; where they draw one of several
wordings with ``choice``, it is always the first).  ``@file`` takes the
template from a file, from ``*.jinja`` as Jinja.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cuelight.backbones.backbone import Kind
from cuelight.errors import ConfigError, DataError, nearest

__all__ = [
    "Soft",
    "Span",
    "check_template",
    "columns_of",
    "default_template",
    "has_slot",
    "read_template",
    "render",
    "soft_parts",
    "split_marks",
]

_FIELDS = ("text", "text_b", "options", "mask")
_JINJA = "{# jinja #}"
_SOFT = re.compile(r"soft(?:\*(?P<count>[0-9]+))?(?:\.(?P<name>\w+))?")
_OPEN, _CLOSE, _FIRST = "\ue002", "\ue003", 0xE100  # private use: no text has them
_STAND_IN = "."
"""What a soft part without words is while the text is split into tokens."""


@dataclass(frozen=True)
class Soft:
    """Learned vectors in a template: ``count`` of them, or as many as ``words`` have tokens."""

    words: str
    count: int
    name: str = ""


@dataclass(frozen=True)
class Span:
    """Where soft part ``part`` stands in a rendered text, in characters."""

    start: int
    end: int
    part: int


def default_template(kind: Kind, task: str, pairs: bool) -> str:
    """A plain template for a backbone's kind and a task's kind."""
    text = "Text: {text}\nSecond text: {text_b}" if pairs else "Text: {text}"
    bare = "{text} {text_b}" if pairs else "{text}"
    if kind in ("text-encoder",):
        return bare
    if kind == "masked":
        return bare + " Label: {mask}."
    if task == "generation":
        return bare if kind == "seq2seq" else text.replace("Text", "Input") + "\nOutput:"
    return text + ("\nLabels:" if task == "multilabel" else "\nLabel:")


def read_template(template: str) -> str:
    """``template``, or what the file of ``@file`` holds, without the line's end.

    Raises:
        ConfigError: the file can not be read.
    """
    if not template.startswith("@"):
        return template
    file = Path(template[1:]).expanduser()
    try:
        found = file.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
        raise ConfigError(f"template: {file} can not be read ({reason}); give a text file") from error
    jinja = file.suffix in (".jinja", ".jinja2", ".j2") and not found.startswith(_JINJA)
    return _JINJA + found if jinja else found


def columns_of(template: str | None) -> tuple[str, ...]:
    """The columns that ``template`` takes from the data besides the texts.

    Raises:
        ConfigError: a template that can not be parsed.
    """
    names = _names(read_template(template or ""))
    own = {*_FIELDS, "answer_choices", "label"}
    return tuple(dict.fromkeys(n for n in names if n not in own and not _SOFT.fullmatch(n)))


def check_template(template: str, kind: Kind, pairs: bool, columns: tuple[str, ...] | None = ()) -> str:
    """``template`` if it fits, with the escapes of a shell (``\\n``) resolved and files read.

    ``columns`` are the other columns of the data (None: not known, any will do).

    Raises:
        ConfigError: an unknown or missing field, a brace out of place, or text behind the answer's place.
    """
    template = read_template(template)
    if not template.startswith(_JINJA):
        template = template.replace("\\n", "\n").replace("\\t", "\t")
    names = _names(template)
    jinja = template.startswith(_JINJA)
    for name in names:
        if name in _FIELDS or _SOFT.fullmatch(name) or (jinja and name in ("answer_choices", "label")):
            continue
        if columns is not None and name not in columns:
            allowed = ", ".join("{" + f + "}" for f in (*_FIELDS, "soft"))
            more = nearest(name, (*_FIELDS, *columns)) if columns else ""
            raise ConfigError(f"template: '{{{name}}}' is no field and no column{more}; use {allowed}")
    if "text" not in names and (columns is not None and not set(columns) & set(names)):
        raise ConfigError("template: has no {text}; put it where the text belongs")
    if "text_b" in names and not pairs:
        raise ConfigError(
            "template: has {text_b} but the data has one text column; give --text-b or drop the field"
        )
    slots = names.count("mask")
    if kind == "masked" and slots != 1 and not (jinja and slots):
        raise ConfigError(
            "template: a masked language model needs exactly one {mask}, where the answer belongs"
        )
    if kind in ("causal", "remote") and slots:
        rest = template.rstrip()
        if slots > 1 or not rest.endswith("}") or not (jinja or rest.endswith("{mask}")):
            raise ConfigError(
                "template: a causal model answers behind the text; put {mask} last or leave it out"
            )
        template = rest if jinja else rest[: -len("{mask}")]
    if kind == "seq2seq" and slots > 1:
        raise ConfigError("template: has {mask} twice; the answer has one place")
    if kind not in ("causal", "seq2seq", "masked", "remote") and slots:
        raise ConfigError(f"template: {{mask}} is for language models; a {kind} model has no slot")
    soft_parts(template)
    return template if kind in ("masked", "text-encoder") else template.rstrip(" ")


def has_slot(template: str) -> bool:
    """Whether ``template`` says where the answer belongs."""
    return "mask" in _names(template)


def render(template: str, values: Mapping[str, str], *, marks: bool = False) -> str:
    """Fill the fields of ``template``; braces inside the values stay as they are.

    With ``marks`` soft parts stand between signs that `split_marks` finds again, else as their words.
    """
    if template.startswith(_JINJA):
        from jinja2 import TemplateError

        given = {**values, "answer_choices": values.get("options", "").split(", "), "label": 0}
        try:
            found = _jinja(template).render(given)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ConfigError(
                f"template: Jinja can not be filled with a row ({' '.join(str(error).split())}); mend the template"
            ) from error
        return found.partition("|||")[0].strip(" \n")
    out, parts = [], 0
    known = soft_parts(template)
    places: dict[str, int] = {}

    def soft(name: str) -> str:
        nonlocal parts
        place = places.get(name)
        if place is None:
            place, parts = parts, parts + 1
            if name:
                places[name] = place
        words = known[place].words or _STAND_IN
        return f"{_OPEN}{chr(_FIRST + place)}{words}{_CLOSE}" if marks else words

    for literal, name, form in _pieces(template):
        out.append(literal)
        if name is None:
            continue
        found = _SOFT.fullmatch(name)
        if found is not None:
            out.append(soft(found["name"] or ""))
        elif form:
            marked = []
            for column in _marked(form):
                before, behind = _signs(column)
                marked.append((column, values[column], soft(before), soft(behind)))
            out.append(_with_signs(values[name], marked))
        else:
            out.append(values[name])
    return "".join(out)


@cache
def soft_parts(template: str) -> tuple[Soft, ...]:
    """The different learned parts of ``template``, in order.

    Raises:
        ConfigError: a part of no vectors, or with words and a count.
    """
    if template.startswith(_JINJA):
        return ()
    parts: list[Soft] = []
    named: dict[str, Soft] = {}
    for _, name, form in _pieces(template):
        found = _SOFT.fullmatch(name or "")
        if found is None:
            for column in _marked(form):
                for sign, words in zip(_signs(column), "[]", strict=True):
                    if sign not in named:
                        named[sign] = Soft(words, 1, sign)
                        parts.append(named[sign])
            continue
        words, count = form.strip(), int(found["count"] or 1)
        if count < 1 or (words and found["count"]):
            raise ConfigError(
                f"template: '{{{name}{':' * bool(words)}{words}}}': give words or a number from 1, not both"
            )
        part = Soft(words, count, found["name"] or "")
        before = named.get(found["name"] or "")
        if before is not None and words not in ("", before.words):
            raise ConfigError(
                f"template: soft part '{found['name']}' has two starts, '{before.words}' and '{words}'; "
                "give it once"
            )
        if before is None:
            parts.append(part)
            if found["name"]:
                named[found["name"]] = part
    return tuple(parts)


def split_marks(text: str) -> tuple[str, list[Span]]:
    """A text that was rendered with marks, without them, and where its soft parts are."""
    plain: list[str] = []
    spans: list[Span] = []
    length, start, part, at = 0, 0, 0, 0
    while at < len(text):
        if text[at] == _OPEN:
            part, start, at = ord(text[at + 1]) - _FIRST, length, at + 2
        elif text[at] == _CLOSE:
            spans.append(Span(start, length, part))
            at += 1
        else:
            plain.append(text[at])
            length, at = length + 1, at + 1
    return "".join(plain), spans


def _marked(form: str) -> list[str]:
    """The columns of ``{text:a,b}``."""
    return [column.strip() for column in form.split(",") if column.strip()]


def _signs(column: str) -> tuple[str, str]:
    """Names of the learned parts around what ``column`` holds; no part that a template names has a bracket."""
    return f"[{column}", f"{column}]"


def _with_signs(text: str, marked: list[tuple[str, str, str, str]]) -> str:
    """``text`` with signs around some of its words; entries are column, value, sign before and sign behind."""
    signs: list[tuple[int, int, int, str]] = []
    for column, value, before, behind in marked:
        place = _place(text, column, value)
        if place is not None:
            start, end = place
            # At one place what ends comes before what begins, and of two words the longer stands outside.
            signs += [(start, 1, -end, f"{before} "), (end, 0, -start, f" {behind}")]
    out, done = [], 0
    for at, _, _, sign in sorted(signs):
        out += [text[done:at], sign]
        done = at
    return "".join([*out, text[done:]])


def _place(text: str, column: str, value: str) -> tuple[int, int] | None:
    """Where in ``text`` the words are that ``column`` says, in characters.

    Raises:
        DataError: a span that is none.
    """
    if not value.strip():
        return None
    if not column.endswith("_span"):
        found = re.search(rf"(?<!\w){re.escape(value.strip())}(?!\w)", text)
        return None if found is None else found.span()
    numbers = [int(part) if part.isdecimal() else -1 for part in value.split()]
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
        raise DataError(
            f"{column}: '{value}' is no place of words; give the first one's number and the one past the last, as '2 4'"
        )
    words = [found.span() for found in re.finditer(r"\S+", text)][numbers[0] : numbers[1]]
    return (words[0][0], words[-1][1]) if words else None


def _pieces(template: str) -> list[tuple[str, str | None, str]]:
    """Literal text, the field behind it, and what follows the field's colon."""
    try:
        found = [(text, name, form, turn) for text, name, form, turn in string.Formatter().parse(template)]
    except ValueError as error:
        raise ConfigError(
            f"template: {error}; write fields as {{text}} and literal braces as {{{{ }}}}"
        ) from error
    for _, name, form, turn in found:
        if name is not None and (turn or (form and name != "text" and not _SOFT.fullmatch(name))):
            raise ConfigError(f"template: '{{{name}}}' takes no format; write {{{name}}} alone")
    return [(text, name, form or "") for text, name, form, _ in found]


def _names(template: str) -> list[str]:
    """All fields in order, with repetitions."""
    if not template.startswith(_JINJA):
        pieces = [(name, form) for _, name, form in _pieces(template) if name is not None]
        return [n for name, form in pieces for n in (name, *(_marked(form) if name == "text" else ()))]
    from jinja2 import meta, nodes

    tree = _environment().parse(_asked(template))
    free = meta.find_undeclared_variables(tree)
    return [n.name for n in tree.find_all(nodes.Name) if n.name in free and n.ctx == "load"]


@cache
def _asked(template: str) -> str:
    """A Jinja template without the answer behind ``|||``, unless that stands inside an if: then all of it.

    Raises:
        ConfigError: it is no Jinja.
    """
    from jinja2 import TemplateSyntaxError

    parts = (template.partition("|||")[0], template)
    for last, part in enumerate(parts):
        try:
            _environment().from_string(part)
        except TemplateSyntaxError as error:
            if last:
                raise ConfigError(f"template: Jinja line {error.lineno}: {error.message}") from error
        else:
            break
    return part


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    made.filters["choice"] = lambda values: next(iter(values))  # PromptSource draws one
    return made


@cache
def _jinja(template: str) -> Any:
    return _environment().from_string(_asked(template))
