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

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput

from cuelight.backbones.backbone import Backbone
from cuelight.errors import BackboneError
from cuelight.prompts.attention import attend_to_prefix
from cuelight.prompts.lines import share_lines
from cuelight.prompts.slots import fill_text_slots, overwrite_states, per_row

__all__ = [
    "Condition",
    "DeepPrompt",
    "TextBatch",
    "answer_logits",
    "answer_states",
    "begin",
    "choice_scores",
    "end_ids",
    "generate",
    "joined_rows",
    "pack",
    "prefix_states",
    "prompt_logits",
    "self_attention_cache",
    "slot",
    "some_rows",
    "takes_positions",
    "text_states",
]

DeepPrompt = Tensor | Callable[[Tensor, Tensor], Tensor]
"""What a layer sees at the prompt's slots: vectors, or a function that makes them of the states entering that
layer ``[batch, columns, width]`` and of which columns are the text's ``[batch, columns]``."""

_SCORES_AT_ONCE = 30_000_000
"""Entries of a score table held in memory at a time (120 MB in float32)."""
_STATES_AT_ONCE = 200_000_000
"""Entries of cached keys and values repeated for choices at a time (800 MB in float32)."""


@dataclass
class Condition:
    """What conditions the backbone.  All parts are optional; an empty condition is the model as it is.

    Attributes:
        prompt: soft tokens before the text, ``[slots, width]`` for all rows or ``[batch, slots, width]``.
        deep: per layer, what that layer sees at the prompt's slots: vectors shaped like ``prompt``, or a
            function that makes ``[batch, slots, width]`` of the text's states (see `DeepPrompt`).  It never
            sees an answer: answers are no text.
        offset: ``[positions, width]``, added to the embedding of the i-th text token (not to answers).
        soft: ``[vectors, width]``, what stands at the slots a template has inside the text (ids below 0).
        keys_values: a key/value prefix for the self-attention (of the decoder, where there is one): per
            layer a pair of ``[1, heads, slots, head width]``.  In a causal model the prompt stands behind it.
        rows: one condition per row, instead of all the above: a batch of many prompts.  The rows whose
            condition is the same object are run as one.

    Raises:
        ValueError: ``deep`` without a prompt of the same length.
    """

    prompt: Tensor | None = None
    deep: Mapping[int, DeepPrompt] = field(default_factory=dict)
    offset: Tensor | None = None
    soft: Tensor | None = None
    keys_values: Sequence[tuple[Tensor, Tensor]] | None = None
    rows: Sequence[Condition] | None = None
    _prefix: DynamicCache | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if any(v.shape[-2] != self.length for v in self._vectors):
            raise ValueError(f"deep: every layer's vectors must be as many as the prompt's, {self.length}")

    @property
    def _vectors(self) -> list[Tensor]:
        return [v for v in self.deep.values() if isinstance(v, Tensor)]

    @property
    def length(self) -> int:
        """Number of slots before the text."""
        return 0 if self.prompt is None else self.prompt.shape[-2]

    @property
    def shared(self) -> bool:
        """Whether all rows have the same prompt."""
        vectors = [*self._vectors, *([] if self.prompt is None else [self.prompt])]
        made = len(self._vectors) < len(self.deep)
        return self.rows is None and not made and all(v.dim() == 2 for v in vectors)

    @property
    def learns(self) -> bool:
        """Whether a gradient is wanted for any part of what stands before the text."""
        parts = [self.prompt, *self._vectors, *(x for pair in self.keys_values or () for x in pair)]
        return any(x is not None and x.requires_grad for x in parts)

    def groups(self, batch: int, device: torch.device) -> list[tuple[Condition, Tensor]]:
        """The different conditions of a batch, each with the places of its rows."""
        if self.rows is None:
            return [(self, torch.arange(batch, device=device))]
        places: dict[int, list[int]] = {}
        for k, condition in enumerate(self.rows):
            places.setdefault(id(condition), []).append(k)
        if len(self.rows) != batch:
            raise ValueError(f"rows: {len(self.rows)} conditions for {batch} rows")
        return [(self.rows[ks[0]], torch.tensor(ks, device=device)) for ks in places.values()]


