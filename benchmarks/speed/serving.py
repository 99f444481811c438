"""Many tenants on one backbone: tokens per second of learned prompts against LoRA.

One batch of 16 texts, spread over 1, 4 or 16 tenants, each with weights of its own; 32 new tokens, greedy.  Prompts
(IAPT's generators, and 20 free vectors) run as `cuelight.Pool` runs them, every row behind its own.  LoRA (rank 8 on query
and value, not merged) runs in PEFT: all rows through the one adapter when there is one tenant, by PEFT's mixed-adapter
batches (``adapter_names``) when there are more.  Arms take turns; medians of paired ratios.

    python -m benchmarks.speed.serving
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import peft
import torch

import cuelight
from benchmarks.common import write_result
from cuelight.methods.base import get_method
from cuelight.prompts.conditioning import Condition, generate, pack
from cuelight.tasks import TaskConfig, TextTask

ROWS, NEW = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    host = cuelight.load_backbone(arguments.backbone)
    task = TextTask(host, "generation", (), config=TaskConfig(max_length=64))
    rows = cuelight.data.read("film-reviews", max_train=ROWS, max_validation=10, max_test=10).train
    items = task.encode([{"text": row["text"], "targets": ["x"]} for row in rows])
    batch = task.collate([type(i)(i.text, []) for i in items])

    def conditions(name: str, options: dict[str, Any], tenants: int) -> list[Condition]:
        kind = get_method(name)
        found = []
        for seed in range(tenants):
            method = kind(host, task, kind.Config(**options, init_seed=seed)).eval().requires_grad_(False)
            with torch.no_grad():
                found.append(method.condition(batch))
        return found

    def prompts(made: list[Condition]) -> None:
        each = [made[k % len(made)] for k in range(ROWS)]
        condition = made[0] if len(made) == 1 else Condition(rows=each)
        generate(host, batch, condition, max_new_tokens=NEW, min_new_tokens=NEW)

    adapted = peft.get_peft_model(
        copy.deepcopy(host.model),
        peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        "0",
    )
    for k in range(1, ROWS):
        adapted.add_adapter(
            str(k), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
    adapted.eval()
    ids, mask = pack(batch.text, batch.text_mask, left=True)

    @torch.no_grad()
    def lora(tenants: int) -> None:
        names = {} if tenants == 1 else {"adapter_names": [str(k % tenants) for k in range(ROWS)]}
        adapted.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=host.tokenizer.pad_token_id,
            **names,
        )

    table: dict[str, Any] = {}
    for tenants in (1, 4, 16):
        made = {
            "iapt": conditions("iapt", {"length": 4}, tenants),
            "prompt-tuning": conditions("prompt-tuning", {"length": 20}, tenants),
        }
        seconds: dict[str, list[float]] = {"iapt": [], "prompt-tuning": [], "lora": []}
        for turn in range(arguments.turns + 1):
            for arm, times in seconds.items():
                begun = time.perf_counter()
                if arm == "lora":
                    lora(tenants)
                else:
                    prompts(made[arm])
                if turn:  # the first turn warms up
                    times.append(time.perf_counter() - begun)
        table[str(tenants)] = {
            arm: {
                "tokens_per_second": ROWS * NEW / statistics.median(times),
                "over_lora": statistics.median(b / a for a, b in zip(times, seconds["lora"], strict=True)),
            }
            for arm, times in seconds.items()
        }
        print(tenants, table[str(tenants)], flush=True)
    shown = "; ".join(
        f"{tenants} tenant{'s' if tenants != '1' else ''}: IAPT {entry['iapt']['over_lora']:.2f}, prompt tuning "
        f"{entry['prompt-tuning']['over_lora']:.2f}"
        for tenants, entry in table.items()
    )
    holds = "holds" if all(table[n]["iapt"]["over_lora"] > 1 for n in ("4", "16")) else "fails"
    summary = (
        f"{host.id}, {ROWS} rows, {NEW} new tokens: tokens per second over those of LoRA with as many tenants: {shown}; "
        f"IAPT faster than LoRA with several tenants {holds}."
    )
    result = {"methods": ["iapt"], "tenants": table, "summary": summary}
    write_result("speed", "serving", "benchmarks.speed.serving", result)


if __name__ == "__main__":
    main()
