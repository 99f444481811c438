"""What a method is, and how one is found.

A method is one file in a family folder under `cuelight.methods`, named like the method (``dept.py`` holds
``dept``), with one class that says what conditions the backbone and what is minimised.  Other packages add
methods through the entry-point group ``cuelight.methods``.  Nothing lists methods anywhere: the folder is the
list.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ArtifactError, BackboneError, ConfigError, nearest
from cuelight.methods.cards import Card, method_modules, method_names
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.prompts.initial import Initialisation, initial_prompt
from cuelight.tasks.predictions import Predictions
from cuelight.tasks.text import TextTask
from cuelight.training import ParamGroup, Stage

__all__ = [
    "Card",
    "Data",
    "Method",
    "MethodConfig",
    "PromptStart",
    "PromptedLM",
    "get_method",
    "method_names",
]


_PLURAL = {"text": "texts", "image": "pictures"}


class MethodConfig(BaseModel):
    """Base of every method's options; unknown and out-of-range fields are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptStart(MethodConfig):
    """Options of every method that learns free vectors before the text: where they start."""

    init: Initialisation = Field("vocabulary", description="Where the prompt starts.")
    init_text: str | None = Field(None, description="The text for --init text.")
    init_seed: int = Field(0, ge=0, description="Seed of the start.")

    def vectors(self, backbone: Backbone, length: int, labels: Sequence[str] = ()) -> nn.Parameter:
        """The prompt at its start, ``[length, width]`` on the backbone's device; ``length`` may be 0."""
        start = torch.empty(0, backbone.tower.width)
        if length:
            start = initial_prompt(
                backbone, length, self.init, text=self.init_text, labels=labels, seed=self.init_seed
            )
        return nn.Parameter(start.to(backbone.device))


@dataclass
class Data:
    """A task's rows as its items (`Item` of texts, `ImageItem` of pictures), as a method's training needs them."""

    train: list[Any]
    validation: list[Any]
    rows: Any = field(default=None, repr=False)
    """The training rows as they were read (``datasets.Dataset``), for methods that look at the text."""