@dataclass
class TextBatch:
    """Token ids of a batch: texts ``[B, T]``, and for training the answers ``[B, A]``, each with a 0/1 mask.

    ``extra`` carries what a task or method wants besides (labels, weights, raw examples); ``lead`` is what a decoder
    says before every answer (T5's sentinel).
    """

    text: Tensor
    text_mask: Tensor
    answer: Tensor | None = None
    answer_mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    lead: Sequence[int] = ()

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
            self.lead,
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
        return _decode(
            backbone, encoded, mask, batch.answer, rows, steps, condition, lead=batch.lead
        ), targets
    lengths = batch.text_mask.sum(1)
    if backbone.kind == "masked":
        ids, mask = _with_masks(backbone, batch, batch.answer_mask.sum(1))
        columns = _mask_columns(backbone, ids)[rows] + steps
        return _run(backbone, ids, mask, mask.sum(1), condition, rows, columns)[0], targets
    ids, mask = pack(
        torch.cat([batch.text, batch.answer], 1), torch.cat([batch.text_mask, batch.answer_mask], 1)
    )
    return _run(backbone, ids, mask, lengths, condition, rows, lengths[rows] + steps - 1)[0], targets


def choice_scores(
    backbone: Backbone,
    batch: TextBatch,
    condition: Condition,
    choices: Sequence[Sequence[int]],
    *,
    normalised: bool = False,
) -> Tensor:
    """Log-likelihood of each choice as the answer, ``[B, C]``; up to a constant of each row unless ``normalised``.

    ``choices`` are token ids.  When every choice is one token, one pass scores just those ids; longer ones go
    on from the text's cached keys and values (or the encoder's states), never through the text again.  A masked
    model reads the text once for every length of choices, with as many masks, all unfilled.

    Raises:
        BackboneError: rows longer than the backbone has positions for.
    """
    first = torch.tensor([c[0] for c in choices], device=batch.text.device)
    everyone = torch.arange(len(batch), device=batch.text.device)
    short = all(len(c) == 1 for c in choices)
    wanted = None if normalised else first  # the sum over the vocabulary needs all of it

    def among(logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)[:, first] if normalised else logits

    if backbone.kind == "seq2seq":
        encoded, mask = _encode(backbone, batch, condition)
        if short:
            start, unread = torch.zeros_like(everyone), first[:1].expand(len(batch), 1)
            return among(
                _decode(backbone, encoded, mask, unread, everyone, start, condition, wanted, lead=batch.lead)
            )
        return _sequence_scores_seq2seq(backbone, encoded, mask, choices, condition, batch.lead)
    if backbone.kind == "masked" and not short:
        return _sequence_scores_masked(backbone, batch, condition, choices)
    ids, mask = pack(batch.text, batch.text_mask)
    lengths = mask.sum(1)
    if backbone.kind == "masked":
        columns = _mask_columns(backbone, ids)
        return among(_run(backbone, ids, mask, lengths, condition, everyone, columns, wanted)[0])
    if short:
        return among(_run(backbone, ids, mask, lengths, condition, everyone, lengths - 1, wanted)[0])
    extra = max(len(c) for c in choices) - 1
    logits, cache, seen = _run(backbone, ids, mask, lengths, condition, everyone, lengths - 1, extra=extra)
    return _sequence_scores_causal(backbone, logits, cache, seen, choices)


