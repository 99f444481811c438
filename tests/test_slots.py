"""Slots and hooks: what the prompt holds is what the tower reads, there and then and nowhere else.

Tiny random models of the real architectures: only where vectors go is tested here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cuelight.backbones.towers import Tower, find_towers
from cuelight.errors import CuelightError
from cuelight.prompts.slots import fill_text_slots, insert_tokens, overwrite_states, slot_ids
from tiny_models import PAD, WIDTH, build, padded, rows

TEXT = ["gpt2", "llama", "gemma3", "opt", "bert", "t5", "bart", "whisper", "clip"]
CAUSAL = ["gpt2", "llama", "gemma3", "opt"]
SEEING = ["vit", "dinov2", "clip", "ast", "whisper"]
SLOTS = 3


@contextlib.contextmanager
def seen_by(tower: Tower, layer: int) -> Iterator[list[Tensor]]:
    """What a layer gets, in order of the passes.  Entered inside our blocks, so its hook runs after ours."""
    states: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    handle = tower.layers[layer].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield states
    finally:
        handle.remove()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def text_tower(model: PreTrainedModel) -> Tower:
    towers = find_towers(model)
    return next(towers[n] for n in ("encoder", "text", "decoder") if n in towers)


def read(model: PreTrainedModel, mask: Tensor, **inputs: Tensor) -> Tensor:
    """Last states of the model's text tower for ``input_ids`` or ``inputs_embeds``."""
    kind = model.config.model_type
    if kind in ("t5", "bart"):
        return model.get_encoder()(attention_mask=mask, **inputs).last_hidden_state
    if kind == "whisper":
        sound = torch.linspace(-1, 1, len(mask) * 10 * WIDTH).view(len(mask), 10, WIDTH)
        return model.model.decoder(
            attention_mask=mask, encoder_hidden_states=sound, **inputs
        ).last_hidden_state
    if kind == "clip":
        return model.text_model(attention_mask=mask, **inputs).last_hidden_state
    return model.base_model(attention_mask=mask, **inputs).last_hidden_state


def scattered(left: bool = False) -> tuple[Tensor, Tensor]:
    """Three rows of other lengths, slots in another order at other places; row 2 lacks slot 1."""
    table = rows(9, 7, 6)
    for row, places in zip(table, ([0, 1, 2], [5, 1, 3], [4, 4, 2]), strict=True):
        for slot, column in enumerate(places):
            row[column] = -1 - slot
    table[2][4] = -1
    return padded(table, left=left, extra=1)


def expected(embedding: nn.Embedding, ids: Tensor, prompt: Tensor) -> Tensor:
    """The embeddings with every slot overwritten, place by place."""
    vectors = embedding(ids.clamp(min=0)).clone()
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            if ids[b, t] < 0:
                vectors[b, t] = (prompt if prompt.dim() == 2 else prompt[b])[-1 - int(ids[b, t])]
    return vectors


def test_slot_ids_count_down() -> None:
    assert slot_ids(3).tolist() == [-1, -2, -3]
    assert slot_ids(0).tolist() == []


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per-row"])
def test_every_slot_is_read_as_the_prompt(name: str, left: bool, per_row: bool) -> None:
    model = build(name)
    tower = text_tower(model)
    ids, mask = scattered(left)
    prompt = torch.randn(*([3] if per_row else []), SLOTS, WIDTH) * 2
    wanted = expected(tower.embedding, ids, prompt)
    plain = ids.clamp(min=0)
    with torch.no_grad():
        with fill_text_slots(tower, prompt), seen_by(tower, 0) as states:
            out = read(model, mask, input_ids=ids)
        if name == "clip":  # reads ids only
            positions = model.text_model.embeddings.position_embedding.weight[: ids.shape[1]]
            torch.testing.assert_close(states[0] - positions, wanted, atol=1e-5, rtol=1e-5)
            assert not torch.allclose(out, read(model, mask, input_ids=plain))
            return
        with seen_by(tower, 0) as reference:  # positions and norms included
            torch.testing.assert_close(out, read(model, mask, inputs_embeds=wanted), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states[0], reference[0], atol=1e-5, rtol=1e-5)
        if name in ("llama", "gemma3", "t5"):  # nothing stands between the embedding and the first layer
            torch.testing.assert_close(states[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("end", [2, 59], ids=["legacy pooling", "pooling"])
def test_clip_pools_at_the_end_of_text_whatever_the_slots(end: int) -> None:
    model = build("clip", eos_token_id=end)
    table = rows(8, 5, low=4)
    table = [
        [*(t if t < 59 else 5 for t in row), 59] for row in table
    ]  # 59 is the highest id and the end of text
    for row in table:
        row[1:4] = [-1, -2, -3]
    ids, mask = padded(table)
    with torch.no_grad(), fill_text_slots(find_towers(model)["text"], torch.randn(SLOTS, WIDTH) * 5):
        out = model.text_model(input_ids=ids, attention_mask=mask)
    ends = torch.tensor([len(row) - 1 for row in table])
    assert torch.equal(out.pooler_output, out.last_hidden_state[torch.arange(2), ends])


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "clip", "whisper"])
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per-row"])
def test_deep_prompts_are_what_their_layer_sees(name: str, per_row: bool) -> None:
    model = build(name)
    tower = text_tower(model)
    ids, mask = scattered()
    more = [3] if per_row else []
    prompt = torch.randn(*more, SLOTS, WIDTH)
    for layer in range(tower.depth):
        deep = {layer: torch.randn(*more, SLOTS, WIDTH)}
        with torch.no_grad(), fill_text_slots(tower, prompt), seen_by(tower, layer) as without:
            read(model, mask, input_ids=ids)
        with torch.no_grad(), fill_text_slots(tower, prompt, deep), seen_by(tower, layer) as states:
            read(model, mask, input_ids=ids)
        wanted = without[0].clone()
        for b, t in (ids < 0).nonzero().tolist():
            wanted[b, t] = (deep[layer][b] if per_row else deep[layer])[-1 - int(ids[b, t])]
        assert torch.equal(states[0], wanted)


