"""The vision-language papers' quality claims, on a backbone and sizes that two cores can do.

dino-minilm-clip, pictures of 70 x 70, three seeds, a seed drawing the training pictures.  Two parts:

- *base-to-new*: 4 pictures of each of the first half of the classes, 5 passes; 80 test pictures of either half, told apart
  among their own half.  MaPLe, PromptSRC, CoPrompt, RESTORE, MoCoOp, KAPT and CTP+TFT beside CoOp, independent prompts and
  zero-shot.  Fashion-MNIST and CIFAR-10; ``--sets 3`` takes PACS (all domains) too.
- with ``--starts 1`` *one shot of all classes*, 20 passes, 160 test pictures: MVLPT's text prompt from the other data sets,
  GRAM's start from 700 captioned photographs, and their controls.

    python -m benchmarks.claims.vision_language            # goes on where it was interrupted

Rates: deep prompts take their papers'; text prompts, which so few steps would leave where they are, take one of two for all,
chosen with CoOp by validation pictures of Fashion-MNIST's base classes and a seed that is not reported.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.stats import spearmanr

import cuelight
from benchmarks.claims.grid import SEARCH_SEED, SEEDS, arguments_of, kept, search, shown, spread, verdict
from benchmarks.common import data_file, write_result
from cuelight.cache import atomic_write
from cuelight.data import Splits, read
from cuelight.evaluation.evaluate import evaluate
from cuelight.methods.deep import DeepPrompted

BACKBONE = "dino-minilm-clip"
FILES = {name: f"vision/{name}.parquet" for name in ("fashion_mnist", "cifar10", "pacs")}
PAIRS = "vision/flickr8k_1k.parquet"
SHOTS, PASSES, TESTED = 4, 5, 80

DEEP = ("ivlp", "promptsrc", "maple", "coprompt", "restore")
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero-shot": ("zero-shot-clip", {}),
    "coop": ("coop", {"init": "words"}),
    "mocoop": ("mocoop", {}),
    "mocoop, random routing": ("mocoop", {"router": "random"}),
    "kapt": ("kapt", {"knowledge": "right"}),
    "kapt, shuffled texts": ("kapt", {"knowledge": "shuffled"}),
    "ctp-tft": ("ctp-tft", {}),
    "ivlp": ("ivlp", {"length": 2, "vision_length": 2}),
    "maple": ("maple", {}),
    "promptsrc": ("promptsrc", {"length": 2, "vision_length": 2}),
    "coprompt": ("coprompt", {}),
    "restore": ("restore", {}),
}
"""All deep prompts have two vectors a layer, so that an arm differs from another by its method alone."""
GARMENTS = {
    "T-shirt/top": "a collarless pullover with short sleeves, worn on the upper body",
    "Trouser": "a garment from the waist to the ankles, covering each leg separately",
    "Pullover": "a knitted sweater with long sleeves that is put on over the head",
    "Dress": "a one-piece garment with a skirt and a bodice",
    "Coat": "an outer garment with long sleeves, worn outdoors, open at the front",
    "Sandal": "an open shoe whose sole is held by straps",
    "Shirt": "a garment with a collar and buttons, worn on the upper half of the body",
    "Sneaker": "a canvas sports shoe with a pliable rubber sole",
    "Bag": "a container with a handle or straps for carrying things",
    "Ankle boot": "footwear that covers the foot and the ankle, often with a heel",
}
ANIMALS = {
    "elephant": "a very large grey mammal with a trunk and tusks",
    "giraffe": "the tallest living quadruped, with a spotted coat and a very long neck",
    "guitar": "a stringed musical instrument with a hollow body, played by plucking",
    "house": "a building with a roof, walls and windows, in which people live",
    "person": "a human being",
}


@cache
def frame(name: str) -> pd.DataFrame:
    return pd.read_parquet(data_file(FILES[name]))[["image", "label_name", "split"]]


def halves(name: str) -> tuple[list[str], list[str]]:
    """The first half of the classes and the second, by their names in order (CoOp's by their numbers)."""
    names = sorted(frame(name)["label_name"].unique())
    return names[: (len(names) + 1) // 2], names[(len(names) + 1) // 2 :]


def some(name: str, classes: Sequence[str], **options: Any) -> Splits:
    rows = frame(name)
    return read(rows[rows["label_name"].isin(list(classes))], **options)


def descriptions(name: str, shuffled: bool, folder: Path) -> str:
    """A file with a text for each class of ``name``; shuffled, each class has its neighbour's."""
    if name == "fashion_mnist":
        known = GARMENTS
    else:
        table = pd.read_parquet(data_file("prompts/wordnet_glosses.parquet"))
        table = table[table["dataset"].isin(["CIFAR10", "ImageNet-1k"])]
        known = dict(zip(table["class_name"], table["gloss"], strict=True)) | ANIMALS
    classes = [*halves(name)[0], *halves(name)[1]]
    known = {c: known[c] for c in classes}
    if shuffled:
        known = {c: known[classes[(k + 1) % len(classes)]] for k, c in enumerate(classes)}
    path = folder / f"{name}-{'shuffled' if shuffled else 'right'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1))
    return str(path)


class Runs:
    """Runs, each kept as a line of figures."""

    def __init__(self, folder: str, size: int | None) -> None:
        self.folder, self.size = Path(folder), {"image_size": size} if size else {}
        self.host = cuelight.load_backbone(BACKBONE, progress=False)
        self.seconds = 0.0

    def once(self, what: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = Path(kept(str(self.folder), *what)).with_suffix(".json")
        if not path.exists():
            began = time.perf_counter()
            found = {"what": list(what), **make(), "seconds": round(time.perf_counter() - began, 1)}
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(found))
            print(*what[:3], {k: v for k, v in found.items() if k != "what"}, flush=True)
        return dict(json.loads(path.read_text()))

    def base_to_new(self, arm: str, name: str, seed: int, rate: float) -> dict[str, Any]:
        method, options = ARMS[arm]
        options = dict(options)
        if method not in (*DEEP, "zero-shot-clip"):
            options["learning_rate"] = rate
        if "knowledge" in options:
            options["knowledge"] = descriptions(name, options["knowledge"] == "shuffled", self.folder)

        def make() -> dict[str, Any]:
            base, new = halves(name)
            given = {"shots": SHOTS, "max_test": TESTED, "seed": seed}
            training = {} if method == "zero-shot-clip" else {"epochs": PASSES, **NEVER}
            run = cuelight.tune(
                method,
                backbone=self.host,
                data=some(name, base, **given),
                seed=seed,
                batch_size=4,
                **self.size,
                **training,
                **options,
            )
            held: Any = run.prompt.method
            found: dict[str, Any] = {"base": run.metrics["accuracy"]}
            rows = some(name, new, **given)
            items = held.task.encode(rows.test)
            if isinstance(held, DeepPrompted) and held.tokens.start is not None:
                with torch.no_grad():
                    batch = held.task.collate(held.task.encode(rows.test)[:16])
                    image, text = held.token_shifts(batch)
                found["shift"] = [float(image.mean()), float(text.mean())]
            held.rename(rows.classes)
            found["new"] = evaluate(held, items, batch_size=32)[0]["accuracy"]
            total = found["base"] + found["new"]
            found["harmonic"] = 2 * found["base"] * found["new"] / total if total else 0.0
            return found

        return self.once((arm, name, seed, options, SHOTS, PASSES, TESTED, self.size), make)

    def few_shot(self, arm: str, name: str, seed: int, method: str, **options: Any) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            data = some(
                name,
                [*halves(name)[0], *halves(name)[1]],
                shots=options["shots"],
                max_test=2 * TESTED,
                seed=seed,
            )
            given = {k: v for k, v in options.items() if k != "shots"}
            run = cuelight.tune(
                method, backbone=self.host, data=data, seed=seed, batch_size=8, **self.size, **NEVER, **given
            )
            return {"accuracy": run.metrics["accuracy"]}

        return self.once((arm, name, seed, options, TESTED, self.size), make)


NEVER: dict[str, Any] = {"evaluate_every": 10_000, "keep": "last"}
"""Nothing is chosen by validation pictures."""


def main() -> None:
    given = arguments_of(__doc__, "vision_language", size=70, seeds=len(SEEDS), sets=2, starts=0)
    runs = Runs(given.folder, given.size or None)
    seeds = list(range(given.seeds))

    def validate(_: str, options: dict[str, Any]) -> float:
        def make() -> dict[str, Any]:
            data = some("fashion_mnist", halves("fashion_mnist")[0], shots=SHOTS, seed=SEARCH_SEED)
            run = cuelight.tune(
                "coop",
                backbone=runs.host,
                data=Splits(**{**vars(data), "test": data.validation}),
                seed=SEARCH_SEED,
                init="words",
                batch_size=4,
                epochs=PASSES,
                **runs.size,
                **NEVER,
                **options,
            )
            return {"accuracy": run.metrics["accuracy"]}

        return float(runs.once(("search", "text", options, runs.size), make)["accuracy"])

    chosen, record = search({"text prompts": [{"learning_rate": r} for r in (2e-3, 2e-2)]}, validate)
    rate = float(chosen["text prompts"]["learning_rate"])

    sets: dict[str, Any] = {}
    for name in given.only.split(",") if given.only else list(FILES)[: given.sets]:
        arms = {}
        for arm in ARMS:
            found = [runs.base_to_new(arm, name, seed, rate) for seed in seeds]
            arms[arm] = {
                "base": spread([f["base"] for f in found]),
                "new": spread([f["new"] for f in found]),
                "harmonic": spread([f["harmonic"] for f in found]),
                "seconds": statistics.mean(f["seconds"] for f in found),
            }
            if all("shift" in f for f in found):
                arms[arm]["gap"] = spread([abs(f["shift"][0] - f["shift"][1]) for f in found])
        sets[name] = {"arms": arms}
    starts = few_shots(runs, seeds, rate, list(sets)) if given.starts else {}
    if not given.only:
        result = {
            "methods": ["maple", "promptsrc", "coprompt", "restore", "mocoop", "kapt", "ctp-tft"]
            + (["mvlpt", "gram"] if starts else []),
            "backbone": BACKBONE,
            "sizes": {"shots": SHOTS, "passes": PASSES, "tested": TESTED, "seeds": seeds, **runs.size},
            "search": record,
            "sets": sets,
            "starts": starts,
            "summary": summary(sets, starts),
        }
        write_result("claims", "vision_language", "benchmarks.claims.vision_language", result)


def few_shots(runs: Runs, seeds: list[int], rate: float, names: list[str]) -> dict[str, Any]:
    """MVLPT and GRAM at one shot of all classes of each set."""
    found: dict[str, Any] = {}
    text = {"learning_rate": rate, "epochs": 20, "shots": 1}
    for name in names:
        others = ",".join(data_file(FILES[other]) for other in FILES if other != name)
        arms: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
            "coop, from words": ("coop", lambda _: {"init": "words"}),
            "coop, from noise": ("coop", lambda _: {"context_length": 4, "position": "middle"}),
            "mvlpt": (
                "mvlpt",
                lambda _, others=others: {
                    "variant": "text",
                    "length": 4,
                    "sources": others,
                    "source_shots": 4,
                },
            ),
            "gram": ("gram", lambda seed: {"pairs": meta(runs, "gram", seed)}),
            "gram, target not regulated": (
                "gram",
                lambda seed: {"pairs": meta(runs, "gram", seed), "regulate": False},
            ),
            "plain start on the same pairs": (
                "gram",
                lambda seed: {"pairs": meta(runs, "plain", seed), "meta": "plain"},
            ),
        }
        found[name] = {
            "arms": {
                arm: spread(
                    [
                        runs.few_shot(arm, name, seed, method, **text, **options(seed))["accuracy"]
                        for seed in seeds
                    ]
                )
                for arm, (method, options) in arms.items()
            }
        }
    return found


def meta(runs: Runs, how: str, seed: int) -> str:
    """The folder of a start that was learned on captioned photographs, once for all data sets."""
    folder = runs.folder / f"start-{how}-{seed}"
    if not (folder / "cuelight.json").exists():
        data = some("fashion_mnist", halves("fashion_mnist")[0], shots=1, max_test=10, seed=seed)
        began = time.perf_counter()
        cuelight.tune(
            "gram",
            backbone=runs.host,
            data=data,
            seed=seed,
            pairs=data_file(PAIRS),
            meta=how,
            meta_steps=40,
            ways=8,
            inner_rate=0.05,
            epochs=1,
            batch_size=4,
            output=folder,
            restart=True,
            **runs.size,
            **NEVER,
        )
        print("start", how, seed, round(time.perf_counter() - began, 1), flush=True)
    return str(folder)


def summary(sets: dict[str, Any], starts: dict[str, Any]) -> str:
    """What the figures say, from the figures alone."""

    def mean(arm: str, what: str) -> float:
        return statistics.mean(entry["arms"][arm][what]["mean"] for entry in sets.values())

    def above(better: str, worse: str, what: str) -> str:
        a, b = mean(better, what), mean(worse, what)
        each = [e["arms"][better][what]["mean"] > e["arms"][worse][what]["mean"] for e in sets.values()]
        return (
            f"{better} above {worse} ({what}, {100 * a:.1f} against {100 * b:.1f} on average, on {sum(each)} of "
            f"{len(each)} sets) {verdict(a > b)}"
        )

    sentences = []
    for name, entry in sets.items():
        rows = ", ".join(
            f"{arm} {shown(e['base'])} / {shown(e['new'])} / {shown(e['harmonic'])}"
            for arm, e in entry["arms"].items()
        )
        sentences.append(f"{name} (base / new / harmonic, %): {rows}.")
    sentences.append(
        "Over the sets: "
        + "; ".join(
            [
                above("coop", "zero-shot", "base"),
                above("zero-shot", "coop", "new"),
                above("maple", "coop", "new"),
                above("maple", "ivlp", "harmonic"),
                above("promptsrc", "ivlp", "new"),
                above("coprompt", "maple", "new"),
                above("restore", "maple", "new"),
                above("mocoop", "mocoop, random routing", "base"),
                above("mocoop", "coop", "harmonic"),
                above("kapt", "coop", "new"),
                above("kapt", "kapt, shuffled texts", "new"),
                above("ctp-tft", "coop", "new"),
            ]
        )
        + "."
    )
    gaps, drops = [], []
    for entry in sets.values():
        plain = entry["arms"]["zero-shot"]["new"]["mean"]
        for e in entry["arms"].values():
            if "gap" in e:
                gaps += e["gap"]["values"]
                drops += [plain - value for value in e["new"]["values"]]
    if len(gaps) > 2:
        rank = spearmanr(gaps, drops)
        sentences.append(
            f"RESTORE's premise: over {len(gaps)} runs with deep prompts the gap between the two towers' shifts and the "
            f"loss on new classes have a rank correlation of {rank.statistic:.2f} (p = {rank.pvalue:.3f})."
        )
    for name, entry in starts.items():
        rows = ", ".join(f"{arm} {shown(e)}" for arm, e in entry["arms"].items())
        sentences.append(f"{name}, all classes (accuracy, %): {rows}.")

    def gain(better: str, worse: str) -> float:
        return statistics.mean(e["arms"][better]["mean"] - e["arms"][worse]["mean"] for e in starts.values())

    if starts:
        mvlpt, words = gain("mvlpt", "coop, from noise"), gain("mvlpt", "coop, from words")
        gram = gain("gram", "plain start on the same pairs")
        start, gate = gain("gram", "coop, from words"), gain("gram", "gram, target not regulated")
        sentences.append(
            f"At one shot, on average over the sets: MVLPT's sources are worth {100 * mvlpt:+.1f} points over the same "
            f"vectors from noise ({verdict(mvlpt > 0)}) and {100 * words:+.1f} over the words. GRAM's start is "
            f"{100 * gram:+.1f} from one learned plainly on the same pairs ({verdict(gram > 0)}), {100 * start:+.1f} from "
            f"the words ({verdict(start > 0)}); its regulator on the target is worth {100 * gate:+.1f}."
        )
    return " ".join(sentences)


if __name__ == "__main__":
    main()
