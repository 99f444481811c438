"""MVLPT: a prompt learned on many tasks together is where each task's own prompt starts.

Source stage: the classes of all source tasks stand in one list, their few-shot pictures in one pool, and one prompt learns
to tell all of them apart.  Then the target's prompt goes on from there.  Several source runs (``--source-runs``, the paper
has 3) are averaged.  ``--together`` trains target and sources at once instead, as the paper does with groups of related
tasks.  Sources are given by ``--sources``, comma separated, as ``--data`` takes them; without, it is the prompt alone.

Three prompts.  ``text``: vectors around the class name (CoOp's).  ``visual``: tokens behind the class token in every layer
of the image tower (VPT's).  ``unified``: both, made from free vectors by one small transformer layer, so that each side
hears of the other; ``--no-coupling`` feeds the free vectors themselves.

Learns: ``length * w_t`` values (text, 8,192 on CLIP ViT-B/16), ``length * layers * w_v`` (visual, 147,456), or both and the
transformer (unified, 566,400), however many tasks there are.  Costs: text prompts leave pictures encoded once; the others
need both passes of the image tower; in use a unified prompt's transformer runs once.

Source: Shen et al., *Multitask Vision-Language Prompt Tuning*, WACV 2024, arXiv 2211.11720.  The joint loss runs over all
tasks' classes as in the release; ``--mask`` keeps each picture to its own task's.  Departures: models are kept by their
last step unless ``--keep best``; the paper's search over all pairs of tasks for groups is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cuelight.backbones.backbone import Backbone
from cuelight.data import read
from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import Contrastive, clip_schedule
from cuelight.prompts.dual import ClassTokens, encode_images, encode_text, learned_context
from cuelight.prompts.multimodal import by_layer
from cuelight.tasks.image import ImageBatch, ImageItem
from cuelight.training import ParamGroup, Stage
from cuelight.training.batches import order_by_seed


class MVLPTConfig(MethodConfig):
    variant: Literal["text", "visual", "unified"] = Field("unified", description="Which prompts learn.")
    length: int | None = Field(
        None, ge=1, description="Vectors (a layer); default 16 for text and visual, 4 for unified."
    )
    coupling: bool = Field(
        True, description="Unified prompts are made by a transformer, not fed as they are."
    )
    width: int = Field(128, ge=1, description="Width of that transformer.")
    sources: str = Field("", description="Source tasks, comma separated: data as --data takes it.")
    source_shots: int | None = Field(
        16, ge=1, description="Training pictures per class of a source; all of them with 'none'."
    )
    source_runs: int = Field(1, ge=1, description="Source runs whose prompts are averaged.")
    together: bool = Field(False, description="Train target and sources at once.")
    mask: bool = Field(False, description="Each picture is told from its own task's classes only.")
    init_seed: int = Field(0, ge=0, description="Seed of the start.")


class Mixer(nn.Module):
    """One pre-norm transformer layer over all vectors, between a projection of each tower's and back."""

    def __init__(self, text_width: int, vision_width: int, width: int) -> None:
        super().__init__()
        self.down_text, self.up_text = nn.Linear(text_width, width), nn.Linear(width, text_width)
        self.down_vision, self.up_vision = nn.Linear(vision_width, width), nn.Linear(width, vision_width)
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 1, batch_first=True)
        self.second, self.wide, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, text: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
        """Text ``[n, w_t]`` and vision ``[layers, n, w_v]`` to prompts of the same shapes."""
        joined = torch.cat([self.down_text(text), self.down_vision(vision).flatten(0, 1)])[None]
        seen = self.norm(joined)
        joined = joined + self.attention(seen, seen, seen, need_weights=False)[0]
        wide = self.wide(self.second(joined))
        joined = joined + self.narrow(wide * torch.sigmoid(1.702 * wide))
        count = len(text)
        return self.up_text(joined[0, :count]), self.up_vision(joined[0, count:].view(*vision.shape[:2], -1))


