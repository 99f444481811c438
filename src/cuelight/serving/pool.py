"""A pool: learned prompts that share a backbone, answered together.

Prompts are kilobytes, so one backbone in memory serves any number of them.  Methods that only condition the backbone
stand in one batch, every row behind its own prompt; methods that change weights or have a head run one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cuelight.artifact import Prompt, load
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.errors import ConfigError, DataError, nearest
from cuelight.evaluation.evaluate import predict_items
from cuelight.methods.base import PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch, choice_scores, generate
from cuelight.tasks.text import Item, Predictions

__all__ = ["Pool"]

Text = str | tuple[str, str]


class Pool:
    """Learned prompts on one backbone, by name.

    Args:
        backbone: as for `cuelight.load_backbone`.
        prompts: artifacts (folders, or `Prompt` objects on that very backbone) by the names they answer to.
        device, dtype: as for `cuelight.load_backbone`.

    Raises:
        ArtifactError: no artifact, a damaged one, or one of another backbone.
    """

    def __init__(
        self,
        backbone: Any,
        prompts: Mapping[str, str | os.PathLike[str] | Prompt] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.backbone: Backbone = load_backbone(backbone, device=device, dtype=dtype)
        self.prompts: dict[str, Prompt] = {}
        self._conditions: dict[str, Condition] = {}
        for name, prompt in (prompts or {}).items():
            self.add(name, prompt)

    def add(self, name: str, prompt: str | os.PathLike[str] | Prompt) -> None:
        """Take another prompt; one of that name is replaced.

        Raises:
            ArtifactError, ConfigError: it can not be loaded, or is on another backbone.
        """
        loaded = prompt if isinstance(prompt, Prompt) else load(Path(prompt), backbone=self.backbone)
        if loaded.method.backbone is not self.backbone:
            raise ConfigError(f"prompt {name}: is on another backbone object; load it on the pool's")
        if loaded.method.task.modality != "text":
            raise ConfigError(
                f"prompt {name}: reads pictures, and only texts are served; use 'cuelight predict'"
            )
        loaded.method.eval()
        self.prompts[name] = loaded
        self._conditions.pop(name, None)

    def remove(self, name: str) -> None:
        """Forget a prompt."""
        self.prompt(name)
        self.prompts.pop(name)
        self._conditions.pop(name, None)

    def prompt(self, name: str) -> Prompt:
        """The prompt called ``name``.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        if name not in self.prompts:
            there = ", ".join(self.prompts) or "none"
            raise ConfigError(f"prompt: '{name}' is unknown{nearest(name, self.prompts)}; there are {there}")
        return self.prompts[name]

    def mixes(self, name: str) -> bool:
        """Whether the prompt's rows may stand in one batch with those of others."""
        method = self.prompt(name).method
        return (
            isinstance(method, PromptedLM) and method.only_conditions and self.backbone.kind != "text-encoder"
        )

    def condition(self, name: str) -> Condition:
        """What conditions the backbone for a row of ``name``; always the same object, so it is read once."""
        if name not in self._conditions:
            method = self.prompt(name).method
            assert isinstance(method, PromptedLM)
            longest = torch.zeros(1, method.task.max_length, dtype=torch.long, device=self.backbone.device)
            with torch.no_grad():
                made = method.condition(TextBatch(longest, torch.ones_like(longest)))
            self._conditions[name] = _still(made)
        return self._conditions[name]

    def item(self, name: str, text: Text) -> Item:
        """``text`` in the prompt's template, as tokens.

        Raises:
            DataError: a text that is empty, or a pair where one is wanted (or the other way round).
        """
        prompt = self.prompt(name)
        return prompt.method.task.encode([prompt.method.task.row(0, text)], answers=False)[0]

    def fed(self, name: str, text: Text) -> list[int]:
        """The token ids that stand behind the condition of ``name`` for ``text``."""
        method = self.prompt(name).method
        batch = method.task.collate([self.item(name, text)])
        if isinstance(method, PromptedLM):
            batch = method.fed(batch)
        return batch.text[0].tolist()

    def predict(
        self, requests: Sequence[tuple[str, Text]], *, probabilities: bool = False, batch_size: int = 32
    ) -> list[Any]:
        """Answers for ``(name, text)`` pairs, in their order: what each prompt alone would answer.

        Returns:
            As `Prompt.predict`.

        Raises:
            ConfigError: an unknown name.  DataError: a text that its prompt can not take.
        """
        found: list[Any] = [None] * len(requests)
        for places in self._alike([name for name, _ in requests]):
            for k in range(0, len(places), batch_size):
                part = places[k : k + batch_size]
                answers = self._answers([requests[place] for place in part])
                for place, answer in zip(part, answers, strict=True):
                    found[place] = answer if probabilities else answer["answer"]
        for place, (name, _) in enumerate(requests):
            if probabilities and found[place]["probabilities"] is None:
                raise DataError(f"probabilities: '{name}' generates its answers and has none")
        return found

    def _alike(self, names: Sequence[str]) -> list[list[int]]:
        """Places of the requests that can be answered in one pass."""
        groups: dict[Any, list[int]] = {}
        for place, name in enumerate(names):
            task = self.prompt(name).method.task
            key: Any = name
            if self.mixes(name) and task.kind == "generation":
                key = ("generate", task.config.max_new_tokens, task.config.num_beams)
            elif self.mixes(name) and task.kind == "classification":
                short = all(len(choice) == 1 for choice in task.choices)
                key = ("score", short or tuple(map(tuple, task.choices)))
            groups.setdefault(key, []).append(place)
        return list(groups.values())

    @torch.no_grad()
    def _answers(self, requests: Sequence[tuple[str, Text]]) -> list[dict[str, Any]]:
        """Answers and probabilities of requests that go in one pass."""
        name = requests[0][0]
        task = self.prompt(name).method.task
        if not self.mixes(name) or task.kind == "multilabel":
            items = [self.item(name, text) for _, text in requests]
            return _listed(
                predict_items(self.prompt(name).method, items, batch_size=len(items)), task.classes
            )
        ids = [self.fed(other, text) for other, text in requests]
        batch = task.collate([Item(row, []) for row in ids]).to(self.backbone.device)
        condition = Condition(rows=[self.condition(other) for other, _ in requests])
        if task.kind == "generation":
            options: dict[str, Any] = {
                "max_new_tokens": task.config.max_new_tokens,
                "num_beams": task.config.num_beams,
            }
            said = generate(self.backbone, batch, condition, **options)
            texts = task.tokenizer.batch_decode(said, skip_special_tokens=True)
            return [{"answer": text.strip(), "probabilities": None} for text in texts]
        # Every row is scored for the label words of all, and judged by its own.
        tasks = [self.prompt(other).method.task for other, _ in requests]
        union = list(dict.fromkeys(tuple(choice) for t in tasks for choice in t.choices))
        place = {choice: k for k, choice in enumerate(union)}
        scores = choice_scores(self.backbone, batch, condition, union)
        found = []
        for row, own in zip(scores, tasks, strict=True):
            mine = row[[place[tuple(choice)] for choice in own.choices]]
            found += _listed(own.from_scores(mine[None]), own.classes)
        return found


def _still(condition: Condition) -> Condition:
    """The same condition, of which nothing learns: what its rows share is then read once."""
    pairs = condition.keys_values
    return replace(
        condition,
        prompt=None if condition.prompt is None else condition.prompt.detach(),
        deep={k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in condition.deep.items()},
        offset=None if condition.offset is None else condition.offset.detach(),
        keys_values=None if pairs is None else [(k.detach(), v.detach()) for k, v in pairs],
    )


def _listed(found: Predictions, classes: Sequence[str]) -> list[dict[str, Any]]:
    tables: list[Any] = [None] * len(found.answers)
    if found.probabilities is not None:
        tables = [dict(zip(classes, row, strict=True)) for row in found.probabilities.tolist()]
    return [{"answer": a, "probabilities": p} for a, p in zip(found.answers, tables, strict=True)]
