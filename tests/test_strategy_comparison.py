"""Comparing strategies: reading questions, drawing them, the table, resuming; and the three commands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pandas as pd
import pytest

from cuelight import lm
from cuelight.cli.main import run
from cuelight.errors import ConfigError, CuelightError, DataError
from cuelight.methods.strategy import DEMOS, Trace
from cuelight.strategy_comparison import Question, compare_strategies, read_questions


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Twelve questions, and four worked ones to learn from."""
    rows = [{"question": f"What is {k} + {k}?", "answer": str(2 * k), "split": "test"} for k in range(12)]
    rows += [
        {
            "question": f"What is {k} + 1?",
            "answer": str(k + 1),
            "rationale": f"{k} + 1 = {k + 1}.",
            "split": "train",
        }
        for k in range(20, 24)
    ]
    path = tmp_path / "sums.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def doubling(request: lm.Request) -> str:
    """A scripted model (control flow only): right where the question is asked with an example, else it says 0."""
    number = int(request.text.rsplit("What is", 1)[1].split("+")[0])
    return (
        f"The answer is {2 * number}."
        if "What is 2" in request.text.rsplit("What is", 1)[0]
        else "The answer is 0."
    )


def test_questions_come_from_a_table(sums: Path, tmp_path: Path) -> None:
    found = read_questions(sums)
    assert len(found.asked) == 12 and len(found.examples) == 4 and found.asked[0].kind == "number"
    assert found.examples[0].rationale == "20 + 1 = 21."
    first, shots = found.drawn(0, 5, 2)
    assert (first, shots) == found.drawn(0, 5, 2) and len(first) == 5 and len(shots) == 2
    assert found.drawn(1, 5, 2)[0] != first
    table = [
        {"Question": "Big?", "Answer": "yes", "context": "An elephant."},
        {"Question": "Small?", "Answer": "no"},
    ]
    pd.DataFrame(table).to_json(tmp_path / "q.jsonl", orient="records", lines=True)
    asked = read_questions(tmp_path / "q.jsonl").asked
    assert asked[0].text == "An elephant.\nBig?" and asked[0].kind == "yes-no"
    pd.DataFrame([{"question": "?", "answer": "B", "choices": "A) five;B) six"}]).to_csv(
        tmp_path / "c.csv", index=False
    )
    assert read_questions(tmp_path / "c.csv").asked == (Question("?", "B", "choice", ("A) five", "B) six")),)
    rest, others = read_questions(sums).drawn(0, 12, 9)
    assert len(rest) == 12 and len(others) == 4  # examples are never what is asked


