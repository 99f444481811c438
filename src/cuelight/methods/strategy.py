"""What a strategy is: an inference technique over a frozen language model, called on one question.

    from cuelight import lm, strategies
    trace = strategies.self_consistency(lm.connect("smollm2-135m"), "What is 17 * 3?", samples=8, answer="number")
    trace.answer, trace.calls, trace.save("trace.json")

A strategy is one file in `cuelight.methods.strategies`, with one function under `strategy` that takes a `Run` and the
question and returns the answer.  The run asks the model and writes everything down: a `Trace` has every call, what it cost,
every thought, and the answer, in one form for all strategies.  Nothing learns; a few search for a text first (their calls
are marked ``prepare``, are the same for every question, and are paid once when the model has a cache).
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

from cuelight.cache import atomic_write
from cuelight.config import build
from cuelight.errors import ConfigError, CuelightError, DataError, nearest
from cuelight.lm.answers import AnswerKind, extract, normal
from cuelight.lm.base import LM, Completion, Usage

__all__ = [
    "DEMOS",
    "GROUPS",
    "Common",
    "Demo",
    "Demos",
    "Run",
    "Step",
    "Strategy",
    "StrategyCard",
    "Trace",
    "all_strategies",
    "demos_of",
    "get_strategy",
    "halted",
    "majority",
    "strategy",
    "strategy_names",
    "worked",
]

GROUPS = {
    "new-tasks": "New tasks without extensive training",
    "reasoning": "Reasoning and logic",
    "hallucination": "Reduce hallucination",
    "interaction": "User interaction",
    "optimisation": "Fine-tuning and optimisation",
    "knowledge": "Knowledge-based reasoning and generation",
    "consistency": "Improving consistency and coherence",
    "emotion": "Managing emotions and tone",
    "code": "Code generation and execution",
    "efficiency": "Optimisation and efficiency",
    "intent": "Understanding user intent",
    "metacognition": "Metacognition and self-reflection",
}
"""The application areas of the survey (arXiv 2402.07927, section 2.1 to 2.12), in its order."""

_FORMAT = 1
halted: ContextVar[Event | None] = ContextVar("halted", default=None)
"""Whoever runs strategies in threads can stop them before their next call: an event of the thread's context."""


class Demo(NamedTuple):
    """A worked example; ``rationale`` may be empty."""

    question: str
    rationale: str
    answer: str


Demos = Sequence[Any] | str | os.PathLike[str]
"""Demonstrations as users give them: see `demos_of`."""

DEMOS = (
    Demo(
        "A baker has 3 trays with 8 rolls each and sells 10 rolls. How many rolls are left?",
        "3 trays with 8 rolls are 3 * 8 = 24 rolls. Without the 10 that are sold there are 24 - 10 = 14.",
        "14",
    ),
    Demo(
        "Ida is 6 years older than Tom. Tom is 9. How old are they together?",
        "Ida is 9 + 6 = 15. Together they are 15 + 9 = 24.",
        "24",
    ),
    Demo(
        "A film of 120 minutes is shown 4 times a day. How many hours is that in 5 days?",
        "120 minutes are 2 hours. 4 times a day is 4 * 2 = 8 hours, in 5 days 5 * 8 = 40.",
        "40",
    ),
)
"""Three arithmetic problems, for whoever gives no demonstrations of the own task."""


def demos_of(given: Demos) -> tuple[Demo, ...]:
    """Demonstrations from a list of `Demo`, ``(question, answer)``, ``(question, rationale, answer)`` or dictionaries; or
    from a table with the columns ``question``, ``answer`` and, if there is one, ``rationale``.

    Raises:
        DataError: one has no question or answer.
    """
    if isinstance(given, str | os.PathLike):
        from cuelight.data.files import read_frame

        given = read_frame(Path(given)).fillna("").to_dict("records")
    made = []
    for entry in given:
        if isinstance(entry, dict):
            row = {str(k).lower(): str(v) for k, v in entry.items()}
            if "question" not in row or "answer" not in row:
                raise DataError(
                    f"demos: a row has the columns {', '.join(row)}; it needs question and answer (and rationale)"
                )
            made.append(Demo(row["question"], row.get("rationale", ""), row["answer"]))
        elif not isinstance(entry, str) and len(entry) in (2, 3):
            parts = [str(part) for part in entry]
            made.append(Demo(*parts) if len(parts) == 3 else Demo(parts[0], "", parts[1]))
        else:
            raise DataError(f"demos: {entry!r} is no (question, rationale, answer)")
    return tuple(made)


