"""EPT: the exact part of its paper's page (papers/ept.md, "Smallest honest check").

Counts on T5-base's configuration, on the meta device; behaviour on the built-in T5 and MiniMind2.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import cuelight
from cuelight.artifact import Prompt
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.errors import ConfigError
from cuelight.methods import base
from cuelight.methods.base import get_method
from cuelight.prompts.conditioning import Condition, answer_logits, choice_scores
from cuelight.prompts.initial import vocabulary_sample
from cuelight.tasks.text import TaskConfig, TextTask

ROWS = [
    {"text": "A joy from the first minute to the last.", "label": 0},
    {"text": "Dull.", "label": 1},
    {"text": "It tries hard, and yet it never quite works for me.", "label": 1},
]
SMALL = {"length": 6, "match_length": 40, "spaces": 3, "space_width": 2}


@cache
def real(name: str) -> Backbone:
    return load_backbone(name, device="cpu", progress=False)


def ept(host: Backbone, *, max_length: int = 64, **options: Any) -> Any:
    config = TaskConfig.model_validate({"max_length": max_length})
    task = TextTask(host, "classification", ("positive", "negative"), config=config)
    kind = get_method("ept")
    return kind(host, task, kind.Config.model_validate(options))


def batch_of(method: Any) -> Any:
    return method.task.collate(method.task.encode(ROWS))


def disturbed(method: Any) -> Any:
    """The method as training might leave it."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.1)
    return method


