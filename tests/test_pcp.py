"""PCP: lines with a label word in the slot, masking, the soft variant's start, and the stages.

Random weights stand where places and identities are tested; the run at the end is on a real model and real reviews.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import cuelight
from cuelight.config import build
from cuelight.methods.base import Data, get_method
from cuelight.methods.fewshot.pcp import PCP
from cuelight.tasks.text import TaskConfig, TextTask
from test_cloze import CLASSES, ROWS, batch_of, real

WORDS = {"negative": "bad", "positive": "good"}


def made(template: str = "{text} It was {mask} .", name: str = "bert", **options: Any) -> PCP:
    config = TaskConfig(template=template, label_words=WORDS, max_length=48)
    task = TextTask(real(name), "classification", CLASSES, config=config)
    kind = get_method("pcp")
    method = kind(real(name), task, build(kind.Config, options))
    assert isinstance(method, PCP)
    return method.eval()


def ready(method: PCP, pool: list[dict[str, Any]]) -> PCP:
    items = method.task.encode(ROWS)
    method.prepare(Data(items, items, ROWS), 0)
    method._pool = method.task.encode(pool, answers=False)
    return method


@pytest.mark.parametrize("template", ["{text} It was {mask} .", "{text} {soft:It was} {mask} ."])
def test_a_line_is_the_template_with_the_word_in_the_slot(template: str) -> None:
    method = ready(made(template), [{"text": "An odd one."}])
    tokenizer = method.backbone.tokenizer
    lines = method.corpus()
    assert len(lines) == len(ROWS) + 1
    for row, line in zip(ROWS, lines, strict=False):
        word = WORDS[CLASSES[row["label"]]]
        assert line == tokenizer(f"{row['text']} It was {word} .").input_ids
        assert tokenizer.mask_token_id not in line
    label = method.labels(method._pool)[0]
    assert lines[-1] == tokenizer(f"An odd one. It was {WORDS[CLASSES[label]]} .").input_ids


def test_causal_lines_end_in_the_word() -> None:
    method = ready(made("{text} It was", "minimind2-26m"), [])
    (first, *_) = method.corpus()
    assert method.backbone.tokenizer.decode(first).endswith("It was good")


def test_lines_of_the_comparisons() -> None:
    pool = [{"text": "An odd one."}]
    tokenizer = real("bert").tokenizer
    plain = ready(made(lines="texts"), pool)
    assert plain.corpus()[0] == tokenizer(ROWS[0]["text"]).input_ids
    empty = ready(made(lines="no-words"), pool).corpus()
    assert empty[0] == tokenizer(ROWS[0]["text"] + " It was .").input_ids
    wrong = ready(made(lines="permuted"), pool).corpus()
    assert wrong[0] == tokenizer(ROWS[0]["text"] + " It was bad .").input_ids  # a good one


def test_a_seventh_of_the_tokens_is_predicted_and_no_special_one() -> None:
    method = made()
    tokenizer = method.backbone.tokenizer
    line = tokenizer("a film that is as long as this one and then some " * 3).input_ids
    torch.manual_seed(0)
    batch = method.masked([line] * 400)
    chosen = batch["labels"] != -100
    inner = chosen[:, 1:-1].float().mean()
    assert abs(float(inner) - 0.15) < 0.01
    assert not chosen[:, 0].any()
    assert not chosen[:, -1].any()
    masked = (batch["input_ids"] == tokenizer.mask_token_id)[chosen].float().mean()
    assert abs(float(masked) - 0.8) < 0.03


def test_the_soft_variant_starts_as_the_hard_one() -> None:
    hard = made("{text} It was {mask} .")
    soft = made("{text} {soft:It was} {mask} .", verbalizer="soft")
    with torch.no_grad():
        a, b = hard.scores(batch_of(hard)), soft.scores(batch_of(soft)).log_softmax(-1)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert soft.soft is not None
    assert soft.soft.shape == (2, soft.backbone.tower.width)


def test_pre_training_starts_anew_and_learns() -> None:
    method = ready(made(), [{"text": "An odd one."}]).train()
    own = dict(method.backbone.model.named_parameters())
    with torch.no_grad():
        for parameter in method.weights.values():
            parameter += 0.1  # what a teacher has become
    method._begin_pretraining()
    assert all(torch.equal(p, own[n.replace("/", ".")]) for n, p in method.weights.items())
    torch.manual_seed(0)
    loss = method.pretraining_loss(method.masked(method._lines * 4))
    loss.backward()
    assert all(p.grad is not None for p in method.weights.values())


def test_without_pre_training_it_is_prompt_based_fine_tuning(tmp_path: Path) -> None:
    shared = {"backbone": real("minimind2-26m"), "data": "film-reviews", "shots": 4, "max_test": 20, "steps": 4,
              "max_validation": 8, "max_length": 40,
              "template": "{text} It was", "batch_size": 4, "weight_decay": 0.01, "warmup": 0.06}  # fmt: skip
    ours = cuelight.tune("pcp", pretraining_steps=0, **shared)  # type: ignore[arg-type]
    plain = cuelight.tune("cloze", **shared)  # type: ignore[arg-type]
    assert ours.training is not None
    assert plain.training is not None
    a, b = ([h["loss"] for h in run.training.history if "loss" in h] for run in (ours, plain))  # type: ignore[union-attr]
    assert a == b
    assert ours.metrics == plain.metrics


def test_on_a_csv_with_more_texts_beside_it(tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("\n".join(f"The play number {k} was odd." for k in range(8)) + "\n")
    rows = [(f"A {w} film, number {k}.", w) for k in range(12) for w in ("good", "bad")]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "my.csv", index=False)
    run = cuelight.tune("pcp", backbone=real("minimind2-26m"), data=str(tmp_path / "my.csv"), steps=2,
                        pretraining_steps=2, unlabelled=str(more), template="{text} It is {mask}",
                        output=str(tmp_path / "run"))  # fmt: skip
    assert run.training is not None
    stages = list(dict.fromkeys(h["stage"] for h in run.training.history))
    assert stages == ["teacher", "pre-training", "pcp"]
    texts = ["A good one.", "A bad one."]
    assert cuelight.load(str(tmp_path / "run")).predict(texts) == run.prompt.predict(texts)