def worked(demos: Sequence[Demo], *, rationales: bool = True) -> str:
    """Demonstrations in one fixed form, with a blank line behind each."""
    lines = []
    for demo in demos:
        thought = f"{demo.rationale} " if rationales and demo.rationale else ""
        lines.append(f"Q: {demo.question}\nA: {thought}The answer is {demo.answer}.\n\n")
    return "".join(lines)


def majority(answers: Sequence[str | None]) -> tuple[str | None, dict[str, int]]:
    """The answer most votes are for, the first seen of equals, and the votes by answer; ``None`` does not vote."""
    names: dict[str, str] = {}
    votes: Counter[str] = Counter()
    for answer in answers:
        if answer is not None:
            votes[names.setdefault(normal(answer) or answer, answer)] += 1
    best = max(votes, key=lambda a: votes[a], default=None)
    return best, dict(votes)


@dataclass(frozen=True)
class StrategyCard:
    """What a strategy says of itself.

    Attributes:
        group: a key of `GROUPS`.
        calls: model calls for a question, in words and the options' names.
        acquired, turns, shown_on: how the prompt is made, single or multi turn, and on which models, by the survey's
            table; empty where its table leaves the technique out.
        kind: ``inference``; ``search`` for a text; ``training`` and ``data`` where the technique itself is a trained model
            or a generator of training data, and what runs here is its inference counterpart.
    """

    name: str
    title: str
    group: str
    calls: str
    paper: str
    arxiv: str = ""
    year: int | None = None
    acquired: str = ""
    turns: str = ""
    shown_on: str = ""
    kind: str = "inference"


