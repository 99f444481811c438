"""PromptQuine: prune an ordinary few-shot prompt, token by token, into an odd one that works better.

Some sub-sequence of a few-shot prompt's own tokens, order kept and nothing inserted, often beats the prompt itself.
The search is a genetic algorithm over bit masks: a tournament chooses a parent, a child loses 1 to 4 more tokens,
and only newborns compete for the next generation, so that good old prompts die and the search stays open.  The best
tenth of everything that was scored is ranked again on validation rows.  *TAPruning* is the same paper's hill climb:
left to right, a token goes when the score without it stays above ``threshold`` times the best; SAHC accepts strict
improvements only; ``random`` masks and ``none`` (the prompt as it is) are the controls.

Fitness: for classes the margin reward (200 or 180 times the gold class's chance minus the best other's), for generated
answers the task's figure (``--judge number`` for reasoning).  Multiple choice is classification by the letter, with the
options as columns in the template.  Fields such as ``{text}`` are never pruned.

Learns: one bit a token.  Costs: at most ``max_prompts`` x rows calls, fewer when the prompts have shrunk to
``min_length``; the found prompt is shorter, so it answers cheaper than the few-shot prompt did.

Source: Wang, Hu, Bing, *Evolving Prompts In-Context: An Open-ended, Self-replicating Perspective*, ICML 2025, arXiv
2506.17930; constants from the authors' code.  Departures: masks are over the characters that the start's tokens stand
for, so every candidate is a text and the model reads it in its own tokens; a text is scored once, also when siblings
coincide; what counts towards ``max_prompts`` is what was scored, in both modes; a generation without a text that is new ends
the search.  Ours: words instead of tokens where the model's tokens are not known; ``tolerance`` for pruning by scores that
may be negative, where a ratio means nothing.  Not here: the paper's style-transfer score (give one to
`cuelight.search`) and masked language models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.searching import SelectionConfig, Start
from cuelight.methods.text_prompt import TextPromptConfig, TextPrompted
from cuelight.tasks.objective import Objective
from cuelight.tasks.text import Item
from cuelight.tasks.text_prompt import Piece, draw, few_shot, fields_of, split

_PRUNERS = ("tapruning", "sahc")


class SearchConfig(MethodConfig):
    mode: Literal["gga", "ssga", "tapruning", "sahc", "random", "none"] = Field(
        "gga",
        description="Genetic by generations (gga) or child by child (ssga); hill climbs (tapruning, sahc); controls (random "
        "masks, none).",
    )
    max_prompts: int = Field(10_000, ge=1, description="Most prompts that are scored.")
    min_length: int = Field(
        15, ge=1, description="The genetic search ends when prompts have this many tokens on average."
    )
    population: int = Field(30, ge=1, description="Prompts that survive a generation.")
    offspring: int = Field(50, ge=1, description="Children of a generation.")
    tournament: float = Field(0.2, gt=0, le=1, description="Share of the population in a tournament.")
    most_flips: int = Field(4, ge=1, description="Most tokens that a child loses.")
    init: Literal["duplicates", "random"] = Field(
        "duplicates", description="First population: the prompt itself, or random prunings of it."
    )
    survival: Literal["newborn", "elitist"] = Field(
        "newborn", description="Who competes for the next generation: children only, or parents too."
    )
    threshold: float = Field(
        0.96, gt=0, description="TAPruning keeps a deletion whose score is this share of the best so far."
    )
    tolerance: float | None = Field(
        None, ge=0, description="Instead of a share: how far below the best so far the score may fall."
    )
    order: Literal["fixed", "shuffled"] = Field(
        "fixed", description="Order in which hill climbs try tokens: left to right, or shuffled."
    )
    kept: tuple[int, ...] = Field(
        (), description="Lengths of random masks, drawn from these (default: from min_length to all)."
    )


class PromptQuineConfig(TextPromptConfig, SelectionConfig, SearchConfig):
    demonstrations: int = Field(
        1, ge=0, description="Solved rows in the start, of every class (in all, for generation)."
    )
    instruction: str = Field("", description="Text before the solved rows; it can be pruned too.")
    fitness_rows: int | None = Field(
        None,
        ge=1,
        description="Training rows a prompt is scored on: of every class (default 8), or in all, for generation (default "
        "100).",
    )
    halving: bool = Field(
        False,
        description="Score on half of the rows first, and on the rest only what reaches the population's worst.",
    )
    fitness: Literal["auto", "reward", "accuracy", "task", "exact_match"] = Field(
        "auto", description="Score of the search: reward for classes, the task's figure otherwise."
    )
    score_on: Literal["auto", "train", "validation"] = Field(
        "auto",
        description="Rows of the search: training rows, or the validation rows, as TAPruning has it (auto).",
    )


@dataclass(frozen=True)
class Candidate:
    """A pruned prompt: which pieces it kept, its text and score, and its parent's place in the archive."""

    mask: np.ndarray
    text: str
    score: float
    parent: int | None = None