class Prompt(nn.Module):
    """What learns: free vectors of one or both towers, and what couples them."""

    def __init__(self, backbone: Backbone, config: MVLPTConfig, length: int, seed: int) -> None:
        super().__init__()
        dual = backbone.dual
        assert dual is not None
        draw = torch.Generator().manual_seed(seed)
        self.text: nn.Parameter | None = None
        self.vision: nn.Parameter | None = None
        self.mixer: Mixer | None = None
        if config.variant != "visual":
            self.text = nn.Parameter(torch.randn(length, dual.text.width, generator=draw) * 0.02)
        if config.variant != "text":
            bound = (6 / (3 * dual.patch_size**2 + dual.vision.width)) ** 0.5
            shape = dual.vision.depth, length, dual.vision.width
            self.vision = nn.Parameter((2 * torch.rand(shape, generator=draw) - 1) * bound)
        if config.variant == "unified" and config.coupling:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.mixer = Mixer(dual.text.width, dual.vision.width, config.width)
        self.to(backbone.device)

    def forward(self) -> tuple[Tensor | None, Tensor | None]:
        """Text vectors ``[n, w_t]`` and image tokens ``[layers, n, w_v]``, None for a tower without."""
        if self.mixer is not None:
            assert self.text is not None and self.vision is not None
            return cast(tuple[Tensor, Tensor], self.mixer(self.text, self.vision))
        return self.text, self.vision


@dataclass
class Pool:
    """Several tasks as one: all classes' names, items with labels among them, and each task's range of classes."""

    names: tuple[str, ...]
    tokens: ClassTokens
    train: list[ImageItem]
    validation: list[ImageItem]
    ranges: list[tuple[int, int]]

    def allowed(self, labels: Tensor) -> Tensor:
        """Which classes are of the same task as each label, ``[B, C]``."""
        owner = torch.cat([torch.full((stop - start,), k) for k, (start, stop) in enumerate(self.ranges)])
        owner = owner.to(labels.device)
        return owner[labels][:, None] == owner[None]


