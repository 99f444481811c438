"""MaPLe: prompts in the first layers of both towers, the image tower's made from the text tower's by linear maps.

Only the text's vectors are free; layer ``j``'s image tokens are a learned linear image of its text vectors, so the two
towers can not drift apart.  The text's first vectors start as words (``a photo``; the words behind them stay), the
deeper ones from a normal draw.  Cross-entropy of the cosines is the whole loss.

Learns: ``layers * length * w_t`` values and a map ``w_t -> w_v`` with bias for each layer: 3,555,072 on CLIP ViT-B/16
(2 vectors, 9 layers), 403,200 with ``--shared``.  Costs: both towers forward and backward in every step; in use
``length`` more tokens an image, none in the text, whose features are computed once.

Source: Khattak et al., *MaPLe: Multi-modal Prompt Learning*, CVPR 2023, arXiv 2210.03117.  Departures: pictures are
augmented only with ``--augment crop``; float32 throughout.  Ours: fewer layers where a tower has fewer than nine.
"""

from __future__ import annotations

from typing import Any, ClassVar

from cuelight.methods.base import Card, MethodConfig
from cuelight.methods.contrastive import clip_schedule
from cuelight.methods.deep import CoupledConfig, CoupledPrompted
from cuelight.training import ParamGroup


class MaPLe(CoupledPrompted):
    """Coupled deep prompts."""

    card: ClassVar[Card] = Card(
        name="maple",
        title="MaPLe: multi-modal prompt learning",
        family="vision_language",
        modality="vision-language",
        learns="length vectors in the first layers of the text tower, and a linear map a layer to the image tower's",
        cost="training: both towers forward and backward; in use length more tokens an image",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="MaPLe: Multi-modal Prompt Learning",
        arxiv="2210.03117",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = CoupledConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=5, batch_size=4)
    config: CoupledConfig

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompts", dict(self.prompts.named_parameters()), lr=0.0035)]
