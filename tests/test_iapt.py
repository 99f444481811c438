"""IAPT: the exact part of its paper's page (papers/iapt.md, "Smallest honest check")."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.methods.base import Data, get_method
from cuelight.methods.language.iapt import gelu_fit, rational
from cuelight.prompts.conditioning import answer_logits, choice_scores, generate
from cuelight.tasks.text import TaskConfig, TextTask

ROWS = [
    {"text": "A joy from the first minute to the last.", "label": 0},
    {"text": "Dull.", "label": 1},
    {"text": "It tries hard, and yet it never quite works for me.", "label": 1},
]


@cache
def real(name: str) -> Backbone:
    return load_backbone(name, device="cpu", progress=False)


def iapt(host: Backbone, kind: str = "classification", **options: Any) -> Any:
    classes = ("positive", "negative") if kind == "classification" else ()
    task = TextTask(host, kind, classes, config=TaskConfig.model_validate({"max_length": 64}))
    method = get_method("iapt")
    return method(host, task, method.Config.model_validate({"bottleneck": 6, **options}))


def batch_of(method: Any, rows: list[dict[str, Any]] | None = None) -> Any:
    return method.task.collate(method.task.encode(rows or ROWS))


def prompts_of(method: Any, batch: Any) -> list[Tensor]:
    """What every layer's generator writes while ``batch`` is scored."""
    seen: list[Tensor] = []
    plain = method.generate
    method.generate = lambda *args: seen.append(plain(*args)) or seen[-1]
    try:
        answer_logits(method.backbone, batch, method.condition(batch))
    finally:
        del method.generate
    return seen


def test_the_papers_sizes() -> None:
    """LLaMA-2 7B by its configuration, activations aside: 135,248 a layer, 4.33 million in all."""
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig())
    host = Backbone("llama-7b", model, kind="causal", tokenizer=real("minimind2-26m").tokenizer)
    layer = 135_248
    assert iapt(host, bottleneck=16, activation="fixed").trainable == 32 * layer
    whole = iapt(host, bottleneck=16)
    assert whole.trainable == 32 * (layer + 5 + 1 + 4)
    assert iapt(host, bottleneck=16, share=4).trainable == 8 * layer + 32 * 10
    assert iapt(host, bottleneck=16, share=5, activation="fixed").trainable == 7 * layer
    assert iapt(host, bottleneck=16, layers="first").trainable == layer + 10
    assert round(iapt(host, bottleneck=32, activation="fixed").trainable / 1e6, 2) == 8.52


def test_activations_start_as_gelu_and_have_no_poles() -> None:
    top, bottom = (torch.tensor(c) for c in gelu_fit(5, 4))
    x = torch.linspace(-4, 4, 3001)
    assert float((rational(x, top, bottom) - torch.nn.functional.gelu(x)).abs().max()) < 0.003
    draw = torch.Generator().manual_seed(0)
    far = torch.linspace(-50, 50, 2001)
    for _ in range(20):
        a, b = torch.randn(6, generator=draw), torch.randn(4, generator=draw)
        value = rational(far, a, b)
        above = sum(a[j].double() * far.double() ** j for j in range(6))
        below = 1 + sum(b[k].double() * far.double() ** (k + 1) for k in range(4)).abs()
        assert (below >= 1).all()
        torch.testing.assert_close(value.double(), above / below, rtol=1e-3, atol=1e-3)
    assert rational(far.half(), a, b).isfinite().all()  # powers of 50 are computed in float32


def test_pooling_by_its_formula_for_any_length() -> None:
    method = iapt(real("minimind2-26m"), normalise=False)
    width = method.backbone.tower.width
    for length in (1, 3, 9):
        states = torch.randn(2, length + 2, width)
        is_text = torch.zeros(2, length + 2, dtype=torch.bool)
        is_text[0, 1 : 1 + length] = True
        is_text[1, 1] = True
        found = method.generate(1, states, is_text)
        assert found.shape == (2, 4, width)
        for k in range(2):
            U = method.down[1](states[k][is_text[k]])
            weights = method.pool[1](U).softmax(0)
            torch.testing.assert_close(weights.sum(0), torch.ones(4))
            G = rational(weights.T @ U, method.top[1], method.bottom[1])
            torch.testing.assert_close(found[k], method.up[1](G), rtol=1e-4, atol=1e-5)
        states[~is_text] = 1e4  # neither padding nor slots nor the answer matter
        torch.testing.assert_close(method.generate(1, states, is_text), found)
    with torch.no_grad():
        method.pool[1].weight.zero_()
    mean = iapt(real("minimind2-26m"), normalise=False, pooling="mean")
    torch.testing.assert_close(method.generate(1, states, is_text), mean.generate(1, states, is_text))


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
def test_prompts_come_from_the_text_alone(name: str) -> None:
    host = real(name)
    method = iapt(host, "generation")
    texts = [row["text"] for row in ROWS]
    answers = (["yes", "no", "perhaps not"], ["something else entirely", "a", "b c d"])
    found = [
        prompts_of(
            method, batch_of(method, [{"text": t, "targets": [a]} for t, a in zip(texts, said, strict=True)])
        )
        for said in answers
    ]
    assert len(found[0]) == host.tower.depth
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert (one[0] - one[1]).abs().max() > 1e-4  # two texts, two prompts
    # In company a row's prompts are what they are alone.
    alone = prompts_of(method, batch_of(method, [{"text": texts[1], "targets": ["no"]}]))
    for one, other in zip(found[0], alone, strict=True):
        torch.testing.assert_close(one[1:2], other, rtol=1e-3, atol=1e-3)


