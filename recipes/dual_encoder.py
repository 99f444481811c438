"""dino-minilm-clip and clip-b16-minilm: two frozen towers that meet in one space.

An image tower and the sentence encoder minilm-l6 stay as they are; what is learned are two linear maps into one
space and a temperature (locked-image, locked-text tuning, LiT).  Both maps start in closed form: images are whitened
with shrinkage, and a ridge regression sends each description to the whitened pictures it describes.  The contrastive
loss then tunes both in a few small steps.  Features of pictures and texts are computed once.

Pictures come from the public data sets below ``CUELIGHT_DATA``: Tiny-ImageNet (training and validation splits) and the
ImageNet samples, described by class names in templates, synonyms and WordNet glosses; emoji (training split) with their
names; Flickr8k (training split) with its captions.  **No class of the evaluation sets is used as a picture** (CIFAR-10,
PACS, Fashion-MNIST, and 40 classes of Tiny-ImageNet drawn with seed 0): a class is left out when it, or anything above
it in WordNet, is in `KINDS`, or its name has one of `WORDS` in it; of ImageNet's 1,000 classes 706 remain.  Emoji and
photographs are left out when a caption has one of `WORDS` or the name of a held-out class in it.  Two things could not
be left out: the people in Flickr8k's photographs, who are PACS' class person, and what they wear.

Settings are chosen on the training classes alone: four times ten classes are held back together with all their
relatives in WordNet, and told apart by their names.

    python -m recipes.dual_encoder dino-minilm-clip          # on one core: features 4 minutes, training 2
    python -m recipes.dual_encoder clip-b16-minilm           # on one core: features 8 minutes, training 2

writes ``src/cuelight/backbones/builtin/weights/NAME.safetensors``.  `benchmarks.zero_shot.dual_encoders` measures it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import math
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from benchmarks.common import data_file
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from cuelight.backbones import load_backbone
from cuelight.backbones.mean_text import MeanBertConfig, MeanBertModel
from cuelight.cache import atomic_write

STATE = Path("runs/recipes/dual_encoder")
OUT = Path(__file__).parents[1] / "src/cuelight/backbones/builtin/weights"
KINDS = (
    "airplane|heavier-than-air craft|car|bird|game bird|cat|deer|dog|frog|horse|ship|truck|"  # CIFAR-10
    "elephant|tusker|giraffe|guitar|house|dwelling|person|"  # PACS
    "shirt|trouser|sweater|dress|coat|sandal|shoe|boot|bag"  # Fashion-MNIST
)
WORDS = (
    "airplane plane aeroplane jet airliner aircraft biplane helicopter car automobile cab taxi suv van minivan sedan "
    "limousine jeep racecar bird chicken rooster hen duck goose turkey penguin eagle owl parrot peacock swan seagull "
    "gull pigeon flamingo dodo chick cat kitten deer stag doe elk moose reindeer dog puppy pup poodle terrier collie "
    "retriever labrador dalmatian greyhound hound bulldog husky shepherd pug dachshund frog toad horse pony colt foal "
    "mare unicorn ship boat ferry yacht vessel sailboat canoe kayak truck lorry pickup tractor firetruck elephant "
    "mammoth giraffe guitar guitarist house houses home cottage hut"
)
EMOJI = ("Animals & Nature", "Food & Drink", "Objects", "Activities", "Travel & Places")
NOT_EMOJI = ("animal-bird", "cat-face", "clothing")
TEMPLATES = (
    "a photo of a {}.", "a photo of the {}.", "{}", "a blurry photo of a {}.", "a close-up photo of a {}.",
    "a drawing of a {}.", "a photo of a small {}.", "a cropped photo of the {}.", "art of a {}.",
    "there is a {} in the picture.",
)  # fmt: skip
ENSEMBLE = (0, 1, 3, 4, 6, 7)
"""The templates that classes are told apart with, averaged."""
HELD_OUT, FOLDS, FOLD = 40, 4, 10
WIDTH = 384


@dataclass(frozen=True)
class Model:
    """One dual encoder: its image tower, the side of its pictures, and how many of a Tiny-ImageNet class it learns from."""

    tower: str
    size: int
    per_class: int


MODELS = {
    "dino-minilm-clip": Model("dinov2-small", 98, 30),
    "clip-b16-minilm": Model("clip-vit-b16-vision", 144, 8),
}


@dataclass(frozen=True)
class Settings:
    """What validation chooses: shrinkage of the whitening, ridge, contrastive steps and their rate."""

    shrink: float
    ridge: float
    steps: int
    rate: float = 1e-4


CLOSED = [Settings(*pair, 0) for pair in itertools.product((0.3, 1.0, 3.0), (1.0, 3.0, 10.0))]
TUNED = ((50, 1e-4), (50, 3e-4), (150, 1e-4))


# ---- which pictures, described how ---------------------------------------------------------------------


def classes() -> pd.DataFrame:
    """ImageNet's classes by WordNet id; ``tiny`` marks those of Tiny-ImageNet."""
    table = pd.read_parquet(data_file("prompts/wordnet_glosses.parquet"))
    tiny = set(table.wnid[table.dataset == "Tiny-ImageNet-200"])
    table = table[table.dataset == "ImageNet-1k"].set_index("wnid")
    return table.assign(tiny=[wnid in tiny for wnid in table.index])


