"""Reading: every format a user may bring gives the same rows, and every broken file one line of help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import cuelight.data as data
from cuelight.errors import ConfigError, CuelightError, DataError

ROWS = [
    {
        "text": f'{"good" if i % 2 else "bad"} thing number {i}, it\'s "quoted"; café',
        "label": "pos" if i % 2 else "neg",
    }
    for i in range(40)
]


def fails(source: Any, *words: str, error: type[CuelightError] = DataError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        data.read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS)


def write_csv(folder: Path) -> Path:
    frame().to_csv(folder / "d.csv", index=False)
    return folder / "d.csv"


def write_semicolons(folder: Path) -> Path:
    frame().to_csv(folder / "d.csv", index=False, sep=";")
    return folder / "d.csv"


def write_bom(folder: Path) -> Path:
    frame().to_csv(folder / "d.csv", index=False, encoding="utf-8-sig")
    return folder / "d.csv"


def write_utf16(folder: Path) -> Path:
    frame().to_csv(folder / "d.csv", index=False, encoding="utf-16")
    return folder / "d.csv"


def write_cp1252(folder: Path) -> Path:
    frame().to_csv(folder / "d.csv", index=False, encoding="cp1252")
    return folder / "d.csv"


def write_tsv(folder: Path) -> Path:
    frame().to_csv(folder / "d.tsv", index=False, sep="\t")
    return folder / "d.tsv"


def write_jsonl(folder: Path) -> Path:
    frame().to_json(folder / "d.jsonl", orient="records", lines=True)
    return folder / "d.jsonl"


def write_jsonl_as_json(folder: Path) -> Path:
    frame().to_json(folder / "d.json", orient="records", lines=True)
    return folder / "d.json"


def write_json(folder: Path) -> Path:
    (folder / "d.json").write_text(json.dumps({"data": ROWS}))
    return folder / "d.json"


def write_json_columns(folder: Path) -> Path:
    (folder / "d.json").write_text(json.dumps(frame().to_dict(orient="list")))
    return folder / "d.json"


def write_parquet(folder: Path) -> Path:
    frame().to_parquet(folder / "d.parquet")
    return folder / "d.parquet"


def write_saved(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


WRITERS = [value for name, value in list(globals().items()) if name.startswith("write_")]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_format_gives_the_same_data(write: Any, tmp_path: Path) -> None:
    expected = data.read(frame())
    got = data.read(write(tmp_path))
    assert got.fingerprint == expected.fingerprint
    assert got.classes == ("neg", "pos")
    assert got.kind == "classification"
    assert got.train[:] == expected.train[:]
    everything = sorted([*got.train["row"], *got.validation["row"], *got.test["row"]])
    assert everything == list(range(40))
    for part in (got.train, got.validation, got.test):
        for row in part:
            assert row["text"] == ROWS[row["row"]]["text"]
            assert got.classes[row["label"]] == ROWS[row["row"]]["label"]


def test_python_objects(tmp_path: Path) -> None:
    expected = data.read(frame()).fingerprint
    assert data.read(ROWS).fingerprint == expected
    assert data.read(str(write_csv(tmp_path))).fingerprint == expected
    assert data.read(datasets.Dataset.from_list(ROWS)).fingerprint == expected
    named = datasets.ClassLabel(names=["neg", "pos"])
    typed = datasets.Dataset.from_list(ROWS).cast_column("label", named)
    assert data.read(typed).fingerprint == expected
    typed.to_parquet(tmp_path / "typed.parquet")
    assert data.read(tmp_path / "typed.parquet").fingerprint == expected
    fails(ROWS[0]["text"].encode(), "type 'bytes'")
    fails({}, "no splits")
    fails([1, 2], "type 'list'")


def test_the_features_are_typed() -> None:
    train = data.read(frame()).train
    assert train.features["label"].names == ["neg", "pos"]
    assert set(train.column_names) == {"text", "label", "row"}


def test_remarks_on_encoding_and_separator(tmp_path: Path) -> None:
    assert any("cp1252" in note for note in data.read(write_cp1252(tmp_path)).report.notes)
    assert any("';'" in note for note in data.read(write_semicolons(tmp_path)).report.notes)
    assert not data.read(write_bom(tmp_path)).report.notes


def test_words_that_pandas_takes_for_missing_stay(tmp_path: Path) -> None:
    rows = [f"sentence number {i} 007,{'none' if i % 2 else 'NA'}" for i in range(20)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *rows]))
    assert data.read(tmp_path / "d.csv").classes == ("NA", "none")


def test_a_tsv_with_stray_quotes_keeps_its_rows(tmp_path: Path) -> None:
    rows = [f'"row {i}, he said\t{i % 2}' if i % 5 == 0 else f"plain row {i}\t{i % 2}" for i in range(40)]
    (tmp_path / "d.tsv").write_text("\n".join(["sentence\tlabel", *rows]))
    got = data.read(tmp_path / "d.tsv")
    assert len(got.train) + len(got.validation) + len(got.test) == 40
    assert any("quotes" in note for note in got.report.notes)


def class_folders(folder: Path, start: int = 0) -> Path:
    for i in range(start, start + 20):
        place = folder / ("neg" if i % 2 else "pos")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.txt").write_text(f"a text of number {i}\n")
    return folder


def test_class_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "all")
    (tmp_path / "all" / "pos" / "notes.md").write_text("x")
    got = data.read(tmp_path / "all")
    assert got.classes == ("neg", "pos")
    assert any("1 files that are not .txt" in note for note in got.report.notes)
    class_folders(tmp_path / "split" / "train")
    class_folders(tmp_path / "split" / "test", start=100)
    got = data.read(tmp_path / "split")
    assert len(got.test) == 20
    assert got.report.splits["test"].origin == "given as 'test'"


def test_a_folder_of_files_named_after_splits(tmp_path: Path) -> None:
    frame()[:20].to_csv(tmp_path / "train.csv", index=False)
    frame()[20:30].to_parquet(tmp_path / "dev.parquet")
    frame()[30:36].to_json(tmp_path / "test-00000-of-00002.jsonl", orient="records", lines=True)
    frame()[36:].to_json(tmp_path / "test-00001-of-00002.jsonl", orient="records", lines=True)
    got = data.read(tmp_path)
    assert [len(part) for part in (got.train, got.validation, got.test)] == [20, 10, 10]
    assert got.test["row"][:] == list(range(10))


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    assert data.read(write_csv(tmp_path).parent).fingerprint == data.read(frame()).fingerprint


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write_csv(tmp_path).rename(tmp_path / "reviews.csv")
    fails(tmp_path / "review.csv", "no file", "did you mean 'reviews.csv'")
    fails(str(tmp_path / "reviews.cvs"), "no file", "did you mean 'reviews.csv'")
    fails("nowhere/at/all.csv", "there is no folder")
    fails("reviews.parquet", "no file 'reviews.parquet'")
    fails("", "is empty")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.csv", b"", ["is empty"]),
        ("d.csv", b"\n \n", ["is empty"]),
        ("d.csv", b"text,label\n", ["no rows"]),
        ("d.csv", bytes(range(256)) * 20, ["binary file"]),
        ("d.csv", b"text,label\nfine \x81\x8d,a\n", ["neither UTF-8 nor cp1252"]),
        ("d.csv", b'text,label\n"never closed,a\nb,c\n', ["unpaired quote"]),
        ("d.csv", b"text,label\na, b and c,x\n", ["more fields than the header", "quote fields"]),
        ("d.csv", b"text,label\na,b\na, b and c,x\n", ["line 3", "quote fields"]),
        ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label"\n', ["line 2", "not JSON"]),
        ("d.jsonl", b'{"text": "a", "label": 1}\n[1, 2]\n', ["line 2", "holds a list"]),
        ("d.json", b'{"text": "a"', ["not JSON"]),
        ("d.json", b'{"text": "a"}', ["is no table"]),
        ("d.json", b'[{"text": "a"}, 3]', ["row 2", "holds a int"]),
        ("d.parquet", b"PAR1 and then nothing", ["damaged"]),
        ("d.xlsx", b"PK", ["save the sheet as CSV"]),
        ("d.txt", b"hello", ["'.txt'", "use CSV"]),
        ("data", b"hello", ["no suffix"]),
    ],
)
def test_broken_files(name: str, content: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, *words)


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    fails(path, "damaged")


def test_folders_with_nothing_usable(tmp_path: Path) -> None:
    fails(tmp_path, "nothing usable", "class folders")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"\x89PNG")
    fails(tmp_path, "1.png' is no picture")
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "1.wav")
    fails(tmp_path, "holds sounds")
    write_csv(tmp_path)
    write_parquet(tmp_path)
    fails(tmp_path, "none named after a split", "train.csv")


def test_a_damaged_saved_data_set(tmp_path: Path) -> None:
    path = write_saved(tmp_path)
    (path / "state.json").write_text("{")
    fails(path, "damaged saved data set")


def test_splits_that_declare_different_classes() -> None:
    parts = {}
    for split, names in (("train", ["neg", "pos"]), ("test", ["pos", "neg"])):
        parts[split] = datasets.Dataset.from_list(ROWS).cast_column("label", datasets.ClassLabel(names=names))
    fails(datasets.DatasetDict(parts), "different classes")


class _ConnectError(Exception):
    """Stands for the HTTP client's error of the same name."""


