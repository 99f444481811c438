"""``cuelight protocol NAME M1,M2``: few-shot curves, base-to-new, cross-data-set and domain generalisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cuelight.cli.common import say, slug
from cuelight.cli.compare import CompareCommand, overrides_of, seeds_given, show
from cuelight.cli.options import HeadedOption, Setting, given, parse
from cuelight.errors import ConfigError

__all__ = ["protocol"]

_PROCESSES = HeadedOption(
    ["--processes"],
    type=click.IntRange(1),
    metavar="INT",
    default=1,
    help="Seeds that run at the same time, each in a process of its own.  [default: 1]",
)


@click.group()
def protocol() -> None:
    """Compare methods as the CLIP family is compared.

    Every run is kept: the same command goes on where it was interrupted.  'cuelight protocol NAME M1,M2 --help' lists
    the options of the methods.
    """


def _command(
    name: str, own: list[click.Parameter], text: str, example: str
) -> Callable[[Any], click.Command]:
    class Command(CompareCommand):
        """`CompareCommand` with the protocol's own options."""

        added = (*own, _PROCESSES)
        output = f"runs/{name}-BACKBONE-DATA"

    def decorate(call: Callable[..., Any]) -> click.Command:
        @click.pass_context
        def callback(ctx: click.Context, **params: Any) -> None:
            _run(ctx, name, call, params)

        made = Command(
            name,
            callback=callback,
            help=text,
            short_help=text.split(".")[0].split(";")[0] + ".",
            epilog=f"\b\nExample\n  cuelight protocol {name} {example}",
        )
        protocol.add_command(made)
        return made

    return decorate


def _run(ctx: click.Context, name: str, call: Callable[..., Any], params: dict[str, Any]) -> None:
    command = ctx.command
    assert isinstance(command, CompareCommand)
    backbone, data = params["backbone"], params["data"]
    folder = Path(params["output"] or Path("runs") / f"{name}-{slug(backbone)}-{slug(data)}")
    result = call(
        params,
        methods=params["methods"],
        backbone=backbone,
        data=data,
        seeds=seeds_given(params["seeds"]),
        output=folder / "runs",
        device=params["device"],
        dtype=params["dtype"],
        progress=not params["quiet"],
        restart=params["restart"],
        processes=params["processes"],
        options=overrides_of(params["overrides"], params["methods"].split(",")),
        **given(ctx, command.fields),
    )
    result.to_csv(folder / "table.csv")
    result.to_markdown(folder / "table.md")
    result.to_json(folder / "table.json")
    result.plot(folder / "plot.png")
    show(result.table())
    if not params["quiet"]:
        say(f"saved in {folder}: table.csv, table.json, table.md, plot.png, and every run in runs/")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(parse(Setting("shots", tuple[int, ...], (), "", ""), text))


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@_command(
    "few-shot",
    [
        HeadedOption(
            ["--shots"],
            metavar="A,B,...",
            default="1,2,4,8,16",
            help="Training rows a class.  [default: 1,2,4,8,16]",
        )
    ],
    "Accuracy by the number of training rows a class.",
    "coop,maple --backbone dino-minilm-clip --data pictures/",
)
def few_shot(params: dict[str, Any], **common: Any) -> Any:
    from cuelight import protocols

    return protocols.few_shot(shots=_numbers(params["shots"]), **common)


@_command(
    "base-to-new",
    [],
    "Learn on the first half of the classes; accuracy among these and among the others, and their harmonic mean H.\n\n"
    "--data may name several data sets, with commas between; then their averages come last.",
    "coop,cocoop,maple --backbone dino-minilm-clip --data pets/,cars.csv --shots 16",
)
def base_to_new(params: dict[str, Any], **common: Any) -> Any:
    from cuelight import protocols

    named = _listed(common["data"])
    return protocols.base_to_new(**{**common, "data": named if len(named) > 1 else common["data"]})


@_command(
    "cross-data",
    [
        HeadedOption(
            ["--targets"],
            required=True,
            metavar="A,B,...",
            help="Data sets to answer on, with their own classes.",
        )
    ],
    "Learn on one data set, answer on others by swapping the class names.",
    "coop,maple --backbone dino-minilm-clip --data many.parquet --targets pets/,cars.csv --shots 16",
)
def cross_data(params: dict[str, Any], **common: Any) -> Any:
    from cuelight import protocols

    return protocols.cross_data(targets=_listed(params["targets"]), **common)


@_command(
    "domains",
    [
        HeadedOption(
            ["--column"],
            metavar="COLUMN",
            default="domain",
            help="Column that names the domain.  [default: domain]",
        ),
        HeadedOption(["--source"], metavar="VALUE", help="Domain to learn in.  [default: every one in turn]"),
        HeadedOption(
            ["--targets"],
            metavar="A,B,...",
            help="Data sets of other domains with the same classes, not a column.",
        ),
    ],
    "Learn in one domain, answer in others.",
    "coop,promptsrc --backbone dino-minilm-clip --data pacs.parquet --source photo --shots 16",
)
def domains(params: dict[str, Any], **common: Any) -> Any:
    from cuelight import protocols

    if params["targets"] and params["source"]:
        raise ConfigError(
            "source: is a value of a column; with --targets the whole of --data is learned from"
        )
    return protocols.domains(
        column=params["column"], source=params["source"], targets=_listed(params["targets"]), **common
    )
