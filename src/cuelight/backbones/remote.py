"""A backbone that only answers: a model behind an OpenAI-compatible server, or a function.

Nothing of it is on this machine, neither weights nor tokenizer; methods whose prompt is a string ask it through
`cuelight.lm`, and all others refuse it.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeGuard

import torch

from cuelight.backbones.backbone import Backbone
from cuelight.errors import BackboneError

__all__ = ["RemoteBackbone", "answers_only", "is_url"]


def is_url(name: str) -> bool:
    """Whether ``name`` is a server's address."""
    return name.startswith(("http://", "https://"))


def answers_only(name: Any) -> TypeGuard[Any]:
    """Whether ``name`` is a language model of `cuelight.lm`, by what it can do."""
    return all(hasattr(name, part) for part in ("complete", "score", "meter", "fingerprint"))


class RemoteBackbone(Backbone):
    """A language model by its address, ``http://host:port/v1#model``, or as an `cuelight.lm.LM`.

    Attributes:
        language_model: the `cuelight.lm.LM` it was made from; None for an address.

    Raises:
        BackboneError: an address without a model's name.
    """

    model: Any

    def __init__(self, source: Any) -> None:
        self.language_model = None if isinstance(source, str) else source
        self.id = source if isinstance(source, str) else source.name
        if isinstance(source, str) and not source.partition("#")[2]:
            raise BackboneError(
                f"backbone {source}: names no model; write it behind the address, {source}#NAME"
            )
        self.kind = "remote"
        self.model = self.tokenizer = self.processor = self.folder = None
        self.towers = {}

    def __repr__(self) -> str:
        return f"RemoteBackbone({self.id!r})"

    @property
    def parameters(self) -> int:
        """None on this machine."""
        return 0

    @property
    def device(self) -> torch.device:
        """Where what is computed here is computed."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is computed here."""
        return torch.float32

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the address and the model's name: weights of a server can not be seen."""
        said = self.id if self.language_model is None else self.language_model.fingerprint
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def max_positions(self) -> int | None:
        """Not known: the server refuses what is too long."""
        return None
