"""Killed, interrupted or out of disk at any moment, a run ends as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from cuelight.errors import ArtifactError, ConfigError, CuelightError
from cuelight.training import Interrupted, ParamGroup, Stage, TrainConfig, TrainResult, forget, train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that get killed: on a busy machine, threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Learned(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.prompt = nn.Parameter(torch.randn(width, generator=generator))
        self.head = nn.Parameter(torch.randn(width, 10, generator=generator) * 0.1)
        self.register_buffer("seen", torch.zeros(()))


class Digits:
    """A frozen random projection of the digits, a prompt added to its features, and a head; with dropout."""

    def __init__(self, pause: float = 0.0, pad: int = 0) -> None:
        x, y = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
        self.projection = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)) / 4
        self.learned = Learned()
        self.teacher = torch.zeros(32, 10)
        if pad:
            self.learned.register_buffer("pad", torch.zeros(pad))
        self.pause = pause

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        features = (x @ self.projection + self.learned.prompt).relu()
        return dropout(features, 0.2, self.learned.training) @ self.learned.head

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        x = self.x[rows]
        return {"x": x + 0.01 * torch.randn(x.shape), "y": self.y[rows]}

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        time.sleep(self.pause)
        noise = random.random() * 1e-3  # python's generator takes part too
        self.learned.seen += len(batch["y"])
        pull = (self.learned.head - self.teacher).square().mean()
        return cross_entropy(self.logits(batch["x"]), batch["y"]) * (1 + noise) + 0.01 * pull

    def validate(self) -> dict[str, float]:
        torch.rand(7)
        logits = self.logits(self.x[1400:])
        return {
            "loss": cross_entropy(logits, self.y[1400:]).item(),
            "accuracy": (logits.argmax(-1) == self.y[1400:]).float().mean().item(),
        }

    def learn_from_before(self) -> None:
        with torch.no_grad():  # reads what the first stage learned, and overwrites it
            self.teacher.copy_(self.learned.head)  # not saved: made again on resume
            self.learned.head.mul_(0.5).add_(0.01 * torch.randn_like(self.learned.head))

    def stages(self) -> list[Stage]:
        learned = self.learned
        head = Stage(
            "head",
            [ParamGroup("head", {"head": learned.head}, 1e-2)],
            range(400),
            self.collate,
            self.loss,
            validate=self.validate,
            monitor="accuracy",
            higher_is_better=True,
            defaults={"steps": 120, "evaluate_every": 11},
        )
        both = Stage(
            "both",
            lambda: [
                ParamGroup("prompt", {"prompt": learned.prompt}, 3e-2),
                ParamGroup("head", {"head": learned.head}, 1e-3, weight_decay=0.1),
            ],
            lambda: torch.randperm(1400)[:300].tolist(),
            self.collate,
            self.loss,
            validate=self.validate,
            begin=self.learn_from_before,
            finish=lambda: None,
            after_step=lambda: learned.prompt.clamp_(-2.5, 2.5),
            defaults={"steps": 150, "schedule": "cosine"},
        )
        return [head, both]


def run(workdir: Path, config: TrainConfig, pause: float = 0.0, pad: int = 0) -> tuple[Learned, TrainResult]:
    problem = Digits(pause, pad)
    result = train(
        problem.stages(),
        problem.learned,
        config,
        workdir=workdir,
        fingerprint="digits",
        device="cpu",
        progress=False,
    )
    return problem.learned, result


def child(workdir: Path, out: Path, said: Path, ready: Event, options: dict[str, Any]) -> None:
    """What runs in the process that gets killed; what the user would read goes to ``said``."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pause, pad, limit = options.pop("pause", 0.0), options.pop("pad", 0), options.pop("limit", None)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    ready.set()
    try:
        learned, result = run(workdir, TrainConfig(**options), pause, pad)
    except (Interrupted, CuelightError) as error:
        said.write_text(str(error))
        sys.exit(130 if isinstance(error, Interrupted) else 2)
    save_file(learned.state_dict(), out)
    out.with_suffix(".json").write_text(json.dumps([result.history, result.best, result.steps]))


FORKS = multiprocessing.get_context("forkserver")  # a fresh process in milliseconds, torch already imported
FORKS.set_forkserver_preload(["cuelight.training.loop", "sklearn.datasets"])


def start(workdir: Path, out: Path, **options: Any) -> BaseProcess:
    ready = FORKS.Event()
    process = FORKS.Process(target=child, args=(workdir, out, out.with_suffix(".txt"), ready, options))
    process.start()
    assert ready.wait(60)
    return process


def ended(process: BaseProcess, seconds: float = 60) -> int | None:
    process.join(seconds)
    return process.exitcode


Outcome = tuple[bytes, list[Any], list[dict[str, Any]]]


def outcome(workdir: Path, out: Path) -> Outcome:
    """Tensors as bytes, history, and the log without times."""
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    for line in log:
        del line["time"], line["seconds"]
    return out.read_bytes(), json.loads(out.with_suffix(".json").read_text()), log


