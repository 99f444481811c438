"""A BERT whose pooled output is the mean of its last hidden states: sentence encoders as text towers.

MiniLM's sentence vector is that mean, while transformers' dual encoders project what a text model calls its
pooled output.  This class is BERT with that one change, so that `VisionTextDualEncoderModel` needs none: same
layers, same hidden states, padding left out of the mean.  Importing the module makes the type known to
transformers' ``AutoConfig`` and ``AutoModel``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

__all__ = ["MeanBertConfig", "MeanBertModel"]


class MeanBertConfig(BertConfig):
    """BERT's configuration under a type of its own."""

    model_type = "cuelight-mean-bert"


class MeanBertModel(BertModel):
    """`BertModel` whose ``pooler_output`` ``[N, width]`` is the mean of the states that are not padding."""

    config_class = MeanBertConfig

    def __init__(self, config: MeanBertConfig) -> None:
        super().__init__(config, add_pooling_layer=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        """As `BertModel.forward`; ``attention_mask`` ``[N, T]`` is 1 where a token counts, ``None`` for all."""
        output = super().forward(input_ids, attention_mask, return_dict=True, **kwargs)
        states = output.last_hidden_state
        if attention_mask is None:
            output.pooler_output = states.mean(1)
        else:
            weights = attention_mask.to(states.dtype)[..., None]
            output.pooler_output = (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


AutoConfig.register(MeanBertConfig.model_type, MeanBertConfig, exist_ok=True)
AutoModel.register(MeanBertConfig, MeanBertModel, exist_ok=True)
