"""The command line: real runs in processes of their own, mistakes in this one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import cuelight
from cuelight.cli.main import run
from cuelight.cli.options import DATA_HELP
from cuelight.data.builtin import load_builtin
from cuelight.methods.base import all_cards
from cuelight.methods.cards import method_names, read_card

BACKBONE = "minimind2-26m"
QUICK = ["--backbone", BACKBONE, "--shots", "4", "--steps", "2", "--batch-size", "4", "--max-length", "48"]
QUICK += ["--max-test", "8", "--max-validation", "4"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def shell(*words, cwd, stdin="", **environment):
    """``cuelight WORDS`` in a process of its own."""
    command = [sys.executable, "-m", "cuelight.cli.main", *map(str, words)]
    env = {**ENVIRONMENT, **environment}
    return subprocess.run(command, cwd=cwd, input=stdin, env=env, capture_output=True, text=True, timeout=150)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A small CSV file of real film reviews."""
    frame = load_builtin("film-reviews").frame
    frame = frame[frame["label"].notna()].groupby("label").head(30)[["text", "label"]]
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def tuned(reviews, tmp_path_factory):
    """A finished ``cuelight tune`` and the folder it ran in."""
    where = tmp_path_factory.mktemp("tuned")
    words = ["tune", "prompt-tuning", "--data", reviews, "--length", "5", "--output", "run", *QUICK]
    return where, words, shell(*words, cwd=where)


def refused(capsys, *words):
    """The one line on stderr of a command that has to fail with exit code 2."""
    code = run([str(w) for w in words])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


# real runs


def test_tune_prints_figures_and_what_to_type_next(tuned):
    where, _, done = tuned
    assert done.returncode == 0, done.stderr
    assert "classification data from" in done.stdout
    for word in ("accuracy", "trained values  2,560", "training time", "peak memory", "saved in        run"):
        assert word in done.stdout
    for line in ("cuelight predict run", "cuelight evaluate run", "cuelight compare", "cuelight plot run"):
        assert f"  {line}" in done.stdout
    learned, figures = done.stdout.index("template: "), done.stdout.index("trained values")
    assert done.stdout.index("train: ") < learned < done.stdout.index("label words: ") < figures
    assert "compare zero-shot,prompt-tuning" in done.stdout
    assert (where / "run" / "cuelight.json").exists()


def test_a_partner_runs_on_the_same_backbone():
    from cuelight.cli.tune import _partner

    assert _partner("linear-probe", "text-encoder", "classification") == "full-finetuning"
    assert _partner("full-finetuning", "text-encoder", "classification") == "linear-probe"
    assert _partner("zero-shot", "causal", "generation") == "prompt-tuning"
    assert _partner("anything", "audio", "classification") is None


def test_stderr_of_a_run_holds_progress_only(tuned):
    lines = tuned[2].stderr.splitlines()
    assert lines
    assert all(line.startswith(("prompt-tuning  ", "testing")) for line in lines), lines


def test_predict_answers_as_python_does(tuned, reviews):
    where, _, _ = tuned
    texts = ["a wonderful film", "dreadful, a waste of time", "so so"]
    done = shell("predict", "run", *texts, "--probabilities", "--quiet", cwd=where)
    assert done.returncode == 0, done.stderr
    found = cuelight.load(where / "run").predict(texts, probabilities=True)
    for line, answer in zip(done.stdout.splitlines(), found, strict=True):
        name, *chances = line.split("\t")
        assert name == answer["answer"]
        for chance in chances:
            label, _, value = chance.partition("=")
            assert float(value) == pytest.approx(answer["probabilities"][label], abs=2e-4)


def test_predict_reads_lines_and_tables(tuned, reviews, capsys, monkeypatch):
    where, _, _ = tuned
    piped = shell("predict", "run", cwd=where, stdin="good\n\nbad\tor not\n")
    assert len(piped.stdout.splitlines()) == 2, piped.stderr
    monkeypatch.chdir(where)
    assert run(["predict", "run", "--data", str(reviews), "--output", "out.csv", "--quiet"]) == 0
    rows = list(csv.DictReader(open("out.csv", encoding="utf-8")))  # noqa: SIM115
    assert len(rows) == 60
    assert list(rows[0]) == ["text", "label", "prediction"]
    assert run(["predict", "run", "--data", str(reviews), "--output", "out.jsonl", "--probabilities"]) == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert [line["prediction"] for line in lines] == [row["prediction"] for row in rows]
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    for name in ("out.txt", "out"):
        assert "output" in refused(capsys, "predict", "run", "a", "--output", name)


