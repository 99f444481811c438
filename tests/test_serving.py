"""Many prompts on one backbone: a mixed batch answers as each prompt alone, in Python and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import cuelight
from cuelight.artifact import Prompt
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.errors import ArtifactError, ConfigError, DataError
from cuelight.methods.base import Data, get_method
from cuelight.serving import Pool
from cuelight.serving.engine import Engine, FullError, Job
from cuelight.tasks.text import TaskConfig, TextTask

TEXTS = [
    "A joy from the first minute to the last.",
    "Dull.",
    "It tries hard, and never works for me.",
    "See it twice!",
]
ROWS = [{"text": text, "label": k % 2} for k, text in enumerate(TEXTS)]
SENTIMENT, TOPIC = ("positive", "negative"), ("film", "music", "sport")
METHODS: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "film": ("prompt-tuning", "classification", SENTIMENT, {"length": 5}),
    "topic": ("dept", "classification", TOPIC, {"length": 3, "match_length": 30}),
    "prefix": ("prefix-tuning", "classification", SENTIMENT, {"length": 4}),
    "moved": ("cpt", "classification", SENTIMENT, {"demonstrations": 2}),
    "shown": ("in-context", "classification", SENTIMENT, {"demonstrations": 2}),
    "low-rank": ("lora", "classification", SENTIMENT, {"rank": 2}),
    "head": ("ptec", "classification", TOPIC, {"length": 3}),
    "writer": ("iapt", "generation", (), {"bottleneck": 4}),
    "other writer": (
        "ept",
        "generation",
        (),
        {"length": 3, "match_length": 60, "spaces": 2, "space_width": 1},
    ),
    "plain writer": ("prompt-tuning", "generation", (), {"length": 7}),
}


def made(host: Backbone, name: str) -> Prompt:
    """A prompt away from its start."""
    method, kind, classes, options = METHODS[name]
    chat = kind == "generation" and host.kind == "causal"
    config = TaskConfig.model_validate({"max_length": 64, "max_new_tokens": 6, "chat": chat})
    task = TextTask(host, kind, classes, config=config)  # type: ignore[arg-type]
    found = get_method(method)(host, task, get_method(method).Config.model_validate(options))
    if kind == "classification":
        rows = [{**row, "label": row["label"] % len(classes)} for row in ROWS]
        found.prepare(Data(task.encode(rows), [], rows), 0)
    draw = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for p in found.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.02)
    if method == "cpt":
        with torch.no_grad():
            found.project()
    return Prompt(found.eval())


@pytest.fixture(scope="module")
def host() -> Backbone:
    return load_backbone("minimind2-26m", device="cpu", progress=False)


@pytest.fixture(scope="module")
def prompts(host: Backbone) -> dict[str, Prompt]:
    return {name: made(host, name) for name in METHODS}


@pytest.fixture(scope="module")
def pool(host: Backbone, prompts: dict[str, Prompt]) -> Pool:
    return Pool(host, prompts)


def test_a_mixed_batch_answers_as_each_prompt_alone(pool: Pool, prompts: dict[str, Prompt]) -> None:
    requests = [(name, text) for text in TEXTS for name in METHODS]
    found = pool.predict(requests)
    for (name, text), answer in zip(requests, found, strict=True):
        assert answer == prompts[name].predict([text])[0], name
    scored = [(name, text) for name, text in requests if METHODS[name][1] == "classification"]
    for (name, text), entry in zip(scored, pool.predict(scored, probabilities=True), strict=True):
        (alone,) = prompts[name].predict([text], probabilities=True)
        assert entry["probabilities"] == pytest.approx(alone["probabilities"], abs=2e-4), name
    assert len({tuple(pool.predict([(name, TEXTS[0])])) for name in METHODS}) > 2
    assert (
        not prompts["film"].method.prompt.grad_fn and prompts["film"].method.trainable > 0
    )  # left as it was


def test_prompts_that_only_condition_share_a_pass(pool: Pool, host: Backbone) -> None:
    mixing = {name for name in METHODS if pool.mixes(name)}
    assert mixing == set(METHODS) - {"low-rank", "head"}
    names = ["film", "prefix", "moved", "shown"]
    pool.predict([(name, TEXTS[0]) for name in names])  # what rows share is read once and kept
    passes = []
    handle = host.tower.layers[0].register_forward_pre_hook(
        lambda _, args, kw: passes.append(len(args[0] if args else kw["hidden_states"])), with_kwargs=True
    )
    pool.predict([(name, text) for name in names for text in TEXTS])
    handle.remove()
    assert passes[0] == 16  # then only the rest of label words that are longer than a token
    assert len(passes) <= 2


def test_requests_that_can_not_be_answered_say_why(pool: Pool, host: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompt: 'flm' is unknown \(did you mean 'film'\?\)"):
        pool.predict([("flm", "x")])
    with pytest.raises(DataError, match="is empty"):
        pool.predict([("film", " ")])
    with pytest.raises(DataError, match="generates its answers"):
        pool.predict([("writer", "x")], probabilities=True)
    with pytest.raises(ArtifactError, match="no such folder"):
        Pool(host, {"a": tmp_path / "nothing"})
    mine = Pool(host, {"a": pool.prompts["film"]})
    mine.remove("a")
    with pytest.raises(ConfigError, match="there are none"):
        mine.predict([("a", "x")])
    other = load_backbone("minimind2-26m", device="cpu", progress=False)
    with pytest.raises(ConfigError, match="another backbone object"):
        Pool(other, {"a": pool.prompts["film"]})
    assert pool.predict([]) == []


def test_an_encoder_decoder_mixes_too() -> None:
    host = load_backbone("flan-t5-small", device="cpu", progress=False)
    names = ("film", "topic", "writer", "other writer", "plain writer")
    prompts = {name: made(host, name) for name in names}
    pool = Pool(host, prompts)
    requests = [(name, text) for text in TEXTS[:2] for name in names]
    assert pool.predict(requests) == [prompts[name].predict([text])[0] for name, text in requests]


# ---- the engine


class Told:
    """What a job emits."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.over = threading.Event()

    def __call__(self, kind: str, value: Any) -> None:
        self.events.append((kind, value))
        if kind != "token":
            self.over.set()

    @property
    def end(self) -> Any:
        assert self.over.wait(60)
        return self.events[-1]


