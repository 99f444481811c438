"""What the claims on 16 rows a class share: the draws of LM-BFF, their templates, and figures of one run.

The rows are those of the literature (`fewshot16_s13` and so on, 16 a class to learn from and 16 to choose by), so that
figures can be set beside it; unlabelled texts are those of the training split.  Rates are chosen on the held-out rows of a
draw that is not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cuelight
from benchmarks.claims.grid import Options, listed, remembered, search, spread
from benchmarks.common import data_file, write_result

DRAWS = (13, 21, 42)
SEARCH_DRAW = 100

TASKS: dict[str, dict[str, Any]] = {
    "subj": {
        "template": "{text} This is {mask}.",
        "label_words": {"subjective": "subjective", "objective": "objective"},
    },
    "trec": {"template": "{mask}: {text}"},
    "sst2": {
        "template": "{text} It was {mask}.",
        "label_words": {"negative": "terrible", "positive": "great"},
    },
    "mrpc": {
        "template": "{text} {mask}, {text_b}",
        "label_words": {"not_equivalent": "no", "equivalent": "yes"},
    },
}
"""Templates and words of LM-BFF and PCP; TREC's classes speak for themselves."""


def learn(
    method: str,
    name: str,
    draw: int,
    *,
    backbone: Any,
    unlabelled: bool = False,
    max_test: int = 300,
    **options: Any,
) -> cuelight.Run:
    """``method`` on one draw of ``name``; its last state is kept, the held-out rows are looked at once."""
    file = data_file(f"text/{name}.parquet")
    if unlabelled:
        options["unlabelled"] = file
    return cuelight.tune(
        method,
        backbone=backbone,
        data=file,
        train_split=f"fewshot16_s{draw}_train",
        validation_split=f"fewshot16_s{draw}_dev",
        max_test=max_test,
        max_length=48,
        seed=draw,
        evaluate_every=10**6,
        keep="last",
        **{**TASKS[name], **options},
    )


def figures(run: cuelight.Run) -> dict[str, float]:
    """Figures on the test rows, and accuracy on the held-out rows, at which only the search looks."""
    held_out = run.training.best.get("accuracy", 0.0) if run.training else 0.0
    return {"accuracy": run.metrics["accuracy"], "macro_f1": run.metrics["macro_f1"], "held_out": held_out}


def table(
    name: str,
    folder: str,
    sets: Mapping[str, Sequence[str]],
    grids: Mapping[str, Sequence[Options]],
    measure: Callable[[str, str, int, Options], dict[str, Any]],
    summary: Callable[[dict[str, Any]], str],
    *,
    metric: str = "accuracy",
    draws: Sequence[int] = DRAWS,
    search_draw: int = SEARCH_DRAW,
) -> None:
    """Measure every arm on every data set and draw; the result is written anew after every data set.

    Args:
        sets: for every data set its arms.
        grids: options to choose from on the first data set; an arm without takes those of the first.
        measure: ``(arm, data set, draw, options)`` to figures; options are chosen by ``held_out``, ``metric`` is reported.
    """
    first = next(iter(sets))

    def known(arm: str, data: str, draw: int, options: Options) -> dict[str, Any]:
        return remembered(folder, [data, arm, draw, options], lambda: measure(arm, data, draw, options))

    chosen, record = search(
        grids, lambda arm, options: float(known(arm, first, search_draw, options)["held_out"])
    )
    results: dict[str, Any] = {}
    for data, arms in sets.items():
        entries: dict[str, Any] = {}
        for arm in arms:
            options = chosen.get(arm, next(iter(chosen.values())))
            found = [known(arm, data, draw, options) for draw in draws]
            more = {key: spread([f[key] for f in found]) for key in found[0] if key != metric}
            entries[arm] = spread([f[metric] for f in found], options=options, **more)
            print(data, listed({arm: entries[arm]}), flush=True)
        results[data] = {"arms": entries}
        result = {"methods": [name], "search": record, "draws": list(draws), "sets": results}
        write_result("claims", name, f"benchmarks.claims.{name}", {**result, "summary": summary(results)})
