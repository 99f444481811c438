"""Tasks: templates, label words, scoring and metrics."""

from cuelight.tasks.text import Item, Predictions, TaskConfig, TextTask, make_task

__all__ = ["Item", "Predictions", "TaskConfig", "TextTask", "make_task"]
