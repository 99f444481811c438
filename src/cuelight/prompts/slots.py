"""Slots: the places a soft prompt takes, and the hooks that put it there.

Text towers.  The tokenised input carries *slot ids*: negative numbers, slot ``j`` being ``-1 - j``.  A hook
on the token embedding writes the prompt over them.  Negative ids need no free entry in the vocabulary, never
collide with text, leave end-of-text pooling by ``argmax`` alone, and tell by themselves which prompt vector
goes where, so padding on either side, caching, ``generate`` and beams need no special case.

Vision and audio towers.  Their input is no list of ids, so tokens are put into the sequence by a hook before
the first layer and taken out again after the last: what follows the tower sees the shape it expects.

Deep prompts.  A hook before layer ``i`` writes other vectors over the same slots.

All hooks live inside a ``with`` block and are gone after it, whatever happens inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cuelight.backbones.towers import Tower
from cuelight.errors import CuelightError

__all__ = [
    "Inserted",
    "fill_text_slots",
    "insert_tokens",
    "inserted_tokens",
    "overwrite_states",
    "per_row",
    "slot_ids",
]

DeepPrompts = Mapping[int, Tensor]


@dataclass(frozen=True)
class Inserted:
    """``length`` tokens that `insert_tokens` put behind the tower's first ``after`` ones (None: at the end)."""

    length: int
    after: int | None


_INSERTED: ContextVar[list[Inserted] | None] = ContextVar("cuelight inserted tokens", default=None)


@contextlib.contextmanager
def inserted_tokens() -> Iterator[list[Inserted]]:
    """Inside, the list gets what every `insert_tokens` put into a sequence, for those who look at the passes."""
    found: list[Inserted] = []
    token = _INSERTED.set(found)
    try:
        yield found
    finally:
        _INSERTED.reset(token)


def slot_ids(length: int, device: torch.device | str | None = None) -> Tensor:
    """The ids that reserve ``length`` slots: ``[-1, -2, ..., -length]``."""
    return -1 - torch.arange(length, device=device)


