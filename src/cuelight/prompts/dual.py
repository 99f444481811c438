"""Prompted passes of a dual encoder: learned vectors around class names, learned tokens among patches.

Both towers take shallow and deep prompts; methods of the CLIP family differ in what the vectors are made from
(free, coupled, mixed, of the image) and in what is minimised, so the passes are here once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cuelight.backbones.backbone import Backbone
from cuelight.backbones.dual import Dual
from cuelight.backbones.towers import Tower
from cuelight.errors import BackboneError, ConfigError
from cuelight.prompts.slots import fill_text_slots, insert_tokens

__all__ = [
    "ClassTokens",
    "Position",
    "dual_of",
    "encode_images",
    "encode_text",
    "layer_states",
    "learned_context",
    "mean_features",
    "plain_texts",
    "template_context",
]

Position = Literal["end", "middle", "front"]
"""Where the class name stands: behind the context, in the middle of it, or before it."""
_PLACEHOLDER = "X"


@dataclass(frozen=True)
class ClassTokens:
    """Tokenised class prompts.

    Attributes:
        ids: ``[C, T]``, padded to the longest row; slot ``j`` of the context is the id ``-1 - j``.
        mask: ``[C, T]``, 1 for tokens and 0 for padding.
        start: for every slot the id of the token it stands in place of, ``[M]``; None for slots without words.
        slots: how many vectors the context has.
    """

    ids: Tensor
    mask: Tensor
    slots: int = 0
    start: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> ClassTokens:
        """The same on ``device``."""
        start = None if self.start is None else self.start.to(device)
        return ClassTokens(self.ids.to(device), self.mask.to(device), self.slots, start)

    def part(self, first: int, stop: int) -> ClassTokens:
        """Rows ``first`` to ``stop - 1``."""
        return ClassTokens(self.ids[first:stop], self.mask[first:stop], self.slots, self.start)

    def repeated(self, times: int) -> ClassTokens:
        """All rows ``times`` times, one whole list of classes after the other."""
        return ClassTokens(self.ids.repeat(times, 1), self.mask.repeat(times, 1), self.slots, self.start)


def plain_texts(backbone: Backbone, texts: Sequence[str], *, cut: bool = False) -> ClassTokens:
    """Texts without a slot; ``cut`` cuts those that are longer than the text tower reads.

    Raises:
        ConfigError: one is longer, and is not to be cut.
    """
    given = (
        {"truncation": True, "max_length": backbone.max_positions} if cut and backbone.max_positions else {}
    )
    return _table(backbone, [backbone.tokenizer(text, **given).input_ids for text in texts], texts)


def learned_context(
    backbone: Backbone, names: Sequence[str], length: int, *, position: Position = "end"
) -> ClassTokens:
    """``[start] V_1 ... V_M name . [end]`` for every class; ``middle`` and ``front`` move the name.

    Args:
        names: class names as they are read.
        length: M, how many slots stand around each name; even for ``middle``.

    Raises:
        ConfigError: a prompt longer than the text tower reads, or an odd length for ``middle``.
    """
    if position == "middle" and length % 2:
        raise ConfigError(f"context_length: is {length}; position middle needs an even number")
    before = {"end": length, "middle": length // 2, "front": 0}[position]
    lead = " ".join([_PLACEHOLDER] * before)
    tail = " ".join([_PLACEHOLDER] * (length - before))
    template = f"{lead} {{}} {tail}.".replace(" .", ".").strip()
    tokens = template_context(backbone, names, template)
    if tokens.slots != length:  # a tokenizer that makes one token of several placeholders
        raise BackboneError(
            f"backbone {backbone.id}: its tokenizer makes {tokens.slots} tokens of {length} placeholders; "
            "start the context from words"
        )
    return ClassTokens(tokens.ids, tokens.mask, tokens.slots)


def template_context(
    backbone: Backbone,
    names: Sequence[str],
    template: str,
    length: int | None = None,
    *,
    lead: Sequence[str] = (),
) -> ClassTokens:
    """The template's words around the class name as slots; their tokens are `ClassTokens.start`.

    A full stop that ends the template stays, and so do the words behind the first ``length`` tokens.

    Args:
        names: class names as they are read.
        template: a text with ``{}`` in the class name's place.
        length: how many of the template's tokens become slots, from the left; None for all.
        lead: for every class words that stand before the template and stay.

    Raises:
        ConfigError: no place for the name, too few words, or a prompt longer than the text tower reads.
    """
    if template.count("{}") != 1:
        raise ConfigError(f"template: '{template}' has no place for the class name; write {{}} once")
    head, tail = template.split("{}")
    stop = len(tail.rstrip()) - 1 if tail.rstrip().endswith(".") else len(tail)
    rows: list[list[int]] = []
    starts: list[list[int]] = []
    leads = [words + " " if words else "" for words in lead or [""] * len(names)]
    texts = [words + head + name + tail for words, name in zip(leads, names, strict=True)]
    for words, name, text in zip(leads, names, texts, strict=True):
        found = backbone.tokenizer(text, return_offsets_mapping=True)
        begins = len(words) + len(head)
        behind = begins + len(name)
        ids: list[int] = []
        start: list[int] = []
        for token, (first, last) in zip(found.input_ids, found.offset_mapping, strict=True):
            soft = last > first and (
                (len(words) <= _inked(text, first) and last <= begins)
                or behind <= _inked(text, first) < behind + stop
            )
            if soft and (length is None or len(start) < length):
                start.append(token)
                token = -len(start)
            ids.append(token)
        rows.append(ids)
        starts.append(start)
    if any(start != starts[0] for start in starts):
        raise BackboneError(
            f"backbone {backbone.id}: its tokenizer reads the words of '{template}' differently beside "
            "different names; choose a template that ends in a space before {}"
        )
    slots = len(starts[0]) if starts else 0
    if length is not None and slots < length:
        raise ConfigError(
            f"template: '{template}' has {slots} tokens for {length} vectors; give more words or fewer vectors"
        )
    made = _table(backbone, rows, texts)
    return ClassTokens(made.ids, made.mask, slots, torch.tensor(starts[0], dtype=torch.long))


def _inked(text: str, place: int) -> int:
    """The first place from ``place`` on that is no space: some tokenizers count it to the word."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _table(backbone: Backbone, rows: list[list[int]], texts: Sequence[str]) -> ClassTokens:
    most = backbone.max_positions
    dual = backbone.dual
    longest = max(map(len, rows), default=0)
    if most is not None and longest > most:
        text = texts[max(range(len(rows)), key=lambda k: len(rows[k]))]
        raise ConfigError(
            f"classes: the prompt '{text[:60]}' has {longest} tokens, {backbone.id} reads {most}; "
            "shorten the class name (--label-names) or the context"
        )
    if dual is not None and dual.padded_to:
        longest = dual.padded_to
    pad = backbone.tokenizer.pad_token_id or 0
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.long)
    return ClassTokens(ids, mask)


