"""PromptSRC: deep prompts of both towers, regulated by the frozen model they are written into.

Independent prompts in the first layers of both towers learn the task, and are held near plain CLIP in three ways.
Agreement: the prompted features stay near the frozen ones (mean absolute difference), the prompted scores near the frozen
ones (KL from the frozen to the prompted).  Diversity: the frozen text features are the mean over many templates.
Gaussian aggregation: what is used in the end is an average over the epochs' prompts, weighed by a normal density over the
epochs (``--mean``, ``--deviation``): neither the first epochs, which know too little, nor the last, which know only the
task.

Learns: ``layers * (length * w_t + vision_length * w_v)`` values, 46,080 on CLIP ViT-B/16 (4, 4, 9 layers).  Costs: both
towers forward and backward, and an image pass of the frozen model, in every step; in use ``vision_length`` more tokens an
image.

Source: Khattak et al., *Self-regulating Prompts: Foundational Model Adaptation without Forgetting*, ICCV 2023, arXiv
2307.06948.  As in its code, differences are means over all entries and the KL is divided by batch and classes.
Departures: the average is of the prompts alone, and an early stop divides it by the weight gathered so far; pictures are
augmented only with ``--augment crop``; the templates of the frozen text features are our own (``--teacher``), where the
release has 60 of CLIP's.  Ours: where the epochs are not the paper's 20 the density keeps its place (three quarters
through) and its width (a twentieth of the epochs).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss, log_softmax

from cuelight.backbones.backbone import Backbone
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import clip_schedule
from cuelight.methods.deep import DeepConfig, DeepPrompted
from cuelight.prompts.multimodal import IndependentPrompts
from cuelight.tasks.image import ImageBatch, named_templates
from cuelight.training import ParamGroup, Stage


class PromptSRCConfig(DeepConfig):
    length: int = Field(4, ge=1, description="Vectors in each layer of the text tower.")
    vision_length: int = Field(4, ge=0, description="Tokens in each layer of the image tower.")
    teacher: tuple[str, ...] | str = Field(
        "varied",
        validate_default=True,
        description="Templates whose mean the frozen text features are, with | between them, or a named set.",
    )
    image_weight: float = Field(10.0, ge=0, description="Weight of the image features' agreement.")
    text_weight: float = Field(25.0, ge=0, description="Weight of the text features' agreement.")
    score_weight: float = Field(1.0, ge=0, description="Weight of the scores' agreement.")
    aggregate: bool = Field(True, description="End with the weighed average of the epochs' prompts.")
    mean: float | None = Field(
        None, ge=0, description="Epoch the average is centred on; default three quarters of them."
    )
    deviation: float | None = Field(
        None, gt=0, description="Epochs of deviation around it; default a twentieth of them."
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return named_templates(value)


def epoch_weights(epochs: int, mean: float | None = None, deviation: float | None = None) -> Tensor:
    """Weights of epochs 1 to ``epochs``, a normal density that sums to 1, ``[epochs]`` float64."""
    centre = 0.75 * epochs if mean is None else mean
    width = epochs / 20 if deviation is None else deviation
    far = (torch.arange(1, epochs + 1, dtype=torch.float64) - centre) / width
    return (-0.5 * far**2).softmax(0)


def score_agreement(scores: Tensor, frozen: Tensor) -> Tensor:
    """KL from the frozen to the prompted chances, ``[B, C]`` each, over batch and classes."""
    wanted, found = log_softmax(frozen, -1), log_softmax(scores, -1)
    return (wanted.exp() * (wanted - found)).sum() / scores.numel()


class PromptSRC(DeepPrompted):
    """Independent deep prompts that agree with the frozen model."""

    card: ClassVar[Card] = Card(
        name="promptsrc",
        title="PromptSRC: self-regulating prompts",
        family="vision_language",
        modality="vision-language",
        learns="length vectors in the first layers of both towers",
        cost="training: both towers forward and backward and a frozen image pass; in use a few more tokens an image",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Self-regulating Prompts: Foundational Model Adaptation without Forgetting",
        arxiv="2307.06948",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = PromptSRCConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=20, batch_size=4)
    config: PromptSRCConfig
    prompts: IndependentPrompts

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.prompts = IndependentPrompts(
            self.start(config.length),
            config.depth(backbone),
            config.vision_length,
            self.dual.vision.width,
            seed=config.init_seed,
        )
        count = sum(p.numel() for p in self.prompts.parameters())
        self.average: Tensor
        self.gathered: Tensor
        self.register_buffer("average", torch.zeros(count, device=backbone.device))
        self.register_buffer("gathered", torch.zeros((), device=backbone.device))

    def loss(self, batch: ImageBatch) -> Tensor:
        config = self.config
        text, images = self.prompted_classes(), self.prompted_images(batch)
        frozen_text = self.zero_shot(config.teacher, normalise_each=False)
        frozen_images = self.frozen_images(batch)
        scores = self.dual.scale * images @ text.T
        frozen = self.dual.scale * frozen_images @ frozen_text.T
        return (
            cross_entropy(scores, batch.label)
            + config.image_weight * l1_loss(images, frozen_images)
            + config.text_weight * l1_loss(text, frozen_text)
            + config.score_weight * score_agreement(scores, frozen)
        )

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompts", dict(self.prompts.named_parameters()), lr=0.0025)]

    def stages(self, data: Data) -> list[Stage]:
        [stage] = super().stages(data)
        if self.config.aggregate:
            stage.insists = {**stage.insists, "keep": "last"}
            stage.begin, stage.after_epoch, stage.finish = self._forget, self._gather, self._settle
        return [stage]

    def _forget(self) -> None:
        self.average.zero_()
        self.gathered.zero_()

    def _gather(self, epoch: int, epochs: int) -> None:
        """Add an epoch's prompts to the average."""
        weight = epoch_weights(epochs, self.config.mean, self.config.deviation)[epoch - 1]
        flat = torch.nn.utils.parameters_to_vector(self.prompts.parameters())
        self.average += weight.to(flat) * flat
        self.gathered += weight.to(flat)

    @torch.no_grad()
    def _settle(self) -> None:
        """Take the average for the prompts (all of it that an early stop has left)."""
        if self.gathered > 0:
            flat = self.average / self.gathered
            torch.nn.utils.vector_to_parameters(flat, self.prompts.parameters())

    def kept(self) -> dict[str, Tensor]:
        return {name: t for name, t in super().kept().items() if name not in ("average", "gathered")}
