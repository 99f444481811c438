"""cuelight: prompt learning for frozen pretrained models.

    import cuelight
    run = cuelight.tune("prompt-tuning", backbone="smollm2-135m", data="my.csv", shots=16)
    run.metrics; run.prompt.save("dir"); cuelight.load("dir").predict(["..."])

Everything here is imported on first use, so that ``import cuelight`` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cuelight.errors import ArtifactError, BackboneError, ConfigError, CuelightError, DataError

if TYPE_CHECKING:
    from cuelight.artifact import Prompt, load
    from cuelight.backbones import load_backbone
    from cuelight.comparison import Comparison, compare
    from cuelight.conversation.promptor import Promptor, promptor
    from cuelight.overview import backbones, methods
    from cuelight.peft_bridge import import_peft
    from cuelight.searching import Found, search
    from cuelight.serving import Pool
    from cuelight.text_export import TextPrompt, text_prompt
    from cuelight.tuning import Run, tune

    from . import strategies

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "BackboneError",
    "Comparison",
    "ConfigError",
    "CuelightError",
    "DataError",
    "Found",
    "Pool",
    "Prompt",
    "Promptor",
    "Run",
    "TextPrompt",
    "backbones",
    "compare",
    "import_peft",
    "load",
    "load_backbone",
    "methods",
    "promptor",
    "search",
    "strategies",
    "text_prompt",
    "tune",
]

_HOMES = {
    "Comparison": "cuelight.comparison",
    "Found": "cuelight.searching",
    "Pool": "cuelight.serving",
    "Prompt": "cuelight.artifact",
    "Promptor": "cuelight.conversation.promptor",
    "Run": "cuelight.tuning",
    "TextPrompt": "cuelight.text_export",
    "compare": "cuelight.comparison",
    "import_peft": "cuelight.peft_bridge",
    "load": "cuelight.artifact",
    "load_backbone": "cuelight.backbones",
    "promptor": "cuelight.conversation.promptor",
    "search": "cuelight.searching",
    "text_prompt": "cuelight.text_export",
    "tune": "cuelight.tuning",
}


def __getattr__(name: str) -> Any:
    if name in ("backbones", "methods", "strategies"):  # packages and modules that can be called
        return importlib.import_module(f"cuelight.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'cuelight' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
