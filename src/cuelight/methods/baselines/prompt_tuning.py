"""Prompt tuning: a few free vectors before the text, learned by gradient through the frozen model.

Source: Lester, Al-Rfou, Constant 2021, *The Power of Scale for Parameter-Efficient Prompt Tuning*,
arXiv 2104.08691.  Departures: AdamW with linear decay where the paper has Adafactor with a constant rate
(``--optimizer adafactor --schedule constant`` gives the paper's); the default rate suits small models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field
from torch import Tensor

from cuelight.config import build
from cuelight.methods.base import Card, MethodConfig, PromptedLM, PromptStart
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.training import ParamGroup


class PromptTuningConfig(PromptStart):
    length: int = Field(20, ge=1, le=2000, description="Soft tokens before the text.")


class PromptTuning(PromptedLM):
    """``length`` learned vectors before the text."""

    card: ClassVar[Card] = Card(
        name="prompt-tuning",
        title="Prompt tuning",
        family="baselines",
        modality="text",
        learns="length x width values, the prompt",
        cost="length more tokens; a causal model reads them once per batch",
        kinds=("causal", "seq2seq", "masked"),
        paper="The Power of Scale for Parameter-Efficient Prompt Tuning",
        arxiv="2104.08691",
        year=2021,
        peft="PROMPT_TUNING",
    )
    Config: ClassVar[type[MethodConfig]] = PromptTuningConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: PromptTuningConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.prompt = config.vectors(backbone, config.length, task.words)

    def condition(self, batch: TextBatch) -> Condition:
        return Condition(prompt=self.prompt)

    def groups(self) -> list[ParamGroup]:
        rate = 0.3 if self.backbone.kind == "seq2seq" else 0.01
        return [ParamGroup("prompt", {"prompt": self.prompt}, lr=rate)]

    def to_peft(self) -> tuple[Any, dict[str, Tensor]]:
        import peft

        shape = peft.PromptTuningConfig(
            num_virtual_tokens=self.config.length,
            token_dim=self.prompt.shape[1],
            num_transformer_submodules=1,
        )
        return shape, {"prompt_embeddings": self.prompt}

    @classmethod
    def from_peft(cls, backbone: Any, task: Any, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        length = config.num_virtual_tokens
        method = cls(backbone, task, build(PromptTuningConfig, {"length": length, "init": "normal"}))
        # For an encoder-decoder PEFT keeps a second half, which it never reads.
        method.restore({"prompt": tensors["prompt_embeddings"][:length]}, "PEFT adapter")
        return method
