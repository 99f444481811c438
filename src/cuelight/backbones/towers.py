"""Find the towers of a model from the model itself.

A tower is one stack of transformer layers.  Transformers marks every layer class by one common base
(`GradientCheckpointingLayer`), so a tower is a `ModuleList` of such layers; what it reads (text, images or
sound) is what the smallest enclosing `PreTrainedModel` says it reads.  No table of architecture names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cuelight.errors import BackboneError

__all__ = ["Tower", "find_towers"]

_MODALITY = {
    "input_ids": "text",
    "pixel_values": "vision",
    "input_features": "audio",
    "input_values": "audio",
}


@dataclass(frozen=True)
class Tower:
    """One transformer stack.

    ``width`` is the size of its hidden states, ``embedding`` the token table a text tower starts from
    (``None`` for vision and audio), ``layers`` the stack itself in order.
    """

    name: str
    path: str
    modality: str
    layers: nn.ModuleList
    width: int
    embedding: nn.Embedding | None

    @property
    def depth(self) -> int:
        """How many layers the tower has."""
        return len(self.layers)


def find_towers(model: PreTrainedModel) -> dict[str, Tower]:
    """The towers of ``model`` by name.

    Names are ``text``, ``vision`` and ``audio`` by what a tower reads; the two halves of an encoder-decoder
    language model are ``encoder`` and ``decoder``, and the text half of a speech model is ``decoder``.

    Raises:
        BackboneError: the model has no stack of transformer layers, or two towers would share a name.
    """
    towers: dict[str, Tower] = {}
    stacks = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and _is_stack(m)]
    for path, layers in stacks:
        owner = _owner(model, path)
        modality = _MODALITY.get(owner.main_input_name, "text")
        embedding = _token_embedding(owner) if modality == "text" else None
        if modality == "text" and embedding is None:
            continue  # it reads what another tower made (CLIPSeg's mask decoder)
        name = modality
        parts = path.split(".")
        if modality == "text" and len(stacks) > 1 and ("encoder" in parts) != ("decoder" in parts):
            # CLIP's text stack sits in a module called "encoder" too; its owner tells the two apart.
            if "decoder" in parts:
                name = "decoder"
            elif getattr(model.config, "is_encoder_decoder", False):
                name = "encoder"
        kind = type(model).__name__
        if name in towers:
            raise BackboneError(f"backbone {kind}: towers {towers[name].path} and {path} both read {name}")
        width = int(getattr(owner.config, "hidden_size", 0) or (embedding.embedding_dim if embedding else 0))
        towers[name] = Tower(name, path, modality, layers, width, embedding)
    if not towers:
        raise BackboneError(
            f"backbone {type(model).__name__}: no stack of transformer layers found; prompts need one"
        )
    return towers


def _is_stack(modules: nn.ModuleList) -> bool:
    """Whether these are transformer layers, not a speech model's convolutions, which carry the same mark."""
    return len(modules) > 0 and all(
        isinstance(layer, GradientCheckpointingLayer)
        and any(isinstance(m, nn.Linear | Conv1D) for m in layer.modules())
        for layer in modules
    )


def _owner(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The smallest `PreTrainedModel` that contains the module at ``path``."""
    while "." in path:
        path = path.rsplit(".", 1)[0]
        candidate = model.get_submodule(path)
        if isinstance(candidate, PreTrainedModel):
            return candidate
    return model


def _token_embedding(owner: PreTrainedModel) -> nn.Embedding | None:
    """The token table of a text tower, ``None`` if it reads no tokens."""
    try:
        table = owner.get_input_embeddings()
    except NotImplementedError:
        return None
    return table if isinstance(table, nn.Embedding) else None
