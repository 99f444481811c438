"""Pictures of attention: weights are the model's own, maps are of prompts and patches, one command draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dual_models import aligned_dual, saved_clip, small_clip

from cuelight.artifact import Prompt
from cuelight.attention import attention_maps
from cuelight.backbones import Backbone
from cuelight.cli.main import run as command
from cuelight.errors import CuelightError
from cuelight.methods.base import get_method
from cuelight.prompts.attention import attention_weights
from cuelight.tasks import ImageConfig, ImageTask


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return small_clip()


def made(name: str, backbone: Backbone, size: int | None = None, **options: int) -> Prompt:
    kind = get_method(name)
    task = ImageTask(backbone, "classification", ("cat", "dog"), config=ImageConfig(image_size=size))
    return Prompt(kind(backbone, task, kind.Config(**options)))


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (40, 60, 3)).astype(np.uint8))


def test_weights_are_those_the_model_uses(clip: Backbone) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    plain = clip.dual.image_features(pixels)
    with attention_weights(clip.dual.vision) as weights:
        seen = clip.dual.image_features(pixels)
    assert torch.allclose(plain, seen, atol=1e-5) and len(weights) == 3
    assert weights[0].shape == (2, 4, 17, 17)
    assert torch.allclose(weights[0].sum(-1), torch.ones(2, 4, 17), atol=1e-5)
    clip.model.set_attn_implementation("eager")
    layer = clip.dual.vision.layers[0].self_attn
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, out: kept.append(out[1]))
    clip.dual.image_features(pixels)
    handle.remove()
    clip.model.set_attn_implementation("sdpa")
    assert torch.allclose(kept[0], weights[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("vpt", {"tokens": 3}), ("ivlp", {"vision_length": 2}), ("maple", {})]
)
def test_maps_of_prompts_and_patches(
    clip: Backbone, name: str, options: dict[str, int], tmp_path: Path
) -> None:
    prompt = made(name, clip, **options)
    maps = attention_maps(prompt, picture())
    tokens = {"vpt": 3}.get(name, 2)
    assert maps.prompts.shape == (3, tokens, 4, 4) and maps.class_token.shape == (3, 4, 4)
    assert (maps.prompts >= 0).all() and (maps.prompts.sum((-1, -2)) < 1).all()
    assert np.allclose(maps.frozen, attention_maps(prompt, picture()).frozen)
    assert not np.allclose(maps.frozen, maps.class_token)
    assert maps.plot(tmp_path / "map.png").stat().st_size > 10_000


def test_attention_follows_the_picture(clip: Backbone) -> None:
    """In a tower whose first layer looks for bright patches, the map is brightest where the picture is."""
    prompt = made("vpt", clip, tokens=1)
    vision = clip.model.vision_model
    embedding, layer = vision.embeddings, clip.dual.vision.layers[0]
    state = {k: v.clone() for k, v in clip.model.state_dict().items()}
    with torch.no_grad():
        embedding.patch_embedding.weight.fill_(0)
        embedding.patch_embedding.weight[0].fill_(1.0)
        embedding.position_embedding.weight.fill_(0)
        vision.pre_layrnorm.weight.fill_(1)
        layer.layer_norm1.weight.fill_(1)
        layer.self_attn.k_proj.weight.copy_(torch.eye(48) * 3)
        layer.self_attn.q_proj.weight.copy_(torch.eye(48) * 3)
        layer.self_attn.q_proj.bias.fill_(0)
        prompt.method.tokens[0].fill_(0)
        prompt.method.tokens[0, 0, 0] = 5.0
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[8:16, 16:24] = 255  # the patch in row 1, column 2
    maps = attention_maps(prompt, Image.fromarray(pixels))
    clip.model.load_state_dict(state)
    assert np.unravel_index(maps.prompts[0, 0].argmax(), (4, 4)) == (1, 2)


def test_dinov2_too(tmp_path: Path) -> None:
    maps = attention_maps(made("ivlp", aligned_dual(), size=56), picture())
    assert maps.prompts.shape[2:] == (4, 4) and maps.picture.shape == (56, 56, 3)


def test_nothing_to_see(clip: Backbone) -> None:
    with pytest.raises(CuelightError, match="leaves the image tower as it is"):
        attention_maps(made("coop", clip), picture())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for k in range(6):
            picture(k + 10 * (name == "dog")).save(folder / name / f"{k}.png")
    told = ["--backbone", saved_clip(tmp_path / "clip"), "--data", str(folder), "--quiet"]
    assert command(["tune", "ivlp", *told, "--epochs", "1", "--output", str(tmp_path / "run")]) == 0
    target = tmp_path / "map.png"
    assert (
        command(["attention", str(tmp_path / "run"), str(folder / "cat" / "0.png"), "--output", str(target)])
        == 0
    )
    assert Image.open(target).width > 300
    capsys.readouterr()
    assert command(["attention", str(tmp_path / "run"), str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err
