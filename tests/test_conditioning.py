"""Running a backbone under a condition: every saving is exact.

The reference is always brute force: each row alone, unpadded, one concatenation of vectors through the whole
model, every score computed and the wanted ones picked.  Tiny random models of the real architectures in
double precision, where any difference beyond rounding is a defect; the built-in models at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.errors import BackboneError
from cuelight.prompts import conditioning
from cuelight.prompts.conditioning import (
    Condition,
    TextBatch,
    answer_logits,
    choice_scores,
    generate,
    pack,
    self_attention_cache,
    text_states,
)
from cuelight.prompts.slots import overwrite_states
from tiny_models import END, MASK, PAD, VOCABULARY, WIDTH, backbone, batch_of, rows

CAUSAL = ["gpt2", "llama", "gemma3", "opt", "bloom"]
SEQ2SEQ = ["t5", "bart"]
MASKED = ["bert", "roberta"]
SLOTS = 6  # more than the window of tiny Gemma
TEXTS = (7, 3, 5, 1)
CONDITIONS = [
    "none",
    "shared",
    "per-row",
    "deep",
    "deep per-row",
    "offset",
    "prompt and offset",
    "keys",
    "keys and all",
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draw, dtype=torch.double).requires_grad_()


def condition_of(how: str, host: Backbone, batch: int = len(TEXTS)) -> Condition:
    """A condition with learnable parts."""
    parts: dict[str, Any] = {}
    more = [batch] if "per-row" in how else []
    if how not in ("none", "offset", "keys"):
        parts["prompt"] = drawn(*more, SLOTS, WIDTH)
    if "deep" in how or "all" in how:
        parts["deep"] = {i: drawn(*more, SLOTS, WIDTH, seed=i + 1) for i in (0, 2)}
    if "offset" in how or "all" in how:
        parts["offset"] = drawn(4, WIDTH, seed=9)  # shorter than the longest text
    if "keys" in how:
        with torch.no_grad():
            sizes = self_attention_cache(host, torch.tensor([5, 6]))
        parts["keys_values"] = [
            (drawn(*k.shape, seed=20 + i), drawn(*v.shape, seed=40 + i)) for i, (k, v) in enumerate(sizes)
        ]
    return Condition(**parts)


def learned(condition: Condition) -> list[Tensor]:
    pairs = condition.keys_values or ()
    found = [
        condition.prompt,
        condition.offset,
        *condition.deep.values(),
        *(x for pair in pairs for x in pair),
    ]
    return [x for x in found if x is not None]


def alone(host: Backbone, condition: Condition, k: int, text: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Vectors ``[1, slots + T, width]`` of row ``k`` and its deep prompts, place by place."""
    vectors = list(host.embed(torch.tensor(text)))
    if condition.offset is not None:
        for t in range(min(len(text), len(condition.offset))):
            vectors[t] = vectors[t] + condition.offset[t]
    if condition.prompt is not None:
        mine = condition.prompt if condition.prompt.dim() == 2 else condition.prompt[k]
        vectors = [*mine, *vectors]
    return torch.stack(vectors)[None], {i: v if v.dim() == 2 else v[k] for i, v in condition.deep.items()}


def cache_of(condition: Condition) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(condition.keys_values or ()):
        cache.update(keys, values, layer)
    return cache


def brute(host: Backbone, condition: Condition, k: int, text: list[int], answer: list[int]) -> Tensor:
    """Scores ``[answer + 1, V]``: before each answer token and behind the last (for a masked LM:
    everywhere).
    """
    model = host.model
    vectors, deep = alone(host, condition, k, text)
    with overwrite_states(host.tower, deep):
        if host.kind == "seq2seq":
            states = model.get_encoder()(inputs_embeds=vectors).last_hidden_state
            start = torch.tensor([[model.config.decoder_start_token_id, *answer]])
            options: dict[str, Any] = {"use_cache": False}
            if condition.keys_values is not None:
                options = {
                    "past_key_values": EncoderDecoderCache(cache_of(condition), DynamicCache()),
                    "use_cache": True,
                }
            return model(encoder_outputs=BaseModelOutput(states), decoder_input_ids=start, **options).logits[
                0
            ]
        if host.kind == "masked":
            return model(inputs_embeds=vectors).logits[0, condition.length :]
        if answer:
            vectors = torch.cat([vectors, host.embed(torch.tensor(answer))[None]], 1)
        if condition.keys_values is not None:
            out = model(inputs_embeds=vectors, past_key_values=cache_of(condition), use_cache=True)
        else:
            out = model(inputs_embeds=vectors, use_cache=False)
        return out.logits[0, condition.length + len(text) - 1 :]


