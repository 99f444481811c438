"""PANDA's claims: distilling from a transferred prompt beats starting from it, and the metric foresees which source helps.

minilm-l6 (a text encoder of 22 M): sources sst2, qnli, subj, ag_news; targets mrpc, cola, trec; 600 training rows, 40
steps of 16, three seeds, 250 test rows. A source's prompt is learned once per seed and used for all targets.

    python -m benchmarks.claims.panda            # goes on where it was interrupted

For every pair: vanilla transfer (pot) and panda. For every target: the plain prompt, and as controls a teacher that
learned the target without a source (self), and one that learned nothing (untrained). The metric is the cosine of task
embeddings, its rival the cosine of the mean prompt vectors; both are ranked against the gain of vanilla transfer over
the plain prompt (Spearman over the pairs, seeds averaged).
"""

from __future__ import annotations

import statistics
from typing import Any

from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity

import cuelight
from benchmarks.claims.grid import SEARCH_SEED, SEEDS, arguments_of, listed, search, spread, tuned, verdict
from benchmarks.common import data_file, write_result

SOURCES = ("sst2", "qnli", "subj", "ag_news")
TARGETS = ("mrpc", "cola", "trec")
GRID = {"plain": [{"learning_rate": rate} for rate in (0.01, 0.03)]}
GRID["panda"] = [{**entry, "distill": weight} for entry in GRID["plain"] for weight in (0.1, 1.0)]


def main() -> None:
    given = arguments_of(__doc__, "panda", steps=40)
    host = cuelight.load_backbone("minilm-l6")

    def run(name: str, seed: int, options: dict[str, Any], **more: Any) -> cuelight.Run:
        return tuned(
            given.folder,
            "panda",
            data_file(f"text/{name}.parquet"),
            seed,
            backbone=host,
            max_train=600,
            max_validation=150,
            max_test=250,
            max_length=64,
            batch_size=16,
            steps=given.steps,
            evaluate_every=given.steps,
            **options,
            **more,
        )

    def source(name: str, seed: int, options: dict[str, Any]) -> str:
        folder = run(name, seed, {**options, "transfer": "none"}).folder
        assert folder is not None
        return str(folder)

    def validate(arm: str, options: dict[str, Any]) -> float:
        if arm == "plain":
            found = run("trec", SEARCH_SEED, options, transfer="none")
        else:
            plain = {"learning_rate": options["learning_rate"]}
            found = run("trec", SEARCH_SEED, options, source=source("sst2", SEARCH_SEED, plain))
        assert found.training is not None
        return float(found.training.best["accuracy"])

    chosen, record = search(GRID, validate)
    plain, ours = chosen["plain"], chosen["panda"]
    sets: dict[str, Any] = {}
    for target in given.only.split(",") if given.only else TARGETS:

        def accuracy(options: dict[str, Any], name: str = target, **more: Any) -> list[float]:
            return [run(name, seed, options, **more).metrics["accuracy"] for seed in SEEDS]

        arms: dict[str, Any] = {
            "plain": spread(accuracy(plain, transfer="none")),
            "self": spread(accuracy(ours, transfer="self")),
            "untrained": spread(accuracy(ours, transfer="untrained")),
        }
        pairs: dict[str, Any] = {}
        for name in SOURCES:
            pot, taught, near, rival = [], [], [], []
            for seed in SEEDS:
                folder = source(name, seed, plain)
                pot.append(run(target, seed, plain, transfer="pot", source=folder).metrics["accuracy"])
                found = run(target, seed, ours, source=folder)
                taught.append(found.metrics["accuracy"])
                near.append(float(found.prompt.method.similarity[0]))
                own = run(target, seed, {**plain, "transfer": "none"}).prompt.method.student.prompt
                other = cuelight.load(folder, backbone=host).method.student.prompt
                means = own.mean(0).flatten(), other.mean(0).flatten()
                rival.append(float(cosine_similarity(*means, dim=0).detach()))
            pairs[name] = {
                "pot": spread(pot),
                "panda": spread(taught),
                "similarity": statistics.mean(near),
                "prompt cosine": statistics.mean(rival),
            }
            print(target, name, pairs[name], flush=True)
        sets[target] = {"arms": arms, "pairs": pairs}
        print(target, arms, flush=True)
    if not given.only:
        result = {"methods": ["panda"], "search": record, "sets": sets, "summary": summary(sets)}
        write_result("claims", "panda", "benchmarks.claims.panda", result)


def summary(sets: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""
    pairs = [(t, s, pair) for t, entry in sets.items() for s, pair in entry["pairs"].items()]
    mean = {how: 100 * statistics.mean(pair[how]["mean"] for _, _, pair in pairs) for how in ("pot", "panda")}
    mean["plain"] = 100 * statistics.mean(entry["arms"]["plain"]["mean"] for entry in sets.values())
    mean["self"] = 100 * statistics.mean(entry["arms"]["self"]["mean"] for entry in sets.values())
    gain = [pair["pot"]["mean"] - sets[t]["arms"]["plain"]["mean"] for t, _, pair in pairs]
    ranks = {
        how: float(spearmanr([pair[how] for *_, pair in pairs], gain).statistic)
        for how in ("similarity", "prompt cosine")
    }
    gaps = []
    for entry in sets.values():
        by_pot = sorted(entry["pairs"].values(), key=lambda pair: pair["pot"]["mean"])
        gaps.append([100 * (pair["panda"]["mean"] - pair["pot"]["mean"]) for pair in (by_pot[0], by_pot[-1])])
    worst, best = (statistics.mean(g[k] for g in gaps) for k in (0, 1))
    sentences = [f"{name} (test accuracy, %): {listed(entry['arms'])}." for name, entry in sets.items()]
    sentences += [
        f"Means over {len(pairs)} pairs: vanilla transfer {mean['pot']:.1f}, PANDA {mean['panda']:.1f}, plain prompt "
        f"{mean['plain']:.1f}, distilled without a source {mean['self']:.1f}: PANDA above vanilla transfer "
        f"{verdict(mean['panda'] > mean['pot'])}, above the plain prompt {verdict(mean['panda'] > mean['plain'])}; "
        f"the source matters (above distillation without one) {verdict(mean['panda'] > mean['self'])}.",
        f"PANDA less vanilla transfer: {worst:+.1f} points at the worst source, {best:+.1f} at the best: larger where "
        f"the source is worse {verdict(worst > best)}.",
        f"Rank correlation with the gain of vanilla transfer: task embeddings {ranks['similarity']:+.2f}, prompt "
        f"vectors {ranks['prompt cosine']:+.2f}: the metric above its rival "
        f"{verdict(ranks['similarity'] > ranks['prompt cosine'])}.",
    ]
    return " ".join(sentences)


if __name__ == "__main__":
    main()