def job_of(pool: Pool, name: str, text: str, told: Told, **options: Any) -> Job:
    return Job(told, ids=pool.fed(name, text), condition=pool.condition(name), **options)


def test_rows_that_join_while_others_run_say_what_they_say_alone(
    pool: Pool, prompts: dict[str, Prompt]
) -> None:
    engine = Engine(pool, max_batch=4)
    try:
        names = ["writer", "other writer", "plain writer"]
        requests = [(names[k % 3], TEXTS[k % 4]) for k in range(9)]
        tolds = []
        for k, (name, text) in enumerate(requests):
            told = Told()
            engine.submit(job_of(pool, name, text, told, max_tokens=6))
            tolds.append(told)
            if k in (2, 5):
                time.sleep(0.05)  # some join in the middle
        assert all(told.end for told in tolds)  # the model is nobody else's while the engine runs
        for (name, text), told in zip(requests, tolds, strict=True):
            kind, (said, reason, count) = told.end
            assert kind == "end" and count <= 6 and reason in ("stop", "length")
            assert said.strip() == prompts[name].predict([text])[0]
            grown = [value for kind, value in told.events if kind == "token"]
            assert all(b.startswith(a) for a, b in zip(grown, [*grown[1:], said], strict=True))
    finally:
        engine.close()


def test_stops_sampling_and_failures(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(pool, max_batch=4)
    try:
        whole, cut = Told(), Told()
        engine.submit(job_of(pool, "plain writer", TEXTS[0], whole, max_tokens=12))
        text = whole.end[1][0]
        mark = text[2:4]
        engine.submit(job_of(pool, "plain writer", TEXTS[0], cut, max_tokens=12, stop=(mark,)))
        assert cut.end[1][0] == text[: text.find(mark)] and cut.end[1][1] == "stop"
        assert all(mark not in value for kind, value in cut.events if kind == "token")
        drawn = []
        for seed in (1, 1, 2):
            told = Told()
            engine.submit(
                job_of(pool, "plain writer", TEXTS[0], told, max_tokens=8, temperature=1.5, seed=seed)
            )
            drawn.append(told.end[1][0])
        assert drawn[0] == drawn[1] != drawn[2]
        good, bad, also = Told(), Told(), Told()
        condition = cuelight.prompts.conditioning.Condition(prompt=torch.zeros(2, 3))  # of another width
        jobs = [
            job_of(pool, "writer", TEXTS[1], good, max_tokens=3),
            Job(bad, ids=[5, 6], condition=condition),
            job_of(pool, "writer", TEXTS[2], also, max_tokens=3),
        ]
        for job in jobs:
            engine.submit(job)
        assert bad.end[0] == "error" and "3" in str(bad.end[1])
        assert good.end[0] == also.end[0] == "end"
        broken = Told()
        engine.submit(Job(broken, work=lambda: 1 / 0))
        assert isinstance(broken.end[1], ZeroDivisionError)
    finally:
        engine.close()
    small = Engine(pool, max_waiting=1)
    try:
        gate = threading.Event()
        small.submit(Job(Told(), work=gate.wait))
        time.sleep(0.1)
        small.submit(Job(Told(), work=gate.wait))
        with pytest.raises(FullError, match="too many requests"):
            small.submit(Job(Told(), work=gate.wait))
    finally:
        gate.set()
        small.close()


# ---- the server


@pytest.fixture(scope="module")
def folders(prompts: dict[str, Prompt], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prompts")
    return {
        n: prompts[n].save(root / n.replace(" ", "-")) for n in ("film", "topic", "writer", "plain writer")
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def address(folders: dict[str, Path]) -> Iterator[str]:
    port = free_port()
    named = [f"--prompt={name.replace(' ', '-')}={folder}" for name, folder in folders.items()]
    command = [sys.executable, "-m", "cuelight.cli.main", "serve", "minimind2-26m", *named]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--api-key", "secret"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "serving film, topic, writer, plain-writer, minimind2-26m at" in line, line
    url = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1)
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    yield url
    process.terminate()
    assert process.wait(20) in (0, -15)


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_the_model_field_picks_the_prompt(client: openai.OpenAI, prompts: dict[str, Prompt]) -> None:
    assert [m.id for m in client.models.list()] == [
        "film",
        "topic",
        "writer",
        "plain-writer",
        "minimind2-26m",
    ]
    for name in ("film", "topic", "writer", "plain writer"):
        for text in TEXTS[:2]:
            found = client.chat.completions.create(model=name.replace(" ", "-"), messages=ask(text))
            assert (found.choices[0].message.content or "").strip() == prompts[name].predict([text])[0]
            assert found.usage is not None and found.usage.prompt_tokens > 0
    found = client.chat.completions.create(model="film", messages=ask(TEXTS[0]))
    (alone,) = prompts["film"].predict([TEXTS[0]], probabilities=True)
    assert found.model_extra["cuelight"]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-4)
    legacy = client.completions.create(model="topic", prompt=TEXTS[1])
    assert legacy.choices[0].text == prompts["topic"].predict([TEXTS[1]])[0]
    plain = client.chat.completions.create(
        model="minimind2-26m",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}],
        max_tokens=5,
    )
    assert plain.choices[0].finish_reason in ("stop", "length") and plain.usage.completion_tokens <= 5


