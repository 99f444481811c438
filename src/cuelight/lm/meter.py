"""What calls to language models may cost, and did: hard limits in calls, tokens, money and seconds.

A call is *reserved* at its worst case before it starts and *settled* at what it cost when it has ended.  Only what fits
beside all that is reserved may start, so calls that run at the same time can not overrun a limit together; a call
that would fit if the others turn out cheaper waits for them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace

from cuelight.errors import ConfigError, CuelightError

__all__ = ["Budget", "BudgetError", "Meter", "Spent"]

_REMEDY = {
    "calls": "--max-calls",
    "tokens": "--max-tokens-total",
    "money": "--max-money",
    "seconds": "--max-seconds",
}


class BudgetError(CuelightError):
    """A limit of the budget is reached; ``field`` names which."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Budget:
    """Limits that are never overrun; ``None`` is no limit.

    Attributes:
        calls: requests that a model answers (or may have answered: a broken answer counts).
        tokens: tokens read and written, in all.
        money: in the price table's currency.
        seconds: wall time in which at least one call is under way; calls at the same time count once.

    Raises:
        ConfigError: a limit below 0.
    """

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not value >= 0:
                raise ConfigError(f"budget: {f.name} is {value}; give 0 or more, or leave it out")


@dataclass(frozen=True)
class Spent:
    """What has been used; the fields of `Budget`, and how many calls had no known price."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0
    unpriced: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


class Meter:
    """Counts what calls cost, and lets none start that could break the budget.

    One meter may serve several models (a target and a writer): then the budget is of both together.  A meter with a
    ``parent`` counts a part of what that one counts, and keeps to both budgets.
    """

    def __init__(self, budget: Budget | None = None, parent: Meter | None = None) -> None:
        self.budget, self.parent = budget or Budget(), parent
        self._lock = threading.Lock()
        self._settled, self._held = Spent(), Spent()
        self._running, self._since = 0, 0.0
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"Meter({self.spent}, {self.budget})"

    @property
    def spent(self) -> Spent:
        """What has been used up to now."""
        with self._lock:
            return replace(self._settled, seconds=self._seconds())

    def remaining(self) -> Budget:
        """What is left of each limit; ``None`` where there is none."""
        spent, left = self.spent, {}
        for f in fields(self.budget):
            limit = getattr(self.budget, f.name)
            left[f.name] = None if limit is None else max(limit - getattr(spent, f.name), 0)
        return Budget(**left)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the seconds count (once, however many calls run)."""
        with self.parent.running() if self.parent else nullcontext():
            with self._lock:
                if not self._running:
                    self._since = time.monotonic()
                self._running += 1
            try:
                yield
            finally:
                with self._lock:
                    seconds = self._seconds()
                    self._running -= 1
                    if not self._running:
                        self._settled = replace(self._settled, seconds=seconds)

    def seconds_left(self) -> float | None:
        """Seconds until a limit is reached; ``None`` without one.

        Raises:
            BudgetError: none is left.
        """
        left = self.remaining().seconds
        if left is not None and left <= 0:
            raise self.error("seconds")
        above = self.parent.seconds_left() if self.parent else None
        return above if left is None else left if above is None else min(left, above)

    async def reserve(self, worst: Spent) -> Spent:
        """Hold ``worst`` back for a call, waiting while calls under way may leave enough.

        Returns:
            ``worst``, to be given to `settle`.

        Raises:
            BudgetError: it does not fit, whatever the calls under way turn out to cost.
        """
        while True:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            for meter in self._chain():
                with meter._lock:
                    meter._waiting.append(turn)
            if self.try_reserve(worst):
                return worst
            await turn

    def try_reserve(self, worst: Spent) -> bool:
        """Hold ``worst`` back if it fits now; for callers that must not wait.

        Raises:
            BudgetError: as `reserve`.
        """
        with self._lock:
            self._refuse(worst)
            if self._short(self._settled + self._held + worst) is not None:
                return False
            self._held = self._held + worst
        fits = False
        try:
            fits = self.parent is None or self.parent.try_reserve(worst)
        finally:
            if not fits:
                with self._lock:
                    self._held = self._held - worst
        return fits

    def settle(self, reserved: Spent, actual: Spent) -> None:
        """Replace a reservation by what the call cost (nothing, if it was not answered)."""
        for meter in self._chain():
            with meter._lock:
                meter._held = meter._held - reserved
                meter._settled = meter._settled + replace(actual, seconds=0.0)
                waiting, meter._waiting = meter._waiting, []
            for turn in waiting:
                turn.get_loop().call_soon_threadsafe(_wake, turn)

    def _chain(self) -> list[Meter]:
        return [self, *(self.parent._chain() if self.parent else [])]

    def error(self, field: str, needed: float | None = None) -> BudgetError:
        """The one line for a limit that is reached."""
        if getattr(self.budget, field) is None and self.parent is not None:
            return self.parent.error(field, needed)
        limit, left = getattr(self.budget, field), getattr(self.remaining(), field)
        return self._said(field, limit, left, needed)

    def _said(self, field: str, limit: float, left: float, needed: float | None) -> BudgetError:
        wants = "" if needed is None else f" and the next call may need {needed:.6g}"
        remedy = f"raise it ({_REMEDY[field]}) and run again: what was answered is in the cache"
        return BudgetError(f"budget: {field}: {left:.6g} of {limit:.6g} is left{wants}; {remedy}", field)

    def _refuse(self, worst: Spent) -> None:
        field = self._short(self._settled + worst)
        if field is None and self.budget.seconds is not None and self._seconds() >= self.budget.seconds:
            field = "seconds"
        if field is not None:
            limit = getattr(self.budget, field)
            used = self._seconds() if field == "seconds" else getattr(self._settled, field)
            needed = None if field == "seconds" else getattr(worst, field)
            raise self._said(field, limit, max(limit - used, 0), needed)

    def _short(self, total: Spent) -> str | None:
        """The first limit that ``total`` breaks."""
        for name in ("calls", "tokens", "money"):
            limit = getattr(self.budget, name)
            # Sums of prices are rounded; a billionth of the limit is no overrun.
            if limit is not None and getattr(total, name) > limit * (1 + 1e-9):
                return name
        return None

    def _seconds(self) -> float:
        busy = time.monotonic() - self._since if self._running else 0.0
        return self._settled.seconds + busy


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
