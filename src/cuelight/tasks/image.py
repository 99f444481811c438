"""Image tasks: pictures in, one of some named classes out.

A task decodes and resizes pictures as the backbone's own processor does, knows the classes' names as words, the
templates they are read in, and how good an answer is.  Pictures are decoded when a batch needs them.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.data.augment import rand_augment
from cuelight.data.images import as_picture, decode
from cuelight.errors import ConfigError, DataError, nearest
from cuelight.tasks.metrics import classification_metrics
from cuelight.tasks.predictions import Predictions

__all__ = [
    "TEMPLATE_SETS",
    "ImageBatch",
    "ImageConfig",
    "ImageItem",
    "ImageTask",
    "class_words",
    "named_templates",
]

_MEAN, _SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
_KEPT = 256 * 2**20  # bytes of decoded pictures that a process keeps

_LOOKS = (
    *(
        f"{how} photo"
        for how in ("good", "bad", "bright", "dark", "blurry", "cropped", "close-up", "small", "large")
    ),
    *("photo", "black and white photo", "low resolution photo", "pixelated picture", "picture from afar"),
    *("painting", "drawing", "sketch", "cartoon", "rendering", "sculpture", "toy", "silhouette"),
)
TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    "simple": (
        "a photo of a {}.",
        "a picture of a {}.",
        "an image of a {}.",
        "a drawing of a {}.",
        "a close-up of a {}.",
        "a blurry photo of a {}.",
        "a small {}.",
    ),
    "styles": (
        "a photo of a {}.",
        "a painting of a {}.",
        "a cartoon of a {}.",
        "a sketch of a {}.",
        "a drawing of a {}.",
        "a picture of a {}.",
    ),
    "varied": tuple(
        f"{article} {words} of {the} {{}}."
        for words in _LOOKS
        for article, the in (("an" if words[0] in "aeiou" else "a", "a"), ("the", "the"))
    ),
    "pets": ("a photo of a {}, a type of pet.",),
    "flowers": ("a photo of a {}, a type of flower.",),
    "food": ("a photo of {}, a type of food.",),
    "aircraft": ("a photo of a {}, a type of aircraft.",),
    "texture": ("{} texture.",),
    "satellite": ("a centered satellite photo of {}.",),
    "action": ("a photo of a person doing {}.",),
}
"""Templates by name; those of one template are CoOp's for its data sets."""


def named_templates(value: Any) -> Any:
    """Templates, those of named sets among them; in one string ``|`` stands between several.

    What is neither a string nor a list comes back as it is: the options' own check says what it should be.

    Raises:
        ValueError: one has no place for the class name, and is no name of a set.
    """
    if not isinstance(value, str | list | tuple):
        return value
    listed = value.split("|") if isinstance(value, str) else [str(entry) for entry in value]
    found = [t for entry in listed for t in TEMPLATE_SETS.get(entry.strip(), (entry.strip(),))]
    for template in found:
        if template.count("{}") != 1:
            hint = nearest(template, TEMPLATE_SETS)
            raise ValueError(f"'{template}' has no place for the class name{hint}; write {{}} once")
    return tuple(found)


class ImageConfig(BaseModel):
    """What a user may set about an image task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: tuple[str, ...] | str = Field(
        ("a photo of a {}.",),
        description="Texts the class names are read in, {} being the name; several, with | between them, are averaged; "
        "or a named set: " + ", ".join(TEMPLATE_SETS) + ".",
    )
    image_size: int | None = Field(
        None, ge=14, description="Side of the pictures in pixels; default: the backbone's own."
    )
    augment: Literal["none", "crop", "rand"] = Field(
        "none",
        description="Training pictures as they are; a random part of each (8 to 100 % of it) and its mirror image; or "
        "after two random changes (RandAugment).",
    )

    @field_validator("templates", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return named_templates(value)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that the task reads besides the picture."""
        return ()


@dataclass
class ImageItem:
    """One picture, not decoded, and its class.

    ``feature [d]`` is its frozen feature once it is known, for methods that leave the image tower alone.
    """

    picture: dict[str, Any]
    key: str
    label: int = -1
    row: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    feature: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass
class ImageBatch:
    """Pictures ``[B, 3, S, S]`` as the image tower reads them, and their classes ``[B]``.

    When every picture's frozen feature was known, ``features [B, d]`` holds them and ``pixels`` is None.
    """

    pixels: Tensor | None
    label: Tensor
    items: list[ImageItem] = field(repr=False)
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device, non_blocking: bool = False) -> ImageBatch:
        """The same batch on ``device``."""
        pixels, features = (
            None if x is None else x.to(device, non_blocking=non_blocking)
            for x in (self.pixels, self.features)
        )
        return ImageBatch(pixels, self.label.to(device, non_blocking=non_blocking), self.items, features)