def slot(
    backbone: Backbone, batch: TextBatch, condition: Condition, vocabulary: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What the language-model head reads and says where the answer begins.

    Returns:
        ``[B, width]``, what enters the matrix of word scores (behind a masked model's transform, and T5's
        scaling); and the scores of the ids in ``vocabulary``, ``[B, len(vocabulary)]``.

    Raises:
        BackboneError: rows longer than the backbone has positions for.
    """
    read: list[Tensor] = []

    def keep(_: Any, entered: tuple[Tensor, ...], __: Any) -> None:
        read.append(entered[0])

    hook = backbone.model.get_output_embeddings().register_forward_hook(keep)
    try:
        scores = choice_scores(backbone, batch, condition, [[token] for token in vocabulary])
    finally:
        hook.remove()
    return read[-1], scores


@torch.no_grad()
def begin(
    backbone: Backbone, batch: TextBatch, condition: Condition, *, extra: int = 0
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Read texts with a causal model, to go on from token by token; `generate` does both.

    Returns:
        Scores of the first new token ``[B, vocabulary]``, the cache, and which of its columns each row sees: rows
        end at the last column.

    Raises:
        BackboneError: the rows, and ``extra`` more tokens, are longer than the backbone has positions for.
    """
    ids, mask = pack(batch.text, batch.text_mask)
    lengths, everyone = mask.sum(1), torch.arange(len(batch), device=ids.device)
    logits, read, seen = _run(
        backbone, ids, mask, lengths, condition, everyone, lengths - 1, extra=extra or 1
    )
    return logits, *_aligned(read, seen)


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
        start = torch.cat([start, _lead(batch.lead, start)], 1)
        given = start.shape[1]
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
        _, read, seen = _run(backbone, ids, mask, lengths, condition, none, none, extra=extra)
        past, seen = _aligned(read, seen)
        past = _changed(past, lambda x: x[:, :, :-1].repeat_interleave(beams, 0))
        embedded = _embed(backbone, ids, lengths, condition)
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
    ends = {backbone.tokenizer.pad_token_id, *end_ids(backbone)}
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
    embeddings, mask, _, deep = _with_prompt(backbone, ids, mask, mask.sum(1), condition)
    with overwrite_states(backbone.tower, deep), _attending(backbone, condition):
        output = backbone.model.base_model(inputs_embeds=embeddings, attention_mask=mask)
    return output.last_hidden_state, mask


def answer_states(backbone: Backbone, batch: TextBatch, condition: Condition) -> Tensor:
    """The last layer's state where the answer would be predicted, ``[B, width]``, for a head to read.

    That is the last text token of a causal model, the first of a masked model or an encoder, and the first
    step of a decoder.

    Raises:
        BackboneError: the rows are longer than the backbone has positions for.
    """
    everyone = torch.arange(len(batch), device=batch.text.device)
    if backbone.kind == "seq2seq":
        encoded, mask = _encode(backbone, batch, condition)
        unread = batch.text.new_zeros(len(batch), 1)
        return _decode(
            backbone, encoded, mask, unread, everyone, everyone * 0, condition, states=True, lead=batch.lead
        )
    ids, mask = pack(batch.text, batch.text_mask)
    lengths = mask.sum(1)
    columns = lengths - 1 if backbone.kind == "causal" else everyone * 0
    return _run(backbone, ids, mask, lengths, condition, everyone, columns, states=True)[0]


def prompt_logits(backbone: Backbone, condition: Condition, columns: Tensor) -> Tensor:
    """What a causal model expects behind some vectors of a shared prompt, ``[N, vocabulary]``.

    The prompt is run once: whatever scores or generates under the same ``condition`` next goes on from its
    keys and values, in the same graph.

    Args:
        columns: ``[N]`` places in the prompt, 0 being its first vector.

    Raises:
        BackboneError: the prompt is longer than the backbone has positions for.
    """
    assert backbone.kind == "causal" and condition.shared
    cache, logits = _read_prompt(backbone, condition, columns)
    condition._prefix = cache
    assert logits is not None
    return logits


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
    states: bool = False,
) -> tuple[Tensor, DynamicCache | None, Tensor]:
    """One pass of a causal or masked LM (or an encoder, for ``states``) over packed ``ids``.

    ``lengths`` is how many tokens of each row are text, ``extra`` how many more positions will be needed.

    Returns:
        Scores at ``(rows, columns)`` of ``ids`` (the last layer's states there, if ``states``); the cache a
        causal model leaves; and which of its columns each row sees.
    """
    options: dict[str, Any] = {}
    cached = 0
    if backbone.kind == "causal":
        prefix, seen = _prefixes(backbone, condition, len(ids))
        cached = seen.shape[1]
        several = condition.rows is not None
        embeddings, mask, before, deep = _with_prompt(backbone, ids, mask, lengths, _unread(condition))
        _check_length(backbone, cached + embeddings.shape[1] + extra)
        columns = columns + before[rows]
        # Nobody goes on from this pass, so its rows may stand as they take the least room.
        lines = None if extra or deep or several else share_lines(backbone, mask, cached)
        if lines is None:
            mask = torch.cat([seen, mask], 1)
            if several and takes_positions(backbone):
                options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, cached:]
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
        embeddings, mask, before, deep = _with_prompt(backbone, ids, mask, lengths, condition)
        columns = columns + before[rows]
    with overwrite_states(backbone.tower, deep), _attending(backbone, condition):
        if states:
            output = backbone.model.base_model(inputs_embeds=embeddings, attention_mask=mask, **options)
            return output.last_hidden_state[rows, columns], output.get("past_key_values"), mask
        with backbone.scoring(rows, columns, vocabulary):
            output = backbone.model(inputs_embeds=embeddings, attention_mask=mask, **options)
    return output.logits, output.get("past_key_values"), mask


