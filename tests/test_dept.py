"""DePT: the exact part of its paper's page (papers/dept.md, "Smallest honest check").

Counts and shapes on T5-base's configuration, on the meta device; behaviour on the built-in T5 and SmolLM2.
"""

from __future__ import annotations

import math
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
from cuelight.errors import ConfigError
from cuelight.methods import base
from cuelight.methods.base import get_method
from cuelight.prompts.conditioning import Condition, answer_logits, choice_scores
from cuelight.tasks.text import TaskConfig, TextTask

ROWS = [
    {"text": "A joy from the first minute to the last.", "label": 0},
    {"text": "Dull.", "label": 1},
    {"text": "It tries hard, and yet it never quite works for me.", "label": 1},
]


@cache
def real(name: str) -> Backbone:
    return load_backbone(name, device="cpu", progress=False)


def dept(host: Backbone, *, max_length: int = 64, **options: Any) -> Any:
    config = TaskConfig.model_validate({"max_length": max_length})
    task = TextTask(host, "classification", ("positive", "negative"), config=config)
    kind = get_method("dept")
    return kind(host, task, kind.Config.model_validate(options))


def t5_base() -> Backbone:
    """T5-base by its configuration, without weights."""
    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
            )
        )
    return Backbone("t5-base", model, kind="seq2seq", tokenizer=real("flan-t5-small").tokenizer)


