"""Comparisons: tables, plots, resuming, and refusals before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import cuelight
from cuelight.cli.main import run
from cuelight.comparison import Comparison
from cuelight.data.builtin import load_builtin
from cuelight.errors import ArtifactError, BackboneError, ConfigError
from cuelight.evaluation.plots import plot_comparison, plot_training
from cuelight.evaluation.tables import cells, markdown, summary

BACKBONE = "minimind2-26m"
QUICK = {"shots": 4, "steps": 2, "batch_size": 4, "max_length": 48, "max_test": 8, "max_validation": 4}
PNG = b"\x89PNG"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    frame = load_builtin("film-reviews").frame
    frame = frame[frame["label"].notna()].groupby("label").head(30)[["text", "label"]]
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def backbone():
    return cuelight.load_backbone(BACKBONE, device="cpu")


def words(options):
    return [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", str(v))]


def test_compare_from_a_shell_and_again(reviews, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    line = ["compare", "zero-shot,prompt-tuning", "--backbone", BACKBONE, "--data", str(reviews)]
    line += ["--seeds", "2", "--output", str(folder), "--length", "5", *words(QUICK)]
    line += ["--set", "prompt-tuning.learning-rate=0.02"]
    assert run(line) == 0
    shown = capsys.readouterr().out
    assert "zero-shot" in shown
    assert "±" in shown
    for name in ("table.csv", "table.md", "table.json", "plot.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "plot.png").read_bytes().startswith(PNG)
    table = pd.read_csv(folder / "table.csv")
    body = json.loads((folder / "table.json").read_text("utf-8"))
    assert table["method"].tolist() == ["zero-shot", "prompt-tuning"]
    assert table["seeds"].tolist() == [2, 2]
    assert table["trainable"].tolist() == [0, 5 * 512]
    assert [(r["method"], r["seed"]) for r in body["runs"]] == [
        (m, s) for m in table["method"] for s in (0, 1)
    ]
    values = [r["metrics"]["accuracy"] for r in body["runs"] if r["method"] == "prompt-tuning"]
    assert table["accuracy"][1] == pytest.approx(np.mean(values))
    assert table["accuracy_std"][1] == pytest.approx(np.std(values, ddof=1))
    card = json.loads((folder / "prompt-tuning" / "seed1" / "cuelight.json").read_text("utf-8"))
    assert card["training"]["learning_rate"] == 0.02
    assert card["metrics"]["accuracy"] == values[1]

    def never(*_, **__):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr("cuelight.comparison.tune", never)
    assert run(line) == 0
    again = json.loads((folder / "table.json").read_text("utf-8"))
    assert again["rows"] == body["rows"]
    assert all(r["resumed"] for r in again["runs"])
    capsys.readouterr()
    assert run([*line, "--length", "6"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert run(["plot", str(folder), "--output", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes().startswith(PNG)


def test_a_run_is_what_tune_gives(reviews, backbone):
    found = cuelight.compare(
        ["prompt-tuning"], backbone=backbone, data=str(reviews), seeds=[1], length=5, **QUICK
    )
    alone = cuelight.tune("prompt-tuning", backbone=backbone, data=str(reviews), seed=1, length=5, **QUICK)
    assert found.runs[0]["metrics"] == alone.metrics
    assert found.seeds == (1,)
    assert found.rows[0]["accuracy"] == alone.metrics["accuracy"]
    assert "± " not in found.to_markdown()
    assert json.loads(found.to_json())["rows"][0]["accuracy_std"] is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methods": "dept,zero-shoot"}, "did you mean 'zero-shot'?"),
        ({"methods": ""}, "methods: none"),
        ({"lenght": 3}, "did you mean 'length'?"),
        ({"seed": 3}, "seed: "),
        ({"seeds": 0}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds: "),
        ({"length": -1}, "length: is -1"),
        ({"options": {"prompt-tuning": {"rank": 4}}}, "prompt-tuning.rank: no such option"),
        ({"options": {"lora": {"rank": 4}}}, "'lora' is not compared"),
        ({"options": {"prompt-tuning": {"length": 0}}}, "length: is 0"),
    ],
)
def test_mistakes_are_found_before_any_run(reviews, backbone, monkeypatch, change, expected):
    monkeypatch.setattr("cuelight.comparison.tune", lambda *_, **__: pytest.fail("a run was begun"))
    arguments = {"methods": "zero-shot,prompt-tuning", "backbone": backbone, "data": str(reviews), **QUICK}
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")) as caught:
        cuelight.compare(**{**arguments, **change})
    assert "\n" not in str(caught.value)


def test_a_method_the_backbone_is_not_for_is_refused_first(reviews, monkeypatch):
    monkeypatch.setattr("cuelight.comparison.tune", lambda *_, **__: pytest.fail("a run was begun"))
    with pytest.raises(BackboneError, match="dept needs causal or seq2seq"):
        cuelight.compare(
            "linear-probe,dept", backbone="minilm-l6", data=str(reviews), seeds=1, shots=4, max_test=8
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dept=3", "give METHOD.FIELD=VALUE"),
        ("lora.rank=3", "'lora' is not compared"),
        ("prompt-tuning.lenght=3", "did you mean 'length'?"),
        ("prompt-tuning.length=x", "give a whole number"),
    ],
)
def test_wrong_overrides(reviews, tmp_path, capsys, text, expected):
    line = [
        "compare",
        "zero-shot,prompt-tuning",
        "--backbone",
        BACKBONE,
        "--data",
        str(reviews),
        "--set",
        text,
    ]
    assert run([*line, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


SAME = {"trainable": 1234567, "seconds": 2.0, "peak_memory": 2**30}
RUNS = [
    {"method": method, "seed": seed, "metrics": {"macro_f1": 0.1, "accuracy": accuracy}, **SAME}
    for method, seed, accuracy in [("a|b", 0, 0.5), ("a|b", 1, 0.7), ("c", 0, 0.9)]
]


def test_summary():
    table = summary(RUNS, "accuracy")
    assert list(table.columns[:3]) == ["method", "seeds", "accuracy"]
    assert table["accuracy"].tolist() == pytest.approx([0.6, 0.9])
    assert table["accuracy_std"][0] == pytest.approx(0.2 / 2**0.5)
    assert np.isnan(table["accuracy_std"][1])
    head, rows = cells(table)
    assert len(head) == len(rows[0])
    assert rows[0][2] == "0.600 ± 0.141"
    assert rows[1][2] == "0.900"
    assert "1,234,567" in rows[0]
    lines = markdown(table).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_comparison_survives_its_file(tmp_path):
    before = Comparison("backbone", "data", "accuracy", (0, 1), RUNS)
    before.to_json(tmp_path / "table.json")
    assert Comparison.read(tmp_path / "table.json") == before
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(ArtifactError, match="can not be read"):
        Comparison.read(tmp_path / "table.json")


def test_plots(tmp_path):
    assert plot_comparison(RUNS, "accuracy", tmp_path / "a.png").read_bytes().startswith(PNG)
    folder = tmp_path / "training"
    folder.mkdir()
    with pytest.raises(ArtifactError, match=r"no training/log.jsonl"):
        plot_training(tmp_path, tmp_path / "b.png")
    log = [
        {"stage": s, "step": k, "loss": 1 / k, "validation": {"accuracy": 0.5}} for s in "ab" for k in (1, 2)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log) + '{"stage": "b", "st')
    assert plot_training(tmp_path, tmp_path / "b.png").read_bytes().startswith(PNG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "training"]
