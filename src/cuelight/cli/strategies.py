"""``cuelight strategies``, ``solve`` and ``compare-strategies``: inference techniques over a language model."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cuelight.cli.common import device_options, plain, say, slug
from cuelight.cli.compare import seeds_given
from cuelight.cli.lm_options import budget_options, connected, lm_option, report
from cuelight.cli.options import HeadedCommand, HeadedOption, Setting, given, parse, settings
from cuelight.errors import ConfigError, CuelightError
from cuelight.methods.strategy import (
    GROUPS,
    Common,
    Strategy,
    Trace,
    all_strategies,
    get_strategy,
    strategy_names,
)

__all__ = ["compare_strategies", "solve", "strategies"]


class _StrategyType(click.ParamType):
    """A strategy, or several with commas between them; completes the last one."""

    name = "STRATEGY"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return [
            CompletionItem(before + comma + s.card.name, help=s.card.title)
            for s in all_strategies()
            if s.card.name.startswith(last)
        ]


@click.command()
@click.argument("name", required=False, type=_StrategyType(), metavar="[NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print cards as JSON.")
def strategies(name: str | None, as_json: bool) -> None:
    """List the inference techniques by application area, or explain NAME.

    They are those of a survey (arXiv 2402.07927).  'cuelight solve NAME QUESTION --lm SPEC' uses one,
    'cuelight compare-strategies' measures several.
    """
    chosen = [get_strategy(name)] if name else list(all_strategies())
    if as_json:
        cards = [asdict(s.card) | {"area": GROUPS[s.card.group]} for s in chosen]
        say(json.dumps(cards[0] if name else cards, indent=2, ensure_ascii=False))
        return
    if name:
        _explain(chosen[0])
        return
    width = max(len(n) for n in strategy_names())
    for group, title in GROUPS.items():
        say("", title)
        for s in chosen:
            if s.card.group == group:
                kind = "" if s.card.kind == "inference" else f" [{s.card.kind}]"
                say(
                    f"  {s.card.name:<{width}}  {s.card.title}{f' ({s.card.year})' if s.card.year else ''}{kind}"
                )
    say("", "[search] looks for an instruction first; [training], [data]: the technique itself is a trained model or a",
        "generator of data, what runs here is said by 'cuelight strategies NAME'")  # fmt: skip


def _explain(found: Strategy) -> None:
    card = found.card
    shown = {
        "name": card.name,
        "title": card.title,
        "area": GROUPS[card.group],
        "kind": card.kind,
        "calls": card.calls,
        "prompt": card.acquired,
        "turns": card.turns,
        "shown on": card.shown_on,
        "paper": card.paper + (f" ({card.year})" if card.year else ""),
        "arXiv": card.arxiv and f"https://arxiv.org/abs/{card.arxiv}",
    }
    say(*(f"{key:<10}{value}" for key, value in shown.items() if value))
    say("", plain(found.__doc__ or "").strip(), "", f"options: cuelight solve {card.name} --help")


def _fields(found: Strategy) -> list[Setting]:
    """The strategy's options that can be typed, its own first; defaults that are whole texts are not shown."""
    made = []
    for setting in settings(found.Options, "All strategies"):
        if setting.help.startswith("Python:"):
            continue
        text = str(setting.default)
        long = not isinstance(setting.default, str | int | float) and len(text) > 40
        heading = setting.heading if setting.name in Common.model_fields else "The strategy's own"
        default = None if long or len(text) > 60 or setting.default is ... else setting.default
        made.append(replace(setting, default=default, heading=heading))
    return sorted(made, key=lambda s: s.name in Common.model_fields)


