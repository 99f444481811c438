"""Unsupervised black-box learning's claim: examples in training and test, against examples in the test alone.

SST-2 on smollm2-135m; three seeds, which draw the unlabelled texts, the words and the examples.  No arm sees a label; all
have the same texts, steps and draws.  ``mismatch`` learns its words without examples and is tested with them; ``examples
only`` has pseudo-labelled examples and no words; ``permuted`` has the pseudo-labels of other texts; ``all reliable`` takes
every answer for reliable; ``zero-shot`` is the template alone.  ``accept`` is off, so that words are judged and not
replaced.

    python -m benchmarks.claims.unsupervised_blackbox          # goes on where it was interrupted

Shrunk to what a core does in minutes: 40 texts of at most 16 tokens, 8 steps of 4 texts and 4 draws, 5 words, one example a
class, 50 test rows.
"""

from __future__ import annotations

from typing import Any

import cuelight
from benchmarks.claims.grid import SEEDS, arguments_of, listed, paired, shown, spread, tuned, verdict
from benchmarks.common import data_file, write_result

TASK: dict[str, Any] = {
    "template": "Review: {text}\nSentiment:",
    "max_train": 40,
    "max_length": 16,
    "max_test": 50,
    "max_validation": 10,
}
LEARNING: dict[str, Any] = {
    "samples": 4,
    "batch": 4,
    "length": 5,
    "vocabulary": 40,
    "demonstrations": 1,
    "rate": 0.01,
    "accept": False,
}
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "mismatch": {"demonstrations_in": "test"},
    "examples only": {"learn_words": False},
    "permuted": {"labels": "permuted"},
    "all reliable": {"reliable": 1.0},
}


def main() -> None:
    given = arguments_of(__doc__, "unsupervised_blackbox", rounds=8)
    host = cuelight.load_backbone("smollm2-135m")
    data = data_file("text/sst2.parquet")
    found: dict[str, list[float]] = {"zero-shot": [], **{arm: [] for arm in ARMS}}
    calls: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        plain = tuned(
            given.folder, "promptquine", data, seed, backbone=host, mode="none", demonstrations=0, **TASK
        )
        found["zero-shot"].append(plain.metrics["accuracy"])
        for arm, options in ARMS.items():
            run = tuned(
                given.folder,
                "unsupervised-blackbox",
                data,
                seed,
                backbone=host,
                rounds=given.rounds,
                **TASK,
                **LEARNING,
                **options,
            )
            found[arm].append(run.metrics["accuracy"])
            calls[arm].append(run.prompt.record["search"]["spent"]["calls"])
            print(
                seed, arm, run.metrics["accuracy"], run.prompt.record["search"]["pseudo_labels"], flush=True
            )
        result(found, calls, given.rounds)


def result(found: dict[str, list[float]], calls: dict[str, list[float]], rounds: int) -> None:
    arms = {arm: spread(values) for arm, values in found.items()}
    count = len(found["full"])
    write_result(
        "claims",
        "unsupervised_blackbox",
        "benchmarks.claims.unsupervised_blackbox",
        {
            "methods": ["unsupervised-blackbox"],
            "seeds": list(SEEDS[:count]),
            "rounds": rounds,
            "arms": arms,
            "calls": {arm: spread(values) for arm, values in calls.items()},
            "summary": summary(arms, count),
        },
    )


def summary(arms: dict[str, Any], seeds: int) -> str:
    """What the figures say, from the figures alone."""
    full = arms["full"]["mean"]
    claims = {
        "above zero-shot": full > arms["zero-shot"]["mean"],
        "examples in training and test above the mismatch": full > arms["mismatch"]["mean"],
        "words and examples above examples only": full > arms["examples only"]["mean"],
        "permuted labels are worse": arms["permuted"]["mean"] < full,
        "taking every answer for reliable is worse": arms["all reliable"]["mean"] < full,
    }
    return (
        f"SST-2, smollm2-135m, accuracy in %, {seeds} of {len(SEEDS)} seeds: {listed(arms)}.  The full method "
        f"({shown(arms['full'])}): "
        + "; ".join(f"{claim} {verdict(holds)}" for claim, holds in claims.items())
        + f".  Full minus mismatch, with its standard error: {paired(arms['full']['values'], arms['mismatch']['values'])}."
    )


if __name__ == "__main__":
    main()
