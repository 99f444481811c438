"""PromptQuine's claims: evolved pruning at least hill climbing, above the prompt as it is, above random masks.

SST-2, Subj and AG's News on smollm2-135m; three seeds, which draw the solved rows (one a class) and the rows of the search.
Every search scores as many prompts on the same 8 rows; PromptQuine (by the margin reward) and random masks (of the lengths
that PromptQuine's archive has) then rank their best tenth again on validation rows, TAPruning (by accuracy) answers with
its last best, as the paper has it.  ``by fitness`` is PromptQuine without ranking again.

    python -m benchmarks.claims.promptquine          # goes on where it was interrupted

Shrunk to what a core does in minutes: texts of at most 16 tokens, 40 prompts instead of 10,000 (population 8, 10 children),
16 validation and 60 test rows.
"""

from __future__ import annotations

from typing import Any

import cuelight
from benchmarks.claims.grid import SEEDS, arguments_of, listed, paired, shown, spread, tuned, verdict
from benchmarks.common import data_file, write_result

SETS: dict[str, dict[str, Any]] = {
    "sst2": {"template": "Review: {text}\nSentiment:", "fitness_rows": 4},
    "subj": {"template": "Text: {text}\nType:", "fitness_rows": 4},
    "ag_news": {"template": "News: {text}\nTopic:", "fitness_rows": 2},
}
SEARCH = {"population": 8, "offspring": 10, "min_length": 12}
ARMS: dict[str, dict[str, Any]] = {
    "unpruned": {"mode": "none"},
    "promptquine": {"mode": "gga"},
    "by fitness": {"mode": "gga", "select": "fitness"},
    "tapruning": {"mode": "tapruning", "score_on": "train"},
    "random masks": {"mode": "random"},
}


def main() -> None:
    given = arguments_of(__doc__, "promptquine", prompts=40)
    host = cuelight.load_backbone("smollm2-135m")
    sets = given.only.split(",") if given.only else list(SETS)
    found: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in ARMS} for name in sets}
    kept: dict[str, list[float]] = {name: [] for name in sets}
    for seed in SEEDS:
        for name in sets:
            lengths: tuple[int, ...] = ()
            for arm, options in ARMS.items():
                own = dict(options)
                if arm == "random masks":
                    own["kept"] = lengths
                run = tuned(
                    given.folder,
                    "promptquine",
                    data_file(f"text/{name}.parquet"),
                    seed,
                    backbone=host,
                    shots=16,
                    max_length=16,
                    max_test=60,
                    max_validation=16,
                    max_prompts=given.prompts,
                    **SETS[name],
                    **SEARCH,
                    **own,
                )
                found[name][arm].append(run.metrics["accuracy"])
                if arm == "promptquine":
                    search = run.prompt.record["search"]
                    kept[name].append(search["tokens_of_prompt"] / search["tokens_of_start"])
                    lengths = tuple(map(int, search["lengths"].split()))
                print(seed, name, arm, run.metrics["accuracy"], flush=True)
        if not given.only:
            result(found, kept, given.prompts)


def result(found: dict[str, dict[str, list[float]]], kept: dict[str, list[float]], prompts: int) -> None:
    sets = {
        name: {"arms": {arm: spread(values) for arm, values in arms.items()}, "kept": spread(kept[name])}
        for name, arms in found.items()
    }
    count = len(next(iter(kept.values())))
    write_result(
        "claims",
        "promptquine",
        "benchmarks.claims.promptquine",
        {
            "methods": ["promptquine"],
            "seeds": list(SEEDS[:count]),
            "prompts": prompts,
            "sets": sets,
            "summary": summary(sets, count),
        },
    )


def summary(sets: dict[str, Any], seeds: int) -> str:
    """What the figures say, from the figures alone."""
    sentences = [f"smollm2-135m, accuracy in %, {seeds} of {len(SEEDS)} seeds."]
    means = dict.fromkeys(ARMS, 0.0)
    for name, entry in sets.items():
        sentences.append(f"{name}: {listed(entry['arms'])}; {shown(entry['kept'])} % of the tokens kept.")
        for arm in ARMS:
            means[arm] += entry["arms"][arm]["mean"] / len(sets)
    sentences.append(
        "Mean of the sets: " + ", ".join(f"{arm} {100 * m:.1f}" for arm, m in means.items()) + "."
    )
    quine = means["promptquine"]
    claims = {
        "PromptQuine at least TAPruning": quine >= means["tapruning"],
        "TAPruning above unpruned": means["tapruning"] > means["unpruned"],
        "PromptQuine above unpruned": quine > means["unpruned"],
        "PromptQuine above random masks": quine > means["random masks"],
        "choosing by the search's score alone is worse": means["by fitness"] < quine,
    }
    sentences.append("; ".join(f"{claim} {verdict(holds)}" for claim, holds in claims.items()) + ".")
    values = {arm: [v for entry in sets.values() for v in entry["arms"][arm]["values"]] for arm in ARMS}
    gaps = [
        f"{one} minus {other} {paired(values[one], values[other])}"
        for one, other in (
            *(("promptquine", arm) for arm in ARMS if arm != "promptquine"),
            ("tapruning", "unpruned"),
        )
    ]
    sentences.append(f"Means of {len(values['unpruned'])} pairs, with standard errors: {', '.join(gaps)}.")
    return " ".join(sentences)


if __name__ == "__main__":
    main()
