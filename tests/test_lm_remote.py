"""Language models behind servers: a real one on this machine, and one that fails in every way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cuelight import lm
from cuelight.backbones import builtin
from cuelight.lm import remote
from faulty_server import Faulty


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.02)
    made = Faulty()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def connected(server: Faulty, **options: Any) -> lm.LM:
    return lm.connect(server.spec, **{"cache": False, "timeout": 5.0, **options})


# ---- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act", [(500, "oops"), (503, "busy"), "half", "garbage", "empty", "nothing", {"choices": []}]
)
def test_what_passes_is_tried_again(server: Faulty, act: Any) -> None:
    server.script = [act, act]
    model = connected(server)
    assert model.complete("it").text == "said it"
    assert len(server.seen) == 3
    # A refusal costs nothing; what broke off may have been charged for.
    assert model.meter.spent.calls == (1 if isinstance(act, tuple) else 3)


def test_late_answers_are_given_up(server: Faulty) -> None:
    server.script = ["late", "drip"]  # the second sends a byte now and then, for ever
    began = time.monotonic()
    model = connected(server, timeout=0.4)
    assert model.chat("it").text == "said it" and len(server.seen) == 3
    assert 0.8 < time.monotonic() - began < 2.5
    assert model.meter.spent.calls == 3


def test_too_much_is_not_read(server: Faulty) -> None:
    server.script = ["much"]
    with pytest.raises(lm.LMError, match="longer than 32 MiB; lower max_tokens"):
        connected(server, timeout=30.0).complete("it")
    assert len(server.seen) == 1


def test_retry_after_is_honoured(server: Faulty) -> None:
    server.script = [(429, "slow down", {"retry-after": "1"}), (429, "slow down", {"retry-after-ms": "300"})]
    assert connected(server).complete("it").text == "said it"
    first, second, third = (at for at, _ in server.seen)
    assert 1.0 <= second - first < 2.0 and 0.3 <= third - second < 1.0
    server.script = [(429, "tomorrow", {"retry-after": "86400"})]
    with pytest.raises(lm.LMError, match="asks to wait 86400 s"):
        connected(server).complete("it")


def test_retries_end_in_one_line(server: Faulty) -> None:
    server.script = [(500, "it is\nbroken")] * 9
    with pytest.raises(lm.LMError, match=r"500: it is broken \(3 attempts\)") as error:
        connected(server, retries=2).complete("it")
    assert "\n" not in str(error.value) and len(server.seen) == 3
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1#x"
    nobody = lm.connect(address, cache=False, retries=1)
    with pytest.raises(lm.LMError, match="is it up"):
        nobody.complete("it")
    assert nobody.meter.spent.calls == 0


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ((401, "wrong key"), "401: wrong key; set CUELIGHT_API_KEY"),
        ((404, "no such model"), "404: no such model; check the address"),
        ((400, "too long"), "400: too long; change the request"),
    ],
)
def test_refusals_are_not_repeated(server: Faulty, act: Any, said: str) -> None:
    server.script = [act]
    with pytest.raises(lm.LMError, match=said):
        connected(server).complete("it")
    assert len(server.seen) == 1


def test_options_a_server_does_not_know_are_named_otherwise(server: Faulty) -> None:
    server.script = [
        (400, "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens' instead."),
        (400, "Unrecognized request argument: seed"),
    ]
    model = connected(server)
    assert model.chat("it", temperature=1.0, max_tokens=7).text == "said it"
    last = server.seen[-1][1]
    assert last["max_completion_tokens"] == 7 and "max_tokens" not in last and "seed" not in last
    model.chat("it", temperature=1.0)
    assert len(server.seen) == 4  # it is remembered


def test_answers_of_other_shapes_are_read(server: Faulty) -> None:
    server.script = [
        {"choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "one STOP two"}, "finish_reason": "length"}], "usage": None},
    ]
    model = connected(server)
    assert model.chat("it", max_tokens=5).text == ""
    answer = model.chat("it", stop="STOP", max_tokens=5)
    assert answer.text == "one " and answer.finish == "stop"
    assert answer.usage.completion_tokens == 5  # not said: counted at its worst


def test_keys_go_to_their_own_servers_only(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    connected(server).complete("it")
    monkeypatch.setenv("CUELIGHT_API_KEY", "mine")
    connected(server).complete("it")
    assert [h["authorization"] for h in server.headers] == ["Bearer none", "Bearer mine"]


# ---- budgets ---------------------------------------------------------------------------------------------


def test_concurrency_is_bounded(server: Faulty) -> None:
    server.delay = 0.05
    model = connected(server, concurrency=4)
    found = model.complete([f"p{k}" for k in range(20)])
    assert [c.text for c in found] == [f"said p{k}" for k in range(20)]
    assert server.peak == 4


def test_budgets_hold_under_concurrency(server: Faulty, tmp_path: Path) -> None:
    server.delay = 0.02
    model = connected(server, concurrency=8, budget=lm.Budget(calls=7))
    with pytest.raises(lm.BudgetError, match="calls"):
        model.complete([f"p{k}" for k in range(30)])
    assert len(server.seen) == 7 == model.meter.spent.calls
    # A call holds 2 + 64 + 10 tokens back and uses 3: waiting calls start as others turn out cheaper.
    model = connected(server, concurrency=8, budget=lm.Budget(tokens=150))
    with pytest.raises(lm.BudgetError, match="tokens"):
        model.complete([f"q{k}" for k in range(60)], max_tokens=10)
    assert 75 <= model.meter.spent.tokens <= 150
    assert len(server.seen) == 7 + model.meter.spent.calls
    prices = tmp_path / "prices.toml"
    prices.write_text("[prices]\nsmall = { input = 1000, output = 100000 }\n")
    model = connected(server, prices=prices, budget=lm.Budget(money=3.0))
    with pytest.raises(lm.BudgetError, match="money"):
        model.complete([f"r{k}" for k in range(60)], max_tokens=10)
    spent = model.meter.spent
    assert 1.8 < spent.money <= 3.0 and spent.money == pytest.approx(spent.calls * (0.001 + 2 * 0.1))
    before = len(server.seen)
    server.delay = 2.0
    model = connected(server, budget=lm.Budget(seconds=0.3))
    with pytest.raises(lm.BudgetError, match="seconds"):
        model.complete(["a", "b"])
    assert model.meter.spent.seconds < 1.0 and len(server.seen) == before + 2


# ---- kill and go on --------------------------------------------------------------------------------------

SEARCH = """
import sys
from cuelight import lm
model = lm.connect(sys.argv[1], cache=sys.argv[2], concurrency=1, ledger=sys.argv[3])
best = "start"
for step in range(8):  # every step's question depends on the answers before it
    answers = model.chat([f"{best} {step} {k}" for k in range(4)], temperature=1.0, max_tokens=20)
    best = max((a.text for a in answers), key=lambda t: (hash_(t), t))[-12:]