def test_benchmarks_are_read_from_the_folder_of_the_public_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gen").mkdir()
    rows = [{"task": "navigate", "input": "Do you return?", "target": "Yes", "split": "test"}]
    rows += [{"task": "dates", "input": "Which?\nOptions:\n(A) x\n(B) y", "target": "(B)", "split": "test"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "gen" / "bbh.parquet")
    prompt = "canary\n-----\nReturn?\n\nQ: Do you?\nA: Let's think step by step.\nLeft, right. So the answer is No."
    pd.DataFrame([{"task": "navigate", "cot_prompt": prompt}]).to_parquet(
        tmp_path / "gen" / "bbh_cot_prompts.parquet"
    )
    monkeypatch.setenv("CUELIGHT_DATA", str(tmp_path))
    found = read_questions("bbh/navigate")
    assert found.asked[0].kind == "yes-no" and found.examples[0].answer == "No"
    assert found.examples[0].rationale == "Let's think step by step. Left, right."
    assert [q.kind for q in read_questions("bbh").asked] == ["yes-no", "choice"]
    for wrong, said in {
        "bbh/navigat": "data: bbh has no task 'navigat' (did you mean 'navigate'?)",
        "gsm8k": f"data: {tmp_path}/gen/gsm8k.parquet is not there",
        "gsm9k": "data: 'gsm9k' is no file and no benchmark (did you mean 'gsm8k'?)",
    }.items():
        with pytest.raises(DataError) as caught:
            read_questions(wrong)
        assert str(caught.value).startswith(said)
    monkeypatch.delenv("CUELIGHT_DATA")
    with pytest.raises(DataError, match="CUELIGHT_DATA is not set"):
        read_questions("babi")


def test_strategies_are_measured_on_the_same_questions(sums: Path, tmp_path: Path) -> None:
    model = lm.scripted(doubling, cache=str(tmp_path / "cache"))
    wanted = {
        "lm": model, "data": sums, "seeds": 2, "questions": 6, "shots": 2, "concurrency": 4,
        "options": {"self-consistency": {"samples": 3}},
    }  # fmt: skip
    found = compare_strategies("zero-shot,few-shot,self-consistency", **wanted, output=tmp_path / "out")
    by = {(r["method"], r["seed"]): r for r in found.runs}
    assert (
        by["zero-shot", 0]["metrics"]["accuracy"] <= 1 / 6 and by["few-shot", 1]["metrics"]["accuracy"] == 1
    )
    assert by["few-shot", 0]["calls"] == 1 and by["self-consistency", 0]["calls"] == 3
    spent = model.meter.spent.calls
    again = compare_strategies("zero-shot,few-shot,self-consistency", **wanted)
    assert model.meter.spent.calls == spent  # all of it was in the cache
    strip = [{k: v for k, v in r.items() if k != "seconds"} for r in found.runs]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in again.runs]
    found.save(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert list(table["method"]) == ["zero-shot", "few-shot", "self-consistency"] and list(
        table["seeds"]
    ) == [2, 2, 2]
    body = json.loads((tmp_path / "out" / "table.json").read_text())
    assert body["questions"] == 6 and len(body["runs"]) == 6
    assert "| few-shot | 2 | 1.000" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / "out" / "traces" / "few-shot-s0.jsonl").read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[0])["strategy"] == "few-shot"


def test_a_killed_comparison_goes_on_from_the_cache(sums: Path, tmp_path: Path) -> None:
    budget = lm.Budget(calls=5)
    with pytest.raises(lm.BudgetError):
        compare_strategies(
            "few-shot",
            lm=lm.scripted(doubling, cache=str(tmp_path), budget=budget),
            data=sums,
            seeds=1,
            questions=10,
            shots=2,
        )
    model = lm.scripted(doubling, cache=str(tmp_path))
    found = compare_strategies("few-shot", lm=model, data=sums, seeds=1, questions=10, shots=2)
    assert model.meter.spent.calls == 5 and found.runs[0]["metrics"]["accuracy"] == 1


def test_an_error_of_one_question_ends_the_others_before_their_next_call(sums: Path) -> None:
    asked: list[str] = []

    def slow(request: lm.Request) -> str:
        asked.append(request.text)
        time.sleep(0.02)
        return "no step.\nAction 1: nothing"

    model = lm.scripted(slow, budget=lm.Budget(calls=30))
    with pytest.raises(lm.BudgetError):
        compare_strategies(
            "react",
            lm=model,
            data=sums,
            seeds=1,
            questions=12,
            concurrency=6,
            options={"react": {"steps": 7}},
        )
    seen = len(asked)
    time.sleep(0.3)
    assert len(asked) == seen == 30


def test_what_serves_all_questions_is_prepared_once(sums: Path, tmp_path: Path) -> None:
    model = lm.scripted(lambda r: "The answer is 2.", cache=str(tmp_path))
    found = compare_strategies(
        "auto-cot",
        lm=model,
        data=sums,
        seeds=1,
        questions=5,
        shots=4,
        options={"auto-cot": {"encoder": "words", "count": 2}},
    )
    assert found.runs[0]["prepared"] == 4 and found.runs[0]["calls"] == 1
    assert model.meter.spent.calls == 4 + 5


