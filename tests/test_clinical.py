"""Clinical prompt learning: counts on the paper's shape, what frozen means, where pairs of template and verbalizer read.

Random weights stand where counts, places and identities are tested; the runs at the end are on real models.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers as hf

import cuelight
from cuelight.backbones.backbone import Backbone
from cuelight.config import build
from cuelight.errors import ConfigError
from cuelight.methods.base import get_method
from cuelight.methods.fewshot.clinical import Clinical
from cuelight.tasks.text import TaskConfig, TextTask
from test_cloze import ROWS, batch_of, real

WARDS = ("heart", "lung", "brain", "blood", "bone", "skin", "eye")
ROW = [{"text": ROWS[0]["text"], "label": 3}]
WORDS = "{text} This patient should go to {mask}."
MIXED = "{text} {soft:This} patient should {soft:go to} {mask}."
SOFT = "{soft*20} {text} {mask}"


@cache
def clinical_bert() -> Backbone:
    """BERT-base cased as Bio_ClinicalBERT has it, with one layer of random weights: no count below depends on layers."""
    torch.manual_seed(0)
    model = hf.BertForMaskedLM(hf.BertConfig(vocab_size=28996, num_hidden_layers=1))
    return Backbone("clinical-bert", model, kind="masked", tokenizer=real("bert").tokenizer)


def made(host: Backbone, template: str = MIXED, classes: Any = WARDS, **options: Any) -> Clinical:
    task = TextTask(host, "classification", classes, config=TaskConfig(template=template, max_length=48))
    kind = get_method("clinical")
    method = kind(host, task, build(kind.Config, options))
    assert isinstance(method, Clinical)
    return method.eval()


def test_counts_are_the_papers() -> None:
    host = clinical_bert()
    vocabulary, width = 28_996, 768
    assert made(host, WORDS).trainable == 5_376
    assert made(host, MIXED).trainable == 5_376 + 768 * 3
    assert made(host, SOFT).trainable == 5_376 + 768 * 20
    # OpenPrompt's table of soft words has one row more, which nothing reads.
    assert made(host, MIXED, verbalizer="manual").trainable == 3_072 - width
    released = made(host, MIXED, freezing="as_released").trainable
    assert released + width + vocabulary == 629_572  # and a bias of every word, which nothing uses
    assert made(host, WORDS, freezing="as_released").trainable + vocabulary == 626_500
    assert made(host, WORDS, form="head", head_width=768).trainable == 595_975
    assert made(host, WORDS, form="head", head_width=2).trainable == 1_559
    assert made(host, MIXED, model="tuned").trainable == host.parameters + 5_376 + 768 * 3
    body = sum(p.numel() for p in host.model.base_model.parameters())
    assert made(host, WORDS, form="head", head_width=768, model="tuned").trainable == body + 595_975


@pytest.mark.parametrize("template", [WORDS, MIXED, SOFT])
def test_a_head_spends_what_the_prompt_would(template: str) -> None:
    host = clinical_bert()
    prompt, head = made(host, template).trainable, made(host, template, form="head").trainable
    assert abs(prompt - head) <= (768 + 1 + 7) / 2


@pytest.mark.parametrize("freezing", ["strict", "as_released"])
def test_frozen_means_frozen(freezing: str) -> None:
    host = real("bert")
    method = made(host, freezing=freezing).train()
    before = {n: t.clone() for n, t in host.model.state_dict().items()}
    start = {n: p.detach().clone() for n, p in method.named_parameters()}
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    method.loss(batch_of(method, ROW)).backward()
    optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in host.model.state_dict().items())
    assert not any(p.requires_grad for p in host.model.parameters())
    assert all(not torch.equal(p, start[n]) for n, p in method.named_parameters())
    names = {"soft", "verbalizer.rows"}
    if freezing == "strict":
        assert set(start) == names
    else:
        assert {n.rsplit("/", 2)[-2] for n in set(start) - names} == {"dense", "LayerNorm"}


@pytest.mark.parametrize("verbalizer", ["manual", "soft"])
@pytest.mark.parametrize("name", ["bert", "minimind2-26m", "flan-t5-small"])
def test_a_mixed_template_starts_as_its_words(name: str, verbalizer: str) -> None:
    host, classes = real(name), ("good", "bad")
    mixed, words = (t[: -len(".")] for t in (MIXED, WORDS))
    a, b = (made(host, t, classes, verbalizer=verbalizer) for t in (mixed, words))
    with torch.no_grad():
        torch.testing.assert_close(a.scores(batch_of(a)), b.scores(batch_of(b)))


@pytest.mark.parametrize("verbalizer", ["manual", "soft"])
@pytest.mark.parametrize("template", [WORDS, MIXED, SOFT])
def test_every_pair_reads_the_slot(template: str, verbalizer: str) -> None:
    """A sentinel in the last layer's states is seen at the mask and nowhere else; ``reads=start`` sees the first token."""
    host = real("bert")
    method = made(host, template, verbalizer=verbalizer, word_score="first")
    wrong = made(host, template, reads="start") if verbalizer == "soft" else None
    batch = batch_of(method, ROW)
    slot = batch.text[0].tolist().index(host.tokenizer.mask_token_id)
    place = -1

    def sentinel(_: Any, __: Any, out: Any) -> Any:
        states = (out[0] if isinstance(out, tuple) else out).clone()
        if place >= 0:
            states[:, place] = torch.linspace(-3, 3, states.shape[-1])
        return (states, *out[1:]) if isinstance(out, tuple) else states

    handle = host.tower.layers[-1].register_forward_hook(sentinel)
    try:
        with torch.no_grad():
            for which, expected in ((method, slot), (wrong, 0)):
                if which is None:
                    continue
                place, moved = -1, []
                plain = which.scores(batch)
                for place in range(batch.text.shape[1]):
                    if not torch.equal(which.scores(batch), plain):
                        moved.append(place)
                assert moved == [expected]
    finally:
        handle.remove()