class _SolveGroup(click.Group):
    """One sub-command per strategy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return strategy_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _solve_command(cmd_name) if cmd_name in strategy_names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and not ctx.resilient_parsing:
            args = [get_strategy(args[0]).card.name, *args[1:]]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, title in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(s.card.name, s.card.title) for s in all_strategies() if s.card.group == group]
                )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super(click.Group, self).shell_complete(ctx, incomplete)
        return [
            CompletionItem(s.card.name, help=s.card.title)
            for s in all_strategies()
            if s.card.name.startswith(incomplete)
        ]


@click.group(cls=_SolveGroup)
def solve() -> None:
    """Answer a question by an inference technique: cuelight solve STRATEGY QUESTION --lm SPEC.

    'cuelight solve STRATEGY --help' shows a strategy's options, 'cuelight strategies' lists all.
    """


def _solve_command(name: str) -> click.Command:
    found = get_strategy(name)
    fields = _fields(found)

    @click.pass_context
    def callback(ctx: click.Context, question: str, **params: Any) -> None:
        _solve(found, question, given(ctx, [f.name for f in fields]), params)

    return HeadedCommand(
        name,
        callback=callback,
        params=[
            click.Argument(["question"]),
            lm_option(),
            *budget_options(),
            *(f.option() for f in fields),
            HeadedOption(
                ["--trace"], type=click.Path(), metavar="FILE", help="Write all that happened as JSON."
            ),
            HeadedOption(["--show"], is_flag=True, help="Print every step."),
            HeadedOption(["--quiet"], is_flag=True, help="Print the answer and nothing else."),
            *device_options(),
        ],
        help=plain(found.__doc__ or ""),
        short_help=found.card.title,
        epilog=f'\b\nExample\n  cuelight solve {name} "What is 17 * 3?" --lm smollm2-135m --answer number\n'
        "A question of - is read from the standard input.",
    )


def _solve(found: Strategy, question: str, options: dict[str, Any], params: dict[str, Any]) -> None:
    text = sys.stdin.read() if question == "-" else question
    model = connected(params)
    try:
        trace = found(model, text, **options)
    except CuelightError as error:
        if params["trace"] and isinstance(so_far := getattr(error, "trace", None), Trace):
            so_far.save(params["trace"])
        raise
    if params["trace"]:
        trace.save(params["trace"])
    if params["quiet"]:
        say(trace.answer if trace.answer is not None else "")
        return
    if params["show"]:
        _show(trace)
    say(f"answer      {trace.answer if trace.answer is not None else '(none could be read)'}")
    if trace.confidence is not None:
        say(f"confidence  {trace.confidence:.2f}")
    used = trace.usage
    before = f", {trace.prepared} beforehand" if trace.prepared else ""
    cached = sum(step.cached for step in trace.steps)
    money = f"cost {used.cost:.6g}" if used.priced else "price not known"
    say(
        f"calls       {trace.calls}{before} ({cached} from the cache)",
        f"tokens      {used.prompt_tokens} read, {used.completion_tokens} written; {money}",
    )
    if params["trace"]:
        say(f"trace       {params['trace']}")


def _show(trace: Trace) -> None:
    """Every step, each with its role."""
    for number, step in enumerate(trace.steps, 1):
        head = f"{number}. {step.role}" + (" (beforehand)" if step.phase == "prepare" else "")
        say(head + (f" [{step.kind}]" if step.kind != "call" else ""))
        body = step.text.strip() or (json.dumps(step.data, ensure_ascii=False) if step.data else "")
        say(textwrap.indent(body, "   "), "")


@click.command(
    cls=HeadedCommand,
    epilog="\b\nExamples\n  cuelight compare-strategies zero-shot,self-consistency --lm smollm2-135m --data questions.csv\n"
    "    --seeds 3 --set self-consistency.samples=16\n  cuelight compare-strategies chain-of-thought,program-of-thoughts\n"
    "    --lm http://127.0.0.1:8000/v1#name --data gsm8k",
)
@click.argument("names", type=_StrategyType(), metavar="S1,S2,...")
@click.pass_context
def compare_strategies(ctx: click.Context, names: str, **params: Any) -> None:
    """Measure inference techniques on questions with known answers: a table, a plot, and every trace.

    The data is a table with the columns question and answer (and choices, context, rationale, split, if there are
    any), or a benchmark read from the folder that CUELIGHT_DATA names: gsm8k, bbh/TASK, babi/TASK, reasoning/TASK.
    The same command goes on where it was interrupted: the model's answers are in its cache.
    """
    from cuelight.strategy_comparison import compare_strategies as run

    folder = Path(
        params["output"] or Path("runs") / f"strategies-{slug(params['lm'])}-{slug(params['data'])}"
    )
    chosen = [n.strip() for n in names.split(",") if n.strip()]
    common = given(ctx, ["max_tokens", "chat"])
    overrides = _overrides(params["overrides"], chosen)
    for name in chosen:
        get_strategy(name)
    model = connected(params)
    found = run(
        chosen,
        lm=model,
        data=params["data"],
        seeds=seeds_given(params["seeds"]),
        questions=params["questions"] or None,
        shots=params["shots"],
        answer=params["answer"],
        options=overrides,
        output=folder,
        progress=not params["quiet"],
        **common,
    )
    found.save(folder)
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=200)).print(found.table())
    if not params["quiet"]:
        say(f"saved in {folder}: table.csv, table.json, table.md, plot.png, and every trace in traces")
        report(model)


def _comparison_params() -> list[click.Parameter]:
    own = {s.name: replace(s, heading="Comparison") for s in settings(Common, "Comparison")}
    return [
        lm_option(),
        HeadedOption(
            ["--data"], required=True, heading="Comparison", metavar="SOURCE",
            help="A table of questions, or gsm8k, bbh/TASK, babi/TASK, reasoning/TASK.",
        ),
        HeadedOption(
            ["--seeds"], heading="Comparison", metavar="N|A,B,...", default="3",
            help="How many seeds, or which.  [default: 3]",
        ),
        HeadedOption(
            ["--questions"], heading="Comparison", type=click.IntRange(0), metavar="INT", default=50,
            help="Questions that each seed draws; 0 takes all.  [default: 50]",
        ),
        HeadedOption(
            ["--shots"], heading="Comparison", type=click.IntRange(0), metavar="INT", default=3,
            help="Examples that each seed draws for strategies that take them; 0 leaves them their own.  [default: 3]",
        ),
        own["answer"].option(),
        own["max_tokens"].option(),
        own["chat"].option(),
        HeadedOption(
            ["--set", "overrides"], heading="Comparison", multiple=True, metavar="STRATEGY.OPTION=VALUE",
            help="An option of one strategy; may be given many times.",
        ),
        *budget_options(),
        HeadedOption(
            ["--output"], type=click.Path(), metavar="DIR",
            help="Folder for table, plot and traces.  [default: runs/strategies-LM-DATA]",
        ),
        HeadedOption(["--quiet"], is_flag=True, help="Print the table and nothing else."),
        *device_options(),
    ]  # fmt: skip


compare_strategies.params += _comparison_params()


def _overrides(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    from cuelight.config import unknown

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, dot, rest = text.partition(".")
        key, equals, value = rest.partition("=")
        key = key.replace("-", "_")
        if not dot or not equals or not key:
            raise ConfigError(
                f"set: is '{text}'; give STRATEGY.OPTION=VALUE, e.g. self-consistency.samples=16"
            )
        if name not in names:
            raise ConfigError(f"set: '{name}' is not compared; compared are {', '.join(names)}")
        fields = {f.name: f for f in _fields(get_strategy(name))}
        if key not in fields:
            raise ConfigError(f"{name}.{unknown(key, fields)}")
        found.setdefault(name, {})[key] = parse(fields[key], value)
    return found
