"""The loop learns what it should, at the rates, in the order and with the ends that were asked for."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from cuelight.errors import ConfigError, CuelightError, DataError
from cuelight.training import ParamGroup, Stage, TrainConfig, TrainResult, train
from cuelight.training.batches import Batches

X, Y = (torch.tensor(a) for a in load_digits(return_X_y=True))
X = X.float() / 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These problems are too small for more, and threads on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear() -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, 64, 10).requires_grad_(True)


def stage(model: nn.Linear, n: int = 200, name: str = "fit", **changes: Any) -> Stage:
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    given: dict[str, Any] = {
        "groups": [
            ParamGroup("weight", {"weight": model.weight}, 0.02),
            ParamGroup("bias", {"bias": model.bias}, 0.005),
        ],
        "examples": range(n),
        "collate": lambda rows: (X[rows], Y[rows]),
        "loss": lambda batch: cross_entropy(model(batch[0]), batch[1]),
        **changes,
    }
    return Stage(name, **given)


def fit(stages: Stage | list[Stage], model: nn.Module, **options: Any) -> TrainResult:
    stages = [stages] if isinstance(stages, Stage) else stages
    workdir = Path(w) if (w := options.pop("workdir", None)) else None
    return train(stages, model, TrainConfig(**options), workdir=workdir, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 3.0}, [(13, 1, 3), (26, 2, 3), (39, 3, 3)]),
        ({"steps": 20}, [(13, 1, 2), (20, 2, 2)]),  # the second pass is cut short
        ({"steps": 15}, [(13, 1, 1)]),  # hardly a second one
        ({"epochs": 2.0, "accumulation": 5}, [(3, 1, 2), (6, 2, 2)]),
        ({"steps": 1, "accumulation": 27}, [(1, 1, 2), (1, 2, 2)]),
    ],
)
def test_the_ends_of_epochs_are_told(options: dict[str, Any], expected: list[tuple[int, int, int]]) -> None:
    model, told, steps = linear(), [], [0]
    fit(
        stage(
            model,
            after_step=lambda: steps.__setitem__(0, steps[0] + 1),
            after_epoch=lambda epoch, epochs: told.append((steps[0], epoch, epochs)),
        ),
        model,
        **options,
    )
    assert told == expected


def test_learns_digits_like_the_closed_problem_allows() -> None:
    model = linear()

    def held_out() -> dict[str, float]:
        return {"accuracy": (model(X[1400:]).argmax(-1) == Y[1400:]).float().mean().item()}

    told = stage(model, 1400, validate=held_out, monitor="accuracy", higher_is_better=True)
    result = fit(told, model, epochs=5)
    assert result.best["accuracy"] > 0.87  # scikit-learn's LogisticRegression reaches 0.90 on this split
    assert held_out()["accuracy"] == result.best["accuracy"]
    assert result.steps == 5 * math.ceil(1400 / 16)
    assert result.peak_memory > 10_000_000
    assert sum("validation" in entry for entry in result.history) in (10, 11)


# -- what is computed in a step ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_accumulation_equals_a_larger_batch(optimizer: str) -> None:
    learned = []
    for batch_size, accumulation in ((16, 1), (8, 2), (4, 4)):
        model = linear()
        fit(
            stage(model, 160),
            model,
            steps=25,
            optimizer=optimizer,
            batch_size=batch_size,
            accumulation=accumulation,
        )
        learned.append(model.weight.detach().clone())
    torch.testing.assert_close(learned[1], learned[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learned[2], learned[0], rtol=1e-4, atol=1e-5)


def test_a_short_batch_weighs_what_it_holds() -> None:
    one, two = linear(), linear()
    fit(stage(one, 10), one, steps=1, batch_size=10, optimizer="sgd")
    fit(stage(two, 10), two, steps=1, batch_size=7, accumulation=2, optimizer="sgd")  # 7 and 3
    torch.testing.assert_close(two.weight, one.weight)


def test_accumulation_runs_on_through_the_end_of_an_epoch() -> None:
    seen: list[int] = []
    model = linear()
    told = stage(model, 10, collate=lambda rows: seen.extend(rows) or (X[rows], Y[rows]))
    result = fit(told, model, epochs=2, batch_size=4, accumulation=2)
    assert result.steps == 3  # 2 epochs of 3 batches, two batches a step
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_each_group_has_its_rate() -> None:
    model = linear()
    assert fit(stage(model), model, steps=3, schedule="constant").history[0]["lr"] == {
        "weight": 0.02,
        "bias": 0.005,
    }
    told = fit(stage(model), model, steps=3, schedule="constant", learning_rate=0.3)
    assert told.history[0]["lr"] == {"weight": 0.3, "bias": 0.005}


def test_sgd_takes_exactly_the_step_it_should() -> None:
    model = linear()
    fit(stage(model, 16), model, steps=1, optimizer="sgd", clip=0, weight_decay=0.0)
    weight = torch.zeros(10, 64, requires_grad=True)
    bias = torch.zeros(10, requires_grad=True)
    cross_entropy(X[:16] @ weight.T + bias, Y[:16]).backward()
    torch.testing.assert_close(model.weight, -0.02 * weight.grad)
    torch.testing.assert_close(model.bias, -0.005 * bias.grad)


def test_clipping_bounds_the_step() -> None:
    model = linear()
    groups = [ParamGroup("all", dict(model.named_parameters()), 1.0)]
    fit(stage(model, groups=groups), model, steps=1, optimizer="sgd", clip=0.01)
    norm = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_of_a_group_wins() -> None:
    model = linear()
    groups = [
        ParamGroup("weight", {"weight": model.weight}, 0.1, weight_decay=0.5),
        ParamGroup("bias", {"bias": model.bias}, 0.1),
    ]
    told = stage(model, groups=groups, loss=lambda batch: 0 * (model.weight.sum() + model.bias.sum()))
    with torch.no_grad():
        model.weight.fill_(1)
        model.bias.fill_(1)
    fit(told, model, steps=1, schedule="constant", weight_decay=0.2)
    torch.testing.assert_close(model.weight, torch.full((10, 64), 1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias, torch.full((10,), 1 - 0.1 * 0.2))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 2, [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", 0.2, [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("cosine", 0, [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]),
    ],
)
def test_warmup_and_schedule(schedule: str, warmup: float, expected: list[float]) -> None:
    model = linear()
    result = fit(stage(model), model, steps=10, schedule=schedule, warmup=warmup)
    assert [entry["lr"]["weight"] / 0.02 for entry in result.history] == pytest.approx(expected)
    assert [entry["lr"]["bias"] / 0.005 for entry in result.history] == pytest.approx(expected)


def test_only_the_groups_of_the_stage_get_a_gradient() -> None:
    backbone, model = nn.Linear(64, 64), linear()  # the backbone was left trainable by mistake

    def loss(batch: Any) -> torch.Tensor:
        assert model.weight.requires_grad
        assert not model.bias.requires_grad
        return cross_entropy(model(backbone(batch[0])), batch[1])

    told = stage(model, loss=loss, groups=[ParamGroup("weight", {"weight": model.weight}, 0.1)])
    before = backbone.weight.clone()
    fit(told, model, steps=3)
    assert backbone.weight.grad is None
    assert torch.equal(backbone.weight, before)
    assert model.bias.requires_grad
    assert not model.bias.any()
    assert model.weight.grad is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision(precision: str) -> None:
    kinds = set()
    model = linear()

    def loss(batch: Any) -> torch.Tensor:
        logits = model(batch[0])
        kinds.add(logits.dtype)
        return cross_entropy(logits, batch[1])

    result = fit(stage(model, loss=loss), model, steps=60, precision=precision)
    assert kinds == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
    assert model.weight.dtype == torch.float32
    assert result.history[-1]["loss"] < 0.8 < result.history[0]["loss"]


# -- order, stages, ends -------------------------------------------------------------------------------


def test_same_seed_same_bits_whatever_the_caller_drew() -> None:
    learned = []
    for seed in (1, 1, 2):
        torch.rand(len(learned)), np.random.rand(len(learned)), random.random()
        model = linear()
        noisy = lambda rows: (X[rows] + torch.randn(len(rows), 64), Y[rows])  # noqa: E731
        state = torch.random.get_rng_state()
        fit(stage(model, collate=noisy), model, steps=20, seed=seed)
        assert torch.equal(state, torch.random.get_rng_state())
        learned.append(model.weight.detach().clone())
    assert torch.equal(learned[0], learned[1])
    assert not torch.equal(learned[0], learned[2])


def test_worker_processes_change_nothing() -> None:
    learned = []
    for workers in (0, 2):
        model = linear()
        noisy = lambda rows: (X[rows] + torch.randn(len(rows), 64) + random.random(), Y[rows])  # noqa: E731

        def loss(batch: Any, model: nn.Linear = model) -> torch.Tensor:
            return cross_entropy(model(dropout(batch[0], 0.3)), batch[1])

        fit(stage(model, collate=noisy, loss=loss), model, steps=15, workers=workers)
        learned.append(model.weight.detach().clone())
    assert torch.equal(learned[0], learned[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_data_stays_one_line(workers: int) -> None:
    def collate(rows: list[int]) -> Any:
        raise DataError("row 3 has no text")

    model = linear()
    with pytest.raises(DataError, match=r"^row 3 has no text$"):
        fit(stage(model, collate=collate), model, steps=2, workers=workers)


def test_batch_order_may_be_the_methods_own() -> None:
    seen: list[int] = []
    model = linear()
    told = stage(
        model,
        6,
        collate=lambda rows: seen.extend(rows) or (X[rows], Y[rows]),
        batch_order=lambda seed, epoch, n: [(i + epoch + seed) % n for i in range(n)],
    )
    fit(told, model, epochs=2, batch_size=4, seed=1)
    assert seen == [1, 2, 3, 4, 5, 0, 2, 3, 4, 5, 0, 1]


def test_batches_split_over_processes() -> None:
    parts = [
        Batches(range(10), list, None, batch_size=4, seed=0, stage=0, rank=rank, world=3) for rank in range(3)
    ]
    for k in range(6):
        got = [part[k] for part in parts]
        assert sorted(i for rows in got if rows for i in rows) == sorted(parts[0].indices(k))
        assert [len(rows or []) for rows in got] == [part.sizes(k)[1] for part in parts]


def test_stages_follow_each_other() -> None:
    model, told = linear(), []

    def begin() -> None:
        told.append(("begin", bool(model.weight.any())))

    stages = [
        stage(model, name="one", begin=begin, finish=lambda: told.append("finish"), defaults={"steps": 4}),
        stage(
            model,
            name="two",
            begin=begin,
            examples=lambda: told.append("examples") or range(50),
            groups=lambda: told.append("groups") or [ParamGroup("bias", {"bias": model.bias}, 0.1)],
            after_step=lambda: model.bias.clamp_(-0.01, 0.01),
            defaults={"epochs": 1, "batch_size": 10, "learning_rate": 0.2, "schedule": "constant"},
        ),
    ]
    result = fit(stages, model)
    assert told == [("begin", False), "finish", ("begin", True), "groups", "examples"]
    assert result.steps == 4 + 5
    assert result.history[-1]["lr"] == {"bias": 0.2}
    assert model.bias.abs().max() <= 0.01
    assert fit(stages, model, steps=2, batch_size=16).steps == 4  # what is given wins over the defaults


def scripted(values: list[float], higher: bool, **options: Any) -> tuple[TrainResult, float]:
    """Train one number that counts the steps; the metric follows a script, one value an evaluation."""
    model = nn.Module()
    model.count = nn.Parameter(torch.zeros(()))
    script = iter(values)
    told = Stage(
        "count",
        [ParamGroup("count", {"count": model.count}, 1.0)],
        range(4),
        lambda rows: torch.tensor(rows),
        lambda batch: -model.count,
        validate=lambda: {"loss": next(script)},
        higher_is_better=higher,
    )
    result = fit(
        told, model, steps=5, evaluate_every=1, optimizer="adafactor", schedule="constant", **options
    )
    return result, model.count.item()


@pytest.mark.parametrize(
    ("values", "higher", "options", "kept", "steps"),
    [
        ([3, 1, 2, 1, 5], False, {}, 2, 5),  # of ties the earlier
        ([3, 1, 2, 4, 4], True, {}, 4, 5),
        ([3, 1, 2, 1, 5], False, {"keep": "last"}, 5, 5),
        ([3, 1, 2, 1, 0], False, {"patience": 2}, 2, 4),
        ([3, 1, 2, 1, 0], False, {"patience": 2, "keep": "last"}, 4, 4),
        ([math.nan, 3, math.nan, 4, 5], False, {}, 2, 5),
        ([math.nan] * 5, False, {}, 5, 5),
    ],
)
def test_best_last_and_patience(
    values: list[float], higher: bool, options: dict[str, Any], kept: int, steps: int
) -> None:
    result, count = scripted(values, higher, **options)
    assert count == pytest.approx(kept)
    assert result.steps == steps
    assert result.stopped_early == (steps < 5)
    assert len([entry for entry in result.history if "validation" in entry]) == steps
    if options.get("keep") != "last" and not math.isnan(values[kept - 1]):
        assert result.best == {"stage": "count", "step": kept, "loss": values[kept - 1]}


# -- what a user sees ----------------------------------------------------------------------------------


def test_log_and_history_agree(tmp_path: Path) -> None:
    model = linear()
    told = stage(model, validate=lambda: {"loss": math.nan})
    result = fit(told, model, steps=8, evaluate_every=4, workdir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (
        [line["step"] for line in lines] == [entry["step"] for entry in result.history] == list(range(1, 9))
    )
    assert [line["loss"] for line in lines] == [entry["loss"] for entry in result.history]
    assert lines[3]["validation"] == {"loss": None}  # JSON knows no nan
    assert all(line["time"] > 1.7e9 and line["seconds"] >= 0 for line in lines)


def test_plain_lines_when_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    model = linear()
    told = stage(model, validate=lambda: {"loss": 0.5})
    train([told], model, TrainConfig(steps=50), device="cpu")
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("fit  50/50  loss ")
    assert "lr " in lines[-1]
    assert lines[-1].endswith("loss 0.5  0 s left")
    train([stage(model)], model, TrainConfig(steps=50), device="cpu", progress=False)
    assert capfd.readouterr().err == ""


def test_a_loss_that_is_not_finite() -> None:
    model = linear()
    told = stage(model, loss=lambda batch: model(batch[0]).sum() * (math.inf if model.weight.any() else 1.0))
    with pytest.raises(
        CuelightError,
        match=r"^the loss became -?(inf|nan) at step 2 of stage 'fit': lower learning_rate \(now 0.02\)$",
    ):
        fit(told, model, steps=5)


def test_out_of_memory(tmp_path: Path) -> None:
    model = linear()
    told = stage(model, loss=lambda batch: model(batch[0]).sum() * torch.empty(10**15).sum())
    with pytest.raises(
        CuelightError, match=r"out of memory in stage 'fit' with batch_size=16: lower batch_size"
    ):
        fit(told, model, steps=5, workdir=tmp_path)
    assert fit(stage(model), model, steps=5, workdir=tmp_path).steps == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision='fp16' does not work on the CPU"),
        ({"steps": 5, "warmup": 5}, r"warmup=5 must be below the number of steps \(5\)"),
    ],
)
def test_a_setting_that_can_not_work(options: dict[str, Any], message: str) -> None:
    model = linear()
    with pytest.raises(ConfigError, match=message):
        fit(stage(model), model, **options)


def test_no_examples() -> None:
    model = linear()
    with pytest.raises(DataError, match="stage 'fit' has no examples"):
        fit(stage(model, 0), model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 1, "epochs": 1.0},
        {"steps": 0},
        {"warmup": 1.5},
        {"warmup": -1},
        {"learning_rate": math.inf},
        {"lerning_rate": 0.1},
        {"optimizer": "adam"},
        {"batch_size": 0},
    ],
)
def test_wrong_configurations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(**wrong)


def test_what_is_given_wins_over_the_defaults_of_a_stage() -> None:
    defaults = {"steps": 100, "batch_size": 4, "learning_rate": 0.3}
    assert TrainConfig().over(defaults).model_dump(include={"steps", "epochs", "batch_size"}) == {
        "steps": 100,
        "epochs": None,
        "batch_size": 4,
    }
    merged = TrainConfig(epochs=2, batch_size=16, learning_rate=None).over(defaults)
    assert (merged.steps, merged.epochs, merged.batch_size, merged.learning_rate) == (None, 2.0, 16, 0.3)
    assert TrainConfig().over({}).epochs == 10


def test_help_needs_no_torch() -> None:
    for name, field in TrainConfig.model_fields.items():
        assert field.description, name
    code = "import sys, cuelight.training; cuelight.training.TrainConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- several processes -----------------------------------------------------------------------------------


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = {
        "steps": 12,
        "batch_size": 7,
        "accumulation": 2,
        "optimizer": "sgd",
        "workdir": str(tmp_path / "run"),
    }
    done = subprocess.run(
        [*command, __file__, str(tmp_path / "two"), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = linear()
    history = fit(stage(model, 50), model, **{**options, "workdir": None}).history
    for rank in range(2):
        weight, losses = torch.load(tmp_path / f"two{rank}.pt", weights_only=True)
        torch.testing.assert_close(weight, model.weight.detach(), rtol=1e-4, atol=1e-5)
        assert losses == pytest.approx([entry["loss"] for entry in history], rel=1e-4)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 12


if __name__ == "__main__":
    from accelerate.state import PartialState

    torch.set_num_threads(1)
    network = linear()
    told_result = fit(stage(network, 50), network, **{**json.loads(sys.argv[2])})
    saved = (network.weight.detach(), [entry["loss"] for entry in told_result.history])
    torch.save(saved, f"{sys.argv[1]}{PartialState().process_index}.pt")
    PartialState().destroy_process_group()