def test_a_head_reads_the_text_alone() -> None:
    host = real("bert")
    heads = [made(host, t, form="head", head_width=4) for t in (WORDS, MIXED)]
    with torch.no_grad():
        a, b = (h.scores(batch_of(h, ROW)) for h in heads)
    assert torch.equal(a, b)
    assert heads[0].bare(batch_of(heads[0], ROW)).text[0].tolist() == host.tokenizer(ROW[0]["text"]).input_ids


def test_random_vectors_are_seeded_and_fixed_ones_stay() -> None:
    host = real("bert")
    one, same, other = (made(host, start="random", start_seed=s) for s in (1, 1, 2))
    assert torch.equal(one.verbalizer.rows, same.verbalizer.rows)  # type: ignore[arg-type]
    assert not torch.equal(one.verbalizer.rows, other.verbalizer.rows)  # type: ignore[arg-type]
    fixed = made(host, start="fixed")
    assert [group.name for group in fixed.groups()] == ["template"]
    assert fixed.trainable == 3 * host.tower.width


def test_mistakes_are_said_in_a_line() -> None:
    for options, says in (
        ({"freezing": "as_released", "verbalizer": "manual"}, "freezing=as_released: is of a frozen model"),
        ({"form": "head", "calibrate": "contextual"}, "calibrate=contextual: a head reads no words"),
        ({"reads": "start", "verbalizer": "manual"}, "reads=start: needs a soft verbalizer"),
    ):
        with pytest.raises(ConfigError, match=says):
            made(real("bert"), **options)
    with pytest.raises(ConfigError, match="freezing: as_released is of masked language models"):
        made(real("minimind2-26m"), MIXED[:-1], freezing="as_released")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("minilm-mlm", {"template": MIXED}),
        ("minilm-mlm", {"template": SOFT, "verbalizer": "manual"}),
        ("minilm-mlm", {"template": MIXED, "freezing": "as_released"}),
        ("minimind2-26m", {"form": "head"}),
    ],
)
def test_on_a_csv_with_nothing_but_class_names(name: str, options: Any, tmp_path: Path) -> None:
    rows = [(f"Pain in the {w}, visit {k}.", w) for k in range(10) for w in ("heart", "lung")]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "my.csv", index=False)
    run = cuelight.tune("clinical", backbone=real(name), data=str(tmp_path / "my.csv"), steps=3,
                        output=str(tmp_path / "run"), **options)  # fmt: skip
    texts = ["Pain in the chest.", "A cough."]
    again = cuelight.load(str(tmp_path / "run"), backbone=real(name))
    assert again.predict(texts, probabilities=True) == run.prompt.predict(texts, probabilities=True)
