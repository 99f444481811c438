"""IAPT's quality claim: prompts made of the instruction beat free prompts of the same length.

flan-t5-small, whose encoder's layers have the generators (the paper's models are causal; those that two cores can carry
learn too slowly for this table); question types (trec, classification) and five short word tasks told apart
by their instruction (instruction_induction, generation, exact match), 1,000 training rows, 60 steps of 8, three seeds.

    python -m benchmarks.claims.iapt            # goes on where it was interrupted

Arms: iapt with four tokens; free vectors before the text, four and fifty; free keys and values in every layer (of the
decoder), four and as many as make iapt's size; and iapt with prompts from another row, with the first layer only, with
the mean of the text for attention pooling, and with GELU in all layers.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

import cuelight
from benchmarks.claims.grid import SEARCH_SEED, SEEDS, arguments_of, listed, search, spread, tuned, verdict
from benchmarks.common import data_file, read_result, write_result

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "iapt": ("iapt", {}),
    "4 vectors": ("prompt-tuning", {"length": 4}),
    "50 vectors": ("prompt-tuning", {"length": 50}),
    "every layer, 4": ("prefix-tuning", {"length": 4}),
    "every layer, same size": ("prefix-tuning", {"length": 22}),
    "another row's": ("iapt", {"mismatch": True}),
    "first layer": ("iapt", {"layers": "first"}),
    "mean pooling": ("iapt", {"pooling": "mean"}),
    "one activation": ("iapt", {"activation": "fixed"}),
}
RIVALS = [arm for arm, (method, _) in ARMS.items() if method != "iapt"]
GRID = {
    "iapt": [{"learning_rate": rate} for rate in (3e-3, 3e-2)],
    "prompt-tuning": [{"learning_rate": rate} for rate in (0.1, 0.3)],
    "prefix-tuning": [{"learning_rate": rate} for rate in (3e-3, 3e-2)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "trec": {"template": "Question: {text}\nThe question asks for:"},
    "words": {"template": "{text}\nAnswer:", "max_new_tokens": 8},
}
INSTRUCTIONS = {
    "first_word_letter": "Write the first letter of the word",
    "second_word_letter": "Write the second letter of the word",
    "singular_to_plural": "Write the plural of the word",
    "larger_animal": "Write the larger of the two animals",
    "sum": "Write the sum of the two numbers",
}


def rows(name: str) -> Any:
    if name == "trec":
        return data_file("text/trec.parquet")
    frame = pd.read_parquet(data_file("gen/instruction_induction.parquet"))
    frame = frame[frame.task.isin(INSTRUCTIONS)]
    text = [f"{INSTRUCTIONS[t]}: {x}" for t, x in zip(frame.task, frame.input, strict=True)]
    target = [outputs[0] for outputs in frame.outputs]
    return "words", pd.DataFrame({"text": text, "target": target, "split": frame.split}).drop_duplicates(
        "text"
    )


def main() -> None:
    given = arguments_of(__doc__, "iapt", steps=60)
    host = cuelight.load_backbone("flan-t5-small")

    def run(arm: str, name: str, seed: int, options: dict[str, Any]) -> cuelight.Run:
        method, shape = ARMS[arm]
        return tuned(
            given.folder,
            method,
            rows(name),
            seed,
            backbone=host,
            max_train=1000,
            max_validation=150,
            max_test=200,
            max_length=64,
            batch_size=8,
            steps=given.steps,
            evaluate_every=given.steps,
            **OPTIONS[name],
            **shape,
            **options,
        )

    def validate(arm: str, options: dict[str, Any]) -> float:
        found = run(
            {"prompt-tuning": "50 vectors", "prefix-tuning": "every layer, same size"}.get(arm, arm),
            "trec",
            SEARCH_SEED,
            options,
        )
        assert found.training is not None
        return float(found.training.best["accuracy"])

    before = read_result("claims", "iapt") if given.keep else {}
    known = before.get("search", {})
    chosen, record = search({arm: grid for arm, grid in GRID.items() if arm not in known}, validate)
    record = {**known, **record}
    chosen = {arm: entry["chosen"] for arm, entry in record.items()}
    sets: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else OPTIONS:
        metric = "accuracy" if name == "trec" else "exact_match"
        arms = {}
        for arm, (method, _) in ARMS.items():
            if before and arm in before["sets"][name]["arms"]:
                arms[arm] = before["sets"][name]["arms"][arm]
                continue
            runs = [run(arm, name, seed, chosen[method]) for seed in SEEDS]
            figures = [r.metrics[metric] for r in runs]
            arms[arm] = spread(figures, options=chosen[method], trainable=runs[0].trainable)
            print(name, arm, arms[arm], flush=True)
        sets[name] = {"metric": metric, "arms": arms}
    if not given.only:
        result = {"methods": ["iapt"], "search": record, "sets": sets, "summary": summary(sets)}
        if before:
            result["kept"] = {key: before[key] for key in ("command", "date", "versions")}
        write_result("claims", "iapt", "benchmarks.claims.iapt", result)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        arms = entry["arms"]
        own = arms["iapt"]["mean"]
        above = {a: own > arms[a]["mean"] for a in RIVALS}
        not_worse = [a for a in ARMS if a not in ("iapt", *RIVALS) and arms[a]["mean"] >= own]
        sentences += [
            f"{name} ({entry['metric']}, %): {listed(arms)}.",
            "IAPT above " + ", ".join(f"{a}: {verdict(holds)}" for a, holds in above.items()) + ".",
            f"Controls that are not worse than IAPT: {', '.join(not_worse) or 'none'}.",
        ]
    return " ".join(sentences)


if __name__ == "__main__":
    main()
