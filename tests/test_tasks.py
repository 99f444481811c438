"""Text tasks: templates, label words, truncation, answers as tokens, label lists, figures.

Tokenizers are those of the built-in backbones; where a model only has to be there, it is a tiny random one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.errors import ConfigError, CuelightError, DataError
from cuelight.methods.base import get_method
from cuelight.prompts.conditioning import Condition, choice_scores
from cuelight.prompts.initial import initial_prompt, vocabulary_sample
from cuelight.tasks import text
from cuelight.tasks.metrics import (
    calibration_error,
    classification_metrics,
    generation_metrics,
    multilabel_metrics,
)
from cuelight.tasks.template import check_template, default_template, render
from cuelight.tasks.text import Item, Predictions, TaskConfig, TextTask

CAUSAL = ["minimind2-26m", "smollm2-135m", "gemma3-270m"]
WORDS = [
    "positive",
    "negative",
    "world news",
    "Sci/Tech",
    "entailment",
    "not at all",
    "toxic",
    "3",
    "très bien",
]


@cache
def real(name: str) -> Backbone:
    return load_backbone(name, device="cpu", progress=False)


@cache
def masked() -> Backbone:
    """A masked LM with MiniLM's tokenizer and a tiny random model: only places and words matter."""
    tokenizer = real("minilm-l6").tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(tokenizer), **shape))
    return Backbone("tiny-bert", model, kind="masked", tokenizer=tokenizer)


def host(name: str) -> Backbone:
    return masked() if name == "masked" else real(name)


def task(
    name: str, kind: Any = "classification", classes: Any = ("positive", "negative"), **more: Any
) -> TextTask:
    own = {k: more.pop(k) for k in ("pairs", "frequencies") if k in more}
    return TextTask(host(name), kind, classes, config=TaskConfig.model_validate(more), **own)


def refused(call: Callable[[], Any], kind: type[CuelightError] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---- templates
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "kind", "pairs", "says"),
    [
        ("Review: {txt}", "causal", False, "'{txt}' is no field"),
        ("Review: {}", "causal", False, "'{}' is no field"),
        ("{text.__class__}", "causal", False, "is no field"),
        ("{text[0]}", "causal", False, "is no field"),
        ("Review: {text", "causal", False, "literal braces"),
        ("Review: text}", "causal", False, "literal braces"),
        ("Review:", "causal", False, "has no {text}"),
        ("{options:d}", "causal", False, "takes no format"),
        ("{text!r}", "causal", False, "takes no format"),
        ("{text} {text_b}", "causal", False, "one text column"),
        ("{text}", "masked", False, "exactly one {mask}"),
        ("{mask} {text} {mask}", "masked", False, "exactly one {mask}"),
        ("{mask} {text}", "causal", False, "put {mask} last"),
        ("{text} {mask} {mask}", "causal", False, "put {mask} last"),
        ("{mask} {text} {mask}", "seq2seq", False, "{mask} twice"),
        ("{text} {mask}", "text-encoder", False, "{mask} is for language models"),
        ("{soft*0} {text}", "causal", False, "give words or a number"),
        ("{soft*2:so} {text}", "causal", False, "give words or a number"),
        ("{soft.a:so} {text} {soft.a:then}", "causal", False, "two starts"),
        ("{# jinja #}{{ text }", "causal", False, "Jinja line 1"),
        ("{# jinja #}{{ txt }}", "causal", False, "'{txt}' is no field"),
        ("@/no/such/file", "causal", False, "can not be read"),
    ],
)
def test_wrong_templates_are_refused_in_one_line(template: str, kind: Any, pairs: bool, says: str) -> None:
    line = refused(lambda: check_template(template, kind, pairs))
    assert line.startswith("template: ")
    assert says in line


def test_templates_of_a_shell_and_braces_in_texts() -> None:
    assert check_template(r"A: {text}\nB:", "causal", False) == "A: {text}\nB:"
    assert check_template("{text} is ", "causal", False) == "{text} is"  # the answer brings its own space
    assert check_template("{text} {mask} ", "masked", False) == "{text} {mask} "
    assert (
        check_template("{text} is {mask} ", "causal", False) == "{text} is"
    )  # it answers behind the text anyway
    assert check_template("{mask}: {text}", "seq2seq", False) == "{mask}: {text}"
    assert check_template("{text} of {who}", "causal", False, ("who",)) == "{text} of {who}"
    assert render("{{x}} {text}", {"text": "a {b} {"}) == "{x} a {b} {"


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "masked", "text-encoder"])
@pytest.mark.parametrize("what", ["classification", "multilabel", "generation"])
@pytest.mark.parametrize("pairs", [False, True])
def test_default_templates_pass_their_own_check(kind: Any, what: str, pairs: bool) -> None:
    template = default_template(kind, what, pairs)
    assert check_template(template, kind, pairs) == template
    assert ("{text_b}" in template) == pairs


