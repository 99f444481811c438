"""Dual encoders for tests: small random ones, CLIP ViT-B/16's shape, and the built-in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from cuelight.backbones import Backbone, load_backbone

END, START = 102, 101  # BERT's [SEP] and [CLS]


def clip_config(*, text: int = 32, vision: int = 48, layers: int = 3, joint: int = 16) -> hf.CLIPConfig:
    """A CLIP of a few layers that reads MiniLM's tokens and pictures of 32 x 32 pixels."""
    return hf.CLIPConfig(
        text_config={
            "vocab_size": 30522,
            "hidden_size": text,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 2 * text,
            "max_position_embeddings": 77,
            "eos_token_id": END,
            "bos_token_id": START,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": vision,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 2 * vision,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=joint,
    )


def small_clip(**sizes: int) -> Backbone:
    """A CLIP with random weights, drawn wide enough that every part of it shows in its output."""
    torch.manual_seed(0)
    model = hf.CLIPModel(clip_config(**sizes))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.15)
    return load_backbone(model, tokenizer=load_backbone("minilm-l6", progress=False).tokenizer, device="cpu")


def small_siglip() -> Backbone:
    """A SigLIP with random weights: texts padded to a fixed length, an attention pool in place of a class token."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    text = {"vocab_size": 30522, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": START}
    config = hf.SiglipConfig(
        text_config=sizes | text | {"eos_token_id": END, "projection_size": 32},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
    )
    tokenizer = load_backbone("minilm-l6", progress=False).tokenizer
    return load_backbone(hf.SiglipModel(config), tokenizer=tokenizer, device="cpu")


def unaligned_dual() -> Backbone:
    """DINOv2-small and MiniLM with random projections: real towers whose spaces do not meet, for identities."""
    text, vision = (load_backbone(name, progress=False) for name in ("minilm-l6", "dinov2-small"))
    torch.manual_seed(0)
    model: Any = hf.VisionTextDualEncoderModel(vision_model=vision.model, text_model=text.model)
    return load_backbone(model, tokenizer=text.tokenizer, device="cpu")


def aligned_dual() -> Backbone:
    """The built-in dual encoder: DINOv2-small and MiniLM in one space."""
    return load_backbone("dino-minilm-clip", progress=False, device="cpu")


def clip_b16(*, meta: bool = True) -> hf.CLIPModel:
    """OpenAI's CLIP ViT-B/16 by its configuration; without weights on the meta device."""
    config = hf.CLIPConfig(
        text_config={
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_hidden_layers": 12,
            "intermediate_size": 2048,
        },
        vision_config={"patch_size": 16, "image_size": 224},
        projection_dim=512,
    )
    with torch.device("meta" if meta else "cpu"):
        return hf.CLIPModel(config)


def saved_clip(folder: Path) -> str:
    """A small random CLIP as a folder that `load_backbone` reads by name, processor and tokenizer with it."""
    made = small_clip()
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return str(folder)