class PromptQuine(TextPrompted):
    """A few-shot prompt, pruned."""

    card: ClassVar[Card] = Card(
        name="promptquine",
        title="PromptQuine: evolved pruning of a few-shot prompt",
        family="search",
        modality="text",
        learns="one bit for each token of a few-shot prompt; the result is a string",
        cost="up to 10,000 prompts x rows calls to learn; a shorter prompt to answer",
        kinds=("causal", "seq2seq", "remote"),
        tasks=("classification", "generation"),
        paper="Evolving Prompts In-Context: An Open-ended, Self-replicating Perspective",
        arxiv="2506.17930",
        year=2025,
    )
    Config: ClassVar[type[MethodConfig]] = PromptQuineConfig
    Search: ClassVar[type[MethodConfig]] = SearchConfig
    config: PromptQuineConfig

    # ---- on a task ---------------------------------------------------------------------------------------

    @property
    def figure(self) -> str:
        """What the search maximises."""
        wanted, classes = self.config.fitness, self.task.kind == "classification"
        if wanted == "auto":
            # A ratio of rewards, which may be negative, says nothing: hill climbs go by accuracy.
            pruned = self.config.mode in _PRUNERS and self.config.tolerance is None
            return "reward" if classes and not pruned else self.task.metric
        if wanted == "exact_match" and classes:
            raise ConfigError("fitness: exact_match is for generated answers; take reward or accuracy")
        if wanted in ("reward", "accuracy") and not classes:
            raise ConfigError(f"fitness: {wanted} is for classes; take task or exact_match")
        return self.task.metric if wanted == "task" else wanted

    def rows(self, data: Data, seed: int) -> tuple[list[Item], list[Item], list[Item]]:
        """Rows to show, to score on in the search, and to choose by; the last may be none."""
        self.need_rows(data)
        generator = random.Random(seed)
        shown = draw(self.task, data.train, self.config.demonstrations, generator)
        rest = [data.train[k] for k in range(len(data.train)) if k not in set(shown)]
        if not rest:
            raise ConfigError(
                f"demonstrations: {self.config.demonstrations} take all {len(data.train)} training rows, and none is "
                "left to score on; give more rows or fewer demonstrations"
            )
        by_validation = self.config.score_on == "validation" or (
            self.config.score_on == "auto" and self.config.mode in _PRUNERS and bool(data.validation)
        )
        if self.config.score_on == "validation" and not data.validation:
            raise ConfigError("score_on: there are no validation rows; take --score-on train")
        count = self.config.fitness_rows or (8 if self.task.kind == "classification" else 100)
        scored = [rest[k] for k in draw(self.task, rest, count, generator)]
        left = [item for item in rest if all(item is not other for other in scored)]
        if by_validation:
            return [data.train[k] for k in shown], data.validation, []
        return [data.train[k] for k in shown], scored, data.validation or left

    def forecast(self, data: Data) -> list[str]:
        _, scored, held = self.rows(data, 0)
        mode = self.config.mode
        if mode == "none":
            return []
        most = self.config.max_prompts
        calls = most * len(scored) * self.calls_a_row
        lines = [f"search: at most {most:,} prompts x {len(scored)} rows, {calls:,} calls ({mode})"]
        return [*lines, *self.selection_lines(held)]

    def prepare(self, data: Data, seed: int) -> None:
        shown, scored, held = self.rows(data, seed)
        figure, config = self.figure, self.config
        self.prompt = few_shot(self.task, [item.row for item in shown], config.instruction)
        if config.mode == "none":
            return
        start = Start(self.prompt, fields=fields_of(self.task), tokenizer=self.task.tokenizer, seed=seed)

        def score(prompts: Sequence[str], floor: float | None) -> Any:
            if floor is None or not config.halving or len(scored) < 2:
                yield from self.quality(prompts, scored, figure)
                return
            first, second = scored[::2], scored[1::2]
            for prompt in prompts:
                half = next(self.quality([prompt], first, figure))
                if half >= floor:
                    other = next(self.quality([prompt], second, figure))
                    half = (half * len(first) + other * len(second)) / len(scored)
                yield half

        objective = Objective(score, progress="searching" if self.progress else None, most=config.max_prompts)
        with self.learning():
            found = self.searched(objective, start)
            held = [] if config.mode in _PRUNERS else held  # their search was on what would be chosen by
            self.prompt = self.selected(found, objective, held)
        whole, pruned = (len(split(text, (), start.tokenizer)) for text in (str(start.prompt), self.prompt))
        lengths = [len(split(t.prompt, start.fields, start.tokenizer)) for t in self.history[1:]]
        self.facts |= {
            "mode": config.mode,
            "rows": len(scored),
            "figure": figure,
            "tokens_of_start": whole,
            "tokens_of_prompt": pruned,
            "lengths": " ".join(map(str, lengths)),  # a line of the card, not ten thousand
        }
        self.notes.append(f"pruned: {whole} to {pruned} {'tokens' if start.tokenizer else 'words'}")

    # ---- the bare search -----------------------------------------------------------------------------------

    @classmethod
    def search(cls, objective: Objective, start: Start, config: Any) -> str:
        if not start.prompt:
            raise ConfigError("prompt: promptquine prunes a prompt; give one to begin with (prompt=...)")
        generator = np.random.default_rng(start.seed)
        first = start.prompt
        pieces = split(first, start.fields, start.tokenizer)
        if config.mode == "none":
            objective([first])
            return first
        if config.mode in _PRUNERS:

            def again(text: str) -> list[Piece]:
                return split(text, start.fields, start.tokenizer)

            return prune(pieces, again, objective, config, generator)[-1].text
        if len(pieces) <= config.min_length:
            raise ConfigError(
                f"min_length: is {config.min_length}, and the prompt has {len(pieces)} tokens, so there is nothing to "
                "prune; lower it, or give a longer prompt"
            )
        archive = (random_masks if config.mode == "random" else evolve)(pieces, objective, config, generator)
        return max(archive, key=lambda candidate: candidate.score).text