def test_options_are_the_label_words() -> None:
    t = task("minimind2-26m", template="{text} ({options})", label_words={"negative": "bad"})
    assert t.tokenizer.decode(t.encode([{"text": "Hm", "label": 0}])[0].text).endswith("Hm (positive, bad)")


# ---- truncation
# ------------------------------------------------------------------------------------------------

PIECES = st.text(st.sampled_from("ab é日😀.,;\n {}<>"), max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=PIECES, second=PIECES, times=st.integers(1, 40), other=st.integers(1, 40), room=st.integers(24, 60)
)
@pytest.mark.parametrize("name", ["flan-t5-small", "minimind2-26m", "masked"])
def test_truncation_never_touches_the_template(
    name: str, first: str, second: str, times: int, other: int, room: int
) -> None:
    mask = " {mask}" if name == "masked" else ""
    template = f"Q1: {{text}} Q2: {{text_b}} So the answer is:{mask}"
    t = task(name, pairs=True, template=template, max_length=room)
    row = {"text": first * times, "text_b": second * other, "label": 0}
    ids = t.encode([row])[0].text
    assert len(ids) <= room
    whole = t.tokenizer.decode(ids, skip_special_tokens=False).lower().replace(" ", "")
    for part in ("q1:", "q2:", "sotheansweris:"):
        assert part in whole
    if name == "masked":
        assert ids.count(t.tokenizer.mask_token_id) == 1
    if name == "flan-t5-small":
        assert ids[-1] == t.tokenizer.eos_token_id
    full = len(t._ids([t._render(row["text"], row["text_b"])])[0])
    assert t.truncated == int(full > room)
    if full > room:  # no more is cut than must be; joined pieces may shift the count by some tokens
        assert len(ids) >= room - 12


def test_both_texts_of_a_pair_are_cut_when_both_are_long() -> None:
    t = task("minimind2-26m", pairs=True, template="{text} | {text_b} |", max_length=40)
    ids = t.encode([{"text": "one " * 300, "text_b": "two " * 310, "label": 0}])[0].text
    said = t.tokenizer.decode(ids)
    assert abs(said.count("one") - said.count("two")) <= 2
    assert said.count("one") > 10


def test_what_is_kept_of_a_text_is_kept_as_written() -> None:
    t = task("flan-t5-small", template="{text} END", max_length=24)
    text = "Alpha  Beta (gamma) " * 30
    said = t.tokenizer.decode(t.encode([{"text": text, "label": 0}])[0].text, skip_special_tokens=True)
    assert said.endswith("END")
    assert " ".join(text.split()).startswith(said.removesuffix("END").strip())


def test_a_template_that_does_not_fit_is_refused() -> None:
    t = task("minimind2-26m", template="many words " * 20 + "{text}", max_length=16)
    assert "do not hold the template" in refused(lambda: t.encode([{"text": "a b c", "label": 0}]))


def test_an_empty_row_is_refused() -> None:
    t = task("minimind2-26m", template="{text}")
    assert "no tokens" in refused(lambda: t.encode([{"text": "", "label": 0}]), DataError)
    assert t.encode([]) == []


# ---- answers as tokens
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("template", ["Text: {text}\nLabel:", "{text}\nLabel:\n", "{text} ="])
def test_text_and_answer_are_tokenised_as_if_they_were_one(name: str, template: str) -> None:
    t = task(name, "generation", (), template=template)
    for word in WORDS:
        item = t.encode([{"text": "It was fine.", "targets": [word]}])[0]
        space = "" if template.endswith("\n") else " "
        joined = t.tokenizer(t._render("It was fine.", None) + space + word).input_ids
        assert item.text + item.answer == [*joined, t.tokenizer.eos_token_id], word