@pytest.mark.parametrize(
    ("positions", "length", "rank"),
    [(256, 60, 30), (256, 40, 45), (256, 20, 60), (256, 80, 15), (256, 0, 75), (512, 60, 24)],
)
def test_76800_values_learn_on_t5_base(
    positions: int, length: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every exact pair of the paper; the rank follows from the matched length 100."""
    host = t5_base()
    monkeypatch.setattr(
        base, "initial_prompt", lambda *_, **__: torch.zeros(length, 768)
    )  # no weights to read
    method = dept(host, max_length=positions, length=length)
    assert method.A.shape == (positions, rank)
    assert method.B.shape == (rank, 768)
    assert method.prompt.shape == (length, 768)
    assert method.trainable == length * 768 + (positions + 768) * rank == 76_800 == 100 * 768


@pytest.mark.parametrize(
    ("positions", "length", "match"), [(64, 60, 100), (200, 7, 33), (128, 1, 4), (256, 99, 100)]
)
def test_the_matched_size_is_never_exceeded(positions: int, length: int, match: int) -> None:
    host = real("flan-t5-small")
    width = host.tower.width
    if (match - length) * width < positions + width:
        with pytest.raises(ConfigError, match="leaves no room for a low-rank part"):
            dept(host, max_length=positions, length=length, match_length=match)
        return
    method = dept(host, max_length=positions, length=length, match_length=match)
    assert match * width - (positions + width) < method.trainable <= match * width


@pytest.mark.parametrize("name", ["flan-t5-small", "smollm2-135m"])
def test_at_the_start_it_is_a_short_prompt_and_only_b_learns_of_the_pair(name: str) -> None:
    host = real(name)
    method = dept(host, length=6, match_length=20)
    batch = method.task.collate(method.task.encode(ROWS))
    logits, targets = answer_logits(host, batch, method.condition(batch))
    plain, _ = answer_logits(host, batch, Condition(prompt=method.prompt))
    torch.testing.assert_close(logits, plain)
    torch.nn.functional.cross_entropy(logits, targets).backward()
    assert (method.A.grad == 0).all()
    assert method.B.grad.abs().sum() > 0
    assert (method.prompt.grad.abs().sum(1) > 0).all()
    assert {n for n, p in method.named_parameters() if p.requires_grad} == {"prompt", "A", "B"}
    assert all(p.grad is None for p in host.model.parameters())
    with torch.no_grad():
        method.B.normal_(std=0.1)
    method.zero_grad()
    method.loss(batch).backward()
    longest = batch.text.shape[1]
    assert (method.A.grad[:longest].abs().sum(1) > 0).all()
    assert (method.A.grad[longest:] == 0).all()  # rows of positions that the batch does not have


def test_the_low_rank_pair_starts_as_in_the_code() -> None:
    method = dept(real("flan-t5-small"), length=6, match_length=40)
    rank = method.B.shape[0]
    bound = 1 / math.sqrt(rank)
    assert float(method.A.detach().abs().max()) <= bound
    assert float(method.A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not method.B.any()
    assert torch.equal(method.A, dept(real("flan-t5-small"), length=6, match_length=40).A)
    assert not torch.equal(method.A, dept(real("flan-t5-small"), length=6, match_length=40, init_seed=1).A)


@pytest.mark.parametrize("name", ["flan-t5-small", "smollm2-135m"])
def test_the_offset_goes_by_position_and_the_first_layer_sees_prompt_and_text(name: str) -> None:
    """Two texts of other words: at one position both get the same offset, which is row ``i`` of ``A B``."""
    host = real(name)
    method = dept(host, length=6, match_length=20)
    seen: list[Tensor] = []
    handle = host.tower.layers[0].register_forward_pre_hook(
        lambda _, args, kw: seen.append((args[0] if args else kw["hidden_states"]).detach()), with_kwargs=True
    )
    items = method.task.encode(ROWS)
    batch = method.task.collate(items)
    with torch.no_grad():
        choice_scores(host, batch, method.condition(batch), [[5], [6]])
        before = seen.copy()
        seen.clear()
        method.B.normal_(std=0.5)
        choice_scores(host, batch, method.condition(batch), [[5], [6]])
    handle.remove()
    # An encoder reads prompt and text at once; a causal model reads the shared prompt once, then the texts.
    assert sum(s.shape[1] for s in seen) == 6 + batch.text.shape[1]
    first = 6 if host.kind == "seq2seq" else 0
    added = (method.A @ method.B).detach()
    for k, item in enumerate(items):
        difference = seen[-1][k] - before[-1][k]
        n = len(item.text)
        torch.testing.assert_close(difference[first : first + n], added[:n], atol=1e-4, rtol=1e-4)
        assert not difference[:first].any()
        assert not difference[first + n :].any()  # padding
    different = [a != b for a, b in zip(items[0].text, items[2].text, strict=False)]
    assert any(different)


def test_answers_do_not_depend_on_what_else_is_in_the_batch() -> None:
    host = real("smollm2-135m")
    method = dept(host, length=4, match_length=20)
    with torch.no_grad():
        method.B.normal_(std=0.05)
    items = method.task.encode(ROWS)
    together = method.predict(method.task.collate(items)).probabilities
    alone = torch.cat([method.predict(method.task.collate([i])).probabilities for i in items])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("length", [5, 0])
def test_saving_and_loading_reproduces_the_scores(length: int, tmp_path: Path) -> None:
    host = real("flan-t5-small")
    method = dept(host, length=length, match_length=20, scale=8.0)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    batch = method.task.collate(method.task.encode(ROWS))
    wanted = answer_logits(host, batch, method.condition(batch))[0]
    Prompt(method).save(tmp_path / "saved")
    again = cuelight.load(tmp_path / "saved", backbone=host).method
    assert again is not method
    assert torch.equal(answer_logits(host, batch, again.condition(batch))[0], wanted)
    size = (tmp_path / "saved" / "prompt.safetensors").stat().st_size
    assert size < 4 * method.trainable + 1000  # what learns, and nothing else


def test_without_a_prompt_only_the_pair_learns() -> None:
    host = real("flan-t5-small")
    method = dept(host, length=0, match_length=20)
    batch = method.task.collate(method.task.encode(ROWS))
    assert method.condition(batch).prompt is None
    torch.testing.assert_close(
        answer_logits(host, batch, method.condition(batch)), answer_logits(host, batch, Condition())
    )
    # The prompt's group stays, empty, so that --learning-rate is never the pair's.
    assert [(g.name, sum(p.numel() for p in g.params.values())) for g in method.groups()] == [
        ("prompt", 0),
        ("offset", method.trainable),
    ]
    method.loss(batch).backward()
    assert method.B.grad.abs().sum() > 0


def test_the_code_s_scale_is_alpha_over_the_root_of_the_rank() -> None:
    host = real("flan-t5-small")
    paper, code = (dept(host, length=6, match_length=40, rank=9, scale=s) for s in (None, 8.0))
    with torch.no_grad():
        for method in (paper, code):
            method.B.fill_(0.01)
    torch.testing.assert_close(code.offset(), paper.offset() * 8 / 3)
    torch.testing.assert_close(paper.offset(), paper.A @ paper.B)
    batch = code.task.collate(code.task.encode(ROWS))
    longest = batch.text.shape[1]
    torch.testing.assert_close(code.condition(batch).offset, code.offset()[:longest])


def test_the_prompt_s_rate_is_far_above_the_pair_s() -> None:
    for name in ("flan-t5-small", "smollm2-135m"):
        prompt, pair = dept(real(name), length=6, match_length=20).groups()
        assert prompt.lr >= 10 * pair.lr
        assert set(pair.params) == {"A", "B"}
