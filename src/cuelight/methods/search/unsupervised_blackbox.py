"""Unsupervised prompt learning: a prompt and the labels of unlabelled texts, learned together from a model's answers.

No gold label is looked at.  First the model is asked about every text with a plain instruction; the answers it is surest
of, for every class, are the reliable set.  Then in every step: a few texts get their answers anew, with the prompt as it
is and reliable texts as solved examples before them (pseudo-labels; texts join and leave the reliable set); and the
prompt learns.  The prompt is ``length`` words, each drawn from a categorical distribution of its own over a vocabulary of
phrases from the texts; its probabilities follow a variance-reduced policy gradient of the loss of the pseudo-labels, and
are projected back onto the simplex.  Training with the examples before the query, as they will be when the prompt
is used, is the paper's point; ``demonstrations_in`` test is the mismatch it argues against.

Learns: ``length x vocabulary`` probabilities and a label for every text; the result is a string of words, reliable
examples and the template.  Costs: texts + steps x (samples + 1) x batch calls, and two passes over the reliable set
for ``accept``; at most one call for each different prompt and text.

Source: Zhang, Zhang, Yao, Niu, Sugiyama, *On Unsupervised Prompt Learning for Classification with Black-box Language
Models*, arXiv 2410.03124.  No code of it is public: the vocabulary, the estimator and its constants are those of
BDPL (Diao et al. 2023, shizhediao/Black-Box-Prompt-Learning), on which it builds.  Inferred, and therefore options: how
reliable answers are told (``reliable``: a share of every class's), examples of a class (``demonstrations``) and their
draw (at random for every text and step), and the ``entropy`` weight.  Ours: a rate that small budgets can feel (BDPL
has 2e-4); ``accept``, which keeps the learned words only if they fit the reliable set better than none; for models
that only write, the agreement of ``answers_asked`` sampled answers in the place of a probability.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cuelight.data.texts import read_texts
from cuelight.errors import ConfigError
from cuelight.lm import BudgetError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.searching import Start
from cuelight.methods.text_prompt import TextPromptConfig, TextPrompted, chosen, named
from cuelight.progress import Bar
from cuelight.tasks.objective import Objective
from cuelight.tasks.text_prompt import SEPARATOR, example, question

_FLOOR = 1e-6
"""Least probability of a word: its score is divided by it."""
_SURE = 0.95
"""Chance of the class that a model names which gives no likelihoods."""


class SearchConfig(MethodConfig):
    length: int = Field(20, ge=1, description="Words of the prompt.")
    samples: int = Field(10, ge=2, description="Prompts drawn in a step.")
    rounds: int = Field(60, ge=1, description="Steps of the policy gradient.")
    rate: float = Field(0.005, gt=0, description="Rate of the probabilities.")
    update: Literal["adam", "sgd"] = Field("adam", description="BDPL's, or the unbiased one.")
    longest: float = Field(3.0, gt=0, description="Longest gradient; a longer one is cut to it.")


class UnsupervisedBlackboxConfig(TextPromptConfig, SearchConfig):
    vocabulary: int = Field(50, ge=2, description="Phrases that words are drawn from, by mutual information.")
    phrase: int = Field(3, ge=1, description="Longest phrase, in words.")
    unlabelled: str | None = Field(
        None,
        description="Texts to learn from: a source or a .txt file (default: the training rows, labels unseen).",
    )
    max_unlabelled: int = Field(200, ge=2, description="Most texts to learn from.")
    instruction: str = Field(
        "", description="Plain instruction of the first answers (default: the template alone)."
    )
    reliable: float = Field(
        0.1, gt=0, le=1, description="Share of every class's answers, the surest, that is reliable."
    )
    demonstrations: int = Field(2, ge=0, description="Reliable examples of every class before a text.")
    demonstrations_in: Literal["both", "test", "training"] = Field(
        "both",
        description="Where examples stand before a text; test alone and training alone are mismatches.",
    )
    learn_words: bool = Field(
        True, description="Whether words learn; without, pseudo-labelled examples are all there is."
    )
    batch: int = Field(4, ge=1, description="Texts of a step.")
    objective_loss: Literal["cross-entropy", "margin"] = Field(
        "cross-entropy", description="Loss of a pseudo-label; margin is 1."
    )
    entropy: float = Field(0.0, ge=0, description="Weight of the answers' entropy in the loss.")
    accept: bool = Field(
        True, description="Keep the words only if the reliable set's loss is lower with them than without."
    )
    labels: Literal["pseudo", "permuted"] = Field(
        "pseudo", description="Pseudo-labels as answered, or permuted among the texts, a control."
    )
    answers_asked: int = Field(
        5, ge=2, description="Sampled answers whose agreement is the confidence of a model that only writes."
    )


class UnsupervisedBlackbox(TextPrompted):
    """Words and pseudo-labels from a model's answers."""

    card: ClassVar[Card] = Card(
        name="unsupervised-blackbox",
        title="Unsupervised prompt learning with black-box language models",
        family="search",
        modality="text",
        learns="length x vocabulary probabilities and a pseudo-label for every text; the result is a string",
        cost="texts + steps x (samples + 1) x batch calls; no label is needed",
        kinds=("causal", "seq2seq", "remote"),
        tasks=("classification",),
        paper="On Unsupervised Prompt Learning for Classification with Black-box Language Models",
        arxiv="2410.03124",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = UnsupervisedBlackboxConfig
    Search: ClassVar[type[MethodConfig]] = SearchConfig
    reads: ClassVar[tuple[str, ...]] = ("unlabelled",)
    config: UnsupervisedBlackboxConfig

    def texts(self, data: Data, seed: int) -> list[dict[str, Any]]:
        """The rows to learn from, without their labels."""
        if self.config.unlabelled is not None:
            return list(
                read_texts(
                    self.config.unlabelled,
                    pairs=self.task.pairs,
                    columns=self.task.columns,
                    most=self.config.max_unlabelled,
                    seed=seed,
                )
            )
        self.need_rows(data)
        names = ("text", "text_b", *self.task.columns)
        rows = [{n: item.row[n] for n in names if n in item.row} for item in data.train]
        random.Random(seed).shuffle(rows)
        return rows[: self.config.max_unlabelled]

    def forecast(self, data: Data) -> list[str]:
        count, config = len(self.texts(data, 0)), self.config
        each = self.calls_a_row
        asked = each if self.by_scores else 1 + config.answers_asked
        steps = config.rounds * ((config.samples if config.learn_words else 0) + 1) * min(config.batch, count)
        steps *= each
        extra = " and two passes over the reliable set" if config.accept and config.learn_words else ""
        return [
            f"search: {count * asked:,} calls for the first answers, at most {steps:,} for the steps{extra}"
        ]

    def prepare(self, data: Data, seed: int) -> None:
        rows = self.texts(data, seed)
        config = self.config
        phrases = candidates([str(row["text"]) for row in rows], config.vocabulary, config.phrase)
        generator = np.random.default_rng(seed)
        bar = Bar("learning" if self.progress else None, config.rounds)
        with self.learning():
            labels, sure = self.first_answers(rows)
            if config.labels == "permuted":
                order = [int(k) for k in generator.permutation(len(rows))]
                labels, sure = [labels[k] for k in order], [sure[k] for k in order]
            pool = Pool(rows, labels, sure, share=config.reliable, least=config.demonstrations + 1)
            words = Words(phrases, config.length, config, generator)
            try:
                for _ in range(config.rounds):
                    self.step(pool, words, generator)
                    bar.advance(f"{len(pool.reliable)} reliable")
            except BudgetError as error:
                self.notes.append(
                    f"search: the budget's {error.field} ended it; this is what was learned up to there"
                )
                self.facts["ended_by"] = error.field
            finally:
                bar.close()
            solved = pool.draw(
                config.demonstrations if config.demonstrations_in != "training" else 0, None, generator
            )
            said = words.likeliest if config.learn_words else ""
            if said and config.accept:
                said = self.better(said, pool, generator)
            self.prompt = self.string(said, pool, solved)
        self.pseudo = list(pool.labels)
        self.facts |= {
            "texts": len(rows),
            "reliable": len(pool.reliable),
            "words": said,
            "pseudo_labels": dict(Counter(self.task.classes[k] for k in pool.labels if k >= 0)),
        }
        self.notes.append(
            f"learned from {len(rows)} texts, {len(pool.reliable)} of them reliable: "
            + ", ".join(f"{count} {name}" for name, count in self.facts["pseudo_labels"].items())
        )

    # ---- the model's answers -----------------------------------------------------------------------------

    def string(self, words: str, pool: Pool, solved: Sequence[int]) -> str:
        """Words, solved examples and the question."""
        shown = [example(self.task, pool.rows[k], self.task.words[pool.labels[k]]) for k in solved]
        return SEPARATOR.join(part for part in (words, *shown, question(self.task)) if part)

    def chances(self, prompts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Probabilities of the classes ``[N, C]``, prompt ``k`` being asked about row ``k``."""
        table = self.scores([self.sent(prompt, row) for prompt, row in zip(prompts, rows, strict=True)])
        if self.by_scores:
            table = np.exp(table - table.max(1, keepdims=True))
            return table / table.sum(1, keepdims=True)
        return self.written_chances(chosen(table))

    def written_chances(self, places: np.ndarray) -> np.ndarray:
        """``_SURE`` for the class that was named; all alike where none was."""
        classes = len(self.task.words)
        table = np.full((len(places), classes), (1 - _SURE) / (classes - 1))
        table[np.arange(len(places)), np.maximum(places, 0)] = _SURE
        table[places < 0] = 1 / classes
        return table

    def first_answers(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
        """Pseudo-labels and confidences with the plain instruction and no examples."""
        plain = SEPARATOR.join(part for part in (self.config.instruction, question(self.task)) if part)
        table = self.chances([plain] * len(rows), rows)
        labels = [int(k) for k in table.argmax(1)]
        if self.by_scores:
            return labels, [float(v) for v in table.max(1)]
        texts = [self.sent(plain, row) for row in rows]
        shares = [0.0] * len(rows)
        for turn in range(self.config.answers_asked):
            for k, reply in enumerate(self.sampled(texts, turn)):
                shares[k] += (named(reply, self.task.words) == labels[k]) / self.config.answers_asked
        return labels, shares

    def losses(self, chances: np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Loss of each pseudo-label, ``[N]``."""
        rows = np.arange(len(labels))
        own = np.maximum(chances[rows, labels], 1e-12)
        if self.config.objective_loss == "cross-entropy":
            found = -np.log(own)
        else:
            others = chances.copy()
            others[rows, labels] = 0
            found = np.maximum(0, 1 - np.log(own) + np.log(np.maximum(others.max(1), 1e-12)))
        if self.config.entropy:
            found = found - self.config.entropy * (chances * np.log(np.maximum(chances, 1e-12))).sum(1)
        return found

    # ---- learning ----------------------------------------------------------------------------------------

    def step(self, pool: Pool, words: Words, generator: np.random.Generator) -> None:
        """One step over a few texts: their pseudo-labels, then the words."""
        config = self.config
        chosen_ = generator.choice(len(pool.rows), size=min(config.batch, len(pool.rows)), replace=False)
        batch = [int(k) for k in chosen_]
        count = config.demonstrations if config.demonstrations_in != "test" else 0
        solved = [pool.draw(count, k, generator) for k in batch]
        rows = [pool.rows[k] for k in batch]
        likeliest = words.likeliest if config.learn_words else ""
        prompts = [self.string(likeliest, pool, own) for own in solved]
        table = self.chances(prompts, rows)
        if config.labels != "permuted":
            pool.update(batch, table)
        if not config.learn_words:
            return
        labels = np.array([pool.labels[k] for k in batch])
        drawn = words.drawn(config.samples)
        texts = [self.string(words.said(draw), pool, own) for draw in drawn for own in solved]
        table = self.chances(texts, rows * config.samples)
        losses = self.losses(table, np.tile(labels, config.samples)).reshape(config.samples, -1).mean(1)
        words.learn(drawn, losses)

    def better(self, said: str, pool: Pool, generator: np.random.Generator) -> str:
        """``said``, or no words if these fit the reliable set better."""
        places = sorted(pool.reliable)
        count = self.config.demonstrations if self.config.demonstrations_in != "training" else 0
        solved = [pool.draw(count, k, generator) for k in places]
        rows, labels = [pool.rows[k] for k in places], [pool.labels[k] for k in places]
        if not places:
            return said
        try:
            with_, without = (
                self.losses(self.chances([self.string(w, pool, own) for own in solved], rows), labels).mean()
                for w in (said, "")
            )
        except BudgetError as error:
            self.facts["ended_by"] = error.field
            return said
        self.facts["reliable_loss"] = {"with words": float(with_), "without": float(without)}
        return said if with_ < without else ""

    # ---- the bare search ---------------------------------------------------------------------------------

    @classmethod
    def search(cls, objective: Objective, start: Start, config: Any) -> str:
        if len(start.pool) < 2:
            raise ConfigError("pool: unsupervised-blackbox strings words together; give some (pool=[...])")
        words = Words(list(start.pool), config.length, config, np.random.default_rng(start.seed))
        tail = "" if not start.prompt else " " + start.prompt
        for _ in range(config.rounds):
            drawn = words.drawn(config.samples)
            words.learn(drawn, -np.array(objective([words.said(draw) + tail for draw in drawn])))
        objective([words.likeliest + tail])
        return objective.best.prompt


@dataclass
class Pool:
    """Unlabelled texts, what the model says they are, and which of its answers are reliable.

    Attributes:
        rows, labels, confidence: the texts, their pseudo-labels and how sure the model is.
        bars: for each class the confidence from which on an answer is reliable.
        reliable: places of the reliable texts.
    """

    rows: Sequence[Mapping[str, Any]]
    labels: list[int]
    confidence: list[float]
    share: float
    least: int
    bars: dict[int, float] = field(default_factory=dict)
    reliable: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for label in sorted(set(self.labels)):
            own = sorted(
                (c for c, known in zip(self.confidence, self.labels, strict=True) if known == label),
                reverse=True,
            )
            count = min(len(own), max(math.ceil(self.share * len(own)), self.least))
            self.bars[label] = own[count - 1]
        self.reliable = {k for k in range(len(self.rows)) if self._passes(k)}

    def _passes(self, place: int) -> bool:
        return self.confidence[place] >= self.bars.get(self.labels[place], 1.0)

    def update(self, places: Sequence[int], chances: np.ndarray) -> None:
        """New answers: labels, confidences, and who is reliable."""
        for place, row in zip(places, chances, strict=True):
            self.labels[place], self.confidence[place] = int(row.argmax()), float(row.max())
            (self.reliable.add if self._passes(place) else self.reliable.discard)(place)

    def draw(self, count: int, query: int | None, generator: np.random.Generator) -> list[int]:
        """``count`` reliable texts of every class in random order, never the query itself: its label would leak."""
        found: list[int] = []
        for label in sorted(self.bars):
            own = [k for k in sorted(self.reliable) if self.labels[k] == label and k != query]
            found += [own[int(k)] for k in generator.permutation(len(own))[:count]]
        return [found[int(k)] for k in generator.permutation(len(found))]


class Words:
    """``length`` independent categorical distributions over phrases, and how they learn.

    Attributes:
        table: probabilities ``[length, vocabulary]``; every row sums to 1.
    """

    def __init__(
        self, phrases: Sequence[str], length: int, config: SearchConfig, generator: np.random.Generator
    ) -> None:
        self.phrases, self.config, self.generator = list(phrases), config, generator
        self.table = np.full((length, len(phrases)), 1 / len(phrases))
        self._moments = np.zeros_like(self.table), np.zeros_like(self.table)
        self._steps = 0

    @property
    def likeliest(self) -> str:
        """The likeliest phrase of each row, as a text."""
        return self.said(self.table.argmax(1))

    def said(self, places: Sequence[int] | np.ndarray) -> str:
        """Phrases as a text."""
        return " ".join(self.phrases[int(k)] for k in places)

    def drawn(self, samples: int) -> np.ndarray:
        """Places of phrases, ``[samples, length]``."""
        sums = self.table.cumsum(1)
        marks = self.generator.random((samples, len(self.table), 1)) * sums[:, -1:]
        return np.minimum((marks >= sums).sum(2), self.table.shape[1] - 1)

    def learn(self, drawn: np.ndarray, losses: np.ndarray) -> None:
        """A step against the losses ``[samples]`` of what was ``drawn``; the rows stay distributions."""
        gradient = policy_gradient(self.table, drawn, losses)
        size = np.linalg.norm(gradient)
        if size > self.config.longest:
            gradient = gradient * (self.config.longest / size)
        self._steps += 1
        if self.config.update == "adam":
            first, second = self._moments
            first *= 0.9
            first += 0.1 * gradient
            second *= 0.999
            second += 0.001 * gradient**2
            gradient = (first / (1 - 0.9**self._steps)) / (np.sqrt(second / (1 - 0.999**self._steps)) + 1e-8)
        self.table = np.array([floored(on_simplex(row)) for row in self.table - self.config.rate * gradient])


def policy_gradient(
    table: np.ndarray, drawn: np.ndarray, losses: np.ndarray, *, others: float = 0.0
) -> np.ndarray:
    """Estimate of the expected loss's gradient by the probabilities, ``[length, vocabulary]``.

    The score of a phrase is 1/p where it was drawn and ``others``/p where it was not: 0 in the textbook, -1 in BDPL's
    code, whose estimate is twice this one in every batch, since losses are taken from their mean.

    Args:
        table: probabilities ``[length, vocabulary]``.
        drawn: places of phrases ``[samples, length]``.
        losses: ``[samples]``.
    """
    hits = drawn[:, :, None] == np.arange(table.shape[1])
    scores = np.where(hits, 1.0, others) / np.maximum(table, _FLOOR)
    return np.einsum("k,kij->ij", losses - losses.mean(), scores) / (len(losses) - 1)


def on_simplex(row: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex: a shift of ``row``, cut to 0 and 1, that sums to 1."""
    low, high = row.min() - 1, row.max()
    for _ in range(60):
        shift = (low + high) / 2
        if np.clip(row - shift, 0, 1).sum() > 1:
            low = shift
        else:
            high = shift
    found = np.clip(row - (low + high) / 2, 0, 1)
    return found / found.sum()


def floored(row: np.ndarray) -> np.ndarray:
    """No probability below the floor, the sum still 1."""
    found = np.maximum(row, _FLOOR)
    return found / found.sum()


def candidates(texts: Sequence[str], count: int, longest: int) -> list[str]:
    """Phrases of ``texts``: the n-grams with the highest pointwise mutual information, then the commonest words.

    Only phrases that occur twice count, and of each text once.

    Raises:
        ConfigError: there are not two different words.
    """
    words: Counter[str] = Counter()
    phrases: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        said = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())
        words.update(said)
        phrases.update(
            {tuple(said[k : k + n]) for n in range(2, longest + 1) for k in range(len(said) - n + 1)}
        )
    total = sum(words.values())

    def information(phrase: tuple[str, ...]) -> float:
        apart = sum(math.log(words[word] / total) for word in phrase)
        return math.log(phrases[phrase] / total) - apart

    repeated = [phrase for phrase, times in phrases.items() if times > 1]
    ranked = sorted(repeated, key=lambda phrase: (-information(phrase), phrase))
    found = [" ".join(phrase) for phrase in ranked[: count // 2 if words else count]]
    common = sorted(words, key=lambda word: (-words[word], word))
    found += [word for word in common if word not in found][: count - len(found)]
    if len(found) < 2:
        raise ConfigError("unlabelled: the texts have not two different words; give more of them")
    return found
