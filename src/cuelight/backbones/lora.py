"""LoRA's layers in a backbone, only while they are wanted.  PEFT makes them.

At all other times the backbone is as it was, module for module, so any number of updates and other methods can
share it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError

__all__ = ["LoRALayers"]

_ADAPTER = "default"


class LoRALayers:
    """Low-rank updates of a backbone's linear layers.

    Attributes:
        config: what PEFT was asked for.
        weights: ``A`` and ``B`` of every layer in float32, named as in PEFT with slashes for dots.

    Raises:
        ConfigError: ``targets`` that are no linear layers inside the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        targets: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        wanted = list(targets) if targets is not None else None
        self.config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=wanted
            if wanted is not None or backbone.model.config.model_type in known
            else "all-linear",
        )
        self._seats = list(_make_layers(backbone.model, self.config, seed))
        for target in wanted or ():
            if not any(path == target or path.endswith("." + target) for path, *_ in self._seats):
                raise ConfigError(f"targets: no linear layer of {backbone.id} is called '{target}'")
        for path, _, _, layer in self._seats:
            if (
                isinstance(layer.base_layer, nn.Embedding)
                or layer.base_layer is backbone.model.get_output_embeddings()
            ):
                raise ConfigError(
                    f"targets: '{path}' is an embedding or the head; choose linear layers inside the model"
                )
        # ParameterDict refuses dots in names; a slash keeps PEFT's names readable.
        self.weights: dict[str, nn.Parameter] = {
            f"{path}.{name.replace(f'.{_ADAPTER}', '')}".replace(".", "/"): parameter
            for path, _, _, layer in self._seats
            for name, parameter in layer.named_parameters()
            if name.startswith("lora_")
        }
        with torch.no_grad():  # they learn in float32 whatever the backbone's type
            for parameter in self.weights.values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def active(self, training: bool) -> Iterator[None]:
        """Inside, the layers stand in the backbone; their dropout is on in ``training``."""
        for _, parent, name, layer in self._seats:
            layer.lora_dropout.train(training)
            setattr(parent, name, layer)
        try:
            yield
        finally:
            for _, parent, name, layer in self._seats:
                setattr(parent, name, layer.base_layer)

    def merged(self) -> Backbone:
        """An independent copy of the backbone, in float32, with the updates added to its weights."""
        made, _ = self.backbone.copy()
        with torch.no_grad():
            for path, _, _, layer in self._seats:
                weight = made.model.get_submodule(path).weight
                weight += layer.get_delta_weight(_ADAPTER).to(weight)
        made.model.requires_grad_(False)
        return made


def _make_layers(
    model: nn.Module, config: LoraConfig, seed: int
) -> Iterator[tuple[str, nn.Module, str, LoraLayer]]:
    """PEFT's layers for ``model``: path, the module each belongs in, its name there, and the layer.

    PEFT puts them into the model; they are taken out again, and the model is as before.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            LoraModel(model, config, _ADAPTER)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"targets: {reason}; name linear layers of the model, or leave it out") from error
    finally:
        made = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, LoraLayer)]
        seats = []
        for path, layer in made:
            parent, _, name = path.rpartition(".")
            seats.append((path, model.get_submodule(parent), name, layer))
        for _, home, name, layer in seats:
            setattr(home, name, layer.base_layer)
        vars(model).pop("peft_config", None)
    yield from seats
