"""``cuelight promptor``: a conversation that ends in a tested prompt, in a terminal, in a browser, or from a file."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from filelock import FileLock, Timeout

from cuelight.cli.common import device_options, say
from cuelight.cli.lm_options import budget_options, connected, lm_option, report
from cuelight.cli.options import HeadedCommand, HeadedOption, Setting, given, settings
from cuelight.conversation.state import (
    SLOTS,
    PromptorConfig,
    best_version,
    load_cases,
    no_examples,
    shown_values,
)
from cuelight.errors import ConfigError, CuelightError

if TYPE_CHECKING:
    from rich.console import Console

    from cuelight.conversation.promptor import Promptor

__all__ = ["promptor"]

_HELP = """\
[b]/help[/]  this   [b]/prompt[/]  the best prompt so far   [b]/versions[/]  all versions   [b]/tests 2[/]  answers of version 2
[b]/file FILE[/]  examples from a table   [b]/edit[/]  change the prompt in your editor   [b]/try TEXT[/]  run it
[b]/quit[/]  stop; the same command goes on   a slot's name and a colon ([b]users: nurses[/]) changes the brief"""
_STORED = "the conversation is kept in {}; the same command goes on"


def _fields() -> list[Setting]:
    return settings(PromptorConfig, "The conversation")


@click.pass_context
def _promptor(ctx: click.Context, **params: Any) -> None:
    """Make a prompt in a conversation, tested on your own examples.

    You say what the prompt is for and give examples; the agent model (--lm) writes and criticises prompts, the target
    model (--target) is run on your examples, and the version with the best score is kept, with its transcript, in
    --output.  The same command goes on where you stopped.

    Works with any model: what has to be known is asked for by the program.  Small models write poor prompts; your own
    words are tested beside theirs, so what you get is never worse on your tests.
    """
    from cuelight.conversation.promptor import Promptor

    folder = Path(params["output"])
    lock = FileLock(_made(folder) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"output: {folder} is in use by another conversation; give another --output"
        ) from error
    with lock:
        writer = connected(params)
        same = params["target"] in (None, params["lm"])
        reader = None if same else connected(params, "target", meter=writer.meter)
        agent = Promptor(writer, reader, output=folder, **given(ctx, [f.name for f in _fields()]))
        if params["web"]:
            _web(agent, params["host"], params["port"], params["open"])
        elif params["answers"]:
            _scripted(agent, params)
        else:
            _Chat(agent).run()


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"output: {folder} is a file; give a folder") from error
    return folder


def _scripted(agent: Promptor, params: dict[str, Any]) -> None:
    """The conversation with a designer who answers from a file."""
    from cuelight.conversation.designers import Answers

    designer, quiet = Answers(params["answers"]), params["quiet"] or params["json"]
    if not quiet and sys.stderr.isatty():
        agent.on_step = lambda text: click.echo(f"  {text}", err=True)
    told = 0

    def tell() -> None:
        nonlocal told
        lines = agent.state.dialogue[told:]
        told += len(lines)
        if not quiet:
            say(*(f"{'> ' if line.who == 'designer' else ''}{line.text}" for line in lines))

    turn = agent.run()
    while turn.kind != "done":
        tell()
        turn = agent.reply(designer(turn, agent))
    tell()
    best = best_version(agent.state)
    if params["json"]:
        version = agent.state.versions[best or 0]
        figures = {"score": version.score, "reported": agent.state.reported, "metric": agent.state.metric}
        counts = {"calls": agent.state.calls, "failures": agent.state.failures}
        found = {
            "prompt": agent.prompt,
            "version": (best or 0) + 1,
            "origin": version.origin,
            **figures,
            **counts,
        }
        say(json.dumps({**found, "folder": str(agent.folder)}, indent=1, ensure_ascii=False))
    elif params["quiet"]:
        say(agent.prompt)
    else:
        say("", agent.prompt, "", f"saved in {agent.folder}")
        report(agent.lm, agent.target)


def _web(agent: Promptor, host: str, port: int, show: bool) -> None:
    """The conversation as a page."""
    try:
        import uvicorn

        from cuelight.studio.server import application
    except ImportError as error:
        raise ConfigError(
            f"web: needs {error.name}, which is not installed; pip install 'cuelight[studio]'"
        ) from error
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port: {host}:{port} can not be listened on ({error.strerror}); give another --port"
            ) from error
    hosts = ("127.0.0.1", "localhost") if host in ("127.0.0.1", "localhost") else ("*",)
    address = f"http://{host}:{port}/"
    say(f"Promptor is at {address}  (Ctrl-C stops; {_STORED.format(agent.folder)})")
    sys.stdout.flush()
    if show:
        click.launch(address)
    uvicorn.run(application(agent, hosts=hosts), host=host, port=port, log_level="warning")
    if not agent.waiting:
        raise KeyboardInterrupt("stopped while a model worked; the same command goes on")


