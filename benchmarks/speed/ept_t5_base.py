"""EPT's cost claim on T5-base's shape: a training step with a short prompt against prompt tuning of the full length.

As `benchmarks.speed.dept_t5_base` (random weights: only the shape matters), with EPT of 40 and 60 short vectors, four
subspaces, and as much trained as a prompt of 100.  The paper reports training time 14 % lower.

    python -m benchmarks.speed.ept_t5_base
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.common import write_result
from benchmarks.speed.dept_t5_base import batch_of, build, step
from cuelight.methods.base import get_method

ARMS = {
    "prompt-tuning": ("prompt-tuning", {"length": 100}),
    "ept-40": ("ept", {"length": 40}),
    "ept-60": ("ept", {"length": 60}),
    "dept-60": ("dept", {"length": 60}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=int, default=128, help="text tokens a row")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    host, task = build()
    batch = batch_of(arguments.text, arguments.batch)
    methods = {arm: get_method(m)(host, task, get_method(m).Config(**o)) for arm, (m, o) in ARMS.items()}
    optimisers = {arm: torch.optim.AdamW(m.parameters(), lr=1e-3) for arm, m in methods.items()}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(arguments.pairs + 1):
        for arm in ARMS:
            begun = time.perf_counter()
            step(methods[arm], optimisers[arm], batch)
            if turn:  # the first turn warms up
                times[arm].append(time.perf_counter() - begun)
    base = times["prompt-tuning"]
    table = {
        arm: {
            "trainable": methods[arm].trainable,
            "time_ratio": statistics.median(a / b for a, b in zip(times[arm], base, strict=True)),
            "step_seconds": statistics.median(times[arm]),
        }
        for arm in ARMS
    }
    shown = ", ".join(
        f"{arm} {entry['time_ratio']:.2f}" for arm, entry in table.items() if arm != "prompt-tuning"
    )
    holds = "holds" if table["ept-40"]["time_ratio"] <= 0.86 else "fails"
    summary = (
        f"T5-base's shape, {arguments.text} text tokens, batch {arguments.batch}: step time over prompt tuning of 100 "
        f"tokens: {shown}; 14 % less at 40 vectors {holds}."
    )
    result = {"methods": ["ept"], "arms": table, "summary": summary}
    write_result("speed", "ept-t5-base", "benchmarks.speed.ept_t5_base", result)


if __name__ == "__main__":
    main()
