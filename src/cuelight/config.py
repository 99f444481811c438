"""From what a user typed to checked options, with errors that name the field, the value and the remedy."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cuelight.errors import ConfigError, nearest

__all__ = ["build", "field_names", "route"]

M = TypeVar("M", bound=BaseModel)


def build(model: type[M], values: Mapping[str, Any]) -> M:
    """``model(**values)``, or a one-line `ConfigError`."""
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1]) or "options"
        if first["type"] == "extra_forbidden":
            raise ConfigError(unknown(where, field_names(model))) from error
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        given = f" is {_shown(first['input'])};" if first["loc"] else ""
        raise ConfigError(f"{where}:{given} {reason}") from error


def unknown(name: str, choices: Iterable[str]) -> str:
    """The one line for an option that does not exist."""
    names = sorted(choices)
    hint = nearest(name, names)
    return f"{name}: no such option{hint or '; there are ' + ', '.join(names)}"


def field_names(model: type) -> list[str]:
    """Names of a pydantic model's or a dataclass's fields."""
    if dataclasses.is_dataclass(model):
        return [f.name for f in dataclasses.fields(model)]
    return list(typing.cast(type[BaseModel], model).model_fields)


def route(values: Mapping[str, Any], homes: Sequence[type]) -> list[dict[str, Any]]:
    """Sort flat options to the models that have a field of that name (several may: ``seed``).

    Raises:
        ConfigError: an option that no model has; names the nearest.
    """
    sorted_: list[dict[str, Any]] = [{} for _ in homes]
    everything = {name for home in homes for name in field_names(home)}
    for name, value in values.items():
        if name not in everything:
            raise ConfigError(unknown(name, everything))
        for home, chosen in zip(homes, sorted_, strict=True):
            if name in field_names(home):
                chosen[name] = value
    return sorted_


def plain_type(annotation: Any) -> Any:
    """``X`` of ``X | None``; other annotations as they are."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
