"""SciPrompt: terms from three sources, the filter, the weighted verbalizer, and the way into an artifact.

Models are built-in ones; where it says that weights are random, only shapes and bookkeeping are tested.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.nn.functional import cross_entropy

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.cli.main import run as command
from cuelight.config import build
from cuelight.data.wordnet import WordNet, find_wordnet
from cuelight.errors import BackboneError, ConfigError, DataError
from cuelight.methods.base import Data
from cuelight.methods.fewshot.sciprompt import SciPrompt, SciPromptConfig
from cuelight.tasks.terms import (
    BiEncoder,
    CrossEncoder,
    Term,
    first_come,
    from_file,
    from_texts,
    lines,
    parse_lines,
)
from cuelight.tasks.text import TaskConfig, TextTask
from cuelight.tasks.verbalizers import SoftVerbalizer, WeightedVerbalizer

CLASSES = ("medicine", "law", "music")
TERMS: list[list[Term]] = [
    [("hospital", 0.8), ("chemotherapy", 0.55)],
    [("court", 0.9)],
    [("piano", 0.7), ("violin concerto", 0.6), ("singer", 0.52)],
]
TEXTS = [
    "The surgeon at the hospital treats a patient with chemotherapy.",
    "A judge of the supreme court read the verdict.",
    "She plays a violin concerto and the piano.",
    "The hospital hired a second surgeon.",
    "The verdict of the supreme court is final.",
    "A piano and a violin concerto, all evening.",
]
TEMPLATE = "The field of this study is related to: {mask}. {text}"
REVIEWS = "negative: awful, boring, terrible\npositive: great, moving, wonderful\n"


@cache
def random_bert() -> Backbone:
    """Two layers of random weights behind MiniLM's tokenizer."""
    tokenizer = load_backbone("minilm-l6", device="cpu", progress=False).tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = hf.BertConfig(vocab_size=len(tokenizer), **shape, initializer_range=0.3)
    return Backbone("tiny-bert", hf.BertForMaskedLM(config), kind="masked", tokenizer=tokenizer)


@cache
def near(wrapping: str = "{term}") -> BiEncoder:
    return BiEncoder("minilm-l6", "cpu", wrapping)


def made(words: Any = None, **options: Any) -> SciPrompt:
    task_config = TaskConfig(template=TEMPLATE, label_words=words, max_length=48)
    task = TextTask(random_bert(), "classification", CLASSES, config=task_config)
    return SciPrompt(random_bert(), task, build(SciPromptConfig, {"model": "frozen", **options})).eval()


def batch_of(method: SciPrompt) -> Any:
    rows = [{"text": text, "label": k % 3} for k, text in enumerate(TEXTS)]
    return method.task.collate(method.task.encode(rows))


def data_of(method: SciPrompt) -> Data:
    rows = [{"text": text, "label": k % 3} for k, text in enumerate(TEXTS)]
    items = method.task.encode(rows)
    return Data(items, items, rows)


# ---- the verbalizer (random weights) ---------------------------------------------------------------------------


def test_one_term_a_class_is_the_softmax_of_its_logits() -> None:
    method = made(calibrate="none")
    batch = batch_of(method)
    with torch.no_grad():
        logits = method.says(batch)
        torch.testing.assert_close(method.scores(batch), logits.log_softmax(-1))
        expected = cross_entropy(logits, batch.extra["label"])
        torch.testing.assert_close(method.loss(batch), expected)


def test_equal_weights_are_the_mean_of_the_terms_log_p() -> None:
    batch = batch_of(made())
    plain, weighted = made(weights="equal"), made()
    for method in (plain, weighted):
        method.take(TERMS)
    with torch.no_grad():
        log_p = (plain.says(batch).softmax(-1) + 1e-15).log()
        expected = torch.stack([part.mean(-1) for part in log_p.split([3, 2, 4], -1)], -1)
        torch.testing.assert_close(plain.scores(batch), expected)
        assert float((weighted.scores(batch) - expected).abs().max()) > 1e-4


