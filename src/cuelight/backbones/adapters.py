"""Bottleneck adapters behind the linear layers that end a transformer's sublayers.

``A(h) = h + up(down(h))`` with ``down [rank, width]`` and ``up [width, rank]``, behind the output layer of every
attention and every feed-forward sublayer (Houlsby et al. 2019, arXiv 1902.00751).  Without a non-linearity between
them, as LiST has it, an adapter merges exactly into the layer before it: ``W' = (I + up down) W``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError

__all__ = ["Adapters", "own_head"]

_ENDS = (
    ("attention.output.dense", "output.dense"),  # BERT and its kin
    ("o_proj", "down_proj"),  # Llama and its kin
    ("o", "wo"),  # T5
    ("out_proj", "fc2"),  # OPT, BART
)
"""Names of the two output layers in the families of models."""


class Adapter(nn.Module):
    """A linear layer with an adapter behind it."""

    def __init__(
        self, layer: nn.Linear, rank: int, deviation: float, relu: bool, draw: torch.Generator
    ) -> None:
        super().__init__()
        self.layer, self.relu = layer, relu
        width, place = layer.out_features, layer.weight.device
        self.down = nn.Parameter((torch.randn(rank, width, generator=draw) * deviation).to(place))
        self.up = nn.Parameter((torch.randn(width, rank, generator=draw) * deviation).to(place))

    @property
    def weight(self) -> Tensor:
        """The linear layer's own (T5 looks at its type)."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        states = self.layer(x)
        small = linear(states.to(self.down.dtype), self.down)
        return states + linear(small.relu() if self.relu else small, self.up).to(states.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does the same."""
        made = nn.utils.skip_init(
            nn.Linear, self.layer.in_features, self.layer.out_features, bias=self.layer.bias is not None
        )
        factor = torch.eye(self.layer.out_features, device=self.up.device) + self.up @ self.down
        made.weight = nn.Parameter((factor @ self.layer.weight.float()).to(self.layer.weight.dtype), False)
        if self.layer.bias is not None:
            made.bias = nn.Parameter((factor @ self.layer.bias.float()).to(self.layer.bias.dtype), False)
        return made


class Adapters:
    """Adapters in a twin of a backbone, whose other weights the two share.

    Args:
        rank: width of the bottlenecks.
        deviation: of the normal draw both matrices start with; small enough that the model starts as it was.
        relu: a non-linearity in the bottleneck; such adapters do not merge.
        targets: names of the linear layers that get one; the family's two output layers by default.
        head: whether what a masked language model has between its last state and its word scores learns too.

    Attributes:
        lm: the twin with its adapters.
        weights: all that learns, in float32, named with slashes for dots.

    Raises:
        ConfigError: no linear layer has one of these names.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int,
        *,
        deviation: float = 2e-4,
        relu: bool = False,
        targets: Sequence[str] | None = None,
        head: bool = True,
        seed: int = 0,
    ) -> None:
        self.lm = backbone.twin()
        self._adapters: dict[str, Adapter] = {}
        draw = torch.Generator().manual_seed(seed)
        for path, layer in list(_seats(self.lm.model, targets, backbone.id)):
            adapter = Adapter(layer, rank, deviation, relu, draw)
            _put(self.lm.model, path, adapter)
            self._adapters[path] = adapter
        learned = {f"{path}.{n}": p for path, a in self._adapters.items() for n, p in _own(a)}
        if head and backbone.kind == "masked":
            learned |= own_head(self.lm.model)
        self.weights = {name.replace(".", "/"): p.requires_grad_(True) for name, p in learned.items()}

    def merged(self) -> Backbone:
        """The model without adapters that scores the same, in weights of its own where they changed.

        Raises:
            ConfigError: the adapters have a non-linearity.
        """
        if any(adapter.relu for adapter in self._adapters.values()):
            raise ConfigError("adapter: one with a non-linearity can not be merged; take 'linear'")
        made = self.lm.twin()
        for path, adapter in self._adapters.items():
            _put(made.model, path, adapter.merged())
        return made


def _own(adapter: Adapter) -> Iterator[tuple[str, nn.Parameter]]:
    yield "down", adapter.down
    yield "up", adapter.up


def _seats(model: nn.Module, targets: Sequence[str] | None, name: str) -> Iterator[tuple[str, nn.Linear]]:
    layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}

    def called(end: str) -> list[str]:
        return [path for path in layers if path == end or path.endswith("." + end)]

    wanted = targets or next((ends for ends in _ENDS if all(called(end) for end in ends)), None)
    if wanted is None:
        raise ConfigError(
            f"targets: the output layers of {name} are not known; name the linear layers that get an adapter"
        )
    for end in wanted:
        if not called(end):
            raise ConfigError(f"targets: no linear layer of {name} is called '{end}'")
    for path in layers:
        if any(path in called(end) for end in wanted):
            yield path, layers[path]


def own_head(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Copies of what stands behind the encoder and before the (tied) word scores, put into ``model``."""
    body = {id(p) for p in model.base_model.parameters()}
    scores = {id(p) for p in model.get_output_embeddings().parameters()}
    found = {}
    for name, parameter in list(model.named_parameters()):
        if id(parameter) not in body | scores:
            found[name] = nn.Parameter(parameter.detach().clone().float())
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, found[name])
    return found


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
