"""The CLIP family's foundation: joint space, prompted passes, image data and tasks, CoOp from start to saved run."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dual_models import aligned_dual, saved_clip, small_clip, small_siglip

import cuelight
from cuelight import data
from cuelight.backbones import Backbone
from cuelight.cli.main import run as command
from cuelight.data.images import decode
from cuelight.errors import CuelightError
from cuelight.methods.base import get_method
from cuelight.prompts.dual import encode_images, encode_text, plain_texts, template_context
from cuelight.tasks import ImageConfig, make_task
from cuelight.tasks.image import class_words
from cuelight.training.loop import _clip_schedule


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return small_clip()


@pytest.fixture(scope="module")
def towers() -> Backbone:
    return aligned_dual()


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


def test_every_way_to_bring_pictures(folder: Path) -> None:
    import datasets

    files = sorted(folder.glob("train/*/*.png"))
    rows = {"image": [str(p) for p in files], "label": [p.parent.name for p in files]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=sorted(set(rows["label"])))}
    )
    lazy = datasets.Dataset.from_dict(rows, features=features)
    held = [{"image": Image.open(p), "label": p.parent.name} for p in files]
    raw = [{"image": p.read_bytes(), "label": p.parent.name} for p in files]
    first = data.read(lazy, shots=2)
    assert first.modality == "image" and first.classes[0] == "blue_square"
    assert data.read(raw, shots=2).fingerprint == first.fingerprint
    assert len(data.read(held, shots=2).train) == 6
    renamed = data.read(lazy, label_names={"blue_square": "a blue square"})
    assert renamed.classes[0] == "a blue square"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("forest_road", "forest road"),
        ("AnnualCrop", "Annual Crop"),
        ("McLaren", "McLaren"),
        ("iPod", "iPod"),
        ("T-shirt/top", "T-shirt/top"),
        ("SeaLake_2", "Sea Lake 2"),
        ("hot dog", "hot dog"),
    ],
)
def test_class_names_as_words(raw: str, words: str) -> None:
    assert class_words(raw) == words


def test_same_pictures_never_stand_in_train_and_test(folder: Path) -> None:
    rows = [
        {"image": p.read_bytes(), "label": p.parent.name, "split": "train"}
        for p in folder.glob("train/*/*.png")
    ]
    again = [{**row, "split": "test"} for row in rows[:5]]
    read = data.read(rows + again)
    assert read.report.dropped == {"image also in test": 5}
    assert not {*read.train["key"]} & {*read.test["key"]}


def test_augmented_pictures_come_from_the_seed(clip: Backbone, folder: Path) -> None:
    task = make_task(clip, data.read(folder), ImageConfig(augment="crop"))
    items = task.encode(data.read(folder).train)[:4]
    assert torch.equal(task.collate(items).pixels, task.collate(items).pixels)
    torch.manual_seed(3)
    one, two = task.collate(items, augment=True).pixels, task.collate(items, augment=True).pixels
    torch.manual_seed(3)
    assert torch.equal(task.collate(items, augment=True).pixels, one) and not torch.equal(one, two)
    assert one.shape == (4, 3, 32, 32)


def test_pictures_are_prepared_as_the_processor_does(clip: Backbone, tmp_path: Path) -> None:
    from cuelight.backbones import load_backbone

    loaded = load_backbone(saved_clip(tmp_path / "clip"), device="cpu")
    task = make_task(loaded, data.read(_wide_pictures(tmp_path)), ImageConfig())
    items = task.encode(data.read(_wide_pictures(tmp_path)).train)
    wanted = loaded.processor(images=[decode(i.picture) for i in items], return_tensors="pt").pixel_values
    assert torch.allclose(task.collate(items).pixels, wanted, atol=0.03)  # rounding before the normalisation


def _wide_pictures(root: Path) -> Path:
    folder = root / "wide"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(4):
            pixels = np.random.RandomState(k + 10 * (name == "b")).randint(0, 255, (60, 96, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k}.png")
    return folder


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = saved_clip(tmp_path / "clip")
    out = str(tmp_path / "run")
    assert command(["data", str(folder), "--shots", "2"]) == 0
    assert "40 x 40" in capsys.readouterr().out
    told = ["--backbone", backbone, "--data", str(folder), "--shots", "2", "--output", out, "--quiet"]
    assert command(["tune", "coop", *told, "--epochs", "2", "--templates", "a photo of a {}.|a {}."]) == 0
    capsys.readouterr()
    picture = next(folder.glob("test/*/*.png"))
    assert command(["predict", out, str(picture), "--quiet"]) == 0
    answer = capsys.readouterr().out.strip()
    assert answer in ("red_square", "green_square", "blue_square")
    answers = str(tmp_path / "answers.csv")
    assert command(["predict", out, "--data", str(folder / "test"), "--output", answers, "--quiet"]) == 0
    assert len(Path(answers).read_text().splitlines()) == 13
    capsys.readouterr()
    assert command(["evaluate", out, "--data", str(folder), "--quiet"]) == 0
    assert "accuracy" in capsys.readouterr().out
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    assert command(["predict", out, str(tmp_path / "broken.jpg"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "broken.jpg" in error and error.count("\n") == 1


def test_real_pictures_on_the_built_in_backbone(towers: Backbone) -> None:
    path = Path(os.environ.get("CUELIGHT_DATA", "")) / "vision" / "pacs.parquet"
    if not path.exists():
        pytest.skip("no shared data: set CUELIGHT_DATA to its folder")
    splits = data.read(path, shots=8, max_test=70, max_validation=7)
    blind = cuelight.tune("zero-shot-clip", backbone=towers, data=splits, templates="styles", image_size=56)
    run = cuelight.tune("coop", backbone=towers, data=splits, image_size=56, context_length=4, epochs=15)
    assert run.training.history[-1]["loss"] < run.training.history[0]["loss"]
    assert len(towers.memory) >= 56 + 70
    assert min(blind.metrics["accuracy"], run.metrics["accuracy"]) > 1 / 7


def test_siglip(folder: Path) -> None:
    backbone = small_siglip()
    assert backbone.dual.width == 32 and backbone.dual.padded_to == 64
    task = make_task(backbone, data.read(folder), ImageConfig())
    for name in ("coop", "ivlp"):
        kind = get_method(name)
        options = {"init": "words"} if name == "coop" else {"layers": 2}
        method = kind(backbone, task, kind.Config(**options))
        assert method.tokens.ids.shape[1] == 64
        method.loss(method.batch(task.encode(data.read(folder).train)[:4])).backward()
        assert all(p.grad.abs().sum() > 0 for p in method.parameters())
        if name == "coop":
            assert torch.equal(method.class_features(), method.zero_shot())


def test_features_are_float32_on_any_weights(folder: Path) -> None:
    half = small_clip()
    half.model.to(torch.bfloat16)
    task = make_task(half, data.read(folder), ImageConfig())
    items = task.encode(data.read(folder).train)[:4]
    for name in ("coop", "cocoop", "vpt", "ivlp"):
        kind = get_method(name)
        method = kind(half, task, kind.Config(**({"layers": 2} if name == "ivlp" else {})))
        loss = method.loss(method.batch(items))
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()


def test_the_familys_schedule() -> None:
    """A first epoch at 1e-5, then a cosine that counts from there, by epochs."""
    for epochs, last in ((10, 0.0955), (2, 1.0)):
        factor = _clip_schedule(3, epochs, 0.002)
        assert [factor(k) * 0.002 for k in range(3)] == pytest.approx([1e-5] * 3)
        assert factor(3) == factor(5) == 1.0
        assert factor(3 * epochs - 1) == pytest.approx(last, abs=0.005)


def test_interrupted_and_run_again_ends_with_the_same_bits(
    clip: Backbone, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = get_method("coop")
    call = {"backbone": clip, "data": folder, "shots": 4, "epochs": 8, "batch_size": 5, "checkpoint_every": 1}
    whole = cuelight.tune("coop", **call).prompt.method.context
    loss, count = kind.loss, [0]

    def stops(self: object, batch: object) -> torch.Tensor:
        count[0] += 1
        if count[0] == 10:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(kind, "loss", stops)
    with pytest.raises(KeyboardInterrupt):
        cuelight.tune("coop", output=tmp_path / "run", **call)
    monkeypatch.setattr(kind, "loss", loss)
    again = cuelight.tune("coop", output=tmp_path / "run", **call).prompt.method.context
    assert torch.equal(whole, again)


def test_augmentation_sees_every_picture_anew(clip: Backbone, folder: Path) -> None:
    seen: list[float] = []
    kind = get_method("coop")
    method = kind(clip, make_task(clip, data.read(folder), ImageConfig(augment="crop")), kind.Config())
    items = method.task.encode(data.read(folder).train)[:4]
    assert not method.caches
    for _ in range(2):
        batch = method.training_batch(items)
        assert batch.pixels is not None
        seen.append(float(batch.pixels.sum()))
    assert seen[0] != seen[1]
    run = cuelight.tune("coop", backbone=clip, data=folder, shots=2, epochs=2, augment="crop")
    assert run.training.steps > 0


def test_comparison_of_methods_that_read_pictures(clip: Backbone, folder: Path, tmp_path: Path) -> None:
    found = cuelight.compare(
        "zero-shot-clip,coop,image-linear-probe", backbone=clip, data=folder, shots=4, epochs=2, seeds=1,
        output=tmp_path / "out",
    )  # fmt: skip
    assert [row["method"] for row in found.rows] == ["zero-shot-clip", "coop", "image-linear-probe"]
    again = cuelight.compare(
        "zero-shot-clip,coop,image-linear-probe", backbone=clip, data=folder, shots=4, epochs=2, seeds=1,
        output=tmp_path / "out",
    )  # fmt: skip
    assert all(run["resumed"] for run in again.runs)
