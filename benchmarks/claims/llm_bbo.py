"""LLM-BBO's claim: shown good and bad templates, the writer does at least as well as shown good ones, and as shown none.

Two parts, both with the accuracy of CIFAR-10 class templates on dino-minilm-clip (real towers), four pictures a class.

``editor``: the writer is a stub, no language model: it strings words together, each word as likely as it is more frequent
in the good list than in the bad one (or frequent in the good one; or all alike).  It tests the loop, not an LLM.  Twenty
seeds, and beside the pictures a synthetic score: how many of ten hidden words a template has, less a little for its length.

``smollm2-135m``: the writer is that model; three seeds.  It rarely keeps the form, so steps that came to nothing are counted.

    python -m benchmarks.claims.llm_bbo              # goes on where it was interrupted

Shrunk: 20 templates to start from instead of 80, 30 steps of the editor and 6 of the model, 2 retries.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import cuelight
from benchmarks.claims.grid import SEEDS, arguments_of, listed, paired, spread, tuned, verdict
from benchmarks.common import data_file, write_result
from cuelight import lm
from cuelight.methods.search.llm_bbo import LlmBbo
from cuelight.tasks.image import TEMPLATE_SETS

ARMS: dict[str, dict[str, Any]] = {
    "good and bad": {"feedback": "good-bad"},
    "good": {"feedback": "good"},
    "random": {"feedback": "none"},
    "shuffled scores": {"feedback": "shuffled"},
}
DATA: dict[str, Any] = {"shots": 4, "max_test": 300, "image_size": 98}
POOL = tuple(dict.fromkeys(t for listed_ in TEMPLATE_SETS.values() for t in listed_))
WORDS = sorted({w for template in POOL for w in re.findall(r"[a-z-]+", template)})


def editor(seed: int) -> lm.LM:
    """The stub: reads the two lists of the question, and writes words by how much more often the good ones have them."""
    generator = np.random.default_rng(seed)

    def write(request: lm.Request) -> str:
        good, _, bad = request.text.partition("work badly")
        counts = [
            Counter(
                w
                for line in part.splitlines()
                if line.startswith("- ")
                for w in set(re.findall(r"[a-z-]+", line))
            )
            for part in (good, bad)
        ]
        weights = np.array([float(counts[0][word] - counts[1][word]) for word in WORDS])
        chances = np.exp(weights) / np.exp(weights).sum()
        words = list(generator.choice(WORDS, size=int(generator.integers(3, 8)), p=chances, replace=False))
        words.insert(int(generator.integers(1, len(words) + 1)), "{}")
        return "- " + " ".join(words)

    return lm.scripted(write, f"editor-{seed}")


def synthetic(seed: int) -> Callable[[str], float]:
    """A score that rises with hidden helpful words."""
    hidden = set(np.random.default_rng(1000 + seed).choice(WORDS, size=10, replace=False).tolist())

    def score(template: str) -> float:
        words = set(re.findall(r"[a-z-]+", template))
        return len(words & hidden) / 10 - 0.01 * len(words)

    return score


def edited(score: Callable[[str], float], seed: int, arm: str, steps: int) -> cuelight.Found:
    pool = [POOL[int(k)] for k in np.random.default_rng(seed).permutation(len(POOL))[:20]]
    return cuelight.search(
        "llm-bbo", score, pool=pool, lm=editor(seed), seed=seed, steps_of_search=steps, retries=0, **ARMS[arm]
    )


def main() -> None:
    given = arguments_of(__doc__, "llm_bbo", steps=30, seeds=20, written=6)
    host = cuelight.load_backbone("dino-minilm-clip")
    data = data_file("vision/cifar10.parquet")
    parts: dict[str, Any] = {}

    found: dict[str, list[float]] = {"start": [], **{arm: [] for arm in ARMS}}
    for seed in range(given.seeds):
        for arm in ARMS:
            result = edited(synthetic(seed), seed, arm, given.steps)
            found[arm].append(result.score)
        found["start"].append(max(trial.score for trial in result.history[:20]))
    parts["editor, synthetic"] = {"arms": {arm: spread(values) for arm, values in found.items()}}
    write(parts)

    plain = tuned(given.folder, "zero-shot-clip", data, 0, backbone=host, **DATA)
    splits = cuelight.data.read(data, shots=4, max_test=300, seed=0)
    method = LlmBbo(host, plain.prompt.method.task, LlmBbo.Config())
    train, test = (method.task.encode(rows) for rows in (splits.train, splits.test))

    def on(items: list[Any]) -> Callable[[str], float]:
        return lambda template: next(iter(method.quality([template], items, "accuracy")))

    found = {"start": [], **{arm: [] for arm in ARMS}}
    tested: dict[str, list[float]] = {"start": [], **{arm: [] for arm in ARMS}}
    for seed in range(given.seeds):
        for arm in ARMS:
            result = edited(on(train), seed, arm, given.steps)
            found[arm].append(result.score)
            tested[arm].append(on(test)(result.prompt))
        first = max(result.history[:20], key=lambda trial: trial.score)
        found["start"].append(first.score)
        tested["start"].append(on(test)(first.prompt))
        print(seed, {arm: values[-1] for arm, values in found.items()}, flush=True)
    parts["editor, CIFAR-10"] = {
        "arms": {arm: spread(values) for arm, values in found.items()},
        "test": {arm: spread(values) for arm, values in tested.items()},
        "a photo of a {}.": on(test)("a photo of a {}."),
    }
    write(parts)

    found = {"start": [], **{arm: [] for arm in ARMS if arm != "shuffled scores"}}
    tested = {"zero-shot": [], **{arm: [] for arm in found if arm != "start"}}
    useless: dict[str, list[float]] = {arm: [] for arm in found if arm != "start"}
    for seed in SEEDS:
        tested["zero-shot"].append(
            tuned(given.folder, "zero-shot-clip", data, seed, backbone=host, **DATA).metrics["accuracy"]
        )
        for arm in useless:
            run = tuned(
                given.folder,
                "llm-bbo",
                data,
                seed,
                backbone=host,
                lm="smollm2-135m",
                start_size=20,
                steps_of_search=given.written,
                retries=2,
                select="fitness",
                **DATA,
                **ARMS[arm],
            )
            record = run.prompt.record["search"]
            found[arm].append(record["best"])
            tested[arm].append(run.metrics["accuracy"])
            useless[arm].append(given.written - (record["prompts"] - 20))
            print(seed, arm, record["best"], run.metrics["accuracy"], run.prompt.method.text, flush=True)
        found["start"].append(record["best_of_start"])
    parts["smollm2-135m, CIFAR-10"] = {
        "arms": {arm: spread(values) for arm, values in found.items()},
        "test": {arm: spread(values) for arm, values in tested.items()},
        "steps without a new template": {arm: spread(values) for arm, values in useless.items()},
    }
    write(parts)


def write(parts: dict[str, Any]) -> None:
    write_result(
        "claims",
        "llm_bbo",
        "benchmarks.claims.llm_bbo",
        {"methods": ["llm-bbo"], "parts": parts, "summary": summary(parts)},
    )


def summary(parts: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    sentences = []
    for name, part in parts.items():
        arms = part["arms"]
        seeds = len(next(iter(arms.values()))["values"])
        means = {arm: entry["mean"] for arm, entry in arms.items()}
        claims = {
            "good and bad at least good": means["good and bad"] >= means["good"],
            "good at least random": means["good"] >= means["random"],
            "good and bad above random": means["good and bad"] > means["random"],
            "random above the best of the start": means["random"] > means["start"],
        }
        if "shuffled scores" in means:
            claims["shuffled scores are worse"] = means["shuffled scores"] < means["good and bad"]
        apart = paired(arms["good and bad"]["values"], arms["good"]["values"])
        sentences.append(
            f"{name}, {seeds} seeds, best score in %: {listed(arms)}.  "
            + "; ".join(f"{claim} {verdict(holds)}" for claim, holds in claims.items())
            + f" (good and bad minus good, paired: {apart})."
        )
        if "test" in part:
            sentences.append(f"Test accuracy: {listed(part['test'])}.")
        if "steps without a new template" in part:
            empty = {arm: entry["mean"] for arm, entry in part["steps without a new template"].items()}
            sentences.append(
                "Steps without a new template: "
                + ", ".join(f"{arm} {count:.1f}" for arm, count in empty.items())
                + "."
            )
    return " ".join(sentences)


if __name__ == "__main__":
    main()
