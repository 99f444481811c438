"""Which column is taken for what, and what the user is told when that is not clear."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import cuelight.data as data
from cuelight.errors import DataError

CORPUS = Path(os.environ.get("CUELIGHT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "text"
COUNT = 40


def texts(word: str = "text") -> list[str]:
    return [f"a sentence of {word} number {i}" for i in range(COUNT)]


def cycle(*values: Any) -> list[Any]:
    return [values[i % len(values)] for i in range(COUNT)]


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def taken(got: data.Splits) -> dict[str, str]:
    return {role: choice.column for role, choice in got.report.columns.items()}


def fails(source: Any, *words: str, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        data.read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("columns", "expected", "kind"),
    [
        ({"text": texts(), "label": cycle(0, 1)}, {"text": "text", "label": "label"}, "classification"),
        (
            {"Review Text": texts(), "Sentiment": cycle("a", "b")},
            {"text": "Review Text", "label": "Sentiment"},
            "classification",
        ),
        (
            {"sentence": texts(), "idx": list(range(COUNT)), "label": cycle(0, 1)},
            {"text": "sentence", "label": "label"},
            "classification",
        ),
        (
            {"premise": texts("p"), "hypothesis": texts("h"), "label": cycle(0, 1, 2)},
            {"text": "premise", "text_b": "hypothesis", "label": "label"},
            "classification",
        ),
        (
            {"question": texts("q"), "sentence": texts("s"), "label": cycle(0, 1)},
            {"text": "question", "text_b": "sentence", "label": "label"},
            "classification",
        ),
        (
            {"question": texts(), "category": cycle("x", "y")},
            {"text": "question", "label": "category"},
            "classification",
        ),
        (
            {"document": texts(), "summary": texts("s")},
            {"text": "document", "target": "summary"},
            "generation",
        ),
        (
            {"input": texts(), "outputs": [[t] for t in texts("o")]},
            {"text": "input", "target": "outputs"},
            "generation",
        ),
        (
            {"instruction": texts(), "input": cycle("", "with this"), "output": texts("o")},
            {"text": "instruction", "text_b": "input", "target": "output"},
            "generation",
        ),
        (
            {"text": texts(), "target": cycle("yes", "no")},
            {"text": "text", "label": "target"},
            "classification",
        ),
        (
            {"dialogue": texts(), "topic": texts("t"), "summary": texts("s")},
            {"text": "dialogue", "target": "summary"},
            "generation",
        ),
        (
            {"foo": texts(), "bar": cycle("x", "y"), "id": list(range(COUNT))},
            {"text": "foo", "label": "bar"},
            "classification",
        ),
        (
            {"text": texts(), "labels": cycle([0, 1], [1, 1], [1, 0])},
            {"text": "text", "label": "labels"},
            "multilabel",
        ),
        (
            {"text": texts(), "tags": cycle("a;b", "a", "b;c")},
            {"text": "text", "label": "tags"},
            "multilabel",
        ),
        (
            {"text": texts(), "label": cycle("a|b", "a", "b")},
            {"text": "text", "label": "label"},
            "multilabel",
        ),
        (
            {"text": texts(), "genres": cycle("a, b", "a", "b")},
            {"text": "text", "label": "genres"},
            "multilabel",
        ),
        (
            {"text": texts(), "label": cycle("a, b", "c, d")},
            {"text": "text", "label": "label"},
            "classification",
        ),
        (
            {"text": texts(), "labels": cycle(["x"], ["x", "y"], [])},
            {"text": "text", "label": "labels"},
            "multilabel",
        ),
    ],
)
def test_guesses(columns: dict[str, Any], expected: dict[str, str], kind: str) -> None:
    got = data.read(table(**columns))
    assert taken(got) == expected
    assert got.kind == kind
    assert all(choice.why.startswith("guessed") for choice in got.report.columns.values())


def test_given_columns_win() -> None:
    frame = table(text=texts(), note=texts("note"), label=cycle(0, 1), mood=cycle("x", "x", "y"))
    got = data.read(frame, text="note", label="mood")
    assert taken(got) == {"text": "note", "label": "mood"}
    assert {choice.why for choice in got.report.columns.values()} == {"given"}
    assert got.train[0]["text"].startswith("a sentence of note")
    got = data.read(frame, text="text", text_b="note")
    assert taken(got) == {"text": "text", "text_b": "note", "label": "label"}
    assert data.read(frame, target="note").kind == "generation"


def test_what_is_not_clear_names_the_columns_and_the_option() -> None:
    fails(
        table(text=texts(), label=cycle(0, 1)),
        "no column 'txt'",
        "'text'",
        "'label'",
        "did you mean",
        text="txt",
    )
    fails(table(text=texts(), label=cycle(0, 1)), "no column 'lable'", "for --label", label="lable")
    fails(table(text=texts(), label=cycle(0, 1)), "--text-b", text_b="nothing like it")
    fails(
        table(a=texts(), b=texts("b"), label=cycle(0, 1)),
        "several columns may be the text",
        "--text COLUMN",
        "'a', 'b'",
    )
    fails(
        table(text=texts(), a=cycle("x", "y"), b=cycle("v", "w")),
        "several columns may be the label",
        "--label COLUMN",
    )
    fails(
        table(text=texts(), more=texts("m")), "no column looks like a label or an answer", "--target COLUMN"
    )
    fails(table(n=list(range(COUNT)), label=cycle(0, 1)), "no column looks like text", "--text COLUMN")
    fails(table(text=texts(), topic=cycle("x", "y"), summary=texts("s")), "--label topic or --target summary")
    fails(table(text=texts(), label=cycle(0, 1)), "--target COLUMN", task="generation")


def test_columns_that_can_not_be_what_they_are_taken_for() -> None:
    fails(table(text=texts(), label=texts("l")), "40 different values in 40 rows", "--target label")
    fails(table(text=texts(), score=[i / 7 for i in range(COUNT)]), "real numbers", "cut it into classes")
    fails(table(text=texts(), label=cycle({"a": 1}, {"a": 2})), "holds a dict", "another --label")
    fails(table(text=[[t] for t in texts()], label=cycle(0, 1)), "holds a list, not text", text="text")
    fails(table(text=texts(), answer=cycle({"a": 1})), "another --target", target="answer")
    fails(table(text=texts(), ratio=cycle(0.5, float("inf"))), "no column looks like a label")
    assert (
        data.read(table(text=texts(), label=texts("l")), task="generation", target="label").kind
        == "generation"
    )


def test_class_names() -> None:
    numbers = data.read(table(text=texts(), label=cycle("10", "9", "1")))
    assert numbers.classes == ("1", "9", "10")
    assert any("label_names" in note for note in numbers.report.notes)
    assert data.read(table(text=texts(), label=cycle(True, False))).classes == ("false", "true")
    assert data.read(table(text=texts(), label=cycle(1.0, 0.0, np.nan))).classes == ("0", "1")
    assert data.read(table(text=texts(), label=cycle("1.0", "0.0", ""))).classes == ("0", "1")
    named = data.read(table(text=texts(), label=cycle(1, 0), label_name=cycle("alpha", "zeta")))
    assert named.classes == ("zeta", "alpha")
    assert data.read(table(text=texts(), label=cycle(1, 0), label_name=cycle("a", "b", "c"))).classes == (
        "0",
        "1",
    )
    words = data.read(table(text=texts(), label=cycle(0, 1)), label_names={0: "bad", "1": "good"})
    assert words.classes == ("bad", "good")
    large = data.read(table(text=texts(), label=cycle("12345678901234567.0", "12345678901234568")))
    assert large.classes == ("12345678901234567", "12345678901234568")
    merged = data.read(table(text=texts(), label=cycle(1, 2, 3)), label_names={1: "low", 2: "low", 3: "high"})
    assert merged.classes == ("low", "high")
    assert data.read(table(text=texts(), label=cycle(0, 1)), classes=("bad", "good")).classes == (
        "bad",
        "good",
    )
    turned = data.read(table(text=texts(), label=cycle("a", "b")), classes=("b", "a"))
    assert turned.classes == ("b", "a")
    assert {row["row"] % 2: row["label"] for row in turned.train} == {0: 1, 1: 0}
    extra = data.read(table(text=texts(), label=cycle("a", "b")), classes=("a", "b", "c"))
    assert any("without any row: c" in note for note in extra.report.notes)


def test_class_names_that_do_not_fit() -> None:
    frame = table(text=texts(), label=["bad" if i != 7 else "odd" for i in range(COUNT - 1)] + ["good"])
    fails(frame, "label 'odd'", "row 7", "given classes", classes=("good", "bad"))
    names = datasets.Features(
        text=datasets.Value("string"), labels=[datasets.ClassLabel(names=["a", "b", "c"])]
    )
    listed = {"text": texts(), "labels": cycle([0, 1], [2])}
    declared = datasets.Dataset.from_dict(listed, features=names)
    assert data.read(declared).train[0]["labels"] in ([1, 1, 0], [0, 0, 1])
    frame_of = declared.with_format("arrow")[:]
    for wrong in (-1, 3):
        column = pa.array(cycle([0, 1], [wrong]), pa.list_(pa.int64()))
        broken = datasets.Dataset(frame_of.set_column(1, "labels", column), info=declared.info)
        fails(broken, f"holds {wrong}, but declares only 3 classes")
    fails(frame, "label_names names 'gud'", "did you mean 'good'", label_names={"gud": "fine"})


def test_multilabel_rows() -> None:
    got = data.read(table(text=texts(), labels=cycle("news;sport", "sport", "", "art; news")))
    assert got.classes == ("art", "news", "sport")
    assert set(got.train.column_names) == {"text", "labels", "row"}
    expected = {0: [0, 1, 1], 1: [0, 0, 1], 3: [1, 1, 0]}
    assert all(row["labels"] == expected[row["row"] % 4] for row in got.train)
    assert got.report.dropped == {"no label": 10}
    vectors = data.read(
        table(text=texts(), labels=cycle([1, 0, 0], [0, 1, 1], [0, 0, 0])), classes=("a", "b", "c")
    )
    assert vectors.classes == ("a", "b", "c")
    listed = data.read(
        table(text=texts(), labels=cycle([1, 0], [1, 1]), label_names=cycle(["zoo"], ["zoo", "ape"])), shots=3
    )
    assert listed.classes == ("zoo", "ape")


def test_generation_rows() -> None:
    answers = cycle(["one", "two"], ["three"], [], None)
    got = data.read(table(question=texts(), answers=answers))
    assert got.classes == ()
    assert got.report.dropped == {"no answer": 20}
    assert all(row["targets"] == answers[row["row"]] for row in got.test)
    squad = data.read(
        table(question=texts(), context=texts("c"), answers=cycle({"text": ["x"], "answer_start": [1]}))
    )
    assert squad.test[0]["targets"] == ["x"]
    assert "text_b" in squad.test.column_names


@pytest.mark.skipif(not CORPUS.is_dir(), reason="no shared data: set CUELIGHT_DATA to its folder")
def test_the_corpus_is_read_without_a_word() -> None:
    pairs = {"cb", "mnli", "mrpc", "qnli", "qqp", "rte", "snli"}
    seen = 0
    for path in sorted(CORPUS.glob("*.parquet")):
        options = {"train_split": "fewshot16_s13_train"} if path.stem == "dbpedia14" else {}
        if path.stem == "stsb":
            fails(path, "real numbers")
            continue
        got = data.read(path, **options)
        frame = pd.read_parquet(path)
        several = "labels" in frame.columns
        expected = {"text": "text", "label": "labels" if several else "label"}
        expected["label_name"] = "label_names" if several else "label_name"
        if path.stem in pairs:
            expected["text_b"] = "text_b"
        assert taken(got) == expected, path.stem
        assert got.kind == ("multilabel" if several else "classification"), path.stem
        assert "validation" not in frame.split.unique() or got.report.splits["validation"].origin.startswith(
            "given"
        )
        if not several:
            test = frame[frame.split == "test"].reset_index()
            names = frame["label_name"]
            labels = got.test["label"][:]
            where = got.test["row"][:]
            assert [got.classes[label] for label in labels] == [names[row] for row in where], path.stem
            assert len(test) - sum(got.report.splits["test"].dropped.values()) == len(labels), path.stem
        assert not set(map(key, got.train)) & set(map(key, got.test)), path.stem
        seen += 1
    assert seen >= 30


def key(row: dict[str, Any]) -> str:
    return " ".join(f"{row['text']} | {row.get('text_b', '')}".lower().split())