def greedy(host: Backbone, condition: Condition, k: int, text: list[int], steps: int) -> list[int]:
    """The likeliest continuation, everything read anew at each step."""
    answer: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            token = int(brute(host, condition, k, text, answer)[-1].argmax())
            if token in (END, PAD):
                break
            answer.append(token)
    return answer


def texts_for(host: Backbone) -> list[list[int]]:
    texts = rows(*TEXTS)
    if host.kind == "masked":
        for k, row in enumerate(texts):
            row[(2 * k) % len(row)] = MASK
    return texts


def cases() -> list[Any]:
    """Architectures and conditions that go together."""
    found = []
    for name, how in itertools.product([*CAUSAL, *SEQ2SEQ, *MASKED], CONDITIONS):
        few = name in ("opt", "bloom", "bart", "roberta") and how in ("deep", "offset", "keys")
        if few or (name in MASKED and "keys" in how):
            continue
        found.append(pytest.param(name, how, id=f"{name}-{how}"))
    return found


# ---- (a, b, d, f) the training pass
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "how"), cases())
def test_answer_scores_and_gradients_equal_brute_force(name: str, how: str) -> None:
    host = backbone(name, double=True)
    texts = texts_for(host)
    answers = rows(2, 4, 1, 3, seed=1) if host.kind != "masked" else rows(1, 1, 1, 1, seed=1)
    condition = condition_of(how, host)
    wanted = []
    for k, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        table = brute(host, condition, k, text, answer)
        wanted.append(table[text.index(MASK)][None] if host.kind == "masked" else table[:-1])
    reference = torch.cat(wanted)
    flat = torch.tensor([t for answer in answers for t in answer])
    gradients = (
        torch.autograd.grad(cross_entropy(reference, flat), learned(condition)) if learned(condition) else ()
    )
    for how_padded in ({}, {"extra": 3}, {"left": True, "extra": 2}):
        logits, targets = answer_logits(host, batch_of(texts, answers, **how_padded), condition)
        assert torch.equal(targets, flat)
        torch.testing.assert_close(logits, reference, rtol=1e-5, atol=1e-5)
        if gradients:
            mine = torch.autograd.grad(cross_entropy(logits, targets), learned(condition))
            for a, b in zip(mine, gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in host.model.parameters())


@pytest.mark.parametrize("name", CAUSAL)
def test_the_shared_prompt_equals_the_same_prompt_for_each_row(name: str) -> None:
    host = backbone(name, double=True)
    texts, answers = rows(*TEXTS), rows(2, 4, 1, 3, seed=1)
    condition = condition_of("deep", host)
    many = Condition(
        prompt=condition.prompt.expand(len(texts), -1, -1),
        deep={i: v.expand(len(texts), -1, -1) for i, v in condition.deep.items()},
    )
    assert condition.shared
    assert not many.shared
    batch = batch_of(texts, answers)
    torch.testing.assert_close(answer_logits(host, batch, condition), answer_logits(host, batch, many))


