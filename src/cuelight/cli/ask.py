"""``cuelight ask``: one prompt to one language model; ``cuelight prices``: what models cost."""

from __future__ import annotations

import sys
from typing import Any

import click

from cuelight.cli.common import BackboneType, device_options, say
from cuelight.cli.lm_options import budget_options, connected, report, say_prices
from cuelight.cli.options import HeadedCommand, HeadedOption
from cuelight.errors import ConfigError

__all__ = ["ask", "prices"]


def _ask(**params: Any) -> None:
    """Ask a language model, and see what it costs.

    LM is a built-in name, folder, hub id, or URL#model of an OpenAI-compatible server.  PROMPT is sent as one turn of
    a chat (as plain text with --complete, or to a model without a chat template); - reads it from stdin.  With --score
    the log-probability of each given continuation is printed instead of an answer.
    """
    prompt = sys.stdin.read() if params["prompt"] == "-" else params["prompt"]
    if not prompt:
        raise ConfigError("prompt: is empty; give a text, or - and a text on stdin")
    model = connected(params)
    try:
        if params["score"]:
            values = model.score(prompt, params["score"])
            for text, value in sorted(zip(params["score"], values, strict=True), key=lambda pair: -pair[1]):
                say(f"{value:10.4f}  {text}")
            return
        options: Any = {
            "max_tokens": params["max_tokens"],
            "temperature": params["temperature"],
            "seed": params["seed"],
            "stop": [mark.replace("\\n", "\n") for mark in params["stop"]],
        }
        plain = params["complete"] or not model.can_chat
        say((model.complete if plain else model.chat)(prompt, **options).text)
    finally:
        report(model)


ask = HeadedCommand(
    name="ask",
    callback=_ask,
    help=_ask.__doc__,
    params=[
        click.Argument(["lm"], type=BackboneType(), metavar="LM"),
        click.Argument(["prompt"], metavar="PROMPT"),
        HeadedOption(
            ["--complete"], heading="Answer", is_flag=True, help="Go on from PROMPT, without a chat template."
        ),
        HeadedOption(
            ["--score"],
            heading="Answer",
            multiple=True,
            metavar="TEXT",
            help="A continuation to score (with its leading space); give several.",
        ),
        HeadedOption(
            ["--max-tokens"],
            heading="Answer",
            type=click.IntRange(1),
            default=256,
            metavar="INT",
            help="Most tokens of the answer.  [default: 256]",
        ),
        HeadedOption(
            ["--temperature"],
            heading="Answer",
            type=click.FloatRange(min=0),
            default=0.0,
            metavar="NUMBER",
            help="0 takes the likeliest token; above, sample.  [default: 0]",
        ),
        HeadedOption(
            ["--seed"],
            heading="Answer",
            type=int,
            default=0,
            metavar="INT",
            help="Of the sample.  [default: 0]",
        ),
        HeadedOption(
            ["--stop"],
            heading="Answer",
            multiple=True,
            metavar="TEXT",
            help="Stop before TEXT; give several.",
        ),
        *budget_options(),
        *device_options(),
    ],
)


def _prices(file: str | None) -> None:
    """Show what models cost, and where your own price table is.

    Lines of your own table go over the packaged ones.  A model with no line has no known price: calls to it are counted,
    and refused where money is limited.
    """
    say_prices(file)


prices = HeadedCommand(
    name="prices",
    callback=_prices,
    help=_prices.__doc__,
    params=[HeadedOption(["--prices", "file"], metavar="FILE", help="A price table over your own.")],
)