def coincides(row: pd.Series) -> bool:
    """Whether a class is one of CIFAR-10's, PACS' or Fashion-MNIST's, or a kind of one, or names one."""
    return bool({*KINDS.split("|")} & {*row.hypernym_path, *row.synset_words}) or mentions(
        row.class_name, WORDS.split()
    )


def mentions(text: str, words: Iterable[str]) -> bool:
    """Whether ``text`` has one of ``words`` in it, also in the plural."""
    return re.search(r"\b(" + "|".join(map(re.escape, words)) + r")(s|es)?\b", text.lower()) is not None


def held_out(table: pd.DataFrame) -> list[str]:
    """WordNet ids of the Tiny-ImageNet classes that only the reported table may use."""
    return sorted(random.Random(0).sample(sorted(table.index[table.tiny]), HELD_OUT))


def class_texts(row: pd.Series) -> list[str]:
    """Descriptions of a class: its name and synonyms in all templates, first those of its name, then its gloss."""
    names = list(dict.fromkeys([row.class_name, *row.synset_words[:3]]))
    gloss = row.gloss.split(";")[0]
    return [t.format(n) for n in names for t in TEMPLATES] + [gloss] + [f"{n}, {gloss}" for n in names[:2]]


@dataclass
class Pairs:
    """Pictures of all sets one after the other and what describes them.

    Attributes:
        images: features ``[N, width]``.
        group: for each picture the number of its descriptions.
        texts: features ``[T, 384]``, those of group g being ``texts[first[g] : first[g + 1]]``.
        wnid: WordNet id of each group, empty for captioned pictures.
    """

    images: Tensor
    group: Tensor
    texts: Tensor
    first: Tensor
    wnid: list[str]

    @property
    def means(self) -> Tensor:
        """Mean text feature of each group ``[G, 384]``."""
        count = self.first.diff()
        owner = torch.repeat_interleave(torch.arange(len(count)), count)
        return torch.zeros(len(count), self.texts.shape[1]).index_add_(0, owner, self.texts) / count[:, None]

    def without(self, wnids: set[str]) -> Pairs:
        """Without the pictures of these classes."""
        kept = torch.tensor([self.wnid[g] not in wnids for g in self.group.tolist()])
        return Pairs(self.images[kept], self.group[kept], self.texts, self.first, self.wnid)

    def weights(self) -> Tensor:
        """How often a picture is to be seen: a class of n pictures counts as the square root of n."""
        return torch.bincount(self.group, minlength=len(self.wnid)).float()[self.group].rsqrt()


