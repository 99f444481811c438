"""Towers are found from the model itself: names, what they read, widths, depths, embeddings.

Models stand on the meta device at their real sizes (no weights): structure is all that is tested.
"""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.backbones.towers import find_towers
from cuelight.errors import BackboneError
from cuelight.prompts.conditioning import Condition
from tiny_models import WIDTH, build

CLIP = {"text": ("text", 12, 512, 49408), "vision": ("vision", 12, 768, None)}

KNOWN = {
    "CLIP ViT-B/16": (hf.CLIPModel, hf.CLIPConfig(vision_config={"patch_size": 16}), CLIP),
    "CLIPSeg": (hf.CLIPSegForImageSegmentation, hf.CLIPSegConfig(), CLIP),
    "T5-base": (
        hf.T5ForConditionalGeneration,
        hf.T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0),
        {"encoder": ("text", 12, 768, 32128), "decoder": ("text", 12, 768, 32128)},
    ),
    "BART": (
        hf.BartForConditionalGeneration,
        hf.BartConfig(),
        {"encoder": ("text", 12, 1024, 50265), "decoder": ("text", 12, 1024, 50265)},
    ),
    "BERT": (hf.BertForMaskedLM, hf.BertConfig(), {"text": ("text", 12, 768, 30522)}),
    "GPT-2": (hf.GPT2LMHeadModel, hf.GPT2Config(), {"text": ("text", 12, 768, 50257)}),
    "OPT": (hf.OPTForCausalLM, hf.OPTConfig(), {"text": ("text", 12, 768, 50272)}),
    "Llama": (hf.LlamaForCausalLM, hf.LlamaConfig(), {"text": ("text", 32, 4096, 32000)}),
    "Gemma 3": (
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig(hidden_size=640, num_hidden_layers=18, vocab_size=262144),
        {"text": ("text", 18, 640, 262144)},
    ),
    "ViT": (hf.ViTModel, hf.ViTConfig(), {"vision": ("vision", 12, 768, None)}),
    "DINOv2": (hf.Dinov2Model, hf.Dinov2Config(), {"vision": ("vision", 12, 768, None)}),
    "AST": (hf.ASTModel, hf.ASTConfig(), {"audio": ("audio", 12, 768, None)}),
    "Whisper": (
        hf.WhisperForConditionalGeneration,
        hf.WhisperConfig(),
        {"audio": ("audio", 4, 384, None), "decoder": ("text", 4, 384, 51865)},
    ),
    "wav2vec 2": (hf.Wav2Vec2Model, hf.Wav2Vec2Config(), {"audio": ("audio", 12, 768, None)}),
    "LLaVA": (
        hf.LlavaForConditionalGeneration,
        hf.LlavaConfig(),
        {"vision": ("vision", 24, 1024, None), "text": ("text", 32, 4096, 32000)},
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_towers_of_known_architectures(name: str) -> None:
    kind, config, wanted = KNOWN[name]
    with torch.device("meta"):
        model = kind(config)
    towers = find_towers(model)
    found = {
        t.name: (
            t.modality,
            t.depth,
            t.width,
            t.embedding.num_embeddings if t.embedding is not None else None,
        )
        for t in towers.values()
    }
    assert found == wanted
    assert list(towers) == [t.name for t in towers.values()]
    for tower in towers.values():
        assert model.get_submodule(tower.path) is tower.layers
        if tower.embedding is not None:
            assert tower.embedding.embedding_dim == tower.width


def test_the_token_table_is_not_mistaken_for_a_longer_table_of_positions() -> None:
    model = build("gpt2", n_positions=500)
    assert find_towers(model)["text"].embedding is model.transformer.wte


def test_a_model_without_transformer_layers_is_refused() -> None:
    model = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(BackboneError, match="no stack of transformer layers") as caught:
        find_towers(model)
    assert "\n" not in str(caught.value)


def test_two_towers_that_read_the_same_are_refused() -> None:
    with torch.device("meta"):
        model = hf.SwinModel(hf.SwinConfig())
    with pytest.raises(BackboneError, match="both read vision"):
        find_towers(model)


def test_a_backbone_says_which_tower_a_text_prompt_is_written_to() -> None:
    assert Backbone("b", build("t5"), kind="seq2seq").tower.name == "encoder"
    assert Backbone("b", build("clip"), kind="vision-language").tower.name == "text"
    with pytest.raises(BackboneError, match="reads no text"):
        _ = Backbone("b", build("vit"), kind="vision-encoder").tower


def test_embeddings_are_those_the_first_layer_gets() -> None:
    host = Backbone("b", build("gemma3"), kind="causal")
    table = host.tower.embedding.weight
    torch.testing.assert_close(host.embed(torch.tensor([7])), table[[7]] * WIDTH**0.5)
    assert Condition(prompt=host.embed(torch.tensor([7, 8]))).length == 2


def test_a_backbone_is_frozen_and_knows_its_weights() -> None:
    host = Backbone("b", build("clip").train(), kind="vision-language")  # it has a weight without dimensions
    assert not any(p.requires_grad for p in host.model.parameters())
    assert not host.model.training
    same = Backbone("b", build("clip"), kind="vision-language")
    assert host.fingerprint == same.fingerprint
    with torch.no_grad():
        same.model.logit_scale.add_(1)
    del same.fingerprint
    assert host.fingerprint != same.fingerprint


def test_a_model_object_s_tokenizer_gets_something_to_pad_with() -> None:
    tokenizer = load_backbone("smollm2-135m", device="cpu", progress=False).tokenizer
    tokenizer.pad_token = None
    host = load_backbone(build("llama"), device="cpu", tokenizer=tokenizer)
    assert host.tokenizer.pad_token == host.tokenizer.eos_token
    with pytest.raises(BackboneError, match="needs its tokenizer too"):
        load_backbone(build("llama"), device="cpu")