class MVLPT(Contrastive):
    """A prompt that starts where many tasks meet.

    Attributes:
        prompt: the target's.
        sources: those of the source runs, while training.
    """

    card: ClassVar[Card] = Card(
        name="mvlpt",
        title="MVLPT: multitask vision-language prompt tuning",
        family="vision_language",
        modality="vision-language",
        learns="vectors around the class name, tokens in every image layer, or both from a small transformer",
        cost="training: the source tasks together, then the target; in use a few more tokens",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Multitask Vision-Language Prompt Tuning",
        arxiv="2211.11720",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = MVLPTConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=200, batch_size=32)
    opens: ClassVar[tuple[str, ...]] = ("sources",)
    config: MVLPTConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.length = config.length or (4 if config.variant == "unified" else 16)
        if config.variant != "visual" and self.length % 2:
            raise ConfigError(
                f"length: is {self.length}; the class name stands in the middle, give an even number"
            )
        if config.together and not config.sources:
            raise ConfigError("together: needs --sources to learn with")
        self.prompt = Prompt(backbone, config, self.length, config.init_seed)
        self.sources = nn.ModuleList()
        self._pool: Pool | None = None
        self.renamed()

    @property
    def caches(self) -> bool:
        return self.config.variant == "text" and not self.task.augments

    def renamed(self) -> None:
        self.tokens = self._tokens(self.names)

    def _tokens(self, names: Sequence[str]) -> ClassTokens:
        return self.on_device(learned_context(self.backbone, names, self.length, position="middle"))

    # ---- the prompted passes ---------------------------------------------------------------------------

    def class_features(self) -> Tensor:
        return self._classes(self.prompt()[0], self.tokens, self.names)

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self._images(self.prompt()[1], batch)

    def _classes(self, text: Tensor | None, tokens: ClassTokens, names: Sequence[str]) -> Tensor:
        if text is None:
            return self.zero_shot(("a photo of a {}.",), names)
        return encode_text(self.backbone, tokens, text)

    def _images(self, vision: Tensor | None, batch: ImageBatch) -> Tensor:
        if vision is None:
            return self.frozen_features(batch)
        assert batch.pixels is not None
        first, deep = by_layer(vision)
        return encode_images(self.backbone, batch.pixels, first, deep, after=1, entering=False)

    def _scores(self, prompt: Prompt, pool: Pool, batch: ImageBatch) -> Tensor:
        text, vision = prompt()
        features = self._classes(text, pool.tokens, pool.names)
        return self.dual.scale * self._images(vision, batch) @ features.T

    def _joint_loss(self, prompt: Prompt, pool: Pool, batch: ImageBatch) -> Tensor:
        scores = self._scores(prompt, pool, batch)
        if self.config.mask:
            scores = scores.masked_fill(~pool.allowed(batch.label), -torch.inf)
        return cross_entropy(scores, batch.label)

    # ---- sources ---------------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        super().prepare(data, seed)
        self.sources, self._pool = nn.ModuleList(), None
        if not self.config.sources:
            return
        parts: list[tuple[Sequence[str], list[ImageItem], list[ImageItem]]] = []
        if self.config.together:
            parts.append((self.names, data.train, data.validation))
        for name in filter(None, map(str.strip, self.config.sources.split(","))):
            splits = read(name, shots=self.config.source_shots, max_validation=200, seed=seed)
            if splits.modality != "image" or splits.kind != "classification":
                raise ConfigError(f"sources: {name} holds no pictures with classes; give data sets that do")
            task = self.task.renamed(splits.classes)
            parts.append((task.names, task.encode(splits.train), task.encode(splits.validation)))
        self._pool = self._pooled(parts)
        if self.caches:
            self.remember([*self._pool.train, *self._pool.validation])
        if not self.config.together:
            seeds = range(self.config.init_seed, self.config.init_seed + self.config.source_runs)
            made = (Prompt(self.backbone, self.config, self.length, seed_) for seed_ in seeds)
            self.sources = nn.ModuleList(made)

    def _pooled(self, parts: Sequence[tuple[Sequence[str], list[ImageItem], list[ImageItem]]]) -> Pool:
        names: list[str] = []
        train: list[ImageItem] = []
        held: list[ImageItem] = []
        ranges = []
        for own, learn, check in parts:
            start = len(names)
            names += own
            ranges.append((start, len(names)))
            train += [_shifted(item, start) for item in learn]
            held += [_shifted(item, start) for item in check]
        return Pool(tuple(names), self._tokens(names), train, held, ranges)

    # ---- stages ----------------------------------------------------------------------------------------

    def groups(self) -> list[ParamGroup]:
        return self._groups(self.prompt)

    @staticmethod
    def _groups(prompt: Prompt) -> list[ParamGroup]:
        return [ParamGroup("prompt", dict(prompt.named_parameters()), lr=0.002)]

    def stages(self, data: Data) -> list[Stage]:
        [target] = super().stages(data)
        target.batch_order = order_by_seed  # whatever comes before
        pool = self._pool
        if pool is None:
            return [target]
        if self.config.together:
            target.examples, target.loss = pool.train, partial(self._joint_loss, self.prompt, pool)
            return [target]
        found = []
        for k, prompt in enumerate(cast(list[Prompt], list(self.sources))):
            found.append(
                Stage(
                    name=f"sources {k + 1}" if len(self.sources) > 1 else "sources",
                    groups=self._groups(prompt),
                    examples=pool.train,
                    collate=self.training_batch,
                    loss=partial(self._joint_loss, prompt, pool),
                    validate=partial(self._accuracy, prompt, pool) if pool.validation else None,
                    monitor="accuracy",
                    higher_is_better=True,
                    defaults=dict(self.training_defaults),
                )
            )
        target.begin = self._transfer
        return [*found, target]

    @torch.no_grad()
    def _transfer(self) -> None:
        """Begin at the mean of the source runs' prompts."""
        for name, own in self.prompt.named_parameters():
            own.copy_(torch.stack([s.get_parameter(name) for s in self.sources]).mean(0))

    @torch.no_grad()
    def _accuracy(self, prompt: Prompt, pool: Pool) -> dict[str, float]:
        """Of each held-out picture among its own task's classes."""
        right = 0
        for k in range(0, len(pool.validation), 32):
            batch = self.batch(pool.validation[k : k + 32]).to(self.backbone.device)
            scores = self._scores(prompt, pool, batch)
            found = scores.masked_fill(~pool.allowed(batch.label), -torch.inf).argmax(1)
            right += int((found == batch.label).sum())
        return {"accuracy": right / len(pool.validation)}

    @property
    def trainable(self) -> int:
        return sum(p.numel() for p in self.prompt.parameters())

    def kept(self) -> dict[str, Tensor]:
        return {n: t for n, t in super().kept().items() if not n.startswith("sources.")}


def _shifted(item: ImageItem, by: int) -> ImageItem:
    return ImageItem(item.picture, item.key, item.label + by, item.row, item.feature)