def test_the_shared_prompt_is_run_once_and_remembered_only_when_nothing_learns() -> None:
    host = backbone("llama", double=True)
    sizes: list[tuple[int, ...]] = []
    host.tower.layers[0].register_forward_pre_hook(
        lambda _, args, kw: sizes.append(tuple((args[0] if args else kw["hidden_states"]).shape)),
        with_kwargs=True,
    )
    batch = batch_of(rows(*TEXTS))
    fixed = Condition(prompt=drawn(SLOTS, WIDTH).detach())
    for _ in range(2):
        choice_scores(host, batch, fixed, [[5], [6]])
    # Two of the four texts share a line, so the text is run on three.
    assert sizes == [(1, SLOTS, WIDTH), (3, 7, WIDTH), (3, 7, WIDTH)]
    learning = Condition(prompt=drawn(SLOTS, WIDTH))
    with torch.no_grad():  # must not keep a prefix without a gradient for training later
        choice_scores(host, batch, learning, [[5], [6]])
    scores = choice_scores(host, batch, learning, [[5], [6]])
    scores.sum().backward()
    assert learning.prompt.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_the_offset_lies_on_the_text_and_nowhere_else(name: str) -> None:
    """What the first layer gets, with and without: the difference is the offset, token by token."""
    host = backbone(name, double=True)
    texts = texts_for(host)
    offset, prompt = drawn(4, WIDTH).detach(), drawn(SLOTS, WIDTH).detach()
    seen: list[Tensor] = []
    host.embed_hook = host.tower.layers[0].register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda _, args, kw: seen.append((args[0] if args else kw["hidden_states"]).clone()), with_kwargs=True
    )
    answers = rows(2, 4, 1, 3, seed=1) if name != "bert" else rows(1, 1, 1, 1)
    if name == "bert":  # its layer norm would blur the difference
        host.model.bert.embeddings.LayerNorm = nn.Identity()
    for slots, how in itertools.product((None, prompt), ({}, {"left": True, "extra": 2})):
        passes = []
        for added in (None, offset):
            seen.clear()
            answer_logits(host, batch_of(texts, answers, **how), Condition(prompt=slots, offset=added))
            passes.append(seen[-1])
        difference = passes[1] - passes[0]
        first = 0 if slots is None or name == "llama" else SLOTS
        wanted = torch.zeros_like(difference)
        for k, text in enumerate(texts):
            for t in range(min(len(text), 4)):
                wanted[k, first + t] = offset[t]
        torch.testing.assert_close(difference, wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_offset_is_not_on_generated_tokens(name: str) -> None:
    host = backbone(name, double=True)
    texts = rows(1, 2)  # shorter than the offset, which so would reach the answer
    condition = condition_of("prompt and offset", host)
    found = generate(host, batch_of(texts), condition, max_new_tokens=6)
    assert found == [greedy(host, condition, k, text, 6) for k, text in enumerate(texts)]
    assert found != generate(host, batch_of(texts), Condition(prompt=condition.prompt), max_new_tokens=6)


# ---- (c) choices
# -----------------------------------------------------------------------------------------------

CHOICES = [[7, 8, 9], [7], [10, 11], [7, 8], [12, 13, 14, 15], [16, END]]


def scored() -> list[Any]:
    """Conditions at once, and two of them one choice at a time."""
    able = [c for c in cases() if c.values[0] not in MASKED]
    found = [pytest.param(*c.values, None, id=str(c.id)) for c in able]
    few = [c for c in able if c.values[1] in ("shared", "keys")]
    return found + [pytest.param(*c.values, 1, id=f"{c.id}-one by one") for c in few]


@pytest.mark.parametrize(("name", "how", "at_once"), scored())
def test_choice_scores_equal_the_sum_of_steps(
    name: str, how: str, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once:
        monkeypatch.setattr(conditioning, "_SCORES_AT_ONCE", at_once)
    host = backbone(name, double=True)
    texts, condition = rows(*TEXTS), condition_of(how, host)
    reference = torch.stack(
        [
            torch.stack(
                [
                    sum(
                        brute(host, condition, k, text, choice[:step])[-1].log_softmax(-1)[choice[step]]
                        for step in range(len(choice))
                    )
                    for choice in CHOICES
                ]
            )
            for k, text in enumerate(texts)
        ]
    )
    for padding in ({}, {"extra": 3}, {"left": True}):
        scores = choice_scores(host, batch_of(texts, **padding), condition, CHOICES)
        torch.testing.assert_close(
            scores.double(), reference, rtol=2e-5, atol=2e-5
        )  # summed in single precision
    if learned(condition):
        labels = torch.tensor([0, 2, 4, 5])
        mine = torch.autograd.grad(cross_entropy(scores, labels), learned(condition))
        wanted = torch.autograd.grad(cross_entropy(reference, labels), learned(condition))
        for a, b in zip(mine, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


def test_repeated_states_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    host = backbone("llama", double=True)
    batch, condition = batch_of(rows(*TEXTS)), condition_of("shared", host)
    whole = choice_scores(host, batch, condition, CHOICES)
    widths: list[int] = []
    host.tower.layers[0].register_forward_pre_hook(lambda _, args: widths.append(len(args[0])))
    monkeypatch.setattr(conditioning, "_STATES_AT_ONCE", 1)
    torch.testing.assert_close(choice_scores(host, batch, condition, CHOICES), whole)
    assert max(widths) == len(TEXTS)


@pytest.mark.parametrize(
    ("name", "how"), [c for c in cases() if "all" in c.values[1] or "per-row" in c.values[1]]
)
def test_one_token_choices_equal_the_full_scores_up_to_a_constant(name: str, how: str) -> None:
    host = backbone(name, double=True)
    texts, condition = texts_for(host), condition_of(how, host)
    choices = [[9], [4], [30], [59]]
    with torch.no_grad():
        found = choice_scores(host, batch_of(texts, extra=2), condition, choices)
        tables = [brute(host, condition, k, text, []) for k, text in enumerate(texts)]
        places = [text.index(MASK) if host.kind == "masked" else -1 for text in texts]
        wanted = torch.stack([table[p, [9, 4, 30, 59]] for table, p in zip(tables, places, strict=True)])
    torch.testing.assert_close(found.log_softmax(-1), wanted.log_softmax(-1))


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_scores_a_choice_at_as_many_masks(name: str) -> None:
    """Every token's log-probability at its own mask, all masks unfilled; trained on the same sum."""
    host = backbone(name, double=True)
    texts, choices = texts_for(host), [[5, 6], [7], [8, 9, 10]]
    with torch.no_grad():
        found = choice_scores(host, batch_of(texts), Condition(), choices)
        for k, text in enumerate(texts):
            at = text.index(MASK)
            for c, choice in enumerate(choices):
                longer = [*text[:at], *[MASK] * len(choice), *text[at + 1 :]]
                table = brute(host, Condition(), k, longer, []).log_softmax(-1)
                expected = sum(table[at + j, token] for j, token in enumerate(choice))
                torch.testing.assert_close(found[k, c], expected.float())
        answers = [choices[k % 3] for k in range(len(texts))]
        logits, targets = answer_logits(host, batch_of(texts, answers), Condition())
        each = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert targets.tolist() == [token for answer in answers for token in answer]
    torch.testing.assert_close(each.sum().float(), sum(found[k, k % 3] for k in range(len(texts))))


# ---- (e, f) generation
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "how"), [c for c in cases() if c.values[0] not in MASKED])
def test_generate_equals_a_greedy_loop(name: str, how: str) -> None:
    host = backbone(name, double=True)
    texts, condition = rows(*TEXTS), condition_of(how, host)
    wanted = [greedy(host, condition, k, text, 6) for k, text in enumerate(texts)]
    for padding in ({}, {"extra": 3}, {"left": True}):
        assert generate(host, batch_of(texts, **padding), condition, max_new_tokens=6) == wanted
    assert condition._prefix is None or not condition.learns


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "t5", "bart"])
@pytest.mark.parametrize("how", ["none", "per-row", "prompt and offset", "keys", "keys and all"])
def test_beams_equal_beams_of_one_row_and_transformers_own(name: str, how: str) -> None:
    host = backbone(name, double=True)
    texts, condition = rows(*TEXTS), condition_of(how, host)
    options = {"max_new_tokens": 5, "num_beams": 3}
    found = generate(host, batch_of(texts, extra=1), condition, **options)
    for k, text in enumerate(texts):
        vectors, deep = alone(host, condition, k, text)
        mine = Condition(
            prompt=None if condition.prompt is None else vectors[0, :SLOTS].detach(),
            deep={i: v.detach() for i, v in deep.items()},
            offset=condition.offset,
            keys_values=condition.keys_values,
        )
        assert generate(host, batch_of([text]), mine, **options) == [found[k]]
        if condition.keys_values is None and not deep:
            given = {"attention_mask": torch.ones(vectors.shape[:2], dtype=torch.long)}
            if host.kind == "seq2seq":
                given["encoder_outputs"] = BaseModelOutput(
                    host.model.get_encoder()(inputs_embeds=vectors).last_hidden_state
                )
            else:
                given["inputs_embeds"] = vectors
            with torch.no_grad():
                own = host.model.generate(**given, **options, do_sample=False)[0].tolist()
            own = own[1:] if host.kind == "seq2seq" else own
            assert list(itertools.takewhile(lambda t: t not in (END, PAD), own)) == found[k]