class _Chat:
    """The conversation in a terminal."""

    def __init__(self, agent: Promptor) -> None:
        from rich.console import Console

        self.agent = agent
        self.console: Console = Console(highlight=False)
        self.told = 0
        if sys.stdin.isatty():
            import readline  # noqa: F401  (line editing and history for input)

    def run(self) -> None:
        """Talk until the end, or until the designer stops."""
        try:
            self._talk()
        except EOFError:
            self.console.print(f"[dim]{_STORED.format(self.agent.folder)}[/]")
        except KeyboardInterrupt:
            self.console.print()
            raise KeyboardInterrupt(_STORED.format(self.agent.folder)) from None

    def _talk(self) -> None:
        agent, console = self.agent, self.console
        if agent.state.brief or agent.state.versions:
            console.print(f"[dim]Going on in {agent.folder}.[/]")
            self.told = max(len(agent.state.dialogue) - 1, 0)
            self._brief()
        else:
            most = agent.projected()
            models = (
                agent.target.name
                if agent.lm is agent.target
                else f"{agent.lm.name} writes for {agent.target.name}"
            )
            console.print(
                f"[b yellow]●[/] [b]Promptor[/]  [dim]{_plain(models)}; at most {most['agent']} calls to write and "
                f"{most['target']} to test; /help[/]"
            )
        self._do(agent.run)
        while True:
            self._tell()
            if agent.turn.kind == "done" and not self._again():
                return
            try:
                self._take(self._heard())
            except CuelightError as error:
                if not agent.waiting:
                    raise
                console.print(f"[red]{_plain(str(error))}[/]")

    def _do(self, action: Callable[[], Any]) -> None:
        with self.console.status("[dim]thinking[/]", spinner="dots") as status:
            self.agent.on_step = lambda text: status.update(f"[dim]{_plain(text)}[/]")
            action()

    def _heard(self) -> str:
        """What the designer types; examples are lines, ended by an empty one."""
        line = input("> ").strip()
        if self.agent.turn.kind != "examples" or not line or line.startswith("/") or no_examples(line):
            return line
        lines = [line]
        while more := input("> ").strip():
            lines.append(more)
        return "\n".join(lines)

    def _take(self, text: str) -> None:
        agent, console = self.agent, self.console
        command, _, rest = text.partition(" ")
        slot, colon, said = text.partition(":")
        if command == "/quit":
            raise EOFError
        if command == "/help":
            console.print(_HELP)
        elif command == "/prompt":
            self._prompt()
        elif command == "/versions":
            self._versions()
        elif command == "/tests":
            self._tests(int(rest) - 1 if rest.isdecimal() else len(agent.state.versions) - 1)
        elif command == "/file":
            rows = load_cases(Path(rest.strip().strip("'\"")).expanduser(), agent.config.fields)
            self._do(lambda: agent.reply(rows))
        elif command == "/edit":
            edited = click.edit(agent.prompt or None)
            if edited is not None and edited.strip():
                self._do(lambda: agent.add_version(edited.rstrip("\n")))
        elif command == "/try":
            values = dict(zip(agent.config.fields, (part.strip() for part in rest.split("|")), strict=False))
            self._do(lambda: console.print(f"[b]{_plain(agent.predict([values])[0])}[/]"))
        elif command.startswith("/"):
            console.print(f"[red]there is no {_plain(command)}[/]; /help lists all")
        elif colon and slot.strip().lower() in SLOTS and agent.turn.kind in ("answer", "examples"):
            self._do(lambda: agent.set_slot(slot.strip().lower(), said))
        else:
            self._do(lambda: agent.reply(text))

    def _again(self) -> bool:
        """Whether the designer wants to go on after the end."""
        self._versions()
        self._prompt()
        folder = self.agent.folder
        self.console.print(f"[dim]Saved: {folder}/prompt.txt, transcript.md, promptor.json[/]")
        if not sys.stdin.isatty() or not click.confirm("Another round?", default=False):
            return False
        self.agent.more()
        self._tell()
        return True

    # ---- what is shown -----------------------------------------------------------------------------------

    def _tell(self) -> None:
        state = self.agent.state
        tested = state.phase == "verdict" and self.told < len(state.dialogue)
        if tested:
            self._versions()
            self._tests(len(state.versions) - 1)
        for line in state.dialogue[self.told :]:
            if line.who == "promptor":
                self.console.print(f"[yellow]●[/] {_plain(line.text)}")
        if self.told < len(state.dialogue) and state.phase == "examples":
            self.console.print("  [dim]An empty line ends them; /file FILE reads a table.[/]")
        self.told = len(state.dialogue)

    def _brief(self) -> None:
        for slot, text in self.agent.state.brief.items():
            self.console.print(
                f"  [green]✓[/] [b]{SLOTS[slot].title}[/] {_plain(text) or '[dim]left open[/]'}"
            )

    def _prompt(self) -> None:
        from rich.panel import Panel
        from rich.text import Text

        if not self.agent.prompt:
            self.console.print("[dim]there is no prompt yet[/]")
            return
        text = Text(self.agent.prompt)
        for name in self.agent.config.fields:
            text.highlight_words([f"{{{name}}}"], "bold yellow")
        self.console.print(Panel(text, title="prompt", border_style="yellow", title_align="left"))

    def _versions(self) -> None:
        state, best = self.agent.state, best_version(self.agent.state)
        for number, version in enumerate(state.versions):
            score = version.score
            bar = (
                ""
                if score is None
                else "█" * round(20 * score) + "[dim]" + "░" * (20 - round(20 * score)) + "[/]"
            )
            shown = "  –  " if score is None else f"{score:.2f} "
            mark = "[green]★[/]" if number == best else " "
            self.console.print(f"  {mark} {number + 1}  {version.origin:<9}{shown} {bar}")

    def _tests(self, number: int) -> None:
        from rich.table import Table

        state = self.agent.state
        if not 0 <= number < len(state.versions):
            self.console.print("[dim]there is no such version[/]")
            return
        version = state.versions[number]
        if not version.outputs:
            return
        table = Table(
            title=f"version {number + 1}", title_justify="left", title_style="dim", box=None, pad_edge=False
        )
        for head in ("", "typed", "wanted", "answer", "score"):
            table.add_column(head, overflow="fold")
        for row, (n, answer) in enumerate(version.outputs.items(), 1):
            figure = version.scores.get(n, version.marks.get(n))
            style = "" if figure is None else "green" if figure >= 0.75 else "red" if figure < 0.4 else ""
            score = "" if figure is None else f"{float(figure):.2f}"
            typed = _short(shown_values(state.cases[n].values))
            wanted = _short(state.cases[n].wanted or "")
            table.add_row(str(row), *map(_plain, (typed, wanted, _short(answer), score)), style=style)
        self.console.print(table)


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


