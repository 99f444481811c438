"""Tiny random models of real architectures, for tests of mechanisms and shapes only.

Weights are drawn wider than at initialisation, so that every part of a model visibly changes its output.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.prompts.conditioning import TextBatch

PAD, END, MASK, VOCABULARY, WIDTH = 0, 1, 3, 60, 16


def _text(**more: Any) -> dict[str, Any]:
    small = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 2}
    return small | {"attn_implementation": "eager"} | more


def _stack(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 24,
    } | more


def _coder(**more: Any) -> dict[str, Any]:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {"layers": 3, "attention_heads": 4, "ffn_dim": 24}.items()
    }
    return {"d_model": WIDTH, "decoder_start_token_id": 2} | sides | more


def _no_chance(**more: Any) -> dict[str, Any]:
    return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | more


def build(name: str, **more: Any) -> hf.PreTrainedModel:
    """A tiny model of an architecture, in evaluation mode; ``more`` goes to its configuration."""
    torch.manual_seed(0)
    heads = {"num_key_value_heads": 2, "head_dim": 4}
    picture = {"image_size": 12, "patch_size": 4}
    makers: dict[str, tuple[type, type, dict[str, Any]]] = {
        "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, _text(n_embd=WIDTH, n_layer=3, n_head=4, n_positions=48)),
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, _text(**_stack(num_key_value_heads=2))),
        "gemma3": (
            hf.Gemma3ForCausalLM,
            hf.Gemma3TextConfig,
            _text(
                **_stack(**heads, num_hidden_layers=4),
                layer_types=["sliding_attention", "full_attention"] * 2,
                sliding_window=4,
                attn_implementation="sdpa",  # in double precision eager attention makes NaN of masked rows
                query_pre_attn_scalar=4,
                final_logit_softcapping=5.0,
            ),
        ),
        "opt": (hf.OPTForCausalLM, hf.OPTConfig, _text(**_stack(ffn_dim=24, word_embed_proj_dim=WIDTH))),
        "bloom": (hf.BloomForCausalLM, hf.BloomConfig, _text(hidden_size=WIDTH, n_layer=3, n_head=4)),
        "lfm2": (
            hf.Lfm2ForCausalLM,
            hf.Lfm2Config,
            _text(**_stack(num_key_value_heads=2), layer_types=["conv", "full_attention", "conv"]),
        ),
        "bert": (
            hf.BertForMaskedLM,
            hf.BertConfig,
            _text(**_stack(**_no_chance(max_position_embeddings=48))),
        ),
        "roberta": (
            hf.RobertaForMaskedLM,
            hf.RobertaConfig,
            _text(**_stack(**_no_chance(max_position_embeddings=50))),
        ),
        "electra": (hf.ElectraForMaskedLM, hf.ElectraConfig, _text(**_stack(**_no_chance(embedding_size=8)))),
        "t5": (
            hf.T5ForConditionalGeneration,
            hf.T5Config,
            _text(
                d_model=WIDTH,
                d_kv=4,
                d_ff=24,
                num_layers=3,
                num_heads=4,
                decoder_start_token_id=PAD,
                dropout_rate=0,
            ),
        ),
        "bart": (
            hf.BartForConditionalGeneration,
            hf.BartConfig,
            _text(**_coder(max_position_embeddings=48, forced_eos_token_id=None)),
        ),
        "whisper": (
            hf.WhisperForConditionalGeneration,
            hf.WhisperConfig,
            _text(**_coder(num_mel_bins=8, max_source_positions=10, max_target_positions=24)),
        ),
        "vit": (hf.ViTModel, hf.ViTConfig, _stack(**_no_chance(**picture))),
        "dinov2": (hf.Dinov2Model, hf.Dinov2Config, _stack(**_no_chance(**picture, mlp_ratio=2))),
        "ast": (
            hf.ASTModel,
            hf.ASTConfig,
            _stack(
                **_no_chance(num_mel_bins=16, max_length=24, patch_size=8, time_stride=8, frequency_stride=8)
            ),
        ),
    }
    if name == "clip":
        text = _text(**_stack(max_position_embeddings=16), **{"eos_token_id": VOCABULARY - 1} | more)
        vision = _stack(**picture)
        config = hf.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=8, attn_implementation="eager"
        )
        return _filled(hf.CLIPModel(config))
    kind, config_kind, values = makers[name]
    return _filled(kind(config_kind(**values | more)))


def _filled(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if weight.dim() > 1:
                weight.copy_(noise * 0.4)
            else:
                weight.add_(noise * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=draw))
    return model.eval()


KINDS = {"bert": "masked", "roberta": "masked", "electra": "masked", "t5": "seq2seq", "bart": "seq2seq"}


def backbone(name: str, *, double: bool = False, **more: Any) -> Backbone:
    """A tiny backbone; its tokenizer only knows the special ids."""
    model = build(name, **more)
    model = model.double() if double else model
    special = SimpleNamespace(pad_token_id=PAD, eos_token_id=END, mask_token_id=MASK)
    return Backbone(name, model, kind=KINDS.get(name, "causal"), tokenizer=special)  # type: ignore[arg-type]


def rows(*lengths: int, seed: int = 0, low: int = 4) -> list[list[int]]:
    """Random ordinary ids, one row for each length."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(low, VOCABULARY, (n,), generator=draw).tolist() for n in lengths]


def padded(table: list[list[int]], *, left: bool = False, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Rows as ids and mask, padded on one side to the longest and by ``extra`` more."""
    longest = max(map(len, table)) + extra
    ids, mask = (torch.zeros(len(table), longest, dtype=torch.long) for _ in range(2))
    for k, row in enumerate(table):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[k, place] = torch.tensor(row)
        mask[k, place] = 1
    return ids, mask


def batch_of(texts: list[list[int]], answers: list[list[int]] | None = None, **how: Any) -> TextBatch:
    """A `TextBatch` of these rows."""
    return TextBatch(*padded(texts, **how), *(padded(answers) if answers else (None, None)))