def test_hub_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(repository: str, config: str | None) -> Any:
        asked.append((repository, config))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    got = data.read("somebody/reviews:small")
    assert asked == [("somebody/reviews", "small")]
    assert got.report.source == "hub:somebody/reviews:small"
    assert got.classes == ("neg", "pos")

    def refuse(error: Exception) -> Any:
        def raising(*arguments: Any, **options: Any) -> None:
            raise error

        return raising

    monkeypatch.setattr(
        datasets, "load_dataset", refuse(ValueError("Config name is missing.\nPick one of a, b"))
    )
    fails("somebody/reviews", "somebody/reviews:CONFIG", "Pick one of a, b")
    monkeypatch.setattr(datasets, "load_dataset", refuse(RuntimeError("odd\nthing")))
    fails("somebody/reviews", "odd thing")
    missing = type("RepositoryNotFoundError", (Exception,), {})
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse(missing("404")))
    fails("film-review", "no data set on the hub", "did you mean 'film-reviews'")
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", refuse(_ConnectError("Name or service not known"))
    )
    fails("somebody/reviews", "no hub can be reached", "local file", "HF_HUB_OFFLINE")


def test_a_collection_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$CUELIGHT_DATA` names data sets; a built-in name, a path and an unknown name stay what they are."""
    (tmp_path / "text" / "halves").mkdir(parents=True)
    write_csv(tmp_path).rename(tmp_path / "mine.csv")
    frame().to_parquet(tmp_path / "text" / "trec.parquet")
    for part, rows in (("train", frame()[:30]), ("test", frame()[30:])):
        rows.to_csv(tmp_path / "text" / "halves" / f"{part}.csv", index=False)
    monkeypatch.setenv("CUELIGHT_DATA", str(tmp_path))
    for name in ("mine", "trec", "halves"):
        assert data.read(name).classes == ("neg", "pos")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails("no-such-set", "no-such-set")
    monkeypatch.delenv("CUELIGHT_DATA")
    fails("mine", "mine")


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "film-reviews")
    assert data.read("film-reviews").report.source == "film-reviews"
    assert not data.read("film-reviews").report.provenance


def test_wrong_options() -> None:
    fails(ROWS, "unknown data option 'shot'", "did you mean 'shots'", error=ConfigError, shot=3)
    for options in (
        {"shots": 0},
        {"shots": True},
        {"seed": -1},
        {"max_test": 0},
        {"test_size": 1.5},
        {"validation_size": 0},
        {"text": ""},
        {"task": "classfication"},
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"label": "a", "target": "b"},
        {"task": "generation", "label": "a"},
        {"task": "multilabel", "target": "a"},
    ):
        fails(ROWS, next(iter(options)), error=ConfigError, **options)
    assert data.DataSpec(task="generation").changed(seed=np.int64(3).item()).seed == 3
