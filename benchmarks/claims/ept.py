"""EPT's quality claim: above DePT at equal size, evenly over unlike tasks, and each of its parts is needed.

flan-t5-small, sentiment (sst2) and sentence pairs (mrpc), 1,000 training rows, three seeds; all arms have at most
``40 x width`` trained values.

    python -m benchmarks.claims.ept            # goes on where it was interrupted

Arms: prompt-tuning (40 soft tokens), dept (24 and a low-rank pair), ept (16, pair, fusion, 2 subspaces of width 2),
and ept without fusion, without projection, with a uniform gate, and with one subspace twice as wide.
"""

from __future__ import annotations

import statistics
from typing import Any

import cuelight
from benchmarks.claims.grid import SEARCH_SEED, SEEDS, arguments_of, listed, search, spread, tuned, verdict
from benchmarks.common import data_file, write_result

SETS = {
    "sst2": "Review: {text}\nSentiment:",
    "mrpc": "Sentence 1: {text}\nSentence 2: {text_b}\nAre they equivalent or not equivalent?",
}
SHORT = {"length": 16, "match_length": 40, "spaces": 2, "space_width": 2}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt-tuning": ("prompt-tuning", {"length": 40}),
    "dept": ("dept", {"length": 24, "match_length": 40}),
    "ept": ("ept", SHORT),
    "no fusion": ("ept", {**SHORT, "fusion": False}),
    "no projection": ("ept", {**SHORT, "projection": False}),
    "uniform gate": ("ept", {**SHORT, "gate": "uniform"}),
    "one wide subspace": ("ept", {**SHORT, "spaces": 1, "space_width": 4}),
}
GRID = {
    "prompt-tuning": [{"learning_rate": rate} for rate in (0.1, 0.3)],
    "dept": [{"learning_rate": 0.3, "offset_rate": slow} for slow in (5e-4, 5e-3)],
    "ept": [{"learning_rate": 0.3, "offset_rate": slow} for slow in (5e-4, 5e-3)],
}


def main() -> None:
    given = arguments_of(__doc__, "ept", steps=80)
    host = cuelight.load_backbone("flan-t5-small")

    def run(arm: str, name: str, seed: int, options: dict[str, Any]) -> cuelight.Run:
        method, shape = ARMS[arm]
        return tuned(
            given.folder,
            method,
            data_file(f"text/{name}.parquet"),
            seed,
            backbone=host,
            template=SETS[name],
            max_train=1000,
            max_validation=150,
            max_test=200,
            max_length=96,
            batch_size=8,
            steps=given.steps,
            evaluate_every=given.steps,
            **shape,
            **options,
        )

    def validate(arm: str, options: dict[str, Any]) -> float:
        found = run(arm, "sst2", SEARCH_SEED, options).training
        assert found is not None
        return float(found.best["accuracy"])

    chosen, record = search(GRID, validate)
    sets: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else SETS:
        arms = {}
        for arm, (method, _) in ARMS.items():
            runs = [run(arm, name, seed, chosen[method]) for seed in SEEDS]
            arms[arm] = spread(
                [r.metrics["accuracy"] for r in runs], options=chosen[method], trainable=runs[0].trainable
            )
            print(name, arm, arms[arm], flush=True)
        sets[name] = {"arms": arms}
    if not given.only:
        result = {"methods": ["ept"], "search": record, "sets": sets, "summary": summary(sets)}
        write_result("claims", "ept", "benchmarks.claims.ept", result)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    means = {arm: statistics.mean(entry["arms"][arm]["mean"] for entry in sets.values()) for arm in ARMS}
    gains = {
        arm: [entry["arms"][arm]["mean"] - entry["arms"]["prompt-tuning"]["mean"] for entry in sets.values()]
        for arm in ("dept", "ept")
    }
    apart = {arm: 100 * (max(values) - min(values)) for arm, values in gains.items()}
    ablations = list(ARMS)[3:]
    worse = [arm for arm in ablations if means[arm] < means["ept"]]
    sentences = [f"{name} (test accuracy, %): {listed(entry['arms'])}." for name, entry in sets.items()]
    sentences += [
        f"Mean over tasks: EPT {100 * means['ept']:.1f}, DePT {100 * means['dept']:.1f}: EPT at or above DePT "
        f"{verdict(means['ept'] >= means['dept'])}.",
        f"Gain over prompt tuning differs between the tasks by {apart['ept']:.1f} points for EPT and "
        f"{apart['dept']:.1f} for DePT: evenness {verdict(apart['ept'] <= apart['dept'])}.",
        f"Ablations below EPT: {', '.join(worse) or 'none'}; at or above it: "
        f"{', '.join(a for a in ablations if a not in worse) or 'none'}.",
    ]
    return " ".join(sentences)


if __name__ == "__main__":
    main()
