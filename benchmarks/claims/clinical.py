"""Clinical prompt learning's claims: with the model frozen a prompt is at least a head at as many trained values.

Medical Abstracts (5 kinds of disease), on minilm-mlm (a masked model of 23 M): 16 rows a class and all 1,472, three seeds, which
draw the rows; accuracy and macro-F1 on 200 test rows, 64 tokens of an abstract.  40 and 80 steps of
8.  The template is the paper's with other words.  Rates are chosen for prompts and for heads among as many, on validation
rows drawn by another seed.

    python -m benchmarks.claims.clinical            # goes on where it was interrupted

Frozen: words, 20 soft tokens and a mix of words and soft words, each with label words and with a vector a class; heads as wide
as spend what the mix does, of width 2 and of 768.  As released: the masked-LM head's dense part learns too.  Tuned: the mix
and the head with all weights.  Controls with 16 rows a class: a template of unrelated words, a verbalizer that reads the
text's start, random vectors that stay.
"""

from __future__ import annotations

from typing import Any

import cuelight
from benchmarks.claims.draws import compared, figures, joined, table
from benchmarks.claims.grid import SEARCH_SEED, SEEDS, Options, arguments_of, shown, verdict
from benchmarks.common import data_file

TEMPLATES = {
    "words": "{text} The patient should go to the department of {mask}.",
    "soft": "{soft*20} {text} {mask}",
    "mix": "{text} The {soft:patient} should {soft:go to} the department of {mask}.",
    "unrelated": "{text} The {soft:green} piano will {soft:walk under} some window and {mask}.",
}
LABEL_WORDS = {
    "neoplasms": "cancer",
    "digestive system diseases": "stomach",
    "nervous system diseases": "brain",
    "cardiovascular diseases": "heart",
    "general pathological conditions": "disease",
}
HEAD: Options = {"form": "head", "template": TEMPLATES["mix"]}


def _prompt(template: str, verbalizer: str, **more: Any) -> Options:
    return {"template": TEMPLATES[template], "verbalizer": verbalizer, **more}


PAIRS = {
    f"{template} + {'words' if verbalizer == 'manual' else 'vectors'}": _prompt(template, verbalizer)
    for template in ("words", "soft", "mix")
    for verbalizer in ("manual", "soft")
}
BEST = "mix + vectors"
HEADS = "head, as many values"
ARMS: dict[str, Options] = {
    BEST: PAIRS[BEST],
    HEADS: HEAD,
    "words + vectors": PAIRS["words + vectors"],
    "head of 768": {**HEAD, "head_width": 768},
    **PAIRS,
    "head of 2": {**HEAD, "head_width": 2},
    "as released": _prompt("mix", "soft", freezing="as_released", model_rate=1e-3),
    "unrelated words": _prompt("unrelated", "soft"),
    "reads the start": _prompt("mix", "soft", reads="start"),
    "fixed vectors": _prompt("mix", "soft", start="fixed"),
    "tuned, mix + vectors": _prompt("mix", "soft", model="tuned", model_rate=1e-4),
    "tuned, head of 768": {**HEAD, "head_width": 768, "model": "tuned", "model_rate": 1e-4},
}
CONTROLS = ("unrelated words", "reads the start", "fixed vectors")
REGIMES = {"16 a class": list(ARMS), "all rows": list(ARMS)[:4]}
RATES: dict[str, list[Options]] = {
    BEST: [{"template_rate": t, "verbalizer_rate": v} for t, v in ((3e-3, 3e-3), (0.03, 3e-3), (0.03, 0.03))],
    HEADS: [{"head_rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
}


def main() -> None:
    given = arguments_of(__doc__, "clinical", steps=40)
    host = cuelight.load_backbone("minilm-mlm")

    def measure(arm: str, regime: str, seed: int, options: Options) -> dict[str, Any]:
        few = regime == "16 a class"
        run = cuelight.tune(
            "clinical",
            backbone=host,
            data=data_file("text/medical_abstracts.parquet"),
            seed=seed,
            max_validation=100,
            max_test=200,
            max_length=64,
            label_words=LABEL_WORDS,
            word_score="first",
            steps=given.steps if few else 2 * given.steps,
            batch_size=8,
            evaluate_every=10**6,
            keep="last",
            **({"shots": 16} if few else {}),
            **{**options, **ARMS[arm]},
        )
        return {**figures(run), "trained": float(run.trainable)}

    table(
        "clinical",
        given.folder,
        REGIMES,
        RATES,
        measure,
        summary,
        draws=SEEDS,
        search_draw=SEARCH_SEED,
        like={arm: HEADS for arm in ARMS if "head" in arm},
    )


def summary(regimes: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for regime, entry in regimes.items():
        arms = entry["arms"]
        if not arms:
            continue
        by_size = sorted(arms.items(), key=lambda entry: entry[1]["trained"]["mean"])
        rows = ", ".join(f"{arm} {int(f['trained']['mean']):,} values {shown(f)}" for arm, f in by_size)
        sentences += [
            f"medical_abstracts, {regime} (accuracy, %, by trained values): {rows}.",
            compared(arms, BEST, "at least", HEADS),
            compared(arms, BEST, "at least", "head of 768"),
        ]
        tuned = [arm for arm in arms if arm.startswith("tuned")]
        if len(tuned) == 2:
            frozen_gap, tuned_gap = (
                abs(arms[a]["mean"] - arms[b]["mean"]) for a, b in ((BEST, "head of 768"), tuned)
            )
            sentences.append(
                f"The gap to a head of 768 is smaller with the model tuned {verdict(tuned_gap < frozen_gap)} "
                f"({100 * frozen_gap:.1f} and {100 * tuned_gap:.1f})."
            )
        if set(PAIRS) <= set(arms):
            top = max(PAIRS, key=lambda arm: arms[arm]["mean"])
            sentences.append(f"Of the pairs {BEST} is best {verdict(top == BEST)} (best: {top}).")
        sentences += [compared(arms, control, "below", BEST) for control in CONTROLS]
    return joined(sentences)


if __name__ == "__main__":
    main()
