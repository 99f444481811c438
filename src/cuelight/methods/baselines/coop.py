"""CoOp: the words around the class name are learned vectors.

M context vectors stand in place of "a photo of a", shared by all classes or one set for each (``--scope class``), and
learn by the cross-entropy of CLIP's own logits; both towers are frozen.  The strongest on the classes it saw; on new
classes it often falls below zero-shot.

Learned: M x w values (C x M x w for a set a class).  Cost: C short texts a step through the text tower, forward and
backward; pictures are encoded once, inference is zero-shot's.

Source: Zhou, Yang, Loy, Liu, *Learning to Prompt for Vision-Language Models*, IJCV 2022, arXiv 2109.01134.
Departures: pictures are not augmented unless ``--augment crop`` says so, which encodes them once (exact then);
``--context-length 16`` from noise is the paper's few-shot default, ``--init words`` its base-to-new setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import Contrastive, clip_schedule
from cuelight.prompts.dual import Position, encode_text, learned_context, template_context
from cuelight.tasks.image import ImageTask
from cuelight.training import ParamGroup, Stage


class CoOpConfig(MethodConfig):
    context_length: int = Field(
        16, ge=1, description="Learned vectors, M; with --init words as many as words."
    )
    position: Position = Field("end", description="Where the class name stands.")
    scope: Literal["shared", "class"] = Field(
        "shared", description="One context for all classes, or one for each (no new classes then)."
    )
    init: Literal["normal", "words"] = Field(
        "normal", description="Start from noise (standard deviation 0.02), or from the words of --init-text."
    )
    init_text: str = Field("a photo of a {}.", description="The text for --init words, {} being the class.")
    init_seed: int = Field(0, ge=0, description="Seed of the noise.")


class CoOp(Contrastive):
    """Learned context vectors around the class name.

    Attributes:
        context: ``[M, w]``, or ``[C, M, w]`` with a set for each class.
    """

    card: ClassVar[Card] = Card(
        name="coop",
        title="CoOp: context optimisation",
        family="baselines",
        modality="vision-language",
        learns="M x text width values, times the classes with a context for each",
        cost="the classes' short texts through the text tower, forward and backward; pictures once",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Learning to Prompt for Vision-Language Models",
        arxiv="2109.01134",
        year=2022,
    )
    Config: ClassVar[type[MethodConfig]] = CoOpConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=200, batch_size=32)
    config: CoOpConfig

    def __init__(self, backbone: Any, task: ImageTask, config: CoOpConfig) -> None:
        super().__init__(backbone, task, config)
        self.renamed()
        width = self.dual.text.width
        if self.tokens.start is not None:
            start = backbone.embed(self.tokens.start).detach().float()
        else:
            draw = torch.Generator().manual_seed(config.init_seed)
            start = torch.randn(config.context_length, width, generator=draw) * 0.02
        if config.scope == "class":
            start = start.repeat(len(task.classes), 1, 1)
        self.context = nn.Parameter(start.to(backbone.device))

    def renamed(self) -> None:
        config = self.config
        if config.init == "words":
            length = config.context_length if "context_length" in config.model_fields_set else None
            found = template_context(self.backbone, self.names, config.init_text, length)
        else:
            found = learned_context(
                self.backbone, self.names, config.context_length, position=config.position
            )
        self.tokens = self.on_device(found)

    def rename(self, classes: Sequence[str]) -> None:
        if self.config.scope == "class" and tuple(classes) != tuple(self.task.classes):
            raise ConfigError(
                "classes: a context for each class belongs to the classes it was learned on; "
                "for new classes learn with --scope shared"
            )
        super().rename(classes)

    def class_features(self) -> Tensor:
        return encode_text(self.backbone, self.tokens, self.context)

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("context", {"context": self.context}, 0.002)]

    def stages(self, data: Data) -> list[Stage]:
        stages = super().stages(data)
        shots = len(data.train) / len(self.task.classes)
        stages[0].defaults = {
            **stages[0].defaults,
            "epochs": 200 if shots >= 5 else 100 if shots >= 2 else 50,
        }
        return stages
