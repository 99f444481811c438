"""Language models on this machine, the meter, the cache and the ledger."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuelight import lm
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.errors import CuelightError
from cuelight.lm.prefixes import grouped
from cuelight.lm.prices import find_price, price_table
from cuelight.lm.store import Store

PLEASE = (
    "Read this review of a film and say whether its author liked it or not, in a single word please. " * 2
)
REVIEWS = [
    "A joy from the first minute to the last.",
    "Dull.",
    "It tries hard, and never works for me.",
    "See it twice!",
]
PROMPTS = [f"{PLEASE}\nReview: {text} The author found it" for text in REVIEWS]
WORDS = [" good", " bad", " utterly forgettable"]


@pytest.fixture(scope="module")
def host() -> Backbone:
    return load_backbone("minimind2-26m", device="cpu", progress=False)


@pytest.fixture(scope="module")
def talker() -> Backbone:
    """One that can be talked to."""
    return load_backbone("smollm2-135m", device="cpu", progress=False)


@pytest.fixture
def model(host: Backbone) -> lm.LM:
    return lm.connect(host, cache=False)


def plain_score(host: Backbone, prompt: str, ending: str) -> float:
    """The textbook sum, one row and no cache."""
    before = host.tokenizer(prompt).input_ids
    after = host.tokenizer(ending, add_special_tokens=False).input_ids
    with torch.no_grad():
        table = host.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum(float(table[len(before) + k - 1, token]) for k, token in enumerate(after))


# ---- answers ---------------------------------------------------------------------------------------------


def test_scores_are_the_models_own(model: lm.LM, host: Backbone) -> None:
    expected = [[plain_score(host, p, w) for w in WORDS] for p in PROMPTS]
    several = model.score(PROMPTS, WORDS)
    assert several.shape == (4, 3) and several.dtype == np.float64
    assert several == pytest.approx(np.array(expected), abs=2e-3)
    assert model.score(PROMPTS[1], WORDS) == pytest.approx(np.array(expected[1]), abs=2e-3)
    own = [WORDS[:2], WORDS[1:], WORDS[2:], WORDS]  # continuations of each prompt's own
    ragged = model.score(PROMPTS, own)
    assert ragged[0, :2] == pytest.approx(expected[0][:2], abs=2e-3)
    assert ragged[1, :2] == pytest.approx(expected[1][1:], abs=2e-3)
    assert ragged[2, 0] == pytest.approx(expected[2][2], abs=2e-3) and np.isneginf(ragged[2, 1:]).all()
    single = model.score(PROMPTS, WORDS[:2])  # words of one token: another route
    assert single == pytest.approx(several[:, :2], abs=2e-3)


def test_answers_are_those_of_generate(talker: Backbone) -> None:
    host, model = talker, lm.connect(talker, cache=False)
    prompts = ["The capital of France is", *PROMPTS[:2], "1, 2, 3, 4,"]
    for prompt, answer in zip(prompts, model.complete(prompts, max_tokens=6), strict=True):
        ids = host.tokenizer(prompt, return_tensors="pt")
        said = host.model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert answer.text == host.tokenizer.decode(said, skip_special_tokens=True)
        assert answer.usage.prompt_tokens == ids.input_ids.shape[1] and not answer.cached
    assert model.complete("The capital of France is", max_tokens=6).text.startswith(" Paris")


def test_a_chat_ends_where_it_should(talker: Backbone) -> None:
    model = lm.connect(talker, cache=False)
    answer = model.chat("What is the capital of France? Answer in one short sentence.", max_tokens=30)
    assert "Paris" in answer.text and answer.finish == "stop" and answer.usage.completion_tokens < 30
    cut = model.chat("What is the capital of France? Answer in one short sentence.", stop="Paris")
    assert cut.finish == "stop" and cut.text == answer.text[: answer.text.index("Paris")]
    short = model.complete("One, two, three,", max_tokens=2)
    assert short.finish == "length" and short.usage.completion_tokens == 2


def test_samples_depend_on_their_own_seed_and_draw_only(talker: Backbone) -> None:
    model = lm.connect(talker, cache=False)
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 1.0}
    prompt = "My favourite thing in the world is"
    together = [c.text for c in model.complete([prompt] * 4, seed=3, **options)]
    assert len(set(together)) > 1
    among = model.complete(["Something else", prompt, "Yet another one"], seed=3, draw=2, **options)
    assert among[1].text == together[2]
    assert model.complete(prompt, seed=4, **options).text not in together
    near = model.complete([prompt] * 3, temperature=1.0, top_p=1e-6, max_tokens=5)
    assert {c.text for c in near} == {model.complete(prompt, max_tokens=5).text}


def test_encoder_decoders() -> None:
    model = lm.connect("flan-t5-small", cache=False, device="cpu")
    prompt = "Translate English to German: The house is wonderful."
    assert model.complete(prompt, max_tokens=20).text == "Das Haus ist wunderbar."
    cut = model.complete([prompt, prompt], max_tokens=3)
    assert cut[0].finish == "length" and cut[0].text == cut[1].text and len(cut[0].text) < 20
    scores = model.score([prompt, "Is the sky blue?"], ["Das Haus ist wunderbar.", "Nein"])
    assert scores[0].argmax() == 0 and scores[1].argmax() == 1
    own = model.score([prompt, "Is the sky blue?"], [["Das Haus ist wunderbar.", "Nein"], ["Nein"]])
    assert own[0] == pytest.approx(scores[0], abs=1e-3) and own[1, 0] == pytest.approx(scores[1, 1], abs=1e-3)
    assert not model.can_chat
    with pytest.raises(lm.LMError, match=r"no chat template.*use complete\(\)"):
        model.chat("Hello")


# ---- what prompts share ----------------------------------------------------------------------------------


def passes(host: Backbone, act: Any) -> int:
    """How many tokens go through the first layer while ``act`` runs."""
    tokens = []
    handle = host.tower.layers[0].register_forward_pre_hook(
        lambda _, args, kw: tokens.append((args[0] if args else kw["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    try:
        act()
    finally:
        handle.remove()
    return sum(tokens)


def test_a_shared_beginning_is_read_once_and_kept(model: lm.LM, host: Backbone) -> None:
    whole = sum(len(host.tokenizer(p).input_ids) for p in PROMPTS)
    once = len(host.tokenizer(PLEASE).input_ids)
    read = passes(host, lambda: model.score(PROMPTS, WORDS[:2]))
    assert read < whole - 2.5 * once
    again = passes(host, lambda: model.score([p + " in the end" for p in PROMPTS], WORDS[:2]))
    assert again < whole - 3.5 * once  # the beginning is there from the first call
    single = passes(host, lambda: model.complete(PROMPTS[0] + " rather", max_tokens=1))
    assert single < len(host.tokenizer(PROMPTS[0] + " rather").input_ids) - once + 2


def test_two_beginnings_in_one_call(model: lm.LM, host: Backbone) -> None:
    other = "Here is what somebody wrote in a newspaper about a new film; mark it as good or bad. " * 2
    mixed = [begin + f"\nReview: {text} It is" for text in REVIEWS for begin in (PLEASE, other)]
    assert model.score(mixed, WORDS) == pytest.approx(
        np.stack([lm.connect(host, cache=False).score(p, WORDS) for p in mixed]), abs=2e-3
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_share_what_they_say(data: st.DataObject) -> None:
    stems = data.draw(st.lists(st.lists(st.integers(0, 1), min_size=0, max_size=90), min_size=1, max_size=3))
    rows = data.draw(
        st.lists(
            st.tuples(st.sampled_from(stems), st.lists(st.integers(0, 2), min_size=1, max_size=4)),
            min_size=1,
            max_size=12,
        )
    )
    ids = [stem + rest for stem, rest in rows]
    groups = grouped(ids)
    assert sorted(k for group in groups for k in group.rows) == list(range(len(ids)))
    for group in groups:
        assert len({tuple(ids[k][: group.length]) for k in group.rows}) == 1
        assert all(len(ids[k]) > group.length for k in group.rows)


def test_callers_at_the_same_time_share_batches(host: Backbone) -> None:
    model = lm.connect(host, cache=False)
    rows = []
    handle = host.tower.layers[0].register_forward_pre_hook(
        lambda _, args, kw: rows.append(len(args[0] if args else kw["hidden_states"])), with_kwargs=True
    )

    async def all_at_once() -> list[lm.Completion]:
        return list(await asyncio.gather(*(model.acomplete(f"{n} and", max_tokens=2) for n in range(8))))

    found = asyncio.run(all_at_once())
    handle.remove()
    assert len(found) == 8 and max(rows) > 1
    assert found[3].text == model.complete("3 and", max_tokens=2).text


# ---- the meter -------------------------------------------------------------------------------------------


def test_a_budget_of_calls_is_not_overrun_by_callers_at_the_same_time() -> None:
    asked = []
    model = lm.scripted(lambda request: asked.append(request.text) or "yes", budget=lm.Budget(calls=25))
    errors = []

    def caller(name: int) -> None:
        try:
            for k in range(10):
                model.complete(f"{name} {k}")
        except lm.BudgetError as error:
            errors.append(error)

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 25 == model.meter.spent.calls and model.meter.remaining().calls == 0
    assert len(errors) >= 6 and all(error.field == "calls" for error in errors)


def test_a_budget_of_tokens_is_reserved_at_its_worst(model: lm.LM, host: Backbone) -> None:
    spent = lm.connect(host, cache=False, budget=lm.Budget(tokens=40))
    with pytest.raises(lm.BudgetError, match=r"tokens: 40 of 40 is left and the next call may need 10\d"):
        spent.complete("One, two, three", max_tokens=100)
    assert spent.meter.spent.calls == 0
    with pytest.raises(lm.BudgetError, match=r"--max-tokens-total") as refused:
        spent.complete([f"{n} and" for n in range(20)], max_tokens=8)
    assert refused.value.field == "tokens"
    assert 20 <= spent.meter.spent.tokens <= 40 and spent.meter.spent.calls >= 3
    shared = lm.Meter(lm.Budget(calls=1))
    one = lm.scripted(lambda r: "a", meter=shared)
    other = lm.scripted(lambda r: "b", meter=shared)
    one.complete("x")
    with pytest.raises(lm.BudgetError, match="calls"):
        other.complete("y")


def test_a_part_has_limits_of_its_own_within_those_of_the_whole(host: Backbone) -> None:
    whole = lm.scripted(lambda r: "x", budget=lm.Budget(calls=5))
    part = lm.connect(whole, budget=lm.Budget(calls=3))
    part.complete(["a", "b", "c"])
    with pytest.raises(lm.BudgetError, match="calls: 0 of 3 is left"):
        part.complete("d")
    assert (part.meter.spent.calls, whole.meter.spent.calls) == (3, 3)
    other = whole.metered(lm.Budget(calls=9))
    with pytest.raises(lm.BudgetError, match="calls: 0 of 5 is left"):
        other.complete(["e", "f", "g"])
    assert (other.meter.spent.calls, whole.meter.spent.calls) == (2, 5)
    model = lm.connect(host, cache=False)
    views = [model.metered(lm.Budget()) for _ in range(3)]
    threads = [
        threading.Thread(target=view.complete, args=([f"{k} and"] * 2,), kwargs={"max_tokens": 2})
        for k, view in enumerate(views)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [view.meter.spent.calls for view in views] == [2, 2, 2] and model.meter.spent.calls == 6


def test_a_call_that_is_given_up_stops(talker: Backbone) -> None:
    model = lm.connect(talker, cache=False)

    async def impatient() -> None:
        async with asyncio.timeout(0.3):
            await model.acomplete("Count: 1, 2, 3,", max_tokens=4000)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    began = time.monotonic()
    assert model.complete("One, two,", max_tokens=1).text  # it need not wait for the other's end
    assert time.monotonic() - began < 5


def test_seconds_end_a_call_that_runs(talker: Backbone) -> None:
    model = lm.connect(talker, cache=False, budget=lm.Budget(seconds=0.5))
    with pytest.raises(lm.BudgetError, match="seconds") as late:
        model.complete(["Count to a thousand: 1, 2, 3,"] * 2, max_tokens=2000)
    assert late.value.field == "seconds" and model.meter.spent.seconds < 4
    with pytest.raises(lm.BudgetError, match="seconds"):
        model.complete("x")


def test_money_needs_a_price(tmp_path: Path) -> None:
    table = price_table()
    assert find_price(table, "gpt-4o-mini-2024-07-18") == find_price(table, "gpt-4o-mini")
    assert find_price(table, "no-such-model") is None
    own = tmp_path / "prices.toml"
    own.write_text(
        '[prices]\n"mine*" = { input = 1, output = 2 }\n"http://x/v1#mine" = { input = 5, output = 5 }\n'
    )
    table = price_table(own)
    price = find_price(table, "mine-7b")
    assert price is not None and price.of(1_000_000, 500_000) == 2.0
    there = find_price(table, "mine", "http://x/v1")
    assert there is not None and there.input == 5
    own.write_text('[prices]\n"mine" = 3\n')
    with pytest.raises(CuelightError, match="is not a price table"):
        price_table(own)
    with pytest.raises(lm.LMError, match=r"money is limited and the price of .* is not known"):
        lm.connect("http://127.0.0.1:9/v1#mine", cache=False, budget=lm.Budget(money=1.0))


# ---- cache and ledger ------------------------------------------------------------------------------------


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[lm.Request] = []

    def say(request: lm.Request) -> str:
        asked.append(request)
        return f"answer {len(asked)}"

    def connected(name: str = "s") -> lm.LM:
        return lm.scripted(say, name, cache=tmp_path, ledger=tmp_path / "calls.jsonl")

    model = connected()
    first = model.complete(["a", "b", "a"])  # at temperature 0 the same question has one answer
    assert [c.text for c in first] == ["answer 1", "answer 2", "answer 1"]
    assert [c.cached for c in first] == [False, False, True]
    again = connected().complete("a")
    assert again.text == "answer 1" and again.cached and again.usage.cost == 0
    assert model.complete("a", max_tokens=9).text == "answer 3"
    assert model.chat("a").text == "answer 4"
    assert connected("t").complete("a").text == "answer 5"
    drawn = model.complete(["a", "a"], temperature=1.0)
    assert [c.text for c in drawn] == ["answer 6", "answer 7"]
    assert [c.text for c in model.complete(["a", "a", "a"], temperature=1.0)] == [
        "answer 6",
        "answer 7",
        "answer 8",
    ]
    assert model.complete("a", temperature=1.0, seed=1).text == "answer 9"
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert sum(not line["cached"] for line in lines) == 9 == len(asked)
    assert {"time", "model", "kind", "prompt_tokens", "cost", "cached", "seconds", "request"} <= set(lines[0])
    assert all(line["cost"] == 0 for line in lines if line["cached"])


def test_equal_questions_at_the_same_time_are_asked_once(tmp_path: Path) -> None:
    asked = []
    model = lm.scripted(lambda r: asked.append(r.text) or "yes", cache=tmp_path)

    async def several() -> list[lm.Completion]:
        return list(await asyncio.gather(*(model.acomplete("same") for _ in range(10))))

    found = asyncio.run(several())
    assert len(asked) == 1 and {c.text for c in found} == {"yes"}


def test_weights_are_part_of_the_key(tmp_path: Path, host: Backbone, talker: Backbone) -> None:
    model = lm.connect(host, cache=tmp_path)
    first = model.score("One, two,", [" three", " four"])
    assert model.score("One, two,", [" three", " four"]) == pytest.approx(first, abs=0)
    assert model.meter.spent.calls == 1 and len(Store(tmp_path)) == 1
    other = lm.connect(talker, cache=tmp_path)
    assert other.score("One, two,", [" three", " four"]) != pytest.approx(first)
    assert other.meter.spent.calls == 1


_MANY = """
import sys, time
from cuelight.lm.store import Store
while time.time() < float(sys.argv[3]):
    time.sleep(0.001)