print(best)
""".replace("hash_(t)", "sum(t.encode()) % 97")


def test_a_killed_search_pays_nothing_twice(server: Faulty, tmp_path: Path) -> None:
    def search(cache: str) -> subprocess.Popen[str]:
        words = [
            sys.executable,
            "-c",
            SEARCH,
            server.spec,
            str(tmp_path / cache),
            str(tmp_path / f"{cache}.jsonl"),
        ]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    whole, _ = search("undisturbed").communicate(timeout=60)
    asked = [body for _, body in server.seen]
    assert len(asked) == 32 and whole.strip()
    server.seen.clear()
    server.delay = 0.05
    process = search("killed")
    while len(server.seen) < 11:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)  # the one under way is not to be mistaken for a new one
    first = [body for _, body in server.seen]
    again, _ = search("killed").communicate(timeout=60)
    assert again == whole
    second = [body for _, body in server.seen[len(first) :]]
    # All that had been answered was kept; at most the one call under way is made again.
    repeated = [body for body in second if body in first[:-1]]
    assert not repeated and len(first) + len(second) in (32, 33)
    lines = [json.loads(line) for line in (tmp_path / "killed.jsonl").read_text().splitlines()]
    assert sum(not line["cached"] for line in lines) == 32


# ---- a real server ---------------------------------------------------------------------------------------


@contextmanager
def running(words: list[str], url: str) -> Iterator[None]:
    """A server as a process of its own, once it answers at ``url``."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_transformers_serve_answers_as_the_model_here(tmp_path: Path) -> None:
    folder, at = str(builtin.ensure("smollm2-135m", progress=False)), port()
    words = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--device", "cpu"]
    with running([*words, "--port", str(at)], f"http://127.0.0.1:{at}/health"):
        there = lm.connect(f"http://127.0.0.1:{at}/v1#{folder}", cache=tmp_path)
        here = lm.connect("smollm2-135m", cache=False, device="cpu")
        prompts = ["The capital of France is", "One, two, three,"]
        remote_, local = (m.complete(prompts, max_tokens=5) for m in (there, here))
        assert [(c.text, c.finish, c.usage.prompt_tokens) for c in remote_] == [
            (c.text, c.finish, c.usage.prompt_tokens) for c in local
        ]
        question = "What is the capital of France? Answer in one short sentence."
        assert there.chat(question, max_tokens=12).text == here.chat(question, max_tokens=12).text
        assert not there.can_score
        with pytest.raises(lm.LMError, match="gives no log-probabilities"):
            there.score("a", [" b"])
        assert there.meter.spent.calls == 4 and not there.complete("1", max_tokens=1).usage.priced


def test_cuelight_serve_scores_as_the_model_here() -> None:
    at = port()
    words = [sys.executable, "-m", "cuelight.cli.main", "serve", "minimind2-26m", "--port", str(at)]
    with running([*words, "--device", "cpu"], f"http://127.0.0.1:{at}/health"):
        there = lm.connect(f"http://127.0.0.1:{at}/v1", cache=False)
        assert there.name.endswith("#minimind2-26m") and there.can_score
        here = lm.connect("minimind2-26m", cache=False, device="cpu")
        prompts, endings = ["It was a joy to see. It was", "Dull. It was"], [" good", " utterly bad"]
        assert there.score(prompts, endings) == pytest.approx(here.score(prompts, endings), abs=1e-3)
        assert there.complete("1, 2, 3,", max_tokens=4).text == here.complete("1, 2, 3,", max_tokens=4).text
        assert there.chat("Hello", max_tokens=8).text == here.chat("Hello", max_tokens=8).text
