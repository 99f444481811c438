"""Splits and shots: disjoint, reproducible, balanced, and honest about every row that was left out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuelight.data as data
from cuelight.data.sample import draw, shot_rows, strata
from cuelight.errors import ConfigError, CuelightError, DataError


def frame(*counts: int, word: str = "text") -> pd.DataFrame:
    """A table with as many different texts of class c0, c1, ... as said."""
    rows = [
        (f"{word} of kind {c} number {i}", f"c{c}") for c, count in enumerate(counts) for i in range(count)
    ]
    return pd.DataFrame(rows, columns=["text", "label"])


def fails(source: Any, *words: str, error: type[CuelightError] = DataError, **options: Any) -> None:
    with pytest.raises(error) as caught:
        data.read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def sizes(got: data.Splits) -> list[int]:
    return [len(got.train), len(got.validation), len(got.test)]


def count(part: datasets.Dataset) -> dict[int, int]:
    return dict(Counter(part["label"][:]))


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=120)
SEEDS = st.integers(0, 2**32 - 1)


@given(labels=LABELS, shots=st.integers(1, 20), seed=SEEDS)
@settings(deadline=None, max_examples=60)
def test_shots_are_k_per_class(labels: list[int], shots: int, seed: int) -> None:
    rows = shot_rows(labels, shots, seed, 5)
    assert rows == sorted(set(rows)) == shot_rows(labels, shots, seed, 5)
    have = Counter(labels[row] for row in rows)
    for value, available in Counter(labels).items():
        assert have[value] == min(shots, available)
    assert set(rows) <= set(shot_rows(labels, shots + 3, seed, 5))


@given(
    matrix=st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=60),
    shots=st.integers(1, 8),
    seed=SEEDS,
)
@settings(deadline=None, max_examples=60)
def test_multilabel_shots_reach_k_positive_rows(matrix: list[list[int]], shots: int, seed: int) -> None:
    rows = shot_rows(matrix, shots, seed, 3)
    have = np.array(matrix)[rows].reshape(-1, 3).sum(axis=0)
    available = np.array(matrix).sum(axis=0)
    assert (have >= np.minimum(available, shots)).all()
    assert len(rows) <= 3 * shots
    assert rows == sorted(set(rows))


@given(labels=LABELS, share=st.floats(0.05, 0.9), seed=SEEDS, leave=st.integers(0, 1))
@settings(deadline=None, max_examples=100)
def test_a_stratified_draw_takes_its_part_of_every_class(
    labels: list[int], share: float, seed: int, leave: int
) -> None:
    groups = strata(labels)
    rows = draw(groups, share, seed, leave)
    assert rows == sorted(set(rows)) == draw(groups, share, seed, leave)
    taken = Counter(labels[row] for row in rows)
    for value, available in Counter(labels).items():
        assert taken[value] <= available - leave
        assert taken[value] >= (1 if available > leave else 0)
        assert abs(taken[value] - share * available) <= 5


@given(labels=LABELS, size=st.integers(1, 200), seed=SEEDS)
@settings(deadline=None, max_examples=100)
def test_a_draw_of_a_number_of_rows_is_met(labels: list[int], size: int, seed: int) -> None:
    assert len(draw(strata(labels), size, seed, leave=0)) == min(size, len(labels))


@given(
    counts=st.lists(st.integers(3, 30), min_size=2, max_size=4),
    repeats=st.integers(0, 20),
    shots=st.none() | st.integers(1, 8),
    seed=st.integers(0, 50),
)
@settings(deadline=None, max_examples=25)
def test_splits_share_no_row_and_no_text(
    counts: list[int], repeats: int, shots: int | None, seed: int
) -> None:
    table = frame(*counts)
    again = table.iloc[:repeats].assign(text=table.text.str.upper().str.replace(" ", "  ").iloc[:repeats])
    table = pd.concat([table, again], ignore_index=True)
    got = data.read(table, shots=shots, seed=seed)
    parts = (got.train, got.validation, got.test)
    rows = [set(part["row"]) for part in parts]
    keys = [{" ".join(text.lower().split()) for text in part["text"]} for part in parts]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not rows[i] & rows[j]
        assert not keys[i] & keys[j]
    for part in parts:
        for row in part:
            assert row["text"] == table.text[row["row"]]
            assert got.classes[row["label"]] == table.label[row["row"]]
    same = data.read(table, shots=shots, seed=seed)
    assert same.fingerprint == got.fingerprint
    assert data.read(table, shots=shots, seed=seed + 1).test["row"][:] == got.test["row"][:]
    if shots:
        assert all(number <= shots for number in count(got.train).values())
        assert len(keys[0]) == len(got.train)


def test_made_splits() -> None:
    got = data.read(frame(100, 50))
    assert sizes(got) == [108, 12, 30]
    assert count(got.test) == {0: 20, 1: 10}
    assert got.report.splits["test"].origin == "made: 20% of train, split seed 0"
    assert got.report.splits["validation"].per_class == {"c0": 8, "c1": 4}
    assert data.read(frame(100, 50), split_seed=1).test["row"][:] != got.test["row"][:]
    assert sizes(data.read(frame(100, 50), test_size=60, validation_size=9)) == [81, 9, 60]
    assert sizes(data.read(frame(100, 50), test_size=0.5, validation_size=0.2)) == [60, 15, 75]


def test_shots_and_their_validation() -> None:
    got = data.read(frame(100, 50), shots=16, seed=3)
    assert count(got.train) == count(got.validation) == {0: 16, 1: 16}
    assert count(got.test) == {0: 20, 1: 10}
    other = data.read(frame(100, 50), shots=16, seed=4)
    assert other.train["row"][:] != got.train["row"][:]
    assert other.test["row"][:] == got.test["row"][:]
    few = data.read(frame(100, 10), shots=16)
    assert count(few.train) == {0: 16, 1: 8}
    assert count(few.validation) == {0: 16}
    assert any("fewer than 16" in note and "c1 8" in note for note in few.report.notes)
    none_left = data.read(frame(5, 5), shots=16)
    assert len(none_left.validation) == 0
    assert any("no training rows were left" in note for note in none_left.report.notes)
    generation = data.read(frame(30, 30), target="label", shots=8)
    assert sizes(generation)[:2] == [8, 8]
    assert len(data.read(frame(100, 50), shots=4, validation_size=20).validation) == 20


def test_limits() -> None:
    got = data.read(frame(100, 50), max_train=30, max_validation=6, max_test=9)
    assert sizes(got) == [30, 6, 9]
    assert count(got.test) == {0: 6, 1: 3}
    assert sum("was limited" in note for note in got.report.notes) == 3


def test_sample_shots() -> None:
    train = data.read(frame(30, 20, 3)).train
    got = data.sample_shots(train, 4, 7, 3)
    assert count(got) == {0: 4, 1: 4, 2: 1}
    assert data.sample_shots(train, 4, 7, 3)["row"][:] == got["row"][:]
    assert len(data.sample_shots(train, 5, 0, 0)) == 5
    with pytest.raises(ConfigError, match="shots=0"):
        data.sample_shots(train, 0, 0, 3)


def parts() -> dict[str, pd.DataFrame]:
    return {"train": frame(30, 30), "dev": frame(5, 5, word="dev"), "test": frame(6, 6, word="test")}


def test_given_splits_are_kept() -> None:
    got = data.read({name: datasets.Dataset.from_pandas(part) for name, part in parts().items()})
    assert sizes(got) == [60, 10, 12]
    assert [split.origin for split in got.report.splits.values()] == [
        "given as 'train'", "given as 'dev'", "given as 'test'",
    ]  # fmt: skip
    table = pd.concat([part.assign(split=name) for name, part in parts().items()], ignore_index=True)
    column = data.read(table)
    assert column.fingerprint == got.fingerprint
    assert column.test["row"][:] == list(range(70, 82))
    assert got.test["row"][:] == list(range(12))
    assert data.read(table, shots=3, seed=5).test["row"][:] == column.test["row"][:]


def test_named_splits() -> None:
    tables = {**parts(), "fewshot": frame(4, 4, word="few"), "valid": frame(2, 2, word="v")}
    got = data.read(tables, train_split="fewshot", validation_split="train")
    assert sizes(got) == [8, 60, 12]
    assert any("not used: dev, valid" in note for note in got.report.notes)
    assert sizes(data.read(tables))[1] == 4
    fails(tables, "no split 'fewshots'", "did you mean 'fewshot'", "--train-split", train_split="fewshots")
    fails(tables, "two uses", train_split="test", test_split="test")
    fails({"a": frame(5, 5), "b": frame(5, 5)}, "no training split", "'a', 'b'", "--train-split")
    fails(frame(9, 9), "has no splits", "leave out --test-split", test_split="test")
    fails(frame(9, 9).assign(split=["x", "y"] * 9), "no training split among")
    fails(frame(9, 9).assign(split="train"), "value of column 'split'", test_split="test")


def test_a_single_split_is_divided() -> None:
    got = data.read({"test": frame(20, 20)})
    assert sizes(got) == [29, 3, 8]
    assert any("the only split, 'test'" in note for note in got.report.notes)
    gaps = frame(20, 20).assign(split=["train", "train", "test", ""] * 10)
    assert any("10 rows without a value" in note for note in data.read(gaps).report.notes)


def test_duplicates_leave_train_and_never_test() -> None:
    tables = parts()
    tables["train"] = pd.concat([tables["train"], tables["test"][:3], tables["dev"][:2]], ignore_index=True)
    tables["train"].loc[60, "text"] = tables["train"].loc[60, "text"].upper() + "  "
    tables["dev"] = pd.concat([tables["dev"], tables["test"][-1:]], ignore_index=True)
    got = data.read(tables)
    assert sizes(got) == [60, 10, 12]
    assert got.report.splits["train"].dropped == {"text also in test": 3, "text also in validation": 2}
    assert got.report.splits["validation"].dropped == {"text also in test": 1}
    assert got.report.splits["test"].dropped == {}
    kept = data.read(tables, deduplicate=False)
    assert sizes(kept) == [65, 11, 12]
    assert any("3 rows of train also in test were kept" in note for note in kept.report.notes)
    fails({"train": parts()["test"], "test": parts()["test"]}, "also stands in test")


def test_what_is_dropped_is_counted() -> None:
    table = frame(30, 30)
    table.loc[[0, 1, 2], "text"] = ["", "  \n", None]
    table.loc[[5, 40], "label"] = [None, ""]
    got = data.read(table)
    assert got.report.dropped == {"empty text": 3, "no label": 2}
    assert sum(sizes(got)) == 55
    text = "\n".join(got.report.lines())
    assert "train: 3 rows dropped: empty text" in text
    assert "label: column 'label' (guessed by its name)" in text
    assert "classification data from memory" in text
    assert json.loads(json.dumps(got.report.to_dict()))["splits"]["train"]["dropped"] == {
        "empty text": 3,
        "no label": 2,
    }


def test_remarks_on_labels() -> None:
    table = pd.concat([frame(20, 20), frame(20, 20)[:4].assign(label="c1")], ignore_index=True)
    assert any("4 texts stand with different labels" in note for note in data.read(table).report.notes)
    unseen = {"train": frame(9, 9), "test": frame(5, 5, 5, word="t")}
    assert any("in test but not in train: c2" in note for note in data.read(unseen).report.notes)
    lone = data.read(frame(20, 20, 1))
    assert any("in train but not in test: c2" in note for note in lone.report.notes)


def test_hidden_test_labels() -> None:
    numbers = {"c0": 0, "c1": 1}
    tables = {name: part.assign(label=part.label.map(numbers)) for name, part in parts().items()}
    tables["test"]["label"] = -1
    got = data.read(tables)
    assert got.classes == ("0", "1")
    assert sizes(got) == [48, 10, 12]
    assert any("test split has no usable row (12 dropped)" in note for note in got.report.notes)
    typed = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_pandas(part).cast_column(
                "label", datasets.ClassLabel(names=["a", "b"])
            )
            for name, part in tables.items()
        }
    )
    assert data.read(typed).classes == ("a", "b")
    signed = frame(10, 10).assign(label=[-1] * 10 + [1] * 10)
    assert data.read(signed).classes == ("-1", "1")
    without = {name: part if name != "test" else part[["text"]] for name, part in parts().items()}
    assert sizes(data.read(without)) == [48, 10, 12]


def test_data_that_can_not_be_used() -> None:
    fails(frame(20), "only the class 'c0'")
    fails({"train": frame(20), "test": frame(5, 5, word="t")}, "only the class 'c0'")
    fails(frame(20, 20).assign(text=""), "no column looks like text")
    fails(frame(20, 20).assign(text=""), "no usable training row (40 with empty text)", text="text")
    fails(frame(20, 20).assign(label=None), "no usable training row (40 with no label)")
    fails(frame(1, 1), "too few rows (2) to make a test set")
    fails(frame(5, 5), "test_size=10 takes all 10 rows", test_size=10)
    fails(frame(5, 5), "validation_size=8", validation_size=8)
    fails({"train": frame(5, 5), "test": frame(5, 5)[["label"]]}, "test has no column 'text'")
    for wrong in ({"classes": "ab"}, {"label_names": ["a", "b"]}, {"deduplicate": "no"}):
        with pytest.raises(ConfigError, match=rf"^{next(iter(wrong))}=.*: give "):
            data.read(frame(5, 5), **wrong)


def test_rows_of_the_fingerprint() -> None:
    first = data.read(frame(20, 20))
    assert len(first.fingerprint) == 64
    assert data.read(frame(20, 20).assign(extra=1)).fingerprint == first.fingerprint
    changed = frame(20, 20)
    changed.loc[3, "text"] += "!"
    assert data.read(changed).fingerprint != first.fingerprint
    assert data.read(frame(20, 20), seed=1).fingerprint != first.fingerprint
    assert data.read(frame(20, 20), label_names={"c0": "x"}).fingerprint != first.fingerprint
    # the draws and the hash are promised to be the same on every machine, so the value itself is kept here
    assert first.fingerprint.startswith("beb791b73a8eff04")


def test_pairs_are_compared_as_pairs() -> None:
    table = frame(20, 20).assign(text_b="the same", text="one text")
    table["text_b"] += table.index.astype(str)
    got = data.read(table)
    assert sum(sizes(got)) == 40
    assert got.train.column_names == ["text", "text_b", "label", "row"]
    table.loc[0, "text_b"] = ""
    assert data.read(table).report.dropped == {"empty text": 1}


def test_importing_is_light() -> None:
    code = "import sys, cuelight.data; print({'datasets', 'pandas', 'torch', 'pyarrow'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