def training_pairs(model: Model) -> tuple[Pairs, Pairs]:
    """All pictures that may be learned from, and Flickr8k's validation pictures."""
    table = classes()
    reported = held_out(table)
    usable = [w for w in table.index if w not in reported and not coincides(table.loc[w])]
    groups = [class_texts(table.loc[w]) for w in usable]
    wnid = list(usable)
    place = {w: g for g, w in enumerate(usable)}
    names = [n.lower() for w in reported for n in [table.loc[w].class_name, *table.loc[w].synset_words]]
    images, group = [], []
    for name in ("imagenet_samples", "tiny_imagenet"):
        found = pd.read_parquet(data_file(f"vision/{name}.parquet"), columns=["wnid", "split"])
        chosen = found.wnid.isin(usable)
        if name == "tiny_imagenet":  # its test pictures stay unseen, whatever their class
            chosen &= found.split != "test"
            chosen &= found[chosen].groupby("wnid").cumcount().reindex(found.index) < model.per_class
        images.append(image_features(model, name, chosen))
        group += [place[w] for w in found.wnid[chosen]]
    emoji = pd.read_parquet(data_file("vision/emoji_captions.parquet"))
    chosen = emoji.label_name.isin(EMOJI) & ~emoji.subcategory.isin(NOT_EMOJI) & (emoji.split == "train")
    chosen &= ~emoji.caption.map(lambda text: mentions(text, WORDS.split()) or mentions(text, names))
    images.append(image_features(model, "emoji_captions", chosen))
    captions = [text.lower() for text in emoji.caption[chosen]]
    group += range(len(groups), len(groups) + len(captions))
    groups += [[text, f"a drawing of a {text}.", f"an icon of a {text}."] for text in captions]
    flickr = pd.read_parquet(data_file("vision/flickr8k_1k.parquet"))
    spoken = flickr.captions.map(" ".join)
    allowed = ~spoken.map(lambda text: mentions(text, WORDS.split()) or mentions(text, names))
    watched: list[Tensor] = []
    for split in ("train", "validation"):
        chosen = (flickr.split == split) & (allowed if split == "train" else True)
        found = image_features(model, "flickr8k_1k", chosen)
        (images if split == "train" else watched).append(found)
        if split == "train":
            group += range(len(groups), len(groups) + len(found))
        groups += [list(given) for given in flickr.captions[chosen]]
    wnid += [""] * (len(groups) - len(wnid))
    texts = text_features([text for given in groups for text in given])
    last = torch.arange(len(groups) - len(watched[0]), len(groups))
    first = torch.tensor([0, *itertools.accumulate(map(len, groups))])
    pairs = Pairs(torch.cat(images), torch.tensor(group), texts, first, wnid)
    return pairs, Pairs(watched[0], last, texts, first, wnid)


# ---- features, made once --------------------------------------------------------------------------------


def stored(
    name: str, key: str, width: int, parts: list[list[int]], make: Callable[[list[int]], Tensor]
) -> Tensor:
    """Features ``[N, width]`` of what ``key`` says, made part by part; goes on where it was interrupted."""
    file = STATE / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors"
    out, done = torch.zeros(sum(map(len, parts)), width), 0
    if file.exists():
        with safe_open(file, "pt") as held:
            out, done = held.get_tensor("features"), int(held.metadata()["done"])
    saved = time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    for k in tqdm(range(done, len(parts)), initial=done, total=len(parts), desc=name):
        with torch.inference_mode():
            out[parts[k]] = make(parts[k]).float()
        if k + 1 == len(parts) or time.monotonic() - saved > 30:
            with atomic_write(file) as new:
                save_file({"features": out}, new, metadata={"done": str(k + 1)})
            saved = time.monotonic()
    return out


def image_features(model: Model, name: str, chosen: pd.Series) -> Tensor:
    """What the tower gives for the chosen pictures of a set; bfloat16 (cosine to float32 above 0.998)."""
    rows = [k for k, wanted in enumerate(chosen) if wanted]
    host = load_backbone(model.tower, device="cpu", dtype="bfloat16")
    host.processor.size = {"shortest_edge": model.size}
    host.processor.crop_size = {"height": model.size, "width": model.size}
    pictures = pd.read_parquet(data_file(f"vision/{name}.parquet"), columns=["image"])["image"]

    def make(part: list[int]) -> Tensor:
        views = [Image.open(io.BytesIO(pictures.iloc[rows[k]])).convert("RGB") for k in part]
        pixels = host.processor(views, return_tensors="pt")["pixel_values"].bfloat16()
        if model.tower.startswith("clip"):
            return host.model(pixels, interpolate_pos_encoding=True).image_embeds
        return host.model(pixels).pooler_output

    parts = [list(range(k, min(k + 32, len(rows)))) for k in range(0, len(rows), 32)]
    width = 512 if model.tower.startswith("clip") else 384
    return stored(f"{model.tower}-{name}", f"{model}{rows}", width, parts, make)