@pytest.mark.parametrize("name", ["smollm2-135m", "minimind2-26m"])
def test_chat_format_ends_where_the_answer_begins(name: str) -> None:
    t = task(name, chat=True, template="Is it good? {text}")
    item = t.encode([{"text": "Yes!", "label": 0}])[0]
    whole = t.tokenizer.decode(item.text)
    assert "Is it good? Yes!" in whole
    start = t.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Is it good? Yes!"}], add_generation_prompt=True, tokenize=False
    )
    assert t.tokenizer(start + "positive", add_special_tokens=False).input_ids == item.text + item.answer


def test_chat_needs_a_chat_format() -> None:
    assert "has no chat format" in refused(lambda: task("flan-t5-small", chat=True))


def test_an_encoder_decoder_s_answers_are_its_own_sentences() -> None:
    t = task("flan-t5-small", "generation", ())
    for word in WORDS:
        assert t.encode([{"text": "x", "targets": [word]}])[0].answer == t.tokenizer(word).input_ids


def test_nested_label_words_get_end_marks() -> None:
    end = real("minimind2-26m").tokenizer.eos_token_id
    plain = task("minimind2-26m", classes=("red", "blue"))
    assert all(end not in c for c in plain.choices)
    nested = task("minimind2-26m", classes=("red", "red wine", "blue"))
    assert all(c[-1] == end for c in nested.choices)
    assert nested.choices[1][: len(nested.choices[0]) - 1] == nested.choices[0][:-1]
    assert all(c[-1] == 1 for c in task("flan-t5-small").choices)  # T5 always says when it has done


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "masked"])
def test_label_words_that_can_not_be_told_apart_are_refused(name: str) -> None:
    line = refused(lambda: task(name, classes=("a_b", "a-b")))
    assert line == "label_words: 'a b' stands for 2 classes; give each class a word of its own"
    assert "is no class (did you mean" in refused(lambda: task(name, label_words={"positve": "x"}))
    assert "empty word" in refused(lambda: task(name, label_words={"positive": " "}))
    if name != "minimind2-26m":  # tokenizers that fold case or space
        words = (
            {"positive": "Good", "negative": "good"}
            if name == "masked"
            else {"positive": "a  b", "negative": "a b"}
        )
        assert "are the same tokens" in refused(lambda: task(name, label_words=words))


def test_a_masked_model_takes_words_of_several_tokens() -> None:
    """As many masks as tokens; a row makes room for them."""
    long = task("masked", classes=("antidisestablishmentarian", "b"))
    tokens = len(long.choices[0])
    assert tokens > 1
    assert long.max_length == min(256, long.backbone.max_positions - tokens + 1)
    method = get_method("full-finetuning")(long.backbone, long, get_method("full-finetuning").Config())
    batch = long.collate(long.encode([{"text": "x y", "label": 0}, {"text": "x", "label": 1}]))
    assert torch.isfinite(method.loss(batch))
    assert method.predict(batch).probabilities.shape == (2, 2)


# ---- label lists
# -----------------------------------------------------------------------------------------------

SETS = ("red", "red wine", "blue", "none")


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
@pytest.mark.parametrize("classes", [SETS, ("a", "b", "c"), ("only",), ("no label", "none", "joy")])
def test_every_label_set_and_nothing_else_can_come_out(name: str, classes: tuple[str, ...]) -> None:
    t = task(name, "multilabel", classes)
    for size in range(len(classes) + 1):
        for chosen in itertools.permutations(range(len(classes)), size):
            ids = t._label_list(chosen)
            for step, token in enumerate(ids):
                assert token in t._allowed(ids[:step]), (chosen, step)
            assert t._read_labels(ids[:-1]) == [c for k, c in enumerate(classes) if k in chosen]
    # Whatever a model says under the trie is a label set: follow it at random to its end.
    draw = torch.Generator().manual_seed(0)
    longest = 0
    for _ in range(150):
        ids = []
        while not ids or ids[-1] != t.tokenizer.eos_token_id:
            options = t._allowed(ids)
            assert options
            ids.append(options[int(torch.randint(len(options), (1,), generator=draw))])
        said, rest = t._split_labels(ids[:-1])
        assert len(set(said)) == len(said)
        assert rest == t._none or rest in t._pieces
        assert (rest == t._none) == (not t._read_labels(ids[:-1]))
        longest = max(longest, len(ids))
    assert longest <= max(
        sum(len(c) + 1 for c in t._pieces), len(t._none) + 1
    )  # what predict gives it room for