@pytest.mark.parametrize("how", ["none", "shared", "keys"])
@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_only_allowed_tokens_come_out(name: str, how: str, beams: int) -> None:
    host = backbone(name)
    condition = condition_of(how, host)
    asked: list[list[int]] = []

    def allowed(said: list[int]) -> list[int]:
        asked.append(said)
        return {0: [20, 21], 1: [30]}.get(len(said), [END])

    found = generate(
        host, batch_of(rows(3, 5)), condition, allowed=allowed, max_new_tokens=4, num_beams=beams
    )
    assert all(row in ([20, 30], [21, 30]) for row in found)
    assert [] in asked  # nothing that we put there counts as said
    assert all(said[:1] in ([], [20], [21]) for said in asked)


def test_a_model_s_own_generation_habits_do_not_apply() -> None:
    host = backbone("llama", double=True)
    texts = rows(4, 2)
    wanted = generate(host, batch_of(texts), Condition(), max_new_tokens=6)
    habits = host.model.generation_config
    habits.min_length, habits.repetition_penalty, habits.no_repeat_ngram_size = 40, 5.0, 1
    habits.do_sample, habits.temperature = True, 3.0
    assert generate(host, batch_of(texts), Condition(), max_new_tokens=6) == wanted


def test_a_masked_model_does_not_generate() -> None:
    host = backbone("bert")
    with pytest.raises(BackboneError, match="does not generate"):
        generate(host, batch_of(rows(4)), Condition())