def _with_prompt(
    backbone: Backbone, ids: Tensor, mask: Tensor, lengths: Tensor, condition: Condition
) -> tuple[Tensor, Tensor, Tensor, dict[int, Any]]:
    """Packed ``ids [B, T]`` behind their prompts.

    Returns:
        Embeddings ``[B, S, width]`` of rows ``[slots, text, answer, padding]`` and their mask; how many slots
        each row has, ``[B]``; and the deep prompts as `overwrite_states` takes them.
    """
    embeddings = _embed(backbone, ids, lengths, condition)
    before, parts = torch.zeros_like(lengths), []
    groups = condition.groups(len(ids), ids.device)
    for given, places in groups:
        states, seen = (embeddings, mask) if len(groups) == 1 else (embeddings[places], mask[places])
        if given.prompt is not None:
            if given.prompt.shape[-1] != states.shape[-1]:
                raise BackboneError(
                    f"backbone {backbone.id}: its embeddings are {states.shape[-1]} wide and the prompt "
                    f"{given.prompt.shape[-1]}; use a model whose embeddings are as wide as its layers"
                )
            prompt = per_row(given.prompt, len(places)).to(states.dtype)
            states = torch.cat([prompt, states], 1)
            seen = torch.cat([seen.new_ones(prompt.shape[:2]), seen], 1)
            before[places] = given.length
        parts.append((states, seen))
    longest = max(states.shape[1] for states, _ in parts)
    _check_length(backbone, longest)
    if len(parts) > 1:
        order = torch.cat([places for _, places in groups]).argsort()
        padded = [
            (pad(x, (0, 0, 0, longest - x.shape[1])), pad(m, (0, longest - m.shape[1]))) for x, m in parts
        ]
        parts = [(torch.cat([x for x, _ in padded])[order], torch.cat([m for _, m in padded])[order])]
    column = torch.arange(longest, device=ids.device)
    is_text = (column >= before[:, None]) & (column < (before + lengths)[:, None])
    return *parts[0], before, _deep_prompts(groups, is_text)


def _deep_prompts(groups: list[tuple[Condition, Tensor]], is_text: Tensor) -> dict[int, Any]:
    """What each layer writes over the slots, given the states ``[B, S, width]`` that enter it."""

    def alone(prompt: DeepPrompt, text: Tensor) -> Any:
        return prompt if isinstance(prompt, Tensor) else partial(_made, prompt, text)

    def among_others(layer: int, states: Tensor) -> Tensor:
        for given, places in groups:
            if layer in given.deep:
                own = states[places]
                prompt = alone(given.deep[layer], is_text[places])
                vectors = per_row(prompt if isinstance(prompt, Tensor) else prompt(own), len(places))
                own = torch.cat([vectors.to(states.dtype), own[:, given.length :]], 1)
                states = states.index_copy(0, places, own)
        return states

    if len(groups) == 1:
        return {layer: alone(prompt, is_text) for layer, prompt in groups[0][0].deep.items()}
    return {layer: partial(among_others, layer) for layer in sorted({i for c, _ in groups for i in c.deep})}


