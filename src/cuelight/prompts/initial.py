"""Where a soft prompt starts: from text, from label words, from sampled vocabulary, or from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError

__all__ = ["Initialisation", "initial_prompt", "vocabulary_sample"]

Initialisation = Literal["vocabulary", "text", "labels", "normal"]


def initial_prompt(
    backbone: Backbone,
    length: int,
    how: Initialisation,
    *,
    text: str | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> Tensor:
    """The first value of a soft prompt, ``[length, width]`` float32.

    ``text`` repeats or cuts the embeddings of a text to ``length``; ``labels`` uses the label words' tokens (some of
    them, drawn, where they are too many) and fills up with sampled vocabulary (Lester et al. 2021);
    ``vocabulary`` samples among the 5,000 first ids that are not special; ``normal`` draws with the standard
    deviation of the embedding table.

    Raises:
        ConfigError: ``text`` without a text.
    """
    table = backbone.tower.embedding
    assert table is not None
    if how == "normal":
        spread = float(_rows(backbone, torch.arange(min(5000, table.num_embeddings))).std())
        return (
            torch.randn(length, backbone.tower.width, generator=torch.Generator().manual_seed(seed)) * spread
        )
    ids: list[int] = []
    if how == "text":
        ids = backbone.tokenizer(text or "", add_special_tokens=False).input_ids
        if not ids:
            raise ConfigError("init_text: is empty; give the text whose embeddings the prompt starts from")
        ids = (ids * (length // len(ids) + 1))[:length]
    elif how == "labels":
        for label in labels:
            ids += backbone.tokenizer(" " + label, add_special_tokens=False).input_ids
        if len(ids) > length:
            kept = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:length]
            ids = [ids[k] for k in sorted(kept.tolist())]
    return _rows(
        backbone, torch.tensor(ids + vocabulary_sample(backbone, length - len(ids), seed), dtype=torch.long)
    )


def vocabulary_sample(backbone: Backbone, count: int, seed: int = 0) -> list[int]:
    """``count`` token ids drawn from the first 5,000 that are not special, which are the most common ones."""
    special = set(backbone.tokenizer.all_special_ids)
    common: list[int] = []
    for i in range(len(backbone.tokenizer)):
        # Entries that no text ever used (BERT and Gemma keep some free) were never trained.
        if i not in special and "unused" not in str(backbone.tokenizer.convert_ids_to_tokens(i)):
            common.append(i)
        if len(common) == 5000:
            break
    drawn = torch.randint(len(common), (count,), generator=torch.Generator().manual_seed(seed))
    return [common[k] for k in drawn.tolist()]


def _rows(backbone: Backbone, ids: Tensor) -> Tensor:
    """Embeddings as the tower sees them: some models scale their table's rows when they look them up."""
    with torch.no_grad():
        return backbone.embed(ids.to(backbone.device)).float().cpu()
