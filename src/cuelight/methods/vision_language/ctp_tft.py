"""CTP+TFT: each class's prompt takes from the picture what concerns that class, and the picture what concerns the classes.

CoCoOp shifts the prompts of all classes by the same vector, which draws them together.  Here (CTP) a class asks the
picture's patches by its own plain feature, and what they answer makes its shift.  In return (TFT) the picture's feature asks
the class features so made, and takes up what they answer.  Cross-entropy of the cosines is the loss.

Learns: ``length * w_t`` vectors, two attentions and a small network: 428,576 values on CLIP ViT-B/16.  Costs: as CoCoOp's,
a text for every class and picture, in training and in use; pictures pass their frozen tower once.

Source: Long et al., *Task-Oriented Multi-Modal Mutual Leaning for Vision-Language Models*, ICCV 2023, arXiv 2303.17169 (so
spelt).  **A reconstruction**: no code is known and the paper's details were not at hand.  From the paper: the criticism of
CoCoOp, the two modules, their directions, the alignment of the two features.  Ours, each an option or named here: the
attentions' form and widths, frozen class features as CTP's queries, outputs that are zero at the start (it then is
zero-shot CLIP), sizes and schedule (CoCoOp's).  ``--query shared`` asks with the picture itself, which with
``--no-image-fusion`` is CoCoOp.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from cuelight.backbones.backbone import Backbone
from cuelight.methods.base import Card, MethodConfig
from cuelight.methods.contrastive import clip_schedule
from cuelight.methods.tokens import TokenReader
from cuelight.prompts.dual import encode_text, template_context
from cuelight.tasks.image import ImageBatch
from cuelight.training import ParamGroup


class CTPTFTConfig(MethodConfig):
    init_text: str = Field(
        "a photo of a {}.", description="Words the context starts from, {} being the class name."
    )
    text_fusion: bool = Field(True, description="Class prompts take from the picture (CTP).")
    image_fusion: bool = Field(True, description="The picture takes from the class features (TFT).")
    query: Literal["class", "shared"] = Field(
        "class",
        description="What asks the picture: each class, or the picture's own feature for all classes.",
    )
    attention: int = Field(64, ge=1, description="Width of the attentions.")
    hidden: int | None = Field(
        None, ge=1, description="Width inside the network; default a sixteenth of the joint space."
    )
    texts_at_once: int = Field(
        1024, ge=1, description="Most texts in one pass in use (pictures times classes)."
    )
    init_seed: int = Field(0, ge=0, description="Seed of the attentions and the network.")


class CTPTFT(TokenReader):
    """Class-aware prompts and text-aware images.

    Attributes:
        context: ``[length, w_t]``.
        network: from what a class hears of the picture to the shift of its context.
    """

    card: ClassVar[Card] = Card(
        name="ctp-tft",
        title="CTP+TFT: task-oriented mutual learning",
        family="vision_language",
        modality="vision-language",
        learns="context vectors, an attention from classes to patches and one from the picture to the classes",
        cost="a text for every class and picture, in training and in use",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Task-Oriented Multi-Modal Mutual Leaning for Vision-Language Models",
        arxiv="2303.17169",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = CTPTFTConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=10, batch_size=1)
    config: CTPTFTConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.renamed()
        assert self.tokens.start is not None
        with torch.no_grad():
            self.context = nn.Parameter(backbone.embed(self.tokens.start).float().clone())
        joint, inner = self.dual.width, config.attention
        self.network: nn.Sequential | None = None
        self.out: nn.Linear | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            if config.text_fusion:
                if config.query == "class":
                    self.class_query, self.patch_key = _pair(joint, inner)
                hidden = config.hidden or max(1, joint // 16)
                last = nn.Linear(hidden, self.dual.text.width)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
                self.network = nn.Sequential(nn.Linear(joint, hidden), nn.ReLU(), last)
            if config.image_fusion:
                self.image_query, self.class_key = _pair(joint, inner)
                self.out = nn.Linear(joint, joint, bias=False)
                nn.init.zeros_(self.out.weight)
        self.to(backbone.device)

    def renamed(self) -> None:
        self.tokens = self.on_device(template_context(self.backbone, self.names, self.config.init_text))

    def heard(self, tokens: Tensor) -> Tensor:
        """What each class hears of each picture, ``[B, C, d]``, from its normalised tokens ``[B, 1 + N, d]``."""
        plain = self.zero_shot((self.config.init_text,)).float()
        if self.config.query == "shared":
            return tokens[:, :1].expand(-1, len(plain), -1)
        patches = tokens[:, 1:]
        fit = torch.einsum("ca,bna->bcn", self.class_query(plain), self.patch_key(patches))
        return (fit / self.config.attention**0.5).softmax(-1) @ patches

    def both(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Image features ``[B, d]`` and each picture's class features ``[B, C, d]``."""
        tokens = normalize(self.image_tokens(batch).float(), dim=-1)
        images, count = tokens[:, 0], len(self.names)
        if self.network is None:
            texts = self._features().expand(len(tokens), -1, -1)
        else:
            shift = self.network(self.heard(tokens))
            context = self.context + shift[:, :, None]  # [B, C, M, w]
            texts = self._encoded(context.flatten(0, 1)).view(len(tokens), count, -1)
        if self.out is not None:
            fit = torch.einsum("ba,bca->bc", self.image_query(images), self.class_key(texts))
            share = (fit / self.config.attention**0.5).softmax(-1)
            images = normalize(images + self.out(torch.einsum("bc,bcd->bd", share, texts)), dim=-1)
        return images, texts

    def _encoded(self, context: Tensor) -> Tensor:
        rows = self.tokens.repeated(len(context) // len(self.names))
        if torch.is_grad_enabled():
            return encode_text(self.backbone, rows, context)
        size = self.config.texts_at_once
        parts = [
            encode_text(self.backbone, rows.part(k, k + size), context[k : k + size])
            for k in range(0, len(context), size)
        ]
        return torch.cat(parts)

    def class_features(self) -> Tensor:
        return encode_text(self.backbone, self.tokens, self.context)

    def scores(self, batch: ImageBatch) -> Tensor:
        images, texts = self.both(batch)
        return self.dual.scale * torch.einsum("bd,bcd->bc", images, texts)

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompts", dict(self.named_parameters()), lr=0.002)]


def _pair(width: int, inner: int) -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