def _made(prompt: Callable[[Tensor, Tensor], Tensor], is_text: Tensor, states: Tensor) -> Tensor:
    return prompt(states, is_text)


def _embed(backbone: Backbone, ids: Tensor, lengths: Tensor, condition: Condition) -> Tensor:
    """Embeddings of packed ``ids``, whose first ``lengths [B]`` columns are text, each with its offset."""
    if condition.rows is None:
        return _offset(_looked_up(backbone, ids, condition), condition, lengths)
    embeddings = backbone.embed(ids.clamp(min=0))
    for given, places in condition.groups(len(ids), ids.device):
        if given.offset is not None or given.soft is not None:
            own = _looked_up(backbone, ids[places], given)
            embeddings = embeddings.index_copy(0, places, _offset(own, given, lengths[places]))
    return embeddings


def _looked_up(backbone: Backbone, ids: Tensor, condition: Condition) -> Tensor:
    """Embeddings of ``ids``, the condition's own vectors at the slots."""
    if condition.soft is None:
        return backbone.embed(ids)
    with fill_text_slots(backbone.tower, condition.soft):
        return backbone.embed(ids)


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


def prefix_states(backbone: Backbone, condition: Condition) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of what a causal model reads before every row; they stay with the condition.

    Returns:
        Per layer a pair ``[1, heads, length, head width]``.

    Raises:
        BackboneError: longer than the backbone has positions for.
    """
    return [(layer.keys, layer.values) for layer in _prefix(backbone, condition).layers]


def _prefix(backbone: Backbone, condition: Condition) -> DynamicCache:
    """Keys and values all rows share, batch 1; kept with the condition while nothing in it learns."""
    if condition._prefix is not None:
        return condition._prefix
    cache, _ = _read_prompt(backbone, condition)
    if not condition.learns:
        condition._prefix = cache
    return cache


def _read_prompt(
    backbone: Backbone, condition: Condition, columns: Tensor | None = None
) -> tuple[DynamicCache, Tensor | None]:
    """The cache once a causal model has read what all rows share, and its scores behind ``columns``."""
    cache, logits = _given_cache(backbone, condition), None
    if condition.prompt is None or not condition.length or not condition.shared:
        return cache, None
    length = cache.get_seq_length() + condition.length
    _check_length(backbone, length)
    options: dict[str, Any] = {
        "inputs_embeds": condition.prompt[None].to(backbone.dtype),
        "attention_mask": torch.ones(1, length, dtype=torch.long, device=backbone.device),
        "past_key_values": cache,
        "use_cache": True,
    }
    deep = {layer: vectors for layer, vectors in condition.deep.items() if isinstance(vectors, Tensor)}
    with overwrite_states(backbone.tower, deep):
        if columns is None:
            backbone.model.base_model(**options)
        else:
            with backbone.scoring(torch.zeros_like(columns), columns):
                logits = backbone.model(**options).logits
    return cache, logits


def _prefixes(backbone: Backbone, condition: Condition, batch: int) -> tuple[DynamicCache, Tensor]:
    """What stands in the cache before a batch: the cache (batch 1 when all rows share it), and its mask.

    Prefixes of different lengths stand at the right, next to the text.
    """
    if condition.rows is None:
        cache = _prefix(backbone, condition)
        seen = torch.ones(batch, cache.get_seq_length(), dtype=torch.long, device=backbone.device)
        return cache, seen
    groups = condition.groups(batch, backbone.device)
    caches = [_prefix(backbone, given) for given, _ in groups]
    lengths = [cache.get_seq_length() for cache in caches]
    longest = max(lengths)
    seen = torch.zeros(batch, longest, dtype=torch.long, device=backbone.device)
    for (_, places), length in zip(groups, lengths, strict=True):
        seen[places, longest - length :] = 1
    if not longest:
        return _new_cache(backbone), seen
    order = torch.cat([places for _, places in groups]).argsort()
    model = caches[lengths.index(longest)]

    def stacked(layer: int, part: str) -> Tensor:
        rows = []
        for cache, length, (_, places) in zip(caches, lengths, groups, strict=True):
            own = getattr((cache if length else model).layers[layer], part)[:, :, :length]
            rows.append(pad(own, (0, 0, longest - length, 0)).expand(len(places), -1, -1, -1))
        return torch.cat(rows)[order]

    return _cache_of((stacked(k, "keys"), stacked(k, "values")) for k in range(len(model.layers))), seen


def _unread(condition: Condition) -> Condition:
    """What is still to be put before and into the text once a causal model has read what rows share."""
    if condition.rows is None:
        return Condition(offset=condition.offset, soft=condition.soft) if condition.shared else condition
    left: dict[int, Condition] = {}
    return Condition(rows=[left.setdefault(id(given), _unread(given)) for given in condition.rows])


def _attending(backbone: Backbone, condition: Condition) -> contextlib.AbstractContextManager[None]:
    """Inside, a bidirectional model attends to the condition's own keys and values; a causal one caches them."""
    if backbone.kind == "causal" or all(given.keys_values is None for given in condition.rows or [condition]):
        return contextlib.nullcontext()
    if condition.keys_values is None:
        raise BackboneError(_APART.format(backbone.id))
    return attend_to_prefix(backbone, condition.keys_values)


