"""DePT: a shorter soft prompt, and a low-rank update of the text's embeddings by position.

At equal trainable size a prompt of ``match_length`` vectors becomes one of ``length`` vectors plus ``A B``, a
low-rank matrix added to the frozen embeddings of the text: row ``i`` to the i-th text token, whatever the token.
The sequence is shorter by the difference, so training and inference are cheaper.  The prompt and the pair have
rates of their own, the pair's far lower.

Learns: ``length * width + (positions + width) * rank`` values; ``rank`` is chosen so that this does not exceed
``match_length * width``.  Costs: ``length`` more tokens and one addition.

Source: Shi, Lipani, *DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning*, ICLR 2024,
arXiv 2309.05173.  Where the paper and its code differ, the paper is the default and the code an option:
``scale=None`` leaves ``A B`` unscaled (paper), ``scale=8`` multiplies it by ``8 / sqrt(rank)`` (code).
Departures: text is padded to the longest row of the batch, not to ``positions`` (rows of ``A`` beyond it are not
read), so position 0 is always the first text token; the default rates for causal models are ours.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, MethodConfig, PromptedLM, PromptStart
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.prompts.low_rank import low_rank_pair
from cuelight.training import ParamGroup


class DePTConfig(PromptStart):
    match_length: int = Field(100, ge=1, description="Length of the plain prompt whose size is matched.")
    length: int = Field(60, ge=0, description="Soft tokens that are left; 0 leaves only the low-rank part.")
    rank: int | None = Field(
        None, ge=1, description="Rank of the update; by default what the matched size allows."
    )
    offset_rate: float | None = Field(
        None, gt=0, description="Learning rate of the low-rank pair (default 5e-4)."
    )
    scale: float | None = Field(
        None, gt=0, description="Scale the update by this over sqrt(rank), as the code does (8)."
    )


class DePT(PromptedLM):
    """A short prompt and a low-rank offset of the text's embeddings."""

    card: ClassVar[Card] = Card(
        name="dept",
        title="DePT: decomposed prompt tuning",
        family="language",
        modality="text",
        learns="length x width + (positions + width) x rank values",
        cost="length more tokens, and one addition to the text's embeddings",
        kinds=("causal", "seq2seq"),
        paper="DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning",
        arxiv="2309.05173",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = DePTConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: DePTConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        width, positions = backbone.tower.width, task.max_length
        rank = config.rank or (config.match_length - config.length) * width // (positions + width)
        if rank < 1:
            raise ConfigError(
                f"length: {config.length} of {config.match_length} leaves no room for a low-rank part; "
                "give a smaller --length or a --rank"
            )
        self.prompt = config.vectors(backbone, config.length, task.words)
        self.A, self.B = low_rank_pair(positions, rank, width, config.init_seed, backbone.device)
        self.factor = 1.0 if config.scale is None else config.scale / math.sqrt(rank)

    def offset(self, length: int | None = None) -> Tensor:
        """``[length, width]``: what is added to the embedding of the first ``length`` text positions (all)."""
        return self.factor * (self.A[:length] @ self.B)

    def condition(self, batch: TextBatch) -> Condition:
        prompt = self.prompt if len(self.prompt) else None
        return Condition(prompt=prompt, offset=self.offset(batch.text.shape[1]))

    def groups(self) -> list[ParamGroup]:
        rate = 0.3 if self.backbone.kind == "seq2seq" else 0.01
        slow = ParamGroup("offset", {"A": self.A, "B": self.B}, lr=self.config.offset_rate or 5e-4)
        return [ParamGroup("prompt", {"prompt": self.prompt}, lr=rate), slow]
