"""LoRA: low-rank updates of the attention's weight matrices, by PEFT.

Not a prompt, but the measure of what a frozen backbone can be taught.  PEFT's layers stand in the backbone
only while the method runs; at all other times the backbone is as it was, module for module, so any number of
LoRAs and other methods can share it.

Source: Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from peft import LoraConfig
from pydantic import Field
from torch import Tensor, nn

from cuelight.backbones.backbone import Backbone
from cuelight.backbones.lora import LoRALayers
from cuelight.config import build
from cuelight.errors import ArtifactError
from cuelight.methods.base import Card, MethodConfig, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.tasks.text import Predictions
from cuelight.training import ParamGroup

_PREFIX = "base_model.model."  # of PEFT's names for what a model holds
_UNDERSTOOD = {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "init_lora_weights", "runtime_config"),
}
"""Fields of PEFT's configuration that an import follows, or that no longer matter once training has ended."""
_HARMLESS_STARTS = ("gaussian", "orthogonal", "eva")
"""Ways to start that leave the backbone's own weights alone."""


class LoRAConfig(MethodConfig):
    rank: int = Field(8, ge=1, description="Rank of each update.")
    alpha: float = Field(16, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each update.")
    targets: str | None = Field(
        None, description="Modules to update, comma separated; PEFT's choice for the model by default."
    )
    init_seed: int = Field(0, ge=0, description="Seed of the start.")


class LoRA(PromptedLM):
    """Low-rank weight updates."""

    card: ClassVar[Card] = Card(
        name="lora",
        title="LoRA",
        family="baselines",
        modality="text",
        learns="rank x (inputs + outputs) values per updated matrix",
        cost="two thin products in every updated matrix, at every token",
        kinds=("causal", "seq2seq", "masked"),
        paper="LoRA: Low-Rank Adaptation of Large Language Models",
        arxiv="2106.09685",
        year=2021,
        peft="LORA",
    )
    Config: ClassVar[type[MethodConfig]] = LoRAConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: LoRAConfig
    only_conditions: ClassVar[bool] = False

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        targets = None
        if config.targets:
            targets = [part.strip() for part in config.targets.split(",") if part.strip()]
        self.layers = LoRALayers(
            backbone,
            config.rank,
            config.alpha,
            dropout=config.dropout,
            targets=targets,
            seed=config.init_seed,
        )
        self.weights = nn.ParameterDict(self.layers.weights)

    @property
    def tuned(self) -> Backbone:
        """The backbone with the updates in its weights, a copy."""
        return self.layers.merged()

    def condition(self, batch: TextBatch) -> Condition:
        return Condition()

    def loss(self, batch: TextBatch) -> Tensor:
        with self.layers.active(self.training):
            return super().loss(batch)

    def predict(self, batch: TextBatch) -> Predictions:
        with self.layers.active(self.training):
            return super().predict(batch)

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("lora", dict(self.weights.items()), lr=1e-3)]

    def to_peft(self) -> tuple[Any, dict[str, Tensor]]:
        return copy.copy(self.layers.config), {
            _PREFIX + name.replace("/", "."): weight for name, weight in self.weights.items()
        }

    @classmethod
    def from_peft(cls, backbone: Any, task: Any, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        plain = LoraConfig().to_dict()
        for name, value in config.to_dict().items():
            if name not in _UNDERSTOOD and value != plain.get(name) and value not in (None, False, [], {}):
                raise ArtifactError(
                    f"PEFT adapter: {name}={value!r} goes beyond cuelight's lora; load it with PEFT"
                )
        if (
            not isinstance(config.init_lora_weights, bool)
            and config.init_lora_weights not in _HARMLESS_STARTS
        ):
            raise ArtifactError(
                f"PEFT adapter: init_lora_weights={config.init_lora_weights!r} changes the backbone too; "
                "load it with PEFT"
            )
        weights = {name.removeprefix(_PREFIX).replace(".", "/"): tensor for name, tensor in tensors.items()}
        targets = sorted({name.partition("/lora_")[0].replace("/", ".") for name in weights})
        simple = isinstance(config.target_modules, set | list) and not (
            config.exclude_modules or config.layers_to_transform is not None
        )
        if simple:
            targets = sorted(config.target_modules)
        values = {"rank": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
        chosen = build(LoRAConfig, values | {"targets": ",".join(targets)})
        method = cls(backbone, task, chosen)
        extra = weights.keys() - method.weights.keys()
        if extra:
            raise ArtifactError(
                f"PEFT adapter: holds '{min(extra)}', which is no part of lora on {backbone.id}"
            )
        method.restore({f"weights.{name}": tensor for name, tensor in weights.items()}, "PEFT adapter")
        return method
