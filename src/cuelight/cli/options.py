"""Command-line options made from the fields of configuration models: neither door knows more than the other.

The shell gives strings.  They are turned into what the field's type asks for and no more: ranges and choices
are judged by the models themselves, so a wrong value reads the same from Python and from a shell.
"""

from __future__ import annotations

import csv
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import click
from click.shell_completion import CompletionItem
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cuelight.config import plain_type
from cuelight.errors import ConfigError

__all__ = ["DATA_HELP", "HeadedCommand", "HeadedOption", "Setting", "given", "parse", "settings"]

DATA_HELP = {
    "text": "Column with the text.",
    "text_b": "Column with the second text of a pair.",
    "image": "Column with the picture: a path, relative to the file, or encoded bytes.",
    "columns": "Other columns to keep, comma separated; those a template names are kept anyway.",
    "where": "Read only rows with these values, e.g. domain=photo.",
    "label": "Column with the label.",
    "target": "Column with the text a generation task should answer.",
    "task": "What the data asks for; guessed from its columns by default.",
    "train_split": "Split (or value of a column 'split') to learn from.",
    "validation_split": "Split to watch while learning.",
    "test_split": "Split to measure on.",
    "shots": "Training rows per class (in all, for generation), drawn with the seed.",
    "seed": "Draws the shots, and decides order, dropout and sampling.",
    "max_train": "Most training rows, drawn class by class.",
    "max_validation": "Most validation rows, drawn class by class.",
    "max_test": "Most test rows, drawn class by class.",
    "test_size": "Share (below 1) or number of rows of a test split that has to be made.",
    "validation_size": "Share (below 1) or number of rows of a validation split that has to be made.",
    "split_seed": "Draws a test split that has to be made; seeds of a comparison share it.",
    "classes": "Class names in order; they also name integer labels.",
    "label_names": "Name for each raw label; two labels with one name become one class.",
    "deduplicate": "Remove from train what also stands in validation or test.",
}
_ESCAPED = ("template", "text", "instruction", "prompt")  # fields whose \n means a new line


@dataclass(frozen=True)
class Setting:
    """One field of a configuration model, as an option."""

    name: str
    annotation: Any
    default: Any
    help: str
    heading: str
    limits: str = ""

    def option(self) -> HeadedOption:
        """The click option; it has no default, so that only what was typed is passed on."""
        flag = "--" + self.name.replace("_", "-")
        notes = [n for n in (self.limits, _default(self)) if n]
        text = self.help[:1].upper() + self.help[1:].rstrip(".") + "."
        text += f"  [{'; '.join(notes)}]" if notes else ""
        if plain_type(self.annotation) is bool:
            return HeadedOption([f"{flag}/--no-{flag[2:]}"], heading=self.heading, help=text, default=None)
        kind = FieldType(self)
        return HeadedOption(
            [flag], heading=self.heading, help=text, type=kind, metavar=kind.name, default=None
        )


def settings(home: type, heading: str, defaults: Mapping[str, Any] | None = None) -> list[Setting]:
    """The fields of a pydantic model or a dataclass; ``defaults`` stand in for the model's own."""
    over = defaults or {}
    if dataclasses.is_dataclass(home):
        hints = typing.get_type_hints(home)
        return [
            Setting(f.name, hints[f.name], over.get(f.name, f.default), DATA_HELP.get(f.name, ""), heading)
            for f in dataclasses.fields(home)
        ]
    made = []
    for name, field in typing.cast(type[BaseModel], home).model_fields.items():
        default = None if field.default is PydanticUndefined else field.default
        text = " ".join((field.description or "").split())
        made.append(
            Setting(name, field.annotation, over.get(name, default), text, heading, _limits(field.metadata))
        )
    return made


def parse(setting: Setting, text: str) -> Any:
    """What ``text`` means for the field; ranges and choices are left to its model.

    Raises:
        ConfigError: not of the field's type.
    """
    if setting.heading != "Data" and setting.name.endswith(_ESCAPED):
        text = text.replace("\\n", "\n").replace("\\t", "\t")
    return _parse(setting.name, setting.annotation, text)