store = Store(sys.argv[1])
for k in range(40):
    store.put([(f"{sys.argv[2]}-{k}", {"text": "x"}), (f"same-{k}", {"text": "y"})])
print(len(store.get([f"same-{k}" for k in range(40)])))
"""


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    start = str(time.time() + 4)  # all at once, also in making the file
    words = [[sys.executable, "-c", _MANY, str(tmp_path), str(who), start] for who in range(4)]
    running = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in words]
    assert [process.communicate(timeout=120)[0] for process in running] == ["40\n"] * 4
    assert len(Store(tmp_path)) == 5 * 40


def test_a_broken_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(CuelightError, match=r"cache: .* can not be used .*--no-cache"):
        lm.scripted(lambda r: "x", cache=tmp_path)


# ---- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "max_tokens: is 0"),
        ({"temperature": -1}, "temperature: is -1"),
        ({"top_p": 0}, "top_p: is 0"),
        ({"stop": ["a", ""]}, "stop: has an empty text"),
        ({"tempreature": 1}, "tempreature: no such option .did you mean 'temperature'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(lm.LMError, match=said):
        lm.scripted(lambda r: "x").complete("a", **options)


def test_what_a_model_can_not_do_is_refused_at_once() -> None:
    model = lm.scripted(lambda r: "x")
    assert not model.can_score
    with pytest.raises(lm.LMError, match="gives no log-probabilities"):
        model.score("a", ["b"])
    scored = lm.scripted(lambda r: "x", score=lambda r: [float(-len(c)) for c in r.continuations])
    assert scored.score(["a"], ["b", "cc"]).tolist() == [[-1.0, -2.0]]
    with pytest.raises(lm.LMError, match="masked model writes no text"):
        lm.connect("minilm-mlm", cache=False)
    with pytest.raises(lm.LMError, match="one is empty"):
        scored.score("a", [""])


def test_it_works_where_an_event_loop_runs() -> None:
    model = lm.scripted(lambda r: r.text.upper())

    async def notebook() -> str:
        return model.complete("a").text + (await model.achat("b")).text

    assert asyncio.run(notebook()) == "AB"


# ---- from a shell ----------------------------------------------------------------------------------------


def test_ask_and_prices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuelight.cli.main import run

    monkeypatch.setenv("CUELIGHT_PRICES", str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").write_text('[prices]\n"my-own" = { input = 7, output = 8 }\n')
    assert run(["prices"]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "mine.toml") in shown and "my-own" in shown and "gpt-4o-mini" in shown
    words = [
        "ask",
        "minimind2-26m",
        "It was a joy. It was",
        "--score",
        " good",
        "--score",
        " utterly bad",
        "--no-cache",
    ]
    assert run([*words, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].endswith(" good") and err.startswith("1 call, ")
    assert run([*words, "--device", "cpu", "--max-calls", "0"]) == 2
    assert "error: budget: calls: 0 of 0 is left" in capsys.readouterr().err
    assert run(["ask", "minimind2-26m", "", "--no-cache"]) == 2
    assert run(["ask", "http://127.0.0.1:9/v1#x", "a", "--no-cache", "--max-money", "1"]) == 2
    assert "its price" not in capsys.readouterr().out