def test_labels_stand_by_frequency() -> None:
    t = task("minimind2-26m", "multilabel", ("a", "b", "c"), frequencies={"a": 1, "b": 9, "c": 4})
    assert t.answer_ids(Item([], [], labels=[1, 1, 1])) == t._label_list([1, 2, 0])
    assert t.answer_ids(Item([], [], labels=[0, 0, 0])) == [*t._none, t.tokenizer.eos_token_id]


def test_a_label_word_that_reads_as_a_list_is_refused() -> None:
    assert "without ';'" in refused(lambda: task("minimind2-26m", "multilabel", ("a", "b", "a; b")))


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
@pytest.mark.parametrize("beams", [1, 2])
def test_predicted_label_lists_are_label_sets(name: str, beams: int) -> None:
    t = task(name, "multilabel", ("joy", "anger", "surprise"), num_beams=beams)
    items = t.encode(
        [{"text": "What a day!", "labels": [1, 0, 0]}, {"text": "I hate this.", "labels": [0, 1, 0]}]
    )
    answers = t.predict(t.collate(items), Condition()).answers
    assert all(set(a) <= {"joy", "anger", "surprise"} and len(set(a)) == len(a) for a in answers)
    assert set(t.metrics(Predictions(answers), items)) == {
        "micro_f1",
        "macro_f1",
        "subset_accuracy",
        "labels_per_row",
    }
    free = task(name, "multilabel", ("joy", "anger", "surprise"), num_beams=beams, decoding="free")
    answers = free.predict(free.collate(items), Condition()).answers
    assert all(set(a) <= {"joy", "anger", "surprise"} for a in answers)


@pytest.mark.parametrize(
    ("said", "labels"),
    [
        ("joy; anger", ["joy", "anger"]),
        ("anger;joy", ["joy", "anger"]),
        ("joyful; surprise", ["surprise"]),  # one name inside another word is no hit
        ("joy; joy", ["joy"]),
        ("rage", []),
        ("", []),
    ],
)
def test_free_answers_count_by_whole_names(
    said: str, labels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    t = task("minimind2-26m", "multilabel", ("joy", "anger", "surprise"), decoding="free")
    ids = t.tokenizer(said, add_special_tokens=False).input_ids
    monkeypatch.setattr(text, "generate", lambda *_, **options: [ids] if "allowed" not in options else None)
    items = t.encode([{"text": "What a day!", "labels": [1, 0, 0]}])
    assert t.predict(t.collate(items), Condition()).answers == [labels]


def test_calibration_error_against_its_definition() -> None:
    chances = np.array([0.1, 0.1, 0.9, 0.9, 0.55, 1.0])
    happened = np.array([0, 1, 1, 1, 0, 1])
    # bins: two at 0.1 (half happened), three at 0.9 to 1 (all), one at 0.55 (none)
    wanted = 2 / 6 * abs(0.5 - 0.1) + 3 / 6 * abs(1 - 2.8 / 3) + 1 / 6 * abs(0 - 0.55)
    assert calibration_error(chances, happened) == pytest.approx(wanted)
    assert calibration_error(happened.astype(float), happened) == 0


# ---- masked models
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["{text} It was {mask}.", "{mask} news: {text}", "A {mask} story. {text}"]
)
@pytest.mark.parametrize("slots", [0, 5])
def test_the_state_at_the_mask_is_what_is_read(template: str, slots: int) -> None:
    """Overwrite one state in front of the head: only the mask's decides."""
    t = task("masked", template=template, label_words={"positive": "great", "negative": "bad"})
    texts = ["A short one.", "A much longer text about nothing at all, with [MASK] in it."]
    items = t.encode([{"text": text, "label": 0} for text in texts])
    assert all(i.text.count(t.tokenizer.mask_token_id) == 1 for i in items)
    batch, model = t.collate(items), t.backbone.model
    condition = Condition(prompt=torch.randn(slots, 16)) if slots else Condition()
    sentinel = torch.linspace(-2, 2, 16)
    head = model.get_output_embeddings()
    words = [c[0] for c in t.choices]
    for offset in (0, 1):

        def put(_: Any, __: Any, output: Any, offset: int = offset) -> Any:
            for k, item in enumerate(items):
                output[0][k, slots + item.text.index(t.tokenizer.mask_token_id) + offset] = sentinel
            return output

        before = choice_scores(t.backbone, batch, condition, t.choices).detach()
        handle = model.bert.encoder.register_forward_hook(
            lambda m, a, out: put(m, a, [out.last_hidden_state]) and out
        )
        with torch.no_grad():
            after = choice_scores(t.backbone, batch, condition, t.choices)
            wanted = head(model.cls.predictions.transform(sentinel))[words]
        handle.remove()
        if offset == 0:
            torch.testing.assert_close(after, wanted.expand(2, -1))
        else:
            torch.testing.assert_close(after, before)


