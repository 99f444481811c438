"""Batches whose rows have prompts of their own, prompts made of the text, and what stands before a bidirectional model.

Tiny random models of the real architectures in double precision.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.prompts.attention import attend_to_prefix
from cuelight.prompts.conditioning import (
    Condition,
    answer_logits,
    answer_states,
    choice_scores,
    generate,
    prompt_logits,
    self_attention_cache,
    text_states,
)
from tiny_models import VOCABULARY, WIDTH, backbone, batch_of, rows

CAUSAL = ["gpt2", "llama", "gemma3", "opt", "bloom"]
CHOICES = [[5], [6, 7], [8, 9, 10]]
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)  # some layers round to float32 inside
LENGTHS = (7, 3, 5, 1, 4, 6)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draw, dtype=torch.double)


def made(weight: Tensor, slots: int) -> Any:
    """A deep prompt from the mean of the text's states."""

    def prompt(states: Tensor, is_text: Tensor) -> Tensor:
        share = is_text.to(states.dtype)[..., None]
        mean = (states * share).sum(1) / share.sum(1)
        return (mean @ weight)[:, None] * torch.arange(1, slots + 1, dtype=states.dtype)[:, None]

    return prompt


def conditions(host: Backbone) -> list[Condition]:
    """One condition of every kind, lengths differing."""
    offset = Condition(prompt=drawn(2, WIDTH), offset=drawn(4, WIDTH, seed=9))
    deep = Condition(prompt=drawn(4, WIDTH), deep={i: drawn(4, WIDTH, seed=i) for i in (0, 2)})
    generated = Condition(
        prompt=torch.zeros(3, WIDTH, dtype=torch.double),
        deep={i: made(drawn(WIDTH, WIDTH, seed=i), 3) for i in range(3)},
    )
    found = [Condition(), Condition(prompt=drawn(6, WIDTH)), offset, deep, generated]
    if host.kind == "causal":
        with torch.no_grad():
            sizes = self_attention_cache(host, torch.tensor([5, 6, 7]))
        pairs = [
            (drawn(*k.shape, seed=20 + i), drawn(*v.shape, seed=40 + i)) for i, (k, v) in enumerate(sizes)
        ]
        found.append(Condition(keys_values=pairs, prompt=drawn(2, WIDTH, seed=3)))
    return found


def mixed(host: Backbone) -> tuple[list[list[int]], list[Condition]]:
    """Texts, and for each a condition; some rows share theirs, and not next to one another."""
    kinds = conditions(host)
    texts = rows(*LENGTHS, *LENGTHS)
    if host.kind == "masked":
        texts = [[*text, host.tokenizer.mask_token_id] for text in texts]
    return texts, [kinds[k % len(kinds)] for k in range(len(texts))]


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "bart"])
@torch.no_grad()
def test_rows_with_prompts_of_their_own_score_as_alone(name: str) -> None:
    host = backbone(name, double=True)
    texts, given = mixed(host)
    together = choice_scores(host, batch_of(texts), Condition(rows=given), CHOICES)
    short = choice_scores(host, batch_of(texts), Condition(rows=given), [[5], [6]])
    states = answer_states(host, batch_of(texts), Condition(rows=given))
    for k, (text, condition) in enumerate(zip(texts, given, strict=True)):
        alone = choice_scores(host, batch_of([text]), condition, CHOICES)
        close(together[k : k + 1].log_softmax(-1), alone.log_softmax(-1))
        alone = choice_scores(host, batch_of([text]), condition, [[5], [6]])
        close(short[k : k + 1], alone)
        close(states[k : k + 1], answer_states(host, batch_of([text]), condition))
    assert (together[0] - together[len(LENGTHS)]).abs().max() > 1e-6 or given[0] is given[len(LENGTHS)]


@pytest.mark.parametrize("name", [*CAUSAL, "t5"])
def test_rows_with_prompts_of_their_own_generate_as_alone(name: str) -> None:
    host = backbone(name, double=True)
    texts, given = mixed(host)
    together = generate(host, batch_of(texts), Condition(rows=given), max_new_tokens=5)
    alone = [
        generate(host, batch_of([text]), condition, max_new_tokens=5)[0]
        for text, condition in zip(texts, given, strict=True)
    ]
    assert together == alone
    assert len({tuple(a) for a in alone}) > 1


@pytest.mark.parametrize("name", ["bert", "roberta"])
@torch.no_grad()
def test_a_masked_model_takes_rows_with_prompts_of_their_own(name: str) -> None:
    host = backbone(name, double=True)
    texts, given = mixed(host)
    together = choice_scores(host, batch_of(texts), Condition(rows=given), [[5], [6]])
    for k, (text, condition) in enumerate(zip(texts, given, strict=True)):
        close(together[k : k + 1], choice_scores(host, batch_of([text]), condition, [[5], [6]]))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "t5"])
