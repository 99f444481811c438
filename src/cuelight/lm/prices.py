"""What models cost, from a table that the user can edit."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs

from cuelight.errors import ConfigError

__all__ = ["Price", "find_price", "price_table", "user_prices"]


@dataclass(frozen=True)
class Price:
    """Money for a million tokens read (``input``) and written (``output``)."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (self.input * prompt_tokens + self.output * completion_tokens) / 1e6


def user_prices() -> Path:
    """Where the user's own table is looked for: ``$CUELIGHT_PRICES``, or cuelight's folder of settings."""
    named = os.environ.get("CUELIGHT_PRICES")
    return (
        Path(named).expanduser() if named else Path(platformdirs.user_config_dir("cuelight")) / "prices.toml"
    )


def price_table(file: str | os.PathLike[str] | None = None) -> dict[str, Price]:
    """The packaged table, overridden by the user's own, overridden by ``file``.

    Raises:
        ConfigError: a table that is missing (if named) or not of the right form.
    """
    packaged = resources.files("cuelight.lm").joinpath("prices.toml")
    table = _read(packaged.read_text(encoding="utf-8"), "prices.toml")
    own = user_prices()
    if own.exists() or os.environ.get("CUELIGHT_PRICES"):
        table |= _read(_text(own), str(own))
    if file is not None:
        table |= _read(_text(Path(file).expanduser()), str(file))
    return table


def find_price(table: dict[str, Price], model: str, server: str = "") -> Price | None:
    """The price of ``model`` on ``server``: the longest pattern that fits ``server#model`` or ``model``."""
    names = (f"{server}#{model}", model) if server else (model,)
    fitting = [pattern for pattern in table if any(fnmatchcase(name, pattern) for name in names)]
    return table[max(fitting, key=len)] if fitting else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"prices: '{path}' can not be read ({error.strerror}); give another file"
        ) from error


def _read(text: str, name: str) -> dict[str, Price]:
    try:
        entries: dict[str, Any] = tomllib.loads(text).get("prices", {})
        table = {model: Price(float(e["input"]), float(e["output"])) for model, e in entries.items()}
    except (tomllib.TOMLDecodeError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"prices: '{name}' is not a price table ({error}); write lines like "
            '"model" = { input = 0.15, output = 0.60 } under [prices]'
        ) from error
    for model, price in table.items():
        if not (price.input >= 0 and price.output >= 0):
            raise ConfigError(f"prices: '{model}' in '{name}' has a price below 0; give 0 or more")
    return table
