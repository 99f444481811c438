"""The CLIP family's foundation: joint space, prompted passes, image data and tasks, CoOp from start to saved run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dual_models import small_clip, unaligned_dual

import cuelight
from cuelight import data
from cuelight.backbones import Backbone
from cuelight.data.images import decode
from cuelight.errors import CuelightError
from cuelight.methods.base import get_method
from cuelight.prompts.dual import encode_images, encode_text, plain_texts, template_context
from cuelight.tasks import ImageConfig, make_task


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return small_clip()


@pytest.fixture(scope="module")
def towers() -> Backbone:
    return unaligned_dual()


def picture(colour: str, seed: int) -> Image.Image:
    """A noisy square of one colour on grey."""
    draw = np.random.RandomState(seed)
    pixels = draw.randint(90, 160, (40, 40, 3)).astype(np.uint8)
    pixels[10:30, 10:30] = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}[colour]
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of pictures, train and test."""
    root = tmp_path_factory.mktemp("colours")
    for split, count, first in (("train", 12, 0), ("test", 4, 100)):
        for colour in ("red", "green", "blue"):
            (root / split / f"{colour}_square").mkdir(parents=True)
            for k in range(count):
                picture(colour, first + k).save(root / split / f"{colour}_square" / f"{k}.png")
    return root


def test_a_folder_a_table_and_bytes_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    import pandas as pd

    by_folder = data.read(folder, shots=4)
    assert by_folder.modality == "image" and by_folder.classes == (
        "blue_square",
        "green_square",
        "red_square",
    )
    assert len(by_folder.train) == 12 and len(by_folder.validation) == 12 and len(by_folder.test) == 12
    rows = [
        {"file": str(p.relative_to(folder)), "class": p.parent.name, "split": p.parts[-3]}
        for p in sorted(folder.rglob("*.png"), key=lambda p: (p.parent.name, p))
    ]
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    by_list = data.read(folder / "list.csv", shots=4)
    (folder / "list.csv").unlink()
    held = [{**row, "image": (folder / row["file"]).read_bytes()} for row in rows]
    pd.DataFrame(held).drop(columns="file").to_parquet(tmp_path / "bytes.parquet")
    by_bytes = data.read(tmp_path / "bytes.parquet", shots=4)
    assert by_folder.fingerprint == by_list.fingerprint == by_bytes.fingerprint


def test_coop_from_a_folder_to_a_saved_run(clip: Backbone, folder: Path, tmp_path: Path) -> None:
    run = cuelight.tune(
        "coop", backbone=clip, data=folder, shots=4, epochs=60, learning_rate=0.5, output=tmp_path / "run"
    )
    assert run.trainable == 16 * 32
    first, last = run.training.history[0]["loss"], run.training.history[-1]["loss"]
    assert last < first
    again = cuelight.load(tmp_path / "run", backbone=clip)
    pictures = sorted(folder.glob("test/*/*.png"))
    assert again.predict(pictures) == run.prompt.predict(pictures)
    assert again.predict([Image.open(pictures[0])]) == again.predict([pictures[0].read_bytes()])


def test_coop_from_words_is_zero_shot(clip: Backbone, towers: Backbone, folder: Path) -> None:
    kind = get_method("coop")
    splits = data.read(folder)
    for backbone in (clip, towers):
        task = make_task(backbone, splits, ImageConfig(image_size=None if backbone is clip else 56))
        method = kind(backbone, task, kind.Config(init="words"))
        assert torch.equal(method.class_features(), method.zero_shot())
        assert not torch.allclose(
            kind(backbone, task, kind.Config(context_length=4)).class_features(), method.zero_shot()
        )


def test_trimmed_text_equals_text_of_77_tokens(clip: Backbone) -> None:
    short = plain_texts(clip, ["a photo of a cat.", "a photo of a very long-legged flamingo."])
    padded = torch.nn.functional.pad(short.ids, (0, 77 - short.ids.shape[1]))
    mask = torch.nn.functional.pad(short.mask, (0, 77 - short.ids.shape[1]))
    assert torch.allclose(
        clip.dual.text_features(short.ids, short.mask), clip.dual.text_features(padded, mask), atol=1e-6
    )


def test_deep_prompts_act_from_their_layer_on(clip: Backbone) -> None:
    tokens = template_context(clip, ["cat", "tall tree"], "a photo of a {}.", 2)
    words = clip.embed(tokens.start)
    other = torch.randn_like(words)
    plain: list[torch.Tensor] = []
    deep: list[torch.Tensor] = []
    one = encode_text(clip, tokens, words, states=plain)
    two = encode_text(clip, tokens, words, {2: other}, states=deep)
    assert torch.equal(plain[1], deep[1]) and not torch.allclose(plain[2], deep[2])
    assert not torch.allclose(one, two)
    pixels = torch.randn(2, 3, 32, 32)
    plain, deep = [], []
    shallow = torch.randn(3, 48)
    encode_images(clip, pixels, shallow, states=plain)
    encode_images(clip, pixels, shallow, {1: torch.randn(3, 48)}, states=deep)
    assert [s.shape[1] for s in deep] == [1 + 16 + 3] * 3
    assert torch.equal(plain[0], deep[0]) and not torch.allclose(plain[1], deep[1])


def test_damaged_and_missing_pictures(folder: Path, tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"image": ["gone.png", "away.png"], "label": ["a", "b"]}).to_csv(
        tmp_path / "l.csv", index=False
    )
    with pytest.raises(CuelightError, match="gone") as caught:
        data.read(tmp_path / "l.csv")
    assert "\n" not in str(caught.value)
    buffer = io.BytesIO()
    picture("red", 1).save(buffer, format="PNG")
    (tmp_path / "gone.png").write_bytes(buffer.getvalue()[:900])
    picture("red", 2).save(tmp_path / "away.png")
    with pytest.raises(CuelightError, match="gone"):
        decode({"bytes": None, "path": str(tmp_path / "gone.png")})


def test_texts_and_pictures_are_told_apart(clip: Backbone) -> None:
    rows = [{"text": f"film {k} was {word}", "label": word} for k in range(10) for word in ("good", "bad")]
    with pytest.raises(CuelightError, match="coop reads pictures"):
        cuelight.tune("coop", backbone=clip, data=rows)