def test_weights_are_a_softmax_over_similarities() -> None:
    method = made()
    method.take([[*TERMS[0], ("surgeon", 1.7)], *TERMS[1:]])
    assert isinstance(method.verbalizer, WeightedVerbalizer)
    parts = method.verbalizer.weights().detach().split([4, 2, 4])
    torch.testing.assert_close(parts[0], torch.tensor([1, 0.8, 0.55, 1]).softmax(-1))  # min(similarity, 1)
    for part in parts:
        assert float(part.sum()) == pytest.approx(1)
        assert float(part.max() / part.min()) <= torch.e**0.5
    sharp = made(temperature=0.1)
    sharp.take(TERMS)
    assert isinstance(sharp.verbalizer, WeightedVerbalizer)
    wider = sharp.verbalizer.weights().detach().split([3, 2, 4])[0]
    torch.testing.assert_close(wider, torch.tensor([10, 8, 5.5]).softmax(-1))


def test_a_term_of_several_tokens_has_the_mean_of_its_tokens_at_one_slot() -> None:
    method = made()
    method.take(TERMS)
    place = [word for listed in TERMS for word in ("", *(t for t, _ in listed))].index("violin concerto")
    ids = method.task.tokenizer("violin concerto", add_special_tokens=False).input_ids
    assert len(ids) > 1 and method.words[place] == ids
    batch = batch_of(method)
    column = next(c for c in range(batch.text.shape[1]) if batch.text[0, c] == 103)  # BERT's [MASK]
    with torch.no_grad():
        logits = method.backbone.model(batch.text, attention_mask=batch.text_mask).logits[0, column]
        torch.testing.assert_close(method.says(batch)[0, place], logits[ids].mean(), rtol=1e-4, atol=1e-4)


def test_a_soft_row_is_the_weighted_mean_of_the_terms_rows() -> None:
    method = made(verbalizer="soft")
    weight = method.backbone.model.get_output_embeddings().weight.detach()
    assert isinstance(method.verbalizer, SoftVerbalizer)
    row = method.task.word_ids[0][0]
    assert len(row) == 1
    torch.testing.assert_close(method.verbalizer.rows[0], weight[row[0]])  # one term, strength 1
    method.take(TERMS)
    words = [method.words[k] for k in range(3)]
    expected = sum(s * weight[ids].mean(0) for s, ids in zip((1, 0.8, 0.55), words, strict=True)) / 3
    torch.testing.assert_close(method.verbalizer.rows[0], expected)
    assert method.trainable == 3 * 24
    fixed = made(verbalizer="soft", weights="fixed")
    assert fixed.trainable == 0 and not fixed.groups()


def test_calibration_makes_the_average_text_uniform_and_drops_rare_terms_but_no_name() -> None:
    method = made(expand=False)
    data = data_of(method)
    method.take(TERMS)
    method.prepare(data, seed=0)
    verbalizer = method.verbalizer
    assert isinstance(verbalizer, WeightedVerbalizer)
    common = method.common(data.train)
    rare = common < common.median()
    firsts = {0, 3, 5}
    expected = [k in firsts or not bool(rare[ids].any()) for k, ids in enumerate(method.words)]
    assert verbalizer.used.tolist() == expected and not all(expected)
    average = torch.stack([common[ids].mean() for ids in method.words])[None]
    chances = verbalizer.log_probabilities(average).exp()[0][verbalizer.used]
    torch.testing.assert_close(chances, torch.full_like(chances, 1 / len(chances)), rtol=1e-3, atol=1e-6)
    assert verbalizer.weights()[~verbalizer.used].tolist() == [0] * expected.count(False)
    none = made(expand=False, drop=0)
    none.take(TERMS)
    none.prepare(data, seed=0)
    assert none.verbalizer.used.all()  # type: ignore[union-attr]


