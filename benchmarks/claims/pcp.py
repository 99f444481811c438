"""PCP's claims: above no pre-training and above TAPT at equal steps, which does not help on pairs.

Subj and MRPC (pairs), 16 labelled rows a class (three of LM-BFF's draws), 300 unlabelled texts of the training split,
on minilm-mlm (a masked model of 23 M), accuracy on 200 test rows.  30 steps of 8 of prompt-based fine-tuning for teacher and
student, 45 steps of 8 lines of pre-training at 2e-4 (the paper: 1,000, and 100 epochs of batches of 128).  No option is
searched for.

    python -m benchmarks.claims.pcp            # goes on where it was interrupted

``texts`` is TAPT: the same lines without template and word.  Controls on Subj: random words, the next class's words, the
template without a word.  ``before tuning`` is accuracy on the draw's held-out rows when pre-training ends.
"""

from __future__ import annotations

from typing import Any

import cuelight
from benchmarks.claims.draws import compared, figures, joined, learn, table
from benchmarks.claims.grid import Options, arguments_of, listed, shown, verdict

ARMS: dict[str, Options] = {
    "pcp": {"lines": "words"},
    "texts": {"lines": "texts"},
    "no pre-training": {"pretraining_steps": 0},
    "next class's words": {"lines": "permuted"},
    "random words": {"lines": "random"},
    "no words": {"lines": "no-words"},
}
THREE = list(ARMS)[:3]
SETS = {"subj": list(ARMS), "mrpc": THREE}
RATES = {"pcp": [{"pretraining_rate": 2e-4}]}
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
            **{"pretraining_batch": 8, "pretraining_steps": 3 * given.steps // 2, **options, **ARMS[arm]},
        )
        found: dict[str, Any] = figures(run)
        history = run.training.history if run.training else []
        ends = [h["validation"] for h in history if h["stage"] == "pre-training" and "validation" in h]
        if ends:
            found["before tuning"] = ends[-1]["accuracy"]
        return found

    table("pcp", given.folder, SETS, RATES, measure, summary)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        arms = entry["arms"]
        if not arms:
            continue
        early = ", ".join(
            f"{arm} {shown(f['before tuning'])}" for arm, f in arms.items() if "before tuning" in f
        )
        sentences += [
            f"{name} (accuracy, %): {listed(arms)}; on held-out rows before tuning: {early}.",
            compared(arms, "pcp", "above", "no pre-training"),
            compared(arms, "pcp", "above", "texts"),
        ]
        if name == PAIRS and {"texts", "no pre-training"} <= set(arms):
            helps = arms["texts"]["mean"] - arms["no pre-training"]["mean"]
            noise = arms["no pre-training"]["deviation"]
            sentences.append(
                f"TAPT helps no more than a deviation on pairs {verdict(helps <= noise)} ({100 * helps:+.1f})."
            )
        sentences += [compared(arms, control, "below", "pcp") for control in list(ARMS)[3:]]
    return joined(sentences)


if __name__ == "__main__":
    main()
