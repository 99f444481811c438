"""Connect to a language model by what the user calls it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from cuelight.lm.base import LM, LMError, Request
from cuelight.lm.ledger import Ledger
from cuelight.lm.meter import Budget, Meter
from cuelight.lm.scripted import ScriptedLM
from cuelight.lm.store import Store

__all__ = ["connect", "scripted"]


def connect(
    spec: Any,
    *,
    budget: Budget | None = None,
    meter: Meter | None = None,
    cache: bool | str | os.PathLike[str] = True,
    ledger: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    concurrency: int = 8,
    timeout: float = 60.0,
    retries: int = 5,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    prices: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
) -> LM:
    """A language model, on this machine or behind a server.

    Args:
        spec: a built-in name (``cuelight backbones``), folder, hub id, loaded `Backbone` or transformers model; or
            ``URL#model``, an OpenAI-compatible server and a model of it; or an `LM`, which keeps its cache, ledger and
            meter (with a ``budget``, that holds as well: `LM.metered`).
        budget: hard limits; or ``meter``, a meter that other models share.
        cache: whether answers are kept on disk and reused; a folder keeps them there.
        ledger: a file that gets a line of JSON for each call.
        api_key: for a server; else ``$CUELIGHT_API_KEY`` or ``$OPENAI_API_KEY``.
        concurrency: most requests to a server at a time.
        timeout: seconds a server may take for an answer.
        retries: how often a request that failed for a passing reason is sent again.
        device, dtype, tokenizer: of a local model, as for `cuelight.load_backbone`.
        batch_size: prompts that a local model reads at a time.
        prices: a price table that goes over the user's own.

    Raises:
        LMError, BackboneError, ConfigError: no such model, a wrong option, or money is limited and its price unknown.
    """
    if budget is not None and meter is not None:
        raise LMError("budget: give a budget or a meter that has one, not both")
    if isinstance(spec, LM):
        return spec if budget is None else spec.metered(budget)
    store = None if cache is False else Store(None if cache is True else cache)
    shared: dict[str, Any] = {
        "meter": meter or Meter(budget),
        "store": store,
        "ledger": None if ledger is None else Ledger(ledger),
    }
    if isinstance(spec, str) and spec.startswith(("http://", "https://")):
        from cuelight.lm.remote import RemoteLM

        return RemoteLM(
            spec,
            api_key=api_key,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            prices=prices,
            **shared,
        )
    from cuelight.lm.local import LocalLM

    return LocalLM(spec, device=device, dtype=dtype, batch_size=batch_size, tokenizer=tokenizer, **shared)


def scripted(
    function: Callable[[Request], str],
    name: str = "scripted",
    *,
    score: Callable[[Request], Sequence[float]] | None = None,
    budget: Budget | None = None,
    meter: Meter | None = None,
    cache: bool | str | os.PathLike[str] = False,
    ledger: str | os.PathLike[str] | None = None,
) -> LM:
    """A language model that answers with ``function(request)``; see `ScriptedLM`.  Nothing is cached unless told."""
    return ScriptedLM(
        function,
        name,
        score=score,
        meter=meter or Meter(budget),
        store=None if cache is False else Store(None if cache is True else cache),
        ledger=None if ledger is None else Ledger(ledger),
    )
