"""What methods of the CLIP family share.

A picture's class is the one whose prompt lies nearest in the joint space of a dual encoder; the logits are cosines
times the pre-trained temperature.  A method says what its class features and its image features are; what it leaves
frozen is computed once.

`PromptedTowers` is independent vision-language prompting (IVLP): free vectors in the first layers of both towers.
MaPLe couples them, PromptSRC regularises what comes out of them, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError
from cuelight.methods.base import MethodConfig
from cuelight.methods.images import ImageMethod
from cuelight.prompts.dual import (
    ClassTokens,
    dual_of,
    encode_images,
    encode_text,
    learned_context,
    mean_features,
    plain_texts,
    template_context,
)
from cuelight.tasks.image import ImageBatch, ImageTask
from cuelight.tasks.predictions import Predictions
from cuelight.training import ParamGroup

__all__ = ["Contrastive", "PromptedTowers", "TowersConfig", "clip_schedule"]

_AT_ONCE = 64  # texts in one pass without gradients
_SPREAD = 0.02  # standard deviation of noise that prompts start from


def clip_schedule(epochs: float, batch_size: int) -> dict[str, Any]:
    """The training that CoOp and all its descendants share: SGD, one epoch at 1e-5, then the cosine.

    Momentum 0.9, weight decay 5e-4, no clipping, and the last step's tensors, not the best on the validation rows.
    """
    return {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": "sgd",
        "schedule": "clip",
        "weight_decay": 5e-4,
        "clip": 0.0,
        "keep": "last",
    }


class Contrastive(ImageMethod):
    """A method whose scores are cosines between image features and class features.

    Subclasses give `class_features`, or `image_features` too and say so by `prompts_images`; those whose class
    features depend on the picture override `scores`.

    Attributes:
        dual: the backbone's towers and joint space.
    """

    def __init__(self, backbone: Backbone, task: ImageTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.dual = dual_of(backbone)
        self._class_features: tuple[Any, Tensor] | None = None
        self._zero_shot: dict[Any, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Class names as they are read."""
        return self.task.names

    # ---- what a method is ------------------------------------------------------------------------------

    def class_features(self) -> Tensor:
        """Features of the classes ``[C, d]``, normalised, with a gradient to what is learned."""
        raise NotImplementedError

    def image_features(self, batch: ImageBatch) -> Tensor:
        """Features of the pictures ``[B, d]``, normalised; the frozen tower's by default."""
        return self.frozen_features(batch)

    def scores(self, batch: ImageBatch) -> Tensor:
        """Logits ``[B, C]``."""
        return self.dual.scale * self.image_features(batch) @ self.known_class_features().T

    def loss(self, batch: ImageBatch) -> Tensor:
        return cross_entropy(self.scores(batch).float(), batch.label)

    @torch.no_grad()
    def predict(self, batch: ImageBatch) -> Predictions:
        return self.task.from_scores(self.scores(batch))

    def rename(self, classes: Sequence[str]) -> None:
        """Answer with other classes from now on; what was learned stays (base-to-new, cross-data-set).

        Raises:
            ConfigError: what was learned belongs to the classes it was learned on.
        """
        self.task = self.task.renamed(classes)
        self._class_features = None
        self.renamed()

    def renamed(self) -> None:
        """Make anew what depends on the class names; called by `rename`."""

    def known_class_features(self) -> Tensor:
        """`class_features`; without gradients computed once for the learned tensors as they are."""
        if torch.is_grad_enabled():
            return self.class_features()
        tensors = [*self.parameters(), *self.buffers()]
        state = (self.names, *((id(t), t.data_ptr(), t._version) for t in tensors))
        if self._class_features is None or self._class_features[0] != state:
            self._class_features = state, self.class_features()
        return self._class_features[1]

    # ---- what is frozen --------------------------------------------------------------------------------

    @torch.no_grad()
    def zero_shot(
        self,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        *,
        normalise_each: bool = True,
    ) -> Tensor:
        """The frozen text tower's class features ``[C, d]``, normalised, computed once.

        Args:
            templates: texts with ``{}``, the task's by default; several are averaged.
            names: class names as they are read, the task's by default.
            normalise_each: normalise every template's feature before the mean.
        """
        chosen = tuple(templates or self.task.templates), tuple(names or self.names), normalise_each
        if chosen not in self._zero_shot:
            parts = [self.texts([t.replace("{}", n) for n in chosen[1]]) for t in chosen[0]]
            self._zero_shot[chosen] = mean_features(parts, first=normalise_each)
        return self._zero_shot[chosen]

    @torch.no_grad()
    def texts(self, texts: Sequence[str], *, cut: bool = False) -> Tensor:
        """The frozen text tower's features of any texts, ``[N, d]``, not normalised; ``cut`` cuts long ones."""
        parts = []
        for k in range(0, len(texts), _AT_ONCE):
            tokens = self.on_device(plain_texts(self.backbone, texts[k : k + _AT_ONCE], cut=cut))
            parts.append(encode_text(self.backbone, tokens, normalised=False))
        return torch.cat(parts)

    def on_device(self, tokens: ClassTokens) -> ClassTokens:
        """``tokens`` where the backbone is."""
        return tokens.to(self.backbone.device)


