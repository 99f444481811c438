"""``cuelight search METHOD``: find a string that scores well, by a command that scores strings."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import click

from cuelight.cli.common import plain, say
from cuelight.cli.lm_options import budget_options, connected, lm_option, report
from cuelight.cli.options import HeadedCommand, HeadedOption, given, settings
from cuelight.errors import ConfigError, nearest
from cuelight.methods.cards import read_card

__all__ = ["search"]


_BEGIN = {
    "promptquine": "--prompt @prompt.txt --output found.txt",
    "llm-bbo": "--pool prompts.txt --lm smollm2-135m",
    "llm-bbo-text": "--pool prompts.txt --lm smollm2-135m",
}


class SearchGroup(click.Group):
    """One sub-command per method that searches."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from cuelight.searching import searchers

        return searchers()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return method_command(cmd_name) if cmd_name in self.list_commands(ctx) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not ctx.resilient_parsing:
            hint = nearest(args[0], names)
            raise ConfigError(f"method: '{args[0]}' is no search{hint}; there are {', '.join(names)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Methods"):
            formatter.write_dl([(name, read_card(name)[0].title) for name in self.list_commands(ctx)])


@click.group(cls=SearchGroup)
def search() -> None:
    """Find a string with a high score, for any command that scores strings.

    'cuelight search METHOD --help' shows a method's options.  To search on labelled rows, use 'cuelight tune METHOD'.
    """


def method_command(name: str) -> click.Command:
    """The command of one method."""
    from cuelight.methods.base import get_method

    own = settings(get_method(name).Search, "The method's own")  # type: ignore[attr-defined]
    fixed: list[click.Parameter] = [
        HeadedOption(
            ["--score"],
            heading="Required",
            required=True,
            metavar="COMMAND",
            help="Reads a string on its standard input, prints a number last; higher is better.",
        ),
        HeadedOption(["--prompt"], metavar="TEXT", help="String to begin with, or @FILE."),
        HeadedOption(["--pool"], metavar="FILE", help="Strings to begin with or to build from, one a line."),
        HeadedOption(
            ["--fields"],
            metavar="A,B",
            default="text",
            help="Names that stand in braces in the prompt and must stay.  [default: text]",
        ),
        HeadedOption(
            ["--history"],
            metavar="FILE",
            help="Keep what was scored here, a line of JSON each; what is there already is not scored again.",
        ),
        HeadedOption(
            ["--output"], metavar="FILE", help="Write the found string here, as it is, and do not print it."
        ),
        HeadedOption(
            ["--seed"], metavar="INT", type=int, default=0, help="Decides every draw.  [default: 0]"
        ),
        lm_option(what="Model that writes, for llm-bbo", required=False),
        *budget_options(),
    ]

    @click.pass_context
    def callback(ctx: click.Context, **params: Any) -> None:
        _search(name, given(ctx, [s.name for s in own]), params)

    return HeadedCommand(
        name,
        callback=callback,
        params=[*fixed, *(s.option() for s in own)],
        help=plain(read_card(name)[1]),
        short_help=read_card(name)[0].title,
        epilog=f"\b\nExample\n  cuelight search {name} --score 'python score.py' {_BEGIN.get(name, '--pool words.txt')}",
    )


def _search(name: str, options: dict[str, Any], params: dict[str, Any]) -> None:
    import cuelight
    from cuelight.methods.proposing import read_pool

    words = shlex.split(params["score"])
    prompt = params["prompt"]
    if prompt is not None and prompt.startswith("@"):
        prompt = _read(Path(prompt[1:]).expanduser())
    model = None if params["lm"] is None else connected(params)
    found = cuelight.search(
        name,
        lambda text: scored(words, text),
        prompt=prompt,
        pool=() if params["pool"] is None else read_pool(params["pool"]),
        fields=[field for field in params["fields"].split(",") if field],
        lm=model,
        seed=params["seed"],
        history=params["history"],
        progress=True,
        **options,
    )
    if params["output"]:
        from cuelight.cache import atomic_write

        with atomic_write(Path(params["output"])) as temporary:
            temporary.write_bytes(found.prompt.encode())
    else:
        say(found.prompt)
    click.echo(f"score {found.score:.6g} of {found.spent['scored']:,} scored strings", err=True)
    if model is not None:
        report(model)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"prompt: {file} can not be read ({reason}); give a text file") from error


def scored(words: list[str], text: str) -> float:
    """What the command prints last for ``text``, as a number.

    Raises:
        ConfigError: it can not be run, fails, or prints no number.
    """
    shown = shlex.join(words)
    try:
        done = subprocess.run(words, input=text.encode(), capture_output=True, check=False)
    except OSError as error:
        raise ConfigError(f"score: '{shown}' can not be run ({error.strerror}); give a command") from error
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it says nothing"]
        raise ConfigError(f"score: '{shown}' ended with {done.returncode} ({told[0][:200]}); mend it")
    try:
        return float(done.stdout.decode(errors="replace").split()[-1])
    except (IndexError, ValueError) as error:
        raise ConfigError(f"score: '{shown}' printed no number; print the score last") from error