def test_what_learns() -> None:
    for weights, count in (("learned", 9), ("fixed", 0), ("equal", 0)):
        method = made(weights=weights)
        method.take(TERMS)
        assert method.trainable == count == sum(g.params["strength"].numel() for g in method.groups())
    method = made()
    method.take(TERMS)
    method.loss(batch_of(method)).backward()
    grad = method.verbalizer.strength.grad  # type: ignore[union-attr]
    assert grad is not None and bool((grad.abs() > 0).all())
    assert all(p.grad is None for p in method.backbone.model.parameters())


def test_the_same_tokens_stand_for_one_class_only() -> None:
    method = made({"law": "law|statute"})
    method.take([[("Piano", 0.9), ("law", 0.9)], [("piano", 0.8), ("STATUTE", 0.7)], [("piano", 0.9)]])
    assert [[t for t, _ in listed] for listed in method.terms] == [["Piano"], [], []]  # the model is uncased
    assert len(method.words) == 5


# ---- sources ---------------------------------------------------------------------------------------------------


def test_terms_of_texts_go_to_the_class_they_are_nearest_to() -> None:
    found = from_texts(CLASSES, TEXTS, near(), most=6)
    tops = [[term for term, _ in listed] for listed in found]
    assert {"hospital", "surgeon"} <= set(tops[0]) and "supreme court" in tops[1] and "piano" in tops[2]
    every = [term for listed in tops for term in listed]
    assert len(every) == len(set(every)) and all(len(listed) <= 6 for listed in tops)
    assert not {"the", "and", "court read the", "hospital treats a"} & set(every)
    for listed in found:
        assert listed == sorted(listed, key=lambda entry: -entry[1])


def test_who_comes_first_has_a_term() -> None:
    one = [[("piano", 0.4), ("of", 0.9)], [("court", 0.0)], []]
    other = [
        [("court", 1.0)],
        [("Piano", 0.9), ("judge", 1.0)],
        [("law", 1.0), ("judge", 0.9), ("song", 0.1)],
    ]
    found = first_come([one, other], CLASSES)  # type: ignore[list-item]
    assert found == [["piano", "court"], ["judge"], ["song"]]


def test_a_users_list_in_lines_and_as_a_table(tmp_path: Path) -> None:
    text = tmp_path / "terms.txt"
    text.write_text("law: court, judge (0.71)\n\nmusic: violin concerto\nlaw: statute\n")
    expected = [[], [("court", 1.0), ("judge", 0.71), ("statute", 1.0)], [("violin concerto", 1.0)]]
    assert from_file(text, CLASSES) == expected
    table = tmp_path / "terms.csv"
    table.write_text('class,term\nlaw,court\nlaw,"judge (0.71), statute"\nmusic,violin concerto\n')
    assert from_file(table, CLASSES) == expected
    assert parse_lines(lines(CLASSES, TERMS), CLASSES) == TERMS
    assert parse_lines("a:b: one\na: two\n", ["a", "a:b"]) == [[("two", 1.0)], [("one", 1.0)]]
    text.write_text("laws: court\n")
    with pytest.raises(DataError, match=r"'laws' is no class \(did you mean 'law'\?\)"):
        from_file(text, CLASSES)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="name them 'class' and 'term'"):
        from_file(table, CLASSES)


