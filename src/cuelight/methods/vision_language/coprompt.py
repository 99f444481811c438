"""CoPrompt: MaPLe's coupled prompts and an adapter behind each tower, held near the frozen model by other inputs.

The frozen model looks at another random view of the picture (RandAugment's, or as ``--augment`` says), and reads a sentence
about each class in place of the template; the cosine distance between its features and the adapted ones is added to the
cross-entropy.  Every step draws one sentence number, for all classes.  Sentences come from ``--sentences``: a file of class
descriptions (CuPL's or your own), WordNet's definitions, or, by default, many templates around the class name.

Learns: MaPLe's prompts and maps, and two bottlenecks of ``d * d / 2`` values: 3,817,216 on CLIP ViT-B/16 (2 vectors, 9
layers), 5,014,528 with 4 vectors in 12.  Costs: MaPLe's, and a frozen image pass in every step; in use two small products
an image.

Source: Roy and Etemad, *Consistency-guided Prompt Learning for Vision-Language Models*, ICLR 2024, arXiv 2306.01195.
Departures: the paper's sentences are GPT's; a class with fewer sentences than another repeats its own.  The release sets
the weight, layers and vectors for each data set (weights 0.1 to 8); here they are options with one default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize

from cuelight.backbones.backbone import Backbone
from cuelight.data.descriptions import class_descriptions
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import clip_schedule
from cuelight.methods.deep import CoupledConfig, CoupledPrompted
from cuelight.tasks.image import TEMPLATE_SETS, ImageBatch, ImageItem
from cuelight.training import ParamGroup


class CoPromptConfig(CoupledConfig):
    weight: float = Field(2.0, ge=0, description="Weight of the consistency.")
    sentences: str = Field(
        "templates",
        description="What the frozen model reads: 'templates', 'wordnet', or a file of descriptions by class.",
    )
    wordnet: str = Field("", description="Folder with WordNet's files, for --sentences wordnet.")
    views: Literal["two", "same", "plain"] = Field(
        "two",
        description="Two random views of a picture, one for the frozen model; the same for both; or the picture itself.",
    )
    distance: Literal["cosine", "squared"] = Field("cosine", description="Distance of the consistency.")
    image_ratio: float = Field(0.1, ge=0, le=1, description="Share of the adapter in an image's feature.")
    text_ratio: float = Field(0.2, ge=0, le=1, description="Share of the adapter in a class's feature.")


class Adapter(nn.Module):
    """``relu(up(relu(down(h))))`` without biases, a quarter of the width between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // 4, bias=False)
        self.up = nn.Linear(width // 4, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.up(self.down(features).relu()).relu())

    def mixed(self, features: Tensor, ratio: float) -> Tensor:
        """Normalised features with a share of the adapted ones."""
        return normalize(ratio * self(features) + (1 - ratio) * features, dim=-1)


def consistency(ours: Tensor, frozen: Tensor, distance: str = "cosine") -> Tensor:
    """Mean distance of features ``[N, d]``."""
    if distance == "squared":
        return mse_loss(ours, frozen)
    return (1 - cosine_similarity(ours, frozen, dim=-1)).mean()


class CoPrompt(CoupledPrompted):
    """Coupled prompts and adapters, consistent with the frozen model."""

    card: ClassVar[Card] = Card(
        name="coprompt",
        title="CoPrompt: consistency-guided prompt learning",
        family="vision_language",
        modality="vision-language",
        learns="MaPLe's prompts and maps, and an adapter behind each tower",
        cost="training: MaPLe's and a frozen image pass; in use two small products more an image",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Consistency-guided Prompt Learning for Vision-Language Models",
        arxiv="2306.01195",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = CoPromptConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=8, batch_size=4)
    opens: ClassVar[tuple[str, ...]] = ("sentences",)
    config: CoPromptConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            self.image_adapter, self.text_adapter = Adapter(self.dual.width), Adapter(self.dual.width)
        self.to(backbone.device)
        self.sentences = torch.empty(0)  # [S, C, d], what the frozen model says of the classes

    def class_features(self) -> Tensor:
        return self.text_adapter.mixed(self.prompted_classes(normalised=False), self.config.text_ratio)

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self.image_adapter.mixed(
            self.prompted_images(batch, normalised=False), self.config.image_ratio
        )

    def prepare(self, data: Data, seed: int) -> None:
        super().prepare(data, seed)
        config = self.config
        if config.sentences == "templates":
            listed = [[t.replace("{}", name) for t in TEMPLATE_SETS["varied"]] for name in self.names]
        else:
            found = class_descriptions(config.sentences, self.names, wordnet=config.wordnet)
            plain = [[self.task.templates[0].replace("{}", name)] for name in self.names]
            listed = [said or instead for said, instead in zip(found, plain, strict=True)]
        most = max(map(len, listed))
        known = [normalize(self.texts(said, cut=True), dim=-1) for said in listed]
        self.sentences = torch.stack([one[torch.arange(most) % len(one)] for one in known], 1)

    def training_batch(  # type: ignore[override]
        self, items: Sequence[ImageItem]
    ) -> tuple[ImageBatch, ImageBatch]:
        """What the prompted and what the frozen model see of the pictures."""
        if self.config.views == "plain":
            one = self.task.collate(items)
            return one, one
        how = self.task.config.augment if self.task.augments else "rand"
        first = self.task.collate(items, augment=how)
        return first, self.task.collate(items, augment=how) if self.config.views == "two" else first

    def loss(self, batch: ImageBatch | Sequence[ImageBatch]) -> Tensor:
        ours, other = (batch, batch) if isinstance(batch, ImageBatch) else batch
        text, images = self.class_features(), self.image_features(ours)
        loss = cross_entropy(self.dual.scale * images @ text.T, ours.label)
        if not self.config.weight:
            return loss
        drawn = int(torch.randint(len(self.sentences), ()))
        far = consistency(text, self.sentences[drawn], self.config.distance)
        far = far + consistency(images, self.frozen_features(other), self.config.distance)
        return loss + self.config.weight * far

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompts", dict(self.named_parameters()), lr=0.0035)]