def loop(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, prompt: Tensor, deep: dict[int, Tensor], steps: int
) -> Tensor:
    """Greedy decoding without cache or ``generate``: each row alone, unpadded, read anew each step."""
    tower = text_tower(model)
    result = []
    for k in range(len(ids)):
        mine = prompt if prompt.dim() == 2 else prompt[k]
        below = {i: v if v.dim() == 2 else v[k] for i, v in deep.items()}
        row = ids[k][mask[k].bool()][None]
        start = row.shape[1]
        for _ in range(steps):
            with torch.no_grad(), fill_text_slots(tower, mine, below):
                row = torch.cat([row, model(input_ids=row, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        result.append(row[0, start:])
    return torch.stack(result)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("how", ["shared", "per-row", "deep"])
def test_generate_with_cache_equals_a_loop_without(name: str, how: str) -> None:
    model = build(name)
    model.generation_config.eos_token_id = None
    ids, mask = scattered(left=True)
    more = [3] if how != "shared" else []
    prompt = torch.randn(*more, SLOTS, WIDTH)
    deep = {i: torch.randn(*more, SLOTS, WIDTH) for i in (0, 2)} if how == "deep" else {}
    with fill_text_slots(text_tower(model), prompt, deep):
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=PAD
        )
    assert torch.equal(out[:, ids.shape[1] :], loop(model, ids, mask, prompt, deep, 5))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("deep_at", [[], [1]], ids=["shallow", "deep"])
def test_beams_of_rows_with_different_prompts(name: str, deep_at: list[int]) -> None:
    """Beams repeat rows before the embedding (input ids) or behind it (our vectors): both go by row."""
    model = build(name)
    model.generation_config.eos_token_id = None
    tower = text_tower(model)
    ids, mask = scattered(left=name != "t5")
    prompt = torch.randn(3, SLOTS, WIDTH)
    deep = {i: torch.randn(3, SLOTS, WIDTH) for i in deep_at}
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "pad_token_id": PAD}
    with fill_text_slots(tower, prompt, deep):
        out = model.generate(input_ids=ids, attention_mask=mask, **options)
    new = out[:, ids.shape[1] :] if name != "t5" else out
    for k in range(3):  # alone, no row can be given another's prompt
        with fill_text_slots(tower, prompt[k], {i: v[k] for i, v in deep.items()}):
            alone = model.generate(input_ids=ids[k : k + 1], attention_mask=mask[k : k + 1], **options)
        assert torch.equal(new[k], (alone[:, ids.shape[1] :] if name != "t5" else alone)[0])
    if not deep and name != "t5":
        vectors = expected(tower.embedding, ids, prompt)
        assert torch.equal(new, model.generate(inputs_embeds=vectors, attention_mask=mask, **options))
        with fill_text_slots(tower, prompt):  # embedded here, repeated by beam search afterwards
            assert torch.equal(
                new, model.generate(inputs_embeds=tower.embedding(ids), attention_mask=mask, **options)
            )


def test_deep_prompts_go_with_rows_repeated_behind_the_embedding() -> None:
    model = build("llama")
    tower = text_tower(model)
    ids, _ = scattered()
    prompt, deep = torch.randn(3, SLOTS, WIDTH), {1: torch.randn(3, SLOTS, WIDTH)}
    with torch.no_grad(), fill_text_slots(tower, prompt, deep):
        once = model(input_ids=ids).logits
        twice = model(inputs_embeds=tower.embedding(ids).repeat_interleave(2, 0)).logits
    torch.testing.assert_close(twice, once.repeat_interleave(2, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TEXT)
def test_nothing_is_left_behind(name: str) -> None:
    model = build(name)
    tower = text_tower(model)
    ids, mask = scattered()
    plain, count = ids.clamp(min=0), hooks(model)
    with torch.no_grad():
        before = read(model, mask, input_ids=plain)

        def breaks(*_: Any) -> None:
            raise RuntimeError("in the middle")

        handle = tower.layers[-1].register_forward_pre_hook(breaks)
        with (
            pytest.raises(RuntimeError, match="in the middle"),
            fill_text_slots(tower, torch.randn(SLOTS, WIDTH), {1: torch.randn(SLOTS, WIDTH)}),
        ):
            read(model, mask, input_ids=ids)
        handle.remove()
        with (
            pytest.raises(CuelightError, match=r"has layers 0 to ., not 99"),
            fill_text_slots(tower, torch.randn(SLOTS, WIDTH), {99: torch.randn(SLOTS, WIDTH)}),
        ):
            pass
        assert hooks(model) == count
        assert torch.equal(read(model, mask, input_ids=plain), before)
        with fill_text_slots(tower, torch.randn(SLOTS, WIDTH), {1: torch.randn(SLOTS, WIDTH)}):
            inside = read(model, mask, input_ids=plain)  # no slot in the input: the block changes nothing
        assert torch.equal(inside, before)


def test_a_slot_beyond_the_prompt_is_refused_in_one_line() -> None:
    model = build("llama")
    ids, mask = scattered()
    with fill_text_slots(text_tower(model), torch.randn(2, WIDTH)), pytest.raises(CuelightError) as caught:
        read(model, mask, input_ids=ids)
    assert str(caught.value) == "slot 2: the prompt has only 2 vectors; reserve as many slots"
    with (
        fill_text_slots(text_tower(model), torch.randn(2, SLOTS, WIDTH)),
        pytest.raises(CuelightError) as caught,
    ):
        read(model, mask, input_ids=ids)
    assert str(caught.value) == "prompt: 2 prompts for 3 rows; give one prompt for all rows or one per row"


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "clip"])
def test_the_gradient_reaches_the_prompt_and_nothing_else(name: str) -> None:
    model = build(name).requires_grad_(False)
    ids, mask = scattered()
    prompt = torch.randn(SLOTS, WIDTH, requires_grad=True)
    deep = torch.randn(SLOTS, WIDTH, requires_grad=True)
    with fill_text_slots(text_tower(model), prompt, {1: deep}):
        out = read(model, mask, input_ids=ids)
    # A random mean, since layer norms make a plain one constant.
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for vectors in (prompt, deep):
        assert (vectors.grad.abs().sum(1) > 1e-6).all()
    assert all(p.grad is None for p in model.parameters())
    unused = torch.zeros(SLOTS + 1, WIDTH, requires_grad=True)
    with fill_text_slots(text_tower(model), unused):
        read(model, mask, input_ids=ids).square().sum().backward()
    assert (unused.grad[-1] == 0).all()  # its slot is nowhere


