"""CoOp, MaPLe and PromptSRC train as the published algorithm does, step by step.

The reference is that of the speed benchmark, written from the papers: text of 77 tokens, all classes and all pictures
encoded in every step.  Here on a small CLIP with random weights; the benchmark runs ViT-B/16's shape.
"""

from __future__ import annotations

import pytest
from benchmarks.speed.clip_methods import METHODS, compare
from tests.dual_models import small_clip

from cuelight.backbones import Backbone


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return small_clip()


@pytest.mark.parametrize("name", METHODS)
def test_ten_steps_have_the_same_losses(clip: Backbone, name: str) -> None:
    found = compare(name, clip, classes=7, steps=10)
    assert found["largest_difference"] < 1e-4
    first, last = found["losses"][0][0], found["losses"][-1][0]
    assert first != pytest.approx(last, abs=1e-3)  # something was learned
