"""PANDA: the exact part of its paper's page (papers/panda.md, "Smallest honest check")."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import cuelight
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.errors import ArtifactError, ConfigError
from cuelight.methods.base import Data, get_method
from cuelight.tasks.text import TaskConfig, TextTask
from cuelight.training import TrainConfig, train

SOURCE = [
    f"a {w} meal number {k},{label}" for k in range(20) for w, label in (("tasty", "fresh"), ("stale", "old"))
]
TARGET = [
    f"what a {w} film number {k},{label}"
    for k in range(20)
    for w, label in (("good", "yes"), ("bad", "no"), ("odd", "so"))
]
ROWS = [
    {"text": line.split(",")[0], "label": ("yes", "no", "so").index(line.split(",")[1])} for line in TARGET
]


@cache
def real(name: str) -> Backbone:
    return load_backbone(name, device="cpu", progress=False)


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.csv"
    path.write_text("text,label\n" + "\n".join(SOURCE))
    return str(path)


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "target.csv"
    path.write_text("text,label\n" + "\n".join(TARGET))
    return str(path)


def panda(host: Backbone, **options: Any) -> Any:
    task = TextTask(
        host, "classification", ("yes", "no", "so"), config=TaskConfig.model_validate({"max_length": 64})
    )
    method = get_method("panda")
    return method(host, task, method.Config.model_validate({"length": 3, "dropout": 0.0, **options}))


def learn(method: Any, steps: int = 4, **options: Any) -> Any:
    items = method.task.encode(ROWS)
    data = Data(items, items[:6], ROWS)
    method.prepare(data, 0)
    config = TrainConfig(steps=steps, batch_size=8, evaluate_every=steps, keep="last", **options)
    train(method.stages(data), method, config, progress=False)
    return method


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, 368_640),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, 983_040),
    ],
)
def test_the_papers_sizes(config: dict[str, Any], count: int) -> None:
    """BERT-base and BERT-large by their configurations, 20 positions; the head besides."""
    with torch.device("meta"):
        model = hf.BertModel(hf.BertConfig(**config))
    host = Backbone("bert", model, kind="text-encoder", tokenizer=real("minilm-l6").tokenizer)
    width = model.config.hidden_size
    assert panda(host, length=20).trainable == count + 3 * width + 3
    assert count == 2 * 20 * model.config.num_hidden_layers * width


@pytest.mark.parametrize("name", ["minilm-l6", "minimind2-26m", "flan-t5-small"])
def test_what_learns_is_the_student_and_the_teacher_stays(name: str, source: str) -> None:
    host = real(name)
    method = panda(host, source=source)
    items = method.task.encode(ROWS)
    data = Data(items, items[:6], ROWS)
    method.prepare(data, 0)
    stages = method.stages(data)
    assert [s.name for s in stages] == [f"source {source}", "teacher", "panda"]
    owners = [{id(p) for g in s.groups for p in g.params.values()} for s in stages]
    for owned, part in zip(owners, (method.sources[0], method.teachers[0], method.student), strict=True):
        assert owned == {id(p) for p in part.parameters()}
    # Only the prompt passes between the tasks: two classes there, three here.
    stages[1].begin()
    assert torch.equal(method.teachers[0].prompt, method.sources[0].prompt)
    if host.kind == "text-encoder":
        assert method.sources[0].head.out_features == 2 and method.teachers[0].head.out_features == 3
    method.similarity.fill_(0.5)
    before = {n: t.clone() for n, t in method.teachers.state_dict().items()}
    batch = method.task.collate(items[:6])
    method.train()
    method.loss(batch).backward()
    assert all(p.grad is None for p in (*method.teachers.parameters(), *method.sources.parameters()))
    assert all(p.grad is not None and p.grad.any() for p in method.student.parameters())
    assert all(p.grad is None for p in host.model.parameters())
    for g in stages[2].groups:
        torch.optim.AdamW(list(g.params.values()), lr=0.1).step()
    assert all(torch.equal(t, before[n]) for n, t in method.teachers.state_dict().items())


@pytest.mark.parametrize("name", ["minilm-l6", "minimind2-26m"])
def test_without_distillation_it_is_plain_prompt_tuning(name: str, source: str) -> None:
    host = real(name)
    plain = learn(panda(host, transfer="none"))
    still = learn(panda(host, source=source, distill=0.0))
    taught = learn(panda(host, source=source, distill=5.0))
    for key, tensor in plain.student.state_dict().items():
        assert torch.equal(tensor, still.student.state_dict()[key])
    assert not torch.equal(plain.student.prompt, taught.student.prompt)


def test_a_student_like_its_teacher_has_nothing_to_learn_from_it() -> None:
    method = panda(real("minilm-l6"), transfer="self")
    items = method.task.encode(ROWS)
    method.prepare(Data(items, [], ROWS), 0)
    method.similarity.fill_(1)
    method.eval()
    batch = method.task.collate(items[:6])
    alone = float(method._task_loss(method.student, method.task, batch).detach())
    assert float(method.loss(batch).detach()) > alone
    method.teachers[0].load_state_dict(method.student.state_dict())
    assert float(method.loss(batch).detach()) == pytest.approx(alone)
    own, other = (
        part.scores(method.task, batch)
        for part in (method.student, panda(real("minilm-l6"), init_seed=5).student)
    )
    method.teachers[0].load_state_dict(panda(real("minilm-l6"), init_seed=5).student.state_dict())
    method.similarity.fill_(0.25)
    wanted = alone + 0.25 * float((own - other).square().mean().detach())
    assert float(method.loss(batch).detach()) == pytest.approx(wanted, rel=1e-4)


def test_similarity_is_a_cosine_of_mean_states(source: str) -> None:
    host = real("minilm-l6")
    method = panda(host, source=f"{source},{source}")
    items = method.task.encode(ROWS)
    data = Data(items, items[:6], ROWS)
    method.prepare(data, 0)
    assert len(method.teachers) == len(method.similarity) == 2
    method._embed_task(method.teachers[0], method.task, items, method.source_embeddings[0])
    method._embed_task(method.sources[1], method.task, items, method.source_embeddings[1])
    method._compare(0, data)
    assert float(method.similarity[0]) == pytest.approx(1)  # a task and itself
    method._compare(1, data)
    assert -1 <= float(method.similarity[1]) < 0.9999
    one, other = torch.zeros_like(method.embedding), method.source_embeddings[1]
    method._embed_task(method.teachers[1], method.task, items, one)
    cosine = float(one @ other / one.norm() / other.norm())
    assert float(method.similarity[1]) == pytest.approx(cosine, abs=1e-5)
    for how, wanted in (("constant", 1.0), ("prompt", None)):
        method.config = method.config.model_copy(update={"similarity": how})
        method._compare(1, data)
        if wanted:
            assert float(method.similarity[1]) == wanted
    early = panda(host, source=f"{source},{source}", fusion="early")
    early.prepare(data, 0)
    assert len(early.teachers) == 1
    early._transfer(early.teachers[0], 0)
    prompts = torch.stack([s.prompt for s in early.sources])
    torch.testing.assert_close(early.teachers[0].prompt, prompts.mean(0))


@pytest.mark.parametrize("transfer", ["pot", "self", "untrained", "none"])
def test_what_it_is_compared_with(transfer: str, source: str) -> None:
    method = panda(real("minilm-l6"), source=source, transfer=transfer)
    items = method.task.encode(ROWS)
    data = Data(items, items[:6], ROWS)
    method.prepare(data, 0)
    stages = method.stages(data)
    wanted = {"pot": [f"source {source}", "panda"], "self": ["teacher", "panda"]}
    assert [s.name for s in stages] == wanted.get(transfer, ["panda"])
    if transfer == "pot":
        stages[-1].begin()
        assert torch.equal(method.student.prompt, method.sources[0].prompt)
    assert method.loss(method.task.collate(items[:4])).isfinite()


@pytest.mark.parametrize("name", ["minilm-l6", "flan-t5-small"])
def test_from_tables_to_a_saved_prompt_and_on_from_there(
    name: str, source: str, target: str, tmp_path: Path
) -> None:
    options = {"steps": 2, "batch_size": 4, "length": 2}
    run = cuelight.tune(
        "panda", backbone=name, data=target, source=source, output=tmp_path / "run", **options
    )
    assert run.training is not None and run.training.steps == 6
    kept = load_file(tmp_path / "run" / "prompt.safetensors")
    assert all(
        key.startswith(("student.", "embedding", "similarity")) for key in kept
    )  # no teacher, no source
    texts = ["a good film", "an odd film"]
    again = cuelight.load(tmp_path / "run").predict(texts, probabilities=True)
    assert again == run.prompt.predict(texts, probabilities=True)
    # A saved prompt is a source itself, and is not trained again.
    more = cuelight.tune("panda", backbone=name, data=source, source=str(tmp_path / "run"), **options)
    assert more.training is not None and more.training.steps == 4
    assert 0 < float(more.prompt.method.similarity[0]) <= 1.0001
    if name == "minilm-l6":
        with pytest.raises(ArtifactError, match="another length"):
            cuelight.tune(
                "panda", backbone=name, data=source, source=str(tmp_path / "run"), **{**options, "length": 4}
            )
        with pytest.raises(ConfigError, match="source: is empty"):
            cuelight.tune("panda", backbone=name, data=source, source=" ", **options)
