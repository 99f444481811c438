"""Frozen pretrained models: loading them, naming their towers, and the small built-in ones.

Loading brings in torch and transformers, so it is imported on first use; listing what is built in needs neither.
Called, ``cuelight.backbones()``, it lists the built-in ones: `cuelight.overview.backbones`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cuelight._door import callable_as

if TYPE_CHECKING:
    from cuelight.backbones.backbone import Backbone, Kind, load_backbone
    from cuelight.backbones.towers import Tower, find_towers

__all__ = ["Backbone", "Kind", "Tower", "find_towers", "load_backbone"]

_HOMES = {
    "Backbone": "backbone",
    "Kind": "backbone",
    "load_backbone": "backbone",
    "Tower": "towers",
    "find_towers": "towers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cuelight.backbones' has no attribute '{name}'")
    return getattr(importlib.import_module(f"cuelight.backbones.{_HOMES[name]}"), name)


callable_as(__name__, "cuelight.overview", "backbones")
