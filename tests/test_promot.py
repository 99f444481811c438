"""ProMoT: the exact part of its paper's page (papers/promot.md, "Smallest honest check")."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import cuelight
from cuelight.artifact import Prompt
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.cli.main import run as cli
from cuelight.errors import ArtifactError, ConfigError
from cuelight.evaluation.forgetting import format_rate, gradient_alignment
from cuelight.methods.base import Data, get_method
from cuelight.prompts.conditioning import Condition, answer_logits
from cuelight.tasks.text import TaskConfig, TextTask
from cuelight.training import TrainConfig, train
from tiny_models import build

ROWS = [
    {"text": f"what a {w} film number {k}", "label": n}
    for k in range(8)
    for n, w in enumerate(("good", "bad"))
]


@cache
def tokenizer() -> Any:
    return load_backbone("minimind2-26m", device="cpu", progress=False).tokenizer


def tiny(name: str = "llama") -> Backbone:
    """Random weights: what is tested is which of them move."""
    model = build(name, vocab_size=len(tokenizer()))
    return Backbone(name, model, kind="seq2seq" if name == "t5" else "causal", tokenizer=tokenizer())


def promot(host: Backbone, **options: Any) -> Any:
    task = TextTask(
        host, "classification", ("yes", "no"), config=TaskConfig.model_validate({"max_length": 64})
    )
    method = get_method("promot")
    return method(host, task, method.Config.model_validate({"length": 3, **options}))


def prepared(method: Any) -> tuple[Data, Any]:
    items = method.task.encode(ROWS)
    data = Data(items, items[:4], ROWS)
    method.prepare(data, 0)
    return data, items


def run(stages: Any, method: Any, steps: int = 3, **options: Any) -> None:
    config = TrainConfig(steps=steps, batch_size=4, keep="last", **options)
    train(stages, method, config, progress=False)


def weights_of(method: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in method.weights.items()}


def scores(host: Backbone, method: Any, prompt: Tensor | None) -> Tensor:
    batch = method.task.collate(method.task.encode(ROWS))
    with torch.no_grad():
        return answer_logits(host, batch, Condition(prompt=prompt))[0]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_each_stage_moves_one_and_leaves_the_other(name: str) -> None:
    host = tiny(name)
    method = promot(host)
    data, _ = prepared(method)
    before = scores(host, method, None)
    first, second = method.stages(data)
    assert [g.name for s in (first, second) for g in s.groups] == ["prompt", "weights"]
    assert sum(p.numel() for g in first.groups for p in g.params.values()) == 3 * host.tower.width
    start, prompt = weights_of(method), method.prompts[0].detach().clone()

    run([first], method)
    learned = method.prompts[0].detach().clone()
    assert not torch.equal(learned, prompt)
    assert all(torch.equal(w, start[n]) for n, w in weights_of(method).items())
    # Without the prompt it is the pretrained model, exactly: nothing else can have been forgotten.
    assert torch.equal(scores(host, method, None), before)
    assert torch.equal(scores(method.tuned, method, None), before)
    # With no second stage it is prompt tuning.
    method._enter(2)
    torch.testing.assert_close(
        method.predict(method.task.collate(method.task.encode(ROWS))).probabilities,
        method.task.predict(
            method.task.collate(method.task.encode(ROWS)), Condition(prompt=learned)
        ).probabilities,
    )

    run([second], method, learning_rate=0.3)  # the prompt's rate; the model keeps its own
    assert torch.equal(method.prompts[0].detach(), learned)
    moved = weights_of(method)
    assert any(not torch.equal(w, start[n]) for n, w in moved.items())
    assert max(float((w - start[n]).abs().max()) for n, w in moved.items()) < 0.01
    assert torch.equal(scores(host, method, None), before)  # the backbone itself stays


def test_the_prompt_alone_is_prompt_tuning() -> None:
    """Stage one gives the very tensors of `prompt-tuning`."""
    host = tiny()
    method, plain = promot(host), get_method("prompt-tuning")
    data, items = prepared(method)
    (first, _) = method.stages(data)
    other = plain(host, method.task, plain.Config(length=3))
    assert torch.equal(other.prompt, method.prompts[0])
    run([first], method)
    run(other.stages(Data(items, [], ROWS)), other)
    torch.testing.assert_close(other.prompt, method.prompts[0])


@pytest.mark.parametrize("control", ["joint", "random_prompt", "drop_prompt"])
def test_controls(control: str) -> None:
    method = promot(tiny(), **{control: True})
    data, _ = prepared(method)
    stages = method.stages(data)
    assert [s.name for s in stages] == (["prompt", "model"] if control == "drop_prompt" else ["model"])
    start = method.prompts[0].detach().clone()
    run(stages[-1:], method)
    assert torch.equal(method.prompts[0].detach(), start) == (control != "joint")
    if control == "drop_prompt":
        batch = method.task.collate(method.task.encode(ROWS))
        wanted = method.predict(batch).probabilities
        with torch.no_grad():
            method.prompts[0].normal_()
        assert torch.equal(method.predict(batch).probabilities, wanted)
    with pytest.raises(ConfigError, match="joint"):
        promot(tiny(), joint=True, drop_prompt=True)


def test_the_second_stage_has_steps_of_its_own() -> None:
    method = promot(tiny(), model_steps=2)
    data, _ = prepared(method)
    seen = {"prompt": 0, "model": 0}
    stages = method.stages(data)
    for stage in stages:
        plain = stage.loss

        def loss(batch: Any, plain: Any = plain, name: str = stage.name) -> Tensor:
            seen[name] += 1
            return plain(batch)

        stage.loss = loss
    run(stages, method, steps=5)
    assert seen == {"prompt": 5, "model": 2}


@pytest.mark.parametrize("mixing", ["mixed", "sequential"])
def test_every_task_has_its_own_prompt(mixing: str, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    lines = [f"number {k} is {'even' if k % 2 == 0 else 'odd'},{('two', 'one')[k % 2]}" for k in range(24)]
    other.write_text("text,label\n" + "\n".join(lines))
    host = tiny()
    method = promot(host, also=str(other), mixing=mixing)
    data, _ = prepared(method)
    stages = method.stages(data)
    names = ["prompt", f"prompt of {other}", "model"] + (
        [f"model on {other}"] if mixing == "sequential" else []
    )
    assert [s.name for s in stages] == names
    assert not torch.equal(method.prompts[0], method.prompts[1])
    run(stages, method, steps=2)
    rows = [method._rows[0][0], method._rows[1][0], method._rows[0][1]]
    batch = method.collate(rows)
    condition = method.condition(batch)
    for k, task in enumerate((0, 1, 0)):
        assert torch.equal(condition.prompt[k], method.prompts[task])
    # Together as alone.
    logits, _ = answer_logits(method.tuned, batch, condition)
    parts = [
        answer_logits(method.tuned, method.collate([row]), Condition(prompt=method.prompts[row[0]]))[0]
        for row in rows
    ]
    torch.testing.assert_close(logits, torch.cat(parts), rtol=1e-4, atol=1e-4)
    assert "two" in tokenizer().decode(rows[1][1].answer) or "one" in tokenizer().decode(rows[1][1].answer)


def test_a_solved_example_stands_before_every_text() -> None:
    method = promot(tiny(), one_shot=True)
    _, items = prepared(method)
    batch = method.collate([(0, item) for item in items[:4]])
    for k in range(4):
        text = tokenizer().decode(batch.text[k][batch.text_mask[k] == 1])
        assert text.count("film number") == 2 and text.count("Label:") == 2
    found = method.predict(method.task.collate(items[:2]))
    assert found.probabilities.shape == (2, 2)
    again = promot(tiny(), one_shot=True)
    again.load_text(method.text)
    assert torch.equal(again.predict(again.task.collate(items[:2])).probabilities, found.probabilities)


def test_alignment_of_gradients() -> None:
    host = tiny()
    method = promot(host)
    _, items = prepared(method)
    batch, turned = method.task.collate(items[:4]), method.task.collate(items[:4])
    turned.answer = turned.answer.roll(1, 0)
    named = {n.replace("/", "."): p for n, p in method.weights.items()}

    def loss(permuted: bool, other: Any = turned) -> Tensor:
        return method.model_loss(other if permuted else batch)

    method.eval()
    same = gradient_alignment(lambda permuted: loss(permuted, batch), named)
    assert all(value == pytest.approx(1, abs=1e-6) for value in same.values())
    far = gradient_alignment(loss, named)
    assert far.keys() == same.keys() and len(far) > 2
    assert -1 <= far["all"] < 0.9999


def test_the_rate_of_answers_in_a_foreign_format() -> None:
    assert format_rate(["yes", "No.", "Paris", " YES "], ["yes", "no"]) == 0.75
    assert format_rate([], ["yes"]) == 0


def test_the_model_can_be_given_to_other_methods(tmp_path: Path) -> None:
    host = tiny()
    method = promot(host)
    data, _ = prepared(method)
    run(method.stages(data), method)
    folder = Prompt(method).export_model(tmp_path / "model")
    again = hf.AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in again.named_parameters():
        assert torch.equal(weight, method.weights[name.replace(".", "/")])
    assert load_backbone(str(folder), progress=False).kind == "causal"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        Prompt(method).export_model(tmp_path / "full")
    kind = get_method("prompt-tuning")
    with pytest.raises(ArtifactError, match="leaves the backbone as it is"):
        Prompt(kind(host, method.task, kind.Config(length=2))).export_model(tmp_path / "none")


def test_a_solved_example_is_of_the_same_task_and_never_the_row_itself(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    lines = [f"number {k} is {'even' if k % 2 == 0 else 'odd'},{('two', 'one')[k % 2]}" for k in range(24)]
    other.write_text("text,label\n" + "\n".join(lines))
    method = promot(tiny(), one_shot=True, also=str(other))
    prepared(method)
    for k, rows in enumerate(method._rows):
        for task, item in rows:
            assert task == k
            seen = {tuple(method._drawn(task, item, fixed=False)) for _ in range(30)}
            assert len(seen) > 3
            for solved in seen:
                assert tokenizer().decode(item.text).strip() not in tokenizer().decode(list(solved))
                assert ("number" in tokenizer().decode(list(solved))) and (
                    ("film" in tokenizer().decode(list(solved))) == (k == 0)
                )
    alone = promot(tiny(), one_shot=True)
    one = Data(alone.task.encode(ROWS[:1]), [], ROWS)
    with pytest.raises(ConfigError, match="one_shot: there is no other row"):
        alone.prepare(one, 0)


def test_several_tasks_all_learn(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "\n".join(f"row {k},{'xy'[k % 2]}" for k in range(20)))
    method = promot(tiny(), also=str(other), joint=True)
    data, _ = prepared(method)
    start = [p.detach().clone() for p in method.prompts]
    run(method.stages(data), method)
    assert all(not torch.equal(p, s) for p, s in zip(method.prompts, start, strict=True))
    with pytest.raises(ConfigError, match="twice"):
        promot(tiny(), also=f"{other},{other}")


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_with_lora_the_model_is_the_backbone_and_its_updates(name: str, tmp_path: Path) -> None:
    host = tiny(name)
    before = {n: p.detach().clone() for n, p in host.model.named_parameters()}
    method = promot(host, model="lora", rank=2)
    data, items = prepared(method)
    first, second = method.stages(data)
    start = weights_of(method)
    run([first], method)
    assert all(torch.equal(w, start[n]) for n, w in weights_of(method).items())
    prompt = method.prompts[0].detach().clone()
    run([second], method, steps=6)
    assert torch.equal(method.prompts[0].detach(), prompt)
    assert any(not torch.equal(w, start[n]) for n, w in weights_of(method).items())
    assert all(torch.equal(p, before[n]) for n, p in host.model.named_parameters())
    assert method.trainable < sum(p.numel() for p in host.model.parameters()) / 2
    # The exported model answers as the backbone with its updates does.
    folder = Prompt(method).export_model(tmp_path / "model")
    again = load_backbone(str(folder), progress=False)
    task = TextTask(again, "classification", ("yes", "no"), config=method.task.config)
    batch = method.task.collate(items)
    torch.testing.assert_close(
        task.predict(batch, Condition(prompt=prompt)).probabilities,
        method.eval().predict(batch).probabilities,
    )
    assert not torch.allclose(scores(host, method, prompt), scores(again, method, prompt))


def test_stopped_in_the_second_stage_and_run_again(tmp_path: Path) -> None:
    """What was learned is the same, bit for bit."""

    def learned(folder: Path, stop: int | None = None) -> Any:
        method = promot(tiny(), one_shot=True)
        data, _ = prepared(method)
        stages = method.stages(data)
        plain, seen = stages[1].loss, []

        def loss(batch: Any) -> Tensor:
            seen.append(1)
            if len(seen) == stop:
                raise OSError("stopped here")
            return plain(batch)

        stages[1].loss = loss
        config = TrainConfig(steps=4, batch_size=4, keep="last", checkpoint_every=1)
        train(stages, method, config, workdir=folder, progress=False)
        assert folder.name == "whole" or len(seen) == 2  # it goes on at the third step
        return method.state_dict()

    whole = learned(tmp_path / "whole")
    with pytest.raises(OSError, match="stopped here"):
        learned(tmp_path / "cut", stop=3)
    again = learned(tmp_path / "cut")
    assert whole.keys() == again.keys() and all(torch.equal(whole[n], again[n]) for n in whole)


def test_from_real_reviews_to_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = cuelight.tune(
        "promot",
        backbone="minimind2-26m",
        data="film-reviews",
        shots=4,
        max_test=8,
        max_validation=4,
        max_length=64,
        steps=2,
        batch_size=2,
        one_shot=True,
        model="lora",
        output=tmp_path / "run",
    )
    assert run.training is not None and run.training.steps == 4
    texts = ["a good film", "a bad film"]
    again = cuelight.load(tmp_path / "run").predict(texts, probabilities=True)
    assert again == run.prompt.predict(texts, probabilities=True)
    assert cli(["export", str(tmp_path / "run"), str(tmp_path / "model"), "--as", "model"]) == 0
    assert (
        load_backbone(str(tmp_path / "model"), progress=False).fingerprint
        != run.prompt.method.backbone.fingerprint
    )
    assert cli(["export", str(tmp_path / "run"), str(tmp_path / "adapter")]) == 2
    assert "PEFT has no such method" in capsys.readouterr().err