# ---- states, lengths, refusals
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert"])
@pytest.mark.parametrize("how", ["none", "deep", "prompt and offset"])
def test_text_states_are_those_of_each_row_alone(name: str, how: str) -> None:
    host = backbone(name, double=True)
    texts, condition = rows(*TEXTS), condition_of(how, host)
    for padding in ({}, {"left": True, "extra": 2}):
        states, mask = text_states(host, batch_of(texts, **padding), condition)
        assert states.shape == (4, condition.length + 7, WIDTH)
        assert mask.sum(1).tolist() == [condition.length + n for n in TEXTS]
        for k, text in enumerate(texts):
            vectors, deep = alone(host, condition, k, text)
            with overwrite_states(host.tower, deep):
                if name == "t5":
                    own = host.model.get_encoder()(inputs_embeds=vectors).last_hidden_state[0]
                else:
                    own = host.model.base_model(inputs_embeds=vectors).last_hidden_state[0]
            torch.testing.assert_close(states[k, : len(own)], own)


def test_pack_closes_gaps() -> None:
    ids = torch.tensor([[1, 0, 2, 0, 3], [4, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 0, 0]])
    right, left = pack(ids, mask), pack(ids, mask, left=True)
    assert right[0].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert right[1].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left[1].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert (left[0] * left[1]).tolist() == [[1, 2, 3], [0, 0, 4]]


@pytest.mark.parametrize(("name", "most"), [("gpt2", 48), ("bert", 48), ("roberta", 48), ("bart", 48)])
def test_rows_beyond_the_positions_are_refused_in_one_line(name: str, most: int) -> None:
    """RoBERTa's table has more rows than positions, as many as stand before the first one."""
    host = backbone(name, **({"max_position_embeddings": 49} if name == "roberta" else {}))
    assert host.max_positions == most
    condition = Condition(prompt=torch.zeros(8, WIDTH))
    fits = rows(most - 8 if name != "gpt2" else most - 9)
    fits[0][0] = MASK
    answer_logits(host, batch_of(fits, rows(1)), condition)
    beyond = [[*fits[0], 7]]
    with pytest.raises(BackboneError, match=r"49 tokens .* do not fit its 48 positions; lower --max-length"):
        answer_logits(host, batch_of(beyond, rows(1)), condition)
    if name == "gpt2":
        for ask in (
            lambda: generate(host, batch_of(rows(45)), Condition(), max_new_tokens=4),
            lambda: choice_scores(host, batch_of(rows(46)), Condition(), [[5, 6, 7, 8], [6]]),
        ):
            with pytest.raises(BackboneError, match="49 tokens"):
                ask()


