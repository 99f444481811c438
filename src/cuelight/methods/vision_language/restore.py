"""RESTORE: coupled prompts that move both towers' features equally far, and adapters that repair what they moved.

Prompts shift the features of the ordinary tokens.  Where image and text features shift by different amounts they fall out
of line, and unseen classes suffer.  A consistency loss on top of MaPLe's keeps the two shifts equal layer by layer; a
feed-forward block behind each tower (surgery), whose strength grows once with the shift that the first third of training
made, keeps the model from satisfying it by moving both sides far together.

``--shift proxy`` (the authors' code) takes the Frobenius norm of the prompts' Gram matrix in each deep layer, relative to
its start, for the shift; ``embedding`` (the abstract's words) measures how far each layer's ordinary tokens move from where
they are without prompts, which costs a frozen pass of both towers; ``none`` leaves the loss out.

Learns: MaPLe's, and two feed-forward blocks ``d -> 4 d -> d`` with their norms: 7,756,544 on CLIP ViT-B/16.  Costs:
MaPLe's; in use two products more an image.

Source: Yang et al., *RESTORE: Towards Feature Shift for Vision-Language Prompt Learning*, arXiv 2403.06136; the loss and
its constants are those of the authors' code, the paper's own formula was not at hand.  Departures: the references of the
shift travel with the checkpoint.  Ours: one set of ratios for all data (the code's commonest), ``--zero-start`` (surgery
that starts as the identity), the form of the embedding shift.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from cuelight.backbones.backbone import Backbone
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import clip_schedule
from cuelight.methods.deep import CoupledConfig, CoupledPrompted
from cuelight.tasks.image import ImageBatch
from cuelight.training import ParamGroup, Stage


class RESTOREConfig(CoupledConfig):
    shift: Literal["proxy", "embedding", "none"] = Field(
        "proxy", description="What the consistency loss takes for a shift: prompts' norms, or token states."
    )
    shift_weight: float = Field(1.0, description="Weight of the consistency loss; negative drives apart.")
    surgery: bool = Field(True, description="Adapters behind both towers.")
    zero_start: bool = Field(False, description="Adapters start as the identity.")
    image_ratio: float = Field(0.1, ge=0, description="Strength of the image adapter at the start.")
    text_ratio: float = Field(0.1, ge=0, description="Strength of the text adapter at the start.")
    image_growth: float = Field(
        0.005, ge=0, description="What a unit of image shift adds to it after a third of training."
    )
    text_growth: float = Field(0.02, ge=0, description="What a unit of text shift adds.")


class Surgery(nn.Module):
    """``r * FFN(LN(h))``, to be added to features ``h``."""

    def __init__(self, width: int, zero_start: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if zero_start:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.up(self.norm(features))
        return cast(Tensor, self.down(inner * torch.sigmoid(1.702 * inner)))


def gram_norms(prompts: Tensor) -> Tensor:
    """Frobenius norm of each deep layer's Gram matrix, ``[layers, tokens, width]`` to ``[layers - 1]``."""
    deep = prompts[1:]
    return torch.linalg.matrix_norm(deep @ deep.transpose(1, 2))


class RESTORE(CoupledPrompted):
    """Coupled prompts with equal shifts, and surgery."""

    card: ClassVar[Card] = Card(
        name="restore",
        title="RESTORE: towards feature shift",
        family="vision_language",
        modality="vision-language",
        learns="MaPLe's prompts and maps, and a feed-forward block behind each tower",
        cost="training: MaPLe's; in use two products more an image",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="RESTORE: Towards Feature Shift for Vision-Language Prompt Learning",
        arxiv="2403.06136",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = RESTOREConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=10, batch_size=4)
    config: RESTOREConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.image_surgery: Surgery | None = None
        self.text_surgery: Surgery | None = None
        if config.surgery:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.init_seed)
                self.image_surgery = Surgery(self.dual.width, config.zero_start)
                self.text_surgery = Surgery(self.dual.width, config.zero_start)
        self.ratios: Tensor
        self.references: Tensor
        self.register_buffer("ratios", torch.tensor([config.image_ratio, config.text_ratio]))
        self.register_buffer("references", torch.stack(self._norms()).detach())
        self.to(backbone.device)

    def class_features(self) -> Tensor:
        return self._repaired(self.prompted_classes(normalised=False), self.text_surgery, self.ratios[1])

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self._repaired(
            self.prompted_images(batch, normalised=False), self.image_surgery, self.ratios[0]
        )

    @staticmethod
    def _repaired(features: Tensor, surgery: Surgery | None, ratio: Tensor) -> Tensor:
        return normalize(features if surgery is None else features + ratio * surgery(features), dim=-1)

    def loss(self, batch: ImageBatch) -> Tensor:
        loss = super().loss(batch)
        if self.config.shift == "none" or not self.config.shift_weight:
            return loss
        image, text = self.shifts() if self.config.shift == "proxy" else self.token_shifts(batch)
        return loss + self.config.shift_weight * (text - image).square().sum()

    def shifts(self) -> tuple[Tensor, Tensor]:
        """The proxy in both towers: each deep layer's Gram norm over the one it started with."""
        image, text = self._norms()
        return image / self.references[0], text / self.references[1]

    def _norms(self) -> tuple[Tensor, Tensor]:
        return gram_norms(self.prompts.vision), gram_norms(self.prompts.text)

    # ---- the strength of the surgery -------------------------------------------------------------------

    def stages(self, data: Data) -> list[Stage]:
        [stage] = super().stages(data)
        if self.config.surgery:
            stage.after_epoch = self._strengthen
        return [stage]

    def _strengthen(self, epoch: int, epochs: int) -> None:
        """Once, behind the first third: add what the prompts' norms ask for."""
        if epoch - 1 == epochs // 3 and len(self.prompts.text) > 1:
            image, text = (norms.mean() for norms in self._norms())
            self.ratios += torch.stack([self.config.image_growth * image, self.config.text_growth * text])

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompts", dict(self.named_parameters()), lr=0.0035)]