_APART = "backbone {}: rows with different key/value prefixes need a causal LM; run them apart"


def takes_positions(backbone: Backbone) -> bool:
    """Whether the model wants to be told positions (some make them of the attention mask)."""
    return "position_ids" in inspect.signature(backbone.model.forward).parameters


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


def some_rows(cache: DynamicCache, places: Sequence[int], first: int = 0) -> DynamicCache:
    """The cache of some rows, without the columns before ``first``."""
    return _changed(cache, lambda x: x[list(places)][:, :, first:])


def joined_rows(
    one: DynamicCache, seen: Tensor, other: DynamicCache, other_seen: Tensor
) -> tuple[DynamicCache, Tensor]:
    """Two caches whose rows end at the last column as one, and which of its columns each row sees."""
    longest = max(seen.shape[1], other_seen.shape[1])

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([pad(x, (0, 0, longest - x.shape[2], 0)) for x in (a, b)])

    layers = zip(one.layers, other.layers, strict=True)
    cache = _cache_of((both(a.keys, b.keys), both(a.values, b.values)) for a, b in layers)
    return cache, torch.cat([pad(m, (longest - m.shape[1], 0)) for m in (seen, other_seen)])


def _aligned(cache: DynamicCache | None, mask: Tensor) -> tuple[DynamicCache, Tensor]:
    """A cache of rows ``[prompt, text, padding]`` as ``[padding, prompt, text]``, and its mask.

    ``mask [B, columns]`` says what each row sees of it.  What follows then stands next to the text it follows, which matters to
    layers with a sliding window: they count columns, not positions.
    """
    assert cache is not None
    order = mask.argsort(dim=1, stable=True)
    moved = _changed(cache, lambda x: x.gather(2, order[:, None, :, None].expand_as(x)))
    return moved, mask.gather(1, order)


def _encode(backbone: Backbone, batch: TextBatch, condition: Condition) -> tuple[Tensor, Tensor]:
    """The encoder's states ``[B, slots + T, width]`` and their mask."""
    ids, mask = pack(batch.text, batch.text_mask)
    embeddings, mask, _, deep = _with_prompt(backbone, ids, mask, mask.sum(1), condition)
    with overwrite_states(backbone.tower, deep):
        states = backbone.model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    return states, mask


def _decoder_start(backbone: Backbone) -> int:
    return int(backbone.model.config.decoder_start_token_id)