def test_the_prompt_takes_the_tower_s_type() -> None:
    model = build("llama").bfloat16()
    prompt = torch.randn(SLOTS, WIDTH, requires_grad=True)
    ids, mask = scattered()
    with fill_text_slots(text_tower(model), prompt, {1: prompt}):
        read(model, mask, input_ids=ids).float().square().sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.dtype == torch.float32


# ---- vision and audio
# ------------------------------------------------------------------------------------------


def look(model: PreTrainedModel, batch: int = 2) -> Tensor:
    """Last states of the model's vision or audio tower for fixed inputs."""
    kind = model.config.model_type
    draw = torch.Generator().manual_seed(3)
    if kind == "whisper":
        return model.get_encoder()(torch.randn(batch, 8, 20, generator=draw)).last_hidden_state
    if kind == "audio-spectrogram-transformer":
        return model(torch.randn(batch, 24, 16, generator=draw)).last_hidden_state
    pixels = torch.randn(batch, 3, 12, 12, generator=draw)
    return (model.vision_model if kind == "clip" else model)(pixel_values=pixels).last_hidden_state


def seeing_tower(model: PreTrainedModel) -> Tower:
    towers = find_towers(model)
    return towers.get("vision") or towers["audio"]


def manual(tower: Tower, states: Tensor, prompt: Tensor, deep: dict[int, Tensor], at: int) -> Tensor:
    """The layers run by hand over the concatenation."""
    states = torch.cat([states[:, :at], prompt.expand(len(states), -1, -1), states[:, at:]], 1)
    for i, layer in enumerate(tower.layers):
        if i in deep:
            states = torch.cat(
                [states[:, :at], deep[i].expand(len(states), -1, -1), states[:, at + SLOTS :]], 1
            )
        out = (
            layer(states, None)
            if "Whisper" in type(layer).__name__ or "CLIP" in type(layer).__name__
            else layer(states)
        )
        states = out[0] if isinstance(out, tuple) else out
    return states


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("after", [None, 1, 0], ids=["end", "behind the class token", "front"])
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per-row"])
def test_inserted_tokens_are_read_and_taken_out(name: str, after: int | None, per_row: bool) -> None:
    model = build(name)
    tower = seeing_tower(model)
    more = [2] if per_row else []
    prompt = torch.randn(*more, SLOTS, WIDTH)
    deep = {1: torch.randn(*more, SLOTS, WIDTH)}
    with torch.no_grad():
        with seen_by(tower, 0) as bare:
            before = look(model)
        at = bare[0].shape[1] if after is None else after
        ends: list[Tensor] = []

        def keep_end(_: nn.Module, __: Any, out: Any) -> None:
            ends.append(out[0] if isinstance(out, tuple) else out)

        for below in ({}, deep):
            with insert_tokens(tower, prompt, below, after=after):
                handle = tower.layers[-1].register_forward_hook(keep_end)
                with seen_by(tower, 0) as first, seen_by(tower, 1) as second:
                    out = look(model)
                handle.remove()
            assert out.shape == before.shape
            assert not torch.allclose(out, before)
            assert torch.equal(first[0][:, at : at + SLOTS], prompt.expand(2, -1, -1))
            assert torch.equal(torch.cat([first[0][:, :at], first[0][:, at + SLOTS :]], 1), bare[0])
            if below:
                assert torch.equal(second[0][:, at : at + SLOTS], deep[1].expand(2, -1, -1))
            whole = manual(tower, bare[0], prompt, below, at)
            rest = torch.cat([whole[:, :at], whole[:, at + SLOTS :]], 1)
            torch.testing.assert_close(ends.pop(), rest, atol=1e-5, rtol=1e-5)
            with insert_tokens(tower, prompt, below, after=after, keep=True):
                kept = look(model)
            assert kept.shape[1] == before.shape[1] + SLOTS
            torch.testing.assert_close(
                torch.cat([kept[:, :at], kept[:, at + SLOTS :]], 1), out, atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("name", SEEING)
def test_nothing_is_left_behind_in_vision_and_audio(name: str) -> None:
    model = build(name)
    tower = seeing_tower(model)
    count = hooks(model)
    prompt = torch.randn(SLOTS, WIDTH, requires_grad=True)
    with torch.no_grad():
        before = look(model)
    handle = tower.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), insert_tokens(tower, prompt, {1: prompt}):
        look(model)
    handle.remove()
    with (
        pytest.raises(CuelightError, match=r"has layers 0 to ., not 99"),
        insert_tokens(tower, prompt, {99: prompt}),
    ):
        pass
    with (
        pytest.raises(CuelightError, match="2 prompts for 3 rows"),
        insert_tokens(tower, torch.randn(2, SLOTS, WIDTH)),
    ):
        look(model, batch=3)
    assert hooks(model) == count
    model.requires_grad_(False)
    with insert_tokens(tower, prompt):
        out = look(model)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert (prompt.grad.abs().sum(1) > 1e-6).all()
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(look(model), before)


