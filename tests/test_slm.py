"""SLM: what selectors choose and see, ensembles of templates, zero-shot prompts, and runs from end to end.

Models are built-in ones, except ``tiny``, whose weights are random: there only shapes and bookkeeping are tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.nn.functional import normalize

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.config import build
from cuelight.data.active import ASKING, Pool, Selector, plan, select
from cuelight.errors import ConfigError
from cuelight.methods.base import Data
from cuelight.methods.fewshot.slm import LEVELS, SLM, SLMConfig, combined, task_with
from cuelight.tasks.text import Item, TaskConfig, TextTask

SELECTORS: tuple[Selector, ...] = ("diversity", "entropy", "margin", "random", "certain", "one-cluster")
CLASSES = ("alarm", "music", "weather")
ROWS: list[dict[str, Any]] = [
    {"text": f"{verb} {what} {when}", "label": label}
    for label, what, verbs in (
        (0, "the alarm", ("Set", "Stop", "Change")),
        (1, "a song", ("Play", "Find", "Skip")),
        (2, "the forecast", ("Tell me", "Read", "Show")),
    )
    for verb in verbs
    for when in ("now", "tomorrow", "at noon", "in an hour")
]


@cache
def real(name: str) -> Backbone:
    """A built-in model; ``tiny`` is a BERT of two layers with random weights and MiniLM's tokenizer."""
    if name != "tiny":
        return load_backbone(name, device="cpu", progress=False)
    tokenizer = load_backbone("minilm-l6", device="cpu", progress=False).tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = hf.BertConfig(vocab_size=len(tokenizer), **shape, initializer_range=0.3)
    return Backbone("tiny", hf.BertForMaskedLM(config), kind="masked", tokenizer=tokenizer)


def slm(
    name: str, template: str = "{text} Topic: {mask}.", words: Mapping[str, str] | None = None, **options: Any
) -> SLM:
    config = TaskConfig(template=template, label_words=dict(words) if words else None, max_length=48)
    task = TextTask(real(name), "classification", CLASSES, config=config)
    return SLM(real(name), task, build(SLMConfig, {"model": "frozen", **options})).eval()


def batch_of(method: SLM, rows: Any = ROWS[::5]) -> Any:
    return method.task.collate(method.task.encode(rows))


def pool(size: int = 40, **more: Any) -> Pool:
    draw = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(size, 8, generator=draw), dim=-1)
    return Pool(size, embeddings, torch.randn(size, 3, generator=draw).softmax(-1), **more)


# ---- scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flan-t5-small", "minilm-mlm"])
def test_likelihood_of_one_token_is_the_score_of_the_first(name: str) -> None:
    methods = [slm(name, word_score=score) for score in ("exact", "first")]
    assert all(len(ids) == 1 for ids in methods[0].answers)
    with torch.no_grad():
        likelihood, first = (method.scores(batch_of(method)) for method in methods)
    torch.testing.assert_close(likelihood, first)
    assert (likelihood.argmax(-1) == first.argmax(-1)).all()


@pytest.mark.parametrize("name", ["flan-t5-small", "minilm-mlm"])
def test_words_of_several_tokens_count_by_token_and_sum_to_one(name: str) -> None:
    words = {"alarm": "an alarm clock that rings", "weather": "the weather"}
    found = []
    for by_length in (True, False):
        method = slm(name, words=words, normalise=by_length)
        with torch.no_grad():
            found.append(method.says(batch_of(method)))
        torch.testing.assert_close(method.tables(batch_of(method)).sum(-1), torch.ones(1, len(ROWS[::5])))
    lengths = torch.tensor([len(ids) for ids in method.answers])
    assert len(set(lengths.tolist())) > 1
    torch.testing.assert_close(found[0] * lengths, found[1])


def test_the_encoder_reads_a_text_once() -> None:
    """However many words of however many tokens there are."""
    method = slm("flan-t5-small", "{text}\nLabel:", words={"alarm": "an alarm clock that rings"})
    batch, calls = batch_of(method), []
    hook = method.backbone.model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    try:
        method.predict(batch)
    finally:
        hook.remove()
    assert calls == [1]