def whole(folder: Path, **options: Any) -> Outcome:
    """The outcome of an uninterrupted run."""
    assert ended(start(folder / "whole", folder / "whole.safetensors", **options)) == 0
    return outcome(folder / "whole", folder / "whole.safetensors")


@pytest.mark.parametrize(
    "options", [{"optimizer": "adamw"}, {"optimizer": "adafactor", "accumulation": 3}, {"optimizer": "sgd"}]
)
def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    expected = whole(tmp_path, **options)
    workdir, out, moments = tmp_path / "killed", tmp_path / "killed.safetensors", random.Random(5)
    kills = 0
    while True:
        process = start(workdir, out, pause=0.004, checkpoint_every=1 + kills % 3, **options)
        # The pauses alone take a second, so that even the fastest machine is killed three times.
        code = ended(process, moments.uniform(0.05, 0.3) if kills < 8 else 60)
        if code is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert code == 0
    assert kills >= 3
    assert outcome(workdir, out) == expected
    assert {p.name for p in workdir.iterdir()} <= {".lock", "log.jsonl", "training.safetensors"}


def unfinished(workdir: Path) -> list[Path]:
    return list(workdir.glob(".saving/*"))


def test_killed_while_writing_a_checkpoint(tmp_path: Path) -> None:
    size = 4_000_000  # 16 MB, three times per checkpoint: nearly all of the time goes into writing
    options = {"steps": 12, "batch_size": 64, "pad": size, "keep": "last"}
    expected = whole(tmp_path, **options)
    workdir, out, moments = tmp_path / "killed", tmp_path / "killed.safetensors", random.Random(6)
    halves = 0
    for _ in range(5):
        process = start(workdir, out, checkpoint_every=1, **options)
        time.sleep(moments.uniform(0.0, 0.2))
        while process.is_alive() and not unfinished(workdir):
            time.sleep(0.0002)
        process.kill()
        process.join()
        halves += bool(unfinished(workdir))
    assert halves
    assert ended(start(workdir, out, **options)) == 0
    assert outcome(workdir, out) == expected
    assert {p.name for p in workdir.iterdir()} <= {".lock", "log.jsonl", "training.safetensors"}


def test_interrupted_from_the_keyboard(tmp_path: Path) -> None:
    expected = whole(tmp_path)
    workdir, out = tmp_path / "stopped", tmp_path / "stopped.safetensors"
    for pause in (0.01, 0.01, 0.0):
        process = start(workdir, out, pause=pause)
        if not pause:
            break
        time.sleep(0.7)
        os.kill(process.pid or 0, signal.SIGINT)
        assert ended(process) == 130
        assert re.fullmatch(
            r"interrupted at step \d+ of \d+ of stage '\w+'; "
            rf"run the same command again to go on from there \({workdir}\)",
            out.with_suffix(".txt").read_text(),
        )
    assert ended(process) == 0
    assert outcome(workdir, out) == expected


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    process = start(tmp_path / "run", tmp_path / "out.safetensors", pause=30)
    for _ in range(2):
        time.sleep(0.7)
        os.kill(process.pid or 0, signal.SIGINT)
    assert ended(process, 10) == 130
    assert "from the last checkpoint" in (tmp_path / "out.txt").read_text()