class Method(nn.Module):
    """One paper's recipe on one backbone and task.

    The module's parameters and buffers are what the method learns and what its artifact holds; the frozen
    backbone is an attribute, never a submodule.

    Attributes:
        card: what the method says of itself.
        Config: its options, a `MethodConfig`.
        training_defaults: `TrainConfig` fields the method recommends; what the user sets wins.
        progress: whether `prepare` may show bars.
        facts: what the artifact's card says of a search under ``search``: figures that learning left.
        notes: the same as lines for the user.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    learns_template: ClassVar[bool] = False
    """Whether it learns the soft words of a template."""
    verbalizes: ClassVar[bool] = False
    """Whether a class may have several label words."""
    opens: ClassVar[tuple[str, ...]] = ()
    """Options that name further files, comma separated: what these hold decides a run's result, too."""

    task: Any
    """What it answers: a `TextTask`, or for methods that read pictures an `ImageTask`."""

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__()
        self.check(backbone, task.kind, task.modality)
        if isinstance(task, TextTask):
            self._check_words(task)
        self.backbone, self.task, self.config = backbone, task, config
        self.progress = False
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []

    def _check_words(self, task: TextTask) -> None:
        if task.soft_start and not self.learns_template:
            raise ConfigError(
                f"template: {{soft}} words are learned by methods with a verbalizer (cloze), not by {self.card.name}"
            )
        if not self.verbalizes and any(len(words) > 1 for words in task.word_lists):
            raise ConfigError(
                f"label_words: {self.card.name} takes one word a class; methods with a verbalizer (cloze) take several"
            )

    @classmethod
    def check(cls, backbone: Backbone, task: str, modality: str = "text") -> None:
        """Refuse a backbone, a kind of task or data of a kind that the method is not for.

        Raises:
            BackboneError, ConfigError: what the method needs instead.
        """
        card = cls.card
        if backbone.kind not in card.kinds:
            needs = " or ".join(card.kinds)
            raise BackboneError(
                f"backbone {backbone.id}: is a {backbone.kind} model; {card.name} needs {needs}"
            )
        if modality != card.reads:
            raise ConfigError(
                f"data: holds {_PLURAL[modality]}, and {card.name} reads {_PLURAL[card.reads]}; "
                "choose another method, or name the column"
            )
        if task not in card.tasks:
            does = ", ".join(card.tasks)
            raise ConfigError(f"task: {card.name} does {does}, not {task}; choose another method")
        beyond = {
            "masked": ("generation",) if "text-encoder" in card.kinds else ("generation", "multilabel"),
            "text-encoder": ("generation",),
        }
        if task in beyond.get(backbone.kind, ()):
            raise BackboneError(
                f"backbone {backbone.id}: {card.name} can not do {task} with a {backbone.kind} model; "
                "use a causal LM"
            )

    def forecast(self, data: Data) -> list[str]:
        """What `prepare` is about to spend, as lines to show beforehand; none where it costs nothing."""
        return []

    def prepare(self, data: Data, seed: int) -> None:
        """Look at the training data before learning starts: pick demonstrations, count labels."""

    def batch(self, items: Sequence[Any]) -> Any:
        """A batch of items to answer, on the CPU."""
        return self.task.collate(items)

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a batch, a scalar with a gradient to what is learned."""
        raise NotImplementedError

    def predict(self, batch: Any) -> Predictions:
        """Answers for a batch."""
        raise NotImplementedError

    def groups(self) -> list[ParamGroup]:
        """Learned parameters with their rates; the first group is the one ``--learning-rate`` sets."""
        return []

    def stages(self, data: Data) -> list[Stage]:
        """The training phases in order; one over `loss` by default, none when nothing learns."""
        groups = self.groups()
        if not groups:
            return []
        return [
            Stage(
                name=self.card.name,
                groups=groups,
                examples=data.train,
                collate=self.batch,
                loss=self.loss,
                defaults=dict(self.training_defaults),
            )
        ]

    def extra_repr(self) -> str:
        return f"{self.card.name}, {self.trainable} trainable"

    @property
    def trainable(self) -> int:
        """How many values the method learns."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def text(self) -> str | None:
        """The text prompt, for methods whose prompt is a string; saved as ``prompt.txt``."""
        return None

    def load_text(self, text: str) -> None:
        """Take a text prompt from an artifact."""
        raise ConfigError(f"{self.card.name}: has no text prompt")

    def kept(self) -> dict[str, Tensor]:
        """What an artifact holds: all learned tensors, unless some serve training only."""
        return dict(self.state_dict())

    def restore(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take all learned tensors from ``tensors``; ``source`` names them in errors.

        Raises:
            ArtifactError: one is missing or has another shape; nothing is changed then.
        """
        own = self.kept()
        for name, tensor in own.items():
            if name not in tensors:
                raise ArtifactError(
                    f"{source}: lacks '{name}' that {self.card.name} needs; it is of another version"
                )
            if tensors[name].shape != tensor.shape:
                raise ArtifactError(
                    f"{source}: '{name}' is {list(tensors[name].shape)}, {self.card.name} on "
                    f"{self.backbone.id} needs {list(tensor.shape)}; the backbone is of another size"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def to_peft(self) -> tuple[Any, dict[str, Tensor]]:
        """The method as PEFT keeps it for inference: a ``PeftConfig`` and tensors under PEFT's names.

        Raises:
            ArtifactError: PEFT has no such method, or can not express it on this backbone.
        """
        raise ArtifactError(f"{self.card.name}: PEFT has no such method; save it as a cuelight artifact")

    @classmethod
    def from_peft(cls, backbone: Backbone, task: Any, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        """The method with the tensors that PEFT saved under ``config``.

        Raises:
            ArtifactError: they do not fit the backbone, or use what the method does not have.
        """
        raise ArtifactError(f"{cls.card.name}: can not be made from a PEFT adapter")


class PromptedLM(Method):
    """A method that conditions a frozen language model and learns by its answers' likelihood.

    A subclass says `condition`; scoring, generating and the loss are the task's.
    """

    task: TextTask
    only_conditions: ClassVar[bool] = True
    """Whether all that is learned is in `condition`, so that rows of other prompts may stand in the same batch."""

    def condition(self, batch: TextBatch) -> Condition:
        """What conditions the backbone for ``batch``."""
        raise NotImplementedError

    def fed(self, batch: TextBatch) -> TextBatch:
        """``batch`` as the backbone reads it behind the condition."""
        return batch

    def loss(self, batch: TextBatch) -> Tensor:
        return self.task.loss(batch, self.condition(batch))

    def predict(self, batch: TextBatch) -> Predictions:
        with torch.no_grad():
            return self.task.predict(self.fed(batch), self.condition(batch))


@cache
def get_method(name: str) -> type[Method]:
    """The class of the method called ``name``.

    Raises:
        ConfigError: no such method; names the nearest.
    """
    if name not in method_modules():
        raise ConfigError(
            f"method: '{name}' is unknown{nearest(name, method_modules())}; 'cuelight methods' lists all"
        )
    path, _, attribute = method_modules()[name].partition(":")
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if path.startswith("cuelight."):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"method: '{name}' comes from {path}, which can not be imported ({reason})"
        ) from error
    candidates = [getattr(module, attribute)] if attribute else list(_classes(module))
    for candidate in candidates:
        if candidate.card.name == name:
            return candidate
    raise ConfigError(f"method: {path} holds no method called '{name}'; its card's name must be the file's")


def _classes(module: Any) -> Iterator[type[Method]]:
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Method)
            and value.__module__ == module.__name__
            and hasattr(value, "card")
        ):
            yield value


def all_cards() -> Sequence[Card]:
    """The cards of all methods, in the order of `method_names`."""
    return [get_method(name).card for name in method_names()]