def test_a_tower_with_masked_layers_takes_no_inserted_tokens() -> None:
    model = build("bert")
    ids, mask = padded(rows(6, 4), extra=1)
    with (
        insert_tokens(find_towers(model)["text"], torch.randn(SLOTS, WIDTH)),
        pytest.raises(CuelightError) as caught,
    ):
        model(input_ids=ids, attention_mask=mask)
    assert "attention mask" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overwriting_states_by_column() -> None:
    model = build("llama")
    tower = find_towers(model)["text"]
    ids, _ = padded(rows(5, 5))
    vectors = torch.randn(2, WIDTH)
    for at, columns in ((0, slice(0, 2)), (2, slice(2, 4)), (None, slice(3, 5))):
        with torch.no_grad(), overwrite_states(tower, {1: vectors}, at=at), seen_by(tower, 1) as states:
            model(input_ids=ids)
        assert torch.equal(states[0][:, columns], vectors.expand(2, -1, -1))


def test_the_ids_given_by_the_user_are_not_changed() -> None:
    model = build("gpt2")
    ids, mask = scattered()
    copy = ids.clone()
    with torch.no_grad(), fill_text_slots(text_tower(model), torch.randn(SLOTS, WIDTH)):
        model(input_ids=ids, attention_mask=mask)
    assert torch.equal(ids, copy)
