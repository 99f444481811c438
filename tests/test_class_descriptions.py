"""Descriptions of classes, captioned pictures, RandAugment, tuned norms: what the vision-language papers read and use."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.dual_models import small_clip

from cuelight.data.augment import rand_augment
from cuelight.data.descriptions import class_descriptions
from cuelight.data.pairs import read_pairs
from cuelight.data.wordnet import WordNet
from cuelight.errors import DataError
from cuelight.prompts.norms import TunedNorms
from cuelight.tasks.captioned import draw_task, phrase, pseudo_classes
from cuelight.tasks.image import TEMPLATE_SETS, named_templates

CLASSES = ("forest road", "T-shirt/top", "owl")


def test_descriptions_come_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "Forest_Road: a track: unpaved\n\nT-shirt/top: worn above\nforest road: narrow\n"
    )
    (tmp_path / "b.json").write_text(
        json.dumps({"forest-road": ["a track: unpaved", "narrow"], "t shirt/top": "worn above"})
    )
    rows = [("forest road", "a track: unpaved"), ("T-shirt/top", "worn above"), ("forest road", " narrow ")]
    pd.DataFrame(rows, columns=["class_name", "description"]).to_parquet(tmp_path / "c.parquet")
    pd.DataFrame(rows, columns=["Class", "Gloss"]).to_csv(tmp_path / "d.csv", index=False)
    for name in ("a.txt", "b.json", "c.parquet", "d.csv"):
        found = class_descriptions(str(tmp_path / name), CLASSES)
        assert found == [["a track: unpaved", "narrow"], ["worn above"], []], name


def test_descriptions_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("cat: an animal\n")
    (tmp_path / "bad.txt").write_text("a line without\n")
    (tmp_path / "bad.json").write_text('{"owl": 3}')
    (tmp_path / "torn.json").write_text('{"owl": ')
    pd.DataFrame({"a": ["owl"], "b": ["x"]}).to_csv(tmp_path / "bad.csv", index=False)
    for name, said in (
        ("none.txt", "knows none of the classes"),
        ("bad.txt", "line 1: has no colon"),
        ("bad.json", "neither a text nor a list"),
        ("torn.json", "is no JSON"),
        ("bad.csv", "name them 'class' and 'description'"),
        ("gone.txt", "gone.txt"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            class_descriptions(str(tmp_path / name), CLASSES)
        assert "\n" not in str(caught.value)


def test_definitions_of_wordnet(tmp_path: Path) -> None:
    lines = [
        '{0} 05 n 01 owl 0 000 | nocturnal bird of prey; "an owl hooted"  \n',
        "{1} 06 n 01 road 0 000 | an open way for travel; also a means  \n",
        "{2} 07 n 02 sports_car 0 roadster 0 000 | a small low car  \n",
    ]
    places, at = [], 0
    for line in lines:
        places.append(f"{at:08d}")
        at += len(line.format("0" * 8, "0" * 8, "0" * 8))
    (tmp_path / "data.noun").write_text("".join(line.format(*places) for line in lines))
    index = [f"{w} n 1 0 1 0 {p}  \n" for w, p in zip(("owl", "road", "sports_car"), places, strict=True)]
    (tmp_path / "index.noun").write_text("".join(index))
    wordnet = WordNet(tmp_path)
    assert wordnet.definitions("Owl") == ["nocturnal bird of prey"]
    assert wordnet.definitions("forest_road") == ["an open way for travel; also a means"]
    assert wordnet.definitions("sports car") == ["a small low car"]
    assert wordnet.definitions("xyzzy") == []
    assert class_descriptions("wordnet", CLASSES, wordnet=str(tmp_path))[2] == ["nocturnal bird of prey"]


def test_without_wordnet_a_file_is_proposed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="or name a file with a text for each class"):
        class_descriptions("wordnet", CLASSES, wordnet=str(tmp_path / "gone"))


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (8, 8, 3)).astype(np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def test_pairs(tmp_path: Path) -> None:
    rows = [
        {"image": encoded(k), "captions": [f"picture  {k}", "again"], "split": "train" if k < 5 else "test"}
        for k in range(7)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    found = read_pairs(tmp_path / "p.parquet")
    assert [pair.captions for pair in found] == [(f"picture {k}", "again") for k in range(5)]
    assert len({pair.key for pair in found}) == 5
    assert len(read_pairs(tmp_path / "p.parquet", most=3, seed=1)) == 3
    (tmp_path / "a.png").write_bytes(encoded(1))
    pd.DataFrame({"file": ["a.png"], "caption": ["one"]}).to_csv(tmp_path / "l.csv", index=False)
    [pair] = read_pairs(tmp_path / "l.csv")
    assert pair.captions == ("one",) and Path(pair.picture["path"]) == tmp_path / "a.png"
    pd.DataFrame({"file": ["a.png"], "words": ["one"]}).to_csv(tmp_path / "w.csv", index=False)
    with pytest.raises(DataError, match="no column of captions"):
        read_pairs(tmp_path / "w.csv")


def test_pseudo_classes_are_the_clusters() -> None:
    draw = torch.Generator().manual_seed(0)
    names = ("brown dog", "red car", "old house", "blue sea")
    texts = [f"a {names[k % 4]} on number {k}" for k in range(80)]
    middles = torch.nn.functional.normalize(torch.randn(4, 16, generator=draw), dim=-1)
    captions = torch.nn.functional.normalize(
        middles.repeat(20, 1) + 0.02 * torch.randn(80, 16, generator=draw), dim=-1
    )
    style = torch.randn(2, 16, generator=draw).repeat_interleave(40, 0)
    images = torch.nn.functional.normalize(middles.repeat(20, 1) + 0.5 * style, dim=-1)
    found = pseudo_classes(images, captions, texts, shots=2, size=20, topics=1, seed=0)
    assert {one.name for one in found} == set(names)
    for one in found:
        kind = names.index(one.name)
        assert {p % 4 for side in one.domains for p in side} == {kind}
        assert {frozenset(p < 40 for p in side) for side in one.domains} == {
            frozenset({True}),
            frozenset({False}),
        }
    left_out = pseudo_classes(images, captions, texts, shots=2, size=20, topics=1, avoid=["Red Car"])
    assert "red car" not in {one.name for one in left_out}
    chosen, support, query = draw_task(found, 3, 2, np.random.RandomState(0))
    assert len(chosen) == 3 and [len(p) for p in (*support, *query)] == [2] * 6
    for learn, check in zip(support, query, strict=True):
        assert (learn[0] < 40) is (learn[1] < 40) is not (check[0] < 40)  # the other domain
    _, support, query = draw_task(found, 3, 2, np.random.RandomState(0), same=True)
    for learn, check in zip(support, query, strict=True):
        assert len({p < 40 for p in (*learn, *check)}) == 1 and not set(learn) & set(check)


def test_phrases() -> None:
    texts = ["a brown dog runs", "the brown dog sleeps", "one brown cat"]
    assert phrase(texts, set()) == "brown"
    assert phrase(texts[:2], set()) == "brown dog"
    assert phrase(["up and down", "here"], set()) is None


def test_rand_augment_draws_from_torch() -> None:
    picture = Image.open(io.BytesIO(encoded(3))).resize((32, 32))
    torch.manual_seed(1)
    some = [np.asarray(rand_augment(picture)) for _ in range(40)]
    torch.manual_seed(1)
    again = [np.asarray(rand_augment(picture)) for _ in range(40)]
    assert all(np.array_equal(a, b) for a, b in zip(some, again, strict=True))
    assert all(a.shape == (32, 32, 3) for a in some)
    assert len({a.tobytes() for a in some}) > 25
    assert np.array_equal(np.asarray(rand_augment(picture, changes=0)), np.asarray(picture))


def test_named_templates() -> None:
    assert named_templates("varied") == TEMPLATE_SETS["varied"] and len(TEMPLATE_SETS["varied"]) == 44
    assert named_templates(["a {}", "pets"]) == ("a {}", "a photo of a {}, a type of pet.")
    with pytest.raises(ValueError, match="has no place for the class name"):
        named_templates(["varid"])


def test_tuned_norms_act_only_while_they_are_used() -> None:
    clip = small_clip()
    assert clip.dual is not None
    norms = TunedNorms(clip.dual.vision)
    pixels = torch.randn(2, 3, 32, 32)
    plain = clip.dual.image_features(pixels)
    with norms.used():
        torch.testing.assert_close(clip.dual.image_features(pixels), plain)
    with torch.no_grad():
        norms.values[0] += 0.5
    with norms.used():
        assert not torch.allclose(clip.dual.image_features(pixels), plain)
    torch.testing.assert_close(clip.dual.image_features(pixels), plain, rtol=0, atol=0)
