"""ProMoT's claim: at like accuracy on the target, fine-tuning behind a learned prompt forgets less than fine-tuning alone.

flan-t5-small; targets sst2 and rte, 600 training rows, 25 steps of 8 for the prompt and 25 for the model (fine-
tuning: 25), three seeds. Held out, 40 rows each: with one example in the context question types (trec), customer
reviews (cr) and duplicate questions (qqp), on which this model is above chance; and five short word tasks (exact
match), which also show the rate of answers in the target's words.

    python -m benchmarks.claims.promot            # goes on where it was interrupted

Arms: the pretrained model, full-finetuning, promot, promot with a solved example before every text, and the paper's
controls: prompt and model at once (joint), a random prompt. On sst2 also with rte beside it: fine-tuning on both, promot
with its second stage mixed and one task after the other. Also the cosine between the gradients of true and of permuted
answers at the pretrained weights, without a prompt and behind the learned one. Models are not kept, only their
figures. Rates are fixed, not searched.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

import cuelight
from benchmarks.claims.grid import SEEDS, arguments_of, listed, spread, verdict
from benchmarks.claims.iapt import rows as word_tasks
from benchmarks.common import data_file, write_result
from cuelight.cache import atomic_write
from cuelight.evaluation.forgetting import format_rate, gradient_alignment
from cuelight.prompts.conditioning import Condition

TEMPLATES = {
    "sst2": "Review: {text}\nIs it positive or negative?",
    "rte": "{text} question: {text_b} Is it true or false?",
    "trec": "Question: {text}\nThe question asks for:",
    "cr": "{text}\nIs this review positive or negative?",
    "qqp": "Question 1: {text} Question 2: {text_b} Are they duplicates?",
}
WORDS = {"rte": {"entailment": "true", "not_entailment": "false"}}
HELD_OUT = ("trec", "cr", "qqp", "words")
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrained": ("zero-shot", {}),
    "full-finetuning": ("full-finetuning", {"learning_rate": 3e-4}),
    "promot": ("promot", {}),
    "one-shot": ("promot", {"one_shot": True}),
    "joint": ("promot", {"joint": True}),
    "random": ("promot", {"random_prompt": True}),
}
SEVERAL: dict[str, tuple[str, dict[str, Any]]] = {
    "both, full-finetuning": ("promot", {"random_prompt": True, "drop_prompt": True}),
    "both, mixed": ("promot", {}),
    "both, sequential": ("promot", {"mixing": "sequential"}),
}
"""Arms with rte beside sst2; two tasks have twice the steps."""
FIGURES = ("target", "held_out", "format_rate")


def main() -> None:
    given = arguments_of(__doc__, "promot", steps=25)
    host = cuelight.load_backbone("flan-t5-small")

    def run(method: str, name: str, seed: int, **options: Any) -> cuelight.Run:
        more = {"label_words": WORDS[name]} if name in WORDS else {}
        return cuelight.tune(
            method,
            data=data_file(f"text/{name}.parquet"),
            seed=seed,
            backbone=host,
            template=TEMPLATES[name],
            max_train=600,
            max_validation=60,
            max_test=120,
            max_length=96,
            batch_size=8,
            steps=given.steps,
            evaluate_every=given.steps,
            **more,
            **options,
        )

    def elsewhere(model: Any, words: list[str], seed: int) -> dict[str, Any]:
        """What a model does on tasks it was not tuned for."""
        scores = {}
        for name in HELD_OUT[:3]:
            found = cuelight.tune(
                "in-context",
                backbone=model,
                data=data_file(f"text/{name}.parquet"),
                template=TEMPLATES[name],
                demonstrations=1,
                max_train=50,
                max_validation=10,
                max_test=40,
                max_length=96,
                seed=seed,
            )
            scores[name] = found.metrics["accuracy"]
        asked = cuelight.tune(
            "zero-shot",
            backbone=model,
            data=word_tasks("words")[1],
            template="{text}\nAnswer:",
            max_new_tokens=8,
            max_train=10,
            max_validation=10,
            max_test=40,
            seed=seed,
        )
        assert asked.predictions is not None
        scores["words"] = asked.metrics["exact_match"]
        return {
            "tasks": scores,
            "held_out": statistics.mean(scores.values()),
            "format_rate": format_rate(asked.predictions.answers, words),
        }

    def alignment(found: cuelight.Run, name: str) -> tuple[float, float]:
        """Cosines at the pretrained weights, without a prompt and behind the learned one, on 16 rows."""
        method = found.prompt.method
        start, weights = host.copy()
        splits = cuelight.data.read(
            data_file(f"text/{name}.parquet"), max_train=16, max_test=10, max_validation=10
        )
        items = method.task.encode(splits.train)
        batch = method.task.collate(items)
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
        turned = method.task.collate(
            [type(i)(i.text, items[k].answer) for i, k in zip(items, order, strict=True)]
        )

        def cosine(condition: Condition) -> float:
            def loss(permuted: bool) -> torch.Tensor:
                return method._loss(start, turned if permuted else batch, condition)

            return gradient_alignment(loss, weights)["all"]

        return cosine(Condition()), cosine(Condition(prompt=method.prompts[0].detach()))

    def measured(arm: str, name: str, seed: int) -> dict[str, Any]:
        """The figures of a run, made once."""
        file = Path(given.folder) / f"{arm.replace(', ', '-')}-{name}-{seed}-{given.steps}.json"
        if not file.exists():
            method, options = {**ARMS, **SEVERAL}[arm]
            if arm in SEVERAL:
                options = {**options, "also": data_file("text/rte.parquet"), "model_steps": 2 * given.steps}
            found = run(method, name, seed, **options)
            words = list(found.prompt.method.task.words)
            model = host if arm == "pretrained" else found.prompt.method.tuned
            figures = {"target": found.metrics["accuracy"], **elsewhere(model, words, seed)}
            if arm == "promot":
                figures["cosine"] = alignment(found, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as new:
                new.write_text(json.dumps(figures))
            print(arm, name, seed, figures, flush=True)
        return json.loads(file.read_text())

    sets: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else ("sst2", "rte"):
        arms: dict[str, Any] = {}
        for arm in [*ARMS, *(SEVERAL if name == "sst2" else ())]:
            runs = [measured(arm, name, seed) for seed in SEEDS]
            arms[arm] = {key: spread([r[key] for r in runs]) for key in FIGURES}
            arms[arm]["tasks"] = {t: spread([r["tasks"][t] for r in runs]) for t in HELD_OUT}
            if arm == "promot":
                arms[arm]["cosine"] = {
                    where: spread([r["cosine"][k] for r in runs])
                    for k, where in enumerate(("no prompt", "learned prompt"))
                }
        sets[name] = {"arms": arms}
    if not given.only:
        result = {"methods": ["promot"], "sets": sets, "summary": summary(sets)}
        write_result("claims", "promot", "benchmarks.claims.promot", result)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, entry in sets.items():
        arms = entry["arms"]
        ours, plain = arms["promot"], arms["full-finetuning"]
        near = ours["target"]["mean"] >= plain["target"]["mean"] - 0.02
        sentences += [
            f"{name}, accuracy on the target (%): {listed({a: e['target'] for a, e in arms.items()})}; mean of the "
            f"held-out tasks: {listed({a: e['held_out'] for a, e in arms.items()})}; answers in the target's words on "
            f"foreign tasks: {listed({a: e['format_rate'] for a, e in arms.items()})}.",
            f"Within 2 points of fine-tuning on the target {verdict(near)}; held-out tasks above fine-tuning "
            f"{verdict(ours['held_out']['mean'] > plain['held_out']['mean'])}; fewer answers in the wrong format "
            f"{verdict(ours['format_rate']['mean'] < plain['format_rate']['mean'])}.",
        ]
        controls = {a: arms[a] for a in ("joint", "random") if a in arms}
        if controls:
            worse = all(
                e["held_out"]["mean"] <= ours["held_out"]["mean"]
                and e["format_rate"]["mean"] >= ours["format_rate"]["mean"]
                for e in controls.values()
            )
            sentences.append(
                f"Joint training and a random prompt forget no less than promot {verdict(worse)}."
            )
        if "both, mixed" in arms:
            several, plain_both = arms["both, mixed"], arms["both, full-finetuning"]
            kept = several["held_out"]["mean"] > plain_both["held_out"]["mean"]
            sentences.append(f"With rte beside it, held-out tasks above fine-tuning on both {verdict(kept)}.")
        if "cosine" in ours:
            bare, behind = ours["cosine"]["no prompt"]["mean"], ours["cosine"]["learned prompt"]["mean"]
            sentences.append(
                f"Cosine of gradients with true and permuted answers at the pretrained weights: {bare:.2f} without a "
                f"prompt, {behind:.2f} behind the learned one: the prompt takes up the format {verdict(behind < bare)}."
            )
    return " ".join(sentences)


if __name__ == "__main__":
    main()
