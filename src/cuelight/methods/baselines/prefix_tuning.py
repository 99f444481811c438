"""Prefix tuning: learned keys and values before the text, in the self-attention of every layer.

The parameterisation is PEFT's ``PrefixEncoder``.  In an encoder-decoder model the prefix stands in the
decoder.

Source: Li, Liang 2021, *Prefix-Tuning: Optimizing Continuous Prompts for Generation*, arXiv 2101.00190.  As
there, the start is real: the keys and values of sampled words (``--init vocabulary``); ``--init normal`` is
PEFT's random start.  Departure: no re-parameterising MLP unless ``--project`` asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from peft import PrefixEncoder, PrefixTuningConfig
from peft.utils.constants import TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING
from pydantic import Field
from torch import Tensor

from cuelight.config import build
from cuelight.errors import ArtifactError, BackboneError, ConfigError
from cuelight.methods.base import Card, MethodConfig, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch, self_attention_cache
from cuelight.prompts.initial import vocabulary_sample
from cuelight.training import ParamGroup


class PrefixConfig(MethodConfig):
    length: int = Field(20, ge=1, le=2000, description="Prefix positions in every layer.")
    init: Literal["vocabulary", "normal"] = Field("vocabulary", description="Where the prefix starts.")
    project: bool = Field(False, description="Learn through an MLP, as the paper does for stability.")
    hidden: int = Field(256, ge=1, description="Width of that MLP.")
    init_seed: int = Field(0, ge=0, description="Seed of the start.")


class PrefixTuning(PromptedLM):
    """Learned keys and values in every layer."""

    card: ClassVar[Card] = Card(
        name="prefix-tuning",
        title="Prefix tuning",
        family="baselines",
        modality="text",
        learns="2 x layers x length x key width values",
        cost="length more keys and values to attend to in every layer; no more tokens",
        kinds=("causal", "seq2seq"),
        paper="Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        arxiv="2101.00190",
        year=2021,
        peft="PREFIX_TUNING",
    )
    Config: ClassVar[type[MethodConfig]] = PrefixConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: PrefixConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        if config.project and config.init != "normal":
            raise ConfigError("project: an MLP can not start from given keys and values; add --init normal")
        words = vocabulary_sample(backbone, config.length, config.init_seed)
        real = self_attention_cache(backbone, torch.tensor(words, device=backbone.device))
        if len({(x.shape[1], x.shape[3]) for pair in real for x in pair}) > 1:
            raise BackboneError(
                f"backbone {backbone.id}: its layers differ in heads or head width; "
                "prefix-tuning needs them equal"
            )
        _, self.heads, _, self.head_width = real[0][0].shape
        self.depth = len(real)
        shape = self._shape(self.depth)
        shape.encoder_hidden_size, shape.prefix_projection = config.hidden, config.project
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            self.encoder = PrefixEncoder(shape).to(backbone.device)
        if config.init == "vocabulary":
            flat = [x[0].permute(1, 0, 2).reshape(config.length, -1) for pair in real for x in pair]
            with torch.no_grad():
                self.encoder.embedding.weight.copy_(torch.cat(flat, dim=1))

    def _shape(self, layers: int) -> PrefixTuningConfig:
        return PrefixTuningConfig(
            num_virtual_tokens=self.config.length,
            token_dim=self.heads * self.head_width,
            num_layers=layers,
            num_attention_heads=self.heads,
            num_transformer_submodules=1,
        )

    def keys_values(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer keys and values ``[1, heads, length, head width]``."""
        flat = self.encoder(torch.arange(self.config.length, device=self.backbone.device)[None])
        table = flat.view(1, self.config.length, -1, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        table = table.to(self.backbone.dtype)
        return [(table[k], table[k + 1]) for k in range(0, len(table), 2)]

    def condition(self, batch: TextBatch) -> Condition:
        return Condition(keys_values=self.keys_values())

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prefix", dict(self.encoder.named_parameters()), lr=3e-3)]

    # PEFT gives an encoder-decoder's layer i the pair 2 i, modulo the number of pairs: of as many pairs as
    # layers it reads every other one, twice.  With twice as many pairs, every layer has its own.

    def to_peft(self) -> tuple[Any, dict[str, Tensor]]:
        kind, sizes = (
            self.backbone.model.config.model_type,
            self.backbone.model.config.get_text_config().to_dict(),
        )
        heads = sizes.get("num_key_value_heads") or self.heads
        width = (
            sizes.get("head_dim") or self.head_width if "num_key_value_heads" in sizes else self.head_width
        )
        if kind in TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING or (heads, width) != (
            self.heads,
            self.head_width,
        ):
            raise ArtifactError(
                f"prefix-tuning: PEFT can not express it for {kind}, whose keys are {self.heads} heads of "
                f"{self.head_width} and which it reads as {heads} of {width}; save it as a cuelight artifact"
            )
        pairs = [torch.stack(pair)[:, 0].permute(2, 0, 1, 3).flatten(1) for pair in self.keys_values()]
        shape = self._shape(self.depth)
        if self.backbone.kind == "seq2seq":
            pairs = [x for pair in pairs for x in (pair, torch.zeros_like(pair))]
            shape = self._shape(2 * self.depth)
            shape.num_transformer_submodules = 2
        return shape, {"prompt_embeddings": torch.cat(pairs, 1)}

    @classmethod
    def from_peft(cls, backbone: Any, task: Any, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        table = tensors["prompt_embeddings"]
        method = cls(backbone, task, build(PrefixConfig, {"length": len(table), "init": "normal"}))
        pairs = table.split(2 * config.token_dim, dim=1)
        if backbone.kind == "seq2seq" and len(pairs) >= method.depth:
            table = torch.cat([pairs[2 * layer % len(pairs)] for layer in range(method.depth)], 1)
        method.restore({"encoder.embedding.weight": table}, "PEFT adapter")
        return method