def _parse(name: str, annotation: Any, text: str) -> Any:
    plain = plain_type(annotation)
    origin, inner = typing.get_origin(plain), typing.get_args(plain)
    if origin is typing.Annotated:
        return _parse(name, inner[0], text)
    if origin is Literal:
        return next((value for value in inner if str(value) == text), text)
    if origin in (typing.Union, types.UnionType):
        return _one_of(name, inner, text)
    if _is(origin, Mapping):
        pairs = [part.partition("=") for part in _parts(text)]
        if not pairs or any(not equals or not key for key, equals, _ in pairs):
            raise ConfigError(f"{name}: is '{text}'; give pairs like a=b,c=d")
        return {
            key.strip(): _parse(name, inner[1] if inner else str, value.strip()) for key, _, value in pairs
        }
    if _is(origin, Sequence, Set):
        return tuple(_parse(name, inner[0] if inner else str, part) for part in _parts(text))
    if plain is bool:
        if text.lower() in ("yes", "true", "1", "no", "false", "0"):
            return text.lower() in ("yes", "true", "1")
        raise ConfigError(f"{name}: is '{text}'; give yes or no")
    if plain in (int, float):
        return _number(name, plain, text)
    return text


def _one_of(name: str, kinds: Sequence[Any], text: str) -> Any:
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if set(kinds) <= {int, float, type(None)}:
        raise ConfigError(f"{name}: is '{text}'; give a number")
    return text


def _number(name: str, kind: type[int] | type[float], text: str) -> int | float:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name}: is '{text}'; give a {'whole ' if kind is int else ''}number") from error


def _is(origin: Any, *kinds: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kinds)


def _parts(text: str) -> list[str]:
    """``a,b`` split at commas; quotes keep a comma: ``'"a=x, y",b=z'``."""
    return [part for part in next(csv.reader([text], skipinitialspace=True), []) if part.strip()]


def _metavar(annotation: Any) -> str:
    plain = plain_type(annotation)
    origin, inner = typing.get_origin(plain), typing.get_args(plain)
    if origin is typing.Annotated:
        return _metavar(inner[0])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return "NUMBER" if set(inner) <= {int, float, type(None)} else "VALUE"
    if _is(origin, Mapping):
        return "A=B,..."
    if _is(origin, Sequence, Set):
        return "A,B,..."
    return {int: "INT", float: "NUMBER", bool: "yes|no"}.get(plain, "TEXT")


def _limits(metadata: Iterable[Any]) -> str:
    signs = {"ge": ">= ", "gt": "> ", "le": "<= ", "lt": "< "}
    found = {s: getattr(m, s) for m in metadata for s in signs if getattr(m, s, None) is not None}
    if {"ge", "le"} <= found.keys():
        return f"{found['ge']} to {found['le']}"
    return ", ".join(signs[s] + f"{v:g}" for s, v in found.items() if abs(v) < 2**31)


def _default(setting: Setting) -> str:
    value = setting.default
    if value is None or value == "" or value == () or value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return "default: " + ("" if value else "no-") + setting.name.replace("_", "-")
    if isinstance(value, Mapping):
        value = ",".join(f"{k}={v}" for k, v in value.items())
    elif isinstance(value, tuple | list):
        value = ",".join(map(str, value))
    shown = f"{value:g}" if isinstance(value, float) else str(value).replace("\n", "\\n")
    return f"default: {shown}"


class FieldType(click.ParamType):
    """The click type of a `Setting`."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = _metavar(setting.annotation)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return parse(self.setting, value) if isinstance(value, str) else value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        plain = plain_type(self.setting.annotation)
        choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
        return [CompletionItem(str(c)) for c in choices if str(c).startswith(incomplete)]


class HeadedOption(click.Option):
    """An option that stands under a heading of the help."""

    def __init__(self, *args: Any, heading: str = "Run", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class HeadedCommand(click.Command):
    """A command whose help groups its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(getattr(param, "heading", "Run"), []).append(record)
        for heading in [*(h for h in groups if h != "Run"), *(h for h in groups if h == "Run")]:
            with formatter.section(heading):
                formatter.write_dl(groups[heading], col_max=34)


def given(ctx: click.Context, names: Iterable[str]) -> dict[str, Any]:
    """The values of those of ``names`` that were typed, and of no others."""
    typed = click.core.ParameterSource.COMMANDLINE
    return {n: ctx.params[n] for n in names if n in ctx.params and ctx.get_parameter_source(n) is typed}
