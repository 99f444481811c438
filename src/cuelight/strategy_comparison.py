"""`compare_strategies`: several inference techniques on one model and one set of questions, over seeds.

A seed draws the questions and the examples, the same for all strategies, and decides all sampling.  Every answer of the model
is in its cache, so the same call goes on where it was interrupted and pays nothing twice.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar

from cuelight.cache import atomic_write
from cuelight.config import build, unknown
from cuelight.errors import ConfigError, CuelightError, DataError, nearest
from cuelight.evaluation import tables
from cuelight.lm import LM, connect
from cuelight.lm.answers import AnswerKind, same
from cuelight.lm.documents import Documents
from cuelight.methods.strategy import DEMOS, Demo, Strategy, Trace, get_strategy, halted
from cuelight.progress import say, track

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = [
    "BENCHMARKS",
    "Question",
    "Questions",
    "StrategyComparison",
    "compare_strategies",
    "read_questions",
]

BENCHMARKS = {
    "gsm8k": "school arithmetic in words (numbers); gen/gsm8k.parquet",
    "bbh/TASK": "BIG-Bench Hard, one of 27 tasks, or bbh for all; gen/bbh.parquet",
    "babi/TASK": "bAbI, one of 20 tasks, or babi for all; gen/babi.parquet",
    "reasoning/TASK": "svamp, multiarith, singleeq, addsub, aqua, commonsenseqa, strategyqa, coin_flip, last_letters, "
    "shuffled_objects, date_understanding; gen/reasoning_zero_shot_cot.parquet",
}
"""Benchmarks by name, and the file that each is read from below ``$CUELIGHT_DATA``."""

_FILES = {"gsm8k": "gsm8k", "bbh": "bbh", "babi": "babi", "reasoning": "reasoning_zero_shot_cot"}
_SUPPLIED = ("demos", "examples", "pool")
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Question:
    """A question with its right answer, and how an answer is read."""

    text: str
    answer: str
    kind: AnswerKind
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """What a source holds: questions to ask, and worked examples that are none of them."""

    source: str
    asked: tuple[Question, ...]
    examples: tuple[Demo, ...]

    def drawn(self, seed: int, count: int | None, shots: int) -> tuple[list[Question], list[Demo]]:
        """``count`` questions and ``shots`` examples, drawn by ``seed``; without examples of its own, from the rest."""
        draw = random.Random(f"{self.source}-{seed}")
        order = draw.sample(range(len(self.asked)), len(self.asked))
        asked = [self.asked[k] for k in order[:count]]
        rest = list(self.examples)
        if not rest:
            rest = [Demo(q.text, "", q.answer) for q in (self.asked[k] for k in order[len(asked) :])]
        return asked, draw.sample(rest, min(shots, len(rest)))


def read_questions(source: str | os.PathLike[str], answer: AnswerKind | None = None) -> Questions:
    """Questions of a benchmark (see `BENCHMARKS`), or of a table with the columns question and answer.

    A table may have ``choices`` (divided by ``;`` or a list), ``context`` (put before the question), ``rationale`` and
    ``split`` (rows of ``train`` are examples).  The kind of answer is read off the right answers, unless ``answer`` says it.

    Raises:
        DataError: there is no such benchmark or file, or it lacks what is needed.
    """
    name, _, task = str(source).partition("/")
    if name in _FILES and not Path(source).exists():
        return _benchmark(name, task, answer)
    if not Path(source).exists() and "." not in str(source):
        raise DataError(
            f"data: '{source}' is no file and no benchmark{nearest(str(source), _FILES)}; benchmarks are {', '.join(BENCHMARKS)}"
        )
    from cuelight.data.files import read_frame

    frame = read_frame(Path(source))
    columns = {str(c).strip().lower(): c for c in frame.columns}
    for needed in ("question", "answer"):
        if needed not in columns:
            raise DataError(
                f"data {source}: has no column '{needed}'{nearest(needed, columns)}; columns: {', '.join(columns)}"
            )
    frame = frame.rename(columns={v: k for k, v in columns.items()}).dropna(subset=["question", "answer"])
    return _questions(
        str(source), [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")], answer
    )


def _benchmark(name: str, task: str, answer: AnswerKind | None) -> Questions:
    folder = os.environ.get("CUELIGHT_DATA")
    if not folder:
        raise DataError(
            f"data: {name} is read from $CUELIGHT_DATA/gen, and CUELIGHT_DATA is not set; set it to that folder"
        )
    import pandas as pd

    path = Path(folder) / "gen" / f"{_FILES[name]}.parquet"
    if not path.exists():
        raise DataError(
            f"data: {path} is not there; CUELIGHT_DATA must name the folder that holds gen/{path.name}"
        )
    frame = pd.read_parquet(path)
    if task:
        tasks = [str(t) for t in frame["task"].unique()] if "task" in frame else []
        if task not in tasks:
            raise DataError(
                f"data: {name} has no task '{task}'{nearest(task, tasks)}; there are {', '.join(tasks) or 'none'}"
            )
        frame = frame[frame["task"] == task]
    frame = frame.rename(
        columns={"input": "question", "target": "answer", "solution": "rationale", "story": "context"}
    )
    rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    found = _questions(f"{name}/{task}" if task else name, rows, answer)
    prompts = path.with_name("bbh_cot_prompts.parquet")
    if name == "bbh" and task and prompts.exists():
        table = pd.read_parquet(prompts).set_index("task")["cot_prompt"]
        examples = tuple(_worked(table.get(task, "")))
        shown = {demo.question for demo in examples}
        return replace(found, asked=tuple(q for q in found.asked if q.text not in shown), examples=examples)
    return found


def _worked(prompt: str) -> Iterator[Demo]:
    """The worked examples of a chain-of-thought prompt: ``Q: ... A: Let's think step by step. ... So the answer is X.``"""
    for part in re.split(r"\n\nQ: ", prompt)[1:]:
        question, _, rest = part.partition("\nA: ")
        rationale, _, said = rest.partition("So the answer is")
        if said:
            yield Demo(question.strip(), " ".join(rationale.split()), said.strip().rstrip("."))