def test_conditions_that_can_not_be_are_refused() -> None:
    with pytest.raises(ValueError, match="as many as the prompt's"):
        Condition(deep={0: torch.zeros(3, WIDTH)})
    keys = [(torch.zeros(1, 4, 2, 4),) * 2] * 3
    for name in ("bert", "t5"):
        host = backbone(name)
        texts = batch_of(texts_for(host))
        with pytest.raises(BackboneError, match="run them apart"):
            choice_scores(host, texts, Condition(rows=[Condition(keys_values=keys)] * len(texts)), [[5], [6]])
    with pytest.raises(BackboneError, match="keep no keys and values"):
        generate(backbone("lfm2"), batch_of(rows(4)), Condition(prompt=torch.zeros(2, WIDTH)))
    host = backbone("electra")
    with pytest.raises(BackboneError, match="8 wide and the prompt 16"):
        choice_scores(host, batch_of(texts_for(host)), Condition(prompt=torch.zeros(2, WIDTH)), [[5], [6]])


# ---- (g) the head
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "t5", "bart", "bert", "roberta"])
def test_scoring_equals_slicing_and_leaves_the_head_as_it_was(name: str) -> None:
    host = backbone(name, double=True)
    ids = torch.tensor(rows(6, 6))
    call = {"input_ids": ids, "decoder_input_ids": ids} if host.kind == "seq2seq" else {"input_ids": ids}
    head = host.model.get_output_embeddings()
    state, bias = dict(head.__dict__), getattr(host.model, "final_logits_bias", None)
    at, columns, some = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 5]), torch.tensor([7, 4, 50])
    with torch.no_grad():
        whole = host.model(**call).logits
        with host.scoring(at, columns):
            torch.testing.assert_close(host.model(**call).logits, whole[at, columns])
        with host.scoring(at, columns, some):
            torch.testing.assert_close(host.model(**call).logits, whole[at, columns][:, some])
        if host.kind == "masked":
            assert head.bias.abs().sum() > 0
        handle = head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), host.scoring(at, columns, some):
            host.model(**call)
        handle.remove()
        assert dict(head.__dict__) == state
        assert getattr(host.model, "final_logits_bias", None) is bias
        assert torch.equal(host.model(**call).logits, whole)
        placed = head.forward  # as device placement does
        head.forward = lambda x: placed(x)
        mine = head.forward
        with host.scoring(at, columns, some):
            torch.testing.assert_close(host.model(**call).logits, whole[at, columns][:, some])
        assert head.forward is mine


def test_scoring_needs_a_head() -> None:
    host = backbone("llama")
    host.model = host.model.model
    none = torch.zeros(0, dtype=torch.long)
    with pytest.raises(BackboneError, match="no language-model head"), host.scoring(none, none):
        pass


# ---- (h) PEFT
# --------------------------------------------------------------------------------------------------


def tuned_with_peft(name: str, kind: str) -> tuple[Backbone, nn.Module, Tensor]:
    """A backbone, PEFT's wrapper around the very same model, and PEFT's tensor."""
    host = backbone(name, double=True)
    task = "SEQ_2_SEQ_LM" if host.kind == "seq2seq" else "CAUSAL_LM"
    shape: dict[str, Any] = {"num_virtual_tokens": SLOTS, "task_type": task, "num_transformer_submodules": 1}
    if kind == "prompt":
        config: Any = peft.PromptTuningConfig(**shape)
    else:
        with torch.no_grad():
            keys = self_attention_cache(host, torch.tensor([5]))
        heads, width = keys[0][0].shape[1], keys[0][0].shape[3]
        config = peft.PrefixTuningConfig(
            **shape | ({"num_transformer_submodules": 2} if task == "SEQ_2_SEQ_LM" else {}),
            num_layers=len(keys),
            num_attention_heads=heads,
            token_dim=heads * width,
        )
    model = peft.get_peft_model(host.model, config).double().eval()
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(drawn(*weight.shape))
    return host, model, weight


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_losses_and_gradients_equal_peft_s(name: str, kind: str) -> None:
    host, model, weight = tuned_with_peft(name, kind)
    texts, answers = rows(5, 5, 5, 5), rows(3, 3, 2, 3, seed=2)
    batch = batch_of(texts, answers)
    labels = batch.answer.masked_fill(batch.answer_mask == 0, -100)
    if name == "t5":
        out = model(input_ids=batch.text, attention_mask=batch.text_mask, labels=labels)
    else:
        ids = torch.cat([batch.text, batch.answer], 1)
        mask = torch.cat([batch.text_mask, batch.answer_mask], 1)
        out = model(
            input_ids=ids,
            attention_mask=mask,
            labels=torch.cat([torch.full_like(batch.text, -100), labels], 1),
        )
    (gradient,) = torch.autograd.grad(out.loss, weight)
    if kind == "prompt":
        condition = Condition(prompt=weight)
    else:
        layers = host.towers["decoder"].depth if name == "t5" else host.tower.depth
        heads = model.peft_config["default"].num_attention_heads
        table = weight.view(1, SLOTS, layers * 2, heads, -1).permute(2, 0, 3, 1, 4)
        # For encoder-decoder models PEFT doubles its table and cuts it into fours, of which two are read.
        places = [4 * k % (2 * layers) if name == "t5" else 2 * k for k in range(layers)]
        condition = Condition(keys_values=[(table[p], table[p + 1]) for p in places])
    logits, targets = answer_logits(host, batch, condition)
    loss = cross_entropy(logits, targets)
    torch.testing.assert_close(loss.float(), out.loss.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], gradient, rtol=1e-5, atol=1e-6)


