"""What a model reads, what counts as an answer, and how good an answer is."""

from cuelight.tasks.image import ImageBatch, ImageConfig, ImageItem, ImageTask
from cuelight.tasks.kinds import make_task, task_from_dict, task_options
from cuelight.tasks.predictions import Predictions
from cuelight.tasks.text import Item, TaskConfig, TextTask

__all__ = [
    "ImageBatch",
    "ImageConfig",
    "ImageItem",
    "ImageTask",
    "Item",
    "Predictions",
    "TaskConfig",
    "TextTask",
    "make_task",
    "task_from_dict",
    "task_options",
]
