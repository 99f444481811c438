"""BayesPrompt: the mixture's score, Stein variational gradient descent, and where the draw is written.

Random weights and points stand where identities are tested; the run at the end is on a real model.
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
from cuelight.methods.fewshot.bayesprompt import BayesPrompt, relation_words
from cuelight.prompts.svgd import Mixture, direction, svgd
from cuelight.tasks.text import TaskConfig, TextTask
from test_cloze import CLASSES, ROWS, batch_of, real


def mixture(components: int, width: int) -> Mixture:
    draw = torch.Generator().manual_seed(1)
    roots = torch.randn(components, width, width, generator=draw, dtype=torch.float64)
    covariances = roots @ roots.mT / width + torch.eye(width, dtype=torch.float64)
    means = torch.randn(components, width, generator=draw, dtype=torch.float64) * 2
    weights = torch.rand(components, generator=draw, dtype=torch.float64).softmax(0)
    return Mixture.of(weights, means, covariances)


def made(template: str = "{text} It was {mask} .", **options: Any) -> BayesPrompt:
    task = TextTask(
        real("bert"), "classification", CLASSES, config=TaskConfig(template=template, max_length=48)
    )
    kind = get_method("bayesprompt")
    method = kind(real("bert"), task, build(kind.Config, {"svgd_steps": 20, **options}))
    assert isinstance(method, BayesPrompt)
    items = task.encode(ROWS)
    method.prepare(Data(items, items, ROWS), 0)
    return method.eval()


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    found = mixture(3, 5)
    points = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(found.log_density(points).sum(), points)
    torch.testing.assert_close(found.score(points), wanted, atol=1e-6, rtol=1e-6)
    normal = mixture(1, 5)
    one = -(points.detach() - normal.means[0]) @ normal.precisions[0]
    torch.testing.assert_close(normal.score(points.detach()), one)


def test_responsibilities_stay_finite_in_a_thousand_dimensions() -> None:
    weights, means = torch.full((3,), 1 / 3), torch.randn(3, 1024)
    found = Mixture.of(weights, means, 0.1 * torch.eye(1024).expand(3, -1, -1))
    shares = found.responsibilities(torch.randn(4, 1024))
    assert torch.isfinite(shares).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(4))


def test_one_particle_climbs_and_many_take_the_targets_shape() -> None:
    found = mixture(2, 2)
    alone = torch.randn(1, 2, dtype=torch.float64)
    torch.testing.assert_close(direction(alone, found.score(alone)), found.score(alone))
    target = Mixture.of(
        torch.ones(1, dtype=torch.float64),
        torch.tensor([[1.0, -2.0]], dtype=torch.float64),
        torch.diag(torch.tensor([1.0, 0.25], dtype=torch.float64))[None],
    )
    torch.manual_seed(0)
    moved = svgd(target.score, torch.randn(60, 2, dtype=torch.float64), steps=1500, rate=0.02)
    torch.testing.assert_close(moved.mean(0), target.means[0], atol=0.1, rtol=0)
    torch.testing.assert_close(
        moved.var(0), torch.tensor([1.0, 0.25], dtype=torch.float64), atol=0.25, rtol=0.3
    )
    away = svgd(target.score, torch.randn(20, 2, dtype=torch.float64), steps=100, away=True)
    assert target.log_density(away).mean() < target.log_density(moved).mean() - 1


def test_the_draw_stands_at_the_prompt_words_and_nowhere_else() -> None:
    method = made("{soft.sub:subject} {text} {soft:so} {mask} {soft.obj:object}")
    drawn, condition = method.draw(), method.condition(batch_of(method))
    assert drawn is not None
    assert condition.soft is not None
    assert method.soft is not None
    names = method.task.soft_names
    for k, name in enumerate(names):
        assert torch.equal(condition.soft[k], drawn if name in ("sub", "obj") else method.soft[k])
    assert {"sub", "obj", ""} <= set(names)
    torch.testing.assert_close(drawn, method.draw())  # as many particles as classes, or fewer: no chance left
    method.loss(batch_of(method)).backward()
    assert method.soft.grad is not None
    learned = method.soft.grad.abs().sum(1) > 0
    assert learned.tolist() == [name not in ("sub", "obj") for name in names]


def test_any_template_gets_two_prompt_words() -> None:
    method = made()
    condition = method.condition(batch_of(method))
    drawn = method.draw()
    assert condition.prompt is not None
    assert drawn is not None
    assert torch.equal(condition.prompt, drawn.expand(2, -1))
    mean = made(abstraction="mean")
    torch.testing.assert_close(mean.draw(), mean.pooled(mean.task.encode(ROWS)).mean(0).float())
    plain = made(abstraction="none")
    assert plain.condition(batch_of(plain)).prompt is plain.own


@pytest.mark.parametrize("name", ["minimind2-26m", "flan-t5-small", "bert"])
def test_behind_prompt_words_it_is_still_the_slot_that_is_read(name: str) -> None:
    """A sentinel in the last layer's states is seen at the slot, two places on, and nowhere else."""
    host = real(name)
    config = TaskConfig(template="{text} It was {mask}", max_length=48)
    task = TextTask(host, "classification", CLASSES, config=config)
    kind = get_method("bayesprompt")
    method = kind(host, task, build(kind.Config, {"model": "frozen", "abstraction": "none"})).eval()
    assert isinstance(method, BayesPrompt)
    batch = batch_of(method, ROWS[:1])
    tower = host.towers.get("decoder", host.tower)
    length = 2 if tower.name == "decoder" else 2 + batch.text.shape[1]
    slot = length - 1
    if name == "bert":
        slot = 2 + batch.text[0].tolist().index(host.tokenizer.mask_token_id)
    place, moved = -1, []

    def sentinel(_: Any, __: Any, out: Any) -> Any:
        states = (out[0] if isinstance(out, tuple) else out).clone()
        if 0 <= place - (length - states.shape[1]) < states.shape[1]:  # a shared prompt may run by itself
            states[:, place - (length - states.shape[1])] = torch.linspace(-3, 3, states.shape[-1])
        return (states, *out[1:]) if isinstance(out, tuple) else states

    handle = tower.layers[-1].register_forward_hook(sentinel)
    try:
        with torch.no_grad():
            plain = method.scores(batch)
            for place in range(2 if tower.name != "decoder" else 0, length):
                if not torch.equal(method.scores(batch), plain):
                    moved.append(place)
    finally:
        handle.remove()
    assert moved == [slot]