def test_a_masked_model_learns_its_word_at_the_mask() -> None:
    t = task("masked", label_words={"positive": "great", "negative": "bad"})
    batch = t.collate(t.encode([{"text": "Fine", "label": 0}, {"text": "A bit longer, poor", "label": 1}]))
    assert batch.answer.tolist() == [[t.choices[0][0]], [t.choices[1][0]]]
    prompt = torch.randn(4, 16, requires_grad=True)
    for objective in ("answer", "choices"):
        t.config = TaskConfig.model_validate({"objective": objective})
        loss = t.loss(batch, Condition(prompt=prompt))
        (gradient,) = torch.autograd.grad(loss, prompt)
        assert loss.isfinite()
        assert gradient.abs().sum() > 0


# ---- batches, losses, answers
# ----------------------------------------------------------------------------------


def test_collate_pads_under_a_mask() -> None:
    t = task("minimind2-26m")
    items = t.encode([{"text": "one", "label": 0}, {"text": "two and three", "label": 1}])
    batch = t.collate(items)
    for k, item in enumerate(items):
        assert batch.text[k][batch.text_mask[k].bool()].tolist() == item.text
        assert batch.answer[k][batch.answer_mask[k].bool()].tolist() == item.answer
    assert batch.extra["label"].tolist() == [0, 1]
    unknown = t.encode([{"text": "no label"}], answers=False)
    assert t.collate(unknown).answer is None
    assert t.collate([*unknown, *items]).answer.shape[0] == 3


def test_losses_agree_where_they_must() -> None:
    """Among one-token choices both objectives see the same scores; only the normaliser differs."""
    t = task("smollm2-135m", label_words={"positive": "good", "negative": "bad"})
    assert [len(c) for c in t.choices] == [1, 1]
    batch = t.collate(t.encode([{"text": "Lovely", "label": 0}, {"text": "Awful", "label": 1}]))
    with torch.no_grad():
        over_all = t.loss(batch, Condition())
        scores = choice_scores(t.backbone, batch, Condition(), t.choices)
        t.config = TaskConfig.model_validate({"objective": "choices"})
        among = t.loss(batch, Condition())
    assert among < over_all
    torch.testing.assert_close(among, torch.nn.functional.cross_entropy(scores, batch.extra["label"]))


def test_one_class_is_always_the_answer() -> None:
    t = task("minimind2-26m", classes=("only",))
    items = t.encode([{"text": "x", "label": 0}])
    found = t.predict(t.collate(items), Condition())
    assert found.answers == ["only"]
    assert found.probabilities.tolist() == [[1.0]]
    assert t.metrics(found, items) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_scores_become_answers() -> None:
    t = task("minimind2-26m", classes=("a", "b", "c"))
    found = t.from_scores(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]))
    assert found.answers == ["b", "a"]
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(2))
    several = task("minimind2-26m", "multilabel", ("a", "b", "c"))
    assert several.from_scores(torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])).answers == [
        ["a", "c"],
        [],
    ]


def test_predictions_go_back_to_their_places() -> None:
    parts = [Predictions(["c", "a"], torch.tensor([[2.0], [0.0]])), Predictions(["b"], torch.tensor([[1.0]]))]
    joined = Predictions.joined(parts, [2, 0, 1])
    assert joined.answers == ["a", "b", "c"]
    assert joined.probabilities.tolist() == [[0.0], [1.0], [2.0]]
    assert Predictions.joined([Predictions(["x"])], [0]).probabilities is None


