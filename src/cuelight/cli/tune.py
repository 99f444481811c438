"""``cuelight tune METHOD``: a command for every method, made from its own options when it is called."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cuelight.cli.common import device_options, fill, method_settings, plain, required, say, slug
from cuelight.cli.options import HeadedCommand, HeadedOption, given
from cuelight.errors import ConfigError, nearest
from cuelight.methods.cards import method_names, read_card

if TYPE_CHECKING:
    from cuelight.tuning import Run

__all__ = ["tune"]

_PARTNERS = (
    *("zero-shot", "prompt-tuning", "linear-probe", "full-finetuning"),
    *("zero-shot-clip", "coop", "image-linear-probe"),
)
# what decides which rows are test rows, and their answers
_ROWS = (
    *(
        "text",
        "text_b",
        "image",
        "label",
        "target",
        "train_split",
        "validation_split",
        "test_split",
        "max_test",
    ),
    *("test_size", "split_seed", "label_names"),
)


class MethodGroup(click.Group):
    """One sub-command per method; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return method_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return method_command(cmd_name) if cmd_name in method_names() else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("--") and args[0] != "--help" and not ctx.resilient_parsing:
            raise ConfigError(
                "method: comes before its options; type 'cuelight tune METHOD --backbone ... --data ...'"
            )
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in method_names() and not ctx.resilient_parsing:
            hint = nearest(args[0], method_names())
            raise ConfigError(f"method: '{args[0]}' is unknown{hint}; 'cuelight methods' lists all")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        families: dict[str, list[tuple[str, str]]] = {}
        for name in method_names():
            card = read_card(name)[0]
            year = f" ({card.year})" if card.year else ""
            families.setdefault(card.family.replace("_", " "), []).append((name, card.title + year))
        for family, rows in families.items():
            with formatter.section(f"Methods: {family}"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super(click.Group, self).shell_complete(ctx, incomplete)
        return [
            CompletionItem(n, help=read_card(n)[0].title) for n in method_names() if n.startswith(incomplete)
        ]


@click.group(cls=MethodGroup)
def tune() -> None:
    """Learn a prompt on your data and measure it on rows it has not seen.

    The same command goes on where it was interrupted.  'cuelight tune METHOD --help' shows a method's
    options.
    """


def method_command(name: str) -> click.Command:
    """The command of one method."""
    fields = method_settings([name])
    run_options: list[click.Parameter] = [
        HeadedOption(
            ["--output"],
            type=click.Path(),
            metavar="DIR",
            help="Folder for what is learned.  [default: runs/METHOD-BACKBONE-DATA-sSEED]",
        ),
        *device_options(),
        HeadedOption(["--restart"], is_flag=True, help="Forget what the folder holds and begin anew."),
        HeadedOption(["--quiet"], is_flag=True, help="Print the figures and nothing else."),
    ]
    taken = {p.name for p in run_options} | {"backbone", "data"}

    @click.pass_context
    def callback(ctx: click.Context, **params: Any) -> None:
        _tune(name, given(ctx, [f.name for f in fields if f.name not in taken]), params)

    doc = plain(read_card(name)[1])
    pictures = read_card(name)[0].reads == "image"
    where = (
        "--backbone dino-minilm-clip --data pictures/"
        if pictures
        else "--backbone smollm2-135m --data reviews.csv"
    )
    example = f"cuelight tune {name} {where} --shots 16 --output runs/mine"
    return HeadedCommand(
        name,
        callback=callback,
        params=[*required(), *(f.option() for f in fields if f.name not in taken), *run_options],
        help=doc,
        short_help=read_card(name)[0].title,
        epilog=f"\b\nExample\n  {example}",
    )


def _tune(name: str, options: dict[str, Any], params: dict[str, Any]) -> None:
    import cuelight

    quiet, backbone, source = params["quiet"], params["backbone"], params["data"]
    default = Path("runs") / f"{name}-{slug(backbone)}-{slug(source)}-s{options.get('seed', 0)}"
    folder = Path(params["output"]) if params["output"] else default
    shown: list[str] = []

    def report(lines: list[str]) -> None:
        shown.extend(lines)
        say(*lines)
        sys.stdout.flush()

    run = cuelight.tune(
        name,
        backbone=backbone,
        data=source,
        output=folder,
        device=params["device"],
        dtype=params["dtype"],
        restart=params["restart"],
        progress=not quiet,
        on_report=None if quiet else report,
        **options,
    )
    if quiet:
        say("  ".join(f"{key} {value:.4f}" for key, value in run.metrics.items()))
        return
    say("", *run.report[len(shown) :], "", *_result(run))
    same = fill({k: v for k, v in options.items() if k != "seed"})
    rows = fill({k: v for k, v in options.items() if k in _ROWS})
    task = run.prompt.method.task
    second = ["--text-b", "its second text"] if task.pairs else []
    follow = [
        ["predict", str(folder), "a text of yours" if task.modality == "text" else "picture.jpg", *second],
        ["evaluate", str(folder), "--data", source, *rows],
    ]
    partner = _partner(name, run.prompt.method.backbone.kind, task.kind, task.modality)
    if partner:
        methods = f"{name},{partner}" if name.startswith("zero-shot") else f"{partner},{name}"
        where = ["--backbone", backbone, "--data", source]
        follow.append(["compare", methods, *where, "--seeds", "3", *same])
    if run.training:
        follow.append(["plot", str(folder)])
    say("", "next", *("  " + shlex.join(["cuelight", *words]) for words in follow))


def _partner(name: str, kind: str, task: str, reads: str = "text") -> str | None:
    """A baseline to compare with that runs on the same kind of backbone and task."""
    for other in _PARTNERS:
        card = read_card(other)[0]
        fits = kind in card.kinds and task in card.tasks and reads == card.reads
        if other != name and fits:
            return other
    return None


def _result(run: Run) -> list[str]:
    rows = [(key, f"{value:.4f}") for key, value in run.metrics.items()]
    steps = f" ({run.training.steps} steps)" if run.training else ""
    rows += [
        ("trained values", f"{run.trainable:,}"),
        ("training time", f"{run.seconds:.1f} s{steps}"),
        ("peak memory", f"{run.peak_memory / 2**20:,.0f} MB"),
        ("saved in", str(run.folder)),
    ]
    return [f"{key:<16}{value}" for key, value in rows]
