"""Protocols: what is learned on, what is answered on, H, tables, and going on where a run was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dual_models import saved_clip, small_clip

from cuelight import data, protocols
from cuelight.backbones import Backbone
from cuelight.cli.main import run as command
from cuelight.errors import CuelightError
from cuelight.evaluation.protocols import base_classes, harmonic_mean

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 40, 220),
    "grey": (128, 128, 128),
    "white": (250,) * 3,
}
QUICK: dict[str, Any] = {"epochs": 3, "seeds": 2}


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return small_clip()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five colours in two domains, as a list beside its pictures."""
    root = tmp_path_factory.mktemp("domains")
    lines = ["image,label,domain"]
    draw = np.random.RandomState(0)
    for domain, noise in (("calm", 20), ("wild", 90)):
        for name, colour in COLOURS.items():
            for k in range(10):
                spread = draw.randint(-noise, noise + 1, (32, 32, 3))
                pixels = np.clip(np.array(colour) + spread, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / f"{domain}_{name}_{k}.png")
                lines.append(f"{domain}_{name}_{k}.png,{name},{domain}")
    (root / "list.csv").write_text("\n".join(lines))
    return root / "list.csv"


@pytest.mark.parametrize(
    ("base", "new", "h"),
    [(69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (80.47, 71.69, 75.83), (82.28, 75.14, 78.55),
     (84.26, 76.10, 79.97), (84.00, 77.23, 80.48)],
)  # fmt: skip
def test_h_as_published(base: float, new: float, h: float) -> None:
    """CLIP, CoOp, CoCoOp, MaPLe, PromptSRC, CoPrompt over eleven data sets: H is of the two averages."""
    assert harmonic_mean(base, new) == pytest.approx(h, abs=0.01)  # base and new are rounded too
    assert harmonic_mean(0, 0) == 0


def test_base_and_new_classes(pictures: Path) -> None:
    splits = data.read(pictures, shots=2, seed=1)
    half = base_classes(5)
    assert half == 3
    base, new = splits.only(0, half), splits.only(half, 5)
    assert base.classes + new.classes == splits.classes and not {*base.classes} & {*new.classes}
    assert {*base.train["label"]} == {0, 1, 2} and {*new.test["label"]} == {0, 1}
    assert len(base.train) + len(new.train) == len(splits.train)
    drawn = {row["key"] for row in splits.train if row["label"] < half}
    assert {*base.train["key"]} == drawn  # sampled before the classes are divided
    assert len({splits.fingerprint, base.fingerprint, new.fingerprint}) == 3


def test_base_to_new_goes_on_and_recomputes(clip: Backbone, pictures: Path, tmp_path: Path) -> None:
    call = {"backbone": clip, "data": pictures, "shots": 2, "output": tmp_path / "out", **QUICK}
    first = protocols.base_to_new("zero-shot-clip,coop", **call)
    assert len(first.runs) == 4
    for run in first.runs:
        figures = run["metrics"]
        assert figures["h"] == harmonic_mean(figures["base"], figures["new"])
    table = first.frame.set_index("method")
    assert table.loc["coop", "h"] == harmonic_mean(table.loc["coop", "base"], table.loc["coop", "new"])
    card = tmp_path / "out" / "list" / "coop" / "seed1" / "cuelight.json"
    written = card.stat().st_mtime_ns
    again = protocols.base_to_new("zero-shot-clip,coop", **call)
    assert again.runs == first.runs and card.stat().st_mtime_ns == written
    card.with_name("cuelight.json").unlink()
    (tmp_path / "out" / "list" / "coop" / "seed1.json").unlink()
    assert [r["metrics"] for r in protocols.base_to_new("zero-shot-clip,coop", **call).runs] == [
        r["metrics"] for r in first.runs
    ]
    first.to_json(tmp_path / "table.json")
    assert protocols.ProtocolResult.read(tmp_path / "table.json") == first
    assert first.plot(tmp_path / "plot.png").stat().st_size > 5000 and "| coop" in first.to_markdown()


def test_new_classes_are_answered_with_what_was_learned_on_base(clip: Backbone, pictures: Path) -> None:
    import cuelight

    result = protocols.base_to_new("coop", backbone=clip, data=pictures, shots=2, epochs=3, seeds=[1])
    splits = data.read(pictures, shots=2, seed=1)
    run = cuelight.tune("coop", backbone=clip, data=splits.only(0, 3), epochs=3, seed=1)
    assert result.runs[0]["metrics"]["base"] == run.metrics["accuracy"]
    run.prompt.method.rename(splits.classes[3:])
    assert result.runs[0]["metrics"]["new"] == run.prompt.evaluate(splits.only(3, 5).test)["accuracy"]


def test_few_shot_curve(clip: Backbone, pictures: Path, tmp_path: Path) -> None:
    result = protocols.few_shot("zero-shot-clip,coop", shots=(1, 4), backbone=clip, data=pictures, **QUICK)
    assert [c for c in result.frame.columns if c.endswith("shots")] == ["1 shots", "4 shots"]
    zero = [r["metrics"]["accuracy"] for r in result.runs if r["method"] == "zero-shot-clip"]
    assert len(set(zero)) == 1
    assert result.plot(tmp_path / "curve.png").stat().st_size > 5000


def test_domains_by_a_column(clip: Backbone, pictures: Path) -> None:
    result = protocols.domains("zero-shot-clip", backbone=clip, data=pictures, seeds=1)
    assert [run["setting"] for run in result.runs] == ["calm", "wild"]
    calm, wild = (run["metrics"] for run in result.runs)
    assert calm["source"] == wild["calm"] and wild["source"] == calm["wild"]
    assert [*result.frame["setting"]] == ["calm", "wild", "mean"]


def test_cross_data_swaps_the_names(clip: Backbone, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    for name in ("square", "circle", "line"):
        (folder / name).mkdir(parents=True)
        for k in range(6):
            pixels = np.random.RandomState(k).randint(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels + len(name)).save(folder / name / f"{k}.png")
    result = protocols.cross_data(
        "coop", targets=[folder], backbone=clip, data=pictures, epochs=2, seeds=1, shots=2
    )
    figures = result.runs[0]["metrics"]
    assert [*figures] == ["source", "shapes", "mean"] and figures["mean"] == figures["shapes"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda **k: protocols.base_to_new("image-linear-probe", **k), "no answer for new classes"),
        (lambda **k: protocols.base_to_new("coop", scope="class", **k), "--scope shared"),
        (lambda **k: protocols.few_shot("coop", shots=(0,), **k), "1 or more"),
        (lambda **k: protocols.domains("coop", source="tame", **k), "'tame' is no value"),
        (lambda **k: protocols.domains("coop", column="place", **k), "place"),
        (lambda **k: protocols.base_to_new("coop", processes=2, **k), "by name or path"),
        (lambda **k: protocols.base_to_new("coop", sedes=2, **k), "sedes"),
    ],
)
def test_mistakes_are_refused_before_anything_is_learned(
    clip: Backbone, pictures: Path, call: Any, message: str
) -> None:
    with pytest.raises(CuelightError) as caught:
        call(backbone=clip, data=pictures)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_in_processes(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["protocol", "base-to-new", "zero-shot-clip,coop", "--backbone", saved_clip(tmp_path / "clip")]
    words += ["--data", str(pictures), "--shots", "2", "--epochs", "1", "--seeds", "2", "--quiet"]
    assert command([*words, "--output", str(tmp_path / "one")]) == 0
    assert "coop" in capsys.readouterr().out
    threads = torch.get_num_threads()
    assert command([*words, "--output", str(tmp_path / "two"), "--processes", "2"]) == 0
    assert torch.get_num_threads() == threads
    one, two = (json.loads((tmp_path / k / "table.json").read_text()) for k in ("one", "two"))
    assert [r["metrics"] for r in one["runs"]] == [r["metrics"] for r in two["runs"]]
    assert command(["plot", str(tmp_path / "one"), "--output", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").exists()
