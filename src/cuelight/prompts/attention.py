"""What goes through a model's attention: keys and values of one's own put in, and weights looked at.

transformers runs attention through a registry.  Inside `attend_to_prefix` a bidirectional model, whose attention has no
cache to put them in, uses an entry of ours, which puts the prefix before each layer's keys and values and leaves the
rest to the registry's own SDPA.  Inside `attention_weights` a tower uses one that keeps the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cuelight.backbones.backbone import Backbone
from cuelight.backbones.towers import Tower
from cuelight.errors import BackboneError

__all__ = ["attend_to_prefix", "attention_weights"]

_NAME = "cuelight-prefix"


@dataclass
class _Pass:
    """The prefix, the layer that is running, and the layers that have attended to theirs."""

    pairs: Sequence[tuple[Tensor, Tensor]]
    layer: int = -1
    done: set[int] = field(default_factory=set)


_PASS: ContextVar[_Pass] = ContextVar("cuelight prefix")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    now = _PASS.get()
    keys, values = (x.to(key.dtype).expand(len(key), -1, -1, -1) for x in now.pairs[now.layer])
    now.done.add(now.layer)
    if attention_mask is not None:
        seen = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = pad(attention_mask, (keys.shape[2], 0), value=seen)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, torch.cat([keys, key], 2), torch.cat([values, value], 2), attention_mask, **options
    )


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextlib.contextmanager
def attend_to_prefix(backbone: Backbone, pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, every layer of the backbone's tower attends to a prefix besides its own keys and values.

    Args:
        pairs: keys and values ``[1, heads, slots, head width]`` of each layer.

    Raises:
        BackboneError: the model's attention does not go through transformers' registry.
    """
    tower, config = backbone.tower, backbone.model.config
    now = _Pass(pairs)

    def enter(layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            now.layer = layer

        return hook

    own = config._attn_implementation
    token = _PASS.set(now)
    handles = [module.register_forward_pre_hook(enter(k)) for k, module in enumerate(tower.layers)]
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _PASS.reset(token)
        for handle in handles:
            handle.remove()
    if now.layer >= 0 and len(now.done) < tower.depth:
        raise BackboneError(
            f"backbone {backbone.id}: its attention can not be given keys and values; "
            "use a BERT-like or a causal model"
        )


_SEEN = "cuelight-seen"
_WEIGHTS: ContextVar[list[Tensor]] = ContextVar("cuelight attention weights")


def _watched(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        hidden = ~attention_mask if attention_mask.dtype == torch.bool else None
        scores = scores + attention_mask if hidden is None else scores.masked_fill(hidden, -torch.inf)
    weights = scores.float().softmax(-1)
    _WEIGHTS.get().append(weights)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_SEEN, _watched)
AttentionMaskInterface.register(_SEEN, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextlib.contextmanager
def attention_weights(tower: Tower) -> Iterator[list[Tensor]]:
    """Inside, the list gets every layer's attention weights ``[B, heads, tokens, tokens]``, in float32.

    Raises:
        BackboneError: the tower's attention does not go through transformers' registry.
    """
    modules = [m for layer in tower.layers for m in layer.modules()]
    configs: dict[int, Any] = {id(m.config): m.config for m in modules if hasattr(m, "config")}
    own = {key: config._attn_implementation for key, config in configs.items()}
    found: list[Tensor] = []
    token = _WEIGHTS.set(found)
    for config in configs.values():
        config._attn_implementation = _SEEN
    try:
        yield found
    finally:
        _WEIGHTS.reset(token)
        for key, config in configs.items():
            config._attn_implementation = own[key]
    if not found:
        raise BackboneError(
            f"backbone: the attention of its {tower.name} tower can not be looked at; use a CLIP, ViT or DINOv2 model"
        )
