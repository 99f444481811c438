"""CoCoOp: CoOp's context, shifted by what is seen in the picture.

A small network turns the frozen image feature f into one vector that is added to all M context vectors:
pi(f) = W2 relu(W1 f + b1) + b2, W1: d -> d/16, W2: d/16 -> w.  It gives back part of what CoOp loses on new classes.

Learned: M x w + (d + 1) d/16 + (d/16 + 1) w values.  Cost: every picture needs a text pass of its own for all classes,
while learning and while answering.

Source: Zhou, Yang, Loy, Liu, *Conditional Prompt Learning for Vision-Language Models*, CVPR 2022, arXiv 2203.05557.
Departures: pictures are not augmented unless ``--augment crop`` says so.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.methods.base import Card, MethodConfig
from cuelight.methods.contrastive import Contrastive, clip_schedule
from cuelight.prompts.dual import encode_text, template_context
from cuelight.tasks.image import ImageBatch, ImageTask
from cuelight.training import ParamGroup

_ROWS = 256  # texts in one pass while answering


class CoCoOpConfig(MethodConfig):
    init_text: str = Field(
        "a photo of a {}.", description="The class prompt; its words are the context at the start."
    )
    context_length: int | None = Field(
        None, ge=1, description="Learned vectors, the first words of the prompt; default: all of them."
    )
    reduction: int = Field(
        16, ge=1, description="How many times narrower the hidden layer is than the image feature."
    )
    init_seed: int = Field(0, ge=0, description="Seed of the network's weights.")


class CoCoOp(Contrastive):
    """Context vectors that a small network shifts for every picture.

    Attributes:
        context: ``[M, w]``.
        network: from the image feature ``[B, d]`` to the shift ``[B, w]``.
    """

    card: ClassVar[Card] = Card(
        name="cocoop",
        title="CoCoOp: conditional context optimisation",
        family="baselines",
        modality="vision-language",
        learns="M x text width values and a small network from the image feature to the text width",
        cost="pictures x classes short texts through the text tower, in training and in use",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Conditional Prompt Learning for Vision-Language Models",
        arxiv="2203.05557",
        year=2022,
    )
    Config: ClassVar[type[MethodConfig]] = CoCoOpConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=10, batch_size=1)
    config: CoCoOpConfig

    def __init__(self, backbone: Any, task: ImageTask, config: CoCoOpConfig) -> None:
        super().__init__(backbone, task, config)
        self.renamed()
        assert self.tokens.start is not None
        self.context = nn.Parameter(backbone.embed(self.tokens.start).detach().float())
        joint, hidden = self.dual.width, max(1, self.dual.width // config.reduction)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            self.network = nn.Sequential(
                nn.Linear(joint, hidden), nn.ReLU(), nn.Linear(hidden, self.dual.text.width)
            ).to(backbone.device)

    def renamed(self) -> None:
        config = self.config
        self.tokens = self.on_device(
            template_context(self.backbone, self.names, config.init_text, config.context_length)
        )

    def scores(self, batch: ImageBatch) -> Tensor:
        features = self.image_features(batch)
        # Rows of one picture after the other; without gradients in parts, since there may be thousands.
        part = len(features) if torch.is_grad_enabled() else max(1, _ROWS // len(self.tokens))
        return torch.cat([self._scores(rows) for rows in features.split(part)])

    def _scores(self, features: Tensor) -> Tensor:
        contexts = self.context + self.network(features.float())[:, None]
        classes = encode_text(self.backbone, self.tokens.repeated(len(features)), contexts)
        table = classes.view(len(features), -1, classes.shape[-1])
        return self.dual.scale * torch.einsum("bd,bcd->bc", features, table)

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("context", dict(self.named_parameters()), 0.002)]
