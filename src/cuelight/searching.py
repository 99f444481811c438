"""`search`: find a string that scores well, for any function that scores strings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from cuelight.config import build
from cuelight.errors import ConfigError
from cuelight.methods.base import get_method, method_names
from cuelight.methods.cards import read_card

if TYPE_CHECKING:
    from cuelight.tasks.objective import Trial

__all__ = ["Found", "search", "searchers"]


@dataclass
class Found:
    """What a search found.

    Attributes:
        prompt: the best string; of equals the one that was scored first, unless the method has its own rule.
        score: the objective's value of it.
        history: everything that was scored, in order: ``number``, ``prompt``, ``score``.
        spent: ``scored`` prompts, ``seconds`` in all, and what the writing model cost, if there is one: ``calls``,
            ``tokens``, ``money``.
        ended_by: the limit that ended the search early; None when it ended by itself.
    """

    prompt: str
    score: float
    history: list[Trial] = field(repr=False)
    spent: dict[str, float]
    ended_by: str | None = None


def searchers() -> list[str]:
    """Names of the methods that search for any objective."""
    return [name for name in method_names() if read_card(name)[0].family == "search"]


def search(
    method: str,
    objective: Callable[[Any], Any],
    *,
    prompt: str | None = None,
    pool: Sequence[str] = (),
    fields: Sequence[str] = ("text",),
    lm: Any = None,
    tokenizer: Any = None,
    seed: int = 0,
    history: str | os.PathLike[str] | None = None,
    batched: bool = False,
    progress: bool = False,
    max_calls: int | None = None,
    max_tokens_total: int | None = None,
    max_money: float | None = None,
    max_seconds: float | None = None,
    **options: Any,
) -> Found:
    """Search for a prompt with a high ``objective``.

        cuelight.search("promptquine", score, prompt="Review: fine. good\\n\\nReview: {text}", min_length=4)
        cuelight.search("llm-bbo", score, pool=["a photo of a {}."], lm="http://127.0.0.1:8000/v1#writer")

    Args:
        method: ``promptquine`` (prunes ``prompt``), ``llm-bbo`` (a language model writes, from ``pool``), or
            ``unsupervised-blackbox`` (learns which words of ``pool`` to string together).
        objective: takes a string, returns a finite number, higher is better; with ``batched`` a list of strings, and
            returns a list.  It is asked once for each different string.
        prompt: the string to begin with.
        pool: strings to begin with, or to build from.
        fields: names that stand in braces in a prompt and must stay.
        lm: for ``llm-bbo``, the model that writes: what `cuelight.lm.connect` takes.  Its answers are cached.
        tokenizer: whose tokens are pruned; without one, words.
        seed: decides every draw.
        history: file that keeps every score; a search that is killed goes on from it and scores nothing twice.
        max_calls, max_tokens_total, max_money, max_seconds: hard limits of what the writing model may cost.
        **options: the method's own, as ``cuelight methods NAME`` lists them.

    Raises:
        CuelightError: any mistake in the arguments, in one line.
    """
    from cuelight.lm import LM, Budget, BudgetError, connect
    from cuelight.methods.searching import Searching, Start
    from cuelight.tasks.objective import Objective

    kind = get_method(method)
    if not issubclass(kind, Searching):
        raise ConfigError(
            f"method: {method} learns from data, by tune; searches are {', '.join(searchers())}"
        )
    config = build(kind.Search, options)
    budget = Budget(max_calls, max_tokens_total, max_money, max_seconds)
    if isinstance(lm, LM) and budget != Budget():
        raise ConfigError("budget: this model has its own meter; give the limits to lm.connect(budget=...)")
    model = None if lm is None else connect(lm, budget=budget)
    start = Start(prompt, tuple(pool), tuple(fields), model, tokenizer, seed)
    scores = objective if batched else lambda prompts: map(objective, prompts)
    asked = Objective(
        lambda prompts, _: scores(list(prompts)),
        progress=f"{method}" if progress else None,
        most=getattr(config, "max_prompts", None),
        file=history,
    )
    began, ended, best = time.perf_counter(), None, None
    try:
        best = kind.search(asked, start, config)
    except BudgetError as error:
        if not len(asked):
            raise
        ended = error.field
    finally:
        asked.close()
    best = asked.best.prompt if best is None else best
    spent: dict[str, float] = {"scored": len(asked), "seconds": round(time.perf_counter() - began, 3)}
    if model is not None:
        used = asdict(model.meter.spent)
        spent |= {name: used[name] for name in ("calls", "tokens", "money")}
    return Found(best, asked([best])[0], asked.history, spent, ended)
