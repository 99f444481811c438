"""ProMoT's claim: at like accuracy on the target, fine-tuning behind a learned prompt forgets less than fine-tuning alone.

flan-t5-small; targets sst2 and rte, 600 training rows, 25 steps of 8 for the prompt and 25 for the model (fine-tuning: 25),
three seeds.  Held out, one example in the context: question types (trec), news (ag_news), subjectivity (subj), paraphrase
(mrpc), 40 rows each; and the rate of answers in the target's words when short word tasks are asked (40 rows).

    python -m benchmarks.claims.promot            # goes on where it was interrupted

Arms: the pretrained model, full-finetuning, promot, and (sst2 only) prompt and model jointly.  Also the cosine between the gradients of true and of permuted answers at the pretrained weights,
without a prompt and behind the learned one.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

import cuelight
from benchmarks.claims.grid import SEEDS, arguments_of, listed, spread, tuned, verdict
from benchmarks.claims.iapt import rows as word_tasks
from benchmarks.common import data_file, write_result
from cuelight.evaluation.forgetting import format_rate, gradient_alignment
from cuelight.prompts.conditioning import Condition

TEMPLATES = {
    "sst2": "Review: {text}\nIs it positive or negative?",
    "rte": "{text} question: {text_b} Is it true or false?",
    "trec": "Question: {text}\nThe question asks for {options}:",
    "ag_news": "News: {text}\nTopic ({options}):",
    "subj": "{text}\nIs it subjective or objective?",
    "mrpc": "{text} and {text_b}\nequivalent or not equivalent?",
}
WORDS = {"rte": {"entailment": "true", "not_entailment": "false"}}
HELD_OUT = ("trec", "ag_news", "subj", "mrpc")
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "full-finetuning": ("full-finetuning", {"learning_rate": 3e-4}),
    "promot": ("promot", {}),
    "jointly": ("promot", {"joint": True}),
}
FIGURES = ("target", "held_out", "format_rate")


def main() -> None:
    given = arguments_of(__doc__, "promot", steps=25)
    host = cuelight.load_backbone("flan-t5-small")

    def run(method: str, name: str, seed: int, **options: Any) -> cuelight.Run:
        more = {"label_words": WORDS[name]} if name in WORDS else {}
        return tuned(
            given.folder,
            method,
            data_file(f"text/{name}.parquet"),
            seed,
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
        for name in HELD_OUT:
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
        return {
            "tasks": scores,
            "held_out": statistics.mean(scores.values()),
            "format_rate": format_rate(asked.predictions.answers, words),
        }

    def alignment(found: cuelight.Run) -> tuple[float, float]:
        """Cosines at the pretrained weights, without a prompt and behind the learned one, on 16 rows."""
        method = found.prompt.method
        start, weights = host.copy()
        splits = cuelight.data.read(
            data_file("text/sst2.parquet"), max_train=16, max_test=10, max_validation=10
        )
        items = method.task.encode(splits.train)
        batch = method.task.collate(items)
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
        turned = method.task.collate(
            [type(i)(i.text, items[k].answer) for i, k in zip(items, order, strict=True)]
        )

        def cosine(condition: Condition) -> float:
            def loss(permuted: bool) -> torch.Tensor:
                return method._answers(start, turned if permuted else batch, condition)

            return gradient_alignment(loss, weights)["all"]

        return cosine(Condition()), cosine(Condition(prompt=method.prompts[0].detach()))

    sets: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else ("sst2", "rte"):
        arms: dict[str, Any] = {}
        for arm, (method, options) in ARMS.items():
            if name != "sst2" and arm not in ("full-finetuning", "promot"):
                continue
            figures, cosines = [], []
            for seed in SEEDS:
                found = run(method, name, seed, **options)
                task = found.prompt.method.task
                figures.append(
                    {
                        "target": found.metrics["accuracy"],
                        **elsewhere(found.prompt.method.tuned, list(task.words), seed),
                    }
                )
                if arm == "promot" and name == "sst2":
                    cosines.append(alignment(found))
            arms[arm] = {key: spread([f[key] for f in figures]) for key in FIGURES}
            arms[arm]["tasks"] = {t: spread([f["tasks"][t] for f in figures]) for t in HELD_OUT}
            if cosines:
                arms[arm]["cosine"] = {
                    "no prompt": spread([c[0] for c in cosines]),
                    "learned prompt": spread([c[1] for c in cosines]),
                }
            print(name, arm, arms[arm], flush=True)
        words = list(run("zero-shot", name, 0).prompt.method.task.words)
        before = [
            {"target": run("zero-shot", name, seed).metrics["accuracy"], **elsewhere(host, words, seed)}
            for seed in SEEDS
        ]
        arms = {"pretrained": {key: spread([f[key] for f in before]) for key in FIGURES}, **arms}
        sets[name] = {"arms": arms}
    if not given.only:
        result = {
            "methods": ["promot"],
            "sets": sets,
            "together": together,
            "summary": summary(sets, together),
        }
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
        if "cosine" in ours:
            bare, behind = ours["cosine"]["no prompt"]["mean"], ours["cosine"]["learned prompt"]["mean"]
            sentences.append(
                f"Cosine of gradients with true and permuted answers at the pretrained weights: {bare:.2f} without a "
                f"prompt, {behind:.2f} behind the learned one: the prompt takes up the format {verdict(behind < bare)}."
            )
    return " ".join(sentences)


if __name__ == "__main__":
    main()
