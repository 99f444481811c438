"""The public names work however they are reached."""

from __future__ import annotations

import subprocess
import sys

import cuelight


def test_methods_and_backbones_are_packages_that_can_be_called() -> None:
    import cuelight.backbones.builtin
    import cuelight.methods.base

    assert {"prompt-tuning", "dept"} <= {card["name"] for card in cuelight.methods()}
    assert {"smollm2-135m", "flan-t5-small"} <= {entry["name"] for entry in cuelight.backbones()}
    assert cuelight.methods.base.get_method("dept").card.arxiv == "2309.05173"


def test_every_public_name_is_there() -> None:
    for name in cuelight.__all__:
        assert getattr(cuelight, name) is not None


def test_importing_cuelight_brings_in_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'pandas') if m in sys.modules]"
    code = f"import sys, cuelight; cuelight.backbones(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
