"""How well the built-in vision-language backbones name pictures of classes they were not aligned with.

CIFAR-10, PACS by domain, Fashion-MNIST, the 40 classes of Tiny-ImageNet that `recipes.dual_encoder` holds out, and
retrieval between Flickr8k's test photographs and their captions; with one template, and with an ensemble that is the
same for all sets.  Nothing was chosen on these pictures.

    python -m benchmarks.zero_shot.dual_encoders --dtype bfloat16
    python -m benchmarks.zero_shot.dual_encoders --per-class 50 --models dino-minilm-clip

writes ``benchmarks/zero_shot/results/dual-encoders.json``; models that were not asked for keep their figures.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from PIL import Image
from recipes.dual_encoder import MODELS, classes, held_out
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks.common import ROOT, data_file, write_result
from cuelight.backbones import Backbone, load_backbone
from cuelight.tasks.image import TEMPLATE_SETS

ENSEMBLE = "varied"
FASHION = (
    "t-shirt",
    "pair of trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
BATCH = 32


def picture_features(backbone: Backbone, pictures: Sequence[bytes], what: str) -> Tensor:
    """Features ``[N, width]`` of encoded pictures, as the backbone's own processor prepares them."""
    assert backbone.dual is not None
    out = []
    for start in tqdm(range(0, len(pictures), BATCH), desc=f"{backbone.id} {what}"):
        views = [Image.open(io.BytesIO(p)).convert("RGB") for p in pictures[start : start + BATCH]]
        pixels = backbone.processor(views, return_tensors="pt")["pixel_values"].to(backbone.dtype)
        out.append(backbone.dual.image_features(pixels).float())
    return torch.cat(out)


def text_features(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """Features ``[N, width]`` of texts."""
    assert backbone.dual is not None
    out = []
    for start in range(0, len(texts), 64):
        rows = backbone.tokenizer(list(texts[start : start + 64]), padding=True, return_tensors="pt")
        out.append(backbone.dual.text_features(rows["input_ids"], rows["attention_mask"]).float())
    return torch.cat(out)


def class_features(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The mean feature of each class over the templates ``[C, width]``, of length one."""
    found = text_features(backbone, [t.format(name) for name in names for t in templates])
    return normalize(found.view(len(names), len(templates), -1).mean(1), dim=-1)


def accuracy(images: Tensor, labels: Tensor, texts: Tensor) -> float:
    """Percent of pictures whose nearest class is theirs."""
    return round(100 * float(((images @ texts.T).argmax(1) == labels).float().mean()), 1)


def classification(backbone: Backbone, per_class: int) -> dict[str, Any]:
    """Accuracies by set, with one template and with the ensemble, and how many pictures and classes there were."""
    table = classes()
    reported = held_out(table)
    sets: dict[str, tuple[pd.DataFrame, list[str]]] = {}
    for name in ("cifar10", "pacs", "fashion_mnist", "tiny_imagenet"):
        rows = pd.read_parquet(data_file(f"vision/{name}.parquet"))
        rows = rows[rows.split == "test"]
        if name == "tiny_imagenet":
            rows = rows[rows.wnid.isin(reported)]
            rows = rows.assign(label=rows.wnid.map(reported.index))
            names = [table.loc[w].class_name for w in reported]
        else:
            names = (
                list(FASHION)
                if name == "fashion_mnist"
                else rows.groupby("label").label_name.first().tolist()
            )
        kinds = ["label", "domain"] if name == "pacs" else ["label"]
        most = per_class // rows.domain.nunique() if name == "pacs" else per_class
        sets[name] = rows[rows.groupby(kinds).cumcount() < most], [n.replace("_", " ") for n in names]
    out: dict[str, Any] = {}
    for name, (rows, names) in sets.items():
        images, labels = (
            picture_features(backbone, rows.image.tolist(), name),
            torch.tensor(rows.label.tolist()),
        )
        entry: dict[str, Any] = {"pictures": len(rows), "classes": len(names)}
        for called, templates in (
            ("one template", TEMPLATE_SETS["photo"]),
            ("ensemble", TEMPLATE_SETS[ENSEMBLE]),
        ):
            texts = class_features(backbone, names, templates)
            entry[called] = accuracy(images, labels, texts)
            if name == "pacs":
                entry[f"{called}, by domain"] = {
                    domain: accuracy(images[held], labels[held], texts)
                    for domain in sorted(rows.domain.unique())
                    for held in [torch.tensor((rows.domain == domain).tolist())]
                }
        out[name] = entry
    return out


def retrieval(backbone: Backbone) -> dict[str, Any]:
    """Recall in percent between Flickr8k's test photographs and their five captions each."""
    rows = pd.read_parquet(data_file("vision/flickr8k_1k.parquet"))
    rows = rows[rows.split == "test"]
    images = picture_features(backbone, rows.image.tolist(), "flickr8k")
    captions = [text for given in rows.captions for text in given]
    owner = torch.tensor([k for k, given in enumerate(rows.captions) for _ in given])
    scores = text_features(backbone, captions) @ images.T
    out: dict[str, Any] = {"photographs": len(rows), "captions": len(captions)}
    for k in (1, 5, 10):
        by_text = (scores.topk(k, 1).indices == owner[:, None]).any(1)
        by_image = (owner[scores.T.topk(k, 1).indices] == torch.arange(len(rows))[:, None]).any(1)
        out[f"text to image R@{k}"] = round(100 * float(by_text.float().mean()), 1)
        out[f"image to text R@{k}"] = round(100 * float(by_image.float().mean()), 1)
    return out


def speed(name: str, dtype: str, repeats: int = 3) -> float:
    """Pictures encoded per second of one CPU core (processor time, so that other work beside it does not count)."""
    backbone = load_backbone(name, device="cpu", dtype=dtype)
    assert backbone.dual is not None
    size = MODELS[name].size
    pixels = torch.rand(BATCH, 3, size, size).to(backbone.dtype)
    times = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        backbone.dual.image_features(pixels)
        times.append(time.process_time() - begin)
    return round(BATCH / min(times[1:]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--per-class", type=int, default=10**6, help="at most so many pictures of a class")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = ROOT / "zero_shot" / "results" / "dual-encoders.json"
    found = json.loads(file.read_text("utf-8"))["models"] if file.exists() else {}
    for name in given.models:
        with torch.inference_mode():
            backbone = load_backbone(name, device="cpu", dtype=given.dtype)
            found[name] = {
                "dtype": given.dtype,
                **classification(backbone, given.per_class),
                "flickr8k": retrieval(backbone),
                "pictures per second of one core": {
                    dtype: speed(name, dtype) for dtype in ("float32", "bfloat16")
                },
            }
    table = classes()
    write_result(
        "zero_shot",
        "dual-encoders",
        "benchmarks.zero_shot.dual_encoders",
        {
            "what": "zero-shot accuracy and recall in percent; no picture of these classes was aligned with a text",
            "ensemble": list(TEMPLATE_SETS[ENSEMBLE]),
            "held-out classes of Tiny-ImageNet": {w: table.loc[w].class_name for w in held_out(table)},
            "models": {name: found[name] for name in MODELS if name in found},
        },
    )


if __name__ == "__main__":
    main()
