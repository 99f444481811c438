"""What a learned prompt looks at: attention of the image tower's prompt tokens over a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cuelight.artifact import Prompt
from cuelight.errors import ConfigError
from cuelight.methods.contrastive import Contrastive
from cuelight.prompts.attention import attention_weights
from cuelight.prompts.slots import inserted_tokens

__all__ = ["AttentionMaps", "attention_maps"]


@dataclass
class AttentionMaps:
    """Where attention goes in one picture.  Weights are means over the heads.

    Attributes:
        picture: ``[S, S, 3]`` uint8, as the tower saw it.
        prompts: ``[layers, tokens, h, w]``: what each prompt token attends to among the patches.
        class_token: ``[layers, h, w]``: what the class token attends to, with the prompt.
        frozen: the same without it.
        answer, chance: the class that the method names, and its probability.
    """

    picture: np.ndarray
    prompts: np.ndarray
    class_token: np.ndarray
    frozen: np.ndarray
    answer: str
    chance: float

    def plot(self, path: str | os.PathLike[str], title: str = "") -> Path:
        """Write a PNG file: the class token's attention, the prompt's layer by layer, and token by token.

        Tokens are shown as means over the layers; every map has a scale of its own.
        """
        from cuelight.evaluation.plots import plot_attention

        nothing = np.zeros((0, 0))
        last = len(self.prompts)
        rows: list[list[tuple[str, np.ndarray]]] = [
            [
                (f"{self.answer}  {self.chance:.2f}", nothing),
                ("class token, frozen", self.frozen[-1]),
                ("class token, prompted", self.class_token[-1]),
                ("prompt, all layers", self.prompts.mean((0, 1))),
            ],
            [(f"prompt, layer {k + 1}", self.prompts[k].mean(0)) for k in _spread(last, 6)],
            [(f"token {k + 1}", self.prompts[:, k].mean(0)) for k in _spread(self.prompts.shape[1], 6)],
        ]
        return plot_attention(self.picture, rows, path, title)


def attention_maps(prompt: Prompt, picture: Any) -> AttentionMaps:
    """What the image tower's prompt tokens attend to in ``picture``.

    Args:
        prompt: a run's, of a method that puts tokens into the image tower.
        picture: a path, encoded bytes or a PIL image.

    Raises:
        ConfigError: the method leaves the image tower as it is.
        DataError: the picture can not be read.
    """
    method = prompt.method
    if not isinstance(method, Contrastive):
        raise ConfigError(f"method: {method.card.name} has no prompt in an image tower; nothing can be seen")
    task, device = method.task, method.backbone.device
    items = task.encode([task.row(0, picture)], answers=False)
    batch = task.collate(items).to(device)
    assert batch.pixels is not None
    method.eval()
    with torch.no_grad():
        with attention_weights(method.dual.vision) as plain:
            method.dual.image_features(batch.pixels.to(method.backbone.dtype))
        with inserted_tokens() as inserted, attention_weights(method.dual.vision) as prompted:
            method.image_features(batch)
    if not inserted:
        raise ConfigError(
            f"method: {method.card.name} leaves the image tower as it is, so there is nothing to see; "
            "take one with image tokens, such as vpt, ivlp or maple"
        )
    side = task.size // method.dual.patch_size
    own = plain[0].shape[-1] - side * side  # class token, registers
    length = prompted[0].shape[-1] - plain[0].shape[-1]
    first = own + side * side if inserted[0].after is None else inserted[0].after
    places = [*range(first, first + length)]
    patches = [k for k in range(prompted[0].shape[-1]) if k not in places][own:]

    def grid(weights: Sequence[Tensor], queries: list[int], keys: list[int]) -> np.ndarray:
        table = torch.stack([w[0].mean(0)[queries][:, keys] for w in weights]).cpu().numpy()
        return table.reshape(len(weights), len(queries), side, side)

    found = method.predict(method.batch(items).to(device))
    assert found.probabilities is not None
    return AttentionMaps(
        task.shown(items[0]),
        grid(prompted, places, patches),
        grid(prompted, [0], patches)[:, 0],
        grid(plain, [0], [*range(own, plain[0].shape[-1])])[:, 0],
        found.answers[0],
        float(found.probabilities.max()),
    )


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, the first and the last among them."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, most)).tolist()})