# ---- what is labelled ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_selector_returns_the_budget_and_the_same_for_a_seed(selector: Selector) -> None:
    taken = [3, 4, 20]
    for budget in (1, 7, 37):
        chosen = select(selector, budget, pool(taken=taken), seed=5)
        assert len(chosen) == len(set(chosen)) == budget
        assert not set(chosen) & set(taken) and set(chosen) <= set(range(40))
        assert chosen == select(selector, budget, pool(taken=taken), seed=5)
    with pytest.raises(ConfigError, match="38 rows are more than the 37"):
        select(selector, 38, pool(taken=taken))
    if selector not in ASKING:
        assert select(selector, 7, pool(), seed=0) != select(selector, 7, pool(), seed=1)


def test_diversity_takes_all_when_it_may_and_one_of_each_cluster() -> None:
    assert sorted(select("diversity", 40, pool())) == list(range(40))
    centres = torch.eye(4).repeat_interleave(6, 0)
    near = centres + 0.05 * torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        chosen = select("diversity", 4, Pool(24, normalize(near, dim=-1)), seed=seed)
        assert sorted(row // 6 for row in chosen) == [0, 1, 2, 3]
    same = Pool(6, torch.eye(2).repeat_interleave(3, 0))  # fewer different texts than rows wanted
    assert len(set(select("diversity", 5, same))) == 5


def test_selectors_that_ask_the_model() -> None:
    """Row 0 has the highest entropy, row 1 the smallest margin, row 2 is certain."""
    probabilities = torch.tensor([[0.36, 0.33, 0.31], [0.49, 0.48, 0.03], [0.98, 0.01, 0.01]])
    asked = Pool(3, torch.eye(3), probabilities)
    assert [select(s, 1, asked)[0] for s in ("entropy", "margin", "certain")] == [0, 1, 2]
    twice = Pool(4, torch.eye(3)[[0, 0, 1, 2]], probabilities[[0, 0, 1, 2]])
    assert select("entropy", 2, twice) == [0, 2]  # row 1 says what row 0 says
    assert select("entropy", 4, twice) == [0, 2, 3, 1]
    assert select("entropy", 1, Pool(4, twice.embeddings, twice.probabilities, [0])) == [2]


def test_one_cluster_is_close_together() -> None:
    def spread(rows: list[int]) -> float:
        vectors = pool().embeddings
        assert vectors is not None
        return float((vectors[rows] @ vectors[rows].T).mean())

    for seed in range(3):
        close, far = (spread(select(s, 6, pool(), seed=seed)) for s in ("one-cluster", "diversity"))
        assert close > far + 0.2


def test_a_plan_of_rounds() -> None:
    assert plan("diversity+entropy", 8, 3) == [("diversity", 2), ("entropy", 3), ("entropy", 3)]
    assert plan("margin", 6, 2) == [("margin", 3), ("margin", 3)]
    assert plan("random", 6, 3) == [("random", 6)]
    with pytest.raises(ConfigError, match="budget: 2 rows do not fill 3 rounds"):
        plan("entropy", 2, 3)


class Unlabelled(dict[str, Any]):
    """A row whose label must not be asked for."""

    def __getitem__(self, name: str) -> Any:
        assert name != "label", "a label was read"
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        assert name != "label", "a label was read"
        return super().get(name, default)


class Asked(list[Item]):
    """Training rows that note whose labels are learned from."""

    def __init__(self, items: list[Item]) -> None:
        super().__init__(items)
        self.rows: list[int] = []

    def __getitem__(self, row: Any) -> Any:
        self.rows.append(row)
        return super().__getitem__(row)


@pytest.mark.parametrize("strategy", ["diversity+entropy", "certain", "one-cluster", "random"])
def test_no_label_is_read_before_its_row_is_chosen(strategy: str) -> None:
    method = slm("tiny", model="tuned", strategy=strategy, budget=9)
    items = method.task.encode([{"text": row["text"]} for row in ROWS], answers=False)
    for item, row in zip(items, ROWS, strict=True):
        item.row = Unlabelled(row)
    rows = Asked(items)
    data = Data(rows, [])
    method.prepare(data, 0)
    stages = method.stages(data)
    counts = [3, 6, 9] if len(stages) == 3 else [9]
    for stage, count in zip(stages, counts, strict=True):
        assert callable(stage.examples) and stage.begin is not None
        rows.rows.clear()
        before = method.labelled
        stage.begin()
        assert not rows.rows
        assert method.labelled[: len(before)] == before
        assert len(stage.examples()) == count == len(set(method.labelled))
        assert rows.rows == method.labelled


def test_every_round_starts_from_the_model_as_it_came() -> None:
    method = slm("tiny", "{soft:About} {text} {mask}", model="tuned", verbalizer="weighted", budget=6)
    start = {name: tensor.clone() for name, tensor in method.state_dict().items() if name != "chosen"}
    data = Data(method.task.encode(ROWS), [])
    method.prepare(data, 0)
    for stage in method.stages(data):
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.1)
        assert stage.begin is not None
        stage.begin()
        now = method.state_dict()
        assert all(torch.equal(tensor, now[name]) for name, tensor in start.items())