Evaluate = Callable[..., list[float]]


def evolve(
    pieces: Sequence[Piece], evaluate: Evaluate, config: SearchConfig, generator: np.random.Generator
) -> list[Candidate]:
    """The genetic search over masks of ``pieces``; returns its archive, everything it scored in order."""
    free = np.array([not piece.field for piece in pieces])
    whole = np.ones(len(pieces), bool)
    archive = [Candidate(whole, text_of(pieces, whole), evaluate([text_of(pieces, whole)])[0])]
    population = [0] * config.population
    if config.init == "random":
        masks = []
        for _ in range(config.population):
            share = generator.choice(np.linspace(1 / 20, 1 / 5, 10))
            masks.append(~(free & (generator.random(len(pieces)) < share)))
        population = _born(archive, pieces, evaluate, masks, [None] * len(masks), None)
    seen = {candidate.text for candidate in archive}
    while len(archive) < config.max_prompts and _length(archive, population) > config.min_length:
        floor = min(archive[k].score for k in population)
        generation = list(population)
        texts = {archive[k].text for k in generation}
        masks, parents = [], []
        before, known = len(archive), len(seen)
        for _ in range(config.offspring):
            if len(archive) + len(masks) >= config.max_prompts:
                break
            size = max(1, int(config.tournament * len(generation)))
            rivals = generator.integers(len(generation), size=size)
            parent = max((generation[int(k)] for k in rivals), key=lambda k: archive[k].score)
            child = mutated(archive[parent].mask, free, config.most_flips, generator)
            if child is None or text_of(pieces, child) in texts:
                continue
            if config.mode == "ssga":
                born = _born(archive, pieces, evaluate, [child], [parent], floor)
                generation += born
                texts.add(archive[born[0]].text)
            else:
                masks.append(child)
                parents.append(parent)
        generation += _born(archive, pieces, evaluate, masks, parents, floor)
        seen |= {candidate.text for candidate in archive[before:]}
        if len(seen) == known:
            break
        # Newborns only, but for skipped children: then parents from the end of the list are among the last.
        living = generation if config.survival == "elitist" else generation[-config.offspring :]
        population = sorted(living, key=lambda k: -archive[k].score)[: config.population]
    return archive


