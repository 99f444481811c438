"""Found prompts in other tools' forms, byte for byte; our searches as an optimiser of DSPy."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuelight
from cuelight import lm
from cuelight.errors import ArtifactError, ConfigError
from cuelight.text_export import TextPrompt, text_prompt
from faulty_server import Faulty

AWKWARD = (
    'Say {"a": {text}} or {{text}} {%x%} {# no #}{{text}}} }}\r\n\ttrailing \u2028 "quotes" \\n {other} '
)
ROW = {"text": "some {text} and {{ 7*7 }} \\ \" '"}


def test_the_string_is_filled_by_fields_only() -> None:
    prompt = TextPrompt(AWKWARD)
    assert prompt.sent(ROW) == AWKWARD.replace("{text}", ROW["text"])
    assert prompt.messages(ROW) == [{"role": "user", "content": prompt.sent(ROW)}]
    two = TextPrompt("{a}-{b}", ("a", "b"))
    assert two.sent({"a": "{b}", "b": 2}) == "{b}-2"  # what a row holds is no field
    with pytest.raises(ConfigError, match="b: is missing from the row"):
        two.sent({"a": 1})


def test_files_hold_it_exactly(tmp_path: Path) -> None:
    prompt = TextPrompt(AWKWARD)
    assert prompt.save("text", tmp_path / "p.txt").read_bytes() == AWKWARD.encode()
    (message,) = json.loads(prompt.save("messages", tmp_path / "m.json").read_text(encoding="utf-8"))
    assert message == {"role": "user", "content": AWKWARD}
    with pytest.raises(ConfigError, match=r"form: 'promtfoo' is unknown .did you mean 'promptfoo'"):
        prompt.save("promtfoo", tmp_path / "x")
    with pytest.raises(ConfigError, match="messages is for chats"):
        TextPrompt("a", chat=False).save("messages", tmp_path / "x")


def rendered(template: str, row: dict[str, str]) -> str:
    """As promptfoo's template language has it; Jinja's rules are the same for what is used here."""
    environment = jinja2.Environment(keep_trailing_newline=True, newline_sequence="\n", autoescape=False)
    return environment.from_string(template).render(row)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["{", "}", "{{", "{%", "{#", "#}", "{text}", "%}", "a", " ", "\n", '"', "-"]),
        min_size=1,
    )
)
def test_promptfoo_reads_the_same(pieces: list[str]) -> None:
    prompt = TextPrompt("".join(pieces))
    assert rendered(prompt._nunjucks(), {"text": "R {{ x"}) == prompt.sent({"text": "R {{ x"})


def test_a_promptfoo_configuration(tmp_path: Path) -> None:
    prompt = TextPrompt(AWKWARD, model="http://127.0.0.1:9/v1#small")
    folder = prompt.save("promptfoo", tmp_path / "chat", examples=[{"text": "x", "answer": "good"}])
    config = json.loads((folder / "promptfooconfig.yaml").read_text(encoding="utf-8"))
    assert config["prompts"] == ["file://prompt.json"]
    assert config["providers"][0]["id"] == "openai:chat:small"
    assert config["tests"] == [{"vars": {"text": "x"}, "assert": [{"type": "icontains", "value": "good"}]}]
    (message,) = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    assert message["role"] == "user" and "{{ text }}" in message["content"]
    plain = TextPrompt('Review: {text}\nIt "was" ', chat=False).save("promptfoo", tmp_path / "plain")
    if shutil.which("node"):
        script = "process.stdout.write(require(process.argv[1])())"
        said = subprocess.run(
            ["node", "-e", script, str(plain / "prompt.cjs")], capture_output=True, check=True, timeout=60
        )
        assert said.stdout.decode() == 'Review: {{ text }}\nIt "was" '
    with pytest.raises(ConfigError, match="which promptfoo reads twice"):
        TextPrompt("{{ a {text}", chat=False).save("promptfoo", tmp_path / "x")


def test_runs_and_what_was_found(tmp_path: Path) -> None:
    found = cuelight.Found("Do it: {text}", 1.0, [], {})
    assert text_prompt(found) == TextPrompt("Do it: {text}")
    assert cuelight.text_prompt("Do {x}", fields=["x"], chat=False) == TextPrompt("Do {x}", ("x",), False)
    (tmp_path / "promptor.json").write_text(json.dumps({"config": {"fields": ["name"]}, "target": "m"}))
    with pytest.raises(ArtifactError, match="has no prompt yet"):
        text_prompt(tmp_path)
    (tmp_path / "prompt.txt").write_bytes(b"Greet {name}.\r\n")
    assert text_prompt(tmp_path) == TextPrompt("Greet {name}.\r\n", ("name",), True, "m")
    with pytest.raises(ConfigError, match="a dict holds no text prompt"):
        text_prompt({})


# ---- DSPy ------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Faulty]:
    made = Faulty()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def dspy(server: Faulty) -> Any:
    """DSPy itself, with a model behind the server (scripted: this is about what is sent and kept)."""
    module = pytest.importorskip("dspy")

    def say(body: dict[str, Any]) -> str:
        whole = " ".join(m["content"] for m in body["messages"])
        hits = sum(word in whole for word in ("Be brief", "one word"))
        question = body["messages"][-1]["content"]
        right = hits == 2 or (hits == 1 and "0" in question)
        return f"[[ ## answer ## ]]\n{'yes' if right else 'no'}\n\n[[ ## completed ## ]]"

    server.say = say
    model = module.LM("openai/small", api_base=server.spec.partition("#")[0], api_key="x", cache=False)
    with module.context(lm=model):
        yield module


def test_an_optimiser_of_dspy(dspy: Any, server: Faulty) -> None:
    from cuelight.dspy_bridge import Optimiser, instructions, messages

    class Ask(dspy.Signature):  # type: ignore[misc, name-defined]
        """Answer the question."""

        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    examples = [
        dspy.Example(question=f"is it {n}?", answer="yes").with_inputs("question") for n in (10, 2, 30, 4)
    ]

    def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
        return bool(example.answer == prediction.answer)

    student = dspy.Predict(Ask)
    replies = iter(["- Be brief.", "- Be brief, say one word.", "- Worse than that.", "- Even worse."])
    writer = lm.scripted(lambda r: next(replies))
    optimiser = Optimiser(metric, lm=writer, steps_of_search=4, start_size=1, num_threads=1, seed=0)
    program = optimiser.compile(student, trainset=examples, valset=examples[:2])
    assert instructions(program) == {"self": "Be brief, say one word."}  # the best, which was not the last
    assert instructions(student) == {"self": "Answer the question."}
    record = program.cuelight["self"]
    assert (
        record["before"]["trainset"] == 0 and record["after"]["trainset"] == 1.0 == record["after"]["valset"]
    )
    assert record["scored"]["Be brief."] == 0.5 and record["spent"]["calls"] == 4
    # What is sent outside DSPy is what DSPy sends.
    program(question="is it 5?")
    assert messages(program, question="is it 5?") == server.seen[-1][1]["messages"]
    assert "Be brief, say one word." in json.dumps(server.seen[-1][1])

    same = Optimiser(lambda *_: 1.0, lm=lm.scripted(lambda r: "- Other."), steps_of_search=1, start_size=1)
    kept = same.compile(student, trainset=examples)
    assert instructions(kept) == {"self": "Answer the question."}  # a tie keeps the student's own
    pruned = Optimiser(lambda *_: 1.0, method="promptquine", min_length=1).compile(
        student, trainset=examples[:1]
    )
    assert pruned.cuelight["self"]["spent"]["scored"] > 1
    with pytest.raises(ConfigError, match="needs a model that writes"):
        Optimiser(metric)
    with pytest.raises(ConfigError, match="trainset: is empty"):
        same.compile(student, trainset=[])


def test_a_prompt_as_a_program_of_dspy(dspy: Any, server: Faulty, tmp_path: Path) -> None:
    from cuelight.dspy_bridge import Program

    server.say = lambda body: "fine"
    file = TextPrompt(AWKWARD).save("dspy", tmp_path / "p.json")
    program = Program(file)
    assert program(**ROW).answer == "fine"
    assert server.seen[-1][1]["messages"] == [
        {"role": "user", "content": AWKWARD.replace("{text}", ROW["text"])}
    ]
    program.save(tmp_path / "again.json")
    again = Program()
    again.load(tmp_path / "again.json")
    assert again(**ROW).sent == program(**ROW).sent


def test_a_run_sends_what_its_export_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cuelight.cli.main import run

    rows = [
        {"text": f"It is {word}, {n}.", "label": label}
        for n in range(6)
        for label, word in (("bad", "dull"), ("good", "warm"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard: list[lm.Request] = []
    model = lm.scripted(lambda r: heard.append(r) or "good")  # type: ignore[func-returns-value]
    options: dict[str, Any] = {"data": str(tmp_path / "rows.jsonl"), "mode": "none", "chat": True}
    tuned = cuelight.tune("promptquine", backbone=model, output=tmp_path / "run", **options)
    text = 'A "warm" {film}\nof {text}s'
    tuned.prompt.predict([text])
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "p.json"), "--as", "messages"]) == 0
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "foo"), "--as", "promptfoo"]) == 0
    assert text_prompt(tmp_path / "run").messages({"text": text}) == list(heard[-1].messages)
    assert text_prompt(tuned.prompt) == text_prompt(tmp_path / "run")
    (message,) = json.loads((tmp_path / "foo" / "prompt.json").read_text(encoding="utf-8"))
    assert rendered(message["content"], {"text": text}) == heard[-1].messages[0]["content"]
    soft = tmp_path / "soft"
    cuelight.tune(
        "prompt-tuning",
        backbone="minimind2-26m",
        data=options["data"],
        output=soft,
        steps=1,
        batch_size=2,
        device="cpu",
    )
    capsys.readouterr()
    assert run(["export", str(soft), str(tmp_path / "x"), "--as", "text"]) == 2
    assert "learned no text; there is no string to export" in capsys.readouterr().err
