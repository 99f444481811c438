"""CoOp, MaPLe and PromptSRC against their published algorithm, on CLIP ViT-B/16's shape.

The reference arm is written here from the papers' algorithm as their repositories run it: every class's text has 77
tokens in every step, pictures are encoded in every step of every epoch, and PromptSRC's frozen image tower runs beside
the prompted one.  Both arms share one model with random weights (only its shape matters), the same start, the same
batch and the same SGD, and their steps alternate in one process.  Losses are compared step by step.  Counted is the
process's own time on one core, which other work on the machine does not change.

    python -m benchmarks.speed.clip_methods --steps 10 --classes 20
    python -m benchmarks.speed.clip_methods --steps 10 --classes 100

Results of several calls are kept side by side.  ``tests/test_clip_reference.py`` compares ten steps on a small CLIP.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss, normalize

import cuelight
from benchmarks.common import ROOT, write_result
from cuelight.backbones import Backbone
from cuelight.methods.base import get_method
from cuelight.methods.contrastive import Contrastive
from cuelight.methods.vision_language.promptsrc import score_agreement
from cuelight.tasks import ImageBatch, ImageConfig, ImageTask
from cuelight.tasks.image import ImageItem

SHOTS = 16
TEXT = 77
# the words of CIFAR-100's classes
NAMES = """apple,aquarium fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,
castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,elephant,
flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn mower,leopard,lion,lizard,lobster,man,maple tree,
motorcycle,mountain,mouse,mushroom,oak tree,orange,orchid,otter,palm tree,pear,pickup truck,pine tree,plain,plate,poppy,
porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,snail,snake,spider,squirrel,
streetcar,sunflower,sweet pepper,table,tank,telephone,television,tiger,tractor,train,trout,tulip,turtle,wardrobe,whale,
willow tree,wolf,woman,worm""".replace("\n", "").split(",")
METHODS: dict[str, dict[str, Any]] = {
    "coop": {"batch": 32, "options": {"context_length": 16}, "rate": 0.002, "claim": 4.0},
    "maple": {"batch": 4, "options": {}, "rate": 0.0035, "claim": 1.5},
    "promptsrc": {
        "batch": 4,
        "options": {"teacher": ("a photo of a {}.",), "aggregate": False},
        "rate": 0.0025,
        "claim": 1.5,
    },
}


def build() -> Backbone:
    """CLIP ViT-B/16's shape with random weights, behind MiniLM's tokenizer (CLIP's own is not needed for shape)."""
    end, start = 102, 101
    text = {"vocab_size": 49408, "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 12}
    text |= {"intermediate_size": 2048, "eos_token_id": end, "bos_token_id": start, "pad_token_id": 0}
    config = hf.CLIPConfig(
        text_config=text, vision_config={"patch_size": 16, "image_size": 224}, projection_dim=512
    )
    torch.manual_seed(0)
    model = hf.CLIPModel(config)
    tokenizer = cuelight.load_backbone("minilm-l6", progress=False).tokenizer
    return Backbone("CLIP ViT-B/16 (random weights)", model, kind="vision-language", tokenizer=tokenizer)


class Reference:
    """The published algorithm of a method, from the same start as ours."""

    def __init__(self, name: str, ours: Any, host: Backbone) -> None:
        self.name, self.model, self.ours = name, host.model, ours
        self.learned = {
            n: torch.nn.Parameter(p.detach().clone()) for n, p in ours.named_parameters() if p.requires_grad
        }
        ids = ours.tokens.ids
        self.ids = torch.nn.functional.pad(ids, (0, TEXT - ids.shape[1]))
        self.ends = (self.ids == 102).int().argmax(1)
        self.start = host.embed(self.ids.clamp(min=0)).detach()
        self.teacher = ours.zero_shot(("a photo of a {}.",), normalise_each=False)
        self.scale = ours.dual.scale

    def text(self, stack: Tensor) -> Tensor:
        """All classes at 77 tokens; ``stack [layers, M, w]`` stands at places 1 to M of its layers."""
        tower = self.model.text_model
        length = stack.shape[1]
        states = self._placed(self.start, stack[0], length) + tower.embeddings.position_embedding.weight
        for k, layer in enumerate(tower.encoder.layers):
            if 0 < k < len(stack):
                states = self._placed(states, stack[k], length)
            states = layer(states, attention_mask=None, is_causal=True)
        pooled = tower.final_layer_norm(states)[torch.arange(len(states)), self.ends]
        return normalize(self.model.text_projection(pooled), dim=-1)

    @staticmethod
    def _placed(states: Tensor, vectors: Tensor, length: int) -> Tensor:
        rows = vectors.expand(len(states), -1, -1)
        return torch.cat([states[:, :1], rows, states[:, 1 + length :]], dim=1)

    def image(self, pixels: Tensor, stack: Tensor | None) -> Tensor:
        """Pictures with ``stack [layers, n, w]`` at the end of the sequence."""
        tower = self.model.vision_model
        states = tower.embeddings(pixels)
        own = states.shape[1]
        if stack is not None:
            states = torch.cat([states, stack[0].expand(len(states), -1, -1)], dim=1)
        states = tower.pre_layrnorm(states)
        for k, layer in enumerate(tower.encoder.layers):
            if stack is not None and 0 < k < len(stack):
                states = torch.cat([states[:, :own], stack[k].expand(len(states), -1, -1)], dim=1)
            states = layer(states, attention_mask=None)
        pooled = tower.post_layernorm(states[:, 0])
        return normalize(self.model.visual_projection(pooled), dim=-1)

    def loss(self, batch: ImageBatch) -> Tensor:
        assert batch.pixels is not None
        learned = self.learned
        if self.name == "coop":
            images = self.image(batch.pixels, None)
            return cross_entropy(self.scale * images @ self.text(learned["context"][None]).T, batch.label)
        text = learned["prompts.text"]
        if self.name == "maple":
            weight, bias = learned["prompts.weight"], learned["prompts.bias"]
            vision = torch.stack([t @ w.T + b for t, w, b in zip(text, weight, bias, strict=True)])
        else:
            vision = learned["prompts.vision"]
        classes, images = self.text(text), self.image(batch.pixels, vision)
        scores = self.scale * images @ classes.T
        if self.name == "maple":
            return cross_entropy(scores, batch.label)
        with torch.no_grad():
            plain = self.image(batch.pixels, None)
        frozen = self.scale * plain @ self.teacher.T
        return (
            cross_entropy(scores, batch.label)
            + 10 * l1_loss(images, plain)
            + 25 * l1_loss(classes, self.teacher)
            + score_agreement(scores, frozen)
        )


def random_batch(size: int, classes: int, side: int) -> ImageBatch:
    """Random pictures of random classes."""
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(size, 3, side, side, generator=draw)
    labels = torch.randint(classes, (size,), generator=draw)
    items = [ImageItem({"bytes": b"", "path": None}, str(k), int(c)) for k, c in enumerate(labels)]
    return ImageBatch(pixels, labels, items)


def known(batch: ImageBatch, features: Tensor, caches: bool) -> ImageBatch:
    """The batch as training sees it after `prepare`: with features, and without pictures where they serve."""
    for item, feature in zip(batch.items, features, strict=True):
        item.feature = feature
    return ImageBatch(
        None if caches else batch.pixels, batch.label, batch.items, features if caches else None
    )


def timed(call: Callable[[], Tensor], optimiser: torch.optim.Optimizer) -> tuple[float, float]:
    """Loss and seconds of one step."""
    begun = time.process_time()
    loss = call()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss.item(), time.process_time() - begun


def compare(name: str, host: Backbone, classes: int, steps: int) -> dict[str, Any]:
    how = METHODS[name]
    kind = get_method(name)
    task = ImageTask(host, "classification", NAMES[:classes], config=ImageConfig())
    method = kind(host, task, kind.Config(**how["options"])).train()
    assert isinstance(method, Contrastive)
    reference = Reference(name, method, host)
    plain = random_batch(how["batch"], classes, task.size)
    assert plain.pixels is not None
    begun = time.process_time()
    with torch.no_grad():
        features = host.image_features(plain.pixels)
    encoding = (time.process_time() - begun) / how["batch"]
    batch = known(plain, features, method.caches)
    options = {"lr": how["rate"], "momentum": 0.9, "weight_decay": 5e-4}
    ours_sgd = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], **options)
    theirs_sgd = torch.optim.SGD(reference.learned.values(), **options)
    losses: list[tuple[float, float]] = []
    seconds: list[tuple[float, float]] = []
    for k in range(steps):
        ours, ours_time = timed(lambda: method.loss(batch), ours_sgd)
        theirs, theirs_time = timed(lambda: reference.loss(plain), theirs_sgd)
        losses.append((ours, theirs))
        seconds.append((ours_time, theirs_time))
        print(
            f"{name} {classes} classes, step {k}: loss {ours:.5f} {theirs:.5f}, {ours_time:.2f} s {theirs_time:.2f} s",
            flush=True,
        )
    ours_step, theirs_step = (statistics.median(column) for column in zip(*seconds, strict=True))
    per_epoch = SHOTS * classes / how["batch"]
    once = encoding * SHOTS * classes if method.caches or name == "promptsrc" else 0.0
    return {
        "classes": classes,
        "batch": how["batch"],
        "steps": steps,
        "text_tokens": int(method.tokens.ids.shape[1]),
        "step_seconds": round(ours_step, 3),
        "reference_step_seconds": round(theirs_step, 3),
        "epoch_seconds": round(ours_step * per_epoch, 1),
        "reference_epoch_seconds": round(theirs_step * per_epoch, 1),
        "encoding_once_seconds": round(once, 1),
        "faster": round(theirs_step / ours_step, 2),
        "faster_with_encoding_in_20_epochs": round(
            theirs_step * per_epoch * 20 / (ours_step * per_epoch * 20 + once), 2
        ),
        "losses": [[round(a, 6), round(b, 6)] for a, b in losses],
        "largest_difference": max(abs(a - b) for a, b in losses),
        "claim": how["claim"],
    }


