"""Random changes of a picture: RandAugment (Cubuk et al. 2020) with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageEnhance, ImageOps

__all__ = ["rand_augment"]

_Change = Callable[[Image.Image, float], Image.Image]


def rand_augment(image: Image.Image, changes: int = 2, magnitude: float = 1 / 3) -> Image.Image:
    """``image`` after so many changes, drawn from torch's random state.

    Args:
        image: in RGB.
        changes: how many, one after the other; the same may come twice.
        magnitude: 0 to 1, how far each goes; 1/3 is the usual 10 of 30.
    """
    for _ in range(changes):
        change, signed = _CHANGES[int(torch.randint(len(_CHANGES), ()))]
        sign = -1 if signed and torch.rand(()) < 0.5 else 1
        image = change(image, sign * magnitude)
    return image


def _enhanced(kind: Any, image: Image.Image, how: float) -> Image.Image:
    return kind(image).enhance(1 + 0.9 * how)


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


_CHANGES: tuple[tuple[_Change, bool], ...] = (
    (lambda image, _: image, False),
    (lambda image, _: ImageOps.autocontrast(image), False),
    (lambda image, _: ImageOps.equalize(image), False),
    (lambda image, how: ImageOps.solarize(image, round(255 * (1 - how))), False),
    (lambda image, how: ImageOps.posterize(image, 8 - round(4 * how)), False),
    (partial(_enhanced, ImageEnhance.Color), True),
    (partial(_enhanced, ImageEnhance.Contrast), True),
    (partial(_enhanced, ImageEnhance.Brightness), True),
    (partial(_enhanced, ImageEnhance.Sharpness), True),
    (lambda image, how: image.rotate(30 * how), True),
    (lambda image, how: _moved(image, 1, 0.3 * how, 0, 0, 1, 0), True),
    (lambda image, how: _moved(image, 1, 0, 0, 0.3 * how, 1, 0), True),
    (lambda image, how: _moved(image, 1, 0, 0.45 * how * image.width, 0, 1, 0), True),
    (lambda image, how: _moved(image, 1, 0, 0, 0, 1, 0.45 * how * image.height), True),
)
"""Changes, and whether they go either way."""