def _decoder_cache(backbone: Backbone, condition: Condition, batch: int) -> EncoderDecoderCache | None:
    if any(given.keys_values is not None for given in condition.rows or ()):
        raise BackboneError(_APART.format(backbone.id))
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
    *,
    states: bool = False,
    lead: Sequence[int] = (),
) -> Tensor:
    """Decoder scores for ``answer [B, A]`` at ``(rows, steps)``, or its last layer's ``states`` there."""
    start = answer.new_full((answer.shape[0], 1), _decoder_start(backbone))
    inputs = torch.cat([start, _lead(lead, answer), answer[:, :-1]], 1)
    steps = steps + len(lead)
    options: dict[str, Any] = {"use_cache": False}
    cache = _decoder_cache(backbone, condition, answer.shape[0])
    if cache is not None:
        length = cache.get_seq_length() + inputs.shape[1]
        seen = inputs.new_ones(len(inputs), length)
        options = {"use_cache": True, "past_key_values": cache, "decoder_attention_mask": seen}
    if states:
        if "decoder_attention_mask" in options:
            options["attention_mask"] = options.pop("decoder_attention_mask")
        decoder = backbone.model.get_decoder()
        found = decoder(
            input_ids=inputs, encoder_hidden_states=encoded, encoder_attention_mask=mask, **options
        )
        return found.last_hidden_state[rows, steps]
    with backbone.scoring(rows, steps, vocabulary):
        return backbone.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=inputs,
            **options,
        ).logits


def _lead(lead: Sequence[int], ids: Tensor) -> Tensor:
    """What is said before every answer, a row for each of ``ids [B, ...]``."""
    return torch.tensor(lead, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)


def _with_masks(backbone: Backbone, batch: TextBatch, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Packed texts whose mask stands ``counts [B]`` times in a row, and their mask."""
    ids, mask = pack(batch.text, batch.text_mask)
    if int(counts.max()) <= 1:
        return ids, mask
    repeats = torch.ones_like(ids).scatter(1, _mask_columns(backbone, ids)[:, None], counts[:, None])
    rows = [row.repeat_interleave(times) for row, times in zip(ids, repeats, strict=True)]
    real = [row.repeat_interleave(times) for row, times in zip(mask, repeats, strict=True)]
    return pack(pad_sequence(rows, batch_first=True), pad_sequence(real, batch_first=True))


def _sequence_scores_masked(
    backbone: Backbone, batch: TextBatch, condition: Condition, choices: Sequence[Sequence[int]]
) -> Tensor:
    """Sum of the log-probabilities of a choice's tokens, each at its own mask."""
    total = torch.zeros(len(batch), len(choices), device=batch.text.device)
    for length in sorted({len(choice) for choice in choices}):
        places = [k for k, choice in enumerate(choices) if len(choice) == length]
        ids, mask = _with_masks(backbone, batch, torch.full_like(batch.text[:, 0], length))
        rows = torch.arange(len(batch), device=ids.device).repeat_interleave(length)
        columns = _mask_columns(backbone, ids)[rows] + torch.arange(length, device=ids.device).repeat(
            len(batch)
        )
        logits = _run(backbone, ids, mask, mask.sum(1), condition, rows, columns)[0]
        table = logits.float().log_softmax(-1).view(len(batch), length, -1)
        wanted = torch.tensor([choices[k] for k in places], device=ids.device)
        found = table[:, torch.arange(length, device=ids.device), wanted].sum(-1)
        total = total.index_copy(1, torch.tensor(places, device=ids.device), found)
    return total


def _sequence_scores_seq2seq(
    backbone: Backbone,
    encoded: Tensor,
    mask: Tensor,
    choices: Sequence[Sequence[int]],
    condition: Condition,
    lead: Sequence[int] = (),
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
        logits = _decode(backbone, many, seen, answers, rows, steps, condition, lead=lead)
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
        if takes_positions(backbone):
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
    """The column of the (first) mask in each row of packed ``ids``, ``[B]``."""
    return (ids == backbone.tokenizer.mask_token_id).int().argmax(1)


def end_ids(backbone: Backbone) -> list[int]:
    """Tokens that end what the model says."""
    end = backbone.model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    return [e for e in [*ends, backbone.tokenizer.eos_token_id] if e is not None]
