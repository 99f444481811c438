"""Stages, the one training loop over them, checkpoints and resume.

Only ``TrainConfig`` is imported at once, because the command line builds its help from it; the rest
brings in torch and is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight.training.config import TrainConfig

if TYPE_CHECKING:
    from cuelight.training.checkpoint import forget
    from cuelight.training.loop import Interrupted, TrainResult, train
    from cuelight.training.stage import ParamGroup, Stage

__all__ = ["Interrupted", "ParamGroup", "Stage", "TrainConfig", "TrainResult", "forget", "train"]

_HOMES = {
    "forget": "checkpoint",
    "Interrupted": "loop",
    "TrainResult": "loop",
    "train": "loop",
    "ParamGroup": "stage",
    "Stage": "stage",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