def test_examples_go_to_strategies_that_take_them_in_this_form(sums: Path) -> None:
    seen: list[str] = []
    model = lm.scripted(lambda r: seen.append(r.text) or "The answer is 2.")
    compare_strategies("chain-of-draft", lm=model, data=sums, seeds=1, questions=1, shots=2)
    assert "What is 2" not in seen[0].split("Q: What is")[0]  # its drafts are not rationales
    compare_strategies("chain-of-thought", lm=model, data=sums, seeds=1, questions=1, shots=0)
    assert DEMOS[0].question in seen[1]


def test_mistakes_are_found_before_anything_is_asked(sums: Path) -> None:
    model = lm.scripted(doubling)
    for names, more, said in [
        (
            "zero-shot,cain-of-thought",
            {},
            "strategy: 'cain-of-thought' is unknown (did you mean 'chain-of-thought'?)",
        ),
        ("", {}, "strategies: none given"),
        ("zero-shot", {"calibrat": True}, "zero-shot.calibrat: no such option (did you mean 'calibrate'?)"),
        ("zero-shot", {"options": {"rag": {}}}, "options: 'rag' is not compared"),
        ("zero-shot,rag", {}, "rag.documents:"),
        ("zero-shot", {"seeds": []}, "seeds: none given"),
    ]:
        with pytest.raises(ConfigError) as caught:
            compare_strategies(names, lm=model, data=sums, **more)
        assert str(caught.value).startswith(said), str(caught.value)
    assert model.meter.spent.calls == 0
    with pytest.raises(CuelightError, match="has no column 'answer'"):
        read_questions(_without_answers(sums))


def _without_answers(sums: Path) -> Path:
    path = sums.with_name("blank.csv")
    pd.read_csv(sums).drop(columns="answer").to_csv(path, index=False)
    return path


# ---- the commands, with a real model ----------------------------------------------------------------------------


def test_strategies_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["strategies"]) == 0
    text = capsys.readouterr().out
    assert (
        text.index("Reasoning and logic")
        < text.index("tree-of-thoughts")
        < text.index("Reduce hallucination")
    )
    assert "graph-of-thoughts" in text and "[training]" in text
    assert run(["strategies", "chain-of-code"]) == 0
    assert "arXiv     https://arxiv.org/abs/2312.04474" in capsys.readouterr().out
    assert run(["strategies", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 41
    assert run(["strategies", "chain-of-cod"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: strategy: 'chain-of-cod' is unknown (did you mean 'chain-of-code'?)"
    )
    assert run(["solve", "tree-of-thoughts", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--breadth" in text and "--propose" not in text and "--max-calls" in text


def test_solve_answers_and_keeps_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.json"
    command = [
        "solve",
        "system-2-attention",
        "How many cows are 2 and 3 cows?",
        "--lm",
        "minimind2-26m",
        "--no-cache",
    ]
    assert run([*command, "--max-tokens", "12", "--answer", "text", "--trace", str(trace)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("answer") and "calls       2 (0 from the cache)" in out
    kept = Trace.read(trace)
    assert kept.calls == 2 and kept.usage.completion_tokens <= 24 and kept.options == {"max_tokens": 12}
    assert run([*command, "--max-calls", "1", "--max-tokens", "4", "--trace", str(trace)]) == 2
    assert capsys.readouterr().err.startswith("error: budget: calls:")
    assert Trace.read(trace).calls == 1 and "budget" in Trace.read(trace).error  # what was done is kept


def test_compare_strategies_writes_table_plot_and_traces(
    sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "compare-strategies",
        "zero-shot,self-consistency",
        "--lm",
        "minimind2-26m",
        "--data",
        str(sums),
        "--no-cache",
    ]
    sizes = [
        "--seeds",
        "1",
        "--questions",
        "2",
        "--shots",
        "1",
        "--max-tokens",
        "8",
        "--set",
        "self-consistency.samples=2",
    ]
    assert run([*command, *sizes, "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "self-consistency" in out and "tokens written" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "table.csv",
        "table.json",
        "table.md",
        "plot.png",
        "traces",
    }
    assert run([*command, "--set", "self-consistency.sample=2"]) == 2
    assert "self-consistency.sample: no such option (did you mean 'samples'?)" in capsys.readouterr().err
