"""Pictures in the user's data: where they are, whether they can be read, and which are the same.

A picture is a dictionary ``{"bytes": ..., "path": ...}``, one of them None, as ``datasets.Image`` keeps it.  Files
stay where they are; they are decoded when they are needed.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuelight.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "Picture",
    "as_picture",
    "decode",
    "holds_pictures",
    "is_picture",
    "picture_key",
    "pictures_in",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
_HEAD = 65536  # bytes of a file that tell it from all others of its size

Picture = dict[str, Any]


def is_picture(value: Any) -> bool:
    """Whether a cell holds a picture: encoded bytes, a dictionary of ``datasets.Image``, or a PIL image."""
    if isinstance(value, dict):
        return set(value) >= {"bytes", "path"}
    return isinstance(value, bytes) or (hasattr(value, "tobytes") and hasattr(value, "getbands"))


def holds_pictures(values: list[Any]) -> bool:
    """Whether a column is of pictures, or of paths that end like those of pictures."""
    return bool(values) and all(
        is_picture(value) or (isinstance(value, str | Path) and str(value).lower().endswith(IMAGE_SUFFIXES))
        for value in values
    )


def pictures_in(folder: Path) -> list[Path]:
    """All picture files below ``folder``, in order; hidden ones are left out."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]


def as_picture(value: Any, folder: Path | None = None) -> Picture:
    """A cell or what a user gave as a `Picture`; a path counts from ``folder``.

    Raises:
        DataError: it is no picture.
    """
    if isinstance(value, dict) and (value.get("bytes") is not None or value.get("path")):
        if value.get("bytes") is not None:
            return {"bytes": bytes(value["bytes"]), "path": value.get("path")}
        value = value["path"]
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, str | os.PathLike):
        path = Path(value).expanduser()
        return {"bytes": None, "path": str(path if folder is None else folder / path)}
    if hasattr(value, "save") and hasattr(value, "getbands"):
        buffer = io.BytesIO()
        value.save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}
    kind = type(value).__name__
    raise DataError(f"image: is a {kind}; give a path, encoded bytes or a PIL image")


def picture_key(picture: Picture, where: str) -> str:
    """What tells a picture from all others, the same for a file and its bytes; its header is looked at.

    Raises:
        DataError: it is missing, or no picture; ``where`` says which row it is.
    """
    head, size = _beginning(picture, where)
    _check(head, size, picture, where)
    return hashlib.sha256(size.to_bytes(8, "little") + head).hexdigest()


def decode(picture: Picture, where: str = "") -> Image:
    """The picture in RGB, transparent parts white.

    Raises:
        DataError: it is missing or damaged; names the file, or ``where``.
    """
    from PIL import Image, ImageOps

    raw = picture["bytes"]
    try:
        with Image.open(picture["path"] if raw is None else io.BytesIO(raw)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise DataError(f"{_name(picture, where)} is not there: check the path") from error
    except Exception as error:  # Pillow raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{_name(picture, where)} is damaged or no picture ({reason}): mend or remove it"
        ) from error
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def _beginning(picture: Picture, where: str) -> tuple[bytes, int]:
    raw = picture["bytes"]
    if raw is not None:
        return raw[:_HEAD], len(raw)
    path = Path(picture["path"])
    try:
        with path.open("rb") as file:
            return file.read(_HEAD), path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{_name(picture, where)} can not be read ({error.strerror}): check the path"
        ) from error


def _check(head: bytes, size: int, picture: Picture, where: str) -> None:
    """Look at the header only; what is damaged behind it is found when it is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(head)):
            return
    except UnidentifiedImageError:
        if len(head) == size:
            raise DataError(
                f"{_name(picture, where)} is no picture that can be read: mend or remove it"
            ) from None
        decode(picture, where)  # a long header: the whole file decides
    except Exception as error:
        raise DataError(f"{_name(picture, where)} is damaged: mend or remove it") from error


def _name(picture: Picture, where: str) -> str:
    if picture["bytes"] is None:
        return f"image '{picture['path']}'"
    return f"image of {where}" if where else "the image"
