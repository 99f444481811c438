"""LLM-BBO: a language model that is shown good and bad prompts writes a better one, again and again.

The pool starts with some prompts and their scores.  In every step the writing model sees the best and the worst of the
pool, works out what tells them apart, and proposes new ones; they are scored and join the pool.  Nothing of the scored
model is needed but a score: no gradient, no weights, no likelihoods.  Bad examples are the paper's point (``feedback``
good-bad against good alone); ``none`` and ``shuffled`` scores are the controls.  Two other forms: a conversation, in
which each proposal is answered by what it scored, and paraphrases of the best, as iterative APE has it.

In the paper the strings are class templates ("a photo of a {}.") for CLIP and the score is its accuracy on one picture a
class; `cuelight.search` takes any score, and with a language model as the backbone the strings are instructions that
stand before the task's template, scored by accuracy (or the task's figure) on the training rows.

Learns: a string.  Costs: ``start_size`` scores, then for every step one call of the writing model and the scores of what
it proposed.

Source: Liu, Yu, Lin, Lee, Ling, Pathak, Ramanan, *Language Models as Black-Box Optimizers for Vision-Language Models*,
CVPR 2024, arXiv 2309.05950; loop and defaults from the authors' code.  Departures: the words in which the model is
asked are ours; where the pool has fewer than two lists' worth, what is shown as good is not shown as bad; a step whose
replies all failed to parse is skipped and counted.  How restarts and resets divide the work is not in the code; both
are options, and one of each is the default.  Ours: choosing among the best by validation rows when there are some, and
the start pool for text, since the paper's captions are not text tasks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError
from cuelight.lm import LM, connect
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.text_prompt import Searching, SelectionConfig, Start
from cuelight.tasks.objective import Objective
from cuelight.tasks.text import Item, TextTask
from cuelight.tasks.text_prompt import draw, few_shot

_FIELD = re.compile(r"\{\w*\}")
_VERBS = ("Classify", "Label", "Judge", "Read", "Consider", "Look carefully at", "Think about", "Decide on")
_ENDS = (
    "Answer with {options}.",
    "Is it {options}?",
    "Choose from {options}.",
    "Which fits best: {options}?",
    "Say {options}.",
)
_TASKS = (
    "Do what the examples would do.",
    "Answer briefly.",
    "Answer step by step.",
    "Give only the answer.",
    "Read the input carefully and answer.",
    "Think first, then answer.",
)


class SearchConfig(MethodConfig):
    start_size: int = Field(80, ge=1, description="Prompts of the pool that are scored at the start.")
    shown: int = Field(3, ge=0, description="Good prompts that are shown, and as many bad ones.")
    feedback: Literal["good-bad", "good", "none", "shuffled"] = Field(
        "good-bad", description="What the writing model sees; none and shuffled scores are controls."
    )
    steps_of_search: int = Field(10, ge=1, description="Times the writing model is asked after each reset.")
    proposals: int = Field(1, ge=1, description="Prompts it is asked for at a time.")
    form: Literal["lists", "conversation", "paraphrase"] = Field(
        "lists",
        description="Two lists in one message; a conversation that tells what each proposal scored; or paraphrases of the "
        "best.",
    )
    restarts: int = Field(1, ge=1, description="How often the search begins with another draw of the pool.")
    resets: int = Field(
        1, ge=1, description="How often in a restart the pool falls back to what it began with."
    )
    most_words: int = Field(15, ge=1, description="Longest proposal that is asked for, in words.")
    retries: int = Field(15, ge=0, description="How often a reply that can not be used is asked for again.")
    temperature: float = Field(1.0, ge=0, description="Of the writing model.")


class LlmBboConfig(SelectionConfig, SearchConfig):
    lm: str | None = Field(
        None, description="Model that writes: a name, folder, or URL#model (default: the backbone itself)."
    )
    pool: str | None = Field(
        None, description="File with a prompt a line to start from (default: own instructions)."
    )
    demonstrations: int = Field(0, ge=0, description="Solved rows in the prompt, of every class.")
    fitness_rows: int = Field(16, ge=1, description="Training rows a prompt is scored on, of every class.")
    best: float = Field(
        5, gt=0, description="What is ranked again: a share of all that was scored (below 1), or a number."
    )


class LlmBbo(Searching):
    """A string that a language model wrote, told by scores."""

    card: ClassVar[Card] = Card(
        name="llm-bbo",
        title="LLM-BBO: a language model as black-box optimiser",
        family="search",
        modality="text",
        learns="a string",
        cost="a score for each of 80 prompts at the start, then a call of the writing model and a score each step",
        kinds=("causal", "seq2seq", "remote"),
        tasks=("classification", "generation"),
        paper="Language Models as Black-Box Optimizers for Vision-Language Models",
        arxiv="2309.05950",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = LlmBboConfig
    Search: ClassVar[type[MethodConfig]] = SearchConfig
    reads: ClassVar[tuple[str, ...]] = ("pool",)
    config: LlmBboConfig

    def __init__(self, backbone: Backbone, task: TextTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self._pool = self._starts()

    # ---- on a task ---------------------------------------------------------------------------------------

    def _starts(self) -> tuple[str, ...]:
        """Instructions to begin with."""
        if self.config.pool is not None:
            return read_pool(self.config.pool)
        if self.task.kind != "classification":
            return _TASKS
        options = " or ".join(self.task.words)
        return tuple(f"{verb} the text. {end.format(options=options)}" for verb in _VERBS for end in _ENDS)

    def rows(self, data: Data, seed: int) -> tuple[list[Item], list[Item], list[Item]]:
        """Rows to show, to score on, and to choose by; the last may be none."""
        self.need_rows(data)
        generator = random.Random(seed)
        places = draw(self.task, data.train, self.config.demonstrations, generator)
        rest = [data.train[k] for k in range(len(data.train)) if k not in set(places)]
        if not rest:
            raise ConfigError("demonstrations: they take all training rows; give fewer, or more rows")
        scored = [rest[k] for k in draw(self.task, rest, self.config.fitness_rows, generator)]
        return [data.train[k] for k in places], scored, data.validation

    def plan(self, data: Data) -> list[str]:
        _, scored, held = self.rows(data, 0)
        config = self.config
        start = min(config.start_size, len(self._pool)) * config.restarts
        steps = config.restarts * config.resets * config.steps_of_search
        most = start + steps * config.proposals
        return [
            f"search: at most {most:,} prompts x {len(scored)} rows = {most * len(scored):,} calls, and {steps:,} of "
            f"{config.lm or self.backbone.id} (up to {config.retries + 1} times as many if it does not keep the form)",
            *self.selection_plan(held),
        ]

    def prepare(self, data: Data, seed: int) -> None:
        shown, scored, held = self.rows(data, seed)
        figure = "accuracy" if self.task.kind == "classification" else self.task.metric
        solved = [item.row for item in shown]

        def whole(instruction: str) -> str:
            return few_shot(self.task, solved, instruction)

        objective = Objective(
            lambda prompts, _: self.quality([whole(p) for p in prompts], scored, figure),
            progress="searching" if self.progress else None,
        )
        with self.learning():
            writer = self.model
            if self.config.lm is not None:
                writer = connect(
                    self.config.lm,
                    meter=self.model.meter,
                    cache=self.config.cache,
                    ledger=self.config.ledger,
                    concurrency=self.config.concurrency,
                )
            found = self.searched(objective, Start(pool=self._pool, model=writer, seed=seed))
            self.prompt = self.selected(found, objective, held, whole)
        self.facts |= {"figure": figure, "rows": len(scored), "writer": writer.name}

    # ---- the bare search ---------------------------------------------------------------------------------

    @classmethod
    def search(cls, objective: Objective, start: Start, config: Any) -> str:
        if not start.pool:
            raise ConfigError("pool: llm-bbo needs prompts to begin with; give some (pool=[...])")
        if start.model is None:
            raise ConfigError("lm: llm-bbo needs a model that writes; give one (lm=..., --lm)")
        climb = Climb(objective, start.model, config, start)
        for _ in range(config.restarts):
            climb.restart()
        return objective.best.prompt


class Climb:
    """The loop, and what it keeps: how many replies it asked for, and how many steps came to nothing.

    Attributes:
        wanted: fields in braces that every prompt must have, those all of the pool have.
        asked: replies the writing model gave.
        skipped: steps whose replies all failed to parse.
    """

    def __init__(self, objective: Objective, model: LM, config: SearchConfig, start: Start) -> None:
        self.objective, self.model, self.config, self.seed = objective, model, config, start.seed
        self.pool = tuple(dict.fromkeys(start.pool))
        self.generator = np.random.default_rng(start.seed)
        self.wanted = set.intersection(*(set(_FIELD.findall(prompt)) for prompt in self.pool))
        self.asked = self.skipped = 0

    def restart(self) -> None:
        """Draw a start, and climb from it."""
        size = min(self.config.start_size, len(self.pool))
        places = self.generator.choice(len(self.pool), size=size, replace=False)
        drawn = [self.pool[int(k)] for k in places]
        known = dict(zip(drawn, self.objective(drawn), strict=True))
        begun = dict(known)
        for _ in range(self.config.resets):
            working = dict(begun)
            self.iterate(working)
            known |= working

    def iterate(self, scored: dict[str, float]) -> None:
        """Ask for proposals step after step; those that are new are scored and join ``scored``."""
        talk: list[dict[str, str]] = []
        for _ in range(self.config.steps_of_search):
            if not talk or self.config.form != "conversation":
                talk = [{"role": "user", "content": self.question(scored)}]
            reply, found = self.proposals(talk)
            if found is None:
                self.skipped += 1
                continue
            new = [prompt for prompt in dict.fromkeys(found) if prompt not in scored]
            best = max(scored.values())
            scored |= dict(zip(new, self.objective(new), strict=True))
            if self.config.form == "conversation":
                told = "\n".join(_verdict(p, scored[p], best) for p in dict.fromkeys(found))
                more = f"{told}\n{self.wish()}"
                talk = [
                    *talk,
                    {"role": "assistant", "content": reply},
                    {"role": "user", "content": more},
                ]

    def lists(self, scored: dict[str, float]) -> tuple[list[str], list[str]]:
        """What is shown as good and as bad: the best and the worst, of equals the earlier first."""
        config, values = self.config, list(scored.values())
        if config.feedback == "shuffled":
            values = [values[int(k)] for k in self.generator.permutation(len(values))]
        ranked = [p for p, _ in sorted(zip(scored, values, strict=True), key=lambda entry: -entry[1])]
        good = [] if config.feedback == "none" else ranked[: config.shown]
        bad = ranked[len(good) :][-config.shown :] if config.shown else []
        return good, bad if config.feedback in ("good-bad", "shuffled") else []

    def question(self, scored: dict[str, float]) -> str:
        """What the writing model is asked."""
        good, bad = self.lists(scored)
        if self.config.form == "paraphrase":
            return f"Here is a prompt:\n- {max(scored, key=scored.__getitem__)}\n\nSay the same in other words. {self.wish()}"
        parts = []
        if good:
            parts.append("These prompts work well:\n" + "\n".join(f"- {prompt}" for prompt in good))
        if bad:
            parts.append("These prompts work badly:\n" + "\n".join(f"- {prompt}" for prompt in bad))
        if good and bad:
            parts.append("Find out what the good ones have that the bad ones lack.")
        return "\n\n".join([*parts, self.wish()])

    def wish(self) -> str:
        """The form of the answer."""
        count = self.config.proposals
        keep = " and ".join(sorted(self.wanted))
        return (
            f"Write {'a new prompt' if count == 1 else f'{count} new prompts'} that should work even better, in the same "
            f"style, each of less than {self.config.most_words} words"
            + (f" and with {keep} in it" if keep else "")
            + '. Answer with nothing else, each prompt on a line of its own that begins with "- ".'
        )

    def proposals(self, talk: Sequence[dict[str, str]]) -> tuple[str, list[str] | None]:
        """A reply and the prompts in it; None when no reply could be used."""
        room = 16 + 4 * self.config.most_words * self.config.proposals
        for _ in range(self.config.retries + 1):
            options: dict[str, Any] = {
                "max_tokens": room,
                "temperature": self.config.temperature,
                "seed": self.seed,
                "draw": self.asked,
            }
            self.asked += 1
            if self.model.can_chat:
                reply = self.model.chat(list(talk), **options).text
            else:  # a model without a chat format goes on with the list
                said = "\n\n".join(turn["content"] for turn in talk) + "\n\n- "
                reply = "- " + self.model.complete(said, stop=("\n",), **options).text
            found = parsed(reply, self.wanted)
            if found:
                return reply, found[: self.config.proposals]
            if self.config.temperature == 0:
                break  # it would say the same again
        return "", None


def parsed(reply: str, wanted: set[str]) -> list[str] | None:
    """The prompts of a reply, its lines that begin with "- "; None if there are none, or one has not the fields wanted."""
    lines = [line.strip()[2:].strip() for line in reply.splitlines() if line.strip().startswith("- ")]
    found = [line.strip("\"'`").strip() if line[:1] in "\"'`" else line for line in lines]
    found = [line for line in found if line]
    if not found or any(sorted(_FIELD.findall(line)) != sorted(wanted) for line in found):
        return None
    return found


def read_pool(file: str) -> tuple[str, ...]:
    """The lines of ``file`` that are not empty.

    Raises:
        ConfigError: it can not be read, or has none.
    """
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"pool: {file} can not be read ({reason}); give a text file, a prompt a line") from error
    found = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ConfigError(f"pool: {file} is empty; give a prompt a line")
    return found


def _verdict(prompt: str, score: float, best: float) -> str:
    change = "improves to" if score > best else "drops to" if score < best else "stays at"
    return f'"{prompt}": {change} {score:.3g}.'
