"""Templates with slots and soft words, verbalizers, calibration, and the cloze method.

Tokenizers and models are the built-in ones, except where it says that weights are random: there only shapes and places
matter.
"""

from __future__ import annotations

import itertools
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers as hf
from torch.nn.functional import cross_entropy, log_softmax

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.config import build
from cuelight.errors import ConfigError, DataError
from cuelight.methods.base import Data, get_method
from cuelight.methods.cloze import Cloze
from cuelight.prompts.conditioning import Condition, choice_scores, slot
from cuelight.tasks.template import check_template, columns_of, render, soft_parts, split_marks
from cuelight.tasks.text import TaskConfig, TextTask
from cuelight.tasks.verbalizers import (
    ManualVerbalizer,
    PrototypeVerbalizer,
    SoftVerbalizer,
    WeightedVerbalizer,
    combined,
    pieces_of,
    word_scores,
)

CLASSES = ("negative", "positive")
WORDS = {"negative": "terrible|bad", "positive": "great|good|very fine"}
ROWS = [
    {"text": "A fine film, and a moving one.", "label": 1},
    {"text": "Dull.", "label": 0},
    {"text": "The plot makes no sense at all, not for a minute.", "label": 0},
]
PEOPLE = ("Ann", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ida", "Jo")
TEMPLATES = {
    "words": "{text} It was {mask}",
    "soft": "{soft*3} {text} {mask}",
    "mixed": "{soft.a:Well} {text} {soft:It was} all {soft.a} {mask}",
}
VERBALIZERS = ("manual", "weighted", "soft", "prototypical")


@cache
def real(name: str) -> Backbone:
    """A built-in model, or with random weights and MiniLM's tokenizer a BERT of two layers."""
    if name != "bert":
        return load_backbone(name, device="cpu", progress=False)
    tokenizer = load_backbone("minilm-l6", device="cpu", progress=False).tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = hf.BertConfig(vocab_size=len(tokenizer), **shape, initializer_range=0.3)
    return Backbone("tiny-bert", hf.BertForMaskedLM(config), kind="masked", tokenizer=tokenizer)


def cloze(name: str, template: str, words: Any = WORDS, **options: Any) -> Cloze:
    host = real(name)
    config = TaskConfig(template=template, label_words=words, max_length=48)
    task = TextTask(host, "classification", CLASSES, config=config)
    kind = get_method("cloze")
    made = kind(host, task, build(kind.Config, {"model": "frozen", **options}))
    assert isinstance(made, Cloze)
    return made.eval()


def batch_of(method: Cloze, rows: Any = ROWS) -> Any:
    return method.task.collate(method.task.encode(rows))


# ---- templates -----------------------------------------------------------------------------------------------


def test_soft_parts_and_where_they_stand() -> None:
    template = "{soft.a:go} {text} {soft*3}, {soft.a} {soft}"
    assert [(p.words, p.count) for p in soft_parts(template)] == [("go", 1), ("", 3), ("", 1)]
    plain, spans = split_marks(render(template, {"text": "x"}, marks=True))
    assert plain == "go x ., go ." == render(template, {"text": "x"})
    assert [(plain[s.start : s.end], s.part) for s in spans] == [("go", 0), (".", 1), ("go", 0), (".", 2)]


def test_jinja_as_promptsource_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "one.jinja"
    file.write_text(
        "{% if text|length > 3 %}Long: {% endif %}{{ text }} by {{ who }} ||| {{ answer_choices[label] }}\n"
    )
    assert columns_of(f"@{file}") == ("who",)
    task = TextTask(
        real("minimind2-26m"),
        "classification",
        CLASSES,
        config=TaskConfig(template=f"@{file}"),
        columns=("who",),
    )
    assert render(task.template, {"text": "a film", "who": "me"}) == "Long: a film by me"
    again = TextTask(real("minimind2-26m"), "classification", CLASSES, config=TaskConfig(template=task.template),
                     columns=("who",))  # fmt: skip
    file.unlink()  # a task is whole without the file
    assert again.to_dict() == task.to_dict()
    row = {"text": "a film", "who": "me", "label": 0}
    assert again.encode([row])[0].text == task.encode([row])[0].text


def test_jinja_whose_answer_stands_inside_an_if() -> None:
    jinja = (
        "{# jinja #}{% if label != 9 %}{{ ['Say', 'Tell'] | choice }}: {{ text }} |||{{ text }}{% endif %}"
    )
    assert render(jinja, {"text": "a film"}) == "Say: a film"
    assert columns_of("{# jinja #}{{ text }} ||| {{ answer }}") == ()
    with pytest.raises(ConfigError, match="template: Jinja line 1: Unexpected end of template"):
        columns_of("{# jinja #}{% if text %}{{ text }}")
    with pytest.raises(ConfigError, match=r"Jinja can not be filled with a row \(.*has no element 5"):
        render("{# jinja #}{{ ['a'][5] }}{{ text }}", {"text": "a film"})


def test_promptsource_templates_are_read() -> None:
    file = Path(os.environ.get("CUELIGHT_DATA", "")) / "prompts/promptsource_templates.parquet"
    if not file.is_file():
        pytest.skip("CUELIGHT_DATA does not hold PromptSource's templates")
    for jinja in pd.read_parquet(file).jinja[::8]:
        check_template("{# jinja #}" + jinja, "seq2seq", True, None)


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "bert"])
def test_soft_words_take_the_place_of_their_tokens(name: str) -> None:
    """The ids are those of the same template in words, with slots where soft words stand."""
    soft = cloze(name, "{soft:It was} {text} {soft:so very} {mask}").task
    words = cloze(name, "It was {text} so very {mask}").task
    for a, b in zip(soft.encode(ROWS), words.encode(ROWS), strict=True):
        assert len(a.text) == len(b.text)
        slots = [k for k, token in enumerate(a.text) if token < 0]
        assert [a.text[k] for k in slots] == [-1, -2, -3, -4]
        assert [b.text[k] for k in slots] == soft.soft_start
        assert [t for t in a.text if t >= 0] == [t for k, t in enumerate(b.text) if k not in slots]


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "bert"])
def test_a_mixed_template_starts_as_the_same_in_words(name: str) -> None:
    soft, words = (cloze(name, t) for t in ("{text} {soft:It was} {mask}", "{text} It was {mask}"))
    with torch.no_grad():
        torch.testing.assert_close(soft.scores(batch_of(soft)), words.scores(batch_of(words)))


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "bert"])
def test_truncation_never_takes_the_slot_or_soft_words(name: str) -> None:
    method = cloze(name, "{soft*2} {text} {soft:It was} {mask}")
    long = [{"text": "word " * 300, "label": 0}]
    (item,) = method.task.encode(long)
    assert len(item.text) <= 48
    assert [t for t in item.text if t < 0] == [-1, -2, -3, -4]
    if name == "bert":
        assert item.text.count(method.backbone.tokenizer.mask_token_id) == 1
    assert torch.isfinite(method.scores(batch_of(method, long))).all()


