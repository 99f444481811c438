"""In-context learning: k labelled examples stand before every query.  Nothing learns.

The demonstrations are drawn per class with the run's seed and shuffled; they are the same for all queries, so
a causal model reads them once and every query goes on from their keys and values.  They are read as a prompt:
an encoder-decoder model sees them in its encoder.

Source: Brown et al. 2020, *Language Models are Few-Shot Learners*, arXiv 2005.14165.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.tasks.text import Predictions


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
        order = list(range(len(data.train)))
        draw = random.Random(seed)
        draw.shuffle(order)
        if self.task.kind == "classification":
            by_class: dict[int, list[int]] = {}
            for k in order:
                by_class.setdefault(data.train[k].label, []).append(k)
            rounds = [
                column[r]
                for r in range(self.config.demonstrations)
                for column in by_class.values()
                if r < len(column)
            ]
            order = rounds
        chosen = order[: self.config.demonstrations]
        draw.shuffle(chosen)
        examples, room = [], self._room()
        for k in chosen:
            ids = self._example(data.train[k].text, data.train[k].answer)
            if len(ids) <= room:
                examples.append(ids)
                room -= len(ids)
        if not examples:
            raise ConfigError(
                "max_context: no example fits; raise --max-context or shorten texts with --max-length"
            )
        self._examples, self._condition = examples, None

    @property
    def _start(self) -> list[int]:
        """Special tokens the tokenizer puts before every text; they belong before the first example only."""
        tokenizer = self.backbone.tokenizer
        with_, without = (tokenizer("x", add_special_tokens=on).input_ids for on in (True, False))
        return with_[: with_.index(without[0])] if without and without[0] in with_ else []

    def _room(self) -> int:
        positions = self.backbone.max_positions
        return min(
            self.config.max_context,
            positions - self.task.max_length - self.task.longest_answer
            if positions
            else self.config.max_context,
        )

    def _example(self, text: list[int], answer: list[int]) -> list[int]:
        """One demonstration: text, answer, and an empty line, without the special tokens around them."""
        tokenizer = self.backbone.tokenizer
        special = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        text = text[len(self._start) :] if text[: len(self._start)] == self._start else text
        while text and text[-1] in special:
            text = text[:-1]
        while answer and answer[-1] in special:
            answer = answer[:-1]
        return [*text, *answer, *tokenizer("\n\n", add_special_tokens=False).input_ids]

    def predict(self, batch: TextBatch) -> Predictions:
        start = len(self._start)
        if start and bool(
            (batch.text[:, :start] == torch.tensor(self._start, device=batch.text.device)).all()
        ):
            batch = replace(batch, text=batch.text[:, start:], text_mask=batch.text_mask[:, start:])
        return super().predict(batch)

    def condition(self, batch: TextBatch) -> Condition:
        if self._condition is None:
            ids = torch.tensor(
                [*self._start, *(token for example in self._examples for token in example)],
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
