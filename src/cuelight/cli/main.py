"""The command line: ``cuelight``.

Only the command that is called is imported, so that help and completion do not wait for torch.  A user's
mistake gives one line on stderr and exit code 2.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from cuelight.errors import ConfigError, CuelightError, is_out_of_memory, nearest

__all__ = ["main", "root", "run"]

COMMANDS = {
    "tune": ("tune:tune", "Learn a prompt on your data and measure it."),
    "compare": ("compare:compare", "Run several methods over several seeds; a table and a plot."),
    "protocol": ("protocol:protocol", "Few-shot, base-to-new, cross-data-set, domain generalisation."),
    "predict": ("predict:predict", "Answer texts with what was learned."),
    "evaluate": ("predict:evaluate", "Measure what was learned on labelled rows."),
    "export": (
        "export:export",
        "Write what was learned as a PEFT adapter, a model, or a text prompt for other tools.",
    ),
    "promptor": ("promptor:promptor", "Make a prompt in a conversation, tested on your examples."),
    "search": ("search:search", "Find a string that scores well, for any command that scores strings."),
    "serve": ("serve:serve", "Serve learned prompts on one backbone over HTTP."),
    "ask": ("ask:ask", "Ask a language model, and see what it costs."),
    "prices": ("ask:prices", "Show what language models cost, and where to change it."),
    "strategies": ("strategies:strategies", "List inference techniques over a language model."),
    "solve": ("strategies:solve", "Answer a question by an inference technique."),
    "compare-strategies": ("strategies:compare_strategies", "Measure inference techniques on questions."),
    "methods": ("lists:methods", "List the methods, or show one."),
    "backbones": ("lists:backbones", "List, fetch or remove the built-in backbones."),
    "data": ("lists:data", "Show how a data source is read, without learning."),
    "attention": ("attention:attention", "Draw what a prompt looks at in a picture."),
    "plot": ("plot:plot", "Draw a run's training curve, or a comparison."),
    "completion": ("completion:completion", "Print the completion script of a shell."),
}
INTERRUPTED, MISTAKE, DEFECT = 130, 2, 1


class _StoppedError(Exception):
    """Ctrl-C, with what the training loop says of it."""


class Root(click.Group):
    """The commands, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"cuelight.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            hint = nearest(args[0], COMMANDS)
            raise ConfigError(f"command: '{args[0]}' is unknown{hint}; there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click would drop its message, which says how to go on
            raise _StoppedError(str(error)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super(click.Group, self).shell_complete(ctx, incomplete)
        return [CompletionItem(n, help=text) for n, (_, text) in COMMANDS.items() if n.startswith(incomplete)]


@click.group(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nStart with\n  cuelight tune prompt-tuning --backbone smollm2-135m --data film-reviews "
    "--shots 16",
)
@click.version_option(package_name="cuelight", message="cuelight %(version)s")
@click.pass_context
def root(ctx: click.Context) -> None:
    """Teach frozen pretrained models with prompts: learn, compare, predict."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The ``cuelight`` script."""
    code = run(sys.argv[1:])
    if code == INTERRUPTED and threading.active_count() > 1:
        # A model may be computing in a thread that can not be stopped; nobody waits for its answer any more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code, and prints a mistake as one line on stderr."""
    _hush()
    try:
        code = root.main(args=list(arguments), prog_name="cuelight", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return MISTAKE
    except click.UsageError as error:
        return _fail(_usage(error), MISTAKE, error)
    except (CuelightError, click.ClickException) as error:
        return _fail(str(error), MISTAKE, error)
    except (_StoppedError, KeyboardInterrupt, click.Abort) as error:
        return _fail(
            str(error) or "interrupted; run the same command again to go on", INTERRUPTED, error, head=""
        )
    except BrokenPipeError:
        # nobody reads: let the last flush pass
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DEFECT
    except OSError as error:
        if error.filename is None or error.strerror is None:
            return _defect(error)
        return _fail(
            f"{error.filename}: {error.strerror}; give another place or free this one", MISTAKE, error
        )
    except Exception as error:
        if is_out_of_memory(error):
            remedy = "lower --batch-size or --max-length, take --dtype bfloat16, or a smaller backbone"
            return _fail(f"memory: ran out ({type(error).__name__}); {remedy}", MISTAKE, error)
        return _defect(error)


def _fail(text: str, code: int, error: BaseException, *, head: str = "error: ") -> int:
    if os.environ.get("CUELIGHT_DEBUG") == "1":
        traceback.print_exception(error)
    click.echo(head + " ".join(text.split()), err=True)
    return code


def _defect(error: Exception) -> int:
    text = f"{type(error).__name__}: {error}"
    remedy = "this is a defect of cuelight; rerun with CUELIGHT_DEBUG=1 for the traceback"
    return _fail(f"{text[:300]}; {remedy}", DEFECT, error)


def _usage(error: click.UsageError) -> str:
    """Click's own complaints in the one form that all have: field, what is wrong, remedy."""
    command = error.ctx.command_path if error.ctx else "cuelight"
    if isinstance(error, click.NoSuchOption):
        flags = (
            [flag for p in error.ctx.command.params for flag in (*p.opts, *p.secondary_opts)]
            if error.ctx
            else []
        )
        hint = nearest(error.option_name, [f for f in flags if f.startswith("--")])
        return f"{error.option_name}: no such option{hint}; '{command} --help' lists all"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        name = (
            error.param.opts[0]
            if isinstance(error.param, click.Option)
            else str(error.param.human_readable_name)
        )
        return f"{name}: is missing; '{command} --help' shows how to give it"
    text = error.format_message().rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None:
        text = f"{error.param.name}: {error.message.rstrip('.')}"
    return f"{text[:1].lower()}{text[1:]}; see '{command} --help'"


def _hush() -> None:
    """Libraries are chatty about things a user can not act on; `CUELIGHT_DEBUG=1` lets them speak."""
    if os.environ.get("CUELIGHT_DEBUG") == "1":
        return
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