def test_t5_fills_its_sentinel() -> None:
    task = cloze("flan-t5-small", "{text} It was {mask}.").task
    sentinel = task.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    (item,) = task.encode(ROWS[:1])
    assert item.text.count(sentinel) == 1
    assert task.lead == [sentinel]
    text = "<extra_id_0> is what a text may say"
    assert task.encode([{"text": text, "label": 0}])[0].text.count(sentinel) == 1
    host = task.backbone
    with torch.no_grad():
        found = choice_scores(host, task.collate([item]), Condition(), [[5], [9]])
        out = host.model(
            input_ids=torch.tensor([item.text]),
            decoder_input_ids=torch.tensor([[host.model.config.decoder_start_token_id, sentinel]]),
        ).logits[0, 1, [5, 9]]
    torch.testing.assert_close(found[0], out)


def test_columns_of_the_data_in_a_template(tmp_path: Path) -> None:
    file = tmp_path / "relations.csv"
    lines = [
        f"{a} works at {b},{a},{b},{k % 2}"
        for k, (a, b) in enumerate(itertools.product(PEOPLE, ("Acme", "Bix")))
    ]
    file.write_text("text,who,where,label\n" + "\n".join(lines) + "\n")
    run = cuelight.tune("cloze", backbone=real("minimind2-26m"), data=str(file), model="frozen",
                        template="{text}. {who} is {where}'s")  # fmt: skip
    given = {"text": "Cy works at Cox", "who": "Cy", "where": "Cox"}
    assert run.prompt.predict([given])[0] in ("0", "1")
    with pytest.raises(DataError, match="give a dictionary with 'text', 'who', 'where'"):
        run.prompt.predict(["Cy works at Cox"])
    with pytest.raises(DataError, match="no column 'whom'"):
        cuelight.tune("cloze", backbone=real("minimind2-26m"), data=str(file), template="{text} {whom}")


