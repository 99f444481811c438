"""The built-in dual encoders: transformers models with CLIP's interface, right features, and eyes that can name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from sklearn.datasets import load_sample_images
from torch.nn.functional import normalize

from cuelight.backbones import load_backbone
from cuelight.backbones.mean_text import MeanBertConfig, MeanBertModel
from cuelight.errors import BackboneError

NAMES = ("dino-minilm-clip", "clip-b16-minilm")
TEXTS = ["a photo of a flower.", "a temple behind trees", "a photo of a dog"]


def loaded(name: str) -> Any:
    try:
        return load_backbone(name, device="cpu", progress=False)
    except BackboneError as error:
        if "no network" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def _light() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def test_mean_bert_is_bert_whose_pooled_output_is_the_mean_under_the_mask() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = MeanBertModel(MeanBertConfig(vocab_size=100, **sizes)).eval()
    plain = transformers.BertModel(transformers.BertConfig(vocab_size=100, **sizes), add_pooling_layer=False)
    plain.eval().load_state_dict(model.state_dict())
    ids = torch.randint(1, 100, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    found, states = model(ids, mask), plain(ids, mask).last_hidden_state
    assert torch.equal(found.last_hidden_state, states)
    assert torch.allclose(found.pooler_output[0], states[0].mean(0))
    assert torch.allclose(found.pooler_output[1], states[1, :4].mean(0), atol=1e-6)
    # what stands under the mask changes nothing, and without a mask all of it counts
    other = ids.clone()
    other[1, 4:] = 5
    assert torch.allclose(model(other, mask).pooler_output[1], found.pooler_output[1], atol=1e-6)
    assert torch.allclose(model(ids[1:, :4]).pooler_output[0], found.pooler_output[1], atol=1e-6)
    assert torch.equal(model(ids, mask, return_dict=False)[1], found.pooler_output)
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)
    assert torch.allclose(embedded.pooler_output, found.pooler_output, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_has_clips_interface(name: str) -> None:
    backbone = loaded(name)
    model = backbone.model
    assert backbone.kind == "vision-language"
    assert type(model) is transformers.VisionTextDualEncoderModel
    assert set(backbone.towers) == {"text", "vision"}
    assert backbone.towers["text"].depth == 6
    assert backbone.towers["vision"].depth == 12
    assert backbone.dual is not None
    assert backbone.dual.width == model.text_projection.out_features == model.visual_projection.out_features
    assert not backbone.dual.causal
    assert 1 < backbone.dual.scale <= 100
    assert all(not p.requires_grad and torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_text_tower_is_minilm_with_its_sentence_vector(name: str) -> None:
    backbone, minilm = loaded(name), loaded("minilm-l6")
    rows = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(
        rows["input_ids"], minilm.tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    )
    states = minilm.model(**rows).last_hidden_state
    mask = rows["attention_mask"][..., None]
    sentence = (states * mask).sum(1) / mask.sum(1)
    wanted = normalize(sentence @ backbone.model.text_projection.weight.T, dim=-1)
    assert torch.allclose(
        backbone.dual.text_features(rows["input_ids"], rows["attention_mask"]), wanted, atol=1e-5
    )
    alone = backbone.tokenizer(TEXTS[:1], return_tensors="pt")
    assert torch.allclose(
        backbone.dual.text_features(alone["input_ids"], alone["attention_mask"]), wanted[:1], atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_names_what_is_in_a_photograph(name: str) -> None:
    """scikit-learn's two photographs: a flower, and a temple in China."""
    from PIL import Image

    backbone = loaded(name)
    temple, flower = (Image.fromarray(picture) for picture in load_sample_images().images)
    pixels = backbone.processor([temple, flower], return_tensors="pt")["pixel_values"]
    rows = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = backbone.model(pixel_values=pixels, **rows)
    assert found.logits_per_image.argmax(1).tolist() == [1, 0]
    ours = backbone.dual.scale * (
        backbone.dual.image_features(pixels)
        @ backbone.dual.text_features(rows["input_ids"], rows["attention_mask"]).T
    )
    assert torch.allclose(found.logits_per_image, ours, atol=1e-3)


def test_no_evaluation_class_is_learned_from() -> None:
    """The recipe's rule, on the classes of ImageNet; needs the public data sets."""
    from benchmarks.common import DATA
    from recipes import dual_encoder as recipe

    if not (DATA / "prompts" / "wordnet_glosses.parquet").exists():
        pytest.skip("the public data sets are not there: set CUELIGHT_DATA")
    table = recipe.classes()
    left_out = {table.loc[w].class_name.lower() for w in table.index if recipe.coincides(table.loc[w])}
    kinds = (
        "tabby cat|golden retriever|peafowl|tree frog|common sorrel horse|airliner|container ship|sports car|pickup truck|"
        "tusker|acoustic guitar|T-shirt|sneaker|cowboy boot|cardigan|purse|scuba diver|dog sled"
    )
    for name in kinds.split("|"):
        assert name.lower() in left_out, name
    assert not left_out & {
        "zebra",
        "lion",
        "school bus",
        "banjo",
        "castle",
        "gazelle",
        "space shuttle",
        "sock",
    }
    held = recipe.held_out(table)
    assert len(held) == 40
    assert all(table.loc[w].tiny for w in held)
    assert recipe.mentions("two Puppies and a house", ["house"])
    assert recipe.mentions("Ponies? no, foxes", ["fox"])
    assert not recipe.mentions("a birdhouse", ["bird", "house"])
