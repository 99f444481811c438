"""What methods share whose prompt is a string, found by asking a model.

The model is seen through `cuelight.lm` only: it is on this machine, behind a server, or a function.  Whatever it is, the
string that is found is the string that is sent.  Learning has a budget of its own; testing and answering come on top of
it, one call a row.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from cuelight.backbones.backbone import Backbone
from cuelight.backbones.remote import RemoteBackbone
from cuelight.errors import ArtifactError, ConfigError
from cuelight.lm import LM, Budget, BudgetError, Meter, connect
from cuelight.methods.base import Data, Method, MethodConfig
from cuelight.prompts.conditioning import TextBatch
from cuelight.tasks.objective import Objective, Trial
from cuelight.tasks.predictions import Predictions
from cuelight.tasks.text import Item, TextTask
from cuelight.tasks.text_prompt import SEPARATOR, continuation, fields_of, fill, question

__all__ = [
    "Searching",
    "SelectionConfig",
    "Start",
    "TextPromptConfig",
    "TextPrompted",
    "chosen",
    "margin_rewards",
    "named",
    "top",
]

_WORD_TOKENS = 16
"""Tokens a model may take to name a class."""
_CHUNK = 8
"""Prompts whose rows are asked together: enough to fill batches, few enough to keep what a budget allowed."""


class TextPromptConfig(MethodConfig):
    """Options of every method whose prompt is a string: how the model is asked, and what learning may cost."""

    read: Literal["auto", "scores", "words"] = Field(
        "auto",
        description="Classes by the label words' likelihood (scores), or by the label word that the model writes (words); "
        "auto takes scores where the model gives them.",
    )
    stop_text: str | None = Field(
        None, description="Where a written answer ends (default: an empty line; nothing with --chat)."
    )
    max_calls: int | None = Field(None, ge=1, description="Most calls of learning; testing comes on top.")
    max_tokens_total: int | None = Field(None, ge=1, description="Most tokens of learning, read and written.")
    max_money: float | None = Field(
        None, gt=0, description="Most money of learning, in the price table's currency."
    )
    max_seconds: float | None = Field(
        None, gt=0, description="Most seconds of learning that the model works."
    )
    # What follows changes nothing about the result: it is no part of a run's identity.
    ledger: str | None = Field(
        None, exclude=True, description="File that gets a line of JSON for every call."
    )
    cache: bool = Field(
        True, exclude=True, description="Keep answers on disk: a search that is killed pays nothing twice."
    )
    concurrency: int = Field(8, ge=1, exclude=True, description="Most requests to a server at a time.")

    @property
    def budget(self) -> Budget:
        """The limits of learning."""
        return Budget(self.max_calls, self.max_tokens_total, self.max_money, self.max_seconds)


class SelectionConfig(TextPromptConfig):
    """Options of methods that score many prompts on few rows, and choose from the best of them on others."""

    select: Literal["auto", "validation", "fitness"] = Field(
        "auto",
        description="Choose from the best by the validation rows (auto, if there are some), or by the score of the search.",
    )
    best: float = Field(
        0.1, gt=0, description="What is ranked again: a share of all that was scored (below 1), or a number."
    )


class TextPrompted(Method):
    """A method whose prompt is a string.

    Attributes:
        prompt: the string, with the task's fields in it; the task's bare template before learning.
        history: what learning scored, in order.
    """

    Config: ClassVar[type[MethodConfig]] = TextPromptConfig
    config: Any

    def __init__(self, backbone: Backbone, task: TextTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.prompt = question(task)
        self.history: list[Trial] = []
        self.continuations = [continuation(task, word) for word in task.words]
        for word in task.words:
            longer = [other for other in task.words if other != word and other.startswith(word)]
            if longer:
                raise ConfigError(
                    f"label_words: '{longer[0]}' begins with '{word}', so it could never be the likelier; "
                    "give words of which none begins another"
                )
        self._answering: LM | None = None
        self._learning: LM | None = None
        self._read: str | None = None

    @property
    def text(self) -> str:
        return self.prompt

    def load_text(self, text: str) -> None:
        for name in fields_of(self.task):
            if "{" + name + "}" not in text:
                raise ArtifactError(f"prompt.txt: has no {{{name}}}, so it would ask the same of every row")
        self.prompt = text

    # ---- the model ---------------------------------------------------------------------------------------

    @property
    def model(self) -> LM:
        """The model that answers; while learning, behind the budget."""
        if self._learning is not None:
            return self._learning
        if self._answering is None:
            self._answering = self._connected(Budget())
        return self._answering

    def _connected(self, budget: Budget) -> LM:
        if isinstance(self.backbone, RemoteBackbone) and self.backbone.language_model is not None:
            model = copy.copy(self.backbone.language_model)  # the same cache and ledger, another meter
            model.meter = Meter(budget)
            return model
        spec = self.backbone.id if isinstance(self.backbone, RemoteBackbone) else self.backbone
        return connect(
            spec,
            budget=budget,
            cache=self.config.cache,
            ledger=self.config.ledger,
            concurrency=self.config.concurrency,
        )

    @property
    def by_scores(self) -> bool:
        """Whether classes are told by likelihoods.

        Raises:
            ConfigError: they should be, and the model gives none.
        """
        if self._read is None:
            # A server renders a conversation itself, so the text that a likelihood would belong to is not known here.
            can = self.model.can_score and not (self.task.config.chat and self.backbone.kind == "remote")
            if self.config.read == "scores" and not can:
                raise ConfigError(
                    f"read: {self.backbone.id} gives no likelihoods of given words"
                    f"{' in a chat' if self.task.config.chat else ''}; take --read words"
                )
            self._read = "scores" if can and self.config.read != "words" else "words"
        return self._read == "scores"

    def sent(self, prompt: str, row: Mapping[str, Any]) -> str:
        """What the model reads for ``row``."""
        text = fill(prompt, row, self.task)
        if self.task.config.chat and self.task.tokenizer is not None:
            message = [{"role": "user", "content": text}]
            return self.task.tokenizer.apply_chat_template(
                message, add_generation_prompt=True, tokenize=False
            )
        return text

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Log-likelihood of every class's word behind each of ``texts``, ``[N, C]``.

        Of a model that only writes, 0 for the class it named and minus infinity for the others; a row of minus
        infinity where it named none.
        """
        if self.by_scores:
            return self.model.score(list(texts), self.continuations)
        said = self.written(texts, max_tokens=_WORD_TOKENS)
        table = np.full((len(said), len(self.task.words)), -np.inf)
        for row, reply in zip(table, said, strict=True):
            place = named(reply, self.task.words)
            if place is not None:
                row[place] = 0.0
        return table

    def sampled(self, texts: Sequence[str], turn: int) -> list[str]:
        """One sampled answer for each of ``texts`` that names a class; ``turn`` tells several apart."""
        return self.written(texts, max_tokens=_WORD_TOKENS, temperature=1.0, draw=turn)

    def written(
        self, texts: Sequence[str], *, max_tokens: int | None = None, **sampling: Any
    ) -> list[str]:
        """What the model writes behind each of ``texts``."""
        chats = self.task.config.chat and self.backbone.kind == "remote"
        stop = self.config.stop_text
        stop = ("" if self.task.config.chat else SEPARATOR) if stop is None else stop
        options: dict[str, Any] = {
            "max_tokens": max_tokens or self.task.config.max_new_tokens,
            "stop": (stop,) if stop else (),
            **sampling,
        }
        order = list(dict.fromkeys(texts))  # equal prompts in one list would be draws of their own
        model = self.model
        found = model.chat(order, **options) if chats else model.complete(order, **options)
        said = {text: answer.text.strip() for text, answer in zip(order, found, strict=True)}
        return [said[text] for text in texts]

    # ---- answering ---------------------------------------------------------------------------------------

    def predict(self, batch: TextBatch) -> Predictions:
        texts = [self.sent(self.prompt, item.row) for item in batch.extra["items"]]
        if self.task.kind != "classification":
            return Predictions(self.written(texts))
        table = self.scores(texts)
        if self.by_scores:
            return self.task.from_scores(torch.from_numpy(table))
        return Predictions([self.task.classes[k] if k >= 0 else "" for k in chosen(table)])

    # ---- how good a prompt is ----------------------------------------------------------------------------

    def quality(self, prompts: Sequence[str], items: Sequence[Item], figure: str) -> Iterator[float]:
        """The ``figure`` of each of ``prompts`` on ``items``: reward, accuracy, or one of the task's.

        Raises:
            BudgetError: in the middle, when the budget does not take the next prompts.
        """
        for start in range(0, len(prompts), _CHUNK):
            part = prompts[start : start + _CHUNK]
            texts = [self.sent(prompt, item.row) for prompt in part for item in items]
            if self.task.kind == "classification":
                table = self.scores(texts).reshape(len(part), len(items), -1)
                gold = np.array([item.label for item in items])
                for scores in table:
                    if figure == "reward":
                        yield float(margin_rewards(scores, gold).mean())
                    else:
                        yield float((chosen(scores) == gold).mean())
            else:
                said = self.written(texts)
                for k in range(len(part)):
                    own = Predictions(said[k * len(items) : (k + 1) * len(items)])
                    yield self.task.metrics(own, items)[figure]

    def need_rows(self, data: Data) -> None:
        """Refuse to learn from nothing.

        Raises:
            ConfigError: there are no training rows.
        """
        if not data.train:
            raise ConfigError(
                f"{self.card.name}: there are no training rows; give data with a train split"
            )

    def learning(self) -> _Learning:
        """A context in which calls are learning's: they count against the budget."""
        return _Learning(self)