def mutated(
    mask: np.ndarray, free: np.ndarray, most: int, generator: np.random.Generator
) -> np.ndarray | None:
    """``mask`` without 1 to ``most`` of the pieces it kept, never all; None when ten draws were too many."""
    there = np.flatnonzero(mask & free)
    for _ in range(10):
        flips = int(generator.integers(1, most + 1))
        if flips < len(there):
            child = mask.copy()
            child[generator.choice(there, size=flips, replace=False)] = False
            return child
    return None


def prune(
    pieces: Sequence[Piece],
    again: Callable[[str], Sequence[Piece]],
    evaluate: Evaluate,
    config: SearchConfig,
    generator: np.random.Generator,
) -> list[Candidate]:
    """TAPruning, or with ``mode`` sahc strict hill climbing.

    Returns:
        What was accepted, in order, up to the last that has the highest score: that one is the answer.
    """
    whole = np.ones(len(pieces), bool)
    best = evaluate([text_of(pieces, whole)])[0]
    trace = [Candidate(whole, text_of(pieces, whole), best)]
    tried = 1
    if config.mode == "tapruning" and config.tolerance is None and best <= 0:
        raise ConfigError(
            f"threshold: the prompt's own score is {best:.4g}, and a share of that means nothing; give --tolerance, or a "
            "score that is positive (--fitness accuracy)"
        )
    while tried < config.max_prompts:
        mask = np.ones(len(pieces), bool)
        places = [k for k, piece in enumerate(pieces) if not piece.field]
        if config.order == "shuffled":
            generator.shuffle(places)
        for k in places:
            if tried >= config.max_prompts:
                break
            mask[k] = False
            text = text_of(pieces, mask)
            score = evaluate([text])[0]
            tried += 1
            if config.mode == "sahc":
                accepted = score > best
            elif config.tolerance is not None:
                accepted = score >= best - config.tolerance
            else:
                accepted = score >= config.threshold * best
            if accepted:
                trace.append(Candidate(mask.copy(), text, score))
                best = max(best, score)
            else:
                mask[k] = True
        if mask.all():
            break
        pieces = again(text_of(pieces, mask))
    last = max(range(len(trace)), key=lambda k: (trace[k].score, k))
    return trace[: last + 1]


def random_masks(
    pieces: Sequence[Piece], evaluate: Evaluate, config: SearchConfig, generator: np.random.Generator
) -> list[Candidate]:
    """The control: the prompt itself and ``max_prompts - 1`` masks with random places."""
    free = np.flatnonzero([not piece.field for piece in pieces])
    stay = len(pieces) - len(free)
    lengths = list(config.kept) or list(range(max(config.min_length, stay), len(pieces)))
    whole = np.ones(len(pieces), bool)
    archive = [Candidate(whole, text_of(pieces, whole), evaluate([text_of(pieces, whole)])[0])]
    masks = []
    for _ in range(config.max_prompts - 1):
        wanted = int(np.clip(generator.choice(lengths), stay, len(pieces)))
        mask = whole.copy()
        mask[generator.choice(free, size=len(pieces) - wanted, replace=False)] = False
        masks.append(mask)
    _born(archive, pieces, evaluate, masks, [0] * len(masks), None)
    return archive


def text_of(pieces: Sequence[Piece], mask: np.ndarray) -> str:
    """The pieces that ``mask`` keeps, joined."""
    return "".join(piece.text for piece, kept in zip(pieces, mask, strict=True) if kept)


def _born(
    archive: list[Candidate],
    pieces: Sequence[Piece],
    evaluate: Evaluate,
    masks: Sequence[np.ndarray],
    parents: Sequence[int | None],
    floor: float | None,
) -> list[int]:
    """Score ``masks`` and put them into the archive; returns their places there."""
    texts = [text_of(pieces, mask) for mask in masks]
    scores = evaluate(texts, floor) if texts else []
    first = len(archive)
    archive += [Candidate(*entry) for entry in zip(masks, texts, scores, parents, strict=True)]
    return list(range(first, len(archive)))


def _length(archive: Sequence[Candidate], population: Sequence[int]) -> float:
    return float(np.mean([archive[k].mask.sum() for k in population]))
