"""Run a frozen language model under a condition, scoring only what the task asks for.

A method says *what conditions the model* (a `Condition`); this file is the one place that knows how causal,
encoder-decoder and masked models are run with it.  Three savings, all exact:

* Only the answer's positions reach the language-model head, never ``[batch, length, vocabulary]``.
* In a causal model nothing before the text depends on the text, so a prompt that all rows share runs once per
  batch; its keys and values, with their gradients, serve every row.
* Text is packed: rows are as long as the longest row of the batch, answers included, and in a causal model short
  rows share a line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput

from cuelight.backbones.backbone import Backbone
from cuelight.errors import BackboneError
from cuelight.prompts.lines import share_lines
from cuelight.prompts.slots import overwrite_states, per_row

__all__ = [
    "Condition",
    "TextBatch",
    "answer_logits",
    "choice_scores",
    "generate",
    "pack",
    "self_attention_cache",
    "text_states",
]

_SCORES_AT_ONCE = 30_000_000
"""Entries of a score table held in memory at a time (120 MB in float32)."""
_STATES_AT_ONCE = 200_000_000
"""Entries of cached keys and values repeated for choices at a time (800 MB in float32)."""


@dataclass
class Condition:
    """What conditions the backbone.  All parts are optional; an empty condition is the model as it is.

    Attributes:
        prompt: soft tokens before the text, ``[slots, width]`` for all rows or ``[batch, slots, width]``.
        deep: per layer, what that layer sees at the prompt's slots; shaped like ``prompt``.
        offset: ``[positions, width]``, added to the embedding of the i-th text token (not to answers).
        keys_values: a key/value prefix for the (decoder's) self-attention: per layer a pair of
            ``[1, heads, slots, head width]``.  In a causal model the prompt stands behind it.

    Raises:
        ValueError: ``deep`` without a prompt of the same length.
    """

    prompt: Tensor | None = None
    deep: Mapping[int, Tensor] = field(default_factory=dict)
    offset: Tensor | None = None
    keys_values: Sequence[tuple[Tensor, Tensor]] | None = None
    _prefix: DynamicCache | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if any(v.shape[-2] != self.length for v in self.deep.values()):
            raise ValueError(f"deep: every layer's vectors must be as many as the prompt's, {self.length}")

    @property
    def length(self) -> int:
        """Number of slots before the text."""
        return 0 if self.prompt is None else self.prompt.shape[-2]

    @property
    def shared(self) -> bool:
        """Whether all rows have the same prompt."""
        vectors = [*self.deep.values(), *([] if self.prompt is None else [self.prompt])]
        return all(v.dim() == 2 for v in vectors)

    @property
    def learns(self) -> bool:
        """Whether a gradient is wanted for any part of what stands before the text."""
        parts = [self.prompt, *self.deep.values(), *(x for pair in self.keys_values or () for x in pair)]
        return any(x is not None and x.requires_grad for x in parts)


@dataclass
class TextBatch:
    """Token ids of a batch: texts ``[B, T]``, and for training the answers ``[B, A]``, each with a 0/1 mask.

    ``extra`` carries what a task or method wants besides (labels, weights, raw examples).
    """

    text: Tensor
    text_mask: Tensor
    answer: Tensor | None = None
    answer_mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.text.shape[0]

    def to(self, device: torch.device) -> TextBatch:
        """The same batch on ``device``."""

        def move(x: Any) -> Any:
            return x.to(device) if isinstance(x, Tensor) else x

        return TextBatch(
            move(self.text),
            move(self.text_mask),
            move(self.answer),
            move(self.answer_mask),
            {k: move(v) for k, v in self.extra.items()},
        )


def pack(ids: Tensor, mask: Tensor, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Close the gaps in each row: real tokens, then padding (padding first when ``left``), trimmed."""
    longest = int(mask.sum(1).max())
    order = (mask if left else 1 - mask).argsort(dim=1, stable=True)
    order = order[:, order.shape[1] - longest :] if left else order[:, :longest]
    return ids.gather(1, order), mask.gather(1, order)


def answer_logits(backbone: Backbone, batch: TextBatch, condition: Condition) -> tuple[Tensor, Tensor]:
    """Scores of the whole vocabulary at every answer token, teacher forced.

    Returns:
        ``logits [N, vocabulary]`` and the ``N`` answer ids they should predict, row by row.

    Raises:
        BackboneError: the rows are longer than the backbone has positions for.
    """
    assert batch.answer is not None
    assert batch.answer_mask is not None
    rows, steps = torch.nonzero(batch.answer_mask, as_tuple=True)
    targets = batch.answer[rows, steps]
    if backbone.kind == "seq2seq":
        encoded, mask = _encode(backbone, batch, condition)
        return _decode(backbone, encoded, mask, batch.answer, rows, steps, condition), targets
    lengths = batch.text_mask.sum(1)
    if backbone.kind == "masked":
        ids, mask = pack(batch.text, batch.text_mask)
        columns = _mask_columns(backbone, ids)[rows, steps]
        return _run(backbone, ids, mask, lengths, condition, rows, columns)[0], targets
    ids, mask = pack(
        torch.cat([batch.text, batch.answer], 1), torch.cat([batch.text_mask, batch.answer_mask], 1)
    )
    return _run(backbone, ids, mask, lengths, condition, rows, lengths[rows] + steps - 1)[0], targets


def choice_scores(
    backbone: Backbone, batch: TextBatch, condition: Condition, choices: Sequence[Sequence[int]]
) -> Tensor:
    """Log-likelihood of each choice as the answer, ``[B, C]``, up to a constant of each row.

    ``choices`` are token ids.  When every choice is one token, one pass scores just those ids; longer ones go
    on from the text's cached keys and values (or the encoder's states), never through the text again.

    Raises:
        BackboneError: choices of several tokens for a masked model, or rows longer than its positions.
    """
    first = torch.tensor([c[0] for c in choices], device=batch.text.device)
    everyone = torch.arange(len(batch), device=batch.text.device)
    short = all(len(c) == 1 for c in choices)
    if backbone.kind == "seq2seq":
        encoded, mask = _encode(backbone, batch, condition)
        if short:
            start, unread = torch.zeros_like(everyone), first[:1].expand(len(batch), 1)
            return _decode(backbone, encoded, mask, unread, everyone, start, condition, first)
        return _sequence_scores_seq2seq(backbone, encoded, mask, choices, condition)
    ids, mask = pack(batch.text, batch.text_mask)
    lengths = mask.sum(1)
    if backbone.kind == "masked":
        if not short:
            raise BackboneError(
                f"backbone {backbone.id}: a masked LM scores one-token choices here; give one-token "
                f"label words"
            )
        columns = _mask_columns(backbone, ids)[:, 0]
        return _run(backbone, ids, mask, lengths, condition, everyone, columns, first)[0]
    if short:
        return _run(backbone, ids, mask, lengths, condition, everyone, lengths - 1, first)[0]
    extra = max(len(c) for c in choices) - 1
    logits, cache = _run(backbone, ids, mask, lengths, condition, everyone, lengths - 1, extra=extra)
    return _sequence_scores_causal(backbone, logits, cache, mask, choices)


@torch.no_grad()
def generate(
    backbone: Backbone,
    batch: TextBatch,
    condition: Condition,
    *,
    allowed: Callable[[list[int]], list[int]] | None = None,
    **options: Any,
) -> list[list[int]]:
    """Token ids the model goes on with, row by row, without padding and end marks.

    ``allowed`` maps the tokens generated so far to those that may come next; ``options`` go to transformers'
    ``generate`` (``max_new_tokens``, ``num_beams``...).

    Raises:
        BackboneError: a model that does not generate, or rows longer than it has positions for.
    """
    model = backbone.model
    # A model's own defaults (shortest length, no repeats) are for its own use, and fight with ``allowed``.
    plain = {"do_sample": False, "min_length": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    options = {**plain, "pad_token_id": backbone.tokenizer.pad_token_id, **options}
    beams = options.get("num_beams", 1)
    given = 0  # ids that transformers counts as generated but that we put there
    if allowed is not None:
        options["prefix_allowed_tokens_fn"] = lambda _, ids: allowed(ids[given:].tolist())
    if backbone.kind == "seq2seq":
        encoded, mask = _encode(backbone, batch, condition)
        cache = _decoder_cache(backbone, condition, len(batch) * beams)
        # Ids stand for what is cached already; only their number matters.
        given = 1 + (0 if cache is None else cache.get_seq_length())
        start = torch.full((len(batch), given), _decoder_start(backbone), device=mask.device)
        if cache is not None:
            options |= {
                "past_key_values": cache,
                "use_cache": True,
                "decoder_attention_mask": torch.ones_like(start),
            }
        options |= {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded), "decoder_input_ids": start}
        answers = model.generate(attention_mask=mask, **options)[:, given:]
    elif backbone.kind == "causal":
        # The text is read as in training; transformers goes on from its cache with each row's last token.
        ids, mask = pack(batch.text, batch.text_mask)
        lengths, none = mask.sum(1), torch.zeros(0, dtype=torch.long, device=ids.device)
        extra = options.get("max_new_tokens", 0)
        _, read = _run(backbone, ids, mask, lengths, condition, none, none, extra=extra)
        past, seen = _aligned(read, mask)
        past = _changed(past, lambda x: x[:, :, :-1].repeat_interleave(beams, 0))
        embedded = _offset(backbone.embed(ids), condition, lengths)
        embedded = embedded[torch.arange(len(batch), device=ids.device), lengths - 1][:, None]
        unread = embedded.new_zeros(()).expand(len(batch), seen.shape[1] - 1, embedded.shape[-1])
        answers = model.generate(
            inputs_embeds=torch.cat([unread, embedded], 1),
            attention_mask=seen,
            past_key_values=past,
            **options,
        )
    else:
        raise BackboneError(
            f"backbone {backbone.id}: a {backbone.kind} model does not generate; use a causal or seq2seq LM"
        )
    ends = {backbone.tokenizer.pad_token_id, *_end_ids(backbone)}
    result = []
    for row in answers.tolist():
        stop = next((k for k, token in enumerate(row) if token in ends), len(row))
        result.append(row[:stop])
    return result


def text_states(backbone: Backbone, batch: TextBatch, condition: Condition) -> tuple[Tensor, Tensor]:
    """Last hidden states of the text tower, ``[B, slots + T, width]``, and their mask ``[B, slots + T]``.

    Rows are packed: slots, text, padding.

    Raises:
        BackboneError: the rows are longer than the backbone has positions for.
    """
    if backbone.kind == "seq2seq":
        return _encode(backbone, batch, condition)
    ids, mask = pack(batch.text, batch.text_mask)
    embeddings, mask = _with_prompt(backbone, ids, mask, mask.sum(1), condition)
    with overwrite_states(backbone.tower, condition.deep):
        output = backbone.model.base_model(inputs_embeds=embeddings, attention_mask=mask)
    return output.last_hidden_state, mask


@torch.no_grad()
def self_attention_cache(backbone: Backbone, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values the (decoder's) self-attention has for tokens ``ids [T]``.

    Returns:
        Per layer a pair ``[1, heads, T, head width]``.

    Raises:
        BackboneError: the model keeps something else than keys and values.
    """
    cache = _new_cache(backbone)
    if backbone.kind == "seq2seq":
        nothing = torch.zeros(1, 1, backbone.tower.width, device=ids.device, dtype=backbone.dtype)
        backbone.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=nothing),
            decoder_input_ids=ids[None],
            past_key_values=EncoderDecoderCache(cache, DynamicCache()),
            use_cache=True,
        )
    else:
        backbone.model.base_model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _run(
    backbone: Backbone,
    ids: Tensor,
    mask: Tensor,
    lengths: Tensor,
    condition: Condition,
    rows: Tensor,
    columns: Tensor,
    vocabulary: Tensor | None = None,
    *,
    extra: int = 0,
) -> tuple[Tensor, DynamicCache | None]:
    """One pass of a causal or masked LM over packed ``ids``; scores at ``(rows, columns)`` of them.

    ``lengths`` is how many tokens of each row are text, ``extra`` how many more positions will be needed.
    """
    options: dict[str, Any] = {}
    before = condition.length
    if backbone.kind == "causal":
        prefix = _prefix(backbone, condition)
        cached = prefix.get_seq_length()
        if condition.shared:
            condition, before = Condition(offset=condition.offset), 0
        _check_length(backbone, cached + before + ids.shape[1] + extra)
        embeddings, mask = _with_prompt(backbone, ids, mask, lengths, condition)
        columns = columns + before
        # Nobody goes on from this pass, so its rows may stand as they take the least room.
        lines = None if extra or condition.deep else share_lines(backbone, mask, cached)
        if lines is None:
            mask = torch.cat([mask.new_ones(len(mask), cached), mask], 1)
        else:
            embeddings = lines.gather(embeddings)
            rows, columns = lines.line[rows], lines.start[rows] + columns
            added = embeddings.dtype if backbone.model.config._attn_implementation == "eager" else None
            mask = lines.attention(cached, added)
            options["position_ids"] = lines.column + cached
        options |= {
            "past_key_values": _changed(prefix, lambda x: x.expand(len(embeddings), -1, -1, -1)),
            "use_cache": True,
        }
    else:
        if condition.keys_values is not None:
            raise BackboneError(
                f"backbone {backbone.id}: a {backbone.kind} model takes no key/value prefix; use a causal LM"
            )
        embeddings, mask = _with_prompt(backbone, ids, mask, lengths, condition)
        columns = columns + before
    with (
        overwrite_states(backbone.tower, condition.deep),
        backbone.scoring(rows, columns, vocabulary),
    ):
        output = backbone.model(inputs_embeds=embeddings, attention_mask=mask, **options)
    return output.logits, output.get("past_key_values")


def _with_prompt(
    backbone: Backbone, ids: Tensor, mask: Tensor, lengths: Tensor, condition: Condition
) -> tuple[Tensor, Tensor]:
    """Embeddings ``[B, slots + T, width]`` of packed ``ids [B, T]`` behind the prompt, and their mask."""
    _check_length(backbone, condition.length + ids.shape[1])
    embeddings = _offset(backbone.embed(ids), condition, lengths)
    if condition.prompt is None:
        return embeddings, mask
    if condition.prompt.shape[-1] != embeddings.shape[-1]:
        raise BackboneError(
            f"backbone {backbone.id}: its embeddings are {embeddings.shape[-1]} wide and the prompt "
            f"{condition.prompt.shape[-1]}; use a model whose embeddings are as wide as its layers"
        )
    prompt = per_row(condition.prompt, len(ids)).to(embeddings.dtype)
    return torch.cat([prompt, embeddings], 1), torch.cat([mask.new_ones(prompt.shape[:2]), mask], 1)


def _offset(embeddings: Tensor, condition: Condition, lengths: Tensor) -> Tensor:
    """Add row ``i`` of the offset to the i-th text token; each packed row has ``lengths [B]`` of them."""
    if condition.offset is None:
        return embeddings
    reach = min(embeddings.shape[1], condition.offset.shape[0])
    offset = condition.offset[:reach].to(embeddings.dtype)
    is_text = torch.arange(reach, device=lengths.device) < lengths[:, None]
    changed = torch.addcmul(embeddings[:, :reach], is_text[..., None].to(embeddings.dtype), offset)
    return changed if reach == embeddings.shape[1] else torch.cat([changed, embeddings[:, reach:]], 1)


def _check_length(backbone: Backbone, length: int) -> None:
    most = backbone.max_positions
    if most is not None and length > most:
        raise BackboneError(
            f"backbone {backbone.id}: {length} tokens (prompt, text and answer) do not fit its "
            f"{most} positions; "
            "lower --max-length or the prompt's length"
        )


def _new_cache(backbone: Backbone) -> DynamicCache:
    """An empty cache that keeps every position.

    The model's own would drop what slides out of a layer's window, counting padding as if it were text.
    """
    kinds = {type(layer) for layer in DynamicCache(config=backbone.model.config).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise BackboneError(
            f"backbone {backbone.id}: has layers that keep no keys and values of each token, which "
            f"prompts are run by; "
            "use a model with attention in every layer"
        )
    return DynamicCache()


def _given_cache(backbone: Backbone, condition: Condition) -> DynamicCache:
    """The condition's own keys and values, batch 1."""
    if condition.keys_values is None:
        return _new_cache(backbone)
    return _cache_of((k.to(backbone.dtype), v.to(backbone.dtype)) for k, v in condition.keys_values)


def _prefix(backbone: Backbone, condition: Condition) -> DynamicCache:
    """Keys and values all rows share, batch 1; kept with the condition while nothing in it learns."""
    if condition._prefix is not None:
        return condition._prefix
    cache = _given_cache(backbone, condition)
    if condition.prompt is not None and condition.length and condition.shared:
        length = cache.get_seq_length() + condition.length
        _check_length(backbone, length)
        with overwrite_states(backbone.tower, condition.deep):
            backbone.model.base_model(
                inputs_embeds=condition.prompt[None].to(backbone.dtype),
                attention_mask=torch.ones(1, length, dtype=torch.long, device=backbone.device),
                past_key_values=cache,
                use_cache=True,
            )
    if not condition.learns:
        condition._prefix = cache
    return cache


def _cache_of(pairs: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache that holds these keys and values themselves, not copies; it grows by concatenation."""
    cache = DynamicCache()
    for keys, values in pairs:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _changed(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> DynamicCache:
    """Another cache, of ``change`` applied to all keys and values ``[rows, heads, length, width]``."""
    return _cache_of((change(layer.keys), change(layer.values)) for layer in cache.layers)


def _aligned(cache: DynamicCache | None, mask: Tensor) -> tuple[DynamicCache, Tensor]:
    """A cache of rows ``[shared, text, padding]`` as ``[padding, shared, text]``, and its mask.

    ``mask [B, T]`` is the text's.  What follows then stands next to the text it follows, which matters to
    layers with a sliding window: they count columns, not positions.
    """
    assert cache is not None
    mask = torch.cat([mask.new_ones(len(mask), cache.get_seq_length() - mask.shape[1]), mask], 1)
    order = mask.argsort(dim=1, stable=True)
    moved = _changed(cache, lambda x: x.gather(2, order[:, None, :, None].expand_as(x)))
    return moved, mask.gather(1, order)


def _encode(backbone: Backbone, batch: TextBatch, condition: Condition) -> tuple[Tensor, Tensor]:
    """The encoder's states ``[B, slots + T, width]`` and their mask."""
    ids, mask = pack(batch.text, batch.text_mask)
    embeddings, mask = _with_prompt(backbone, ids, mask, mask.sum(1), condition)
    with overwrite_states(backbone.tower, condition.deep):
        states = backbone.model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    return states, mask


def _decoder_start(backbone: Backbone) -> int:
    return int(backbone.model.config.decoder_start_token_id)


def _decoder_cache(backbone: Backbone, condition: Condition, batch: int) -> EncoderDecoderCache | None:
    if condition.keys_values is None:
        return None
    cache = _changed(_given_cache(backbone, condition), lambda x: x.expand(batch, -1, -1, -1))
    return EncoderDecoderCache(cache, DynamicCache())


def _decode(
    backbone: Backbone,
    encoded: Tensor,
    mask: Tensor,
    answer: Tensor,
    rows: Tensor,
    steps: Tensor,
    condition: Condition,
    vocabulary: Tensor | None = None,
) -> Tensor:
    """Decoder scores for ``answer [B, A]`` at ``(rows, steps)``."""
    start = answer.new_full((answer.shape[0], 1), _decoder_start(backbone))
    inputs = torch.cat([start, answer[:, :-1]], 1)
    options: dict[str, Any] = {"use_cache": False}
    cache = _decoder_cache(backbone, condition, answer.shape[0])
    if cache is not None:
        length = cache.get_seq_length() + inputs.shape[1]
        seen = inputs.new_ones(len(inputs), length)
        options = {"use_cache": True, "past_key_values": cache, "decoder_attention_mask": seen}
    with backbone.scoring(rows, steps, vocabulary):
        return backbone.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=inputs,
            **options,
        ).logits


def _sequence_scores_seq2seq(
    backbone: Backbone, encoded: Tensor, mask: Tensor, choices: Sequence[Sequence[int]], condition: Condition
) -> Tensor:
    batch, longest = encoded.shape[0], max(len(c) for c in choices)
    scores = []
    # Cross-attention makes keys and values of the encoder's states in every decoder layer.
    states = 2 * encoded.numel() * backbone.towers["decoder"].depth
    for part in _parts(choices, batch * longest, states, backbone):
        ids = pad_sequence([torch.tensor(c) for c in part], batch_first=True).to(encoded.device)
        real = pad_sequence([torch.ones(len(c), dtype=torch.long) for c in part], batch_first=True).to(
            encoded.device
        )
        rows, steps = torch.nonzero(real.repeat(batch, 1), as_tuple=True)
        answers = ids.repeat(batch, 1)
        many, seen = (x.repeat_interleave(len(part), 0) for x in (encoded, mask))
        logits = _decode(backbone, many, seen, answers, rows, steps, condition)
        values = _log_likelihood(logits, answers[rows, steps])
        scores.append(_sum_by_row(values, rows, batch * len(part)).view(batch, -1))
    return torch.cat(scores, 1)


def _sequence_scores_causal(
    backbone: Backbone,
    logits: Tensor,
    cache: DynamicCache | None,
    mask: Tensor,
    choices: Sequence[Sequence[int]],
) -> Tensor:
    """Go on from the text's cache with each choice; ``logits [B, V]`` score the first tokens."""
    batch, longest = logits.shape[0], max(len(c) for c in choices)
    total = logits.float().log_softmax(-1)[:, [c[0] for c in choices]]
    past, seen = _aligned(cache, mask)
    starts = seen.sum(1)
    states = sum(layer.keys.numel() + layer.values.numel() for layer in past.layers)
    takes_positions = "position_ids" in inspect.signature(backbone.model.forward).parameters
    long = [k for k, c in enumerate(choices) if len(c) > 1]
    for part in _parts(long, batch * longest, states, backbone):
        ids = pad_sequence([torch.tensor(choices[k][:-1]) for k in part], batch_first=True)
        targets = pad_sequence(
            [torch.tensor(choices[k][1:]) for k in part], batch_first=True, padding_value=-1
        )
        ids, targets = (x.to(mask.device).repeat(batch, 1) for x in (ids, targets))
        rows, steps = torch.nonzero(targets >= 0, as_tuple=True)
        twin = _changed(past, partial(torch.repeat_interleave, repeats=len(part), dim=0))
        whole = torch.cat([seen.repeat_interleave(len(part), 0), (targets >= 0).to(seen.dtype)], 1)
        options: dict[str, Any] = {"attention_mask": whole, "past_key_values": twin, "use_cache": True}
        if takes_positions:
            after = torch.arange(ids.shape[1], device=ids.device)
            options["position_ids"] = starts.repeat_interleave(len(part))[:, None] + after
        with backbone.scoring(rows, steps):
            out = backbone.model(input_ids=ids, **options).logits
        values = _log_likelihood(out, targets[rows, steps])
        more = _sum_by_row(values, rows, batch * len(part)).view(batch, -1)
        total = total.index_add(1, torch.tensor(part, device=total.device), more)
    return total


def _parts(items: Sequence[Any], rows: int, states: int, backbone: Backbone) -> list[Sequence[Any]]:
    """Cut ``items`` so that a part's scores (``rows`` per item) and repeated ``states`` stay small."""
    scores = rows * backbone.model.get_output_embeddings().weight.shape[0]
    size = max(1, min(_SCORES_AT_ONCE // max(scores, 1), _STATES_AT_ONCE // max(states, 1)))
    return [items[k : k + size] for k in range(0, len(items), size)]


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _sum_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, rows, values)


def _mask_columns(backbone: Backbone, ids: Tensor) -> Tensor:
    """Columns of the mask tokens in packed ``ids``, ``[B, masks]``."""
    return torch.nonzero(ids == backbone.tokenizer.mask_token_id, as_tuple=True)[1].view(len(ids), -1)


def _end_ids(backbone: Backbone) -> list[int]:
    end = backbone.model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    return [e for e in [*ends, backbone.tokenizer.eos_token_id] if e is not None]