class TowersConfig(MethodConfig):
    """Options of methods with free vectors in the first layers of both towers."""

    text_tokens: int = Field(4, ge=0, description="Learned vectors in the text tower; 0 leaves it as it is.")
    image_tokens: int = Field(4, ge=0, description="Learned tokens in the image tower; 0 leaves it as it is.")
    depth: int = Field(9, ge=1, description="Layers that have vectors of their own, from the first on.")
    init_text: str = Field(
        "a photo of a {}.",
        description="The class prompt; its first words are the first layer's vectors at the start.",
    )
    init_seed: int = Field(
        0, ge=0, description="Seed of all other vectors (noise of standard deviation 0.02)."
    )


class PromptedTowers(Contrastive):
    """Free vectors in the first layers of both towers.

    In the text tower they stand in place of the template's first words (of placeholders, if it has too few words), in
    the image tower at the end of the sequence.  Subclasses may make them of something else by overriding
    `text_prompts` and `image_prompts`.

    Attributes:
        text_vectors: ``[depth, text_tokens, text width]``, where there are such.
        image_vectors: ``[depth, image_tokens, image width]``, where there are such.
        tokens: the class prompts with their slots.
    """

    Config: ClassVar[type[MethodConfig]] = TowersConfig
    config: Any

    def __init__(self, backbone: Backbone, task: ImageTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self._check_depth()
        self.renamed()
        draw = torch.Generator().manual_seed(config.init_seed)
        self.text_vectors: nn.Parameter | None = None
        self.image_vectors: nn.Parameter | None = None
        if config.text_tokens:
            start = torch.randn(config.depth, config.text_tokens, self.dual.text.width, generator=draw)
            start = (start * _SPREAD).to(backbone.device)
            if self.tokens.start is not None:
                start[0] = self.words()
            self.text_vectors = nn.Parameter(start)
        if config.image_tokens and self.frees_images:
            start = torch.randn(config.depth, config.image_tokens, self.dual.vision.width, generator=draw)
            self.image_vectors = nn.Parameter((start * _SPREAD).to(backbone.device))

    def _check_depth(self) -> None:
        towers = {"text": self.dual.text, "image": self.dual.vision}
        for what, tower in towers.items():
            if getattr(self.config, f"{what}_tokens") and self.config.depth > tower.depth:
                raise ConfigError(
                    f"depth: is {self.config.depth}, the {what} tower of {self.backbone.id} has {tower.depth} "
                    "layers; give no more"
                )
        if not self.config.text_tokens and not self.config.image_tokens:
            raise ConfigError("text_tokens: and image_tokens are both 0, so nothing would learn; give one")

    @property
    def frees_images(self) -> bool:
        """Whether the image tower's vectors are free parameters; a method that makes them says no."""
        return True

    @property
    def prompts_images(self) -> bool:
        return bool(self.config.image_tokens)

    def renamed(self) -> None:
        config = self.config
        if not config.text_tokens:
            self.tokens = self.on_device(
                plain_texts(self.backbone, [config.init_text.replace("{}", n) for n in self.names])
            )
            return
        found = template_context(self.backbone, self.names, config.init_text)
        if found.slots >= config.text_tokens:
            found = template_context(self.backbone, self.names, config.init_text, config.text_tokens)
        else:  # more vectors than words: placeholders, and a start from noise
            found = learned_context(self.backbone, self.names, config.text_tokens)
        self.tokens = self.on_device(found)

    def words(self) -> Tensor:
        """Embeddings of the words that the first layer's vectors stand in place of, ``[text_tokens, w]``."""
        assert self.tokens.start is not None
        return self.backbone.embed(self.tokens.start).detach().float()

    def text_prompts(self) -> Sequence[Tensor]:
        """The text tower's vectors ``[text_tokens, w]`` by layer, from the first on."""
        return [] if self.text_vectors is None else list(self.text_vectors)

    def image_prompts(self) -> Sequence[Tensor]:
        """The image tower's tokens ``[image_tokens, w]`` by layer, from the first on."""
        return [] if self.image_vectors is None else list(self.image_vectors)

    def class_features(self) -> Tensor:
        return self.encode_classes()

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self.encode_pictures(batch) if self.prompts_images else self.frozen_features(batch)

    def encode_classes(self, *, normalised: bool = True, states: list[Tensor] | None = None) -> Tensor:
        """Class features ``[C, d]`` under `text_prompts`; see `encode_text`."""
        first, deep = _by_layer(self.text_prompts())
        return encode_text(self.backbone, self.tokens, first, deep, normalised=normalised, states=states)

    def encode_pictures(
        self, batch: ImageBatch, *, normalised: bool = True, states: list[Tensor] | None = None
    ) -> Tensor:
        """Image features ``[B, d]`` under `image_prompts`; see `encode_images`."""
        assert batch.pixels is not None
        first, deep = _by_layer(self.image_prompts())
        return encode_images(self.backbone, batch.pixels, first, deep, normalised=normalised, states=states)

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompts", dict(self.named_parameters()), 0.0025)]


def _by_layer(prompts: Sequence[Tensor]) -> tuple[Tensor | None, dict[int, Tensor]]:
    """The first layer's prompt, and the deeper ones by layer."""
    if not len(prompts):
        return None, {}
    return prompts[0], dict(enumerate(prompts[1:], 1))
