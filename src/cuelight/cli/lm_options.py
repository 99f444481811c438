"""The options that commands with a language model share, and the model they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cuelight.cli.common import BackboneType, say
from cuelight.cli.options import HeadedOption

if TYPE_CHECKING:
    from cuelight.lm import LM, Meter

__all__ = ["budget_options", "connected", "lm_option", "report"]

_HEADING = "Language model"
_SPEC = "built-in name, folder, hub id, or URL#model of an OpenAI-compatible server"


def lm_option(
    flag: str = "--lm", *, what: str = "Model", required: bool = True, heading: str = _HEADING
) -> click.Parameter:
    """``--lm SPEC``, or another flag for another model."""
    return HeadedOption(
        [flag],
        heading=heading,
        required=required,
        type=BackboneType(),
        metavar="SPEC",
        help=f"{what}: {_SPEC}.  A server's key is read from CUELIGHT_API_KEY (OPENAI_API_KEY for OpenAI's own).",
    )


def budget_options(heading: str = _HEADING) -> list[click.Parameter]:
    """Hard limits, cache, ledger and prices; one set for all models of a command."""
    return [
        HeadedOption(
            ["--max-calls"],
            heading=heading,
            type=click.IntRange(0),
            metavar="INT",
            help="Stop before more calls than this.",
        ),
        HeadedOption(
            ["--max-tokens-total"],
            heading=heading,
            type=click.IntRange(0),
            metavar="INT",
            help="Stop before more tokens, read and written.",
        ),
        HeadedOption(
            ["--max-money"],
            heading=heading,
            type=click.FloatRange(min=0),
            metavar="NUMBER",
            help="Stop before it costs more; 'cuelight prices' shows what models cost.",
        ),
        HeadedOption(
            ["--max-seconds"],
            heading=heading,
            type=click.FloatRange(min=0),
            metavar="NUMBER",
            help="Stop when calls have taken so long (wall time).",
        ),
        HeadedOption(
            ["--ledger"],
            heading=heading,
            metavar="FILE",
            help="Add a line of JSON for each call to FILE.",
        ),
        HeadedOption(
            ["--cache/--no-cache"],
            heading=heading,
            default=True,
            help="Keep answers on disk, and never pay twice for one.  [default: cache]",
        ),
        HeadedOption(
            ["--prices"],
            heading=heading,
            metavar="FILE",
            help="A price table over your own.",
        ),
        HeadedOption(
            ["--concurrency"],
            heading=heading,
            type=click.IntRange(1),
            default=8,
            metavar="INT",
            help="Most requests to a server at a time.  [default: 8]",
        ),
    ]


def connected(params: Mapping[str, Any], name: str = "lm", *, meter: Meter | None = None) -> LM:
    """The model that the option ``name`` names.

    Args:
        params: the command's parameters, those of `lm_option` and `budget_options` among them.
        meter: another model's meter, where both have one budget.
    """
    from cuelight.lm import Budget, Meter, connect

    limits = Budget(
        params["max_calls"], params["max_tokens_total"], params["max_money"], params["max_seconds"]
    )
    more = {key: params[key] for key in ("device", "dtype") if key in params}
    return connect(
        params[name],
        meter=meter or Meter(limits),
        cache=params["cache"],
        ledger=params["ledger"],
        prices=params["prices"],
        concurrency=params["concurrency"],
        **more,
    )


def report(*models: LM) -> None:
    """What the calls have cost, on stderr."""
    from cuelight.lm.meter import Spent

    meters = {id(model.meter): model.meter for model in models}.values()
    spent = sum((meter.spent for meter in meters), Spent())
    if spent.unpriced == spent.calls and spent.calls:
        money = "price not known"
    else:
        money = f"{spent.money:.6g} USD" + (
            f" and {spent.unpriced} calls without a price" * bool(spent.unpriced)
        )
    click.echo(
        f"{spent.calls} call{'s' * (spent.calls != 1)}, {spent.tokens} tokens, {money}, {spent.seconds:.1f} seconds",
        err=True,
    )


def say_prices(file: str | None) -> None:
    """The price table in force, and where it can be changed."""
    from cuelight.lm.prices import price_table, user_prices

    own = user_prices()
    say(f"yours: {own}" + ("" if own.exists() else "  (not there yet; lines in it go over these)"))
    say('a line: "model" = { input = 0.15, output = 0.60 }   under [prices]; USD for a million tokens')
    rows = sorted(price_table(file).items())
    width = max(len(name) for name, _ in rows)
    for name, price in rows:
        say(f"{name:<{width}}  input {price.input:>8g}  output {price.output:>8g}")
