"""MoCoOp: several soft prompts, each from a group of templates, and a router that mixes two of them for every picture.

Templates that say like things form a group (``--groups``, ``|`` between the members of one, ``;`` between groups).  The
words of a group's first template become the vectors of an expert.  A linear router reads the picture's frozen feature,
takes the two likeliest experts and mixes their class features by its softmax.  It is taught which groups' hard templates lie
nearest to the picture and its class; every expert is taught to tell the class names apart as its own group's hard templates
do.

Learns: a vector a word, ``(d + 1) * groups`` values of the router, and a correction ``[d]`` of all class features: 18,950 on
CLIP ViT-B/16 with the paper's six groups for EuroSAT.  ``--norms`` lets the image tower's layer norms learn too (36,864 more),
as the release does without the abstract saying so; pictures are then encoded in every step.  Costs: groups times classes
short texts a step; in use their features are computed once, and a picture costs one small product more.

``--router random`` draws experts at random and ``uniform`` mixes all equally, for comparison.

Source: Du et al., *Mixture of Prompt Learning for Vision Language Models*, arXiv 2409.12011 (Frontiers in AI 8, 2025).  As
in the release the text supervision has no temperature (``--text-scale clip`` gives it CLIP's).  Departures: it uses the
trained classes' names alone, where the release adds the new ones' (``--more-names``).  Ours: the default groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from cuelight.backbones.backbone import Backbone
from cuelight.methods.base import Card, MethodConfig
from cuelight.methods.contrastive import Contrastive, clip_schedule
from cuelight.prompts.dual import ClassTokens, encode_text, template_context
from cuelight.prompts.norms import TunedNorms
from cuelight.tasks.image import ImageBatch, named_templates
from cuelight.training import ParamGroup

_GROUPS = (
    "a photo of a {}.",
    "a photo of the large {}.|a photo of a large {}.",
    "a photo of the small {}.|a photo of a small {}.",
    "a low resolution photo of the {}.|a low resolution photo of a {}.|a pixelated photo of a {}.",
    "a good photo of the {}.|a good photo of a {}.",
    "a drawing of a {}.|a sketch of a {}.|a painting of a {}.",
)
_LIFT = 10.0
"""What the gate's target adds to the nearest groups' cosines."""


class MoCoOpConfig(MethodConfig):
    groups: tuple[str, ...] | str = Field(
        _GROUPS, description="Groups of templates: ; stands between groups, | within one."
    )
    experts: int = Field(2, ge=1, description="How many experts a picture has; at most all.")
    router: Literal["learned", "random", "uniform"] = Field(
        "learned", description="How a picture gets its experts; all but learned are for comparison."
    )
    text_weight: float = Field(5.0, ge=0, description="Weight of the text supervision.")
    gate_weight: float = Field(1.0, ge=0, description="Weight of the router's supervision.")
    text_scale: Literal["none", "clip"] = Field(
        "none", description="What multiplies cosines in the text supervision: nothing, or CLIP's scale."
    )
    more_names: tuple[str, ...] = Field(
        (), description="More class names for the text supervision, e.g. those of classes to come."
    )
    norms: bool = Field(False, description="The image tower's layer norms learn too, at a tenth of the rate.")
    init_seed: int = Field(0, ge=0, description="Seed of the router.")

    @field_validator("groups", mode="before")
    @classmethod
    def _grouped(cls, value: Any) -> Any:
        if not isinstance(value, str | list | tuple):
            return value
        groups = value.split(";") if isinstance(value, str) else value
        return tuple("|".join(named_templates(str(group))) for group in groups)


def gate_target(cosines: Tensor, nearest: int) -> Tensor:
    """What the router should say, ``[B, G]``: about equal shares for the ``nearest`` groups, nothing for the others."""
    lifted = cosines.clone()
    best = cosines.topk(nearest, dim=-1).indices
    lifted.scatter_add_(-1, best, torch.full_like(cosines, _LIFT).gather(-1, best))
    return lifted.softmax(-1)


class MoCoOp(Contrastive):
    """A mixture of soft prompts.

    Attributes:
        prompts: an expert's vectors each, ``[words, w]``.
        router: from image features to experts.
        shift: ``[d]``, added to every expert's class features.
    """

    card: ClassVar[Card] = Card(
        name="mocoop",
        title="MoCoOp: mixture of prompts",
        family="vision_language",
        modality="vision-language",
        learns="a soft prompt for each group of templates, a linear router, a correction",
        cost="training: groups times classes texts a step, pictures once; in use one small product more a picture",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Mixture of Prompt Learning for Vision Language Models",
        arxiv="2409.12011",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = MoCoOpConfig
    training_defaults: ClassVar[dict[str, Any]] = {**clip_schedule(epochs=25, batch_size=32), "clip": 1.0}
    config: MoCoOpConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.groups_of = [group.split("|") for group in config.groups]
        self.renamed()
        starts = [tokens.start for tokens in self.tokens]
        with torch.no_grad():
            self.prompts = nn.ParameterList(
                [nn.Parameter(backbone.embed(start).float().clone()) for start in starts if start is not None]
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            self.router = nn.Linear(self.dual.width, len(self.prompts))
        self.shift = nn.Parameter(torch.zeros(self.dual.width))
        self.tuned: TunedNorms | None = TunedNorms(self.dual.vision) if config.norms else None
        self.to(backbone.device)

    @property
    def caches(self) -> bool:
        return not self.config.norms and super().caches

    def renamed(self) -> None:
        self.tokens = self._tokens(self.names)

    def _tokens(self, names: Sequence[str]) -> list[ClassTokens]:
        return [self.on_device(template_context(self.backbone, names, group[0])) for group in self.groups_of]

    def experts(self, tokens: Sequence[ClassTokens] | None = None) -> Tensor:
        """Every expert's class features ``[G, C, d]``, normalised."""
        parts = [
            encode_text(self.backbone, rows, vectors, normalised=False)
            for rows, vectors in zip(tokens or self.tokens, self.prompts, strict=True)
        ]
        return normalize(torch.stack(parts).float() + self.shift, dim=-1)

    def prototypes(self, names: Sequence[str]) -> Tensor:
        """Every group's hard class features ``[G, C, d]``, normalised."""
        return torch.stack([self.zero_shot(group, names) for group in self.groups_of]).float()

    def image_features(self, batch: ImageBatch) -> Tensor:
        if self.tuned is None:
            return self.frozen_features(batch)
        assert batch.pixels is not None
        with self.tuned.used():
            return self.dual.image_features(batch.pixels.to(self.backbone.dtype))

    def class_features(self) -> Tensor:
        return self.experts()

    # ---- routing ---------------------------------------------------------------------------------------

    def shares(self, images: Tensor, batch: ImageBatch) -> Tensor:
        """The experts' shares of each picture, ``[B, G]``: softmax over the likeliest, 0 for the others."""
        count = len(self.prompts)
        most = min(self.config.experts, count)
        if self.config.router == "uniform":
            return images.new_full((len(images), count), 1 / count)
        said = self.router(images)
        if self.config.router == "random":
            said = self._drawn(batch, count).to(said)
        best = said.topk(most, dim=-1)
        return torch.zeros_like(said).scatter(-1, best.indices, best.values.softmax(-1))

    def _drawn(self, batch: ImageBatch, count: int) -> Tensor:
        """Scores by chance: anew in training, in use always the same for a picture."""
        if self.training:
            return torch.rand(len(batch), count)
        draws = (torch.Generator().manual_seed(int(item.key[:12], 16)) for item in batch.items)
        return torch.stack([torch.rand(count, generator=draw) for draw in draws])

    def scores(self, batch: ImageBatch) -> Tensor:
        return self._mixed(self.image_features(batch).float(), batch, self._features())

    def _mixed(self, images: Tensor, batch: ImageBatch, experts: Tensor) -> Tensor:
        by_expert = torch.einsum("bd,gcd->bgc", images, experts)
        return self.dual.scale * torch.einsum("bg,bgc->bc", self.shares(images, batch), by_expert)

    # ---- learning --------------------------------------------------------------------------------------

    def loss(self, batch: ImageBatch) -> Tensor:
        config = self.config
        images, experts = self.image_features(batch).float(), self.experts()
        loss = cross_entropy(self._mixed(images, batch, experts), batch.label)
        if config.gate_weight and config.router == "learned":
            own = self.prototypes(self.names)[:, batch.label]  # [G, B, d]
            cosines = torch.einsum("bd,gbd->bg", images, own)
            wanted = gate_target(cosines, min(config.experts, len(self.prompts)))
            loss = loss + config.gate_weight * cross_entropy(self.router(images), wanted)
        if config.text_weight:
            loss = loss + config.text_weight * self.text_loss(experts)
        return loss

    def text_loss(self, experts: Tensor) -> Tensor:
        """How far each expert is from naming the classes as its group's templates do.

        Args:
            experts: class features of the task's classes, ``[G, C, d]``.
        """
        names = [*self.names, *(n for n in self.config.more_names if n not in self.names)]
        if len(names) > len(self.names):
            more = self.experts(self._tokens(names[len(self.names) :]))
            experts = torch.cat([experts, more], 1)
        scores = torch.einsum("gcd,ged->gce", experts, self.prototypes(names))
        if self.config.text_scale == "clip":
            scores = scores * self.dual.scale
        wanted = torch.arange(len(names), device=scores.device).repeat(len(scores))
        return cross_entropy(scores.flatten(0, 1), wanted)

    def groups(self) -> list[ParamGroup]:
        own = {n: p for n, p in self.named_parameters() if not n.startswith("tuned.")}
        found = [ParamGroup("prompts", own, lr=0.032)]
        if self.tuned is not None:
            norms = {n: p for n, p in self.named_parameters() if n.startswith("tuned.")}
            found.append(ParamGroup("norms", norms, lr=0.0032))
        return found
