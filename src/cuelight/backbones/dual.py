"""Dual encoders: a text tower and an image tower that meet in one space.

What a method may know of CLIP, SigLIP or a `VisionTextDualEncoderModel` is here and nowhere else: features of
texts and images in the joint space, its width, the pre-trained temperature, and how texts have to be padded.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPTextModel, CLIPVisionModel, PreTrainedModel

from cuelight.backbones.towers import Tower

__all__ = ["Dual"]


@dataclass(frozen=True)
class Dual:
    """The two towers of a vision-language model.

    Features are what the model's own ``get_text_features`` and ``get_image_features`` give, so hooks on a tower
    act on them; they are float32 whatever the weights are.

    Attributes:
        model: the transformers model.
        text, vision: its towers.
        width: size of the joint space.
        causal: the text tower reads from left to right: what stands behind the last end mark changes nothing.
        padded_to: the length every text has to be padded to (SigLIP was trained so), None for the longest row.
    """

    model: PreTrainedModel = field(repr=False)
    text: Tower = field(repr=False)
    vision: Tower = field(repr=False)
    width: int
    causal: bool
    padded_to: int | None

    @staticmethod
    def of(model: PreTrainedModel, towers: dict[str, Tower]) -> Dual | None:
        """The towers of ``model``, None when it has no joint space of texts and images."""
        reads = all(hasattr(model, f"get_{what}_features") for what in ("text", "image"))
        if not reads or "text" not in towers or "vision" not in towers:
            return None
        config: Any = model.config
        siglip = hasattr(model, "logit_bias")
        text = config.text_config
        width = text.projection_size if siglip else config.projection_dim
        return Dual(
            model,
            towers["text"],
            towers["vision"],
            int(width),
            isinstance(getattr(model, "text_model", None), CLIPTextModel),
            int(text.max_position_embeddings) if siglip else None,
        )

    @property
    def scale(self) -> float:
        """What cosines are multiplied by to make logits, ``exp(logit_scale)``; 100 for CLIP."""
        return float(self.model.logit_scale.detach().float().exp())

    @property
    def image_size(self) -> int:
        """Side of the square pictures the image tower was made for, in pixels."""
        size = self.model.config.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        size = self.model.config.vision_config.patch_size
        return int(size if isinstance(size, int) else size[0])

    def text_features(self, ids: Tensor, mask: Tensor, *, normalised: bool = True) -> Tensor:
        """Features ``[N, width]`` of tokenised texts ``[N, T]``; ids may hold slots while a prompt fills them."""
        given = {} if self.causal or self.padded_to else {"attention_mask": mask}
        found = self.model.get_text_features(input_ids=ids, **given).pooler_output.float()
        return normalize(found, dim=-1) if normalised else found

    def image_features(self, pixels: Tensor, *, normalised: bool = True) -> Tensor:
        """Features ``[N, width]`` of pictures ``[N, 3, H, W]``; positions are interpolated to another size."""
        found = self.model.get_image_features(
            pixel_values=pixels, **self._positions(pixels)
        ).pooler_output.float()
        return normalize(found, dim=-1) if normalised else found

    def token_features(self, pixels: Tensor, *, normalised: bool = True) -> Tensor:
        """Every output token in the joint space, ``[N, 1 + patches, width]``, the class token first.

        Row 0 equals `image_features` where the tower pools its class token (CLIP, DINOv2, ViT).
        """
        found = self.model.get_image_features(pixel_values=pixels, **self._positions(pixels))
        states = found.last_hidden_state
        tower = self.model.vision_model
        if isinstance(tower, CLIPVisionModel):  # the others normalise all tokens themselves
            states = tower.post_layernorm(states)
        projection = getattr(self.model, "visual_projection", nn.Identity())
        features = projection(states).float()
        return normalize(features, dim=-1) if normalised else features

    def entering(self, tokens: Tensor) -> Tensor:
        """Image tokens as they enter the first layer: through CLIP's norm before it; others have none."""
        norm = getattr(self.model.vision_model, "pre_layrnorm", None)
        return tokens if norm is None else norm(tokens)

    def _positions(self, pixels: Tensor) -> dict[str, Any]:
        if pixels.shape[-1] == self.image_size and pixels.shape[-2] == self.image_size:
            return {}
        known = inspect.signature(type(self.model.vision_model).forward).parameters
        return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