def test_many_at_once_and_streams(address: str, client: openai.OpenAI, prompts: dict[str, Prompt]) -> None:
    names = ("film", "topic", "writer", "plain writer")
    requests = [(names[k % 4], TEXTS[(k // 4) % 4]) for k in range(16)]

    async def everyone() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as many:
            found = await asyncio.gather(
                *(
                    many.chat.completions.create(model=name.replace(" ", "-"), messages=ask(text))
                    for name, text in requests
                )
            )
        return [(one.choices[0].message.content or "").strip() for one in found]

    assert asyncio.run(everyone()) == [prompts[name].predict([text])[0] for name, text in requests]
    pieces = list(client.chat.completions.create(model="plain-writer", messages=ask(TEXTS[0]), stream=True))
    text = "".join(p.choices[0].delta.content or "" for p in pieces)
    assert text.strip() == prompts["plain writer"].predict([TEXTS[0]])[0]
    assert len(pieces) > 2 and pieces[-1].choices[0].finish_reason in ("stop", "length")
    said = "".join(
        p.choices[0].text for p in client.completions.create(model="film", prompt=TEXTS[0], stream=True)
    )
    assert said == prompts["film"].predict([TEXTS[0]])[0]
    stream = client.chat.completions.create(
        model="minimind2-26m", messages=ask("Tell me a story."), stream=True, max_tokens=60
    )
    next(iter(stream))
    stream.close()  # a client that goes away does no harm
    assert client.chat.completions.create(model="film", messages=ask(TEXTS[0])).choices


def test_mistakes_get_openais_errors(address: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"did you mean 'film'"):
        client.chat.completions.create(model="fiml", messages=ask("x"))
    with pytest.raises(openai.BadRequestError, match="no system message"):
        client.chat.completions.create(model="film", messages=[{"role": "system", "content": "x"}, *ask("y")])
    with pytest.raises(openai.BadRequestError, match="is empty"):
        client.chat.completions.create(model="film", messages=ask("  "))
    with pytest.raises(openai.BadRequestError, match="messages: are missing"):
        client.chat.completions.create(model="film", messages=[])
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="film", messages=ask("x"), temperature=9)
    picture: Any = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(openai.BadRequestError, match="parts of type 'text'"):
        client.chat.completions.create(model="film", messages=[{"role": "user", "content": picture}])
    with pytest.raises(openai.AuthenticationError, match="api key"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
    broken = urllib.request.Request(
        f"{address}/v1/chat/completions", b"{not json", {"authorization": "Bearer secret"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(broken)
    assert caught.value.code == 400 and "error" in json.loads(caught.value.read())


def test_the_command_line_refuses_in_one_line(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    from cuelight.cli.main import run

    def line(*arguments: str) -> str:
        assert run(["serve", "minimind2-26m", *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    assert "is not NAME=DIR" in line("--prompt", "film")
    assert "is given twice" in line("--prompt", "a=x", "--prompt", "a=y")
    assert "no such folder" in line("--prompt", f"a={tmp_path / 'none'}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "give another --port" in line("--port", str(taken.getsockname()[1]))
    assert "own name" in line("--prompt", f"minimind2-26m={folders['film']}")
