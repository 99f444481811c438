"""In-context learning: k labelled examples stand before every query.  Nothing learns.

The demonstrations are drawn per class with the run's seed and shuffled; they are the same for all queries, so
a causal model reads them once and every query goes on from their keys and values.  They are read as a prompt:
an encoder-decoder model sees them in its encoder.

Source: Brown et al. 2020, *Language Models are Few-Shot Learners*, arXiv 2005.14165.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import torch
from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.tasks.demonstrations import choose, room, start_tokens, without_start


class InContextConfig(MethodConfig):
    demonstrations: int = Field(
        16, ge=1, description="Examples in the context, spread evenly over the classes."
    )
    max_context: int = Field(
        1536, ge=16, description="Longest context in tokens; examples that do not fit are left out."
    )


class InContext(PromptedLM):
    """Labelled examples before the query."""

    card: ClassVar[Card] = Card(
        name="in-context",
        title="In-context learning",
        family="baselines",
        modality="text",
        learns="nothing; k examples stand before the query",
        cost="the examples are read once per batch, then attended to",
        kinds=("causal", "seq2seq"),
        paper="Language Models are Few-Shot Learners",
        arxiv="2005.14165",
        year=2020,
    )
    Config: ClassVar[type[MethodConfig]] = InContextConfig
    config: InContextConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self._examples: list[list[int]] = []
        self._condition: Condition | None = None

    def prepare(self, data: Data, seed: int) -> None:
        if not data.train:
            raise ConfigError("in-context: there are no training rows to show; give data with a train split")
        found = choose(
            self.task,
            data.train,
            self.config.demonstrations,
            room(self.task, self.config.max_context),
            seed,
        )
        self._examples, self._condition = [example.ids for example in found], None

    def fed(self, batch: TextBatch) -> TextBatch:
        return without_start(self.task, batch)

    def condition(self, batch: TextBatch) -> Condition:
        if self._condition is None:
            ids = torch.tensor(
                [*start_tokens(self.task), *(token for example in self._examples for token in example)],
                device=self.backbone.device,
            )
            with torch.no_grad():
                self._condition = Condition(prompt=self.backbone.embed(ids))
        return self._condition

    @property
    def text(self) -> str:
        return json.dumps(self._examples)

    def load_text(self, text: str) -> None:
        self._examples, self._condition = json.loads(text), None
