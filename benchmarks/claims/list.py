"""LiST's claims: above its teacher, not below self-training of all weights, and less weight for labels that are wrong.

Subj and TREC, 16 labelled rows a class (three of LM-BFF's draws), unlabelled texts of the training split, on minilm-mlm (a
masked model of 23 M), accuracy on 200 test rows.  One round where the paper has six, 30 steps of 8 each for the teacher,
the student's pseudo-labels (300 texts; from the middle on with learned weights, from 8 true labels a step) and its true
labels.  The rate is chosen on the held-out rows of another draw, by the teacher alone.

    python -m benchmarks.claims.list            # goes on where it was interrupted

``no unlabelled texts`` is the teacher: the same adapters, prompt-based fine-tuning, twice the steps.  With two out of five
pseudo-labels made wrong on purpose weights are learned, equal or drawn, and those of wrong and other labels compared.
Controls on Subj: a student that goes on from the teacher and never sees true labels; adapters as Houlsby et al. have them
that start far from nothing; and, the comparison with what LiST saves, all weights tuned
(with equal weights).
"""

from __future__ import annotations

from typing import Any

import cuelight
from benchmarks.claims.draws import compared, figures, joined, learn, table
from benchmarks.claims.grid import Options, arguments_of, listed, shown, verdict

WRONG = {"corrupt": 0.4}
ARMS: dict[str, Options] = {
    "no unlabelled texts": {"rounds": 0},
    "list": {},
    "wrong labels, list": WRONG,
    "wrong labels, equal weights": {**WRONG, "reweight": "uniform"},
    "wrong labels, drawn weights": {**WRONG, "reweight": "random"},
    "old student, no true labels": {"new_student": False, "final_labels": False},
    "coarse adapters": {"adapter": "relu", "adapter_deviation": 0.02},
    "all weights": {"model": "tuned", "model_rate": 1e-4, "reweight": "uniform"},
}
BOTH = list(ARMS)[:4]
SETS = {"subj": list(ARMS), "trec": BOTH}
RATES = {"no unlabelled texts": [{"model_rate": rate} for rate in (1e-3, 3e-3)]}


def main() -> None:
    given = arguments_of(__doc__, "list", steps=30)
    host = cuelight.load_backbone("minilm-mlm")

    def measure(arm: str, name: str, draw: int, options: Options) -> dict[str, Any]:
        own = {"rounds": 1, **options, **ARMS[arm]}
        run = learn(
            "list",
            name,
            draw,
            backbone=host,
            unlabelled=own["rounds"] > 0,
            steps=given.steps * (1 if own["rounds"] else 2),
            batch_size=8,
            pseudo_steps=given.steps,
            max_unlabelled=300,
            pseudo_batch=8,
            reweight_from=0.5,
            meta_batch=8,
            rank=32,
            **own,
        )
        found: dict[str, Any] = {**figures(run), "trained": float(run.trainable)}
        sums = run.prompt.method.trust.tolist()
        if sums[1][1]:
            found["weight of the others"], found["weight of wrong labels"] = (
                8 * total / count for total, count in sums
            )
        return found

    table("list", given.folder, SETS, RATES, measure, summary)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        arms = entry["arms"]
        if not arms:
            continue
        sentences += [
            f"{name} (accuracy, %): {listed(arms)}.",
            compared(arms, "list", "above", "no unlabelled texts"),
            compared(arms, "wrong labels, list", "above", "wrong labels, equal weights"),
        ]
        if "wrong labels, list" in arms:
            wrong, others = (
                arms["wrong labels, list"][key] for key in ("weight of wrong labels", "weight of the others")
            )
            pairs = zip(wrong["values"], others["values"], strict=True)
            sentences.append(
                f"Wrong labels weigh less than others {verdict(wrong['mean'] < others['mean'])} ({shown(wrong, 1, 2)} and "
                f"{shown(others, 1, 2)} of an equal share; less in {sum(a < b for a, b in pairs)} of "
                f"{len(wrong['values'])} draws)."
            )
        if "all weights" in arms:
            within = arms["list"]["mean"] >= arms["all weights"]["mean"] - arms["all weights"]["deviation"]
            share = arms["list"]["trained"]["mean"] / arms["all weights"]["trained"]["mean"]
            sentences.append(
                f"list within a deviation of all weights {verdict(within)}, at {100 * share:.1f} % of what is trained."
            )
        sentences += [
            compared(arms, "old student, no true labels", "below", "list"),
            compared(arms, "coarse adapters", "below", "list"),
            compared(arms, "wrong labels, drawn weights", "below", "wrong labels, list"),
        ]
    return joined(sentences)


if __name__ == "__main__":
    main()