def test_an_ended_run_returns_at_once(tmp_path: Path) -> None:
    learned, first = run(tmp_path, TrainConfig(steps=20))
    again, second = run(tmp_path, TrainConfig(steps=20, workers=1), pause=1000)
    assert second == first
    assert all(torch.equal(a, b) for a, b in zip(learned.parameters(), again.parameters(), strict=True))
    forget(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"learning_rate": 0.5}, "learning_rate=None.*learning_rate=0.5"),
        ({"batch_size": 8}, "batch_size=16.*batch_size=8"),
        ({"steps": 30}, "steps=20.*steps=30"),
        ({"optimizer": "sgd"}, "optimizer=adamw.*optimizer=sgd"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    run(tmp_path, TrainConfig(steps=20))
    with pytest.raises(ConfigError, match=f"{field}; give another --output, or --restart") as caught:
        run(tmp_path, TrainConfig(**{"steps": 20, **change}))
    assert "\n" not in str(caught.value)


def test_other_data_and_other_fingerprint_are_refused(tmp_path: Path) -> None:
    problem = Digits()
    stage = problem.stages()[0]
    stage.loss = stop_after(stage.loss, 5)
    with pytest.raises(Interrupted):
        train(
            [stage],
            problem.learned,
            TrainConfig(steps=9, checkpoint_every=1),
            workdir=tmp_path,
            progress=False,
        )
    stage = problem.stages()[0]
    with pytest.raises(ConfigError, match="fingerprint=, this one has fingerprint=b"):
        train(
            [stage], problem.learned, TrainConfig(steps=9), workdir=tmp_path, fingerprint="b", progress=False
        )
    stage.examples = range(399)
    with pytest.raises(ConfigError, match="examples=400 in stage 'head', this one has examples=399"):
        train([stage], problem.learned, TrainConfig(steps=9), workdir=tmp_path, progress=False)
    with pytest.raises(ConfigError, match="stages"):
        train(problem.stages(), problem.learned, TrainConfig(steps=9), workdir=tmp_path, progress=False)
    stage.examples = range(400)
    wider = Learned(33)
    stage.groups = [ParamGroup("head", {"head": wider.head}, 1e-2)]
    with pytest.raises(
        ConfigError, match=r"learned tensor 'head' is \[32, 10\] in the checkpoint and \[33, 10\]"
    ):
        train([stage], wider, TrainConfig(steps=9), workdir=tmp_path, progress=False)


def stop_after(loss: Callable[[Any], torch.Tensor], calls: int) -> Callable[[Any], torch.Tensor]:
    left = iter(range(calls))

    def wrapped(batch: Any) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss(batch)

    return wrapped


@pytest.mark.parametrize("stop", [120, 121, 150])
def test_a_later_stage_begins_again_from_what_the_earlier_one_learned(tmp_path: Path, stop: int) -> None:
    expected, history = run(tmp_path / "whole", TrainConfig())
    problem = Digits()
    stages = problem.stages()
    stages[0].loss = stages[1].loss = stop_after(problem.loss, stop)
    with pytest.raises(Interrupted):
        train(
            stages,
            problem.learned,
            TrainConfig(checkpoint_every=1),
            workdir=tmp_path / "stopped",
            fingerprint="digits",
            device="cpu",
            progress=False,
        )
    learned, again = run(tmp_path / "stopped", TrainConfig())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(learned.state_dict()[name], tensor), name
    assert again.history == history.history


@pytest.mark.parametrize(("stop", "count"), [(3, 2), (4, 2), (5, 2)])
def test_best_and_patience_survive(tmp_path: Path, stop: int, count: int) -> None:
    """One number counts the steps; the metric is best at the second, and patience ends at the sixth."""
    for attempt in range(2):
        model = nn.Module()
        model.count = nn.Parameter(torch.zeros(()))

        def loss(batch: Any, model: nn.Module = model) -> torch.Tensor:
            return -model.count

        told = Stage(
            "count",
            [ParamGroup("count", {"count": model.count}, 1.0)],
            range(4),
            lambda rows: torch.tensor(rows),
            loss if attempt else stop_after(loss, stop),
            validate=lambda model=model: {"loss": (model.count.item() - 2) ** 2},
        )
        config = TrainConfig(
            steps=20,
            evaluate_every=1,
            patience=4,
            optimizer="adafactor",
            schedule="constant",
            checkpoint_every=1,
        )
        if not attempt:
            with pytest.raises(Interrupted):
                train([told], model, config, workdir=tmp_path, progress=False)
            assert model.count.item() == pytest.approx(stop)
    result = train([told], model, config, workdir=tmp_path, progress=False)
    assert model.count.item() == pytest.approx(count)
    assert result.best["step"] == count
    assert result.steps == count + 4
    assert result.stopped_early


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    run(tmp_path, TrainConfig(steps=20))
    path = tmp_path / "training.safetensors"
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(
        {"cut": data[:-9], "flipped": data, "empty": b"", "text": b"hello, this is text"}[damage]
    )
    with pytest.raises(ArtifactError, match=f"{path}: the checkpoint is damaged .*--restart") as caught:
        run(tmp_path, TrainConfig(steps=20))
    assert "\n" not in str(caught.value)


def test_the_log_is_repaired(tmp_path: Path) -> None:
    expected = whole(tmp_path)
    workdir, out = tmp_path / "stopped", tmp_path / "stopped.safetensors"
    process = start(workdir, out, pause=0.01)
    time.sleep(0.7)
    os.kill(process.pid or 0, signal.SIGINT)
    assert ended(process) == 130
    with (workdir / "log.jsonl").open("a") as file:
        file.write('{"stage": "both", "step": 150, "loss": 1.0}\n{"stage": "head", "st')
    assert ended(start(workdir, out)) == 0
    assert outcome(workdir, out) == expected


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    # this limit on the size of a file lets the checkpoint at the start through (one copy), and no later one
    options = {"steps": 12, "keep": "last", "pad": 100_000, "checkpoint_every": 5}
    workdir, out = tmp_path / "full", tmp_path / "full.safetensors"
    assert ended(start(workdir, out, limit=500_000, **options)) == 2
    said = out.with_suffix(".txt").read_text()
    assert re.fullmatch(
        r".*can not write a checkpoint \(.*\); the one before is intact: free disk space.*", said
    )
    assert {p.name for p in workdir.iterdir()} <= {".lock", "log.jsonl", "training.safetensors"}
    assert ended(start(workdir, out, **options)) == 0
    assert outcome(workdir, out) == whole(tmp_path, **options)


def test_a_directory_serves_one_run_at_a_time(tmp_path: Path) -> None:
    process = start(tmp_path, tmp_path / "out.safetensors", pause=30)
    time.sleep(0.5)
    with pytest.raises(CuelightError, match="another run is using it"):
        run(tmp_path, TrainConfig())
    process.kill()