def test_relation_names_as_words() -> None:
    assert relation_words("per:city_of_birth") == "person city of birth"
    assert relation_words("org:founded-by") == "organization founded by"
    assert relation_words("Component-Whole(e2,e1)") == "component whole"
    assert relation_words("Other") == "no relation"


def test_relations_of_a_csv(tmp_path: Path) -> None:
    places = ("Rome", "Bern", "Oslo", "Riga", "Kyiv", "Lima", "Doha", "Baku")
    rows = [
        {"text": f"{who} {verb} {place} .", "head": who, "tail": place, "head_span": "0 1", "tail_span": span,
         "label": label}
        for place in places
        for who, verb, span, label in (("Ann", "lives in", "3 4", "residence"), ("Bo", "left", "2 3", "Other"))
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "my.csv", index=False)
    template = "{text:head_span,tail_span} {soft.sub:subject} {head} {soft.obj:object} {tail}: {mask}"
    run = cuelight.tune("bayesprompt", backbone=real("minimind2-26m"), data=str(tmp_path / "my.csv"), text="text",
                        label="label", steps=2, svgd_steps=20, batch_size=4, output=str(tmp_path / "run"),
                        template=template)  # fmt: skip
    asked = [
        {"text": "Cy lives in Kiel .", "head": "Cy", "tail": "Kiel", "head_span": "0 1", "tail_span": "3 4"}
    ]
    assert cuelight.load(str(tmp_path / "run")).predict(asked) == run.prompt.predict(asked)
