"""PromptQuine's speed: scored prompts a second, against a plain loop over the same prompts and rows.

Children of one generation, on 16 rows of SST-2 (the paper's 8 a class) and 8 of AG's News, texts of at most 32 tokens.
``generate`` asks transformers for one token of each filled prompt and reads the label words' scores from it; ``forward``
runs the model on it and reads the last position, or, where words have several tokens, runs it on each word's own
continuation; ``batches`` is ``forward`` with all rows of a prompt, padded, at a time.  Ours reads what prompts have in
common at their beginning once, batches rows over candidates, and takes only the scores that are asked for from the head.
Seconds are the process's own (of one core), medians of rounds that alternate, so that other work on the machine does
not count.

    python -m benchmarks.speed.promptquine
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import cuelight
from benchmarks.common import data_file, write_result
from cuelight.methods.search import promptquine as quine
from cuelight.methods.text_prompt import margin_rewards
from cuelight.tasks import TaskConfig, make_task
from cuelight.tasks.text_prompt import few_shot, fill, split


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    host = cuelight.load_backbone(given.backbone)
    for name, shots, each in (("sst2", 1, 8), ("sst2", 4, 8), ("ag_news", 1, 2)):
        rows.append(measured(host, name, shots, each, given.candidates, given.rounds))
        print(rows[-1], flush=True)
    write_result(
        "speed", "promptquine", "benchmarks.speed.promptquine", {"rows": rows, "summary": summary(rows)}
    )


def measured(host: Any, name: str, shots: int, each: int, candidates: int, rounds: int) -> dict[str, Any]:
    """Scored prompts a second of all arms: ``shots`` solved rows a class, scored on ``each`` rows a class."""
    splits = cuelight.data.read(data_file(f"text/{name}.parquet"), shots=16, max_test=10)
    task = make_task(host, splits, TaskConfig(max_length=32))
    items = task.encode(splits.train)
    by_class = [[i for i in items if i.label == label] for label in range(len(task.classes))]
    shown = [i for own in by_class for i in own[:shots]]
    scored = [i for own in by_class for i in own[-each:]]
    gold = np.array([item.label for item in scored])
    pieces = split(few_shot(task, [i.row for i in shown]), ("text",), host.tokenizer)
    words = [task.continuation(word) for word in task.words]
    firsts, single = [ids[0] for ids in words], all(len(ids) == 1 for ids in words)
    generation: list[list[str]] = []

    def score(prompts: Any, floor: float | None = None) -> list[float]:
        generation.append(list(prompts))
        return [0.0] * len(prompts)

    config = quine.SearchConfig(max_prompts=1 + candidates * (rounds + 1), offspring=candidates, population=4)
    quine.evolve(pieces, score, config, np.random.default_rng(0))
    batches = [part for part in generation[1:] if len(part) == candidates]

    def ids_of(prompt: str, item: Any) -> torch.Tensor:
        return torch.tensor([host.tokenizer(fill(prompt, item.row, task)).input_ids])

    def behind(logits: torch.Tensor, start: int, word: list[int]) -> float:
        """The log-likelihood of ``word`` whose first token is read at ``start``."""
        scores = logits[start : start + len(word)].log_softmax(-1)
        return float(scores[torch.arange(len(word)), torch.tensor(word)].sum())

    def reward(table: list[Any]) -> float:
        return float(margin_rewards(np.array(table), gold).mean())

    @torch.no_grad()
    def by_generate(prompts: list[str]) -> list[float]:
        options = {
            "max_new_tokens": 1,
            "do_sample": False,
            "output_scores": True,
            "return_dict_in_generate": True,
        }

        def row(prompt: str, item: Any) -> Any:
            ids = ids_of(prompt, item)
            found = host.model.generate(
                ids, attention_mask=torch.ones_like(ids), pad_token_id=host.tokenizer.pad_token_id, **options
            )
            return found.scores[0][0].log_softmax(-1)[firsts].numpy()

        return [reward([row(prompt, item) for item in scored]) for prompt in prompts]

    @torch.no_grad()
    def by_forward(prompts: list[str]) -> list[float]:
        def row(prompt: str, item: Any) -> Any:
            ids = ids_of(prompt, item)
            if single:
                return host.model(ids).logits[0, -1].log_softmax(-1)[firsts].numpy()
            read = [torch.cat([ids, torch.tensor([word])], 1) for word in words]
            return [
                behind(host.model(r).logits[0], ids.shape[1] - 1, w) for r, w in zip(read, words, strict=True)
            ]

        return [reward([row(prompt, item) for item in scored]) for prompt in prompts]

    @torch.no_grad()
    def by_batches(prompts: list[str]) -> list[float]:
        found = []
        for prompt in prompts:
            ids = [ids_of(prompt, item)[0] for item in scored]
            table = np.zeros((len(ids), len(words)))
            for c, word in enumerate([[]] if single else words):
                rows = [torch.cat([own, torch.tensor(word, dtype=torch.long)]) for own in ids]
                batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
                logits = host.model(batch, attention_mask=(batch != 0).long()).logits
                for k, own in enumerate(ids):
                    if single:
                        table[k] = logits[k, len(own) - 1].log_softmax(-1)[firsts].numpy()
                    else:
                        table[k, c] = behind(logits[k], len(own) - 1, word)
            found.append(reward(table))
        return found

    method = quine.PromptQuine(host, task, quine.PromptQuineConfig(cache=False))
    arms: dict[str, Callable[[list[str]], list[float]]] = {
        "ours": lambda prompts: list(method.quality(prompts, scored, "reward")),
        "batches": by_batches,
        "forward": by_forward,
    }
    if single:
        arms["generate"] = by_generate
    list(method.quality(batches[-1][:1], scored, "reward"))  # what is done once
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    apart = 0.0
    for prompts in batches[:rounds]:
        values = {}
        for arm, run in arms.items():
            began = time.process_time()
            values[arm] = run(prompts)
            seconds[arm].append(time.process_time() - began)
        apart = max(apart, *(float(np.abs(np.subtract(values["ours"], v)).max()) for v in values.values()))
    return {
        "backbone": host.id,
        "data": name,
        "shots": shots,
        "tokens": len(pieces),
        "rows": len(scored),
        "prompts_a_second": {arm: round(candidates / statistics.median(s), 3) for arm, s in seconds.items()},
        "times_as_fast_as": {
            arm: round(statistics.median(a / b for a, b in zip(s, seconds["ours"], strict=True)), 2)
            for arm, s in seconds.items()
            if arm != "ours"
        },
        "largest_difference_of_rewards": apart,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """What the figures say, from the figures alone."""
    parts = []
    for row in rows:
        ratios, own = row["times_as_fast_as"], row["prompts_a_second"]["ours"]
        parts.append(
            f"{row['data']} with {row['shots']} solved rows a class ({row['tokens']} tokens), scored on {row['rows']}: "
            f"{own:.2f} prompts a second of a core, "
            + ", ".join(f"{ratio:.1f} times {arm}" for arm, ratio in ratios.items())
        )
    least = [min(v for arm, v in r["times_as_fast_as"].items() if arm != "batches") for r in rows]
    verdicts = [
        f"{'holds' if value >= 5 else 'fails'} ({value:.1f}) on {r['data']} with {r['shots']}"
        for value, r in zip(least, rows, strict=True)
    ]
    return (
        f"{rows[0]['backbone']}.  {'; '.join(parts)}.  At least 5 times a plain loop: {', '.join(verdicts)}."
    )


if __name__ == "__main__":
    main()