def encode_text(
    backbone: Backbone,
    tokens: ClassTokens,
    context: Tensor | None = None,
    deep: Mapping[int, Tensor] | None = None,
    *,
    normalised: bool = True,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Features of class prompts in the joint space, ``[C, d]``.

    Text is as long as the longest row: behind the last end mark a causal tower sees nothing, and a mask hides
    the padding from the others, so trimming is exact.

    Args:
        tokens: from `learned_context`, `template_context` or `plain_texts`, on the backbone's device.
        context: vectors of the slots, ``[M, w]`` for all rows or ``[C, M, w]``; None when there are none.
        deep: for some layers ``i`` (0 is the first) what the layer sees at the slots instead, shaped likewise.
        normalised: to length 1.
        states: a list that gets every layer's output ``[C, T, w]``.
    """
    dual = dual_of(backbone)
    with contextlib.ExitStack() as stack:
        if states is not None:
            stack.enter_context(layer_states(dual.text, states))
        if context is not None and tokens.slots:
            stack.enter_context(fill_text_slots(dual.text, context, deep))
        return dual.text_features(tokens.ids, tokens.mask, normalised=normalised)


def encode_images(
    backbone: Backbone,
    pixels: Tensor,
    tokens: Tensor | None = None,
    deep: Mapping[int, Tensor] | None = None,
    *,
    after: int | None = None,
    entering: bool = True,
    normalised: bool = True,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Features of pictures in the joint space, ``[B, d]``, with learned tokens among the patches.

    Args:
        pixels: ``[B, 3, H, W]``, on the backbone's device.
        tokens: what the first layer sees, ``[n, w]`` or ``[B, n, w]``; None for none.
        deep: for some layers ``i >= 1`` what the layer sees at the tokens' places instead.
        after: behind how many of the tower's own tokens they stand (1: behind the class token, as VPT); None
            puts them at the end, as MaPLe.
        entering: pass ``tokens`` (not the deep ones) through CLIP's norm before the first layer, as MaPLe does;
            towers without such a norm are not changed by it.
        normalised: to length 1.
        states: a list that gets every layer's output ``[B, 1 + patches + n, w]``, the tokens among it.
    """
    dual = dual_of(backbone)
    with contextlib.ExitStack() as stack:
        if states is not None:
            stack.enter_context(layer_states(dual.vision, states))
        if tokens is not None and tokens.shape[-2]:
            shown = dual.entering(tokens.to(backbone.dtype)) if entering else tokens
            stack.enter_context(insert_tokens(dual.vision, shown, deep, after=after))
        return dual.image_features(pixels, normalised=normalised)


def dual_of(backbone: Backbone) -> Dual:
    """The backbone's joint space.

    Raises:
        BackboneError: it has none.
    """
    if backbone.dual is None:
        raise BackboneError(
            f"backbone {backbone.id}: has no joint space of texts and images; use a CLIP-like model"
        )
    return backbone.dual


@contextlib.contextmanager
def layer_states(tower: Tower, states: list[Tensor]) -> Iterator[None]:
    """Inside, ``states`` gets what every layer of ``tower`` puts out, in order."""
    handles = [
        layer.register_forward_hook(
            lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in tower.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_features(parts: Sequence[Tensor], *, first: bool = True) -> Tensor:
    """One feature a class from several templates' ``[C, d]``, normalised.

    ``first`` normalises each template's feature before the mean, as CLIP's ensembles do; PromptSRC averages them
    as they are.
    """
    if len(parts) == 1:
        return normalize(parts[0], dim=-1)
    return normalize(torch.stack([normalize(p, dim=-1) if first else p for p in parts]).mean(0), dim=-1)
