"""LLM-BBO for language models: a writing model improves an instruction, told which ones work and which do not.

The loop of `llm-bbo` (Liu et al., CVPR 2024) with another score: the strings are instructions that stand before the
task's template, and the score is the backbone's accuracy (or the task's figure) with them on the training rows.  So any
model that answers can be improved by any model that writes, or by itself.

Learns: a string.  Costs: ``start_size`` scores, then for every step one call of the writing model and the scores of what
it proposed; a score is a call for every training row.

Source: Liu et al., *Language Models as Black-Box Optimizers for Vision-Language Models*, CVPR 2024, arXiv 2309.05950.
Ours: text tasks, which the paper does not have; the instructions to start from; choosing among the best by validation
rows when there are some.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from pydantic import Field

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.proposing import ClimbConfig, ProposingConfig, calls, climb, read_pool, writer
from cuelight.methods.searching import Start
from cuelight.methods.text_prompt import TextPromptConfig, TextPrompted
from cuelight.tasks.objective import Objective
from cuelight.tasks.text import Item, TextTask
from cuelight.tasks.text_prompt import draw, few_shot

_VERBS = ("Classify", "Label", "Judge", "Read", "Consider", "Look carefully at", "Think about", "Decide on")
_ENDS = (
    "Answer with {options}.",
    "Is it {options}?",
    "Choose from {options}.",
    "Which fits best: {options}?",
    "Say {options}.",
)
_TASKS = (
    "Do what the examples would do.",
    "Answer briefly.",
    "Answer step by step.",
    "Give only the answer.",
    "Read the input carefully and answer.",
    "Think first, then answer.",
)


class LlmBboTextConfig(TextPromptConfig, ProposingConfig):
    demonstrations: int = Field(0, ge=0, description="Solved rows in the prompt, of every class.")
    fitness_rows: int = Field(16, ge=1, description="Training rows a prompt is scored on, of every class.")


class LlmBboText(TextPrompted):
    """An instruction that a language model wrote, told by scores."""

    card: ClassVar[Card] = Card(
        name="llm-bbo-text",
        title="LLM-BBO for language models: instructions written by a model",
        family="search",
        modality="text",
        learns="a string",
        cost="a score for each prompt of the start, then a call of the writing model and a score each step",
        kinds=("causal", "seq2seq", "remote"),
        tasks=("classification", "generation"),
        paper="Language Models as Black-Box Optimizers for Vision-Language Models",
        arxiv="2309.05950",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = LlmBboTextConfig
    Search: ClassVar[type[MethodConfig]] = ClimbConfig
    reads: ClassVar[tuple[str, ...]] = ("pool",)
    config: LlmBboTextConfig

    def __init__(self, backbone: Backbone, task: TextTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self._pool = self._starts()

    def _starts(self) -> tuple[str, ...]:
        """Instructions to begin with."""
        if self.config.pool is not None:
            return read_pool(self.config.pool)
        if self.task.kind != "classification":
            return _TASKS
        options = " or ".join(self.task.words)
        return tuple(f"{verb} the text. {end.format(options=options)}" for verb in _VERBS for end in _ENDS)

    def rows(self, data: Data, seed: int) -> tuple[list[Item], list[Item], list[Item]]:
        """Rows to show, to score on, and to choose by; the last may be none."""
        self.need_rows(data)
        generator = random.Random(seed)
        places = draw(self.task, data.train, self.config.demonstrations, generator)
        rest = [data.train[k] for k in range(len(data.train)) if k not in set(places)]
        if not rest:
            raise ConfigError("demonstrations: they take all training rows; give fewer, or more rows")
        scored = [rest[k] for k in draw(self.task, rest, self.config.fitness_rows, generator)]
        return [data.train[k] for k in places], scored, data.validation

    def forecast(self, data: Data) -> list[str]:
        _, scored, held = self.rows(data, 0)
        most, steps = calls(self.config, len(self._pool))
        scores = most * len(scored) * self.calls_a_row
        return [
            f"search: at most {most:,} prompts x {len(scored)} rows, {scores:,} calls, and {steps:,} of "
            f"{self.config.lm or self.backbone.id} (up to {self.config.retries + 1} times as many if it does not keep "
            "the form)",
            *self.selection_lines(held),
        ]

    def prepare(self, data: Data, seed: int) -> None:
        shown, scored, held = self.rows(data, seed)
        figure = "accuracy" if self.task.kind == "classification" else self.task.metric
        solved = [item.row for item in shown]

        def whole(instruction: str) -> str:
            return few_shot(self.task, solved, instruction)

        objective = Objective(
            lambda prompts, _: self.quality([whole(p) for p in prompts], scored, figure),
            progress="searching" if self.progress else None,
            most=calls(self.config, len(self._pool))[0],
        )
        with self.learning():
            model = self.model if self.config.lm is None else writer(self.config, self.model.meter)
            found = self.searched(objective, Start(pool=self._pool, model=model, seed=seed))
            self.prompt = self.selected(found, objective, held, whole)
        self.facts |= {"figure": figure, "rows": len(scored), "writer": model.name}

    @classmethod
    def search(cls, objective: Objective, start: Start, config: Any) -> str:
        return climb(objective, start, config)