@contextlib.contextmanager
def fill_text_slots(tower: Tower, prompt: Tensor, deep: DeepPrompts | None = None) -> Iterator[None]:
    """Inside, every slot id that reaches ``tower`` is read as a vector of ``prompt``.

    Args:
        tower: a text tower.
        prompt: ``[slots, width]`` for all rows, or ``[batch, slots, width]``, one prompt per row.  When the
            model runs on more rows than ``batch`` (beams), each prompt serves that many consecutive rows.
        deep: for some layers ``i`` (0 is the first), the vectors that layer sees at the slots instead, shaped
            like ``prompt``.

    Raises:
        CuelightError: an id asks for a slot that the prompt does not have, rows and prompts do not divide, or
            ``deep`` names a layer that the tower does not have.
    """
    assert tower.embedding is not None, f"tower {tower.name} reads no text"
    where: list[_Places] = []  # the slots of the sequence now passing through; none while decoding goes on

    def find(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = args[0] if args else kwargs["input"]
        where.clear()
        rows, columns = torch.nonzero(ids < 0, as_tuple=True) if ids.dim() == 2 else (ids[:0], ids[:0])
        if len(rows):
            slots = -1 - ids[rows, columns]
            if int(slots.max()) >= prompt.shape[-2]:
                raise CuelightError(
                    f"slot {int(slots.max())}: the prompt has only {prompt.shape[-2]} vectors; "
                    f"reserve as many slots"
                )
            where.append(_Places(rows, columns, slots, ids.shape[0]))
            ids = ids.clamp(min=0)
        return ((ids, *args[1:]), kwargs) if args else (args, {**kwargs, "input": ids})

    def write(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return _overwrite(output, prompt, where[0]) if where else output

    def write_at(vectors: Tensor) -> Callable[..., Any]:
        def hook(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            return (
                _replace_states(args, kwargs, lambda h: _overwrite(h, vectors, where[0])) if where else None
            )

        return hook

    with contextlib.ExitStack() as stack:
        _hook(stack, tower.embedding.register_forward_pre_hook(find, with_kwargs=True))
        _hook(stack, tower.embedding.register_forward_hook(write))
        for i, vectors in (deep or {}).items():
            _hook(stack, _layer(tower, i).register_forward_pre_hook(write_at(vectors), with_kwargs=True))
        yield


@contextlib.contextmanager
def insert_tokens(
    tower: Tower,
    prompt: Tensor,
    deep: DeepPrompts | None = None,
    *,
    after: int | None = None,
    keep: bool = False,
) -> Iterator[None]:
    """Inside, ``prompt`` stands among the tokens of a vision or audio tower.

    Args:
        tower: a vision or audio tower; every layer must take its hidden states first.
        prompt: ``[slots, width]`` or ``[batch, slots, width]``.
        deep: for some layers, the vectors that layer sees in place of what the layer before made of the
            prompt.
        after: behind how many of the tower's own tokens the prompt stands (1: behind the class token);
            ``None`` puts it at the end.
        keep: leave the prompt's tokens in the tower's output (they are taken out by default).

    Raises:
        CuelightError: the layers get an attention mask, rows and prompts do not divide, or ``deep`` names a
            layer that the tower does not have.
    """
    length = prompt.shape[-2]
    seen = _INSERTED.get()
    if seen is not None:
        seen.append(Inserted(length, after))

    def first(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def insert(states: Tensor) -> Tensor:
            at = states.shape[1] if after is None else after
            rows = per_row(prompt, states.shape[0]).to(states.dtype)
            return torch.cat([states[:, :at], rows, states[:, at:]], dim=1)

        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if isinstance(mask, Tensor):
            raise CuelightError(
                f"tower {tower.name}: its layers get an attention mask, so tokens can not be "
                f"inserted; pass unpadded input"
            )
        return _replace_states(args, kwargs, insert)

    def last(_: nn.Module, __: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        at = states.shape[1] - length if after is None else after
        states = torch.cat([states[:, :at], states[:, at + length :]], dim=1)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with contextlib.ExitStack() as stack:
        _hook(stack, tower.layers[0].register_forward_pre_hook(first, with_kwargs=True))
        if not keep:
            _hook(stack, tower.layers[-1].register_forward_hook(last))
        stack.enter_context(overwrite_states(tower, deep or {}, at=after))
        yield


@contextlib.contextmanager
def overwrite_states(
    tower: Tower, deep: Mapping[int, Tensor | Callable[[Tensor], Tensor]], *, at: int | None = 0
) -> Iterator[None]:
    """Inside, layer ``i`` sees ``deep[i]`` in every row, whatever the layer before made there.

    Args:
        tower: any tower.
        deep: by layer, 0 being the first, vectors ``[slots, width]`` or ``[batch, slots, width]``, or a
            function that makes them of the states ``[batch, columns, width]`` that enter the layer.
        at: the first column that is overwritten; ``None`` for the last columns.

    Raises:
        CuelightError: rows and vectors do not divide, or a layer that the tower does not have.
    """

    def write(given: Tensor | Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def change(states: Tensor) -> Tensor:
            vectors = given if isinstance(given, Tensor) else given(states)
            length = vectors.shape[-2]
            first = states.shape[1] - length if at is None else at
            rows = per_row(vectors, states.shape[0]).to(states.dtype)
            return torch.cat([states[:, :first], rows, states[:, first + length :]], dim=1)

        return lambda _, args, kwargs: _replace_states(args, kwargs, change)

    with contextlib.ExitStack() as stack:
        for i, vectors in deep.items():
            _hook(stack, _layer(tower, i).register_forward_pre_hook(write(vectors), with_kwargs=True))
        yield


def _hook(stack: contextlib.ExitStack, handle: RemovableHandle) -> None:
    stack.callback(handle.remove)


def _layer(tower: Tower, i: int) -> nn.Module:
    if not 0 <= i < tower.depth:
        raise CuelightError(f"deep: tower {tower.name} has layers 0 to {tower.depth - 1}, not {i}")
    return tower.layers[i]


@dataclass(frozen=True)
class _Places:
    """Where ``batch`` sequences have slots: entry ``k`` is ``slots[k]`` at ``(rows[k], columns[k])``."""

    rows: Tensor
    columns: Tensor
    slots: Tensor
    batch: int

    def repeated(self, times: int) -> _Places:
        """The same places once every row stands ``times`` times in a row, as in beam search."""
        copies = torch.arange(times, device=self.rows.device)
        rows = (self.rows[:, None] * times + copies).flatten()
        return _Places(
            rows,
            self.columns.repeat_interleave(times),
            self.slots.repeat_interleave(times),
            self.batch * times,
        )


def _overwrite(states: Tensor, vectors: Tensor, places: _Places) -> Tensor:
    """``states [B, T, d]`` with ``vectors`` at the given places (a copy; gradients reach ``vectors``)."""
    if states.shape[0] != places.batch:
        places = places.repeated(_repeats(places.batch, states.shape[0]))
    if vectors.dim() == 2:
        values = vectors[places.slots]
    else:
        values = vectors[places.rows // _repeats(vectors.shape[0], states.shape[0]), places.slots]
    return states.index_put((places.rows, places.columns), values.to(states.dtype))


def per_row(vectors: Tensor, batch: int) -> Tensor:
    """``[slots, width]`` or ``[rows, slots, width]`` as ``[batch, slots, width]``."""
    if vectors.dim() == 2:
        return vectors.expand(batch, -1, -1)
    return vectors.repeat_interleave(_repeats(vectors.shape[0], batch), dim=0)


def _repeats(prompts: int, batch: int) -> int:
    if batch % prompts:
        raise CuelightError(
            f"prompt: {prompts} prompts for {batch} rows; give one prompt for all rows or one per row"
        )
    return batch // prompts


def _replace_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Apply ``change`` to a layer's hidden states, however the model passes them."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
