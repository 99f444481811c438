"""DePT's cost claim on T5-base's shape: time and memory against prompt tuning of the full length.

The model is T5-base's configuration with random weights: only its shape matters here.  Both methods are run as
this library runs them, with text of a fixed length, batch 16, one target token.  Steps alternate in one process;
peak memory is each method's own process.

    python -m benchmarks.speed.dept_t5_base --text 128
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from transformers import T5Config, T5ForConditionalGeneration

import cuelight
from benchmarks.common import write_result
from cuelight.backbones import Backbone
from cuelight.evaluation.memory import PeakMemory
from cuelight.methods.base import Method, get_method
from cuelight.prompts.conditioning import TextBatch
from cuelight.tasks import TaskConfig, TextTask

ARMS = {
    "prompt-tuning": {"length": 100},
    "dept-60": {"length": 60},
    "dept-40": {"length": 40},
    "dept-20": {"length": 20},
}


def build() -> tuple[Backbone, TextTask]:
    """T5-base's shape with random weights, behind the tokenizer all T5 models share."""
    config = T5Config(
        vocab_size=32128,
        d_model=768,
        d_kv=64,
        d_ff=3072,
        num_layers=12,
        num_heads=12,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    tokenizer = cuelight.load_backbone("flan-t5-small").tokenizer
    host = Backbone(
        "t5-base (random weights)", T5ForConditionalGeneration(config), kind="seq2seq", tokenizer=tokenizer
    )
    return host, TextTask(host, "classification", ["negative", "positive"], config=TaskConfig(max_length=256))


def make(arm: str, host: Backbone, task: TextTask) -> Method:
    kind = get_method(arm.split("-")[0] if arm.startswith("dept") else arm)
    return kind(host, task, kind.Config(**ARMS[arm]))


def step(method: Method, optimiser: torch.optim.Optimizer, batch: TextBatch) -> None:
    method.loss(batch).backward()
    optimiser.step()
    optimiser.zero_grad()


def batch_of(length: int, size: int) -> TextBatch:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(10, 30000, (size, length), generator=generator)
    answer = torch.randint(10, 30000, (size, 1), generator=generator)
    return TextBatch(text, torch.ones_like(text), answer, torch.ones_like(answer))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=int, default=128, help="text tokens a row")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    host, task = build()
    batch = batch_of(arguments.text, arguments.batch)
    if arguments.memory_of:
        method = make(arguments.memory_of, host, task)
        optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3)
        with PeakMemory(torch.device("cpu")) as peak:
            for _ in range(2):
                step(method, optimiser, batch)
        print(json.dumps(peak.bytes))
        return
    methods = {arm: make(arm, host, task) for arm in ARMS}
    optimisers = {arm: torch.optim.AdamW(m.parameters(), lr=1e-3) for arm, m in methods.items()}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(arguments.pairs + 1):
        for arm in ARMS:
            begun = time.perf_counter()
            step(methods[arm], optimisers[arm], batch)
            if turn:  # the first turn warms up
                times[arm].append(time.perf_counter() - begun)
    peaks = {}
    for arm in ARMS:
        command = [sys.executable, "-m", "benchmarks.speed.dept_t5_base", *sys.argv[1:], "--memory-of", arm]
        peaks[arm] = int(
            subprocess.run(command, capture_output=True, text=True, check=True)
            .stdout.strip()
            .splitlines()[-1]
        )
    base = "prompt-tuning"
    table = {
        arm: {
            "tokens": arguments.text + len(methods[arm].prompt),
            "trainable": methods[arm].trainable,
            "time_ratio": statistics.median(a / b for a, b in zip(times[arm], times[base], strict=True)),
            "memory_ratio": peaks[arm] / peaks[base],
            "step_seconds": statistics.median(times[arm]),
            "peak_memory_mb": round(peaks[arm] / 1e6),
        }
        for arm in ARMS
    }
    shown = "; ".join(
        f"m = {ARMS[a]['length']}: time {t['time_ratio']:.2f}, memory {t['memory_ratio']:.2f}"
        for a, t in table.items()
        if a != base
    )
    summary = (
        f"T5-base's shape, {arguments.text} text tokens, batch {arguments.batch}, against prompt tuning of 100 tokens "
        f"(ratios of step time and of the process's peak memory, weights included): {shown}."
    )
    print(json.dumps(table, indent=1))
    write_result(
        "speed",
        "dept-t5-base",
        "benchmarks.speed.dept_t5_base",
        {"methods": ["dept"], "arms": table, "summary": summary},
    )


if __name__ == "__main__":
    main()
