"""What a task is judged by: figures of scikit-learn, sacreBLEU and rouge-score, between 0 and 1."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

__all__ = [
    "calibration_error",
    "classification_metrics",
    "generation_metrics",
    "last_number",
    "multilabel_metrics",
    "number_match",
]


def classification_metrics(predicted: Sequence[int], true: Sequence[int], classes: int) -> dict[str, float]:
    """Accuracy and macro-F1 over the classes that occur; Matthews' correlation for two classes.

    A predicted ``classes`` stands for an answer that names no class: it is wrong whatever is true.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    figures = {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(
            f1_score(
                true,
                predicted,
                labels=sorted({*true, *predicted} - {classes}),
                average="macro",
                zero_division=0,
            )
        ),
    }
    if classes == 2:
        figures["matthews"] = float(matthews_corrcoef(true, predicted))
    return figures


def multilabel_metrics(
    predicted: Sequence[Sequence[int]],
    true: Sequence[Sequence[int]],
    probabilities: np.ndarray | None = None,
) -> dict[str, float]:
    """Micro- and macro-F1, the share of rows whose set is right, and predicted labels per row.

    Inputs are 0/1 ``[rows, classes]``; with ``probabilities`` of that shape also their calibration error.
    """
    from sklearn.metrics import f1_score

    guess, truth = np.asarray(predicted), np.asarray(true)
    return {
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
        "subset_accuracy": float((truth == guess).all(axis=1).mean()),
        "labels_per_row": float(guess.sum(axis=1).mean()),
        **({} if probabilities is None else {"calibration_error": calibration_error(probabilities, truth)}),
    }


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of 0/1 events: ``|share that happened - mean chance|`` over bins of equal width.

    Weighted by how many events a bin holds (Naeini et al. 2015).
    """
    chances, happened = np.ravel(probabilities).astype(float), np.ravel(truth).astype(float)
    places = np.minimum((chances * bins).astype(int), bins - 1)
    total = np.bincount(places, minlength=bins)
    gaps = np.abs(np.bincount(places, happened, bins) - np.bincount(places, chances, bins))
    return float(gaps[total > 0].sum() / len(chances))


def generation_metrics(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match (case and surrounding space aside), ROUGE-L, chrF and BLEU; the best reference counts."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    exact = [any(plain(p) == plain(r) for r in refs) for p, refs in zip(predicted, references, strict=True)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = [
        scorer.score_multi(list(refs), p)["rougeL"].fmeasure
        for p, refs in zip(predicted, references, strict=True)
    ]
    most = max(len(refs) for refs in references)
    columns = [[refs[k] if k < len(refs) else None for refs in references] for k in range(most)]
    return {
        "exact_match": float(np.mean(exact)),
        "rouge_l": float(np.mean(rouge)),
        "chrf": CHRF().corpus_score(list(predicted), columns).score / 100,
        "bleu": BLEU(effective_order=True).corpus_score(list(predicted), columns).score / 100,
    }


def last_number(text: str) -> float | None:
    """The last number in ``text`` (thousands' commas dropped), as answers to arithmetic end with it."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


def number_match(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of texts whose last number is that of one of their references."""

    def same(text: str, wanted: Sequence[str]) -> bool:
        value = last_number(text)
        return value is not None and any(value == last_number(reference) for reference in wanted)

    return float(np.mean([same(p, refs) for p, refs in zip(predicted, references, strict=True)]))
