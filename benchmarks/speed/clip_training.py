"""What one training run of every method that reads pictures costs: 16 pictures of each of 10 classes, built-in backbone.

Each method runs as it is by default, on dino-minilm-clip and Fashion-MNIST, twice for a few steps; the difference is
the cost of a step, the rest that of getting ready and of looking at the validation rows, and from both comes what its
default number of steps costs.  Counted is the process's own time on one core, which other work on the machine does not
change.

    CUELIGHT_DATA=... python -m benchmarks.speed.clip_training
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch

import cuelight
from benchmarks.common import data_file, write_result
from cuelight.data import Splits, read
from cuelight.methods.base import Data, get_method
from cuelight.tasks import ImageConfig, make_task

METHODS = (
    *("zero-shot-clip", "image-linear-probe", "coop", "cocoop", "vpt", "ivlp"),
    *("maple", "promptsrc", "coprompt", "kapt", "mvlpt", "mocoop", "ctp-tft", "restore"),
)
SHORT, LONG = 3, 8
LOOKS = 10  # at the validation rows, in a run
LIMIT = 300.0


def seconds(name: str, host: Any, splits: Splits, steps: int | None) -> float:
    """Process seconds of getting ready, ``steps`` steps and one look at the validation rows."""
    host.memory.clear()
    begun = time.process_time()
    options = {} if steps is None else {"steps": steps, "evaluate_every": steps}
    cuelight.tune(name, backbone=host, data=splits, **options)
    return time.process_time() - begun


def default_steps(name: str, host: Any, splits: Splits) -> int:
    """Steps of a run with the method's own defaults."""
    kind = get_method(name)
    task = make_task(host, splits, ImageConfig())
    method = kind(host, task, kind.Config())
    rows = Data(task.encode(splits.train), task.encode(splits.validation), splits.train)
    method.prepare(rows, 0)
    return sum(
        math.ceil(stage.defaults["epochs"] * math.ceil(len(rows.train) / stage.defaults["batch_size"]))
        for stage in method.stages(rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    names = parser.parse_args().methods.split(",")
    torch.set_num_threads(1)
    host = cuelight.load_backbone("dino-minilm-clip", device="cpu", progress=False)
    splits = read(data_file("vision/fashion_mnist.parquet"), shots=16, max_test=10)
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        steps = default_steps(name, host, splits)
        if not steps:
            table[name] = {"steps": 0, "run_seconds": round(seconds(name, host, splits, None), 1)}
        else:
            short, long = seconds(name, host, splits, SHORT), seconds(name, host, splits, LONG)
            step = (long - short) / (LONG - SHORT)
            ready = short - SHORT * step
            begun = time.process_time()
            cuelight.tune(name, backbone=host, data=splits, steps=2, evaluate_every=1)
            look = max(0.0, time.process_time() - begun - ready - 2 * step)
            total = ready + steps * step + (LOOKS - 1) * look
            table[name] = {"steps": steps, "step_seconds": round(step, 3), "run_seconds": round(total, 1)}
        print(name, table[name], flush=True)
    within = [name for name, row in table.items() if row["run_seconds"] <= LIMIT]
    beyond = [f"{name} ({row['run_seconds']:.0f} s)" for name, row in table.items() if name not in within]
    summary = (
        "One training run with a method's own defaults, 16 pictures of each of 10 classes (Fashion-MNIST), "
        "dino-minilm-clip, seconds of one core: "
        + ", ".join(f"{name} {row['run_seconds']:.0f}" for name, row in table.items())
        + f". Within the aim of {LIMIT:.0f} s: {len(within)} of {len(table)}"
        + (f"; beyond it {', '.join(beyond)}." if beyond else ".")
    )
    print(summary)
    write_result(
        "speed",
        "clip-training",
        "benchmarks.speed.clip_training",
        {"methods": names, "arms": table, "summary": summary},
    )


if __name__ == "__main__":
    main()
