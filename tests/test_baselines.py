"""The baselines learn what they say they learn, start where they say they start, and touch nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.config import build, field_names
from cuelight.data import DataSpec, read
from cuelight.errors import BackboneError, ConfigError
from cuelight.methods.base import Data, Method, all_cards, get_method, method_names
from cuelight.methods.baselines import in_context
from cuelight.prompts.conditioning import Condition, answer_logits, choice_scores, text_states
from cuelight.prompts.initial import vocabulary_sample
from cuelight.tasks import demonstrations
from cuelight.tasks.text import TaskConfig, TextTask
from cuelight.training import TrainConfig, train

CLASSES = ("bad", "good")
ROWS = [
    {"text": f"{word} number {k}", "label": k % 2}
    for k, word in enumerate(["dull", "funny", "too long", "a warm film", "weak", "moving", "flat", "great"])
]
BASELINES = [card.name for card in all_cards() if card.family == "baselines"]
LEARNERS = ["prompt-tuning", "prefix-tuning", "p-tuning", "lora", "full-finetuning"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def minimind() -> Backbone:
    return load_backbone("minimind2-26m", device="cpu", progress=False)


@pytest.fixture(scope="module")
def t5() -> Backbone:
    return load_backbone("flan-t5-small", device="cpu", progress=False)


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    return load_backbone("minilm-l6", device="cpu", progress=False)


def task_on(backbone: Backbone, **options: Any) -> TextTask:
    return TextTask(
        backbone, "classification", CLASSES, config=build(TaskConfig, {"max_length": 48, **options})
    )


def make(name: str, backbone: Backbone, task: TextTask | None = None, **options: Any) -> Method:
    kind = get_method(name)
    return kind(backbone, task or task_on(backbone), build(kind.Config, options))


def batch(method: Method) -> Any:
    return method.task.collate(method.task.encode(ROWS))


def scores(method: Method) -> torch.Tensor:
    found = method.eval().predict(batch(method)).probabilities
    assert found is not None
    return found


def weights(backbone: Backbone) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in backbone.model.state_dict().items()
    }


# sizes


def test_parameter_counts(minimind: Backbone, t5: Backbone) -> None:
    def count(name: str, backbone: Backbone, **options: Any) -> int:
        method = make(name, backbone, **options)
        assert sum(p.numel() for g in method.groups() for p in g.params.values()) == method.trainable
        return method.trainable

    assert count("zero-shot", minimind) == count("in-context", minimind) == 0
    assert count("prompt-tuning", minimind, length=7) == 7 * 512
    assert count("prompt-tuning", t5, length=7) == 7 * 512
    # keys and values of 2 heads of 64 in 8 layers; of 6 heads of 64 in T5's 8 decoder layers
    assert count("prefix-tuning", minimind, length=7) == 7 * 2 * 8 * 2 * 64
    assert count("prefix-tuning", t5, length=7) == 7 * 2 * 8 * 6 * 64
    table, h = 7 * 128, 16
    projected = table + (128 * h + h) + (h * 2 * 8 * 128 + 2 * 8 * 128)
    assert count("prefix-tuning", minimind, length=7, project=True, init="normal", hidden=h) == projected
    mlp = 7 * 512 + (512 * h + h) + (h * h + h) + (h * 512 + 512)
    assert count("p-tuning", minimind, length=7, hidden=h) == mlp
    # q (512 to 512) and v (512 to 128) in 8 layers; in T5, 512 to 384 in 8 + 2 x 8 attentions
    assert count("lora", minimind, rank=3) == 8 * 3 * ((512 + 512) + (512 + 128))
    assert count("lora", t5, rank=3) == 24 * 3 * 2 * (512 + 384)
    assert count("full-finetuning", minimind) == minimind.parameters
    assert make("linear-probe", minimind).trainable == 2 * (512 + 1)


# starts


def test_a_prefix_starts_as_real_words_in_the_context(minimind: Backbone) -> None:
    method = make("prefix-tuning", minimind, length=6, init_seed=3)
    words = vocabulary_sample(minimind, 6, 3)
    for item, found in zip(method.task.encode(ROWS), scores(method), strict=True):
        item.text = [*words, *item.text]
        expected = choice_scores(minimind, method.task.collate([item]), Condition(), method.task.choices)
        torch.testing.assert_close(found, expected[0].softmax(-1), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            direct = minimind.model(input_ids=torch.tensor([item.text])).logits[0, -1]
            scored, _ = answer_logits(minimind, method.task.collate([item]), Condition())
        torch.testing.assert_close(scored[0], direct, rtol=1e-4, atol=1e-4)


def test_a_prompt_starts_as_real_words_too(minimind: Backbone) -> None:
    text = "the film was"
    ids = minimind.tokenizer(text, add_special_tokens=False).input_ids
    options: dict[str, Any] = {"init": "text", "init_text": text, "length": len(ids)}
    method = make("prompt-tuning", minimind, **options)
    expected = choice_scores(
        minimind, batch(method), Condition(prompt=minimind.embed(torch.tensor(ids))), method.task.choices
    )
    torch.testing.assert_close(scores(method), expected.softmax(-1))
    assert torch.equal(method.state_dict()["prompt"], minimind.embed(torch.tensor(ids)))


@pytest.mark.parametrize("name", ["minimind", "t5"])
def test_a_lora_starts_as_the_frozen_model(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    before, modules = weights(backbone), [n for n, _ in backbone.model.named_modules()]
    frozen = scores(make("zero-shot", backbone))
    attributes = set(vars(backbone.model))
    lora = make("lora", backbone, rank=4)
    assert torch.equal(scores(lora), frozen)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter += 0.1
    assert not torch.allclose(scores(lora), frozen)
    assert weights(backbone) == before
    assert [n for n, _ in backbone.model.named_modules()] == modules
    assert set(vars(backbone.model)) == attributes
    assert torch.equal(scores(make("zero-shot", backbone)), frozen)
    del lora
    assert weights(backbone) == before
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_an_error_inside_leaves_the_backbone(minimind: Backbone) -> None:
    lora = make("lora", minimind)
    modules = [n for n, _ in minimind.model.named_modules()]
    with pytest.raises(AttributeError):
        lora.predict(None)  # type: ignore[arg-type]
    assert [n for n, _ in minimind.model.named_modules()] == modules


def test_two_loras_on_one_backbone(minimind: Backbone) -> None:
    def moved(seed: int, **options: Any) -> Method:
        method = make("lora", minimind, init_seed=seed, **options)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return method

    one = moved(1)
    alone = scores(one)
    two = moved(2, rank=2, targets="q_proj,down_proj")
    other = scores(two)
    assert torch.equal(scores(one), alone)
    assert not torch.allclose(alone, other)
    del one
    assert torch.equal(scores(two), other)
    data = Data(two.task.encode(ROWS), [])
    before = {n: t.clone() for n, t in make("lora", minimind, init_seed=1).state_dict().items()}
    still = make("lora", minimind, init_seed=1)
    train(two.stages(data), two, TrainConfig(steps=2, batch_size=4), device="cpu", progress=False)
    assert all(torch.equal(t, before[n]) for n, t in still.state_dict().items())


def test_lora_targets(minimind: Backbone) -> None:
    assert len(make("lora", minimind, targets="down_proj").state_dict()) == 16
    for wrong, says in (
        ("no_proj", "targets: .*no_proj"),
        ("embed_tokens", "is an embedding or the head"),
        ("lm_head", "is an embedding or the head"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            make("lora", minimind, targets=wrong)
        assert "\n" not in str(caught.value)
        assert not [m for m in minimind.model.modules() if "lora" in type(m).__module__]


def test_lora_learns_in_float32_on_a_bfloat16_backbone() -> None:
    backbone = load_backbone("minimind2-26m", device="cpu", dtype="bfloat16", progress=False)
    for name in ("lora", "prompt-tuning", "prefix-tuning", "p-tuning"):
        method = make(name, backbone)
        assert {p.dtype for p in method.parameters()} == {torch.float32}
        method.train().loss(batch(method)).backward()
        assert len(scores(method)) == len(ROWS)


# what learns


@pytest.mark.parametrize("name", [n for n in method_names() if n in {*LEARNERS, "dept"}])
@pytest.mark.parametrize("which", ["minimind", "t5"])
def test_gradients_reach_what_learns_and_nothing_else(
    name: str, which: str, request: pytest.FixtureRequest
) -> None:
    backbone = request.getfixturevalue(which)
    before = weights(backbone) if which == "minimind" else {}
    method = make(name, backbone)
    items = method.task.encode(ROWS)
    learned = {id(p) for group in method.groups() for p in group.params.values()}
    assert learned == {id(p) for p in method.parameters()}
    method.train().loss(method.task.collate(items)).backward()
    silent = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    allowed = ("/lora_A/", "A") if name in ("lora", "dept") else ()  # B is zero at the start
    assert [n for n in silent if not n.endswith(allowed) and not any(a in n for a in allowed)] == []
    assert all(p.grad is None for p in backbone.model.parameters())
    method.zero_grad(set_to_none=True)
    stages = method.stages(Data(items, []))
    train(stages, method, TrainConfig(steps=1, batch_size=8), device="cpu", progress=False)
    if before:
        assert weights(backbone) == before
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_full_finetuning_learns_in_a_copy(minimind: Backbone) -> None:
    before, frozen = weights(minimind), scores(make("zero-shot", minimind))
    method = make("full-finetuning", minimind)
    assert torch.equal(scores(method), frozen)
    config = TrainConfig(steps=2, batch_size=8, learning_rate=1e-3)
    train(method.stages(Data(method.task.encode(ROWS), [])), method, config, device="cpu", progress=False)
    assert not torch.allclose(scores(method), frozen)
    assert weights(minimind) == before
    assert torch.equal(scores(make("zero-shot", minimind)), frozen)


# in context


def prepared(backbone: Backbone, seed: int, **options: Any) -> Any:
    method = make("in-context", backbone, **options)
    method.prepare(Data(method.task.encode(ROWS), [], ROWS), seed)
    return method.eval()


def test_in_context_is_the_same_text_before_the_query(minimind: Backbone, t5: Backbone) -> None:
    for backbone in (minimind, t5):
        method = prepared(backbone, 0, demonstrations=4)
        found = scores(method)
        items = method.task.encode(ROWS)
        query = batch(method)
        whole = [token for example in method._examples for token in example]
        for k, item in enumerate(items):
            alone = method.task.collate([item])
            alone.text = torch.tensor([[*whole, *item.text]])
            alone.text_mask = torch.ones_like(alone.text)
            expected = choice_scores(backbone, alone, Condition(), method.task.choices).softmax(-1)[0]
            torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-5)
        once = method.predict(query).probabilities  # again, from the cached prefix
        method._condition = None
        assert torch.equal(method.predict(query).probabilities, once)
        assert torch.equal(once, found)


def test_in_context_reads_like_text(minimind: Backbone) -> None:
    method = prepared(minimind, 0, demonstrations=2)
    shown = minimind.tokenizer.decode([t for e in method._examples for t in e])
    rows = {f"{row['text']}": CLASSES[row["label"]] for row in ROWS}
    parts = [part for part in shown.split("\n\n") if part]
    assert len(parts) == 2
    for part in parts:
        text, _, answer = part.removeprefix("Text: ").partition("\nLabel: ")
        assert rows[text] == answer.strip()


def test_demonstrations_are_balanced_and_drawn_by_seed(minimind: Backbone) -> None:
    def drawn(seed: int, count: int) -> list[str]:
        return [
            minimind.tokenizer.decode(e) for e in prepared(minimind, seed, demonstrations=count)._examples
        ]

    assert drawn(1, 4) == drawn(1, 4)
    assert len({tuple(drawn(seed, 4)) for seed in range(5)}) > 1
    for count in (2, 4, 6):
        shown = drawn(2, count)
        assert len(shown) == count
        assert sum("Label: good" in text for text in shown) == count // 2
    assert len(drawn(0, 100)) == len(ROWS)
    short = prepared(minimind, 0, demonstrations=8, max_context=40)
    assert 0 < sum(map(len, short._examples)) <= 40
    method = make("in-context", minimind, max_context=16)
    with pytest.raises(ConfigError, match="max_context: no example fits"):
        method.prepare(Data(method.task.encode([{"text": "far too long " * 8, "label": 0}]), []), 0)
    with pytest.raises(ConfigError, match="no training rows to show"):
        method.prepare(Data([], []), 0)


def test_a_start_token_stands_once(minimind: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prepared(minimind, 0, demonstrations=2)
    start = minimind.tokenizer.bos_token_id
    for module in (demonstrations, in_context):
        monkeypatch.setattr(module, "start_tokens", lambda _: [start])
    marked = make("in-context", minimind)
    marked._examples = plain._examples
    items = marked.task.encode(ROWS[:2])
    whole = [start, *(t for e in plain._examples for t in e)]
    for item in items:
        item.text = [start, *item.text]
    found = marked.eval().predict(marked.task.collate(items)).probabilities
    for k, item in enumerate(items):
        alone = marked.task.collate([item])
        alone.text = torch.tensor([[*whole, *item.text[1:]]])
        alone.text_mask = torch.ones_like(alone.text)
        expected = choice_scores(minimind, alone, Condition(), marked.task.choices).softmax(-1)[0]
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-5)


# linear probe


def features(backbone: Backbone, task: TextTask) -> np.ndarray:
    """The definition, row by row: the last token of a causal model, the mean over the tokens of others."""
    rows = []
    for item in task.encode(ROWS):
        with torch.no_grad():
            states, _ = text_states(backbone, task.collate([item]), Condition())
        rows.append(states[0, -1] if backbone.kind == "causal" else states[0].mean(0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("which", ["minimind", "t5", "minilm"])
def test_linear_probe_is_scikit_learns(which: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(which)
    method = make("linear-probe", backbone, strength=0.1)
    data = Data(method.task.encode(ROWS), [], ROWS)
    method.prepare(data, seed=0)
    scaled = StandardScaler().fit(features(backbone, method.task))
    inputs, truth = scaled.transform(features(backbone, method.task)), [row["label"] for row in ROWS]
    direct = LogisticRegression(C=0.1, max_iter=2000).fit(inputs, truth)
    expected = torch.tensor(direct.predict_proba(inputs)).float()
    torch.testing.assert_close(scores(method), expected, rtol=1e-2, atol=2e-3)
    once = {n: t.clone() for n, t in method.state_dict().items()}
    method.prepare(data, seed=0)
    assert all(torch.equal(t, once[n]) for n, t in method.state_dict().items())


def test_linear_probe_with_several_labels_few_rows_and_one_class(minilm: Backbone) -> None:
    names = ("warm", "long", "never", "always")
    rows = [{"text": r["text"], "labels": [r["label"], int(k > 4), 0, 1]} for k, r in enumerate(ROWS)]
    task = TextTask(minilm, "multilabel", names)
    method = make("linear-probe", minilm, task)
    method.prepare(Data(task.encode(rows), task.encode(rows)), seed=0)
    found = method.predict(task.collate(task.encode(rows)))
    assert task.metrics(found, task.encode(rows))["subset_accuracy"] == 1
    for few in (ROWS[:1], ROWS[:2], ROWS[0:8:2]):
        method = make("linear-probe", minilm)
        method.prepare(Data(method.task.encode(few), []), seed=0)
        table = scores(method)
        assert torch.isfinite(table).all()
        if len({row["label"] for row in few}) == 1:
            assert (table.argmax(1) == 0).all()


def test_linear_probe_on_film_reviews(minilm: Backbone) -> None:
    run = cuelight.tune(
        "linear-probe", backbone=minilm, data="film-reviews", max_train=200, max_validation=40, max_test=100
    )
    assert run.metrics["accuracy"] > 0.7


def test_zero_shot_on_film_reviews() -> None:
    run = cuelight.tune(
        "zero-shot",
        backbone="smollm2-135m",
        device="cpu",
        data="film-reviews",
        max_test=100,
        template="Review: {text}\nSentiment:",
    )
    assert run.metrics["accuracy"] > 0.6
    assert run.training is None


# options


@pytest.mark.parametrize("name", method_names())
def test_options_are_checked_by_name(name: str) -> None:
    kind = get_method(name)
    fields = field_names(kind.Config)
    for field in fields:
        with pytest.raises(ConfigError, match=rf"{field}x: no such option \(did you mean '"):
            build(kind.Config, {f"{field}x": 1})
        info = kind.Config.model_fields[field]
        assert info.description, f"{name}.{field} has no description"
        with pytest.raises(ConfigError, match=f"^{field}: is ") as caught:
            build(kind.Config, {field: object()})
        assert "\n" not in str(caught.value)
        limits = {k: getattr(m, k) for m in info.metadata for k in ("ge", "gt") if hasattr(m, k)}
        for limit in limits.values():
            with pytest.raises(ConfigError, match=f"^{field}: is {-abs(limit) - 1}"):
                build(kind.Config, {field: -abs(limit) - 1})
    with pytest.raises(ConfigError, match="no such option"):
        build(kind.Config, {"zzz": 1})


@pytest.mark.parametrize("name", method_names())
def test_options_do_not_collide(name: str) -> None:
    mine = set(field_names(get_method(name).Config))
    for home in (TrainConfig, TaskConfig, DataSpec):
        assert mine.isdisjoint(field_names(home))
    assert mine.isdisjoint(
        {"backbone", "data", "output", "device", "dtype", "progress", "restart", "tokenizer"}
    )
    assert "seed" not in mine


@pytest.mark.parametrize("name", BASELINES)
def test_the_wrong_backbone_is_refused(name: str, minilm: Backbone) -> None:
    vision = load_backbone("dinov2-small", device="cpu", progress=False)
    kinds = get_method(name).card.kinds
    for backbone in (minilm, vision):
        if backbone.kind in kinds:
            continue
        with pytest.raises(
            BackboneError, match=f"is a {backbone.kind} model; {name} needs {kinds[0]}"
        ) as caught:
            cuelight.tune(
                name, backbone=backbone, data=[{"text": r["text"], "label": r["label"]} for r in ROWS]
            )
        assert "\n" not in str(caught.value)


def test_a_kind_of_task_that_does_not_fit(minilm: Backbone, minimind: Backbone) -> None:
    with pytest.raises(
        ConfigError, match="task: linear-probe does classification, multilabel, not generation"
    ):
        get_method("linear-probe").check(minimind, "generation")
    with pytest.raises(
        BackboneError, match="full-finetuning can not do generation with a text-encoder model"
    ):
        get_method("full-finetuning").check(minilm, "generation")


def test_film_reviews_is_there() -> None:
    assert len(read("film-reviews", max_test=10).test) == 10
