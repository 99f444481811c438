"""``cuelight compare m1,m2``: its options are those of the methods that are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cuelight.cli.common import data_settings, device_options, method_settings, required, say, slug
from cuelight.cli.options import HeadedCommand, HeadedOption, Setting, given, parse, settings
from cuelight.errors import ConfigError, nearest
from cuelight.methods.cards import method_names, read_card

__all__ = ["CompareCommand", "compare", "overrides_of", "seeds_given", "show"]


class MethodsType(click.ParamType):
    """Method names separated by commas; completes the last one."""

    name = "METHODS"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        names = [n for n in method_names() if n.startswith(last) and n not in before.split(",")]
        return [CompletionItem(before + comma + n, help=read_card(n)[0].title) for n in names]


class CompareCommand(HeadedCommand):
    """Reads the methods first, since they decide the other options.

    ``added`` are further options of the command, ``output`` is where its results go by default.
    """

    fields: dict[str, Setting]
    added: Sequence[click.Parameter] = ()
    output = "runs/compare-BACKBONE-DATA"

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        quiet = bool(extra.get("resilient_parsing"))
        taken = {param.name for param in self.added}
        found = _fields(_methods(args, quiet), quiet)
        self.fields = {name: setting for name, setting in found.items() if name not in taken}
        self.params = [*_params(self.fields, self.output), *self.added]
        return super().make_context(info_name, args, parent, **extra)


def _methods(args: Sequence[str], quiet: bool) -> list[str]:
    """The methods named in ``args``: its first word, or else the first word made of method names."""
    words = [a for a in args if not a.startswith("-")]
    for word in words:
        names = [n for n in word.split(",") if n]
        if names and all(n in method_names() for n in names):
            return names
    if args and not args[0].startswith("-") and not quiet:
        wrong = next((n for n in args[0].split(",") if n not in method_names()), args[0])
        raise ConfigError(
            f"method: '{wrong}' is unknown{nearest(wrong, method_names())}; 'cuelight methods' lists all"
        )
    return []


def _fields(names: Sequence[str], quiet: bool) -> dict[str, Setting]:
    if quiet:  # completion: the light options only
        from cuelight.training.config import TrainConfig

        found = [*settings(TrainConfig, "Training"), *data_settings()]
    else:
        found = method_settings(names) if names else []
    return {f.name: f for f in found if f.name not in ("seed", "device", "dtype", "output", "seeds")}


def _params(fields: dict[str, Setting], output: str) -> list[click.Parameter]:
    return [
        click.Argument(["methods"], type=MethodsType(), metavar="M1,M2,..."),
        *required(),
        *(f.option() for f in fields.values()),
        HeadedOption(
            ["--seeds"], metavar="N|A,B,...", default="3", help="How many seeds, or which.  [default: 3]"
        ),
        HeadedOption(
            ["--output"],
            type=click.Path(),
            metavar="DIR",
            help=f"Folder for runs, table and plot.  [default: {output}]",
        ),
        HeadedOption(
            ["--set", "overrides"],
            multiple=True,
            metavar="METHOD.FIELD=VALUE",
            help="An option of one method only; may be given many times.",
        ),
        *device_options(),
        HeadedOption(["--restart"], is_flag=True, help="Forget what the folder holds and begin anew."),
        HeadedOption(["--quiet"], is_flag=True, help="Print the table and nothing else."),
    ]


@click.command(
    cls=CompareCommand,
    epilog="\b\nExample\n  cuelight compare zero-shot,prompt-tuning,dept --backbone smollm2-135m "
    "--data reviews.csv --shots 16\n    --seeds 3 --set dept.rank=4",
)
@click.pass_context
def compare(ctx: click.Context, methods: str, backbone: str, data: str, **params: Any) -> None:
    """Run several methods over several seeds: a table, a plot, and every run kept.

    Methods are separated by commas.  Every option of 'cuelight tune' for these methods can be given, and
    'cuelight compare m1,m2 --help' lists them; one that only some methods have goes to those.  The same
    command goes on where it was interrupted, and runs no finished run again.
    """
    import cuelight

    command = ctx.command
    assert isinstance(command, CompareCommand)
    folder = Path(params["output"] or Path("runs") / f"compare-{slug(backbone)}-{slug(data)}")
    quiet = params["quiet"]
    found = cuelight.compare(
        methods,
        backbone=backbone,
        data=data,
        seeds=seeds_given(params["seeds"]),
        output=folder,
        device=params["device"],
        dtype=params["dtype"],
        restart=params["restart"],
        progress=not quiet,
        options=overrides_of(params["overrides"], methods.split(",")),
        **given(ctx, command.fields),
    )
    found.to_csv(folder / "table.csv")
    found.to_markdown(folder / "table.md")
    found.to_json(folder / "table.json")
    found.plot(folder / "plot.png")
    show(found.table())
    if not quiet:
        say(f"saved in {folder}: table.csv, table.json, table.md, plot.png, and every run in METHOD/seedK")


def seeds_given(text: str) -> int | list[int]:
    """What ``--seeds`` says: how many, or which."""
    try:
        return [int(part) for part in text.split(",") if part] if "," in text else int(text)
    except ValueError as error:
        raise ConfigError(f"seeds: is '{text}'; give how many (3) or which (0,1,2)") from error


def overrides_of(texts: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What every ``--set METHOD.FIELD=VALUE`` says, by method."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, dot, rest = text.partition(".")
        key, equals, value = rest.partition("=")
        key = key.replace("-", "_")
        if not dot or not equals or not key:
            raise ConfigError(f"set: is '{text}'; give METHOD.FIELD=VALUE, e.g. dept.rank=4")
        if name not in methods:
            raise ConfigError(
                f"set: '{name}' is not compared{nearest(name, methods)}; compared are {', '.join(methods)}"
            )
        fields = {f.name: f for f in method_settings([name]) if f.heading != "Data" and f.name != "seed"}
        if key not in fields:
            raise ConfigError(
                f"{name}.{key}: no such option{nearest(key, fields)}; 'cuelight tune {name} --help' lists all"
            )
        found.setdefault(name, {})[key] = parse(fields[key], value)
    return found


def show(table: Any) -> None:
    """Print a table as wide as the terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a pipe or a file is as wide as it takes
        console = Console(width=200)
    console.print(table)
