"""Which task serves which data: texts and pictures have tasks of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cuelight.backbones.backbone import Backbone
from cuelight.config import build
from cuelight.data import Splits
from cuelight.tasks.image import ImageConfig, ImageTask
from cuelight.tasks.text import TaskConfig, TextTask

__all__ = ["Task", "make_task", "task_from_dict", "task_options"]

Task = TextTask | ImageTask
_OPTIONS: dict[str, type[BaseModel]] = {"text": TaskConfig, "image": ImageConfig}


def task_options(modality: str) -> type[BaseModel]:
    """What a user may set about a task on ``text`` or ``image`` data."""
    return _OPTIONS[modality]


def make_task(backbone: Backbone, splits: Splits, config: Any) -> Task:
    """The task that ``splits`` pose to ``backbone``; ``config`` is of `task_options`."""
    if splits.modality == "image":
        return ImageTask(backbone, splits.kind, splits.classes, config=config)
    return TextTask.of(backbone, splits, config)


def task_from_dict(backbone: Backbone, spec: Mapping[str, Any]) -> Task:
    """The task whose ``to_dict`` gave ``spec``.

    Raises:
        ConfigError: an option that this version does not have.
    """
    modality = spec.get("modality", "text")
    config: Any = build(task_options(modality), spec["config"])
    if modality == "image":
        return ImageTask.from_dict(backbone, spec, config)
    return TextTask.from_dict(backbone, spec, config)
