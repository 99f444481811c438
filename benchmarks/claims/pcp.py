"""PCP's claims: above no pre-training and above TAPT at equal steps, which does not help on pairs.

Subj, TREC and MRPC (pairs), 16 labelled rows a class (three of LM-BFF's draws), 300 unlabelled texts of the training split,
on minilm-mlm (a masked model of 23 M), accuracy on 300 test rows.  30 steps of 8 of prompt-based fine-tuning for teacher and
student, 60 steps of 8 lines of pre-training (the paper: 1,000, and 100 epochs of batches of 128).  The rate of
pre-training is chosen on the held-out rows of another draw, for PCP and for TAPT.

    python -m benchmarks.claims.pcp            # goes on where it was interrupted

``texts`` is TAPT: the same lines without template and word.  Controls on Subj: random words, the next class's words, the
template without a word.  ``before tuning`` is accuracy on the draw's held-out rows when pre-training ends.
"""

from __future__ import annotations

from typing import Any

import cuelight
from benchmarks.claims.draws import figures, learn, table
from benchmarks.claims.grid import Options, arguments_of, listed, shown, verdict

ARMS: dict[str, Options] = {
    "pcp": {"lines": "words"},
    "texts": {"lines": "texts"},
    "no pre-training": {"pretraining_steps": 0},
    "random words": {"lines": "random"},
    "next class's words": {"lines": "permuted"},
    "no words": {"lines": "no-words"},
}
THREE = list(ARMS)[:3]
SETS = {"subj": list(ARMS), "mrpc": THREE, "trec": THREE}
RATES = {arm: [{"pretraining_rate": rate} for rate in (1e-4, 4e-4)] for arm in ("pcp", "texts")}
PAIRS = "mrpc"


def main() -> None:
    given = arguments_of(__doc__, "pcp", steps=30)
    host = cuelight.load_backbone("minilm-mlm")

    def measure(arm: str, name: str, draw: int, options: Options) -> dict[str, Any]:
        run = learn(
            "pcp",
            name,
            draw,
            backbone=host,
            unlabelled=True,
            max_unlabelled=300,
            steps=given.steps,
            batch_size=8,
            model_rate=1e-4,
            **{"pretraining_batch": 8, "pretraining_steps": 2 * given.steps, **options, **ARMS[arm]},
        )
        found: dict[str, Any] = figures(run)
        history = run.training.history if run.training else []
        ends = [h["accuracy"] for h in history if h.get("stage") == "pre-training" and "accuracy" in h]
        if ends:
            found["before tuning"] = ends[-1]
        return found

    table("pcp", given.folder, SETS, RATES, measure, summary)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        arms = entry["arms"]
        mean = {arm: found["mean"] for arm, found in arms.items()}
        early = ", ".join(
            f"{arm} {shown(f['before tuning'])}" for arm, f in arms.items() if "before tuning" in f
        )
        sentences.append(
            f"{name} (accuracy, %): {listed(arms)}; on held-out rows before tuning: {early}.  PCP above no pre-training "
            f"{verdict(mean['pcp'] > mean['no pre-training'])}, above TAPT {verdict(mean['pcp'] > mean['texts'])}."
        )
        if name == PAIRS:
            noise = arms["no pre-training"]["deviation"]
            helps = mean["texts"] - mean["no pre-training"]
            sentences.append(
                f"TAPT helps no more than a deviation on pairs {verdict(helps <= noise)} ({100 * helps:+.1f})."
            )
        for control in list(ARMS)[3:]:
            if control in arms:
                sentences.append(f"{control}: worse than PCP {verdict(mean[control] < mean['pcp'])}.")
    return " ".join(sentences)


if __name__ == "__main__":
    main()