class Common(BaseModel):
    """Options of every strategy."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    answer: AnswerKind = Field("text", description="What the answer is: text, number, choice or yes-no.")
    choices: tuple[str, ...] = Field((), description="The choices of a question with choices.")
    max_tokens: int = Field(512, ge=1, description="Most tokens of one completion.")
    seed: int = Field(0, ge=0, description="Seed of all sampling.")
    chat: bool | None = Field(
        None, description="Ask as a conversation (or go on from a text); unset, by what the model can do."
    )


@dataclass
class Step:
    """One thing that happened: a call, a scoring of given texts, or a note that cost nothing.

    Attributes:
        kind: call, score or note.
        role: what it is for in the strategy ("vote", "critique", "retrieved").
        phase: prepare (the same for every question) or answer.
        prompt, text: what was asked and what came back; a note has only a text.
        data: what else belongs to it: votes, values, a table, what code printed.
    """

    kind: str
    role: str
    phase: str = "answer"
    prompt: str = ""
    text: str = ""
    temperature: float = 0.0
    finish: str = ""
    cached: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trace:
    """All that a strategy did for one question; the same form for every strategy, and plain JSON on disk.

    Attributes:
        answer: ``None`` when no answer could be read.
        confidence: a share of votes or a probability, where the strategy has one.
        error: why it ended early, empty otherwise.
    """

    strategy: str
    model: str
    question: str
    options: dict[str, Any]
    answer: str | None = None
    confidence: float | None = None
    error: str = ""
    steps: list[Step] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How often the model was asked for this question, cached answers included; preparation is not counted."""
        return sum(s.kind != "note" and s.phase == "answer" for s in self.steps)

    @property
    def prepared(self) -> int:
        """How often the model was asked to prepare, for any question."""
        return sum(s.kind != "note" and s.phase == "prepare" for s in self.steps)

    @property
    def usage(self) -> Usage:
        """Tokens of all calls, cached ones too; cost and seconds of those that were not cached."""
        asked = [s.usage for s in self.steps if s.usage]
        return Usage(
            sum(u["prompt_tokens"] for u in asked),
            sum(u["completion_tokens"] for u in asked),
            sum(u["cost"] for u in asked),
            sum(u["seconds"] for u in asked),
            all(u["priced"] for u in asked),
        )

    @property
    def thoughts(self) -> list[tuple[str, str]]:
        """What the model wrote and what was noted, in order, each with its role."""
        return [(s.role, s.text) for s in self.steps if s.text]

    def to_dict(self) -> dict[str, Any]:
        """Everything, with totals, as JSON has it."""
        totals = {"calls": self.calls, "prepared": self.prepared, "usage": asdict(self.usage)}
        return {"format": _FORMAT, **{k: v for k, v in asdict(self).items() if k != "steps"}, **totals} | {
            "steps": [{k: v for k, v in asdict(s).items() if v not in ("", {}, None)} for s in self.steps]
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Trace:
        """A trace from what `save` wrote.

        Raises:
            DataError: not such a file.
        """
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            if body["format"] != _FORMAT:
                raise DataError(f"trace {path}: is of format {body['format']}, this version reads {_FORMAT}")
            fields = ("strategy", "model", "question", "options", "answer", "confidence", "error")
            return Trace(**{k: body[k] for k in fields}, steps=[Step(**s) for s in body["steps"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"trace {path}: can not be read ({error}); give a file that --trace wrote"
            ) from error


class Run:
    """One strategy at work on one question: asks the model, and writes everything into the trace."""

    def __init__(self, lm: LM, trace: Trace, common: Common) -> None:
        self.lm, self.trace, self.common = lm, trace, common
        self.question = trace.question
        self.chat = lm.can_chat if common.chat is None else common.chat
        self._phase = "answer"
        self._draws: Counter[str] = Counter()

    def ask(self, prompt: str, role: str, **how: Any) -> str:
        """What the model writes behind ``prompt``; options as for `ask_all`."""
        return self.ask_all([prompt], role, **how)[0]

    def sample(self, prompt: str, count: int, role: str, temperature: float = 0.7, **how: Any) -> list[str]:
        """``count`` samples for one prompt."""
        return self.ask_all([prompt] * count, role, temperature=temperature, **how)

    def ask_all(
        self,
        prompts: Sequence[str],
        role: str,
        *,
        temperature: float = 0.0,
        max_tokens: int | None = None,
        stop: Sequence[str] = ("\nQ:",),
    ) -> list[str]:
        """What the model writes behind each prompt, in one batch.

        The same prompt again, in this call or a later one of the run, is another sample where ``temperature`` is above 0.
        """
        self._go_on()
        how = {
            "max_tokens": max_tokens or self.common.max_tokens,
            "temperature": temperature,
            "stop": tuple(stop),
            "seed": self.common.seed,
        }
        asks: Any = self.lm.chat if self.chat else self.lm.complete
        found: dict[int, Completion] = {}
        for draw, group in self._by_draw(prompts, temperature):
            found.update(zip(group, asks([prompts[k] for k in group], draw=draw, **how), strict=True))
        for k, prompt in enumerate(prompts):
            answer = found[k]
            self.trace.steps.append(
                Step(
                    "call",
                    role,
                    self._phase,
                    prompt,
                    answer.text,
                    temperature,
                    answer.finish,
                    answer.cached,
                    asdict(answer.usage),
                )
            )
        return [found[k].text.strip() for k in range(len(prompts))]

    def _go_on(self) -> None:
        event = halted.get()
        if event is not None and event.is_set():
            raise KeyboardInterrupt

    def _by_draw(self, prompts: Sequence[str], temperature: float) -> Iterator[tuple[int, list[int]]]:
        """The places of the prompts by the draw they begin with; equal prompts of a list count on by themselves."""
        groups: dict[int, list[int]] = {}
        for k, prompt in enumerate(prompts):
            groups.setdefault(self._draws[prompt] if temperature > 0 else 0, []).append(k)
        self._draws.update(prompts)
        yield from groups.items()

    def score(self, prompt: str, continuations: Sequence[str], role: str) -> list[float]:
        """Log-probability of each continuation behind ``prompt``; one call.

        Raises:
            LMError: the model gives none.
        """
        self._go_on()
        found, usage, cached = self.lm.scored(prompt, continuations)
        scores = dict(zip(continuations, found, strict=True))
        self.trace.steps.append(
            Step(
                "score",
                role,
                self._phase,
                prompt,
                cached=cached,
                usage=asdict(usage),
                data={"scores": scores},
            )
        )
        return found

    def note(self, role: str, text: str = "", **data: Any) -> None:
        """Write down something that cost no call: what was retrieved, executed, counted, chosen."""
        self.trace.steps.append(Step("note", role, self._phase, text=text, data=data))

    def use(self, name: str, question: str | None = None, **options: Any) -> Trace:
        """Let another strategy answer, with this one's common options; its steps become part of this trace."""
        common = self.common.model_dump(include=set(Common.model_fields), exclude_defaults=True)
        inner = get_strategy(name)(self.lm, question or self.question, **{**common, **options})
        for step in inner.steps:
            step.role = f"{name}: {step.role}"
            step.phase = "prepare" if self._phase == "prepare" else step.phase
        self.trace.steps += inner.steps
        return inner

    @contextmanager
    def speaking(self, lm: LM | None) -> Iterator[None]:
        """Within it, another model is asked, if one is given."""
        before = self.lm, self.chat
        if lm is not None:
            self.lm, self.chat = lm, lm.can_chat
        try:
            yield
        finally:
            self.lm, self.chat = before

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within it, calls are preparation: the same for every question."""
        before, self._phase = self._phase, "prepare"
        try:
            yield
        finally:
            self._phase = before

    def parse(self, text: str) -> str | None:
        """The answer in a text, by the kind of answer the user wants."""
        return extract(text, self.common.answer, self.common.choices)

    @property
    def asked(self) -> str:
        """The question with its choices."""
        if not self.common.choices or all(choice in self.question for choice in self.common.choices):
            return self.question
        return f"{self.question}\nChoices: " + "; ".join(self.common.choices)

    @property
    def form(self) -> str:
        """A line that says in what form the answer is wanted."""
        wanted = {
            "number": "a number",
            "choice": "one of the choices",
            "yes-no": "yes or no",
            "text": "<answer>",
        }[self.common.answer]
        return f'End with "The answer is" and then {wanted}.'


class Strategy:
    """A strategy that can be called: ``strategies.chain_of_thought(lm, question, **options)`` gives a `Trace`.

    Attributes:
        card: what it says of itself.
        Options: its options and the common ones, a pydantic model.
    """

    def __init__(self, card: StrategyCard, function: Callable[..., str | None]) -> None:
        self.card, self.function = card, function
        self.__name__, self.__doc__ = function.__name__, inspect.getmodule(function).__doc__
        hints = typing.get_type_hints(function, include_extras=True)
        self.own = {
            name: (hints[name], parameter.default)
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        fields: dict[str, Any] = {
            name: (hint, ... if default is inspect.Parameter.empty else default)
            for name, (hint, default) in self.own.items()
        }
        self.Options = create_model(f"{function.__name__}_options", __base__=Common, **fields)

    def __repr__(self) -> str:
        return f"<strategy {self.card.name}>"

    def __call__(self, lm: LM, question: str, **options: Any) -> Trace:
        """Answer ``question`` with the model.

        Raises:
            ConfigError: a wrong option, or no question.
            CuelightError: what the model or its budget has to say; the trace so far is its ``trace``.
        """
        given = build(self.Options, options)
        if not question.strip():
            raise ConfigError("question: is empty; give one")
        own = {name: getattr(given, name) for name in self.own}
        trace = Trace(self.card.name, lm.name, question, _plain(given.model_dump(exclude_defaults=True)))
        run = Run(lm, trace, given)
        try:
            trace.answer = self.function(run, question, **own)
        except CuelightError as error:
            trace.error = str(error)
            error.trace = trace  # type: ignore[attr-defined]
            raise
        return trace


def strategy(card: StrategyCard) -> Callable[[Callable[..., str | None]], Strategy]:
    """Make a strategy of a function ``(run, question, *, options) -> answer``."""
    if card.group not in GROUPS:
        raise ConfigError(f"group: '{card.group}' is unknown; there are {', '.join(GROUPS)}")
    return lambda function: Strategy(card, function)


def _plain(value: Any) -> Any:
    """Options as JSON has them."""
    return json.loads(json.dumps(value, default=str))


@cache
def _modules() -> dict[str, str]:
    import cuelight.methods.strategies as folder

    found = pkgutil.iter_modules(folder.__path__)
    return {m.name.replace("_", "-"): f"{folder.__name__}.{m.name}" for m in found}


@cache
def get_strategy(name: str) -> Strategy:
    """The strategy called ``name`` (``self-consistency`` or ``self_consistency``).

    Raises:
        ConfigError: no such strategy; names the nearest.
    """
    wanted = name.replace("_", "-")
    if wanted not in _modules():
        raise ConfigError(
            f"strategy: '{name}' is unknown{nearest(wanted, _modules())}; 'cuelight strategies' lists all"
        )
    found = getattr(importlib.import_module(_modules()[wanted]), wanted.replace("-", "_"))
    assert isinstance(found, Strategy) and found.card.name == wanted
    return found


def strategy_names() -> list[str]:
    """The names of all strategies, by group in the survey's order."""
    return [s.card.name for s in all_strategies()]


@cache
def all_strategies() -> tuple[Strategy, ...]:
    """All strategies, by group in the survey's order, within a group by year."""
    order = list(GROUPS)
    return tuple(
        sorted(
            (get_strategy(name) for name in _modules()),
            key=lambda s: (order.index(s.card.group), s.card.year or 0, s.card.name),
        )
    )