def test_other_methods_say_that_they_do_not_learn_templates() -> None:
    host = real("minimind2-26m")
    for config, says in (
        (TaskConfig(template="{text} {soft:It was}"), "template: {soft} words are learned by"),
        (TaskConfig(label_words=WORDS), "takes one word a class"),
    ):
        task = TextTask(host, "classification", CLASSES, config=config)
        with pytest.raises(ConfigError, match=says):
            get_method("zero-shot")(host, task, get_method("zero-shot").Config())


# ---- the slot ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verbalizer", VERBALIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "bert"])
def test_every_verbalizer_reads_the_slot_and_nothing_else(name: str, template: str, verbalizer: str) -> None:
    """A sentinel in the last layer's states changes the scores where it stands at the slot, and only there."""
    words = {"negative": "bad", "positive": "good"}
    method = cloze(name, TEMPLATES[template], words, verbalizer=verbalizer, word_score="first")
    batch = batch_of(method, ROWS[:1])
    tower = method.backbone.towers.get("decoder", method.backbone.tower)
    length = 2 if tower.name == "decoder" else batch.text.shape[1]
    slot_at = length - 1
    if name == "bert":
        slot_at = batch.text[0].tolist().index(method.backbone.tokenizer.mask_token_id)
    place = -1

    def sentinel(_: Any, __: Any, out: Any) -> Any:
        states = out[0] if isinstance(out, tuple) else out
        if place >= 0:
            states = states.clone()
            states[:, place] = torch.linspace(-3, 3, states.shape[-1])
        return (states, *out[1:]) if isinstance(out, tuple) else states

    handle = tower.layers[-1].register_forward_hook(sentinel)
    try:
        with torch.no_grad():
            plain = method.scores(batch)
            moved = []
            for place in range(length):
                if not torch.equal(method.scores(batch), plain):
                    moved.append(place)
    finally:
        handle.remove()
    assert moved == [slot_at]


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "bert"])
def test_the_slot_is_what_the_head_reads(name: str) -> None:
    """Its state times the head's rows is the score, T5's scaling and BERT's transform included."""
    method = cloze(name, TEMPLATES["mixed"])
    ids = [5, 9, 50]
    with torch.no_grad():
        states, scores = slot(method.backbone, batch_of(method), method.condition(batch_of(method)), ids)
        head = method.backbone.model.get_output_embeddings()
        expected = states @ head.weight[ids].T
        if head.bias is not None:
            expected = expected + head.bias[ids]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


# ---- verbalizers (random scores: only the algebra is tested) -------------------------------------------------


def scores_of(words: int, rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, words, generator=torch.Generator().manual_seed(1)) * 3


def test_one_word_a_class_is_the_softmax_of_its_scores() -> None:
    words, truth = scores_of(3), torch.tensor([0, 2, 1, 1])
    found = ManualVerbalizer([1, 1, 1])(words)
    torch.testing.assert_close(found, words.log_softmax(-1))
    torch.testing.assert_close(cross_entropy(found, truth), cross_entropy(words, truth))


def test_several_words_by_their_formulas() -> None:
    words = scores_of(5)
    p = words.softmax(-1)
    expected = {
        "mean": torch.stack([(p[:, :2] + 1e-15).log().mean(-1), (p[:, 2:] + 1e-15).log().mean(-1)], -1),
        "sum": torch.stack([p[:, :2].sum(-1), p[:, 2:].sum(-1)], -1).log(),
        "max": torch.stack([p[:, :2].amax(-1), p[:, 2:].amax(-1)], -1).log(),
    }
    for how, wanted in expected.items():
        torch.testing.assert_close(ManualVerbalizer([2, 3], how)(words), wanted)  # type: ignore[arg-type]


