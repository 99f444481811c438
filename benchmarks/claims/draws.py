"""What the claims on 16 rows a class share: the draws of LM-BFF, their templates, and figures of one run.

The rows are those of the literature (`fewshot16_s13` and so on, 16 a class to learn from and 16 to choose by), so that
figures can be set beside it; unlabelled texts are those of the training split.  Rates are chosen on the held-out rows of a
draw that is not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cuelight
from benchmarks.claims.grid import Options, listed, remembered, search, shown, spread, verdict
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
    max_test: int = 200,
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
    like: Mapping[str, str] | None = None,
) -> None:
    """Measure every arm on every data set and draw, first arms first; the result is written anew after every arm.

    So a run that is stopped leaves what it has reached, beside the names of the arms it has not.

    Args:
        sets: for every data set its arms.
        grids: options to choose from on the first data set; with one there is no choice.
        like: arms that take the options of another; without, those of the first in ``grids``.
        measure: ``(arm, data set, draw, options)`` to figures; options are chosen by ``held_out``, ``metric`` is reported.
        summary: a sentence for what there is; arms may be missing.
    """
    first = next(iter(sets))

    def known(arm: str, data: str, draw: int, options: Options) -> dict[str, Any]:
        return remembered(folder, [data, arm, draw, options], lambda: measure(arm, data, draw, options))

    chosen, record = search(
        {arm: grid for arm, grid in grids.items() if len(grid) > 1},
        lambda arm, options: float(known(arm, first, search_draw, options)["held_out"]),
    )
    chosen = {arm: chosen.get(arm, grid[0]) for arm, grid in grids.items()}
    results: dict[str, Any] = {data: {"arms": {}} for data in sets}
    left = [
        (data, arms[k])
        for k in range(max(map(len, sets.values())))
        for data, arms in sets.items()
        if k < len(arms)
    ]
    while left:
        data, arm = left.pop(0)
        options = chosen[(like or {}).get(arm, arm if arm in chosen else next(iter(chosen)))]
        found = [known(arm, data, draw, options) for draw in draws]
        more = {key: spread([f[key] for f in found]) for key in found[0] if key != metric}
        results[data]["arms"][arm] = spread([f[metric] for f in found], options=options, **more)
        print(data, listed({arm: results[data]["arms"][arm]}), flush=True)
        result = {
            "methods": [name],
            "search": record,
            "draws": list(draws),
            "sets": results,
            "not measured": [f"{data}: {arm}" for data, arm in left],
            "summary": summary(results) + (f"  Not measured: {len(left)} arms." if left else ""),
        }
        write_result("claims", name, f"benchmarks.claims.{name}", result)


def compared(arms: Mapping[str, Any], one: str, relation: str, other: str) -> str:
    """``one above other holds (80.1 and 79.0).``, or nothing when one of them was not measured."""
    if one not in arms or other not in arms:
        return ""
    a, b = arms[one]["mean"], arms[other]["mean"]
    holds = {"above": a > b, "at least": a >= b, "below": a < b}[relation]
    return f"{one} {relation} {other} {verdict(holds)} ({shown(arms[one])} and {shown(arms[other])})."


def joined(sentences: Sequence[str]) -> str:
    """The sentences there are, in one line."""
    return " ".join(sentence for sentence in sentences if sentence)
