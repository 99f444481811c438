"""SciPrompt's claims: zero-shot, expanded and calibrated above names alone; with 5 rows a class, weights above no weights.

Emerging NLP (21 topics of abstracts, the paper's own set) and SciCite (3 intents of citations), on minilm-mlm (a masked
model of 23 M); three seeds, which draw the rows; accuracy on 210 and 200 test rows.

    python -m benchmarks.claims.sciprompt            # goes on where it was interrupted

Terms come from the texts of the training split, labels unseen (2,000 at most; 64 of them calibrate): the candidates are
found once a data set and given to every arm as a list, which filters them itself.  ``permuted`` has what the filter left,
with every class's terms moved to the next class.  Zero-shot nothing learns; with 5 rows a class the model is tuned, 30
steps of 8, at the better of two rates on the first data set's validation rows, which names alone choose for themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cuelight
from benchmarks.claims.grid import (
    SEARCH_SEED,
    SEEDS,
    arguments_of,
    listed,
    search,
    shown,
    spread,
    tuned,
    verdict,
)
from benchmarks.common import data_file, write_result
from cuelight.data.texts import read_texts
from cuelight.tasks.terms import BiEncoder, from_texts, lines, parse_lines

FIELD = "The field of this study is related to"
SETS: dict[str, dict[str, Any]] = {
    # A citation's intent is no field of study: its terms are compared bare.
    "emerging_nlp": {
        "template": f"{FIELD}: {{mask}}. {{text}}",
        "wrapping": f"{FIELD} {{term}}",
        "max_test": 210,
    },
    "scicite": {
        "template": "This sentence is about the {mask}. {text}",
        "wrapping": "{term}",
        "max_test": 200,
    },
}
ZERO: dict[str, dict[str, Any]] = {
    "sciprompt": {},
    "equal weights": {"weights": "equal"},
    "names alone": {"expand": False},
    "names alone, not calibrated": {"expand": False, "calibrate": "none"},
    "soft": {"verbalizer": "soft"},
    "no filter": {"filter": False},
    "not calibrated": {"calibrate": "none"},
    "permuted": {"filter": False, "terms": "permuted"},
}
FEW: dict[str, dict[str, Any]] = {
    "sciprompt": {},
    "equal weights": {"weights": "equal"},
    "names alone": {"expand": False},
    "soft": {"verbalizer": "soft"},
    "permuted": {"filter": False, "terms": "permuted"},
}
RATES = [{"model_rate": rate} for rate in (5e-5, 2e-4)]


def main() -> None:
    given = arguments_of(__doc__, "sciprompt", steps=30)
    hosts = {name: cuelight.load_backbone(name) for name in ("minilm-mlm", "minilm-l6")}
    files = {name: term_files(given.folder, name) for name in SETS}

    def run(arm: str, name: str, seed: int, options: dict[str, Any], few: bool) -> cuelight.Run:
        own = {"terms": "candidates", **(FEW if few else ZERO)[arm]}
        learning: dict[str, Any] = {"model": "frozen", "weights": "fixed"}
        if few:
            learning = {"steps": given.steps, "evaluate_every": given.steps, "keep": "last"}
        return tuned(
            f"{given.folder}/{'few' if few else 'zero'}",
            "sciprompt",
            data_file(f"text/{name}.parquet"),
            seed,
            backbone=hosts["minilm-mlm"],
            shots=5,
            max_length=64,
            batch_size=8,
            unlabelled=data_file(f"text/{name}.parquet"),
            max_unlabelled=64,
            max_validation=105,
            sources=("file",),
            **{**SETS[name], **learning, **own, "terms": files[name][own["terms"]]},
            **options,
        )

    def validate(arm: str, options: dict[str, Any]) -> float:
        """Accuracy on validation rows, which training looked at after its last step alone."""
        result = run(arm, "emerging_nlp", SEARCH_SEED, options, few=True)
        assert result.training is not None
        return float(result.training.best["accuracy"])

    chosen, record = search(dict.fromkeys(("sciprompt", "names alone"), RATES), validate)
    sets: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else SETS:
        parts: dict[str, Any] = {}
        for part, arms in (("zero-shot", ZERO), ("5-shot", FEW)):
            parts[part] = {}
            for arm in arms:
                few = part == "5-shot"
                options = chosen.get(arm, chosen["sciprompt"]) if few else {}
                runs = [run(arm, name, seed, options, few) for seed in SEEDS]
                balanced = spread([r.metrics["macro_f1"] for r in runs])
                parts[part][arm] = spread(
                    [r.metrics["accuracy"] for r in runs], options=options, macro_f1=balanced
                )
                print(name, part, arm, parts[part][arm], flush=True)
        sets[name] = {"arms": parts, "terms": counts(files[name]["kept"], name)}
    if not given.only:
        result = {"methods": ["sciprompt"], "search": record, "sets": sets, "summary": summary(sets)}
        write_result("claims", "sciprompt", "benchmarks.claims.sciprompt", result)


def classes_of(name: str) -> list[str]:
    return list(cuelight.data.read(data_file(f"text/{name}.parquet")).classes)


def term_files(folder: str, name: str) -> dict[str, str]:
    """Lists of terms: candidates of the unlabelled texts, those the filter leaves, and these permuted."""
    home = Path(folder) / "terms"
    home.mkdir(parents=True, exist_ok=True)
    files = {part: str(home / f"{name}-{part}.txt") for part in ("candidates", "kept", "permuted")}
    if not all(Path(file).exists() for file in files.values()):
        classes = classes_of(name)
        near = BiEncoder("minilm-l6", wrapping=SETS[name]["wrapping"])
        texts = [row["text"] for row in read_texts(data_file(f"text/{name}.parquet"), most=2000)]
        found = from_texts([c.replace("-", " ").replace("_", " ") for c in classes], texts, near)
        kept = [[entry for entry in own if entry[1] > 0.5] for own in found]
        for part, terms in (("candidates", found), ("kept", kept), ("permuted", kept[-1:] + kept[:-1])):
            Path(files[part]).write_text(lines(classes, terms), encoding="utf-8")
    return files


def counts(file: str, name: str) -> dict[str, int]:
    """How many terms the filter leaves the classes."""
    found = [len(own) for own in parse_lines(Path(file).read_text("utf-8"), classes_of(name))]
    return {"all": sum(found), "fewest": min(found), "most": max(found)}


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        zero, few, terms = entry["arms"]["zero-shot"], entry["arms"]["5-shot"], entry["terms"]
        sentences.append(
            f"{name} (accuracy, %; {terms['all']} terms, {terms['fewest']} to {terms['most']} a class).  Zero-shot: "
            f"{listed(zero)}.  5-shot: {listed(few)}."
        )
        for part, arms in entry["arms"].items():
            sentences.append(f"Macro-F1 {part}: {listed({arm: e['macro_f1'] for arm, e in arms.items()})}.")
        full = zero["sciprompt"]["mean"]
        plain = max(zero[arm]["mean"] for arm in ("names alone", "names alone, not calibrated"))
        worse = {arm: zero[arm]["mean"] < full for arm in ("permuted", "no filter", "not calibrated")}
        sentences.append(
            f"Zero-shot, expanded and calibrated above names alone, calibrated or not, {verdict(full > plain)}; "
            + "; ".join(f"{arm} is worse {verdict(holds)}" for arm, holds in worse.items())
            + "."
        )
        means = [few[arm]["mean"] for arm in ("sciprompt", "equal weights", "names alone")]
        sentences.append(
            f"5-shot, weighted at least equal weights {verdict(means[0] >= means[1])} ({shown(few['sciprompt'])} and "
            f"{shown(few['equal weights'])}), equal weights at least names alone {verdict(means[1] >= means[2])}; "
            f"permuted is worse {verdict(few['permuted']['mean'] < means[0])}."
        )
    return " ".join(sentences)


if __name__ == "__main__":
    main()
