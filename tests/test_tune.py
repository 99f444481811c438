"""`cuelight.tune` on every kind of data, twice the same, killed and resumed, and refusing in one line."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.data import read
from cuelight.errors import ArtifactError, ConfigError, CuelightError, DataError
from cuelight.training import TrainConfig
from cuelight.tuning import Run, _watched

GOOD = ["a warm film", "funny and kind", "I loved it", "a joy to watch", "great cast", "moving story"]
BAD = ["dull and long", "I left early", "a waste of time", "badly acted", "no idea at all", "so boring"]
WORDS = ["river", "stone", "cloud", "apple", "table", "green", "house", "bread", "light", "paper"]
FAST: dict[str, Any] = {"steps": 3, "batch_size": 4, "max_length": 32, "device": "cpu"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two busy processes on two cores wait for each other's threads for most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reviews(count: int = 36) -> pd.DataFrame:
    rows = [
        {"text": f"{(GOOD, BAD)[k % 2][k // 2 % 6]} {k}", "label": ("good", "bad")[k % 2]}
        for k in range(count)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def minimind() -> Backbone:
    return load_backbone("minimind2-26m", device="cpu", progress=False)


@pytest.fixture(scope="module")
def t5() -> Backbone:
    return load_backbone("flan-t5-small", device="cpu", progress=False)


def check(run: Run, texts: list[Any]) -> list[Any]:
    assert run.metrics
    for name, value in run.metrics.items():
        assert (-1 if name == "matthews" else 0) <= value <= 1
    assert run.report
    assert run.training is not None
    assert run.training.steps == 3
    assert run.trainable > 0
    assert run.seconds > 0
    assert run.peak_memory > 1e6
    answers = run.prompt.predict(texts)
    assert len(answers) == len(texts)
    return answers


@pytest.mark.parametrize("form", ["csv", "frame", "dataset", "rows"])
def test_classification(form: str, minimind: Backbone, tmp_path: Path) -> None:
    frame = reviews()
    frame.to_csv(tmp_path / "reviews.csv", index=False)
    data = {
        "csv": tmp_path / "reviews.csv",
        "frame": frame,
        "dataset": datasets.Dataset.from_pandas(frame),
        "rows": frame.to_dict("records"),
    }[form]
    shown: list[list[str]] = []
    run = cuelight.tune("prompt-tuning", backbone=minimind, data=data, on_report=shown.append, **FAST)
    answers = check(run, ["a lovely film", "awful"])
    assert set(answers) <= {"good", "bad"}
    assert {"accuracy", "macro_f1", "matthews"} == run.metrics.keys()
    assert run.predictions is not None
    assert len(run.predictions.answers) == len(read(frame).test)
    assert shown == [run.report[: len(shown[0])]]
    best = run.training.best if run.training else {}
    assert best["stage"] == "prompt-tuning"
    tables = run.prompt.predict(["a lovely film"], probabilities=True)
    assert set(tables[0]["probabilities"]) == {"good", "bad"}
    assert sum(tables[0]["probabilities"].values()) == pytest.approx(1)


def test_pairs(t5: Backbone) -> None:
    rows = [
        {"question": f"is {a} {b}?", "passage": f"{a} is {b}" if k % 2 else f"{a} is lost", "answer": k % 2}
        for k, (a, b) in enumerate(zip(WORDS * 3, WORDS[3:] * 4, strict=False))
    ]
    run = cuelight.tune(
        "lora",
        backbone=t5,
        data=pd.DataFrame(rows),
        text="question",
        text_b="passage",
        label="answer",
        label_names={0: "no", 1: "yes"},
        **FAST,
    )
    assert set(check(run, [("is it?", "it is"), ["is it?", "no"]])) <= {"no", "yes"}
    for wrong, says in (
        (["is it?"], "number 0 is 'is it.'; give a pair"),
        ([("a", "")], "number 0 is empty"),
    ):
        with pytest.raises(DataError, match=says):
            run.prompt.predict(wrong)


@pytest.mark.parametrize("name", ["prompt-tuning", "prefix-tuning"])
def test_generation(name: str, minimind: Backbone, t5: Backbone) -> None:
    rows = [{"text": f"{a} {b}", "target": f"{a} {b}".upper()} for a in WORDS for b in WORDS[:3]]
    for backbone in (minimind, t5):
        run = cuelight.tune(
            name, backbone=backbone, data=pd.DataFrame(rows), max_new_tokens=4, max_test=5, **FAST
        )
        assert all(isinstance(answer, str) for answer in check(run, ["grey sky"]))
        assert {"exact_match", "rouge_l", "chrf", "bleu"} == run.metrics.keys()
        assert run.training is not None
        assert "validation_loss" in run.training.best
        with pytest.raises(DataError, match=r"probabilities: .* generates its answers"):
            run.prompt.predict(["grey sky"], probabilities=True)


def test_multilabel(minimind: Backbone, t5: Backbone) -> None:
    rows = [
        {
            "text": f"{a} and {b} {k}",
            "label": sorted({("plant", "rock", "sky")[k % 3], ("sky", "rock")[k % 2]}),
        }
        for k, (a, b) in enumerate(zip(WORDS * 3, WORDS[1:] * 4, strict=False))
    ]
    for backbone in (minimind, t5):
        run = cuelight.tune(
            "prompt-tuning", backbone=backbone, data=rows, task="multilabel", max_test=4, **FAST
        )
        for answer in check(run, ["a stone", "clouds"]):
            assert isinstance(answer, list)
            assert set(answer) <= {"plant", "rock", "sky"}
        assert {"micro_f1", "macro_f1", "subset_accuracy", "labels_per_row"} == run.metrics.keys()


@pytest.mark.parametrize("name", ["zero-shot", "in-context", "linear-probe"])
def test_methods_without_training(name: str, minimind: Backbone, tmp_path: Path) -> None:
    splits = read(reviews())

    def go(**options: Any) -> Run:
        options = {"backbone": minimind, "data": splits, "output": tmp_path, "max_length": 32, **options}
        return cuelight.tune(name, **options)

    first, again = go(), go()
    assert first.training is None
    assert again.metrics == first.metrics
    assert again.predictions is None
    assert again.prompt.predict(["a fine film"]) == first.prompt.predict(["a fine film"])
    with pytest.raises(ConfigError, match="seed=0, this one has seed=1"):
        go(seed=1)


def test_the_same_seed_twice_and_another(minimind: Backbone) -> None:
    def tensors(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, float], Any]:
        run = cuelight.tune("prompt-tuning", backbone=minimind, data=reviews(), seed=seed, **FAST)
        assert run.prompt.method.config.init_seed == seed
        history = run.training.history if run.training else []
        return {k: v.clone() for k, v in run.prompt.method.state_dict().items()}, run.metrics, history

    one, two, other = tensors(5), tensors(5), tensors(6)
    assert one[1:] == two[1:]
    assert all(torch.equal(value, two[0][name]) for name, value in one[0].items())
    assert not torch.equal(one[0]["prompt"], other[0]["prompt"])


FORKS = multiprocessing.get_context("forkserver")  # a fresh process in milliseconds, torch already imported
FORKS.set_forkserver_preload(["cuelight.tuning", "cuelight.methods.base", "sklearn.datasets"])


def child(data: Path, output: Path) -> None:
    torch.set_num_threads(1)
    options = {"steps": 24, "checkpoint_every": 1, "evaluate_every": 4}
    cuelight.tune(
        "prompt-tuning",
        backbone="minimind2-26m",
        data=data,
        output=output,
        **{**FAST, **options, "device": "cpu"},
    )


def files(folder: Path) -> tuple[bytes, dict[str, float]]:
    card = json.loads((folder / "cuelight.json").read_text())
    return (folder / "prompt.safetensors").read_bytes(), card["metrics"]


def test_killed_and_run_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    reviews().to_csv(tmp_path / "reviews.csv", index=False)

    def start(output: str) -> BaseProcess:
        process = FORKS.Process(target=child, args=(tmp_path / "reviews.csv", tmp_path / output))
        process.start()
        return process

    whole = start("whole")
    log, kills = tmp_path / "killed" / "training" / "log.jsonl", 0
    for lines in (3, 9, 15):
        process = start("killed")
        while process.is_alive():
            if log.exists() and log.read_text().count("\n") >= lines:
                process.kill()
            time.sleep(0.003)
        process.join()
        kills += process.exitcode == -9
    last = start("killed")
    for process in (whole, last):
        process.join(100)
        assert process.exitcode == 0
    assert kills >= 2
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {
        p.name for p in (tmp_path / "whole").iterdir()
    }


def test_killed_while_the_artifact_moves_into_place(minimind: Backbone, tmp_path: Path) -> None:
    first = cuelight.tune("prompt-tuning", backbone=minimind, data=reviews(), output=tmp_path, **FAST)
    expected = files(tmp_path)
    half = tmp_path / ".artifact"
    half.mkdir()
    (tmp_path / "cuelight.json").rename(half / "cuelight.json")  # as a kill between two renames leaves it
    (tmp_path / "..artifact.abc.tmp").mkdir()
    again = cuelight.tune("prompt-tuning", backbone=minimind, data=reviews(), output=tmp_path, **FAST)
    assert again.metrics == first.metrics
    assert files(tmp_path) == expected
    assert {p.name for p in tmp_path.iterdir()} == {"cuelight.json", "prompt.safetensors", "training"}


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("it trained or measured again")

    for name in ("train", "evaluate"):
        monkeypatch.setattr(f"cuelight.tuning.{name}", fail)


def test_an_output_that_holds_something(
    minimind: Backbone, t5: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(**change: Any) -> Run:
        options = {"backbone": minimind, "data": reviews(), "output": tmp_path / "run", **FAST, **change}
        return cuelight.tune("prompt-tuning", **options)

    first = go()
    expected = files(tmp_path / "run")
    with monkeypatch.context() as patch:
        no_training(patch)
        again = go()
    assert again.metrics == first.metrics
    assert again.training == first.training
    assert again.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert again.prompt.predict(["fine"], probabilities=True) == first.prompt.predict(
        ["fine"], probabilities=True
    )
    assert go(clip=1.0).metrics == first.metrics  # a default, said aloud: the same run
    for change, says in (
        ({"length": 7}, "holds another run"),
        ({"data": reviews(40)}, "holds another run"),
        ({"backbone": t5}, "holds another run"),
        ({"steps": 4}, "steps=3.* this one has steps=4"),
        ({"warmup": 0.0}, "warmup=0.06.* this one has warmup=0.0"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            go(**change)
        assert "\n" not in str(caught.value)
        assert "--restart" in str(caught.value)
        assert (tmp_path / "run" / "prompt.safetensors").read_bytes() == expected[0]
    changed = go(restart=True, length=7, steps=4)
    assert changed.training is not None
    assert changed.training.steps == 4
    assert cuelight.load(tmp_path / "run", backbone=minimind).method.config.length == 7
    assert cuelight.tune(
        "zero-shot", backbone=minimind, data=reviews(), output=tmp_path / "run", restart=True, max_length=32
    ).metrics
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {"cuelight.json", "training"}
    (tmp_path / "run" / "cuelight.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"cuelight\.json is damaged"):
        go()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for restart in (False, True):
        with pytest.raises(ConfigError, match=r"holds other files \(notes\.txt\)"):
            go(restart=restart)
    with pytest.raises(ConfigError, match="is a file"):
        go(output=tmp_path / "run" / "notes.txt")


def test_what_does_not_work_is_said_in_one_line(minimind: Backbone, tmp_path: Path) -> None:
    frame = reviews()
    splits = read(frame)
    (tmp_path / "empty.csv").write_text("text,label\n")
    cases: list[tuple[dict[str, Any], type[CuelightError], str]] = [
        ({"data": tmp_path / "none.csv"}, DataError, "none.csv"),
        ({"data": tmp_path / "empty.csv"}, DataError, "empty.csv"),
        ({"data": frame.drop(columns="label")}, CuelightError, "label"),
        ({"data": frame[frame.label == "good"]}, DataError, "good"),
        ({"label": "lable"}, CuelightError, "lable"),
        ({"data": splits, "shots": 4}, ConfigError, "shots: has no effect on data that is read already"),
        ({"method": "prompt-tunin"}, ConfigError, "did you mean 'prompt-tuning'"),
        ({"lenght": 4}, ConfigError, r"lenght: no such option \(did you mean 'length'\?\)"),
        ({"length": 0}, ConfigError, "length: is 0"),
        ({"seed": -1}, ConfigError, "seed: is -1"),
        ({"seed": "one"}, ConfigError, "seed: is 'one'"),
        ({"steps": 3, "epochs": 1}, ConfigError, "contradict"),
        ({"template": "no field"}, ConfigError, "template: has no {text}"),
        ({"label_words": {"goood": "x"}}, ConfigError, "'goood' is no class"),
        (
            {"backbone": "dinov2-small"},
            CuelightError,
            "is a vision-encoder model; prompt-tuning needs causal",
        ),
        ({"backbone": "minilm-l6"}, CuelightError, "is a text-encoder model; prompt-tuning needs causal"),
        (
            {"method": "linear-probe", "data": [{"text": f"a{k}", "target": "b"} for k in range(9)]},
            ConfigError,
            "linear-probe does classification, multilabel, not generation",
        ),
    ]
    for change, error, says in cases:
        options = {"method": "prompt-tuning", "backbone": minimind, "data": frame, "device": "cpu", **change}
        with pytest.raises(error, match=says) as caught:
            cuelight.tune(**options)
        assert "\n" not in str(caught.value), change


def test_validation_during_training_is_capped(minimind: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = reviews(900)
    frame["split"] = ["validation" if k % 3 == 0 else "train" if k % 3 == 1 else "test" for k in range(900)]
    splits = read(frame, max_test=6)
    watched = _watched(splits)
    assert (len(splits.validation), len(watched)) == (300, 200)
    assert sum(watched["label"]) == 100
    assert watched["row"] == _watched(read(frame, max_test=6))["row"]
    assert len(_watched(read(frame, max_validation=250))) == 250
    assert len(_watched(read(frame, max_validation=20))) == 20
    seen: list[int] = []
    from cuelight import tuning

    plain = tuning.evaluate

    def count(method: Any, items: Any, **options: Any) -> Any:
        seen.append(len(items))
        return plain(method, items, **options)

    monkeypatch.setattr(tuning, "evaluate", count)
    run = cuelight.tune("prompt-tuning", backbone=minimind, data=splits, **{**FAST, "steps": 1})
    assert seen == [200, 6]
    assert "validation during training: 200 of 300 rows (max_validation)" in run.report


def test_edges(minimind: Backbone) -> None:
    frame = reviews(12)
    run = cuelight.tune(
        "prompt-tuning", backbone=minimind, data=frame, **{**FAST, "steps": None, "epochs": 1}
    )
    assert run.training is not None
    assert run.training.steps >= 1
    tiny = frame.head(4).assign(split=["train", "train", "test", "test"])
    run = cuelight.tune("prompt-tuning", backbone=minimind, data=tiny, **FAST)
    check(run, ["fine"])
    assert run.prompt.predict([]) == []
    with pytest.raises(DataError, match="texts: is one string"):
        run.prompt.predict("fine")
    for wrong, says in (([3], "number 0 is 3; give a string"), (["a", " "], "number 1 is empty")):
        with pytest.raises(DataError, match=says):
            run.prompt.predict(wrong)
    with pytest.raises(DataError, match="rows: there are none"):
        run.prompt.evaluate([])
    assert TrainConfig().seed == 0
