"""PTEC: the exact part of its paper's page (papers/ptec.md, "Smallest honest check")."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.methods import base
from cuelight.methods.base import Data, get_method
from cuelight.tasks.text import TaskConfig, TextTask
from tiny_models import backbone, batch_of, rows

CLASSES = ("about police", "about women", "neutral", "other")
ROWS = [
    {"text": "They are out of control!", "labels": [1, 0, 0, 0]},
    {"text": "What a nice day, is it not, for a walk along the river?", "labels": [0, 0, 1, 0]},
    {"text": "She and the officer.", "labels": [1, 1, 0, 0]},
    {"text": "Them again.", "labels": [1, 0, 0, 0]},
]


@cache
def real(name: str) -> Backbone:
    return load_backbone(name, device="cpu", progress=False)


def ptec(host: Backbone, kind: str = "multilabel", classes: tuple[str, ...] = CLASSES, **options: Any) -> Any:
    task = TextTask(host, kind, classes, config=TaskConfig.model_validate({"max_length": 64}))
    method = get_method("ptec")
    return method(host, task, method.Config.model_validate({"length": 5, **options}))


def test_the_papers_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """HateSpeech: 22 labels; LLaMA-7B with 53 vectors and BLOOM-1.7B with 183, by their configurations."""
    classes = tuple(f"label {k}" for k in range(22))
    for config, length, count in (
        (hf.LlamaConfig(), 53, 307_200),
        (hf.BloomConfig(hidden_size=2048, n_layer=24, n_head=16), 183, 419_840),
    ):
        with torch.device("meta"):
            model = hf.AutoModelForCausalLM.from_config(config)
        host = Backbone("paper", model, kind="causal", tokenizer=real("minimind2-26m").tokenizer)
        start = torch.zeros(length, host.tower.width)
        monkeypatch.setattr(base, "initial_prompt", lambda *_, start=start, **__: start)
        assert ptec(host, classes=classes, length=length).trainable == count


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "minilm-l6"])
def test_only_prompt_and_head_learn(name: str) -> None:
    host = real(name)
    method = ptec(host)
    assert method.trainable == 5 * host.tower.width + 4 * host.tower.width
    method.loss(method.task.collate(method.task.encode(ROWS))).backward()
    assert (method.prompt.grad.abs().sum(1) > 0).all()
    assert method.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in host.model.parameters())
    frozen = ptec(host, train_head=False)
    assert [g.name for g in frozen.groups()] == ["prompt"]
    assert frozen.trainable == 5 * host.tower.width
    alone = ptec(host, length=0)
    assert alone.trainable == 4 * host.tower.width
    assert alone.loss(alone.task.collate(alone.task.encode(ROWS))).isfinite()
    assert [g.lr for g in ptec(host, head_rate=0.5).groups()][1] == 0.5


def test_rare_labels_weigh_more() -> None:
    method = ptec(real("minimind2-26m"))
    items = method.task.encode(ROWS)
    method.prepare(Data(items, []), 0)
    assert method.positive.tolist() == [1, 3, 3, 3]  # counts 3, 1, 1 and none at all
    batch = method.task.collate(items)
    scores = method.scores(batch)
    p, y, w = scores.sigmoid(), batch.extra["labels"], method.positive
    wanted = -(w * y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(method.loss(batch), wanted, rtol=1e-4, atol=1e-5)
    plain = ptec(real("minimind2-26m"), positive_weights=False)
    plain.prepare(Data(items, []), 0)
    assert plain.positive.tolist() == [1, 1, 1, 1]
    even = method.task.encode([{**row, "labels": [0, 1, 0, 1]} for row in ROWS])
    method.prepare(Data([*even, *method.task.encode([{**r, "labels": [1, 0, 1, 0]} for r in ROWS])], []), 0)
    assert method.positive.tolist() == [1, 1, 1, 1]  # uniform counts: plain cross-entropy
    with torch.no_grad():
        method.head.weight.zero_()
    assert float(method.loss(batch).detach()) == pytest.approx(math.log(2))
    assert (method.scores(batch) == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom"])
def test_padding_changes_no_score(name: str) -> None:
    """On either side; learned, rotary, shifted and relative positions."""
    host = backbone(name, double=True)
    torch.manual_seed(0)
    head = torch.nn.Linear(host.tower.width, 4, bias=False).double()
    from cuelight.prompts.conditioning import Condition, answer_states

    condition = Condition(prompt=torch.randn(3, host.tower.width, dtype=torch.double))
    texts = rows(6, 2)
    wanted = head(torch.cat([answer_states(host, batch_of([t]), condition) for t in texts]))
    for how in ({}, {"left": True}, {"extra": 9}, {"left": True, "extra": 9}):
        batch = batch_of(texts, **how)
        torch.testing.assert_close(head(answer_states(host, batch, condition)), wanted, rtol=1e-4, atol=1e-4)


def test_the_order_of_labels_and_rows_means_nothing() -> None:
    method = ptec(real("minimind2-26m"))
    items = method.task.encode(ROWS)
    scores = method.scores(method.task.collate(items))
    turned = method.scores(method.task.collate(items[::-1]))
    torch.testing.assert_close(scores, turned.flip(0), rtol=1e-4, atol=1e-4)


def test_one_pass_per_batch_and_no_decoding() -> None:
    method = ptec(real("minimind2-26m"), init="normal")
    calls = []
    handle = method.backbone.tower.layers[0].register_forward_hook(lambda *_: calls.append(1))
    batch = method.task.collate(method.task.encode(ROWS))
    with torch.no_grad():
        found = method.predict(batch)
    handle.remove()
    assert len(calls) == 2  # the prompt that all rows share, and the rows
    assert found.probabilities.shape == (4, 4)
    assert all(set(answer) <= set(CLASSES) for answer in found.answers)


def test_the_prompt_starts_as_label_names() -> None:
    host = real("minimind2-26m")
    names = [i for name in CLASSES for i in host.tokenizer(" " + name, add_special_tokens=False).input_ids]
    table = host.embed(torch.tensor(names)).float()
    many = ptec(host, length=len(names) + 7).prompt.detach()
    torch.testing.assert_close(many[: len(names)], table)
    few = ptec(host, length=4).prompt.detach()
    left = iter(table)  # some of them, in their order
    assert all(any(torch.allclose(one, row) for one in left) for row in few)
    assert not torch.equal(few, ptec(host, length=4, init_seed=5).prompt)


def test_answers_are_the_papers_and_probabilities_calibrated() -> None:
    """Calibration moves chances, never answers; it is fitted on what it is given and twice the same."""
    method = ptec(real("minimind2-26m"))
    items = method.task.encode(ROWS * 4)
    method.prepare(Data(items, []), 0)
    batch = method.task.collate(items)
    before = method.predict(batch)
    method._calibrate(items)
    fit = method.platt.clone()
    assert not torch.equal(fit, torch.tensor([1.0, 0.0]))
    after = method.predict(batch)
    assert after.answers == before.answers
    truth = batch.extra["labels"]

    def loss(chances: Any) -> float:
        return float(torch.nn.functional.binary_cross_entropy(chances, truth))

    assert loss(after.probabilities) < loss(before.probabilities)
    method._calibrate(items)
    assert torch.equal(method.platt, fit)
    raw = ptec(real("minimind2-26m"), calibration="none")
    raw._calibrate(items)
    found = raw.predict(batch)
    assert [[c in a for c in CLASSES] for a in found.answers] == (found.probabilities > 0.5).tolist()


def test_one_label_a_row_is_learned_by_softmax() -> None:
    method = ptec(real("minilm-l6"), "classification", ("a", "b", "c"))
    items = method.task.encode([{"text": "one", "label": 0}, {"text": "two", "label": 2}])
    batch = method.task.collate(items)
    wanted = torch.nn.functional.cross_entropy(method.scores(batch), torch.tensor([0, 2]))
    torch.testing.assert_close(method.loss(batch), wanted)
    assert torch.allclose(method.predict(batch).probabilities.sum(1), torch.ones(2))


def test_from_a_table_to_a_saved_prompt(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    words = {"red": [1, 0, 0], "blue": [0, 1, 0], "green sea": [0, 1, 1]}
    lines = [
        f'{{"text": "a {word} thing number {k}", "labels": {[n for n, on in zip(("r", "b", "g"), on_, strict=True) if on]}}}'
        for k in range(12)
        for word, on_ in words.items()
    ]
    data.write_text("\n".join(lines).replace("'", '"'))
    run = cuelight.tune(
        "ptec",
        backbone="minilm-l6",
        data=str(data),
        steps=40,
        batch_size=8,
        length=4,
        output=tmp_path / "run",
    )
    assert {"micro_f1", "macro_f1", "labels_per_row", "calibration_error"} <= set(run.metrics)
    assert run.metrics["micro_f1"] > 0.6
    texts = ["a red thing", "a green sea"]
    again = cuelight.load(tmp_path / "run").predict(texts, probabilities=True)
    assert again == run.prompt.predict(texts, probabilities=True)
