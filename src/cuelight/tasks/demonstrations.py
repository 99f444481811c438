"""Solved examples that stand before a query: which ones, and as what tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cuelight.errors import ConfigError
from cuelight.prompts.conditioning import TextBatch
from cuelight.tasks.text import Item, TextTask

__all__ = ["Demonstration", "choose", "room", "start_tokens", "without_start"]


@dataclass(frozen=True)
class Demonstration:
    """One solved example: ``place`` among the rows it was chosen from, ids of its text, answer and separator."""

    place: int
    text: list[int]
    answer: list[int]
    separator: list[int]

    @property
    def ids(self) -> list[int]:
        """All of it in order."""
        return [*self.text, *self.answer, *self.separator]


def choose(task: TextTask, items: Sequence[Item], count: int, room: int, seed: int) -> list[Demonstration]:
    """``count`` of ``items``, spread evenly over the classes, drawn and shuffled with ``seed``.

    Those that no longer fit into ``room`` tokens are left out.

    Raises:
        ConfigError: none fits.
    """
    order = list(range(len(items)))
    draw = random.Random(seed)
    draw.shuffle(order)
    if task.kind == "classification":
        by_class: dict[int, list[int]] = {}
        for k in order:
            by_class.setdefault(items[k].label, []).append(k)
        order = [column[r] for r in range(count) for column in by_class.values() if r < len(column)]
    chosen = order[:count]
    draw.shuffle(chosen)
    found = []
    for k in chosen:
        example = _example(task, k, items[k])
        if len(example.ids) <= room:
            found.append(example)
            room -= len(example.ids)
    if not found:
        raise ConfigError(
            "max_context: no example fits; raise --max-context or shorten texts with --max-length"
        )
    return found


def room(task: TextTask, most: int) -> int:
    """How many tokens a context may have: ``most``, or what the backbone's positions leave for a query."""
    positions = task.backbone.max_positions
    return most if positions is None else min(most, positions - task.max_length - task.longest_answer)


def start_tokens(task: TextTask) -> list[int]:
    """Special tokens the tokenizer puts before every text; they belong before the first example only."""
    with_, without = (task.tokenizer("x", add_special_tokens=on).input_ids for on in (True, False))
    return with_[: with_.index(without[0])] if without and without[0] in with_ else []


def without_start(task: TextTask, batch: TextBatch) -> TextBatch:
    """``batch`` as it stands behind a context: without the tokens that begin a text."""
    start = start_tokens(task)
    first = torch.tensor(start, device=batch.text.device)
    if start and bool((batch.text[:, : len(start)] == first).all()):
        return replace(batch, text=batch.text[:, len(start) :], text_mask=batch.text_mask[:, len(start) :])
    return batch


def _example(task: TextTask, place: int, item: Item) -> Demonstration:
    """Text, answer, and an empty line, without the special tokens around them."""
    tokenizer, start = task.tokenizer, start_tokens(task)
    special = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    text, answer = list(item.text), list(item.answer)
    if text[: len(start)] == start:
        text = text[len(start) :]
    while text and text[-1] in special:
        text.pop()
    while answer and answer[-1] in special:
        answer.pop()
    return Demonstration(place, text, answer, tokenizer("\n\n", add_special_tokens=False).input_ids)