# ---- built-in models
# -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm() -> Backbone:
    return load_backbone("smollm2-135m", device="cpu", progress=False)


@pytest.fixture(scope="module")
def minimind() -> Backbone:
    return load_backbone("minimind2-26m", device="cpu", progress=False)


def sentences(host: Backbone, texts: list[str]) -> list[list[int]]:
    return [host.tokenizer(t).input_ids for t in texts]


def test_a_real_causal_model(smollm: Backbone) -> None:
    """Everything at once on SmolLM2: prompt made of words, so brute force is the model reading plain text."""
    ids = smollm.tokenizer("Answer briefly.\n\n").input_ids
    condition = Condition(prompt=smollm.embed(torch.tensor(ids)))
    texts = sentences(smollm, ["The capital of France is", "Grass is green and the sky is"])
    answers = sentences(smollm, [" Paris.", " blue, as everyone knows."])
    logits, _ = answer_logits(smollm, batch_of(texts, answers), condition)
    wanted = []
    with torch.no_grad():
        for text, answer in zip(texts, answers, strict=True):
            row = torch.tensor([[*ids, *text, *answer]])
            wanted.append(smollm.model(input_ids=row).logits[0, -len(answer) - 1 : -1])
    torch.testing.assert_close(logits, torch.cat(wanted), rtol=1e-4, atol=2e-3)
    choices = sentences(smollm, [" Paris", " Rome", " blue", " the best"])
    scores = choice_scores(smollm, batch_of(texts), condition, choices)
    assert scores.argmax(1).tolist() == [0, 2]
    found = generate(smollm, batch_of(texts), condition, max_new_tokens=8)
    for text, answer in zip(texts, found, strict=True):
        own = smollm.model.generate(torch.tensor([[*ids, *text]]), max_new_tokens=8, do_sample=False)
        assert own[0, len(ids) + len(text) :].tolist()[: len(answer)] == answer


def test_a_real_model_learns_the_same_with_a_shared_prefix(minimind: Backbone) -> None:
    exact = minimind.copy()[0]  # in float64: what is left of a difference is no rounding
    exact.model.double().requires_grad_(False)
    texts = sentences(exact, ["The film was a joy from start to end.", "Dull."])
    answers = sentences(exact, [" good", " bad"])
    prompt = exact.embed(torch.arange(100, 110)).detach().requires_grad_()
    losses, gradients = [], []
    for given in (prompt, prompt.expand(2, -1, -1)):
        logits, targets = answer_logits(exact, batch_of(texts, answers), Condition(prompt=given))
        loss = cross_entropy(logits, targets)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, prompt)[0])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def test_batches_move_whole() -> None:
    batch = TextBatch(*batch_of(rows(3)).__dict__.values())
    batch.extra.update(label=torch.tensor([1]), items=["a"])
    moved = batch.to(torch.device("cpu"))
    assert len(moved) == 1
    assert moved.extra["items"] == ["a"]
    assert moved.answer is None
    assert int(moved.text.max()) < VOCABULARY
