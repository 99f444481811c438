"""Pictures with captions, and no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cuelight.data.images import Picture, as_picture, holds_pictures, picture_key
from cuelight.data.sources import open_source, role_of
from cuelight.errors import DataError

__all__ = ["Pair", "read_pairs"]

_CAPTION = ("caption", "captions", "sentence", "sentences", "text", "description", "title", "alt_text")


@dataclass(frozen=True)
class Pair:
    """A picture and what is said of it; ``key`` tells it from all others."""

    picture: Picture
    key: str
    captions: tuple[str, ...]


def read_pairs(source: Any, *, most: int | None = None, seed: int = 0) -> list[Pair]:
    """The pictures of ``source`` that have captions; of a source with splits, those of the training split.

    Args:
        source: a table, folder, hub id or data set with a column of pictures and one named like ``caption``, a
            caption or a list of captions in each row.
        most: keep so many at most, drawn by ``seed``.

    Raises:
        DataError: it can not be read, or has no such columns.
    """
    found = open_source(source)
    frames = list(found.tables.values())
    training = [frame for name, frame in found.tables.items() if role_of(name) == "train"]
    frame = (training or frames)[0]
    split = next((c for c in frame.columns if str(c).strip().lower() == "split"), None)
    if split is not None and any(role_of(str(v)) == "train" for v in frame[split].unique()):
        frame = frame[[role_of(str(v)) == "train" for v in frame[split]]]
    image = next((c for c in frame.columns if holds_pictures(list(frame[c].iloc[:20]))), None)
    known = {str(c).strip().lower(): c for c in frame.columns}
    caption = next((known[name] for name in _CAPTION if name in known), None)
    if image is None or caption is None:
        lacks = "pictures" if image is None else "captions (name it 'caption')"
        raise DataError(
            f"{found.name}: has no column of {lacks}; it has {', '.join(map(str, frame.columns))}"
        )
    if most is not None and len(frame) > most:
        frame = frame.sample(most, random_state=seed % 2**32)
    pairs = []
    for number, (value, said) in enumerate(zip(frame[image], frame[caption], strict=True)):
        texts = [said] if isinstance(said, str) else [t for t in said if isinstance(t, str)]
        captions = tuple(" ".join(text.split()) for text in texts if text.strip())
        if captions:
            picture = as_picture(value, found.folder)
            pairs.append(Pair(picture, picture_key(picture, f"row {number} of {found.name}"), captions))
    if not pairs:
        raise DataError(f"{found.name}: no picture has a caption")
    return pairs
