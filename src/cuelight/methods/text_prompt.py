"""What methods share whose prompt is a string, found by asking a model.

The model is seen through `cuelight.lm` only: it is on this machine, behind a server, or a function.  Whatever it is, the
string that is found is the string that is sent.  Learning has a budget of its own; testing and answering come on top of
it, one call a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from cuelight.backbones.backbone import Backbone
from cuelight.backbones.remote import RemoteBackbone
from cuelight.errors import ArtifactError, ConfigError
from cuelight.lm import LM, Budget, connect
from cuelight.methods.base import MethodConfig
from cuelight.methods.searching import Searching, SpendingConfig
from cuelight.prompts.conditioning import TextBatch
from cuelight.tasks.predictions import Predictions
from cuelight.tasks.text import Item, TextTask
from cuelight.tasks.text_prompt import SEPARATOR, continuation, fields_of, fill, question

__all__ = ["TextPromptConfig", "TextPrompted", "chosen", "margin_rewards", "named"]

_WORD_TOKENS = 16
"""Tokens a model may take to name a class."""
_AT_ONCE = 64
"""Rows that are asked together, over several prompts: enough for full batches, few enough for a bar that moves."""


class TextPromptConfig(SpendingConfig):
    """Options of every method whose prompt is a string: how the model is asked, and what learning may cost."""

    read: Literal["auto", "scores", "words"] = Field(
        "auto",
        description="Classes by the label words' likelihood (scores), or by the label word that the model writes (words); "
        "auto takes scores where the model gives them.",
    )
    stop_text: str | None = Field(
        None, description="Where a written answer ends (default: an empty line; nothing with --chat)."
    )


class TextPrompted(Searching):
    """A method whose prompt is a string.

    Attributes:
        prompt: the string, with the task's fields in it; the task's bare template before learning.
    """

    Config: ClassVar[type[MethodConfig]] = TextPromptConfig
    config: Any

    def __init__(self, backbone: Backbone, task: TextTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.prompt = question(task)
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
            return self.backbone.language_model.metered(budget)
        spec = self.backbone.id if isinstance(self.backbone, RemoteBackbone) else self.backbone
        return connect(
            spec,
            budget=budget,
            cache=self.config.cache,
            ledger=self.config.ledger,
            concurrency=self.config.concurrency,
            prices=self.config.prices,
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

    @property
    def calls_a_row(self) -> int:
        """Calls that one row with one prompt takes: a server is asked about every class's word on its own."""
        scored = self.task.kind == "classification" and self.by_scores
        return len(self.task.words) if scored and self.backbone.kind == "remote" else 1

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

    def written(self, texts: Sequence[str], *, max_tokens: int | None = None, **sampling: Any) -> list[str]:
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
        count = max(1, _AT_ONCE // max(1, len(items)))
        for start in range(0, len(prompts), count):
            part = prompts[start : start + count]
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

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Inside, calls are learning's: they count against the budget."""
        self._learning = self._connected(self.config.budget)
        try:
            yield
            self.note_spent(self._learning.meter)
        finally:
            self._learning = None


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
    said = reply.lower()
    found = [
        (match.start(), -len(word), place)
        for place, word in enumerate(words)
        if (match := re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", said))
    ]
    return min(found)[2] if found else None