def text_features(texts: list[str]) -> Tensor:
    """MiniLM's sentence vectors ``[N, 384]`` as the dual encoder pools them."""
    host = load_backbone("minilm-l6", device="cpu")
    tower = MeanBertModel(
        MeanBertConfig(**{k: v for k, v in host.model.config.to_dict().items() if k != "model_type"})
    )
    tower.eval().load_state_dict(host.model.state_dict(), strict=False)
    order = sorted(range(len(texts)), key=lambda k: len(texts[k]))

    def make(part: list[int]) -> Tensor:
        rows = host.tokenizer(
            [texts[k] for k in part], padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        return tower(**rows).pooler_output

    return stored(
        "texts", "\n".join(texts), WIDTH, [order[k : k + 64] for k in range(0, len(order), 64)], make
    )


# ---- learning --------------------------------------------------------------------------------------------


@dataclass
class Aligned:
    """Both maps, ``image [width, d]`` and ``text [384, d]``, and the factor of the cosines."""

    image: Tensor
    text: Tensor
    scale: float

    def images(self, features: Tensor) -> Tensor:
        return normalize(features @ self.image, dim=-1)

    def texts(self, features: Tensor) -> Tensor:
        return normalize(features @ self.text, dim=-1)


def start(pairs: Pairs, settings: Settings) -> Aligned:
    """The closed form.

    A linear map has no offset to take a mean away with, and features have a large common part; so both maps leave
    out the one direction of the mean, which does the same in all others.
    """
    weights, described = pairs.weights(), pairs.means[pairs.group]
    images, drop_image = _centred(pairs.images, weights)
    described, drop_text = _centred(described, weights)
    spread, axes = torch.linalg.eigh(images.T @ images / len(images))
    whitening = drop_image @ axes @ torch.diag((spread + settings.shrink * spread.mean()).rsqrt()) @ axes.T
    wanted = normalize(pairs.images @ whitening, dim=-1)
    seen = described * weights[:, None]
    gram = seen.T @ described
    ridge = settings.ridge * gram.diagonal().mean() * torch.eye(len(gram))
    text = drop_text @ torch.linalg.solve(gram + ridge, seen.T @ wanted)
    return Aligned(whitening, text / (described @ text).norm(dim=-1).mean(), 10.0)


def _centred(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Features without the direction of their weighted mean, and the projection that does it."""
    mean = normalize((features * weights[:, None]).sum(0), dim=0)
    away = torch.eye(len(mean)) - torch.outer(mean, mean)
    return features @ away, away


def train(pairs: Pairs, settings: Settings, *, seed: int = 0, batch: int = 512) -> Aligned:
    """The closed form, then contrastive steps; pictures of one class count as matches of each of its texts."""
    found = start(pairs, settings)
    if not settings.steps:
        return found
    draw = torch.Generator().manual_seed(seed)
    maps = [found.image.clone().requires_grad_(True), found.text.clone().requires_grad_(True)]
    log_scale = torch.tensor(math.log(found.scale), requires_grad=True)
    rates = [p.abs().mean().item() * settings.rate * 100 for p in maps]
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": r} for p, r in zip(maps, rates, strict=True)]
        + [{"params": [log_scale], "lr": 0.02}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    weights, count = pairs.weights(), pairs.first.diff()
    for _ in range(settings.steps):
        rows = torch.multinomial(weights, batch, replacement=True, generator=draw)
        group = pairs.group[rows]
        which = pairs.first[group] + (torch.rand(batch, generator=draw) * count[group]).long()
        now = Aligned(maps[0], maps[1], 1.0)
        logits = log_scale.exp() * now.images(pairs.images[rows]) @ now.texts(pairs.texts[which]).T
        same = (group[:, None] == group).float()
        same = same / same.sum(1, keepdim=True)
        loss = -(same * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Aligned(maps[0].detach(), maps[1].detach(), float(log_scale.detach().exp()))


# ---- choosing --------------------------------------------------------------------------------------------


def folds(pairs: Pairs) -> list[tuple[list[int], set[str]]]:
    """Ten classes each to be told apart unseen, and all classes that are near to them in WordNet."""
    table = classes()
    usable = sorted(w for w in set(pairs.wnid) if w and table.loc[w].tiny)
    made = []
    for seed in range(FOLDS):
        chosen = random.Random(1000 + seed).sample(usable, FOLD)
        parents = {p for w in chosen for p in table.loc[w].hypernym_path[:2]}
        near = {w for w in table.index if parents & set(table.loc[w].hypernym_path[:3])}
        made.append(([pairs.wnid.index(w) for w in chosen], near | set(chosen)))
    return made


def accuracy(model: Aligned, pairs: Pairs, groups: list[int]) -> float:
    """How often a picture of ``groups`` is told by the ensemble of templates, among these alone."""
    rows = torch.isin(pairs.group, torch.tensor(groups))
    texts = torch.stack(
        [
            normalize(model.texts(pairs.texts[pairs.first[g] + torch.tensor(ENSEMBLE)]).mean(0), dim=0)
            for g in groups
        ]
    )
    told = (model.images(pairs.images[rows]) @ texts.T).argmax(1)
    return float((torch.tensor(groups)[told] == pairs.group[rows]).float().mean())


def recall(model: Aligned, pairs: Pairs, k: int = 5) -> float:
    """How often the picture of a caption is among the ``k`` nearest."""
    texts = torch.cat([pairs.texts[pairs.first[g] : pairs.first[g + 1]] for g in pairs.group.tolist()])
    truth = torch.arange(len(pairs.images)).repeat_interleave(pairs.first.diff()[pairs.group])
    near = (model.texts(texts) @ model.images(pairs.images).T).topk(k, 1).indices
    return float((near == truth[:, None]).any(1).float().mean())


def choose(pairs: Pairs, watched: Pairs) -> Settings:
    """The settings with the best mean of unseen-class accuracy and caption recall: the closed form's, then the steps."""
    made, scores = folds(pairs), {}

    def best(tried: Iterable[Settings]) -> Settings:
        for settings in tried:
            found = [train(pairs.without(near), settings) for _, near in made]
            told = sum(accuracy(m, pairs, groups) for m, (groups, _) in zip(found, made, strict=True)) / FOLDS
            near = sum(recall(m, watched) for m in found) / FOLDS
            scores[settings] = (told + near) / 2
            print(f"{settings}: unseen classes {told:.3f}, captions {near:.3f}", flush=True)
        return max(scores, key=scores.__getitem__)

    form = best(CLOSED)
    return best(replace(form, steps=steps, rate=rate) for steps, rate in TUNED)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pairs, watched = training_pairs(MODELS[given.model])
    print(
        f"{len(pairs.images)} pictures in {len(set(pairs.group.tolist()))} groups, {len(pairs.texts)} texts"
    )
    settings = choose(pairs, watched)
    print(f"chosen: {settings}")
    write(given.model, train(pairs, settings), settings)


def write(name: str, found: Aligned, settings: Settings) -> None:
    """Both maps in float16 under the names of `VisionTextDualEncoderModel`, and the logarithm of the factor."""
    image = found.image.T
    if MODELS[name].tower.startswith("clip"):  # behind the tower's own projection
        image = image @ load_backbone(MODELS[name].tower, device="cpu").model.visual_projection.weight
    tensors = {
        "visual_projection.weight": (image / image.std()).half().contiguous(),
        "text_projection.weight": (found.text.T / found.text.std()).half().contiguous(),
        "logit_scale": torch.tensor(math.log(found.scale)),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / f"{name.replace('-', '_')}.safetensors"
    save_file(tensors, file, metadata={"settings": str(settings)})
    print(f"written: {file.name}, {file.stat().st_size / 1e6:.2f} MB, factor {found.scale:.1f}")


if __name__ == "__main__":
    main()