def test_learned_weights_start_equal_and_sum_to_one() -> None:
    words = scores_of(5)
    weighted = WeightedVerbalizer([2, 3])
    torch.testing.assert_close(weighted(words), ManualVerbalizer([2, 3])(words))
    uneven = WeightedVerbalizer([2, 3], torch.tensor([1.0, 0.5, 1.0, 0.6, 0.7]))
    weights = uneven.weights()
    torch.testing.assert_close(weights[:2].sum() + weights[2:].sum(), torch.tensor(2.0))
    assert float((weights[0] / weights[1]).detach()) == pytest.approx(torch.e**0.5, rel=1e-5)
    uneven.drop(torch.tensor([False, True, True, True, False]))
    assert uneven.used.tolist() == [True, False, True, False, True]  # the first word of a class stays
    assert uneven.weights()[[1, 3]].tolist() == [0, 0]
    torch.testing.assert_close(uneven(words)[:, 0], uneven.log_probabilities(words)[:, 0])


def test_calibration_takes_out_what_is_said_anyway() -> None:
    words = scores_of(4, 1)
    verbalizer = ManualVerbalizer([2, 2])
    verbalizer.calibrate(words[0])
    torch.testing.assert_close(verbalizer.log_probabilities(words).exp(), torch.full((1, 4), 0.25))
    assert float(verbalizer(words).diff().abs()) < 1e-6
    single = ManualVerbalizer([1, 1, 1, 1])
    single.calibrate(scores_of(4)[2])
    z = log_softmax(words, -1) - scores_of(4)[2].log_softmax(-1)
    torch.testing.assert_close(single(words), z.log_softmax(-1))


def test_scores_of_words_from_their_pieces() -> None:
    words = [[7, 3], [3], [9, 7, 1]]
    assert pieces_of(words) == [7, 3, 9, 1]
    table = torch.tensor([[1.0, 5.0, 2.0, -6.0]])
    assert word_scores(table, words, "first").tolist() == [[1, 5, 2]]
    assert word_scores(table, words, "max").tolist() == [[5, 5, 2]]
    assert word_scores(table, words, "mean").tolist() == [[3, 5, -1]]