def test_a_task_is_built_again_from_what_it_saves() -> None:
    t = task("minimind2-26m", "multilabel", ("a", "b"), template=r"{text}\n=", frequencies={"a": 2, "b": 5})
    saved = t.to_dict()
    again = TextTask(
        t.backbone,
        saved["kind"],
        saved["classes"],
        pairs=saved["pairs"],
        config=TaskConfig.model_validate(saved["config"]),
        frequencies=saved["frequencies"],
    )
    assert again.to_dict() == saved
    row = {"text": "x", "labels": [1, 1]}
    assert again.encode([row]) == t.encode([row])


# ---- figures
# ---------------------------------------------------------------------------------------------------


def test_classification_figures_by_hand() -> None:
    # class 0: precision 1/2, recall 1/1, F1 2/3; class 1: precision 1, recall 2/3, F1 4/5
    found = classification_metrics([0, 0, 1, 1], [0, 1, 1, 1], 2)
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["matthews"] == pytest.approx((1 * 2 - 1 * 0) / (2 * 1 * 3 * 2) ** 0.5)
    assert "matthews" not in classification_metrics([0, 1, 2], [0, 1, 2], 3)


def test_multilabel_figures_by_hand() -> None:
    # true positives 2, false positives 1, false negatives 1; F1 by class: 1, 0, 2/3 of one hit and one miss
    found = multilabel_metrics([[1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 0, 1]])
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["macro_f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert found["subset_accuracy"] == pytest.approx(0.5)


def test_generation_figures_by_hand() -> None:
    perfect = generation_metrics(["The cat sat down", "yes"], [["a dog", " the cat  SAT down"], ["yes"]])
    assert perfect["exact_match"] == 1.0
    assert perfect["rouge_l"] == 1.0
    half = generation_metrics(["a b c d"], [["a b x y"]])
    assert half["rouge_l"] == pytest.approx(0.5)  # 2 of 4 on either side
    assert half["exact_match"] == 0.0
    same = generation_metrics(["the quick brown fox jumps"], [["the quick brown fox jumps"]])
    assert same["bleu"] == pytest.approx(1.0)
    assert same["chrf"] == pytest.approx(1.0)
    assert all(0 <= v <= 1 for v in generation_metrics(["", "x"], [["a"], ["b", "c"]]).values())


# ---- where prompts start
# ---------------------------------------------------------------------------------------


def test_prompts_start_where_they_are_told_to() -> None:
    t = task("gemma3-270m")
    model = t.backbone
    ids = t.tokenizer("good bad", add_special_tokens=False).input_ids
    start = initial_prompt(model, 2 * len(ids) + 1, "text", text="good bad")
    torch.testing.assert_close(
        start, model.embed(torch.tensor([*ids, *ids, ids[0]])).detach()
    )  # scaled, as read
    words = initial_prompt(model, 3, "labels", labels=["good"], seed=1)
    first = t.tokenizer(" good", add_special_tokens=False).input_ids
    torch.testing.assert_close(words[: len(first)], model.embed(torch.tensor(first)).detach())
    assert torch.equal(
        initial_prompt(model, 4, "vocabulary", seed=3), initial_prompt(model, 4, "vocabulary", seed=3)
    )
    assert not torch.equal(
        initial_prompt(model, 4, "vocabulary"), initial_prompt(model, 4, "vocabulary", seed=3)
    )
    noise = initial_prompt(model, 50, "normal")
    assert noise.shape == (50, model.tower.width)
    assert float(noise.std()) == pytest.approx(float(model.embed(torch.arange(5000)).std()), rel=0.1)
    assert "init_text: is empty" in refused(lambda: initial_prompt(model, 4, "text", text=""))


@pytest.mark.parametrize("name", ["minilm-l6", "gemma3-270m"])
def test_sampled_words_are_words(name: str) -> None:
    tokenizer = real(name).tokenizer
    drawn = [tokenizer.convert_ids_to_tokens(i) for i in vocabulary_sample(real(name), 400)]
    assert not [token for token in drawn if "unused" in token]
    assert not set(drawn) & set(tokenizer.all_special_tokens)


def test_a_slow_tokenizer_cuts_by_proportion() -> None:
    t = task("minimind2-26m", template="{text} |", max_length=12)
    fast = t.tokenizer

    class Slow(SimpleNamespace):
        is_fast = False

        def __call__(self, *args: Any, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return fast(*args, **options)

    t.tokenizer = Slow()
    assert len(t.encode([{"text": "word " * 100}], answers=False)[0].text) <= 12