def test_an_interrupted_run_labels_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"data": rows_file(tmp_path), "budget": 6, "steps": 2, "checkpoint_every": 1}
    given |= {"template": "{text} {mask}", "templates": ("{mask}: {text}",), "strategy": "entropy"}
    whole = cuelight.tune("slm", backbone=real("tiny"), **given)
    loss, calls = SLM.loss, []

    def fails(self: SLM, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the second step of the second round
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(SLM, "loss", fails)
    with pytest.raises(KeyboardInterrupt):
        cuelight.tune("slm", backbone=real("tiny"), output=tmp_path / "run", **given)
    again = cuelight.tune("slm", backbone=real("tiny"), output=tmp_path / "run", **given)
    one, other = whole.prompt.method, again.prompt.method
    assert isinstance(one, SLM) and isinstance(other, SLM)
    assert one.labelled == other.labelled and len(one.labelled) == 6
    assert all(torch.equal(tensor, other.kept()[name]) for name, tensor in one.kept().items())


# ---- ensembles and zero-shot ---------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_identical_members_answer_as_one(combine: str) -> None:
    template = "{text} Topic: {mask}."
    one, three = slm("minilm-mlm"), slm("minilm-mlm", templates=(template, template), combine=combine)
    alone, together = one.predict(batch_of(one)), three.predict(batch_of(three))
    assert alone.answers == together.answers
    assert alone.probabilities is not None and together.probabilities is not None
    expected = alone.probabilities
    if combine == "vote":
        expected = (expected + 3 * (expected == expected.amax(-1, keepdim=True))) / 4
    torch.testing.assert_close(together.probabilities, expected)


def test_an_ensemble_reads_each_members_template() -> None:
    templates = ("{text} Topic: {mask}.", "{mask}: {text}")
    both = slm("minilm-mlm", templates[0], templates=templates[1:])
    with torch.no_grad():
        tables = both.tables(batch_of(both))
        for template, table in zip(templates, tables, strict=True):
            one = slm("minilm-mlm", template)
            torch.testing.assert_close(table, one.scores(batch_of(one)).softmax(-1))
    assert not torch.allclose(tables[0], tables[1])
    labels = torch.tensor([row["label"] for row in ROWS[::5]])

    def loss(table: torch.Tensor) -> float:
        return float(-table[range(len(labels)), labels].log().mean())

    assert loss(combined(tables)) < (loss(tables[0]) + loss(tables[1])) / 2  # Jensen


def test_ties_of_a_vote_go_to_the_likelier_class() -> None:
    first, second, sure = [0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.0, 1.0, 0.0]
    tied = combined(torch.tensor([[first], [second]]), vote=True)
    assert tied.argmax() == 1
    three = torch.tensor([[first], [first], [sure]])
    assert combined(three, vote=True).argmax() == 0 and combined(three).argmax() == 1
    for table in (tied, combined(three, vote=True)):
        torch.testing.assert_close(table.sum(-1), torch.ones(1))


def test_the_levels_of_a_prompt() -> None:
    task = slm("flan-t5-small", "{text}\nLabel:").task
    row = {"text": "It rains."}
    seen = {}
    for level in LEVELS:
        made = task_with(task, level, "weather: {sun} and rain")
        seen[level] = made.tokenizer.decode(made.encode([row], answers=False)[0].text)
    assert "alarm, music, weather" not in seen["P0"] and "alarm, music, weather" in seen["P1"]
    assert "sun" not in seen["P1"] and "rain" in seen["P2"] and "sun" in seen["P2"]
    assert "nothing else" not in seen["P2"] and "nothing else" in seen["P3"]
    pairs = TextTask(
        task.backbone, "classification", CLASSES, pairs=True, config=TaskConfig(template="{text}{text_b}")
    )
    assert "{text_b}" in task_with(pairs, "P3", "").template


# ---- from end to end -----------------------------------------------------------------------------------------


def rows_file(folder: Path) -> str:
    """`ROWS` as a CSV file, every fourth of a class in the test split and every fourth for validation."""
    splits = ("train", "train", "validation", "test")
    lines = [f"{row['text']},{CLASSES[row['label']]},{splits[k % 4]}" for k, row in enumerate(ROWS)]
    (folder / "rows.csv").write_text("\n".join(["text,label,split", *lines]) + "\n")
    return str(folder / "rows.csv")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "minilm-mlm",
            {"template": "{text} Topic: {mask}.", "templates": ("{mask}: {text}",), "combine": "vote"},
        ),
        ("flan-t5-small", {"template": "{text}\nLabel:", "strategy": "diversity"}),
    ],
)
def test_from_rows_to_a_saved_run(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = cuelight.tune("slm", backbone=real(name), data=rows_file(tmp_path), budget=0.4, steps=2, max_length=40,
                        **options)  # fmt: skip
    texts = ["Play it again.", "Will it rain?"]
    expected = run.prompt.predict(texts, probabilities=True)
    again = cuelight.load(run.prompt.save(tmp_path / "saved"), backbone=real(name))
    assert again.predict(texts, probabilities=True) == expected
    method = run.prompt.method
    assert isinstance(method, SLM) and run.training is not None
    assert len(set(method.labelled)) == round(0.4 * 18)
    assert run.training.steps == 2 * (len(method.plan) + len(method.others))
    for member in method.members:
        came = dict(member.backbone.model.named_parameters())
        assert any(not torch.equal(w, came[n.replace("/", ".")]) for n, w in member.weights.items())


def test_the_best_of_given_templates_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("{text}\\nTopic:\n\nzzz {text} xxx\n")
    run = cuelight.tune("slm", backbone=real("flan-t5-small"), data=rows_file(tmp_path), model="frozen",
                        template="zzz {text} zzz", templates=("P1", f"@{file}"), combine="best")  # fmt: skip
    file.unlink()
    method = run.prompt.method
    assert isinstance(method, SLM)
    assert method.config.templates == ("P1", "{text}\\nTopic:", "zzz {text} xxx")
    assert run.trainable == 0 and run.training is None and int(method.judged_on) == 9
    best = method.members[int(method.accuracies.argmax())]
    alone = cuelight.tune("slm", backbone=real("flan-t5-small"), data=rows_file(tmp_path), model="frozen",
                          template=best.task.template)  # fmt: skip
    assert alone.metrics == run.metrics
    again = cuelight.load(run.prompt.save(tmp_path / "saved"), backbone=real("flan-t5-small"))
    texts = [row["text"] for row in ROWS]
    assert again.predict(texts) == run.prompt.predict(texts) == alone.prompt.predict(texts)
    assert isinstance(again.method, SLM) and torch.equal(again.method.accuracies, method.accuracies)


def test_the_best_template_after_tuning(tmp_path: Path) -> None:
    run = cuelight.tune("slm", backbone=real("tiny"), data=rows_file(tmp_path), template="{text} {mask}", budget=0,
                        templates=("{mask}: {text}",), combine="best", steps=1)  # fmt: skip
    method = run.prompt.method
    assert isinstance(method, SLM)
    assert len(method.labelled) == 18 and int(method.judged_on) == 9 and float(method.accuracies.max()) > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": 19}, "budget: is 19, and there are 18 training rows"),
        ({"budget": 2.5}, "give a whole number of rows"),
        ({"budget": -1}, "budget"),
        ({"budget": 2}, "budget: 2 rows do not fill 3 rounds"),
        ({"combine": "best"}, "give --templates"),
        ({"templates": ("no text",)}, "templates: 'no text' does not fit"),
        ({"templates": ("{text} {who} {mask}",)}, "does not fit"),
        ({"templates": ("@nowhere.txt",)}, "nowhere.txt can not be read"),
        ({"templates": ("{soft} {text} {mask}",), "model": "frozen"}, "one learns and the other does not"),
        ({"strategy": "oracle"}, "strategy"),
        ({"encoder": "minimind2-26m"}, "give a sentence encoder"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(cuelight.CuelightError, match=says):
        cuelight.tune("slm", backbone=real("tiny"), data=rows_file(tmp_path), template="{text} {mask}", steps=1,
                      **options)  # fmt: skip


def test_the_best_template_needs_validation_rows() -> None:
    method = slm("tiny", templates=("{mask}: {text}",), combine="best")
    with pytest.raises(ConfigError, match="chosen on validation rows and there are none"):
        method.prepare(Data(method.task.encode(ROWS), []), 0)
