"""What methods share that search for a string: options of spending and choosing, the bare search, the choice at the end.

A search maximises a score over strings; on a task the score is a figure on a few rows, and what is returned is the one
of the best that does best on rows the search has not seen.  The same search serves any score (`cuelight.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.lm import LM, Budget, BudgetError, Meter
from cuelight.methods.base import Data, Method, MethodConfig
from cuelight.tasks.objective import Objective, Trial

__all__ = ["Searching", "SelectionConfig", "SpendingConfig", "Start", "top"]


class SpendingConfig(MethodConfig):
    """Options of methods that ask language models while they learn."""

    max_calls: int | None = Field(None, ge=1, description="Most calls of learning; testing comes on top.")
    max_tokens_total: int | None = Field(None, ge=1, description="Most tokens of learning, read and written.")
    max_money: float | None = Field(None, gt=0, description="Most money of learning, in USD.")
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
    prices: str | None = Field(None, exclude=True, description="A price table over your own.")
    concurrency: int = Field(8, ge=1, exclude=True, description="Most requests to a server at a time.")

    @property
    def budget(self) -> Budget:
        """The limits of learning."""
        return Budget(self.max_calls, self.max_tokens_total, self.max_money, self.max_seconds)


class SelectionConfig(MethodConfig):
    """Options of methods that score many prompts on few rows, and choose from the best of them on others."""

    select: Literal["auto", "validation", "fitness"] = Field(
        "auto",
        description="Choose from the best by the validation rows (auto, if there are some), or by the score of the search.",
    )
    best: float = Field(
        0.1, gt=0, description="What is ranked again: a share of all that was scored (below 1), or a number."
    )


@dataclass(frozen=True)
class Start:
    """What a bare search begins with: see `cuelight.search`."""

    prompt: str | None = None
    pool: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    model: LM | None = None
    tokenizer: Any = None
    seed: int = 0


class Searching(Method):
    """A method that searches for a string, on a task or for any scoring function of a string.

    Attributes:
        Search: the options of the bare search, a part of ``Config``.
        history: what the search scored, in order.
    """

    Search: ClassVar[type[MethodConfig]]
    config: Any

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.history: list[Trial] = []

    def quality(self, prompts: Sequence[str], items: Sequence[Any], figure: str) -> Iterable[float]:
        """The ``figure`` of each of ``prompts`` on ``items``, one after the other.

        Raises:
            BudgetError: in the middle, when the budget does not take the next prompts.
        """
        raise NotImplementedError

    def note_spent(self, meter: Meter) -> None:
        """Write down what learning cost."""
        spent = meter.spent
        self.facts["spent"] = {k: round(v, 6) for k, v in asdict(spent).items()}
        self.notes.append(
            f"learning: {spent.calls:,} calls, {spent.tokens:,} tokens, {spent.seconds:.0f} s of the model"
            + (f", {spent.money:.4g} USD" if spent.money else "")
        )

    def need_rows(self, data: Data) -> None:
        """Refuse to learn from nothing.

        Raises:
            ConfigError: there are no training rows.
        """
        if not data.train:
            raise ConfigError(f"{self.card.name}: there are no training rows; give data with a train split")

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

    def selection_lines(self, held: Sequence[Any]) -> list[str]:
        """Lines for `forecast`."""
        if not held or self.config.select == "fitness":
            return []
        best = self.config.best
        share = f"{best:.0%}" if best < 1 else f"{best:.0f}"
        return [f"selection: the best {share} of what was scored x {len(held)} rows"]

    def selected(
        self,
        found: str | None,
        objective: Objective,
        held: Sequence[Any],
        whole: Callable[[str], str] = lambda string: string,
    ) -> str:
        """What learning returns: of the search's best the one that is right most often on rows it has not seen.

        Of equals the one with the better score of the search.  Without ``held`` rows, or when the budget takes none of
        them, it is ``found`` (None: the best of the search).  ``whole`` makes a prompt of a string of the search.

        Raises:
            ConfigError: selection by validation rows, and there are none.
        """
        if self.config.select == "validation" and not held:
            raise ConfigError(
                "select: there are no rows left to choose by; take --select fitness, or give more rows"
            )
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
            self.notes.append(
                f"selection: the budget's {error.field} ended it at {len(judge)} of {len(ranked)} prompts"
            )
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