def test_every_layer_sees_its_own_prompt_and_the_length_stays() -> None:
    host = real("minimind2-26m")
    method = iapt(host)
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kw: seen.append(args[0] if args else kw["hidden_states"]), with_kwargs=True
        )
        for layer in host.tower.layers
    ]
    batch = batch_of(method)
    # These hooks were there before ours, so what they see is before the prompt is written.
    written = prompts_of(method, batch)
    for handle in handles:
        handle.remove()
    assert len({s.shape for s in seen}) == 1
    assert len(written) == len(seen) == host.tower.depth
    for k, states in enumerate(seen[1:]):
        assert (states[:, :4] - written[k + 1]).abs().max() > 1e-5
    # A layer's generator reads what entered that layer, not the embeddings.
    is_text = torch.zeros(seen[3].shape[:2], dtype=torch.bool)
    for row, length in enumerate(batch.text_mask.sum(1)):
        is_text[row, 4 : 4 + length] = True
    torch.testing.assert_close(method.generate(3, seen[3], is_text), written[3])


def test_generation_makes_prompts_once_and_equals_the_whole_pass() -> None:
    host = real("minimind2-26m")
    method = iapt(host, "generation")
    batch = batch_of(method, [{"text": row["text"], "targets": ["x"]} for row in ROWS])
    calls = []
    plain = method.generate
    method.generate = lambda *args: calls.append(1) or plain(*args)
    with torch.no_grad():
        found = generate(host, batch, method.condition(batch), max_new_tokens=6)
    assert len(calls) == host.tower.depth
    del method.generate
    for k, row in enumerate(found):
        said: list[int] = []
        one = method.task.collate([batch.extra["items"][k]])
        for _ in range(len(row)):
            one.answer = torch.tensor([[*said, 5]])
            one.answer_mask = torch.ones_like(one.answer)
            with torch.no_grad():
                logits, _ = answer_logits(host, one, method.condition(one))
            said.append(int(logits[-1].argmax()))
        assert said == row


@pytest.mark.parametrize("options", [{}, {"share": 3}, {"activation": "fixed"}, {"pooling": "mean"}])
def test_only_generators_learn(options: dict[str, Any]) -> None:
    host = real("minimind2-26m")
    method = iapt(host, **options)
    method.loss(batch_of(method)).backward()
    for name, p in method.named_parameters():
        idle = ("pool" in name and "pooling" in options) or not p.requires_grad
        assert (p.grad is None or not p.grad.any()) == idle, name
    assert all(p.grad is None for p in host.model.parameters())
    names = [g.name for g in method.groups()]
    assert names == (["generators"] if "activation" in options else ["generators", "activations"])


def test_ablations_do_what_they_say() -> None:
    host = real("minimind2-26m")
    first = iapt(host, layers="first")
    assert len(prompts_of(first, batch_of(first))) == 1
    right, wrong = iapt(host), iapt(host, mismatch=True)
    batch = batch_of(right)
    torch.testing.assert_close(prompts_of(wrong, batch)[0], prompts_of(right, batch)[0].roll(1, 0))


def test_bilevel_learning_takes_turns(tmp_path: Path) -> None:
    host = real("minimind2-26m")
    method = iapt(host, learning="bilevel")
    items = method.task.encode(ROWS * 4)
    search, anew = method.stages(Data(items, []))
    assert [g.name for g in anew.groups] == ["generators"]
    batch = search.collate(list(search.examples)[:3])
    method._learn = "generators"
    method.loss(batch[0]).backward()
    assert method.top.grad is None and method.up[0].weight.grad.any()
    method.zero_grad(set_to_none=True)
    method._learn = "activations"
    method.loss(batch[1]).backward()
    assert method.top.grad.any() and all(p.grad is None for n, p in method.named_parameters() if "." in n)
    method._learn = "all"
    start = {n: p.detach().clone() for n, p in method.named_parameters()}
    with torch.no_grad():
        for p in method.parameters():
            p.add_(1)
    anew.begin()
    for n, p in method.named_parameters():
        assert torch.equal(p, start[n]) == ("." in n)  # generators begin anew, activations stay


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
def test_from_a_table_to_a_saved_prompt(name: str, tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    lines = [
        f"what a {w} film number {k},{label}"
        for k in range(24)
        for w, label in (("good", "yes"), ("bad", "no"))
    ]
    data.write_text("text,label\n" + "\n".join(lines))
    options = {"learning": "bilevel"} if name == "minimind2-26m" else {}
    run = cuelight.tune(
        "iapt", backbone=name, data=str(data), steps=3, batch_size=4, output=tmp_path / "run", **options
    )
    assert run.training is not None and run.training.steps == (6 if options else 3)
    texts = ["a good film", "a bad film"]
    again = cuelight.load(tmp_path / "run").predict(texts, probabilities=True)
    assert again == run.prompt.predict(texts, probabilities=True)
    batch = run.prompt.method.task.collate(run.prompt.method.task.encode(ROWS, answers=False))
    with torch.no_grad():
        scores = choice_scores(real(name), batch, run.prompt.method.condition(batch), [[5], [6]])
    assert scores.isfinite().all()