def test_prototypes_learn_and_several_verbalizers_are_averaged_on_one_scale() -> None:
    torch.manual_seed(0)
    centres = torch.randn(3, 12) * 3
    labels = torch.arange(30) % 3
    states = centres[labels] + torch.randn(30, 12)
    verbalizer = PrototypeVerbalizer(12, 3, 8)
    assert (verbalizer.map.numel(), verbalizer.prototypes.numel()) == (8 * 12, 3 * 8)
    optimizer = torch.optim.Adam(verbalizer.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        verbalizer.contrast(states, labels).backward()
        optimizer.step()
    with torch.no_grad():
        assert (verbalizer(states).argmax(-1) == labels).float().mean() > 0.95
        one, other = scores_of(3), scores_of(3) * 100 + 7
        torch.testing.assert_close(combined([one, other]), combined([one]), rtol=1e-4, atol=1e-4)


def test_words_that_begin_alike_are_refused_where_they_would_score_alike() -> None:
    words = {"negative": "very bad", "positive": "very good"}
    with pytest.raises(ConfigError, match="'very bad' and 'very good' begin with the same token"):
        cloze("bert", "{text} {mask}", words, word_score="first")
    assert cloze("bert", "{text} {mask}", words, word_score="mean")


@pytest.mark.parametrize("name", ["minimind2-26m", "bert"])
def test_one_token_words_score_alike_by_likelihood_and_at_the_slot(name: str) -> None:
    words = {"negative": "no", "positive": "good"}  # a token each in both
    exact, first = (cloze(name, "{text} It was {mask}", words, word_score=how) for how in ("exact", "first"))
    with torch.no_grad():
        a, b = exact.scores(batch_of(exact)), first.scores(batch_of(first))
    torch.testing.assert_close(a, b)


# ---- learning ------------------------------------------------------------------------------------------------


def test_only_soft_words_and_the_verbalizer_learn_in_a_frozen_model() -> None:
    method = cloze("bert", "{text} {soft:It was} {mask}", verbalizer="soft").train()
    width = method.backbone.tower.width
    assert method.trainable == 2 * width + 2 * width
    before = {n: t.clone() for n, t in method.backbone.model.state_dict().items()}
    method.loss(batch_of(method)).backward()
    assert method.soft is not None and method.soft.grad is not None
    assert (method.soft.grad.abs().sum(1) > 0).all()
    assert float(method.verbalizer.rows.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert all(p.grad is None for p in method.backbone.model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in method.backbone.model.state_dict().items())


def test_a_soft_verbalizer_starts_at_the_words_rows() -> None:
    method = cloze("bert", "{text} {mask}", {"negative": "bad", "positive": "good|fine"}, verbalizer="soft")
    weight = method.backbone.model.get_output_embeddings().weight
    (bad,), (good, fine) = method.task.word_ids
    assert isinstance(method.verbalizer, SoftVerbalizer)
    torch.testing.assert_close(method.verbalizer.rows[0], weight[bad[0]])
    torch.testing.assert_close(method.verbalizer.rows[1], (weight[good[0]] + weight[fine[0]]) / 2)


@pytest.mark.parametrize("how", ["contextual", "domain", "data"])
def test_calibration_of_a_method(how: str) -> None:
    method = cloze("minimind2-26m", "{text} It was", calibrate=how, domain_text="A film.")
    items = method.task.encode(ROWS)
    method.prepare(Data(items, items), seed=0)
    assert float(method.verbalizer.prior.abs().sum()) > 0  # type: ignore[union-attr]
    if how == "domain":
        batch = method.task.collate(method.items(["A film."]))
        with torch.no_grad():
            flat = method.verbalizer.log_probabilities(method.says(batch))  # type: ignore[operator]
        torch.testing.assert_close(flat, torch.full_like(flat, flat[0, 0].item()), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="calibrate: a soft verbalizer reads no words"):
        cloze("minimind2-26m", "{text}", verbalizer="soft", calibrate=how).prepare(Data(items, items), 0)


def test_words_that_are_hardly_ever_said_are_dropped() -> None:
    """Hu et al.: of the likeliest half of the vocabulary a word stays whole; a class's first word stays anyway."""
    words = {"negative": "bad|awful|dull", "positive": "good|fine|great"}
    method = cloze("bert", "{text} It was {mask}", words, calibrate="data", drop=0.5)
    items = method.task.encode(ROWS)
    common = method.common(items)
    rare = (common < common.median()).tolist()
    method.prepare(Data(items, items), 0)
    expected = [k % 3 == 0 or not any(rare[t] for t in ids) for k, ids in enumerate(method.words)]
    assert method.verbalizer.used.tolist() == expected
    assert not all(expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "minimind2-26m",
            {"verbalizer": "weighted", "model": "frozen", "template": "{soft*2} {text} {mask}"},
        ),
        (
            "flan-t5-small",
            {"verbalizer": "soft", "model": "frozen", "template": "{text} {soft:It was} {mask}."},
        ),
        ("bert", {"verbalizer": "prototypical", "template": "{text} It was {mask}."}),
        ("bert", {"calibrate": "data", "template": "{text} It was {mask}.", "word_score": "mean"}),
    ],
)
def test_from_rows_to_a_saved_run(name: str, options: Any, tmp_path: Path) -> None:
    words = {"negative": "bad|awful", "positive": "good|great"}
    run = cuelight.tune("cloze", backbone=real(name), data="film-reviews", shots=8, max_test=24, max_validation=8, steps=4,
                        max_length=48, label_words=words, **options)  # fmt: skip
    texts = ["A fine film.", "Dull, long and loud."]
    expected = run.prompt.predict(texts, probabilities=True)
    assert (
        cuelight.load(run.prompt.save(tmp_path / "a"), backbone=real(name)).predict(texts, probabilities=True)
        == expected
    )
    card = json.loads((tmp_path / "a" / "cuelight.json").read_text())
    assert card["task"]["config"]["template"] == run.prompt.method.task.template
