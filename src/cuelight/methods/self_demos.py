"""Demonstrations that a model writes for a pool of questions; what Auto-CoT and ECHO share."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuelight.errors import DataError
from cuelight.lm.documents import embed
from cuelight.methods.strategy import Demo, Run

__all__ = ["Pool", "pool_of", "self_written", "zero_shot_chain"]

Pool = Sequence[Any] | str | os.PathLike[str]
"""Questions without answers as users give them: see `pool_of`."""

TRIGGER = "Let's think step by step."


def pool_of(given: Pool) -> list[str]:
    """Different questions of a list, of a text file with one a line, or of a table's column ``question``.

    Raises:
        DataError: there are none.
    """
    entries: Sequence[Any]
    if not isinstance(given, str | os.PathLike):
        entries = given
    else:
        from cuelight.data.files import READABLE, read_frame, read_text

        path = Path(given)
        if path.suffix.lower() not in READABLE:
            entries = read_text(path)[0].splitlines()
        else:
            frame = read_frame(path)
            if "question" not in frame:
                raise DataError(f"pool {path}: has no column called question; rename one")
            entries = frame["question"].dropna().tolist()
    questions = [str(getattr(q, "question", q)).strip() for q in entries]
    found = list(dict.fromkeys(q for q in questions if q))
    if not found:
        raise DataError(
            "pool: there are no questions; give a list, a text file or a table with a column question"
        )
    return found


def zero_shot_chain(run: Run, question: str, *, before: str = "", role: str = "rationale") -> Demo:
    """The model's own chain for ``question``, behind worked examples if there are any, and the answer it comes to."""
    prompt = f"{before}Q: {question}\nA: {TRIGGER}"
    rationale = " ".join(run.ask(prompt, role).split())
    said = run.ask(
        f"{prompt} {rationale}\nTherefore, the answer is", "answer of the rationale", max_tokens=64
    )
    return Demo(question, rationale, run.parse(f"The answer is {said}") or "")


def self_written(
    run: Run, pool: Sequence[str], count: int, encoder: str, *, words: int = 60, steps: int = 5
) -> list[Demo]:
    """One demonstration for each of ``count`` clusters of the pool.

    In a cluster, from its centre outward, the first question of at most ``words`` words is taken whose rationale has at
    most ``steps`` sentences and comes to an answer; the one nearest to the centre if there is none.
    """
    from sklearn.cluster import KMeans

    count = min(count, len(pool))
    vectors = embed(pool, encoder)
    fitted = KMeans(count, n_init=10, random_state=run.common.seed).fit(vectors)
    far = np.linalg.norm(vectors - fitted.cluster_centers_[fitted.labels_], axis=1)
    demos = []
    for cluster in range(count):
        members = sorted(np.flatnonzero(fitted.labels_ == cluster).tolist(), key=lambda k: far[k])
        run.note("cluster", data=[pool[k] for k in members], nearest=pool[members[0]])
        first: Demo | None = None
        for k in members:
            if len(pool[k].split()) > words and len(members) > 1:
                continue
            demo = zero_shot_chain(run, pool[k])
            first = first or demo
            if demo.answer and len(re.findall(r"[.!?](?:\s|$)", demo.rationale)) <= steps:
                first = demo
                break
        if first is not None and first.answer:
            demos.append(first)
    return demos
