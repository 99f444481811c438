"""GRAM: pictures with captions teach where a prompt should start and which way it should then go.

Few-shot prompts depend on their start and overfit.  From unlabelled pairs (``--pairs``, any data with pictures and a caption
column) tasks are made by clustering (`cuelight.tasks.captioned`); they learn from one visual domain and are examined on
another.  Meta-training over them learns the prompt's start, and a *regulator*, a small gate that scales each coordinate of
the prompt's gradient by 0 to 2 so that a step on one domain helps on the other too.  On the target the prompt starts there,
and every gradient passes the fixed regulator before momentum.

``--base text`` wraps CoOp's four vectors, ``unified`` those and tokens in every layer of the image tower (the paper's
UNIGRAM).  ``--pairs`` may name a gram artifact, whose start and regulator are taken.  Controls: ``--meta plain`` learns the
start on the same pairs without inner steps and without a regulator, ``none`` starts from the words, ``--no-regulate``
leaves the target's gradients alone.

Learns: the base's prompt, 2,048 values on CLIP ViT-B/16 for CoOp's; in meta-training a regulator for each tower, 33,312 and
74,544.  Costs: once, ``tasks * (inner_steps + 1)`` passes for a meta step; the base method's on the target and in use.

Source: Li et al., *Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models*, ICCV 2023, arXiv
2303.06571.  **A reconstruction**: no code is known and the paper's details were not at hand.  From the paper: both learned
objects, unlabelled pairs, tasks by cross-modal hierarchical clustering, support and query of different domains, any base
method.  Ours, each an option or named here: the clustering's levels and names, the regulator's form (a gate that can not
turn a gradient's sign), MAML in first order for the start (exact for the regulator given the inner gradients), all sizes
and rates, AdamW in meta-training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, normalize

from cuelight.backbones.backbone import Backbone
from cuelight.data.pairs import Pair, read_pairs
from cuelight.errors import ArtifactError, DataError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import Contrastive, clip_schedule
from cuelight.prompts.dual import ClassTokens, encode_images, encode_text, template_context
from cuelight.prompts.multimodal import by_layer
from cuelight.tasks.captioned import PseudoClass, draw_task, pseudo_classes
from cuelight.tasks.image import ImageBatch, ImageItem
from cuelight.training import ParamGroup, Stage
from cuelight.training.batches import order_by_seed

Theta = list[Tensor]
"""A prompt: the text's vectors ``[M, w_t]`` and, in a unified one, the images' tokens ``[layers, n, w_v]``."""


class GRAMConfig(MethodConfig):
    base: Literal["text", "unified"] = Field("text", description="The prompts that are learned.")
    init_text: str = Field("a photo of a {}.", description="Words the text's prompt starts from.")
    vision_length: int = Field(4, ge=1, description="Tokens in every image layer of a unified prompt.")
    pairs: str = Field("", description="Pictures with captions to learn the start from, or a gram artifact.")
    pairs_rows: int = Field(5000, ge=1, description="Most pairs that are read.")
    meta: Literal["gram", "plain", "none"] = Field(
        "gram", description="What is done with the pairs; all but gram are for comparison."
    )
    meta_steps: int = Field(100, ge=1, description="Steps of meta-training.")
    tasks: int = Field(4, ge=1, description="Tasks in a meta step.")
    ways: int = Field(16, ge=2, description="Classes in a task.")
    meta_shots: int = Field(2, ge=1, description="Pictures a class to learn from, and to be examined on.")
    inner_steps: int = Field(3, ge=0, description="Steps that a task is learned for.")
    inner_rate: float = Field(0.05, gt=0, description="Rate of these steps.")
    second_order: bool = Field(False, description="Differentiate through the inner gradients too.")
    query: Literal["other", "same"] = Field(
        "other", description="Whether a task is examined on the other visual domain or on the same."
    )
    shuffled: bool = Field(False, description="Shuffle the pseudo-labels of a task, as a control.")
    class_size: int = Field(12, ge=2, description="Mean number of pairs in a pseudo-class.")
    gate: Literal["scale", "residual"] = Field(
        "scale", description="The regulator scales coordinates by 0 to 2, or adds to them."
    )
    regulate: bool = Field(True, description="The regulator acts on the target's gradients too.")
    start_rate: float = Field(2e-3, gt=0, description="Meta-training's rate of the start.")
    gate_rate: float = Field(1e-3, gt=0, description="Meta-training's rate of the regulators.")
    init_seed: int = Field(0, ge=0, description="Seed of tokens and regulators.")


class Regulator(nn.Module):
    """From a gradient to the step that is taken, row by row; the identity at the start.

    ``g * 2 sigmoid(f(g / |g|))``, or with ``residual`` ``g + |g| f(g / |g|)``; ``f`` has one hidden layer.
    """

    def __init__(self, width: int, residual: bool = False) -> None:
        super().__init__()
        hidden = max(1, width // 16)
        self.down, self.up, self.residual = nn.Linear(width, hidden), nn.Linear(hidden, width), residual
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, gradient: Tensor) -> Tensor:
        size = gradient.norm(dim=-1, keepdim=True)
        inner = self.up(self.down(gradient / size.clamp_min(1e-30)).relu())
        return cast(Tensor, gradient + size * inner if self.residual else gradient * 2 * inner.sigmoid())


def adapted(
    theta: Theta,
    learn: Any,
    regulators: Sequence[Any],
    steps: int,
    rate: float,
    *,
    second_order: bool = False,
) -> Theta:
    """``theta`` after some regulated gradient steps on the loss ``learn(theta)``.

    In first order the inner gradients are constants: the result depends on ``theta`` as on a summand, and on the
    regulators through every step.
    """
    found = theta
    for _ in range(steps):
        if second_order:
            with sdpa_kernel(SDPBackend.MATH):  # the others can not be differentiated twice
                gradients = torch.autograd.grad(learn(found), found, create_graph=True)
        else:
            fixed = [t.detach().requires_grad_(True) for t in found]
            gradients = torch.autograd.grad(learn(fixed), fixed)
        found = [t - rate * gate(g) for t, g, gate in zip(found, gradients, regulators, strict=True)]
    return found


@dataclass
class Episode:
    """A task from the pairs: class prompts, pictures and labels to learn from and to be examined on."""

    tokens: ClassTokens
    support: tuple[list[ImageItem], Tensor]
    query: tuple[list[ImageItem], Tensor]


class GRAM(Contrastive):
    """A prompt with a learned start and regulated gradients.

    Attributes:
        theta: the prompt, see `Theta`.
        start: where the target's training began, once meta-training has ended.
        regulators: one for each part of the prompt.
    """

    card: ClassVar[Card] = Card(
        name="gram",
        title="GRAM: gradient-regulated meta-prompt learning",
        family="vision_language",
        modality="vision-language",
        learns="CoOp's vectors, or those and image tokens; their start and a gradient gate from captioned pictures",
        cost="once: meta-training on pairs; then the base method's",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models",
        arxiv="2303.06571",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = GRAMConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=50, batch_size=32)
    opens: ClassVar[tuple[str, ...]] = ("pairs",)
    config: GRAMConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.renamed()
        assert self.tokens.start is not None
        with torch.no_grad():
            parts = [backbone.embed(self.tokens.start).float()]
        if config.base == "unified":
            draw = torch.Generator().manual_seed(config.init_seed)
            shape = self.dual.vision.depth, config.vision_length, self.dual.vision.width
            parts.append(torch.randn(shape, generator=draw) * 0.02)
        self.theta = nn.ParameterList([nn.Parameter(part.to(backbone.device)) for part in parts])
        self.start = nn.ParameterList(
            [nn.Parameter(part.clone(), requires_grad=False) for part in self.theta]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            gates = [Regulator(part.shape[-1], config.gate == "residual") for part in parts]
        self.regulators = nn.ModuleList(gates).to(backbone.device)
        self._items: list[ImageItem] = []
        self._classes: list[PseudoClass] = []
        self._class_tokens: dict[tuple[str, ...], ClassTokens] = {}

    @property
    def caches(self) -> bool:
        return self.config.base == "text" and not self.task.augments

    def renamed(self) -> None:
        self.tokens = self._tokens(self.names)

    def _tokens(self, names: Sequence[str]) -> ClassTokens:
        return self.on_device(template_context(self.backbone, names, self.config.init_text))

    # ---- the base method -------------------------------------------------------------------------------

    def class_features(self) -> Tensor:
        return encode_text(self.backbone, self.tokens, self.theta[0])

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self._seen(list(self.theta), batch)

    def _seen(self, theta: Theta, batch: ImageBatch) -> Tensor:
        if len(theta) == 1:
            return self.frozen_features(batch)
        assert batch.pixels is not None
        first, deep = by_layer(theta[1])
        return encode_images(self.backbone, batch.pixels, first, deep, after=1, entering=False)

    def _error(self, theta: Theta, tokens: ClassTokens, batch: ImageBatch, labels: Tensor) -> Tensor:
        classes = encode_text(self.backbone, tokens, theta[0])
        return cross_entropy(self.dual.scale * self._seen(theta, batch) @ classes.T, labels)

    def loss(self, batch: ImageBatch) -> Tensor:
        return self._error(self._regulated(), self.tokens, batch, batch.label)

    def _regulated(self) -> Theta:
        """The prompt, such that its gradient passes the regulators."""
        if not (self.config.regulate and self.config.meta == "gram" and self.config.pairs):
            return list(self.theta)
        seen = [part.view_as(part) for part in self.theta]
        for part, gate in zip(seen, self.regulators, strict=True):
            if part.requires_grad:
                part.register_hook(lambda gradient, gate=gate: gate(gradient).detach())
        return seen

    # ---- meta-training ---------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        super().prepare(data, seed)
        config = self.config
        self._items, self._classes = [], []
        if not config.pairs or config.meta == "none":
            return
        if (Path(config.pairs) / "cuelight.json").is_file():
            self._take(Path(config.pairs))
            return
        pairs = read_pairs(config.pairs, most=config.pairs_rows, seed=seed)
        self._items = self.task.encode([{"image": pair.picture, "key": pair.key} for pair in pairs])
        self.remember(self._items, "pictures of the pairs")
        images = torch.stack([i.feature for i in self._items if i.feature is not None]).float().cpu()
        captions = self._captions(pairs)
        self._classes = pseudo_classes(
            images,
            captions,
            [pair.captions[0] for pair in pairs],
            shots=config.meta_shots,
            size=config.class_size,
            avoid=self.names,
            seed=seed,
        )
        if len(self._classes) < 2:
            raise DataError(
                f"pairs: {config.pairs} has {len(pairs)} pairs, from which {len(self._classes)} pseudo-classes "
                "could be made; give more pairs, or a larger --class-size"
            )

    def _captions(self, pairs: Sequence[Pair]) -> Tensor:
        flat = [caption for pair in pairs for caption in pair.captions]
        found = normalize(self.texts(flat, cut=True).float().cpu(), dim=-1)
        parts = found.split([len(pair.captions) for pair in pairs])
        return normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)

    def _take(self, folder: Path) -> None:
        """Start and regulators of another run."""
        card = json.loads((folder / "cuelight.json").read_text(encoding="utf-8"))
        if card.get("method") != "gram" or card["backbone"]["sha256"] != self.backbone.fingerprint:
            raise ArtifactError(f"pairs: {folder} is no gram artifact of {self.backbone.id}; train one")
        held = load_file(folder / "prompt.safetensors")
        own = self.state_dict()
        wanted = {n: held.get(n) for n in own if n.startswith(("start.", "regulators."))}
        for name, tensor in wanted.items():
            if tensor is None or tensor.shape != own[name].shape:
                raise ArtifactError(f"pairs: {folder} holds another kind of prompt; give --base as there")
        with torch.no_grad():
            for name, tensor in wanted.items():
                own[name].copy_(cast(Tensor, tensor))
        self._restart()

    @torch.no_grad()
    def _restart(self) -> None:
        """Begin the target at the start."""
        for part, start in zip(self.theta, self.start, strict=True):
            part.copy_(start)

    @torch.no_grad()
    def _keep_start(self) -> None:
        for part, start in zip(self.theta, self.start, strict=True):
            start.copy_(part)

    def episode(self, number: int) -> Episode:
        """Task ``number`` of meta-training."""
        config = self.config
        draw = np.random.RandomState((1_000_003 * config.init_seed + number) % 2**32)
        chosen, *sides = draw_task(
            self._classes, config.ways, config.meta_shots, draw, same=config.query == "same"
        )
        names = tuple(one.name for one in chosen)
        if names not in self._class_tokens:
            self._class_tokens[names] = self._tokens(names)
        labels = torch.tensor([k for k, places in enumerate(sides[0]) for _ in places])
        if config.shuffled:
            labels = labels[torch.from_numpy(draw.permutation(len(labels)))]
        items = [[self._items[p] for places in side for p in places] for side in sides]
        return Episode(self._class_tokens[names], (items[0], labels), (items[1], labels))

    def meta_loss(self, episodes: Sequence[Episode]) -> Tensor:
        """Mean error of the adapted prompt on the tasks' queries."""
        config, theta = self.config, cast(Theta, list(self.theta))
        losses = []
        for one in episodes:
            support, query = (
                (self.batch(items).to(self.backbone.device), labels.to(self.backbone.device))
                for items, labels in (one.support, one.query)
            )
            if config.meta == "plain":
                losses += [self._error(theta, one.tokens, *side) for side in (support, query)]
                continue
            found = adapted(
                theta,
                lambda t, s=support, one=one: self._error(t, one.tokens, *s),
                list(self.regulators),
                config.inner_steps,
                config.inner_rate,
                second_order=config.second_order,
            )
            losses.append(self._error(found, one.tokens, *query))
        return torch.stack(losses).mean()

    # ---- stages ----------------------------------------------------------------------------------------

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompt", dict(self.theta.named_parameters()), lr=0.002)]

    def stages(self, data: Data) -> list[Stage]:
        [target] = super().stages(data)
        target.batch_order = order_by_seed  # whatever comes before
        if not self._classes:
            return [target]
        config = self.config
        groups = [ParamGroup("start", dict(self.theta.named_parameters()), lr=config.start_rate)]
        if config.meta == "gram" and config.inner_steps:
            gates = dict(self.regulators.named_parameters())
            groups.append(ParamGroup("regulators", gates, lr=config.gate_rate))
        meta = Stage(
            name="meta",
            groups=groups,
            examples=range(config.meta_steps * config.tasks),
            collate=lambda numbers: [self.episode(number) for number in numbers],
            loss=self.meta_loss,
            finish=self._keep_start,
            insists={
                "epochs": 1.0,
                "batch_size": config.tasks,
                "learning_rate": config.start_rate,
                "optimizer": "adamw",
                "schedule": "cosine",
                "clip": 1.0,
            },
        )
        return [meta, target]

    @property
    def trainable(self) -> int:
        return sum(p.numel() for p in self.theta.parameters())