def test_a_prompt_made_of_the_text_never_sees_the_answer(name: str) -> None:
    host = backbone(name, double=True)
    seen: list[Tensor] = []
    weight = drawn(WIDTH, WIDTH).requires_grad_()

    def watched(states: Tensor, is_text: Tensor) -> Tensor:
        prompt = made(weight, 2)(states, is_text)
        seen.append(prompt)
        assert int(is_text.sum()) == sum(len(t) for t in texts)
        return prompt

    texts = rows(6, 2, 4)
    condition = Condition(
        prompt=torch.zeros(2, WIDTH, dtype=torch.double), deep=dict.fromkeys(range(host.tower.depth), watched)
    )
    prompts = []
    for answers in (rows(3, 2, 1, seed=1), rows(1, 3, 2, seed=2)):
        seen.clear()
        logits, targets = answer_logits(host, batch_of(texts, answers), condition)
        assert len(logits) == len(targets) == 6
        prompts.append(torch.stack(seen))
    close(prompts[0], prompts[1])
    assert len(prompts[0]) == host.tower.depth
    torch.nn.functional.cross_entropy(logits, targets).backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_expected_inside_a_prompt_and_behind_it_is_one_pass(name: str) -> None:
    host = backbone(name, double=True)
    ids = torch.tensor(rows(9)[0])
    texts, answers = rows(4, 2), rows(2, 1, seed=3)
    prompt = host.embed(ids).detach().requires_grad_()
    columns = torch.tensor([2, 8, 5])
    condition = Condition(prompt=prompt)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = host.tower.layers[0].register_forward_hook(count)
    inside = prompt_logits(host, condition, columns)
    behind, _ = answer_logits(host, batch_of(texts, answers), condition)
    handle.remove()
    assert calls == 2  # the prompt once, the rows once
    (inside.square().sum() + behind.square().sum()).backward()
    found, prompt.grad = prompt.grad, None

    whole = host.model(inputs_embeds=prompt[None]).logits[0, columns]
    close(inside, whole)
    plain, _ = answer_logits(host, batch_of(texts, answers), Condition(prompt=prompt))
    close(behind, plain)
    (whole.square().sum() + plain.square().sum()).backward()
    close(found, prompt.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_keys_and_values_of_ones_own_in_a_bidirectional_model(name: str) -> None:
    host = backbone(name, double=True, **({} if name != "electra" else {"embedding_size": WIDTH}))
    heads = host.model.config.num_attention_heads
    depth = host.tower.depth
    pairs = [
        tuple(drawn(1, heads, 3, WIDTH // heads, seed=s).requires_grad_() for s in (k, 9 + k))
        for k in range(depth)
    ]
    texts = [[*t, host.tokenizer.mask_token_id] for t in rows(5, 2, 7)]
    before = host.model.config._attn_implementation
    scores = choice_scores(host, batch_of(texts), Condition(keys_values=pairs), [[5], [6], [7]])
    assert host.model.config._attn_implementation == before
    scores.square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for pair in pairs for x in pair)
    plain = choice_scores(host, batch_of(texts), Condition(), [[5], [6], [7]])
    assert (scores - plain).abs().max() > 1e-4
    for k, text in enumerate(texts):  # padding changes nothing
        alone = choice_scores(host, batch_of([text]), Condition(keys_values=pairs), [[5], [6], [7]])
        close(scores[k : k + 1], alone)
    # Keys that no query likes leave the model as it is; equal keys shift attention to their values alone.
    far = [(torch.zeros_like(k), v) for k, v in pairs]
    with torch.no_grad():
        own, mask = text_states(host, batch_of(texts[:1]), Condition(keys_values=far))
        assert own.shape[1] == len(texts[0]) == int(mask.sum())
        empty = [(k[:, :, :0], v[:, :, :0]) for k, v in pairs]
        none, _ = text_states(host, batch_of(texts[:1]), Condition(keys_values=empty))
        bare, _ = text_states(host, batch_of(texts[:1]), Condition())
    close(none, bare)


def test_a_prefix_attends_as_attention_is_defined() -> None:
    """One layer's attention against the formula, written out."""
    host = backbone("bert", double=True)
    layer = host.tower.layers[0]
    heads = host.model.config.num_attention_heads
    pairs = [(drawn(1, heads, 3, WIDTH // heads, seed=1), drawn(1, heads, 3, WIDTH // heads, seed=2))]
    states = drawn(2, 5, WIDTH)
    attention = next(m for m in layer.modules() if type(m).__name__ == "BertSelfAttention")
    split = lambda x: x.view(2, 5, heads, -1).transpose(1, 2)  # noqa: E731
    query, key, value = (split(f(states)) for f in (attention.query, attention.key, attention.value))
    key = torch.cat([pairs[0][0].expand(2, -1, -1, -1), key], 2)
    value = torch.cat([pairs[0][1].expand(2, -1, -1, -1), value], 2)
    weights = (query @ key.mT / (WIDTH // heads) ** 0.5).softmax(-1)
    wanted = (weights @ value).transpose(1, 2).reshape(2, 5, WIDTH)
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    with attend_to_prefix(host, pairs * host.tower.depth), torch.no_grad():
        host.model.base_model.encoder(states)
    handle.remove()
    close(seen[0], wanted)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "bart"])
@torch.no_grad()
def test_answer_states_are_what_the_head_reads(name: str) -> None:
    host = backbone(name, double=True)
    texts = rows(5, 2, 7)
    condition = Condition(prompt=drawn(3, WIDTH))
    found = answer_states(host, batch_of(texts), condition)
    assert found.shape == (3, WIDTH)
    if host.kind == "masked":
        states, _ = text_states(host, batch_of(texts), condition)
        close(found, states[:, 3])
        return
    scores = choice_scores(host, batch_of(texts), condition, [[k] for k in range(VOCABULARY)])
    if name == "t5" and host.model.config.tie_word_embeddings:
        found = found * host.model.config.d_model**-0.5
    wanted = host.model.get_output_embeddings()(found) + getattr(host.model, "final_logits_bias", 0)
    close(scores, wanted)


def test_as_many_conditions_as_rows() -> None:
    host = backbone("gpt2")
    with pytest.raises(ValueError, match="2 conditions for 3 rows"):
        choice_scores(host, batch_of(rows(3, 4, 5)), Condition(rows=[Condition()] * 2), [[5], [6]])