def test_tables_that_predict_and_evaluate_meet(tuned, capsys, monkeypatch):
    where, _, _ = tuned
    monkeypatch.chdir(where)
    used = {"text": "good", "prediction": "mine", "probabilities": None, "p(positive)": 1, "tags": ["a"]}
    Path("used.jsonl").write_text(json.dumps(used) + "\n", "utf-8")
    words = ["predict", "run", "--data", "used.jsonl", "--probabilities", "--quiet"]
    assert run([*words, "--output", "used-out.jsonl"]) == 0
    line = json.loads(Path("used-out.jsonl").read_text("utf-8"))
    assert line | used == line
    assert set(line) - set(used) == {"prediction_", "probabilities_"}
    assert run([*words, "--output", "used-out.csv"]) == 0
    assert "the new one is 'p(positive)_'" in capsys.readouterr().out
    assert "'tags' holds a list, not text" in refused(capsys, *words, "--text", "tags")
    assert "row 1 has an empty 'probabilities'" in refused(capsys, *words, "--text", "probabilities")
    assert "text_b: the run learned from single" in refused(capsys, *words, "--text-b", "tags")
    rows = [f"a {k},b {k},{'positive' if k % 2 else 'negative'}" for k in range(20)]
    Path("pairs.csv").write_text("\n".join(["premise,hypothesis,label", *rows]), "utf-8")
    assert "--text" in refused(capsys, "evaluate", "run", "--data", "pairs.csv")
    assert run(["evaluate", "run", "--data", "pairs.csv", "--text", "premise", "--quiet"]) == 0


def test_evaluate_gives_the_figures_of_the_run(tuned, reviews, capsys, monkeypatch):
    where, _, _ = tuned
    monkeypatch.chdir(where)
    card = json.loads((where / "run" / "cuelight.json").read_text("utf-8"))
    assert run(["evaluate", "run", "--data", str(reviews), "--max-test", "8", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 8
    assert found["metrics"] == pytest.approx(card["metrics"])


def test_plot_draws_the_curve_and_leaves_the_run_whole(tuned, reviews, capsys, monkeypatch):
    where, words, _ = tuned
    monkeypatch.chdir(where)
    assert run(["plot", "run"]) == 0
    image = Path(capsys.readouterr().out.strip())
    assert image.read_bytes().startswith(b"\x89PNG")
    assert run([str(w) for w in words]) == 0  # the finished run is still taken for one


def test_ctrl_c_says_how_to_go_on(reviews, tmp_path):
    words = ["tune", "prompt-tuning", "--data", reviews, *QUICK, "--steps", "100000", "--output", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cuelight.cli.main", *map(str, words)],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "run" / "training" / "training.safetensors"
    for _ in range(600):
        if log.exists():
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "run the same command again" in error.splitlines()[-1]
    assert "Traceback" not in error


# mistakes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tun"], "did you mean 'tune'?"),
        (["tune", "dpt"], "did you mean 'dept'?"),
        (["tune", "--backbone", "x"], "method: comes before its options"),
        (["tune", "dept", "--lenght", "3"], "did you mean '--length'?"),
        (["tune", "dept"], "--backbone: is missing"),
        (["methods", "dpt"], "did you mean 'dept'?"),
        (["compare", "dept,zeroshot"], "did you mean 'zero-shot'?"),
        (["backbones", "--fetch", "minimind"], "did you mean 'minimind2-26m'?"),
        (["completion", "bsh"], "did you mean 'bash'?"),
        (["plot", "nowhere"], "no such folder"),
        (["predict", "nowhere", "hi"], "no such folder"),
        (["evaluate", "nowhere", "--data", "film-reviews"], "no such folder"),
    ],
)
def test_wrong_words(capsys, words, expected):
    assert expected in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--length", "0"], "length: is 0; "),
        (["--length", "many"], "length: is 'many'; give a whole number"),
        (["--learning-rate", "fast"], "learning_rate: is 'fast'; give a number"),
        (["--schedule", "liner"], "schedule: is 'liner'; "),
        (["--steps", "2", "--epochs", "1"], "contradict"),
        (["--label-words", "negative"], "label_words: is 'negative'; give pairs"),
        (["--label-words", "negativ=bad"], "did you mean 'negative'?"),
        (["--shots", "0"], "shots"),
        (["--task", "classificaton"], "did you mean 'classification'?"),
        (["--text", "review"], "no column 'review'"),
        (["--template", "no place"], "template: "),
        (["--data", "nothing.csv"], "no file"),
        (["--backbone", "minimind"], "did you mean 'minimind2-26m'?"),
        (["--backbone", "./nowhere"], "no such folder"),
        (["--device", "cuda:77"], "device: "),
        (["--dtype", "float99"], "dtype: "),
    ],
)
def test_wrong_values_write_nothing(capsys, reviews, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "tune", "prompt-tuning", "--data", reviews, *QUICK, *words, "--output", "run")
    assert expected in line
    assert not list(tmp_path.iterdir())


