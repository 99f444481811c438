"""Every method's training step against the cost that can not be beaten: the frozen model's own forward and backward.

The frozen model runs over the padded batch of the method's own sequence: the same text rows and answers, with as
many more tokens before the text of every row as the method has, gradients flowing back to its input embeddings, and
scores at the answer's positions only.  A ratio below 1 is what sharing the prompt and the lines saves.  PANDA's step has
a second, forward-only pass (its teacher's), and ProMoT's is its first stage.
Steps alternate; medians of paired ratios are reported.

    python -m benchmarks.speed.against_frozen --backbone smollm2-135m
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

import cuelight
from benchmarks.common import write_result
from cuelight.data import read
from cuelight.methods.base import Data, get_method
from cuelight.prompts.conditioning import TextBatch, pack
from cuelight.tasks import TaskConfig, make_task

METHODS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"length": 20},
    "dept": {"match_length": 33, "length": 20},
    "p-tuning": {"length": 20},
    "prefix-tuning": {"length": 20},
    "lora": {},
    "ept": {"match_length": 60, "length": 20, "spaces": 2},
    "iapt": {"length": 4},
    "cpt": {"demonstrations": 4},
    "ptec": {"length": 20},
    "panda": {"transfer": "self", "dropout": 0.0},
    "promot": {"length": 20, "random_prompt": True},
}
NO_TOKENS = ("prefix-tuning", "panda", "lora")
"""Methods whose rows have no tokens before the text."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--only", default="", help="only these methods; nothing is written then")
    arguments = parser.parse_args()
    host = cuelight.load_backbone(arguments.backbone)
    splits = read("film-reviews", max_train=320, max_validation=20, max_test=20)
    task = make_task(host, splits, TaskConfig(template="Review: {text}\nSentiment:"))
    rows = task.encode(splits.train)
    batches = [task.collate(rows[k : k + 16]) for k in range(0, len(rows) - 15, 16)]
    start = torch.randn(20, host.tower.width, generator=torch.Generator().manual_seed(0)) * 0.05

    def frozen(batch: TextBatch, length: int) -> None:
        """Forward and backward of the bare model over ``length`` more tokens than the text has."""
        answers = () if host.kind == "seq2seq" else (batch.answer,)
        masks = () if host.kind == "seq2seq" else (batch.answer_mask,)
        ids, mask = pack(torch.cat([batch.text, *answers], 1), torch.cat([batch.text_mask, *masks], 1))
        extra = start.repeat(-(-length // len(start)), 1)[:length].expand(len(batch), -1, -1)
        embeddings = torch.cat([extra, host.embed(ids)], 1).requires_grad_()
        mask = torch.cat([mask.new_ones(len(batch), length), mask], 1)
        if host.kind == "seq2seq":
            logits = host.model(inputs_embeds=embeddings, attention_mask=mask, labels=batch.answer).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.answer.flatten())
        else:
            rows_, steps = torch.nonzero(batch.answer_mask, as_tuple=True)
            columns = batch.text_mask.sum(1)[rows_] + steps - 1 + length
            with host.scoring(rows_, columns):
                logits = host.model(inputs_embeds=embeddings, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(logits, batch.answer[rows_, steps])
        loss.backward()

    table = {}
    chosen = arguments.only.split(",") if arguments.only else list(METHODS)
    for name in chosen:
        options = METHODS[name]
        kind = get_method(name)
        method = kind(host, task, kind.Config(**options))
        method.prepare(Data(rows, [], list(splits.train)), 0)
        if name == "promot":
            method._enter(1)  # its first stage; the second is a full fine-tuning
        learned = [p for group in method.groups() for p in group.params.values()]
        optimiser = torch.optim.AdamW(learned, lr=1e-3)
        length = len(method.ids) if name == "cpt" else int(options.get("length", 0))
        length = 0 if name in NO_TOKENS else length
        ratios, ours, theirs = [], [], []
        for pair in range(arguments.pairs + 2):
            batch = batches[pair % len(batches)]
            begun = time.perf_counter()
            frozen(batch, length)
            between = time.perf_counter()
            method.loss(batch).backward()
            optimiser.step()
            optimiser.zero_grad()
            ended = time.perf_counter()
            if pair >= 2:  # the first two warm up
                ratios.append((ended - between) / (between - begun))
                ours.append(ended - between)
                theirs.append(between - begun)
        table[name] = {
            "options": options,
            "ratio_median": statistics.median(ratios),
            "step_seconds": statistics.median(ours),
            "frozen_seconds": statistics.median(theirs),
        }
        print(name, json.dumps(table[name]), flush=True)
    shown = ", ".join(f"{name} {entry['ratio_median']:.2f}" for name, entry in table.items())
    summary = (
        f"Training step over the frozen model's own forward and backward pass over the padded batch "
        f"(the method's tokens in every row), {host.id}, batch 16: {shown}."
    )
    result = {
        "methods": list(METHODS),
        "ratios": table,
        "targets": {"prompt-tuning": 1.10, "others without a second pass": 1.15},
        "summary": summary,
    }
    if not arguments.only:
        write_result("speed", f"against-frozen-{host.id}", "benchmarks.speed.against_frozen", result)


if __name__ == "__main__":
    main()
