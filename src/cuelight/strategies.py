"""Inference techniques over a frozen language model: ``cuelight.strategies.<name>(lm, question, ...)`` gives a `Trace`.

    from cuelight import lm, strategies
    strategies.tree_of_thoughts(lm.connect("smollm2-135m"), "Use 4 7 8 8 to make 24.", breadth=3)
    strategies()                               # what there is, as dictionaries

Each is imported when it is first used.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from types import ModuleType
from typing import Any

from cuelight.methods.strategy import (
    DEMOS,
    GROUPS,
    Demo,
    Step,
    Strategy,
    StrategyCard,
    Trace,
    all_strategies,
    get_strategy,
    strategy_names,
)

__all__ = [
    "DEMOS",
    "GROUPS",
    "Demo",
    "Step",
    "Strategy",
    "StrategyCard",
    "Trace",
    "get_strategy",
    "strategy_names",
]


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and name.replace("_", "-") in strategy_names():
        return get_strategy(name)
    raise AttributeError(f"module 'cuelight.strategies' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, *(name.replace("-", "_") for name in strategy_names())]


class _Door(ModuleType):
    def __call__(self) -> list[dict[str, Any]]:
        """The card of every strategy, by group in the survey's order."""
        return [asdict(found.card) for found in all_strategies()]


sys.modules[__name__].__class__ = _Door