promptor = HeadedCommand(
    "promptor",
    callback=_promptor,
    help=_promptor.__doc__,
    params=[
        lm_option(what="The model that writes and criticises prompts"),
        lm_option("--target", what="The model the prompt is for, if another", required=False),
        *budget_options(),
        *device_options(),
        *(field.option() for field in _fields()),
        HeadedOption(
            ["--web"],
            heading="Where",
            is_flag=True,
            help="In a browser (extra 'studio') instead of the terminal.",
        ),
        HeadedOption(
            ["--host"],
            heading="Where",
            default="127.0.0.1",
            metavar="ADDRESS",
            help="Of --web.  [default: 127.0.0.1]",
        ),
        HeadedOption(
            ["--port"],
            heading="Where",
            type=click.IntRange(1, 65535),
            default=8321,
            metavar="INT",
            help="Of --web.  [default: 8321]",
        ),
        HeadedOption(
            ["--open/--no-open"],
            heading="Where",
            default=True,
            help="Open the browser with --web.  [default: open]",
        ),
        HeadedOption(
            ["--answers"],
            heading="Where",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="Answer from a .toml or .json file: goals, users, data, context, output, examples, remarks, accept.",
        ),
        HeadedOption(
            ["--output"],
            type=click.Path(),
            default="runs/promptor",
            metavar="DIR",
            help="Folder of the conversation; one that is there goes on.  [default: runs/promptor]",
        ),
        HeadedOption(["--quiet"], is_flag=True, help="With --answers: print the prompt and nothing else."),
        HeadedOption(
            ["--json"], is_flag=True, help="With --answers: print the prompt and its figures as JSON."
        ),
    ],
    epilog="\b\nExamples\n  cuelight promptor --lm smollm2-135m --output runs/mine\n"
    "  cuelight promptor --lm https://api.openai.com/v1#gpt-4.1 --target smollm2-135m --web\n"
    "  cuelight promptor --lm smollm2-135m --answers brief.toml --json\n\n"
    "\b\nbrief.toml\n  goals = 'Say whether a review is positive or negative'\n  output = 'One word'\n"
    "  examples = 'reviews.csv'      # columns text and wanted (or label)\n",
)
