"""Prompt tuning: one training step of cuelight against one of PEFT, pair by pair in one run.

Same backbone, rows, order, batch, prompt length, first prompt and optimiser.  Losses of the first ten steps must
agree; then steps alternate and the medians of the paired ratios are reported.  Peak memory is each side's own
process, its high-water mark set back after the model is loaded.

    python -m benchmarks.speed.against_peft --length 20
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from peft import PromptTuningConfig, get_peft_model

import cuelight
from benchmarks.common import write_result
from cuelight.data import read
from cuelight.evaluation.memory import PeakMemory
from cuelight.methods.base import get_method
from cuelight.prompts.conditioning import TextBatch, pack
from cuelight.tasks import TaskConfig, make_task

Step = Callable[[TextBatch], float]


def sides(backbone: str, length: int, rate: float) -> tuple[dict[str, Callable[[], Step]], list[TextBatch]]:
    """A maker of a training step for each side, and the batches both are fed."""
    host = cuelight.load_backbone(backbone)
    splits = read("film-reviews", max_train=500, max_validation=50, max_test=50)
    task = make_task(host, splits, TaskConfig(template="Review: {text}\nSentiment:"))
    rows = task.encode(splits.train)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [task.collate([rows[k] for k in order[i : i + 16]]) for i in range(0, len(order) - 16, 16)]
    kind = get_method("prompt-tuning")
    first = kind(host, task, kind.Config(length=length))

    def ours() -> Step:
        method = kind(host, task, kind.Config(length=length))
        optimiser = torch.optim.AdamW(method.parameters(), lr=rate, weight_decay=0.0)

        def step(batch: TextBatch) -> float:
            loss = method.loss(batch)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            return float(loss.detach())

        return step

    def peft() -> Step:
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
        model = get_peft_model(host.model, config).eval()
        embedding = model.prompt_encoder["default"].embedding
        with torch.no_grad():
            embedding.weight.copy_(first.prompt)
        optimiser = torch.optim.AdamW(embedding.parameters(), lr=rate, weight_decay=0.0)

        def step(batch: TextBatch) -> float:
            ids, mask = pack(
                torch.cat([batch.text, batch.answer], 1), torch.cat([batch.text_mask, batch.answer_mask], 1)
            )
            place = torch.arange(ids.shape[1])[None]
            starts = batch.text_mask.sum(1, keepdim=True)
            labels = ids.masked_fill((place < starts) | (mask == 0), -100)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            return float(loss.detach())

        return step

    return {"cuelight": ours, "peft": peft}, batches


def memory(side: str, arguments: argparse.Namespace) -> None:
    """In a process of its own: the peak of four steps of one side, printed as JSON."""
    makers, batches = sides(arguments.backbone, arguments.length, arguments.rate)
    step = makers[side]()
    with PeakMemory(torch.device("cpu")) as peak:
        for batch in batches[:4]:
            step(batch)
    print(json.dumps(peak.bytes))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--length", type=int, default=20, help="soft tokens")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--pairs", type=int, default=20, help="timed pairs of steps")
    parser.add_argument("--memory-of", choices=("cuelight", "peft"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory(arguments.memory_of, arguments)
        return

    peaks = {}
    for side in ("cuelight", "peft"):
        command = [sys.executable, "-m", "benchmarks.speed.against_peft", *sys.argv[1:], "--memory-of", side]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[side] = int(output.strip().splitlines()[-1])
    makers, batches = sides(arguments.backbone, arguments.length, arguments.rate)
    steps = {side: make() for side, make in makers.items()}
    losses = {side: [step(batch) for batch in batches[:10]] for side, step in steps.items()}
    difference = max(abs(a - b) for a, b in zip(losses["cuelight"], losses["peft"], strict=True))
    times: dict[str, list[float]] = {side: [] for side in steps}
    for pair in range(arguments.pairs):
        batch = batches[pair % len(batches)]
        for side in sorted(steps, reverse=bool(pair % 2)):
            start = time.perf_counter()
            steps[side](batch)
            times[side].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(times["cuelight"], times["peft"], strict=True))
    ratio, peak = statistics.median(ratios), peaks["cuelight"] / peaks["peft"]
    summary = (
        f"Against PEFT's prompt tuning ({arguments.backbone}, {arguments.length} soft tokens, batch 16, film-reviews): step time "
        f"{ratio:.2f}x, peak memory {peak:.2f}x, largest difference of the first ten losses {difference:.1e}."
    )
    result = {
        "methods": ["prompt-tuning"],
        "summary": summary,
        "largest_loss_difference_10_steps": difference,
        "losses": losses,
        "step_seconds_median": {side: statistics.median(t) for side, t in times.items()},
        "step_ratio_median": ratio,
        "step_ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "peak_memory_mb": {side: round(peak / 1e6) for side, peak in peaks.items()},
        "peak_memory_ratio": peak,
        "targets": {"step_ratio": 0.5, "peak_memory_ratio": 0.75, "loss_difference": 1e-4},
    }
    print(json.dumps({k: v for k, v in result.items() if k != "losses"}, indent=1))
    write_result(
        "speed",
        f"against-peft-{arguments.backbone}-{arguments.length}",
        "benchmarks.speed.against_peft",
        result,
    )


if __name__ == "__main__":
    main()
