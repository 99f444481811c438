"""Two names that are a package and a function: ``cuelight.methods`` and ``cuelight.backbones``.

``cuelight.methods()`` lists the methods, and ``cuelight.methods`` is the package that holds them.  Importing a
package puts it into its parent under its name, over any function there; so the packages themselves can be called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["callable_as"]


def callable_as(package: str, home: str, function: str) -> None:
    """Make calling ``package`` call ``function`` of the module ``home``, which is imported at the first call."""

    class Door(ModuleType):
        def __call__(self) -> Any:
            return getattr(importlib.import_module(home), function)()

    sys.modules[package].__class__ = Door