class ImageTask:
    """Classification of pictures for one backbone.

    Args:
        backbone: its image processor says how large pictures are and how they are normalised.
        kind: ``classification``.
        classes: class names in order, as the data has them.
        config: templates, size and augmentation.

    Attributes:
        names: the class names as words, see `class_words`.
        size: side of the pictures in pixels.

    Raises:
        ConfigError: a size that the backbone's patches do not divide, or two classes of one name.
    """

    modality: ClassVar[str] = "image"
    metric: ClassVar[str] = "accuracy"
    pairs: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, backbone: Backbone, kind: str, classes: Sequence[str], *, config: ImageConfig | None = None
    ) -> None:
        if kind != "classification":
            raise ConfigError(
                f"task: pictures are classified, {kind} of them is not there yet; give one label a row"
            )
        self.backbone, self.kind, self.classes = backbone, kind, tuple(classes)
        self.config = config or ImageConfig.model_validate({})
        self.names = tuple(map(class_words, self.classes))
        for name, count in Counter(self.names).items():
            if count > 1:
                raise ConfigError(f"classes: {count} of them read '{name}'; rename one with --label-names")
        own, self._mean, self._spread = _processing(backbone)
        self.size = self.config.image_size or own
        patch = _patch_size(backbone)
        if self.size % patch:
            raise ConfigError(
                f"image_size: {self.size} is no multiple of {backbone.id}'s patches of {patch}; "
                f"give {max(1, round(self.size / patch)) * patch}"
            )

    @property
    def templates(self) -> tuple[str, ...]:
        """Texts with ``{}`` in the class name's place."""
        return tuple(self.config.templates)

    @property
    def augments(self) -> bool:
        """Whether training pictures differ from epoch to epoch."""
        return self.config.augment != "none"

    def renamed(self, classes: Sequence[str]) -> ImageTask:
        """The same task for other classes."""
        return ImageTask(self.backbone, self.kind, classes, config=self.config)

    def to_dict(self) -> dict[str, Any]:
        """All it takes to build the task again."""
        return {
            "modality": self.modality,
            "kind": self.kind,
            "classes": list(self.classes),
            "config": self.config.model_dump(mode="json"),
        }

    @staticmethod
    def from_dict(backbone: Backbone, spec: Mapping[str, Any], config: ImageConfig) -> ImageTask:
        """The task that `to_dict` described."""
        return ImageTask(backbone, spec["kind"], spec["classes"], config=config)

    def lines(self) -> list[str]:
        """What a report says of the task."""
        shown = ", ".join(f"'{t}'" for t in self.templates[:4]) + (", ..." if len(self.templates) > 4 else "")
        names = ", ".join(self.names[:12]) + (f", ... ({len(self.names)})" if len(self.names) > 12 else "")
        return [f"templates: {shown}", f"class names: {names}", f"pictures: {self.size} x {self.size}"]

    # ---- from rows to batches --------------------------------------------------------------------------

    def row(self, place: int, given: Any) -> dict[str, Any]:
        """What the task reads of one path, encoded picture, PIL image, or dictionary with ``image``.

        Raises:
            DataError: it is none of these; ``place`` says which one.
        """
        value = given["image"] if isinstance(given, Mapping) and "image" in given else given
        try:
            return {"image": as_picture(value)}
        except DataError as error:
            raise DataError(f"images: number {place}: {error}") from error

    def encode(self, rows: Any, *, answers: bool = True) -> list[ImageItem]:
        """Rows (a ``datasets.Dataset``, or dictionaries with ``image``) as items; nothing is decoded yet."""
        memory = self.backbone.memory
        found = []
        for row in rows:
            key = row.get("key") or _own_key(row["image"])
            item = ImageItem(row["image"], key, row.get("label", -1), row)
            item.feature = memory.get((key, self.size))
            found.append(item)
        return found

    def length(self, item: ImageItem) -> int:
        """Rows of like length share a batch; all pictures are alike."""
        return 0

    def collate(self, items: Sequence[ImageItem], *, augment: bool | str = False) -> ImageBatch:
        """A batch on the CPU; with ``augment`` the pictures are drawn anew from torch's random state.

        True draws them as the task is configured, ``crop`` and ``rand`` in that way.
        """
        how = self.config.augment if augment is True else augment or "none"
        arrays = np.stack([self._prepared(item, how) for item in items])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div_(255)
        pixels.sub_(self._mean.view(3, 1, 1)).div_(self._spread.view(3, 1, 1))
        return ImageBatch(pixels, self._labels(items), list(items))

    def shown(self, item: ImageItem) -> np.ndarray:
        """The part of a picture that the tower sees, ``[S, S, 3]`` uint8."""
        return self._prepared(item, "none")

    def collate_features(self, items: Sequence[ImageItem]) -> ImageBatch:
        """A batch of the items' frozen features, which all have one."""
        table = torch.stack([item.feature for item in items if item.feature is not None])
        return ImageBatch(None, self._labels(items), list(items), table)

    def remember(self, item: ImageItem, feature: Tensor) -> None:
        """Keep an item's frozen feature for all tasks of this backbone and size."""
        item.feature = feature
        self.backbone.memory[item.key, self.size] = feature

    @staticmethod
    def _labels(items: Sequence[ImageItem]) -> Tensor:
        return torch.tensor([item.label for item in items])

    def _prepared(self, item: ImageItem, how: str) -> np.ndarray:
        if how == "crop":
            return np.asarray(_random_view(_decoded(item), self.size))
        middle = _middle(_decoded(item), self.size)
        return np.asarray(rand_augment(middle) if how == "rand" else middle)

    # ---- judging ---------------------------------------------------------------------------------------

    def from_scores(self, scores: Tensor) -> Predictions:
        """Predictions from class scores ``[B, C]``."""
        scores = scores.detach().float().cpu()
        return Predictions([self.classes[k] for k in scores.argmax(1).tolist()], scores.softmax(1))

    def metrics(self, predictions: Predictions, items: Sequence[ImageItem]) -> dict[str, float]:
        """How good ``predictions`` are for ``items``, between 0 and 1."""
        index = {name: k for k, name in enumerate(self.classes)}
        return classification_metrics(
            [index[a] for a in predictions.answers], [i.label for i in items], len(self.classes)
        )