def test_unreadable_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.parquet").write_bytes(b"\x00\x01not parquet")
    Path("image.csv").write_bytes(bytes(range(256)) * 20)
    for name in ("broken.parquet", "image.csv"):
        refused(capsys, "tune", "prompt-tuning", "--data", name, *QUICK, "--output", "run")
    assert not Path("run").exists()


def test_no_network(reviews, tmp_path):
    words = ["tune", "prompt-tuning", "--data", reviews, *QUICK, "--backbone", "nobody/nothing", "--quiet"]
    code = (
        "import time; time.sleep = lambda _: None; from cuelight.cli.main import main; main()"  # hub retries
    )
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=tmp_path, env={**ENVIRONMENT, **hub}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the model hub can not be reached" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_another_run(capsys, tuned, monkeypatch):
    where, words, _ = tuned
    monkeypatch.chdir(where)
    before = (where / "run" / "cuelight.json").read_bytes()
    assert "holds another run" in refused(capsys, *words, "--length", "6")
    assert (where / "run" / "cuelight.json").read_bytes() == before


def test_a_defect_is_called_one(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("two words")

    monkeypatch.setattr("cuelight.cli.lists.method_names", broken)
    assert run(["methods"]) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: two words; this is a defect of cuelight" in error
    assert error.count("\n") == 1


def test_out_of_memory_says_what_to_lower(capsys, monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("cuelight.cli.lists.method_names", full)
    assert "--batch-size" in refused(capsys, "methods")


# lists, help, completion


def test_help_does_not_wait_for_torch(tmp_path):
    for words in (["--help"], ["tune", "--help"], ["backbones"], ["methods"], ["--version"]):
        code = "import sys; from cuelight.cli.main import run; c = run(sys.argv[1:]); "
        code += "sys.exit(99 if 'torch' in sys.modules else c)"
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, (words, done.stderr)
    began = time.monotonic()
    shell("--help", cwd=tmp_path)
    assert time.monotonic() - began < 1


def test_help_of_a_method_is_its_page(capsys):
    assert run(["tune", "dept", "--help"]) == 0
    out = capsys.readouterr().out
    for word in (
        "arXiv 2309.05173",
        "The method's own:",
        "Training:",
        "Task:",
        "Data:",
        "Run:",
        "--match-length",
    ):
        assert word in out
    assert "default: 100" in out
    assert "length * width" in out
    assert "cuelight tune dept --backbone" in out


def test_every_method_has_a_command(capsys):
    for name in method_names():
        assert run(["tune", name, "--help"]) == 0
        assert read_card(name)[0].name == name


def test_every_data_option_is_explained():
    from cuelight.cli.common import data_settings

    assert [s.name for s in data_settings()] == list(DATA_HELP) or {s.name for s in data_settings()} == set(
        DATA_HELP
    )
    assert all(s.help for s in data_settings())


def test_cards_read_from_source_are_the_real_ones(capsys):
    assert run(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps([asdict(c) for c in all_cards()]))
    assert run(["methods", "dept"]) == 0
    assert "low-rank" in capsys.readouterr().out


def test_data_report(capsys, reviews):
    assert run(["data", str(reviews), "--shots", "2", "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 rows" in out
    assert "  ->  " in out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["tu"], "tune"),
        (["tune", "pro"], "prompt-tuning"),
        (["predict", "run", "--backbone", "minim"], BACKBONE),
        (["compare", "zero-shot,pro"], "zero-shot,prompt-tuning"),
        (["data", "film"], "film-reviews"),
    ],
)
def test_completion(tmp_path, typed, expected):
    words = {"COMP_WORDS": " ".join(["cuelight", *typed]), "COMP_CWORD": str(len(typed))}
    done = shell(cwd=tmp_path, _CUELIGHT_COMPLETE="bash_complete", **words)
    assert f"plain,{expected}" in done.stdout.splitlines()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_script(capsys, name):
    assert run(["completion", name]) == 0
    assert "_CUELIGHT_COMPLETE" in capsys.readouterr().out


def test_a_closed_pipe_is_quiet(tmp_path):
    command = f"{sys.executable} -m cuelight.cli.main tune --help | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