class _Learning:
    """Puts the budget before the model, and writes down what was spent."""

    def __init__(self, method: TextPrompted) -> None:
        self.method = method

    def __enter__(self) -> _Learning:
        budget = self.method.config.budget
        self.method._learning = self.method._connected(budget)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        method = self.method
        assert method._learning is not None
        spent = method._learning.meter.spent
        method._learning = None
        if error is None:
            method.facts["spent"] = {k: round(v, 6) for k, v in asdict(spent).items()}
            method.notes.append(
                f"learning: {spent.calls:,} calls, {spent.tokens:,} tokens, {spent.seconds:.0f} s of the model"
                + (f", {spent.money:.4g} in the price table's currency" if spent.money else "")
            )


def margin_rewards(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """PromptQuine's reward of each row, -180 to 200: the gold class's chance above the best other's.

    Args:
        scores: ``[N, C]`` log-likelihoods of the label words; the chances are among them alone.
        gold: ``[N]`` class numbers.
    """
    with np.errstate(invalid="ignore"):
        chances = np.exp(scores - scores.max(1, keepdims=True))
    chances = np.nan_to_num(chances)  # no class named: no chance for any
    chances /= np.maximum(chances.sum(1, keepdims=True), 1e-300)
    rows = np.arange(len(gold))
    own = chances[rows, gold]
    chances[rows, gold] = -1
    gap = own - chances.max(1)
    gap[~np.isfinite(scores).any(1)] = -1
    return np.where(gap > 0, 200, 180) * gap


def chosen(scores: np.ndarray) -> np.ndarray:
    """The likeliest class of each row of ``[N, C]``, -1 where the model named none."""
    return np.where(np.isfinite(scores).any(1), scores.argmax(1), -1)


def named(reply: str, words: Sequence[str]) -> int | None:
    """Which of ``words`` a reply names first; None if it names none of them."""
    best = (math.inf, 0, None)
    for place, word in enumerate(words):
        found = re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", reply.lower())
        if found:
            best = min(best, (found.start(), -len(word), place))  # type: ignore[type-var]
    return best[2]


@dataclass(frozen=True)
class Start:
    """What a bare search begins with: see `cuelight.search`."""

    prompt: str | None = None
    pool: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    model: LM | None = None
    tokenizer: Any = None
    seed: int = 0


class Searching(TextPrompted):
    """A text-prompt method that also searches for any scoring function of a string.

    Attributes:
        Search: the options of the bare search, a part of ``Config``.
    """

    Search: ClassVar[type[MethodConfig]]

    @classmethod
    def search(cls, objective: Objective, start: Start, config: Any) -> str:
        """Search, and return the prompt that it would keep; everything scored is in the objective.

        Raises:
            ConfigError: what it needs to begin with is missing.
            BudgetError: from the objective or the model that writes.
        """
        raise NotImplementedError

    def searched(self, objective: Objective, start: Start) -> str | None:
        """`search` that a budget may end: None then, and what was scored is in the objective."""
        try:
            return self.search(objective, start, self.config)
        except BudgetError as error:
            if not len(objective):
                raise
            self.notes.append(f"search: the budget's {error.field} ended it; this is the best up to there")
            self.facts["ended_by"] = error.field
            return None
        finally:
            objective.close()
            self.history = list(objective.history)

    def selection_plan(self, held: Sequence[Item]) -> list[str]:
        """A line for `plan`."""
        if not held or self.config.select == "fitness":
            return []
        best = self.config.best
        share = f"{best:.0%}" if best < 1 else f"{best:.0f}"
        return [f"selection: the best {share} of what was scored x {len(held)} rows"]

    def selected(
        self,
        found: str | None,
        objective: Objective,
        held: Sequence[Item],
        whole: Callable[[str], str] = lambda string: string,
    ) -> str:
        """What learning returns: of the search's best the one that is right most often on rows it has not seen.

        Of equals the one with the better score of the search.  Without ``held`` rows, or when the budget takes none of
        them, it is ``found`` (None: the best of the search).  ``whole`` makes a prompt of a string of the search.

        Raises:
            ConfigError: selection by validation rows, and there are none.
        """
        if self.config.select == "validation" and not held:
            raise ConfigError("select: there are no rows left to choose by; take --select fitness, or give more rows")
        start, best = self.history[0].score, objective.best.score
        self.facts |= {"prompts": len(self.history), "start": start, "best": best, "chosen_by": "search"}
        self.notes.append(f"search: {len(self.history):,} prompts, score {start:.4g} to {best:.4g}")
        fallback = whole(objective.best.prompt if found is None else found)
        if not held or self.config.select == "fitness":
            return fallback
        ranked = top(self.history, self.config.best)
        figure = "accuracy" if self.task.kind == "classification" else self.task.metric
        judge = Objective(
            lambda prompts, _: self.quality(prompts, held, figure),
            progress="selecting" if self.progress else None,
            most=len(ranked),
        )
        try:
            judge([whole(trial.prompt) for trial in ranked])
        except BudgetError as error:
            self.notes.append(f"selection: the budget's {error.field} ended it at {len(judge)} of {len(ranked)} prompts")
            self.facts["ended_by"] = error.field
        finally:
            judge.close()
        self.facts["selection"] = {"prompts": len(judge), "rows": len(held), "figure": figure}
        if not len(judge):
            return fallback
        self.facts["chosen_by"] = "held-out rows"
        return judge.best.prompt  # the first of equals, and they are in the order of the search's score


def top(history: Sequence[Trial], best: float) -> list[Trial]:
    """The best of ``history``, best first: at or above a percentile (``best`` below 1), or so many."""
    ranked = sorted(history, key=lambda trial: -trial.score)
    if best >= 1:
        return ranked[: int(best)]
    bar = np.percentile([trial.score for trial in ranked], 100 * (1 - best))
    return [trial for trial in ranked if trial.score >= bar]