def class_words(name: str) -> str:
    """A class name as words: ``forest_road`` and ``ForestRoad`` are "forest road" and "Forest Road"."""
    words = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z])", " ", name) if " " not in name else name
    return " ".join(words.replace("_", " ").split()) or name


def _processing(backbone: Backbone) -> tuple[int, Tensor, Tensor]:
    """Side of the pictures, mean and spread of their channels, as the backbone's processor has them."""
    processor = backbone.processor
    size = None
    for name in ("crop_size", "size"):
        given = getattr(processor, name, None)
        for side in ("height", "shortest_edge"):
            value = given.get(side) if isinstance(given, Mapping) else getattr(given, side, None)
            size = size or value
    if size is None:
        size = (
            backbone.model.config.vision_config.image_size
            if backbone.dual
            else backbone.model.config.image_size
        )
    mean = getattr(processor, "image_mean", None) or _MEAN
    spread = getattr(processor, "image_std", None) or _SPREAD
    return int(size), torch.tensor(mean), torch.tensor(spread)


def _patch_size(backbone: Backbone) -> int:
    if backbone.dual is not None:
        return backbone.dual.patch_size
    return int(getattr(backbone.model.config, "patch_size", 1))


def _own_key(picture: Mapping[str, Any]) -> str:
    from cuelight.data.images import picture_key

    return picture_key(dict(picture), "")


class _Decoded:
    """Decoded pictures that fit into a fixed share of memory, the longest unused leave first."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self.kept: OrderedDict[str, Image.Image] = OrderedDict()

    def __call__(self, item: ImageItem) -> Image.Image:
        image = self.kept.get(item.key)
        if image is not None:
            self.kept.move_to_end(item.key)
            return image
        image = decode(item.picture, f"row {item.row['row']}" if "row" in item.row else "")
        self.kept[item.key] = image
        self.size += 3 * image.width * image.height
        while self.size > self.most and len(self.kept) > 1:
            _, old = self.kept.popitem(last=False)
            self.size -= 3 * old.width * old.height
        return image


_decoded = _Decoded(_KEPT)


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The shorter side to ``size`` (bicubic), then the middle square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _random_view(image: Image.Image, size: int) -> Image.Image:
    """A random part of 8 to 100 % of the area, its sides 3:4 to 4:3, to ``size`` squared; mirrored half the time."""
    width, height = image.size
    box = None
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(0.08, 1.0))
        ratio = float(torch.empty(()).uniform_(np.log(3 / 4), np.log(4 / 3)).exp())
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, ()))
            top = int(torch.randint(height - h + 1, ()))
            box = (left, top, left + w, top + h)
            break
    if box is None:  # a picture far from square: its middle
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else view
