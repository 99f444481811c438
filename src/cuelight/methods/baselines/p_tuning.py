"""P-tuning: a small network writes the prompt from free vectors, so that its tokens depend on each other.

The network is PEFT's ``PromptEncoder`` (MLP or LSTM); the prompt it writes takes slots before the text like
any other, so a causal model reads it once per batch.

Source: Liu et al. 2021, *GPT Understands, Too*, arXiv 2103.10385.  Departure: the prompt stands before the
text, as in PEFT, not inside a pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from peft import PromptEncoder, PromptEncoderConfig
from pydantic import Field
from torch import Tensor

from cuelight.config import build
from cuelight.methods.base import Card, MethodConfig, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.training import ParamGroup


class PTuningConfig(MethodConfig):
    length: int = Field(20, ge=1, le=2000, description="Soft tokens before the text.")
    encoder: Literal["MLP", "LSTM", "none"] = Field(
        "MLP", description="The network that writes the prompt; none keeps what one wrote (PEFT adapters)."
    )
    hidden: int = Field(256, ge=1, description="Width of the network.")
    init_seed: int = Field(0, ge=0, description="Seed of the start.")


class PTuning(PromptedLM):
    """Soft tokens written by a small network."""

    card: ClassVar[Card] = Card(
        name="p-tuning",
        title="P-tuning",
        family="baselines",
        modality="text",
        learns="length x width values and a small network over them",
        cost="length more tokens; the network runs once per batch",
        kinds=("causal", "seq2seq", "masked"),
        paper="GPT Understands, Too",
        arxiv="2103.10385",
        year=2021,
        peft="P_TUNING",
    )
    Config: ClassVar[type[MethodConfig]] = PTuningConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: PTuningConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        shape = PromptEncoderConfig(
            num_virtual_tokens=config.length,
            token_dim=backbone.tower.width,
            num_transformer_submodules=1,
            encoder_reparameterization_type="MLP" if config.encoder == "none" else config.encoder,
            encoder_hidden_size=config.hidden,
            inference_mode=config.encoder == "none",  # PEFT's way to leave the network out
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            self.encoder = PromptEncoder(shape).to(backbone.device)

    def prompt(self) -> Tensor:
        """The prompt ``[length, width]`` as the network writes it now."""
        if self.config.encoder == "none":
            return self.encoder.embedding.weight
        return self.encoder(torch.arange(self.config.length, device=self.backbone.device)[None])[0]

    def condition(self, batch: TextBatch) -> Condition:
        return Condition(prompt=self.prompt())

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("encoder", dict(self.encoder.named_parameters()), lr=1e-3)]

    def to_peft(self) -> tuple[Any, dict[str, Tensor]]:
        shape = PromptEncoderConfig(
            num_virtual_tokens=self.config.length,
            token_dim=self.backbone.tower.width,
            num_transformer_submodules=1,
            encoder_hidden_size=self.config.hidden,
        )
        return shape, {"prompt_embeddings": self.prompt()}

    @classmethod
    def from_peft(cls, backbone: Any, task: Any, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        length = config.num_virtual_tokens
        method = cls(backbone, task, build(PTuningConfig, {"length": length, "encoder": "none"}))
        # PEFT keeps the written prompt only; for an encoder-decoder with a second half, which it never reads.
        method.restore({"encoder.embedding.weight": tensors["prompt_embeddings"][:length]}, "PEFT adapter")
        return method