def _questions(source: str, rows: Sequence[Mapping[str, Any]], answer: AnswerKind | None) -> Questions:
    asked, examples = [], []
    for row in rows:
        text = str(row["question"]).strip()
        if isinstance(row.get("context"), str):
            text = f"{row['context'].strip()}\n{text}"
        question = Question(text, str(row["answer"]).strip(), "text", _choices(row.get("choices")))
        if row.get("split") == "train":
            examples.append(Demo(_with_choices(question), _rationale(row.get("rationale")), question.answer))
        else:
            asked.append(question)
    if not asked:  # a file of training rows alone is there to be asked
        asked = [Question(d.question, d.answer, "text") for d in examples]
        examples = []
    if not asked:
        raise DataError(f"data {source}: holds no question with an answer")
    kind = answer or _kind(asked)
    told = [replace(q, kind=kind if kind != "text" or answer else _kind([q])) for q in asked]
    return Questions(source, tuple(told), tuple(examples))


def _kind(questions: Sequence[Question]) -> AnswerKind:
    """What all right answers have in common."""
    answers = [q.answer for q in questions]
    if any(q.choices for q in questions) or all(re.fullmatch(r"\([A-Z]\)", a) for a in answers):
        return "choice"
    if all(a.lower() in ("yes", "no", "true", "false") for a in answers):
        return "yes-no"
    return "number" if all(re.fullmatch(r"-?\$?[\d,]+(\.\d+)?", a) for a in answers) else "text"


def _choices(given: Any) -> tuple[str, ...]:
    if given is None or (isinstance(given, float) and given != given):
        return ()
    parts = re.split(r"\s*;\s*", given) if isinstance(given, str) else [str(part) for part in given]
    return tuple(part for part in parts if part)


def _with_choices(question: Question) -> str:
    return question.text + (f"\nChoices: {'; '.join(question.choices)}" if question.choices else "")


def _rationale(given: Any) -> str:
    """A worked solution without the marks that GSM8K puts into it."""
    return " ".join(re.sub(r"<<.*?>>|####.*", "", given).split()) if isinstance(given, str) else ""