def test_wordnet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three synsets in WordNet's format: medicine and medical specialty, below science."""
    head = "  1 a line of the licence\n"
    synsets = [
        "{0} 09 n 02 medicine 0 medical_specialty 0 001 @ {1} n 0000 | the branch of science\n",
        "{1} 09 n 01 science 0 002 ~ {0} n 0000 ~ {2} n 0000 | knowledge\n",
        "{2} 09 n 01 law 0 002 @ {1} n 0000 ; {0} v 0000 | jurisprudence\n",
    ]
    places, at = [], len(head)
    for line in synsets:
        places.append(f"{at:08d}")
        at += len(line.replace("{0}", "0" * 8).replace("{1}", "0" * 8).replace("{2}", "0" * 8))
    (tmp_path / "data.noun").write_text(head + "".join(line.format(*places) for line in synsets))
    index = [f"{w} n 1 1 @ 1 0 {p}  \n" for w, p in zip(("medicine", "science", "law"), places, strict=True)]
    (tmp_path / "index.noun").write_text(head + "".join(sorted(index)))
    wordnet = WordNet(tmp_path)
    assert wordnet.related("medicine") == [("medical specialty", 1.0), ("science", 0.5)]
    assert wordnet.related("science") == [("medicine", 0.5), ("medical specialty", 0.5), ("law", 0.5)]
    found = dict(wordnet.related("The Laws of (Medicine)"))  # parts of the name, the plural among them
    assert found == {"law": 1.0, "medicine": 1.0, "medical specialty": 1.0, "science": 0.5}
    assert wordnet.related("zzz") == []
    method = made(sources=("wordnet",), wordnet=str(tmp_path), filter=False, calibrate="none")
    method.prepare(data_of(method), seed=0)
    assert [[t for t, _ in listed] for listed in method.terms] == [["medical specialty", "science"], [], []]
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("cuelight.data.wordnet._PLACES", ())
    find_wordnet.cache_clear()
    with pytest.raises(DataError, match="is not installed here; install wordnet-base"):
        find_wordnet()
    with pytest.raises(DataError, match=r"does not hold WordNet's index\.noun"):
        WordNet(tmp_path / "nowhere")


# ---- the filter ------------------------------------------------------------------------------------------------


def test_the_filter_keeps_what_is_near_to_the_name(tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_text("law: legal rules, court, bicycle\nmusic: musical piece, volcano\n")
    options = {"sources": ("file",), "terms": str(file), "wrapping": "{term}"}
    method, all_ = made(**options, tau_a=0.45), made(**options, filter=False)
    for each in (method, all_):
        each.prepare(data_of(each), seed=0)
    kept = [[term for term, _ in listed] for listed in method.terms]
    assert kept[1][0] == "legal rules" and "bicycle" not in kept[1] and kept[2] == ["musical piece"]
    assert all(similarity > 0.45 for listed in method.terms for _, similarity in listed)
    assert [len(listed) for listed in all_.terms] == [0, 3, 2]
    cosine = float(near()(["music"], ["musical piece"]))
    assert method.terms[2][0][1] == pytest.approx(cosine, abs=1e-5)


def test_a_cross_encoder_takes_out_what_contrasts(tmp_path: Path) -> None:
    """Random weights: only that it is asked, and that its label decides."""
    tokenizer = random_bert().tokenizer
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = hf.BertConfig(
        vocab_size=len(tokenizer), **shape, id2label={0: "entailing", 1: "contrasting"}, initializer_range=0.5
    )
    torch.manual_seed(0)
    hf.BertForSequenceClassification(config).save_pretrained(tmp_path / "cross")
    tokenizer.save_pretrained(tmp_path / "cross")
    cross = CrossEncoder(str(tmp_path / "cross"), torch.device("cpu"))
    asked = [[(term, 0.9) for term, _ in listed] for listed in TERMS]
    chances = cross("music", [term for term, _ in asked[2]])
    assert chances.shape == (3,) and cross("music", []).shape == (0,)
    torch.testing.assert_close(chances[1:2], cross("music", [asked[2][1][0]]), rtol=1e-4, atol=1e-5)
    middle = float(chances.sort().values[1])
    method = made(cross_encoder=str(tmp_path / "cross"), tau_b=middle, wrapping="{term}")
    expected = [entry for entry, b in zip(asked[2], chances.tolist(), strict=True) if b < middle - 1e-6]
    assert method.filtered(asked)[2] == expected and len(expected) == 1
    with pytest.raises(BackboneError, match=r"cross_encoder: .* can not be loaded"):
        CrossEncoder(str(tmp_path / "none"), torch.device("cpu"))
    with pytest.raises(BackboneError, match="give a sentence encoder"):
        BiEncoder("flan-t5-small", "cpu")


# ---- from end to end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"template": "It was {mask}. {text}", "sources": "texts", "unlabelled": "film-reviews"},
        {"template": "It was {mask}. {text}", "verbalizer": "soft", "model": "frozen"},
    ],
    ids=["weighted", "soft"],
)
def test_from_rows_to_a_saved_run(options: dict[str, Any], tmp_path: Path) -> None:
    if "sources" in options:
        options = {**options, "sources": (options["sources"],), "max_unlabelled": 60, "wrapping": "{term}"}
        options |= {"tau_a": 0.4}
    else:
        file = tmp_path / "terms.txt"
        file.write_text(REVIEWS)
        options = {**options, "sources": ("file",), "terms": str(file), "filter": False}
    run = cuelight.tune("sciprompt", backbone="minilm-mlm", data="film-reviews", shots=4, max_test=24, steps=3,
                        max_length=40, device="cpu", **options)  # fmt: skip
    texts = ["A fine film.", "Dull, long and loud."]
    expected = run.prompt.predict(texts, probabilities=True)
    folder = run.prompt.save(tmp_path / "saved")
    again = cuelight.load(folder, device="cpu")
    assert again.predict(texts, probabilities=True) == expected
    method = run.prompt.method
    assert isinstance(method, SciPrompt) and isinstance(again.method, SciPrompt)
    assert (folder / "prompt.txt").read_text() == method.text == lines(("negative", "positive"), method.terms)
    assert sum(map(len, method.terms)) > 0 and again.method.words == method.words
    card = json.loads((folder / "cuelight.json").read_text())
    assert "prompt.txt" in card["files"]


