"""CPT: the exact part of its paper's page (papers/cpt.md, "Smallest honest check"), and PEFT's own CPT, step for step."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import cuelight
from cuelight.artifact import Prompt
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.methods.base import Data, get_method
from cuelight.prompts.conditioning import answer_logits, choice_scores
from cuelight.tasks.text import TaskConfig, TextTask

warnings.filterwarnings("ignore", module="peft|transformers")
ROWS = [
    {"text": "A joy from the first minute to the last.", "label": 0},
    {"text": "Dull.", "label": 1},
    {"text": "It tries hard, and yet it never quite works for me.", "label": 1},
    {"text": "Warm, funny and wise.", "label": 0},
    {"text": "I left before the end.", "label": 1},
    {"text": "See it twice!", "label": 0},
]


@cache
def real(name: str) -> Backbone:
    return load_backbone(name, device="cpu", progress=False)


def task_of(host: Backbone, **options: Any) -> TextTask:
    config = {"max_length": 64, "template": "A review: {text}\nSentiment:", **options}
    return TextTask(
        host, "classification", ("positive", "negative"), config=TaskConfig.model_validate(config)
    )


def made(name: str, host: Backbone, *, task: dict[str, Any] | None = None, **options: Any) -> Any:
    kind = get_method(name)
    method = kind(host, task_of(host, **(task or {})), kind.Config.model_validate(options))
    method.prepare(Data(method.task.encode(ROWS), [], ROWS), 3)
    return method


def cpt(host: Backbone, **options: Any) -> Any:
    return made("cpt", host, **{"demonstrations": 3, **options})


def trained(method: Any, steps: int = 3, rate: float = 0.05) -> Any:
    """A few steps of the method's own stage."""
    (stage,) = method.stages(Data(method.task.encode(ROWS), [], ROWS))
    optimiser = torch.optim.AdamW(
        [p for g in stage.groups for p in g.params.values()], lr=rate, weight_decay=0.1
    )
    for _ in range(steps):
        stage.loss(stage.collate(list(stage.examples))).backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            stage.after_step()
    return method