@dataclass
class StrategyComparison:
    """What a comparison of strategies found.

    Attributes:
        model, data: what was compared on.
        seeds, questions, shots: the seeds, and how many questions and examples each drew.
        runs: one dictionary for each strategy and seed: ``method``, ``seed``, ``metrics`` (``accuracy``, ``answered``: the
            share of questions with a readable answer); means for a question: ``calls``, tokens ``read`` and ``written``;
            ``prepared``, the calls that served all questions; ``cost`` and ``seconds`` that were spent in all: answers from
            the cache cost neither.
    """

    metric: ClassVar[str] = "accuracy"

    model: str
    data: str
    seeds: tuple[int, ...]
    questions: int
    shots: int
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per strategy, see `cuelight.evaluation.tables.summary`."""
        return tables.summary(self.runs, self.metric)

    @property
    def title(self) -> str:
        """Model, data, questions and seeds, in a line."""
        count = len(self.seeds)
        return f"{self.model} on {self.data}, {self.questions} questions, {count} seed{'s' if count != 1 else ''}"

    def table(self) -> Table:
        """The table for a terminal (``rich.print`` it)."""
        return tables.rich_table(self.frame, self.title)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """``table.csv``, ``table.json`` with every run, ``table.md`` and ``plot.png``."""
        from cuelight.evaluation.plots import plot_comparison

        place = Path(folder)
        frame = self.frame
        texts = {
            "table.csv": frame.to_csv(index=False),
            "table.json": json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n",
            "table.md": tables.markdown(frame),
        }
        for name, text in texts.items():
            with atomic_write(place / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        cost = ("tokens", "tokens read and written for a question (mean)")
        runs = [{**run, "tokens": run["read"] + run["written"]} for run in self.runs]
        plot_comparison(runs, self.metric, place / "plot.png", self.title, cost)


def compare_strategies(
    strategies: Sequence[str] | str,
    *,
    lm: Any,
    data: str | os.PathLike[str] | Questions,
    seeds: int | Sequence[int] = 3,
    questions: int | None = 50,
    shots: int = 3,
    answer: AnswerKind | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    output: str | os.PathLike[str] | None = None,
    concurrency: int = 16,
    progress: bool = False,
    **common: Any,
) -> StrategyComparison:
    """Ask every question with every strategy and seed.

    Args:
        strategies: names, or one string ``"a,b"``.
        lm: a model of `cuelight.lm.connect`, or what it takes.
        data: a benchmark's name, a table, or `Questions`.
        seeds: how many (0, 1, 2, ...), or which; a seed draws questions and examples and decides sampling.
        questions: how many are drawn; ``None`` takes all.
        shots: examples that are drawn for strategies that take examples in the form of question, rationale and answer, and
            for those that need a pool; 0 leaves them their own.
        answer: what answers are, instead of what the data says.
        options: options of single strategies, ``{"self-consistency": {"samples": 16}}``.
        output: traces of every question are kept in ``output/traces``; see also `StrategyComparison.save`.
        concurrency: questions under way at a time; a local model reads them in batches.
        progress: say on stderr what is done.
        **common: options of all strategies: ``max_tokens``, ``chat``.

    Raises:
        CuelightError: any mistake, in one line; what was answered before is in the model's cache.
    """
    names = [n.strip() for n in (strategies.split(",") if isinstance(strategies, str) else strategies)]
    chosen = [get_strategy(name) for name in dict.fromkeys(filter(None, names))]
    if not chosen:
        raise ConfigError("strategies: none given; name some, e.g. zero-shot,chain-of-thought")
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers:
        raise ConfigError("seeds: none given; give how many (3) or which (0,1,2)")
    own = dict(options or {})
    for name in own:
        if get_strategy(name) not in chosen:
            raise ConfigError(
                f"options: '{name}' is not compared; compared are {', '.join(s.card.name for s in chosen)}"
            )
    source = data if isinstance(data, Questions) else read_questions(data, answer)
    asked = len(source.drawn(numbers[0], questions, shots)[0])
    plans = [
        (s, _given(s, {**common, **own.get(s.card.name, {})}, source, numbers[0], shots)) for s in chosen
    ]
    model = connect(lm) if not isinstance(lm, LM) else lm
    result = StrategyComparison(model.name, source.source, numbers, asked, shots)
    for found, _ in plans:
        for seed in numbers:
            rows, examples = source.drawn(seed, questions, shots)
            given = _supplied(found, {**common, **own.get(found.card.name, {})}, examples)
            shown = f"{found.card.name}, seed {seed}" if progress else None
            traces, run = _run(found, model, rows, {**given, "seed": seed}, concurrency, shown)
            result.runs.append({"method": found.card.name, "seed": seed, **run})
            if output is not None:
                _keep(Path(output) / "traces" / f"{found.card.name}-s{seed}.jsonl", traces, rows)
            if progress:
                say(
                    f"{found.card.name}, seed {seed}: accuracy {run['metrics']['accuracy']:.3f}, {run['calls']:.1f} calls"
                )
    return result


def _given(
    found: Strategy, options: Mapping[str, Any], source: Questions, seed: int, shots: int
) -> dict[str, Any]:
    """The strategy's options, checked before anything is asked."""
    for name in options:
        if name not in found.Options.model_fields:
            raise ConfigError(f"{found.card.name}.{unknown(name, found.Options.model_fields)}")
    given = _supplied(found, options, source.drawn(seed, 1, shots)[1])
    try:
        build(found.Options, given)
    except ConfigError as error:
        raise ConfigError(
            f"{found.card.name}.{error}; give it with --set {found.card.name}.OPTION=VALUE"
        ) from error
    return given


