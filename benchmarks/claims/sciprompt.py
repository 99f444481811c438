"""SciPrompt's claims: zero-shot, expanded and calibrated above names alone; with 5 rows a class, weights above no weights.

Emerging NLP (21 topics of abstracts, the paper's own set) and SciCite (3 intents of citations), on minilm-mlm (a masked
model of 23 M); three seeds, which draw the rows and the texts that calibrate; accuracy on 150 test rows.

    python -m benchmarks.claims.sciprompt            # goes on where it was interrupted

Terms come from the texts of the training split, labels unseen (2,000 at most; 64 of them calibrate): the candidates are
found once a data set and given to every arm as a list, which filters them itself.  ``permuted`` has what the filter left,
with every class's terms moved to the next class.  Zero-shot nothing learns; with 5 rows a class the model is tuned, 30
steps of 8 at 2e-4.  No option is searched for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cuelight
from benchmarks.claims.draws import compared, figures, joined, table
from benchmarks.claims.grid import SEEDS, Options, arguments_of, listed
from benchmarks.common import data_file
from cuelight.data.texts import read_texts
from cuelight.tasks.terms import BiEncoder, from_texts, lines, parse_lines

FIELD = "The field of this study is related to"
SETS: dict[str, dict[str, Any]] = {
    # A citation's intent is no field of study: its terms are compared bare.
    "emerging_nlp": {
        "template": f"{FIELD}: {{mask}}. {{text}}",
        "wrapping": f"{FIELD} {{term}}",
    },
    "scicite": {
        "template": "This sentence is about the {mask}. {text}",
        "wrapping": "{term}",
    },
}
ARMS: dict[str, Options] = {
    "sciprompt": {},
    "names alone": {"expand": False},
    "equal weights": {"weights": "equal"},
    "permuted": {"filter": False, "terms": "permuted"},
    "not calibrated": {"calibrate": "none"},
    "names alone, not calibrated": {"expand": False, "calibrate": "none"},
    "no filter": {"filter": False},
    "soft": {"verbalizer": "soft"},
}
PARTS = {"zero-shot": list(ARMS), "5-shot": list(ARMS)[:4]}
TABLE = {f"{name}, {part}": arms for name in SETS for part, arms in PARTS.items()}
RATES = {"sciprompt": [{"model_rate": 2e-4}]}


def main() -> None:
    given = arguments_of(__doc__, "sciprompt", steps=30)
    hosts = {name: cuelight.load_backbone(name) for name in ("minilm-mlm", "minilm-l6")}
    files = {name: term_files(given.folder, name) for name in SETS}

    def measure(arm: str, where: str, seed: int, options: Options) -> dict[str, Any]:
        name, part = where.split(", ")
        own = {"terms": "candidates", **ARMS[arm]}
        learning: Options = {"model": "frozen", "weights": "fixed"}
        if part == "5-shot":
            learning = {"steps": given.steps, "evaluate_every": 10**6, "keep": "last", **options}
        run = cuelight.tune(
            "sciprompt",
            backbone=hosts["minilm-mlm"],
            data=data_file(f"text/{name}.parquet"),
            seed=seed,
            shots=5,
            max_length=64,
            batch_size=8,
            unlabelled=data_file(f"text/{name}.parquet"),
            max_unlabelled=64,
            max_validation=21,
            max_test=150,
            sources=("file",),
            **{**SETS[name], **learning, **own, "terms": files[name][own["terms"]]},
        )
        return figures(run)

    print({name: counts(files[name]["kept"], name) for name in SETS}, flush=True)
    table("sciprompt", given.folder, TABLE, RATES, measure, summary, draws=SEEDS)


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
        arms = entry["arms"]
        if not arms:
            continue
        sentences.append(f"{name} (accuracy, %): {listed(arms)}.")
        if name.endswith("zero-shot"):
            sentences += [
                compared(arms, "sciprompt", "above", arm)
                for arm in ("names alone", "names alone, not calibrated")
            ]
            sentences += [
                compared(arms, arm, "below", "sciprompt")
                for arm in ("permuted", "no filter", "not calibrated")
            ]
        else:
            sentences += [
                compared(arms, "sciprompt", "at least", "equal weights"),
                compared(arms, "equal weights", "at least", "names alone"),
                compared(arms, "permuted", "below", "sciprompt"),
            ]
    return joined(sentences)


if __name__ == "__main__":
    main()
