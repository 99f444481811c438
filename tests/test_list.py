"""LiST: adapters that merge, weights of pseudo-labels, and rounds.

Random weights stand where shapes and identities are tested; the run at the end is on a real model and real reviews.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers as hf

import cuelight
from cuelight.backbones.adapters import Adapters
from cuelight.backbones.backbone import Backbone
from cuelight.config import build
from cuelight.errors import ConfigError
from cuelight.methods.base import get_method
from cuelight.methods.fewshot.list import LiST
from cuelight.tasks.text import TaskConfig, TextTask
from cuelight.tuning import run_fingerprint
from test_cloze import CLASSES, ROWS, batch_of, real

WORDS = {"negative": "bad", "positive": "good"}


def made(**options: Any) -> LiST:
    task = TextTask(
        real("bert"),
        "classification",
        CLASSES,
        config=TaskConfig(template="{text} It was {mask}", label_words=WORDS, max_length=48),
    )
    kind = get_method("list")
    method = kind(real("bert"), task, build(kind.Config, {"rank": 8, "adapter_deviation": 0.2, **options}))
    assert isinstance(method, LiST)
    return method.eval()


def pseudo_batch(method: LiST, labels: torch.Tensor) -> Any:
    batch = batch_of(method)
    batch.extra["pseudo"] = labels
    batch.extra["corrupt"] = torch.zeros(len(ROWS), dtype=torch.bool)
    return batch


def test_counts_on_the_papers_model() -> None:
    """RoBERTa-large's shape, without values: adapters 4 L r d, and the dense part of the head."""
    shape = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    with torch.device("meta"):
        model = hf.RobertaForMaskedLM(hf.RobertaConfig(vocab_size=50265, **shape))
        found = Adapters(Backbone("roberta", model, kind="masked"), 128).weights
    adapters = sum(p.numel() for n, p in found.items() if n.endswith(("/up", "/down")))
    assert adapters == 12_582_912
    assert sum(p.numel() for p in found.values()) == 13_634_560


def test_adapters_merge_exactly_and_relu_ones_are_refused() -> None:
    method = made()
    with torch.no_grad():
        apart = method.scores(batch_of(method))
        merged = method.says(batch_of(method), method.merged())
    torch.testing.assert_close(method.verbalizer(merged), apart, atol=1e-5, rtol=1e-5)
    plain = method.verbalizer(method.says(batch_of(method), method.backbone))
    assert not torch.allclose(plain, apart, atol=1e-3)
    with pytest.raises(ConfigError, match="can not be merged"):
        made(adapter="relu").merged()


def test_only_adapters_and_the_head_learn() -> None:
    method = made().train()
    before = {n: t.clone() for n, t in method.backbone.model.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method.loss(batch_of(method)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in method.weights.items())
    optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in method.backbone.model.state_dict().items())
    inside = {n.rsplit("/", 1)[0] for n in method.weights if n.endswith("/up")}
    assert len(inside) == 2 * 2  # two sublayers in each of two layers


def test_meta_weights_are_inner_products_of_gradients() -> None:
    method = made()
    labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    batch, labelled = pseudo_batch(method, labels), batch_of(method, ROWS[:2])
    learned = list(method.parameters())
    wanted = torch.autograd.grad(method.loss(labelled), learned, allow_unused=True)
    products = []
    for k in range(3):
        one = torch.autograd.grad(method.divergences(batch)[k], learned, allow_unused=True)
        pairs = [(a, b) for a, b in zip(one, wanted, strict=True) if a is not None and b is not None]
        products.append(sum(float((a * b).sum()) for a, b in pairs))
    useful = torch.tensor(products).clamp(min=0)
    found = method.meta_weights(batch, labelled)
    torch.testing.assert_close(found, useful / useful.sum(), atol=1e-4, rtol=1e-3)
    assert (found >= 0).all()
    assert float(found.sum()) <= 1 + 1e-5


def test_a_true_label_counts_and_its_opposite_does_not() -> None:
    method = made()
    one = ROWS[:1]
    for label, useful in (([0.0, 1.0], True), ([1.0, 0.0], False)):  # its class is 1
        batch = batch_of(method, one)
        batch.extra["pseudo"] = torch.tensor([label])
        assert (float(method.meta_weights(batch, batch_of(method, one))) > 0) == useful


def test_ones_own_predictions_teach_nothing() -> None:
    method = made()
    batch = batch_of(method)
    batch.extra["pseudo"] = method.scores(batch).softmax(-1).detach()
    losses = method.divergences(batch)
    torch.testing.assert_close(losses, torch.zeros(3), atol=1e-6, rtol=0)
    grads = torch.autograd.grad(losses.sum(), list(method.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in grads if g is not None) < 1e-5


def test_unlabelled_texts_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="unlabelled: list learns from unlabelled texts; give --unlabelled"):
        cuelight.tune("list", backbone=real("minimind2-26m"), data="film-reviews", shots=2)


def test_on_a_csv_with_nothing_but_class_names(tmp_path: Path) -> None:
    labelled, more = tmp_path / "my.csv", tmp_path / "more.csv"
    rows = [(f"A {w} film, number {k}.", w) for k in range(12) for w in ("good", "bad")]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(labelled, index=False)
    texts = [f"The play number {k} was a {w} one." for k in range(8) for w in ("good", "bad")]
    pd.DataFrame({"review": texts}).to_csv(more, index=False)
    run = cuelight.tune("list", backbone=real("minimind2-26m"), data=str(labelled), unlabelled=str(more), rounds=1,
                        rank=4, steps=3, pseudo_steps=4, reweight_from=0.5, corrupt=0.5, template="{text} It is",
                        output=str(tmp_path / "run"))  # fmt: skip
    method = run.prompt.method
    assert isinstance(method, LiST)
    assert float(method.trust[:, 1].sum()) == 2 * 16  # two steps of 16 rows had learned weights
    again = cuelight.load(str(tmp_path / "run"))
    assert again.predict(texts) == run.prompt.predict(texts)


def test_another_file_is_another_run(tmp_path: Path) -> None:
    """A run is its further files' contents too, wherever they lie."""
    texts = [f"{what} of film {k}" for k in range(6) for what in ("a joy", "a bore")]
    rows = pd.DataFrame({"text": texts, "label": ["good", "bad"] * 6})
    splits = cuelight.data.read(rows)
    more = tmp_path / "more.txt"

    def fingerprint() -> str:
        return run_fingerprint(made(unlabelled=str(more)), splits)

    more.write_text("one text\n")
    before = fingerprint()
    more.write_text("another text\n")
    assert fingerprint() != before
    more.write_text("one text\n")
    assert fingerprint() == before