def scores(method: Any) -> Tensor:
    with torch.no_grad():
        return method.predict(method.task.collate(method.task.encode(ROWS))).probabilities


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "gemma3-270m"])
def test_radius_0_is_in_context_learning_whatever_was_trained(name: str) -> None:
    host = real(name)
    wanted = scores(made("in-context", host, demonstrations=3))
    start = cpt(host)
    assert torch.equal(scores(start), wanted)
    if name != "gemma3-270m":
        still = trained(cpt(host, epsilon_input=0, epsilon_format=0))
        assert not still.delta.any()
        assert torch.equal(scores(still), wanted)
        moved = trained(start)
        assert (scores(moved) - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
@pytest.mark.parametrize("ablation", [{}, {"move_labels": True}, {"project": False}])
def test_only_what_may_move_moves_and_stays_in_its_ball(name: str, ablation: dict[str, Any]) -> None:
    host = real(name)
    method = trained(cpt(host, epsilon_input=0.2, epsilon_format=0.05, **ablation))
    width, codes = host.tower.width, method.types % 4
    norms = method.delta.detach().norm(dim=1)
    label = (method.types > 0) & (codes == 0)
    assert method.trainable == int(method.movable.sum()) * width
    assert not norms[(method.types == 0)].any()
    assert norms[label].any() == ("move_labels" in ablation)
    assert (norms[method.movable] > 0).all()
    if "project" in ablation:
        assert float(norms.max()) > 0.2 * (width / 2048) ** 0.5
    else:
        scale = (width / 2048) ** 0.5
        limits = torch.where((codes == 1) | (codes == 3), 0.05 * scale, 0.2 * scale)
        assert (norms <= limits * (1 + 1e-5))[method.movable].all()
        before = method.delta.detach().clone()
        method.project()
        torch.testing.assert_close(method.delta.detach(), before)  # idempotent
    with torch.no_grad():
        method.delta.mul_(1e-3)
        before = method.delta.detach().clone()
        method.project()
    assert torch.equal(method.delta.detach(), before)  # what is inside stays as it is
    method.loss(method.task.collate(method.task.encode(ROWS))).backward()
    assert (method.delta.grad.abs().sum(1) > 0).equal(method.movable)
    assert all(p.grad is None for p in host.model.parameters())


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
def test_every_token_is_what_it_stands_for(name: str) -> None:
    host = real(name)
    method = cpt(host)
    tokenizer = host.tokenizer

    def said(code: int) -> list[str]:
        return [tokenizer.decode(method.ids[method.types == 4 * k + code]).strip() for k in range(3)]

    texts = {row["text"] for row in ROWS}
    assert set(said(2)) <= texts and len(set(said(2))) == 3
    assert {text.rstrip() for text in said(1)} == {"A review:"}
    assert all(text.replace(" ", "") == "Sentiment:" for text in said(3))
    truth = {row["text"]: ("positive", "negative")[row["label"]] for row in ROWS}
    assert said(4) == [truth[text] for text in said(2)]
    # Without the rows' own texts all of a text may move as text.
    bare = get_method("cpt")(host, task_of(host), get_method("cpt").Config(demonstrations=3))
    bare.prepare(Data(bare.task.encode(ROWS), []), 3)
    assert torch.equal(bare.ids, method.ids)
    assert set((bare.types % 4)[bare.types > 0].tolist()) == {0, 2}


def test_weights_fall_with_distance() -> None:
    host = real("minimind2-26m")
    assert cpt(host, gamma=0.5).label_weights().tolist() == [0.125, 0.25, 0.5]
    assert cpt(host, gamma=1).label_weights().tolist() == [1, 1, 1]
    assert cpt(host, gamma=0.5, context_loss="last").label_weights().tolist() == [0, 0, 0.5]
    assert cpt(host, context_loss="none").label_weights().tolist() == [0, 0, 0]
    chosen = cpt(host, gamma=0.5, context_loss="random").label_weights()
    assert int((chosen > 0).sum()) == 1


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
def test_the_loss_by_its_definition(name: str) -> None:
    """Every answer, in the context or not, predicted by a pass over all that stands before it."""
    host = real(name)
    method = trained(cpt(host, gamma=0.5), steps=1)
    items = method.task.encode(ROWS[:2])
    context = method.context().detach()
    embed = host.model.get_input_embeddings()
    ends = [1] if host.kind == "seq2seq" else []

    def nll(before: Tensor, text: list[int], answer: list[int]) -> Tensor:
        vectors = torch.cat([before, embed(torch.tensor(text, dtype=torch.long))])[None]
        if host.kind == "seq2seq":
            logits = host.model(inputs_embeds=vectors, labels=torch.tensor([answer])).logits[0]
        else:
            whole = torch.cat([vectors[0], embed(torch.tensor(answer))])[None]
            logits = host.model(inputs_embeds=whole).logits[0, vectors.shape[1] - 1 : -1]
        return cross_entropy(logits, torch.tensor(answer), reduction="sum")

    with torch.no_grad():
        wanted = sum(nll(context, item.text, item.answer) for item in items) / 2
        for k, weight in enumerate((0.125, 0.25, 0.5)):
            places = torch.nonzero(method.types == 4 * k + 4)[:, 0].tolist()
            answer = method.ids[places].tolist()
            wanted = wanted + weight * nll(context[: places[0]], ends, answer)
        found = method.loss(method.task.collate(items))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_context_is_read_once_per_batch_and_kept_while_nothing_learns() -> None:
    host = real("minimind2-26m")
    method = trained(cpt(host), steps=1)
    batch = method.task.collate(method.task.encode(ROWS))
    rows: list[int] = []
    handle = host.tower.layers[0].register_forward_pre_hook(
        lambda _, args, kw: rows.append((args[0] if args else kw["hidden_states"]).shape[1]), with_kwargs=True
    )
    method.loss(batch).backward()
    assert len(rows) == 2 and rows[0] == len(method.ids)  # the context with its own loss, then the batch
    rows.clear()
    first, second = scores(method), scores(method)
    handle.remove()
    assert [n == len(method.ids) for n in rows] == [True, False, False]
    assert torch.equal(first, second)
    # The same answers as when the context is part of every row.
    with torch.no_grad():
        many = method.context().expand(len(ROWS), -1, -1)
        alone = choice_scores(
            host, batch, cuelight.prompts.conditioning.Condition(prompt=many), method.task.choices
        )
    torch.testing.assert_close(first, alone.softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_it_is_pefts_cpt_step_for_step(gamma: float) -> None:
    """Losses and offsets of several AdamW steps, with PEFT's mean over label tokens."""
    host = real("minimind2-26m")
    method = cpt(host, gamma=gamma, reduction="mean", epsilon_input=0.02, epsilon_format=0.01)
    config = peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=method.ids.tolist(),
        cpt_mask=[1] * len(method.ids),
        cpt_tokens_type_mask=method.types.tolist(),
        opt_weighted_loss_type="decay",
        opt_loss_decay_factor=gamma,
        opt_projection_epsilon=0.02,
        opt_projection_format_epsilon=0.01,
    )
    assert int(method.types.max()) % 4 == 0  # or PEFT's shift of the query's codes finds no labels
    batch = method.task.collate(method.task.encode(ROWS[:2]))
    from cuelight.tasks.demonstrations import without_start

    rows = without_start(method.task, batch)
    try:
        theirs = peft.get_peft_model(host.model, config)
        optimiser = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.01)
        wanted = []
        for _ in range(4):
            losses, counts = [], []
            for k in range(
                2
            ):  # one row at a time: PEFT's example pads on the right, which shifts nothing here
                text = rows.text[k][rows.text_mask[k] == 1]
                answer = batch.answer[k][batch.answer_mask[k] == 1]
                ids = torch.cat([text, answer])[None]
                types = torch.cat([torch.full_like(text, 2), torch.full_like(answer, 4)])[None]
                out = theirs(input_ids=ids, labels=ids.clone(), input_type_mask=types)
                label_tokens = int(((method.types > 0) & (method.types % 4 == 0)).sum())
                losses.append(out.loss)
                counts.append(label_tokens + len(answer))
            loss = sum(v * n for v, n in zip(losses, counts, strict=True)) / sum(counts)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            wanted.append(float(loss.detach()))
        encoder = theirs.prompt_encoder["default"]
        offsets = encoder.get_projection().detach()
    finally:
        host.model.requires_grad_(False)
        vars(host.model).pop("peft_config", None)
    found = []
    optimiser = torch.optim.AdamW([method.delta], lr=0.01)
    for _ in range(4):
        loss = method.loss(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        method.project()
        found.append(float(loss.detach()))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found[-1] < found[0]
    torch.testing.assert_close(method.delta.detach(), offsets, rtol=1e-3, atol=1e-5)


def test_exchange_with_peft(tmp_path: Path) -> None:
    host = real("minimind2-26m")
    method = trained(cpt(host))
    Prompt(method).export_peft(tmp_path / "peft")
    task = {"template": "A review: {text}\nSentiment:", "max_length": 64}
    again = cuelight.import_peft(tmp_path / "peft", backbone=host, classes=("positive", "negative"), **task)
    torch.testing.assert_close(again.method.delta, method.delta, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.method.types, method.types)
    torch.testing.assert_close(scores(again.method), scores(method), rtol=1e-4, atol=1e-5)
    try:
        theirs = peft.PeftModel.from_pretrained(host.model, tmp_path / "peft")
        item = method.task.encode(ROWS)[2]
        one = method.task.collate([item])
        with torch.no_grad():
            ids = torch.tensor([item.text])
            logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
            wanted = answer_logits(host, one, method.condition(one))[0][0]
        if item.text[:1] != [host.tokenizer.bos_token_id]:
            torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
    finally:
        host.model.requires_grad_(False)
        vars(host.model).pop("peft_config", None)


def test_rows_of_the_context_are_left_out_of_training_while_there_are_others() -> None:
    host = real("minimind2-26m")
    method = cpt(host)
    items = method.task.encode(ROWS)
    (stage,) = method.stages(Data(items, [], ROWS))
    assert len(stage.examples) == 3
    shown = {host.tokenizer.decode(method.ids[method.types == 4 * k + 2]).strip() for k in range(3)}
    left = {host.tokenizer.decode(i.text) for i in stage.examples}
    assert not any(text in whole for text in shown for whole in left)
    everything = cpt(host, demonstrations=6)
    (stage,) = everything.stages(Data(items, [], ROWS))
    assert len(stage.examples) == 6


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small"])
def test_from_a_few_shots_to_a_saved_prompt(name: str, tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    lines = [
        f"what a {w} film number {k},{label}"
        for k in range(24)
        for w, label in (("good", "yes"), ("bad", "no"))
    ]
    data.write_text("text,label\n" + "\n".join(lines))
    run = cuelight.tune(
        "cpt",
        backbone=name,
        data=str(data),
        shots=4,
        steps=3,
        batch_size=2,
        demonstrations=4,
        output=tmp_path / "run",
    )
    texts = ["a good film", "a bad film"]
    again = cuelight.load(tmp_path / "run")
    assert again.predict(texts, probabilities=True) == run.prompt.predict(texts, probabilities=True)
    assert again.method.trainable == run.trainable > 0
    assert run.prompt.method.delta.detach().norm(dim=1).max() <= 0.1 * (1 + 1e-5)