def summarise(table: dict[str, Any]) -> str:
    """What was found, in a sentence: ratios of an epoch's steps, and with the one encoding of the pictures in them."""
    shown = []
    for key in sorted(table, key=lambda k: (list(METHODS).index(k.split("-")[0]), table[k]["classes"])):
        row = table[key]
        verdict = "holds" if row["faster"] >= row["claim"] and row["largest_difference"] < 1e-4 else "FAILS"
        steps = f"{row['steps']} step{'s' if row['steps'] > 1 else ''}"
        shown.append(
            f"{key.split('-')[0]}, {row['classes']} classes: {row['faster']:.1f} times faster "
            f"({row['faster_with_encoding_in_20_epochs']:.1f} over 20 epochs with the pictures' one encoding; claim "
            f"{row['claim']:g} {verdict}), losses differ by at most {row['largest_difference']:.0e} in {steps}"
        )
    return (
        "CLIP ViT-B/16's shape, random weights, an epoch's steps against the published algorithm (77 text tokens, all "
        "classes and all pictures encoded in every step): "
        + "; ".join(shown)
        + ". Ten steps are compared on a small "
        "CLIP by tests/test_clip_reference.py."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--classes", type=int, default=20, choices=range(2, 101), metavar="N")
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    host = build()
    path = ROOT / "speed" / "results" / "clip-methods.json"
    table: dict[str, Any] = json.loads(path.read_text())["arms"] if path.exists() else {}
    for name in arguments.methods.split(","):
        table[f"{name}-{arguments.classes}"] = compare(name, host, arguments.classes, arguments.steps)
    summary = summarise(table)
    print(summary)
    write_result(
        "speed",
        "clip-methods",
        "benchmarks.speed.clip_methods",
        {"methods": list(METHODS), "arms": table, "summary": summary},
    )


if __name__ == "__main__":
    main()
