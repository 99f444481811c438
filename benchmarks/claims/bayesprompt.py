"""BayesPrompt's claims: prompt words from the domain's mixture above learned ones, and above a mean or noise.

SemEval-2010 task 8 (19 relations with directions), the 1, 5 and 16-shot rows that the paper's authors drew (three draws; they
have no row of the class Other), on minilm-mlm (a masked model of 23 M), micro-F1 without Other on 300 test rows.  30, 40 and
60 steps of 8 behind the first epoch, 200 steps of particles (the paper: 50 epochs, 1,000 steps).  The mixture sees 400 texts
of the training split.  No option is searched for.

    python -m benchmarks.claims.bayesprompt            # goes on where it was interrupted

``learned words`` start as subject and object and learn (KnowPrompt without its knowledge); ``mean`` is that of the training
rows, ``noise`` as long as the draw.  Controls at 5 shots: the mixture of another domain's texts (SciERC), particles moved
away from the mixture, and no unlabelled texts, only the rows given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import cuelight
from benchmarks.claims.draws import compared, joined, table
from benchmarks.claims.grid import Options, arguments_of, listed
from benchmarks.common import data_file

OTHER = "Other"
FILE = "text/semeval2010_task8.parquet"
COLUMNS = ("head", "tail", "head_span", "tail_span")
MARKS = {"[[": "head from", "]]": "head to", "<<": "tail from", ">>": "tail to"}
TEMPLATE = "{soft.sub:subject} {head} {soft.sub} {mask} {soft.obj:object} {tail} {soft.obj} . {text:head_span,tail_span}"
ARMS: dict[str, Options] = {
    "bayesprompt": {},
    "learned words": {"abstraction": "none"},
    "mean": {"abstraction": "mean"},
    "noise": {"abstraction": "random"},
    "another domain": {},
    "moved away": {"negate": True},
    "rows given": {"unlabelled": None},
}
FOUR = list(ARMS)[:4]
SETS = {"5-shot": list(ARMS), "1-shot": FOUR, "16-shot": FOUR}
STEPS = {"1-shot": 30, "5-shot": 40, "16-shot": 60}
RATES = {"bayesprompt": [{"model_rate": 3e-4}]}


def main() -> None:
    given = arguments_of(__doc__, "bayesprompt", svgd_steps=200)
    host = cuelight.load_backbone("minilm-mlm")

    def measure(arm: str, name: str, draw: int, options: Options) -> dict[str, Any]:
        shots = name.partition("-")[0]
        rows = cuelight.data.read(
            data_file(FILE),
            train_split=f"fewshot{shots}_{draw}_train",
            max_validation=38,
            max_test=300,
            text="text",
            label="label_name",
            columns=COLUMNS,
            seed=draw,
        )
        run = cuelight.tune(
            "bayesprompt",
            backbone=host,
            data=rows,
            template=TEMPLATE,
            max_length=64,
            seed=draw,
            steps=STEPS[name],
            batch_size=8,
            evaluate_every=10**6,
            keep="last",
            svgd_steps=given.svgd_steps,
            max_unlabelled=400,
            verbalizer_rate=1e-2,
            **{"unlabelled": data_file(FILE), **options, **ARMS[arm], **other_domain(arm, given.folder)},
        )
        assert run.training is not None
        assert run.predictions is not None
        truth = [rows.classes[label] for label in rows.test["label"]]
        return {
            "micro_f1": without_other(run.predictions.answers, truth),
            "accuracy": run.metrics["accuracy"],
            "held_out": run.training.best["accuracy"],
        }

    table("bayesprompt", given.folder, SETS, RATES, measure, summary, metric="micro_f1", draws=(1, 2, 3))


def other_domain(arm: str, folder: str) -> Options:
    """SciERC's sentences with their entities in the same columns, for the arm that takes them."""
    if arm != "another domain":
        return {}
    file = Path(folder) / "scierc.csv"
    if not file.exists():
        rows = []
        for text in pd.read_parquet(data_file("text/scierc_rel.parquet")).text[:2000]:
            words, places = [], {}
            for word in text.split():
                if word in MARKS:
                    places[MARKS[word]] = len(words)
                else:
                    words.append(word)
            spans = [(places.get(f"{e} from", 0), places.get(f"{e} to", 0)) for e in ("head", "tail")]
            if all(start < end for start, end in spans):
                entities = [" ".join(words[start:end]) for start, end in spans]
                rows.append([" ".join(words), *entities, *(f"{start} {end}" for start, end in spans)])
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=["text", *COLUMNS]).to_csv(file, index=False)
    return {"unlabelled": str(file)}


def without_other(answers: Sequence[str], truth: Sequence[str]) -> float:
    """Micro-F1 over all relations but Other."""
    right = sum(a == t != OTHER for a, t in zip(answers, truth, strict=True))
    said, meant = (sum(name != OTHER for name in names) for names in (answers, truth))
    return 2 * right / max(said + meant, 1)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        arms = entry["arms"]
        if arms:
            sentences.append(f"{name} (micro-F1 without Other, %): {listed(arms)}.")
        sentences += [compared(arms, "bayesprompt", "above", arm) for arm in FOUR[1:]]
        sentences += [compared(arms, control, "below", "bayesprompt") for control in list(ARMS)[4:]]
    return joined(sentences)


if __name__ == "__main__":
    main()
