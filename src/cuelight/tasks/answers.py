"""How near a written answer is to the one that was wanted: a figure between 0 and 1 for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

__all__ = ["AnswerMetric", "answer_scores"]

AnswerMetric = Literal["exact", "contains", "rouge-l", "chrf", "similarity"]


def answer_scores(
    metric: AnswerMetric, answers: Sequence[str], wanted: Sequence[str], *, encoder: str = "minilm-l6"
) -> list[float]:
    """A figure for every answer.

    ``exact`` leaves case, space and marks at the ends aside; ``contains`` asks whether the wanted words stand in the
    answer; ``rouge-l`` and ``chrf`` compare words and letters; ``similarity`` is the cosine of sentence embeddings of
    ``encoder``, never below 0, and 0 for an empty answer.
    """
    if not answers:
        return []
    if metric in ("exact", "contains"):
        pairs = [(_plain(a), _plain(w)) for a, w in zip(answers, wanted, strict=True)]
        same = [a == w if metric == "exact" else f" {w} " in f" {a} " for a, w in pairs]
        return [float(s) for s in same]
    if metric == "rouge-l":
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return [float(scorer.score(w, a)["rougeL"].fmeasure) for a, w in zip(answers, wanted, strict=True)]
    if metric == "chrf":
        from sacrebleu.metrics import CHRF

        measure = CHRF()
        return [measure.sentence_score(a, [w]).score / 100 for a, w in zip(answers, wanted, strict=True)]
    from cuelight.tasks.terms import bi_encoder

    # the program judges on the processor, so that a model's accelerator stays the model's
    near = bi_encoder(encoder, "cpu", "{term}")
    cosines = (near.embed(answers) * near.embed(wanted)).sum(-1)
    return [
        float(c) if a.strip() else 0.0 for a, c in zip(answers, np.clip(cosines.numpy(), 0, 1), strict=True)
    ]


def _plain(text: str) -> str:
    words = "".join(c if c.isalnum() or c in "+-.%/'" else " " for c in text.lower()).split()
    return " ".join(word.strip(".'/").rstrip("-") or word for word in words) or " ".join(text.split())