def test_zero_shot_learns_nothing_and_goes_on_from_a_saved_list(tmp_path: Path) -> None:
    """On T5, whose slot is its sentinel; the terms of one run are the list of the next."""
    file = tmp_path / "terms.txt"
    file.write_text(REVIEWS)
    shared: dict[str, Any] = {"backbone": "flan-t5-small", "data": "film-reviews", "shots": 4, "max_test": 24}
    shared |= {"template": "{text} It was {mask}.", "max_length": 40, "device": "cpu", "sources": ("file",)}
    shared |= {"model": "frozen", "weights": "fixed", "filter": False}
    run = cuelight.tune("sciprompt", **shared, terms=str(file), output=tmp_path / "run")
    assert run.trainable == 0 and run.training is None
    assert [len(listed) for listed in run.prompt.method.terms] == [3, 3]  # type: ignore[arg-type]
    again = cuelight.tune("sciprompt", **shared, terms=str(tmp_path / "run" / "prompt.txt"))
    assert again.metrics == run.metrics
    done = cuelight.tune("sciprompt", **shared, terms=str(file), output=tmp_path / "run")  # finished already
    assert done.metrics == run.metrics and done.prompt.method.text == run.prompt.method.text


def test_options_that_contradict_each_other_are_refused() -> None:
    for options, says in (
        ({"terms": "x.txt"}, "give a file together with --sources file"),
        ({"sources": ("file",)}, "give a file together with --sources file"),
        ({"wordnet": "x"}, "is read with --sources wordnet"),
        ({"wrapping": "x"}, "has no place for the term"),
        ({"sources": ("web",)}, "sources"),
    ):
        with pytest.raises(ConfigError, match=says):
            build(SciPromptConfig, options)
    method = made(verbalizer="soft", calibrate="contextual", expand=False)
    with pytest.raises(ConfigError, match="a soft verbalizer reads no words"):
        method.prepare(data_of(method), seed=0)


def test_the_command_line_knows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["tune", "sciprompt", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (
        "--sources",
        "--terms",
        "--tau-a",
        "--weights",
        "--unlabelled",
        "--no-expand",
        "--no-filter",
    ):
        assert option in shown
