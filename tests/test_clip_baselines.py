"""The baselines of the CLIP family: the papers' parameter counts, their identities, and where gradients go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dual_models import clip_b16, small_clip

from cuelight.backbones import Backbone, load_backbone
from cuelight.errors import CuelightError
from cuelight.methods.base import get_method
from cuelight.methods.contrastive import Contrastive
from cuelight.tasks import ImageBatch, ImageConfig, ImageTask

CLASSES = ("dog", "giraffe", "hot air balloon")
EVERY = ("zero-shot-clip", "coop", "cocoop", "vpt", "ivlp")


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return small_clip()


@pytest.fixture(scope="module")
def b16() -> Backbone:
    """CLIP ViT-B/16's shape without weights; the tokenizer is MiniLM's, since only counts are looked at."""
    tokenizer = load_backbone("minilm-l6", progress=False).tokenizer
    return Backbone("clip-vit-b16-shape", clip_b16(), kind="vision-language", tokenizer=tokenizer)


def make(name: str, backbone: Backbone, classes: tuple[str, ...] = CLASSES, **options: Any) -> Contrastive:
    kind = get_method(name)
    task = ImageTask(backbone, "classification", classes, config=ImageConfig())
    method = kind(backbone, task, kind.Config(**options))
    assert isinstance(method, Contrastive)
    return method


def batch(method: Contrastive, count: int = 3) -> ImageBatch:
    draw = np.random.RandomState(0)
    pictures = [Image.fromarray(draw.randint(0, 255, (40, 50, 3)).astype(np.uint8)) for _ in range(count)]
    items = method.task.encode([method.task.row(k, p) | {"label": k % 3} for k, p in enumerate(pictures)])
    return method.batch(items)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("coop", {"context_length": 4}, 2048),
        ("coop", {"context_length": 16}, 8192),
        ("coop", {"context_length": 16, "scope": "class"}, 3 * 8192),
        ("cocoop", {}, 35360),
        ("vpt", {"tokens": 16}, 147_456),
        ("vpt", {"tokens": 16, "depth": "shallow"}, 16 * 768),
        ("ivlp", {}, 46_080),
        ("ivlp", {"layers": 3}, 15_360),
        ("zero-shot-clip", {}, 0),
    ],
)
def test_counts_on_clip_vit_b16(b16: Backbone, name: str, options: dict[str, Any], count: int) -> None:
    assert (b16.dual.width, b16.dual.text.width, b16.dual.vision.width) == (512, 512, 768)
    assert make(name, b16, **options).trainable == count


def test_cocoop_with_a_silent_network_is_coop(clip: Backbone) -> None:
    coop, cocoop = make("coop", clip, init="words"), make("cocoop", clip)
    with torch.no_grad():
        cocoop.network[2].weight.zero_()
        cocoop.network[2].bias.zero_()
    assert torch.allclose(cocoop.scores(batch(cocoop)), coop.scores(batch(coop)), atol=1e-5)
    with torch.no_grad():
        cocoop.network[2].bias.fill_(0.05)
    shifted = make("coop", clip, init="words")
    with torch.no_grad():
        shifted.context += 0.05
    assert torch.allclose(cocoop.scores(batch(cocoop)), shifted.scores(batch(shifted)), atol=1e-5)


def test_every_picture_has_its_own_context(clip: Backbone) -> None:
    method = make("cocoop", clip).eval()
    whole = batch(method)
    with torch.no_grad():
        together = method.scores(whole)
        alone = [method.scores(method.batch([item])) for item in whole.items]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("name", EVERY[1:])
def test_only_what_is_learned_gets_a_gradient(clip: Backbone, name: str) -> None:
    method = make(name, clip, **({"layers": 2} if name == "ivlp" else {}))
    method.loss(batch(method)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert all(p.grad is None for p in clip.model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_new_names_leave_what_was_learned(clip: Backbone, name: str) -> None:
    method = make(name, clip, **({"layers": 2} if name == "ivlp" else {})).eval()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    first = method.predict(batch(method))
    method.rename(("a cat", "tree", "house", "ship", "car"))
    found = method.predict(batch(method))
    assert found.probabilities.shape == (3, 5) and set(found.answers) <= {*method.task.classes}
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    method.rename(CLASSES)
    assert torch.equal(method.predict(batch(method)).probabilities, first.probabilities)


def test_a_context_for_each_class_has_no_new_classes(clip: Backbone) -> None:
    method = make("coop", clip, scope="class")
    with pytest.raises(CuelightError, match="--scope shared"):
        method.rename(("cat", "tree", "car"))
    one, two = make("coop", clip), method
    with torch.no_grad():
        two.context.copy_(one.context.expand_as(two.context))
    assert torch.allclose(one.class_features(), two.class_features(), atol=1e-6)


def test_ivlp_at_its_start(clip: Backbone) -> None:
    text_only = make("ivlp", clip, vision_length=0, layers=1)
    assert torch.equal(text_only.class_features(), text_only.zero_shot())
    assert torch.equal(
        text_only.image_features(batch(text_only)), text_only.frozen_features(batch(text_only))
    )
    image_only = make("ivlp", clip, length=0, layers=1)
    assert torch.equal(image_only.class_features(), image_only.zero_shot())
    assert not torch.allclose(
        image_only.image_features(batch(image_only)), image_only.frozen_features(batch(image_only)), atol=1e-3
    )


def test_class_features_are_computed_once_while_answering(clip: Backbone) -> None:
    method = make("coop", clip).eval()
    with torch.no_grad():
        first = method._features()
        assert method._features() is first
        method.context.add_(0.1)
        assert not torch.equal(method._features(), first)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coop", {"context_length": 90}, "reads 77"),
        ("coop", {"context_length": 3, "position": "middle"}, "even"),
        ("coop", {"init": "words", "init_text": "a photo"}, "write {}"),
        ("ivlp", {"layers": 9}, "has 3"),
        ("ivlp", {"length": 0, "vision_length": 0}, "nothing would learn"),
    ],
)
def test_mistakes_name_the_field(clip: Backbone, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CuelightError) as caught:
        make(name, clip, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_ensemble_is_the_mean_of_normalised_features(clip: Backbone) -> None:
    kind = get_method("zero-shot-clip")
    templates = ("a photo of a {}.", "a sketch of a {}.")
    task = ImageTask(clip, "classification", CLASSES, config=ImageConfig(templates="|".join(templates)))
    method = kind(clip, task, kind.Config())
    parts = [method.zero_shot([t]) for t in templates]
    assert torch.allclose(
        method.class_features(), torch.nn.functional.normalize(sum(parts), dim=-1), atol=1e-6
    )
    assert not torch.allclose(method.zero_shot(normalise_each=False), method.class_features())