def _supplied(found: Strategy, options: Mapping[str, Any], examples: Sequence[Demo]) -> dict[str, Any]:
    """Options with the drawn examples for a strategy that takes them in the common form and was given none."""
    given = dict(options)
    if isinstance(given.get("documents"), str | os.PathLike):  # read and indexed once for all questions
        given["documents"] = Documents.read(given["documents"], given.get("retriever", "bm25"))
    for name in _SUPPLIED:
        if name in found.own and name not in given and examples:
            default = found.own[name][1]
            if default is DEMOS or default == () or default is _REQUIRED:
                given[name] = tuple(examples)
    return given


def _run(
    found: Strategy,
    model: LM,
    rows: Sequence[Question],
    options: Mapping[str, Any],
    concurrency: int,
    shown: str | None,
) -> tuple[list[Trace], dict[str, Any]]:
    stop = Event()

    def ask(row: Question) -> Trace:
        halted.set(stop)
        return found(model, row.text, **{**options, "answer": row.kind, "choices": row.choices})

    before, began = model.meter.spent, time.monotonic()
    first = ask(rows[0])  # alone, so that what it prepares for all is in the cache
    with ThreadPoolExecutor(max(concurrency, 1)) as pool:
        waiting = [pool.submit(ask, row) for row in rows[1:]]
        try:
            traces = [first, *(future.result() for future in track(waiting, shown))]
        except (CuelightError, KeyboardInterrupt):
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    right = [same(t.answer, row.answer, row.kind, row.choices) for t, row in zip(traces, rows, strict=True)]
    usages = [trace.usage for trace in traces]
    count = len(rows)
    return traces, {
        "metrics": {
            "accuracy": sum(right) / count,
            "answered": sum(trace.answer is not None for trace in traces) / count,
        },
        "calls": sum(trace.calls for trace in traces) / count,
        "read": sum(u.prompt_tokens for u in usages) / count,
        "written": sum(u.completion_tokens for u in usages) / count,
        "prepared": max(trace.prepared for trace in traces),
        "cost": (model.meter.spent - before).money,
        "seconds": round(time.monotonic() - began, 3),
        "right": [int(r) for r in right],
    }


def _keep(path: Path, traces: Sequence[Trace], rows: Sequence[Question]) -> None:
    lines = [
        json.dumps({"right_answer": row.answer, **trace.to_dict()}, ensure_ascii=False)
        for trace, row in zip(traces, rows, strict=True)
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