def test_76800_values_learn_on_t5_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented setting: 256 positions, 40 short vectors, rank 18, four subspaces of width 4."""
    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
            )
        )
    host = Backbone("t5-base", model, kind="seq2seq", tokenizer=real("flan-t5-small").tokenizer)
    monkeypatch.setattr(base, "initial_prompt", lambda *_, **__: torch.zeros(40, 768))  # no weights to read
    method = ept(host, max_length=256)
    assert method.B.shape == (18, 768)
    assert method.trainable == 40 * 768 + (256 + 768) * 18 + 2 * 4 * 768 * 4 + 4 * 768 == 76_800 == 100 * 768
    assert ept(host, max_length=256, rank=7).trainable == 76_800 - 11 * (256 + 768)


@pytest.mark.parametrize("name", ["flan-t5-small", "minimind2-26m"])
def test_at_the_start_it_is_a_short_prompt(name: str) -> None:
    host = real(name)
    method = ept(host, **SMALL)
    batch = batch_of(method)
    logits, targets = answer_logits(host, batch, method.condition(batch))
    plain, _ = answer_logits(host, batch, Condition(prompt=method.prompt))
    torch.testing.assert_close(logits, plain)
    torch.nn.functional.cross_entropy(logits, targets).backward()
    # With C = 0 and U = 0 nothing reaches A, D and G yet; B and U learn.
    assert {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()} == {
        "prompt",
        "B",
        "up",
    }
    assert all(p.grad is None for p in host.model.parameters())
    disturbed(method).zero_grad()
    method.loss(batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_the_gate_is_a_softmax_over_subspaces() -> None:
    method = ept(real("flan-t5-small"), **SMALL)
    torch.testing.assert_close(method.weights(), torch.full((3,), 1 / 3))  # G = 0
    with torch.no_grad():
        method.gate.normal_()
    weights = method.weights().detach()
    assert float(weights.detach().sum()) == pytest.approx(1)
    assert float(weights.max() - weights.min()) > 0.01
    uniform = ept(real("flan-t5-small"), **SMALL, gate="uniform")
    torch.testing.assert_close(uniform.weights(), torch.full((3,), 1 / 3))
    assert "gate" not in dict(uniform.named_parameters())
    one = disturbed(ept(real("flan-t5-small"), **{**SMALL, "spaces": 1}))
    assert float(one.weights()) == 1
    fed = one.joint(one.offset())
    with torch.no_grad():
        one.gate.normal_()
    assert torch.equal(one.joint(one.offset()), fed)  # one subspace: the gate means nothing


def test_fusion_and_projection_are_what_the_page_says() -> None:
    """Against the formulas, row by row."""
    method = disturbed(ept(real("flan-t5-small"), **SMALL))
    with torch.no_grad():
        P, C = method.prompt, method.A @ method.B
        g = torch.softmax(P.mean(0) @ method.gate, 0)
        for k, row in enumerate(P):
            weights = torch.softmax(torch.stack([row @ c for c in C]) / P.shape[1] ** 0.5, 0)
            wanted = row + sum(w * c for w, c in zip(weights, C, strict=True))
            for s in range(3):
                wanted = wanted + g[s] * torch.nn.functional.gelu(row @ method.down[s]) @ method.up[s]
            torch.testing.assert_close(method.joint(C)[k], wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(method.offset(), C)


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"fusion": False}, set()),
        ({"projection": False}, {"down", "up", "gate"}),
        ({"decomposition": False}, {"A", "B"}),
        ({"gate": "uniform"}, {"gate"}),
        ({"fusion": False, "projection": False}, {"down", "up", "gate"}),
    ],
)
def test_every_part_can_be_taken_away(off: dict[str, Any], gone: set[str]) -> None:
    host = real("flan-t5-small")
    method = disturbed(ept(host, **SMALL, **off))
    assert {"prompt", "A", "B", "down", "up", "gate"} - set(dict(method.named_parameters())) == gone
    assert method.trainable <= 40 * host.tower.width
    whole = ept(host, **SMALL)
    if gone - {"A", "B"}:  # what a part leaves free goes into the rank
        assert method.B.shape[0] >= whole.B.shape[0]
    condition = method.condition(batch_of(method))
    assert (condition.offset is None) == ("A" in gone)
    if not method.config.fusion and not method.config.projection:
        assert torch.equal(condition.prompt, method.prompt)  # that is DePT
    for keys in ("offset", "basis"):
        other = disturbed(ept(host, **SMALL, keys=keys))
        assert other.loss(batch_of(other)).isfinite()


def test_folded_is_the_same_and_computed_once(tmp_path: Path) -> None:
    host = real("minimind2-26m")
    method = disturbed(ept(host, **SMALL))
    batch = batch_of(method)
    live = answer_logits(host, batch, method.condition(batch))[0]
    with torch.no_grad():
        folded = method.condition(batch)
        torch.testing.assert_close(answer_logits(host, batch, folded)[0], live, atol=1e-5, rtol=1e-5)
        assert method.condition(batch) is folded
        method.up.mul_(2)
        assert method.condition(batch) is not folded
        wanted = choice_scores(host, batch, method.condition(batch), [[5], [6]])
        Prompt(method).save(tmp_path / "saved")
        again = cuelight.load(tmp_path / "saved", backbone=host).method
        assert torch.equal(choice_scores(host, batch, again.condition(batch), [[5], [6]]), wanted)


def test_svd_starts_at_the_nearest_matrix_of_that_rank() -> None:
    host = real("flan-t5-small")
    method = ept(host, **SMALL, rank=9, start="svd", init_seed=3)
    table = host.embed(torch.tensor(vocabulary_sample(host, 64, 3))).float()
    singular = torch.linalg.svdvals(table)
    error = torch.linalg.norm(table - method.offset().detach())
    torch.testing.assert_close(error, singular[9:].square().sum().sqrt(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="rank: 65 is more than"):
        ept(host, **SMALL, rank=65, start="svd")


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no room for a low-rank part"):
        ept(real("flan-t5-small"), length=40, match_length=40)


def test_the_modules_learn_slower_than_the_prompt() -> None:
    prompt, rest = ept(real("flan-t5-small"), **SMALL).groups()
    assert set(rest.params) == {"A", "B", "down", "up", "gate"}
    assert prompt.lr >= 100 * rest.lr
    assert ept(real("flan-t5-small"), **SMALL, offset_rate=0.01).groups()[1].lr == 0.01
    plain = ept(real("flan-t5-small"), **SMALL, decomposition=False, projection=False)
    assert [g.name for g in plain.groups()] == ["prompt"]


def test_from_a_table_to_a_saved_prompt(tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    lines = [
        f"what a {w} film number {k},{label}"
        for k in range(24)
        for w, label in (("good", "yes"), ("bad", "no"))
    ]
    data.write_text("text,label\n" + "\n".join(lines))
    run = cuelight.tune(
        "ept",
        backbone="minimind2-26m",
        data=str(data),
        steps=4,
        batch_size=4,
        output=tmp_path / "run",
        **SMALL,
    )
    assert run.training is not None and run.training.steps == 4
    texts = ["a good film", "a bad film"]
    again = cuelight.load(tmp_path / "run").predict(texts, probabilities=True)
    assert again == run.prompt.predict(texts, probabilities=True)
