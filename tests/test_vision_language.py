"""The vision-language papers: counts on CLIP ViT-B/16, identities at the start, gradient routes, losses, whole runs.

Weights are random in `random_clip`, real but not aligned in `real_towers`, real in `built_in`; what is tested on the first two
are identities and routes, which hold for any weights.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dual_models import clip_b16, small_clip, unaligned_dual
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import cuelight
from cuelight.backbones import Backbone, load_backbone
from cuelight.errors import ArtifactError, ConfigError
from cuelight.methods.base import get_method
from cuelight.methods.vision_language import coprompt, gram, kapt, mocoop, promptsrc, restore
from cuelight.prompts.dual import encode_text
from cuelight.tasks import ImageConfig, ImageTask

CLASSES = ("cat", "tall tree", "red square")
KNOWLEDGE = (
    "cat: A small domesticated animal with soft fur and whiskers.\n"
    "tall tree: A woody plant with a trunk. It has leaves.\n"
    "red square: A geometric shape in the warm colour of blood.\n"
    "blue sea: Salt water without end.\n"
)
EUROSAT = (
    "a centered satellite photo of {}.",
    "a photo of a {}.",
    "a photo of the large {}.|a photo of a large {}.",
    "a photo of the small {}.|a photo of a small {}.",
    "a low resolution photo of the {}.|a pixelated photo of a {}.",
    "a good photo of the {}.|a good photo of a {}.",
)


@cache
def random_clip() -> Backbone:
    return small_clip()


@cache
def real_towers() -> Backbone:
    return unaligned_dual()


@cache
def built_in() -> Backbone:
    return load_backbone("dino-minilm-clip", progress=False)


@cache
def big_clip() -> Backbone:
    """CLIP ViT-B/16's shape without weights, behind MiniLM's tokenizer."""
    tokenizer = load_backbone("minilm-l6", progress=False).tokenizer
    return Backbone("clip-b16", clip_b16(), kind="vision-language", tokenizer=tokenizer)


@pytest.fixture
def knowledge(tmp_path: Path) -> str:
    (tmp_path / "known.txt").write_text(KNOWLEDGE)
    return str(tmp_path / "known.txt")


def made(name: str, backbone: Backbone | None = None, classes: Any = CLASSES, **options: Any) -> Any:
    backbone = backbone or random_clip()
    size = 56 if backbone.id != "clip-b16" and backbone is not random_clip() else None
    task = ImageTask(backbone, "classification", classes, config=ImageConfig(image_size=size))
    kind = get_method(name)
    return kind(backbone, task, kind.Config(**options))


def picture(seed: int, side: int = 40) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (side, side, 3)).astype(np.uint8))


def batch_of(method: Any, count: int = 4) -> Any:
    rows = [{**method.task.row(k, picture(k)), "label": k % len(method.names)} for k in range(count)]
    return method.task.collate(method.task.encode(rows))


def gradients(loss: Tensor, method: Any) -> dict[str, Tensor | None]:
    method.zero_grad()
    loss.backward()
    found = {n: None if p.grad is None else p.grad.clone() for n, p in method.named_parameters()}
    assert all(p.grad is None for p in method.backbone.model.parameters())
    return found


# ---- counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("maple", {}, 3_555_072),
        ("maple", {"shared": True}, 403_200),
        ("maple", {"length": 4, "layers": 12}, 12 * 4 * 512 + 12 * (512 * 768 + 768)),
        ("promptsrc", {}, 46_080),
        ("promptsrc", {"layers": 3}, 15_360),
        ("coprompt", {}, 3_817_216),
        ("coprompt", {"length": 4, "layers": 12}, 5_014_528),
        ("mvlpt", {"variant": "text"}, 8_192),
        ("mvlpt", {"variant": "visual"}, 147_456),
        ("mvlpt", {}, 566_400),
        ("restore", {}, 7_756_544),
        ("mocoop", {"groups": EUROSAT}, 18_950),
        ("mocoop", {"groups": EUROSAT, "norms": True}, 55_814),
        ("kapt", {}, 413_728),
        ("ctp-tft", {}, 428_576),
        ("gram", {}, 2_048),
        ("gram", {"base": "unified"}, 2_048 + 12 * 4 * 768),
    ],
)
def test_counts_on_clip_b16(name: str, options: dict[str, Any], count: int) -> None:
    method = made(name, big_clip(), **options)
    assert method.trainable == count
    assert sum(p.numel() for g in method.groups() for p in g.params.values()) == count


def test_regulators_on_clip_b16() -> None:
    gates = made("gram", big_clip(), base="unified").regulators
    assert [sum(p.numel() for p in gate.parameters()) for gate in gates] == [33_312, 74_544]


def test_more_layers_than_a_tower_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers: is 7; .* has 6"):
        made("maple", real_towers(), layers=7)
    assert len(made("maple", real_towers()).prompts.text) == 6


# ---- at the start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [random_clip, real_towers, built_in])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maple", {"layers": 1}),
        ("promptsrc", {"layers": 1}),
        ("coprompt", {"layers": 1, "text_ratio": 0.0}),
        ("restore", {"layers": 1, "zero_start": True}),
        ("mvlpt", {"variant": "visual"}),
        ("kapt", {"words": 0}),
        ("ctp-tft", {}),
        ("gram", {}),
    ],
)
def test_class_features_start_at_zero_shot(where: Any, name: str, options: dict[str, Any]) -> None:
    method = made(name, where(), **options)
    with torch.no_grad():
        torch.testing.assert_close(method.class_features(), method.zero_shot(), rtol=0, atol=1e-6)
    renamed = ("blue sea", "very old lighthouse", "owl", "cat")
    method.knowledge = {"blue sea": "x", "very old lighthouse": "x", "owl": "x", "cat": "x"}
    method.rename(renamed)
    with torch.no_grad():
        torch.testing.assert_close(
            method.class_features(), method.zero_shot(names=renamed), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [("promptsrc", {"layers": 1, "vision_length": 0}), ("kapt", {"words": 0}), ("ctp-tft", {}), ("gram", {})],
)
def test_scores_start_at_zero_shot(name: str, options: dict[str, Any]) -> None:
    for backbone in (random_clip(), real_towers(), built_in()):
        method = made(name, backbone, **options)
        batch = batch_of(method)
        with torch.no_grad():
            plain = method.dual.scale * method.frozen_features(batch) @ method.zero_shot().T
            torch.testing.assert_close(method.scores(batch), plain, rtol=1e-4, atol=1e-4)


def test_a_maple_image_differs_at_the_start() -> None:
    method = made("maple", layers=1)
    batch = batch_of(method)
    far = (method.image_features(batch) - method.frozen_features(batch)).norm(dim=-1)
    assert float(far.min()) > 1e-3


# ---- MaPLe -------------------------------------------------------------------------------------------------


def test_maple_gradient_routes() -> None:
    method = made("maple")
    batch = batch_of(method)
    text, images = method.class_features(), method.image_features(batch)

    found = gradients(cross_entropy(images.detach() @ text.T, batch.label), method)
    assert found["prompts.weight"] is None and found["prompts.bias"] is None
    assert float(found["prompts.text"].norm()) > 0  # type: ignore[union-attr]

    stack = method.prompts.vision.detach().requires_grad_(True)

    class Free:
        text, vision = method.prompts.text, stack

    coupled = method.prompts
    found = gradients(cross_entropy(method.image_features(batch) @ text.detach().T, batch.label), method)
    method.prompts = None
    del method._modules["prompts"]
    method.__dict__["prompts"] = Free
    cross_entropy(method.image_features(batch) @ text.detach().T, batch.label).backward()
    through = torch.einsum("jbv,jvt->jbt", stack.grad, coupled.weight)
    torch.testing.assert_close(found["prompts.text"], through)


def test_maple_layers() -> None:
    method = made("maple")
    batch = batch_of(method)
    states: list[Tensor] = []
    method.prompted_images(batch, states=states)
    assert [s.shape[1] for s in states] == [1 + 16 + 2] * 3
    before: list[Tensor] = []
    after: list[Tensor] = []
    method.prompted_classes(states=before)
    with torch.no_grad():
        method.prompts.text[1] += 1
    method.prompted_classes(states=after)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    first, *later = made("maple", big_clip()).prompts.weight.shape
    assert (first, *later) == (9, 768, 512)
    weight = method.prompts.weight
    assert torch.equal(weight[1], weight[2]) and not torch.equal(weight[0], weight[1])


def test_maple_is_the_paper_s_algorithm_step_by_step() -> None:
    """Against the passes written out: 77 positions, replaced tokens before every layer, all classes padded."""
    method = made("maple")
    model: Any = method.backbone.model
    batch = batch_of(method)
    first = method.prompts.text
    with torch.no_grad():
        names = method.backbone.tokenizer(
            [f"a photo of a {name}." for name in CLASSES], padding="max_length", max_length=77
        )
        ids = torch.tensor(names.input_ids)
        text = model.text_model
        states = text.embeddings.token_embedding(ids)
        states = torch.cat([states[:, :1], first[0].expand(3, -1, -1), states[:, 3:]], 1)
        states = states + text.embeddings.position_embedding(torch.arange(77))
        mask = torch.full((77, 77), -torch.inf).triu(1)[None, None]
        for j, layer in enumerate(method.dual.text.layers):
            if j:
                states = torch.cat([states[:, :1], first[j].expand(3, -1, -1), states[:, 3:]], 1)
            out = layer(states, attention_mask=mask)
            states = out[0] if isinstance(out, tuple) else out
        ends = (ids == method.backbone.tokenizer.sep_token_id).int().argmax(1)
        features = model.text_projection(text.final_layer_norm(states)[torch.arange(3), ends])
        torch.testing.assert_close(method.class_features(), normalize(features, dim=-1))

        tokens = [first[j] @ method.prompts.weight[j].T + method.prompts.bias[j] for j in range(3)]
        vision = model.vision_model
        states = torch.cat([vision.embeddings(batch.pixels), tokens[0].expand(4, -1, -1)], 1)
        states = vision.pre_layrnorm(states)
        for j, layer in enumerate(method.dual.vision.layers):
            if j:
                states = torch.cat([states[:, :-2], tokens[j].expand(4, -1, -1)], 1)
            out = layer(states, attention_mask=None)
            states = out[0] if isinstance(out, tuple) else out
        features = model.visual_projection(vision.post_layernorm(states[:, 0]))
        torch.testing.assert_close(method.image_features(batch), normalize(features, dim=-1))


# ---- PromptSRC ---------------------------------------------------------------------------------------------


def test_promptsrc_agrees_with_itself_at_the_start() -> None:
    method = made("promptsrc", layers=1, vision_length=0, teacher=("a photo of a {}.",))
    batch = batch_of(method)
    plain = made("maple", layers=1)
    with torch.no_grad():
        scores = method.dual.scale * method.frozen_features(batch) @ plain.zero_shot().T
        torch.testing.assert_close(method.loss(batch), cross_entropy(scores, batch.label))


def test_promptsrc_losses() -> None:
    method = made("promptsrc", image_weight=10, text_weight=0, score_weight=0)
    batch = batch_of(method)
    with torch.no_grad():
        images, text = method.image_features(batch), method.class_features()
        frozen = method.frozen_features(batch)
        scores = method.dual.scale * images @ text.T
        plain = float(cross_entropy(scores, batch.label))
        far = float((images - frozen).abs().mean())
        assert float(method.loss(batch)) == pytest.approx(plain + 10 * far, rel=1e-5)
        teacher = method.zero_shot(method.config.teacher, normalise_each=False)
        wanted = method.dual.scale * frozen @ teacher.T
        agreement = promptsrc.score_agreement(scores, wanted)
        usual = torch.nn.functional.kl_div(
            scores.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        torch.testing.assert_close(agreement, usual / len(CLASSES))
        assert float((agreement - promptsrc.score_agreement(wanted, scores)).abs()) > 1e-5
        # of several templates the mean of features as they are is not the mean of normalised ones
        assert not torch.allclose(teacher, method.zero_shot(method.config.teacher), atol=1e-7)


def test_gaussian_weights() -> None:
    found = promptsrc.epoch_weights(20, 15, 1)
    assert found[12:17].tolist() == pytest.approx([0.054, 0.242, 0.399, 0.242, 0.054], abs=1e-3)
    assert float(found.sum()) == pytest.approx(1)
    assert torch.equal(promptsrc.epoch_weights(20), found)
    assert promptsrc.epoch_weights(7, 3, 1e9).tolist() == pytest.approx([1 / 7] * 7)
    assert promptsrc.epoch_weights(7, 3, 1e-3).argmax() == 2


def test_promptsrc_ends_with_the_average(folder: Path) -> None:
    kind, seen = get_method("promptsrc"), []
    gather = kind._gather

    def watched(self: Any, epoch: int, epochs: int) -> None:
        seen.append((epoch, epochs, self.prompts.text.detach().clone()))
        gather(self, epoch, epochs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "_gather", watched)
        run = cuelight.tune(
            "promptsrc", backbone=random_clip(), data=folder, shots=2, epochs=4, mean=2.5, deviation=1.0
        )
    assert [entry[:2] for entry in seen] == [(k, 4) for k in (1, 2, 3, 4)]
    weights = promptsrc.epoch_weights(4, 2.5, 1.0).float()
    expected = sum(w * text for w, (_, _, text) in zip(weights, seen, strict=True))
    torch.testing.assert_close(run.prompt.method.prompts.text, expected)
    assert "average" not in run.prompt.method.kept()


def test_a_shorter_average_is_divided_by_what_it_has() -> None:
    method = made("promptsrc")
    before = method.prompts.text.detach().clone()
    method._forget()
    with torch.no_grad():
        for epoch in (1, 2):
            method._gather(epoch, 20)
    method._settle()
    torch.testing.assert_close(method.prompts.text.detach(), before)


# ---- CoPrompt ----------------------------------------------------------------------------------------------


def test_coprompt_without_its_parts_is_maple() -> None:
    ours = made("coprompt", weight=0.0, image_ratio=0.0, text_ratio=0.0)
    maple = made("maple")
    batch = batch_of(maple)
    losses = [m.loss(batch) for m in (ours, maple)]
    assert torch.equal(*losses)
    one, other = (gradients(loss, m) for loss, m in zip(losses, (ours, maple), strict=True))
    for name, gradient in other.items():
        assert torch.equal(one[name], gradient)  # type: ignore[arg-type]
    adapters = [g for n, g in one.items() if "adapter" in n]
    assert len(adapters) == 4 and all(g is None or not g.any() for g in adapters)


def test_adapters() -> None:
    adapter = coprompt.Adapter(16)
    features = torch.randn(5, 16)
    assert (adapter(features) >= 0).all()
    torch.nn.init.zeros_(adapter.down.weight)
    torch.testing.assert_close(adapter.mixed(features, 0.2), normalize(features, dim=-1))


def test_consistency() -> None:
    one = torch.randn(6, 8)
    assert float(coprompt.consistency(one, 3 * one)) == pytest.approx(0, abs=1e-6)
    assert 2 * float(coprompt.consistency(one, -one)) == pytest.approx(4, abs=1e-5)
    assert float(coprompt.consistency(one, one + 1, "squared")) == pytest.approx(1)


def test_coprompt_sentences(knowledge: str) -> None:
    method = made("coprompt", sentences=knowledge, views="plain")
    method.prepare(data_of(method), 0)
    assert method.sentences.shape == (1, 3, 16) and not method.sentences.requires_grad
    said = KNOWLEDGE.splitlines()[0].partition(": ")[2]
    torch.testing.assert_close(method.sentences[0, 0], normalize(method.texts([said]), dim=-1)[0])
    many = made("coprompt")
    many.prepare(data_of(many), 0)
    before = many.sentences.clone()
    text = many.class_features().detach()
    mean = torch.stack([coprompt.consistency(text, s) for s in many.sentences]).mean()
    torch.testing.assert_close(mean, 1 - (text * many.sentences.mean(0)).sum(-1).mean())
    views = many.training_batch(data_of(many).train[:2])
    assert not torch.equal(views[0].pixels, views[1].pixels)
    many.loss(views).backward()
    assert torch.equal(before, many.sentences)
    same = made("coprompt", views="same")
    assert torch.equal(*(view.pixels for view in same.training_batch(data_of(same).train[:2])))


def data_of(method: Any, count: int = 6) -> Any:
    from cuelight.methods.base import Data

    rows = [{**method.task.row(k, picture(k)), "label": k % len(method.names)} for k in range(count)]
    items = method.task.encode(rows)
    return Data(items, items, rows)


# ---- MVLPT -------------------------------------------------------------------------------------------------


def test_mvlpt_couples_the_towers() -> None:
    for coupling in (True, False):
        method = made("mvlpt", coupling=coupling, width=8)
        batch = batch_of(method)
        text, images = method.class_features(), method.image_features(batch)
        by_image = gradients(cross_entropy(images @ text.detach().T, batch.label), method)
        text = method.class_features()
        by_text = gradients(cross_entropy(images.detach() @ text.T, batch.label), method)
        for found in (by_image["prompt.text"], by_text["prompt.vision"]):
            assert (found is not None and float(found.abs().max()) > 0) is coupling


def test_mvlpt_pools_tasks() -> None:
    method = made("mvlpt", variant="text", length=4)
    data = data_of(method)
    parts = [(CLASSES, data.train, data.validation), (("owl", "sea"), data.train[:2], [])]
    pool = method._pooled(parts)
    assert pool.names == (*CLASSES, "owl", "sea") and pool.ranges == [(0, 3), (3, 5)]
    assert [i.label for i in pool.train] == [0, 1, 2, 0, 1, 2, 3, 4]
    assert [i.label for i in data.train[:3]] == [0, 1, 2]
    batch = method.task.collate(pool.train)
    with torch.no_grad():
        scores = method._scores(method.prompt, pool, batch)
        one = cross_entropy(scores[:6, :3], batch.label[:6])
        two = cross_entropy(scores[6:, 3:], batch.label[6:] - 3)
        apart = made("mvlpt", variant="text", length=4, mask=True)
        joint = apart._joint_loss(apart.prompt, pool, batch)
        torch.testing.assert_close(joint, (6 * one + 2 * two) / 8)
        # one task is the task alone
        alone = method._pooled(parts[:1])
        found = method._joint_loss(method.prompt, alone, batch_of(method))
        torch.testing.assert_close(found, method.loss(batch_of(method)))


def test_mvlpt_starts_at_the_mean_of_the_source_runs() -> None:
    method = made("mvlpt", width=8, source_runs=3)
    source = made("mvlpt", width=8, init_seed=7).prompt
    method.sources = torch.nn.ModuleList([source] * 3)
    method._transfer()
    for name, value in method.prompt.named_parameters():
        torch.testing.assert_close(value, source.get_parameter(name))
    assert not any(name.startswith("sources") for name in method.kept())


def test_mvlpt_refuses() -> None:
    with pytest.raises(ConfigError, match="length: is 3"):
        made("mvlpt", length=3)
    with pytest.raises(ConfigError, match="together: needs --sources"):
        made("mvlpt", together=True)


# ---- RESTORE -----------------------------------------------------------------------------------------------


def test_restore_shift_loss() -> None:
    method = made("restore", length=2)
    image, text = method.shifts()
    assert float((image - text).square().sum()) == 0
    with torch.no_grad():
        method.prompts.text[1:] *= 1.5
    image = gramless(method.prompts.vision)
    a = 1.5
    ours = restore.gram_norms(method.prompts.text) / method.references[1]
    assert float((ours - 1).square().sum()) == pytest.approx(2 * (a**2 - 1) ** 2, rel=1e-4)
    torch.testing.assert_close(image, restore.gram_norms(method.prompts.vision))
    one = torch.randn(3, 1, 5)
    torch.testing.assert_close(restore.gram_norms(one), one[1:].square().sum((1, 2)))


def gramless(stack: Tensor) -> Tensor:
    """The norms as the authors' code has them, from the wide Gram matrices."""
    return torch.stack([(p.T @ p).norm() for p in stack[1:]])


def test_restore_shift_gradients_leave_the_first_layer_alone() -> None:
    method = made("restore", shift="proxy")
    with torch.no_grad():
        method.prompts.text += 0.1
    image, text = method.shifts()
    found = gradients((text - image).square().sum(), method)
    for name in ("prompts.text", "prompts.weight", "prompts.bias"):
        gradient = found[name]
        assert gradient is not None and not gradient[0].any() and gradient[1:].any()
    with torch.no_grad():
        batch = batch_of(method)
        plain = made("restore", shift="none")
        with torch.no_grad():
            plain.prompts.text += 0.1
        far = (text - image).square().sum()
        torch.testing.assert_close(method.loss(batch), plain.loss(batch) + far)


def test_restore_without_its_parts_is_maple() -> None:
    ours = made("restore", image_ratio=0.0, text_ratio=0.0, shift_weight=0.0)
    maple = made("maple")
    batch = batch_of(maple)
    torch.testing.assert_close(ours.scores(batch), maple.scores(batch))
    one, other = (gradients(m.loss(batch), m) for m in (ours, maple))
    for name, gradient in other.items():
        torch.testing.assert_close(one[name], gradient)


def test_restore_surgery() -> None:
    surgery = restore.Surgery(16, zero_start=False)
    features = torch.randn(3, 16)
    mended = restore.RESTORE._repaired(features, surgery, torch.tensor(0.3))
    torch.testing.assert_close(mended, normalize(features + 0.3 * surgery(features), dim=-1))
    assert not restore.Surgery(16, zero_start=True)(features).any()
    method = made("restore")
    with torch.no_grad():
        for epoch in range(1, 11):
            method._strengthen(epoch, 10)
            if epoch == 3:
                assert method.ratios.tolist() == pytest.approx([0.1, 0.1])
    image, text = restore.gram_norms(method.prompts.vision), restore.gram_norms(method.prompts.text)
    expected = [0.1 + 0.005 * float(image.mean()), 0.1 + 0.02 * float(text.mean())]
    assert method.ratios.tolist() == pytest.approx(expected)


def test_token_shifts() -> None:
    method = made("restore", layers=1, shift="embedding")
    batch = batch_of(method)
    image, text = method.token_shifts(batch)
    assert float(text.abs().max()) == pytest.approx(0, abs=1e-6)  # words are where words were
    assert float(image.min()) > 0
    with torch.no_grad():
        method.prompts.text += 0.3
    image, text = method.token_shifts(batch)
    assert float(text.min()) > 0
    text.sum().backward()
    assert method.prompts.text.grad is not None


# ---- MoCoOp ------------------------------------------------------------------------------------------------


def test_mocoop_of_one_expert_is_coop() -> None:
    ours = made("mocoop", groups=("a photo of a {}.",), text_weight=0.0, gate_weight=0.0)
    coop = made("coop", init="words")
    batch = batch_of(coop)
    losses = ours.loss(batch), coop.loss(batch)
    torch.testing.assert_close(*losses)
    one, other = gradients(losses[0], ours), gradients(losses[1], coop)
    torch.testing.assert_close(one["prompts.0"], other["context"])


def test_mocoop_at_the_start() -> None:
    method = made("mocoop", groups=EUROSAT)
    with torch.no_grad():
        experts, hard = method.experts(), method.prototypes(method.names)
        for k, group in enumerate(EUROSAT):
            torch.testing.assert_close(
                experts[k], method.zero_shot((group.split("|")[0],)), rtol=0, atol=1e-6
            )
            if "|" not in group:
                torch.testing.assert_close(hard[k], experts[k], rtol=0, atol=1e-6)
        batch = batch_of(method)
        shares = method.shares(method.image_features(batch), batch)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        assert ((shares > 0).sum(1) == 2).all()


def test_mocoop_experts_may_be_permuted() -> None:
    order = [2, 0, 1]
    groups = EUROSAT[:3]
    one, other = made("mocoop", groups=groups), made("mocoop", groups=tuple(groups[k] for k in order))
    with torch.no_grad():
        other.router.weight.copy_(one.router.weight[order])
        other.router.bias.copy_(one.router.bias[order])
        batch = batch_of(one)
        torch.testing.assert_close(one.scores(batch), other.scores(batch))
        torch.testing.assert_close(one.loss(batch), other.loss(batch))


def test_the_gate_wants_the_two_nearest_groups() -> None:
    found = mocoop.gate_target(torch.tensor([[0.25, 0.24, 0.23, 0.20]]), 2)
    assert found[0].tolist() == pytest.approx([0.5025, 0.4975, 2e-5, 2e-5], abs=5e-5)


@pytest.mark.parametrize(("classes", "floor"), [(10, 0.797), (100, 2.667), (1000, 4.914)])
def test_bounds_of_mocoops_text_loss(classes: int, floor: float) -> None:
    scores = -torch.ones(1, classes)
    scores[0, 0] = 1
    assert float(cross_entropy(scores, torch.tensor([0]))) == pytest.approx(floor, abs=2e-3)


def test_only_chosen_experts_learn_from_the_picture() -> None:
    method = made("mocoop", groups=EUROSAT, text_weight=0.0, gate_weight=0.0)
    batch = batch_of(method, 1)
    chosen = set((method.shares(method.image_features(batch), batch)[0] > 0).nonzero().flatten().tolist())
    found = gradients(method.loss(batch), method)
    moved = {k for k in range(6) if found[f"prompts.{k}"] is not None and found[f"prompts.{k}"].any()}  # type: ignore[union-attr]
    assert moved == chosen and len(chosen) == 2


def test_mocoop_routing_controls_and_norms() -> None:
    by_chance = made("mocoop", router="random").eval()
    batch = batch_of(by_chance)
    images = by_chance.image_features(batch)
    assert torch.equal(by_chance.shares(images, batch), by_chance.shares(images, batch))
    by_chance.train()
    assert not torch.equal(by_chance.shares(images, batch), by_chance.shares(images, batch))
    equal = made("mocoop", router="uniform").shares(images, batch)
    assert equal.unique().tolist() == pytest.approx([1 / 6])
    tuned = made("mocoop", norms=True)
    torch.testing.assert_close(tuned.image_features(batch), tuned.frozen_features(batch))
    found = gradients(tuned.loss(batch), tuned)
    norms = [g for n, g in found.items() if n.startswith("tuned.")]
    assert len(norms) == 3 * 2 * 2 and all(g is not None and g.any() for g in norms)
    more = made("mocoop", more_names=("owl", "cat"))
    with torch.no_grad():
        assert float((more.text_loss(more.experts()) - equal_text(more)).abs()) > 1e-4
    with pytest.raises(ValueError, match="no place for the class name"):
        made("mocoop", groups=("a photo",))


def equal_text(method: Any) -> Tensor:
    return made("mocoop").text_loss(method.experts())


# ---- KAPT --------------------------------------------------------------------------------------------------


def test_kapt_reads_what_is_known(knowledge: str) -> None:
    method = made("kapt", knowledge=knowledge, words=3, hidden=8)
    method.prepare(data_of(method), 0)
    assert method.knowledge["tall tree"] == "A woody plant with a trunk. It has leaves."
    decoded = [method.backbone.tokenizer.decode(row[row >= 0]) for row in method.tokens.ids]
    assert "woody plant trunk tall tree" in decoded[1] and "leaves" not in decoded[1]
    plain = made("kapt", knowledge=knowledge, words=0, continuous=False, head=False)
    assert [n for n, _ in plain.named_parameters()] == ["context"]  # CoOp
    found = gradients(method.loss(batch_of(method)), method)
    assert found["head.out.weight"].any() and not found["head.query.weight"].any()  # type: ignore[union-attr]
    assert found["network.2.weight"].any() and not found["network.0.weight"].any()  # type: ignore[union-attr]
    with torch.no_grad():
        method.head.out.weight.normal_()
        before = method.scores(batch_of(method))
        method.rename(("red square", "cat", "tall tree"))
        after = method.scores(batch_of(method))
    torch.testing.assert_close(before[:, [2, 0, 1]], after, rtol=1e-4, atol=1e-4)
    method.rename(("blue sea", "cat"))  # read anew
    assert method.knowledge["blue sea"].startswith("Salt water")
    assert "owl" not in method.knowledge
    method.rename(("owl", "blue sea"))  # unknown: described by its name
    torch.testing.assert_close(method._described[0], normalize(method.texts(["owl"]), dim=-1)[0])


def test_kapt_head() -> None:
    head = kapt.Head(16, 4)
    torch.nn.init.normal_(head.out.weight)
    alike = torch.randn(2, 1, 16).expand(-1, 5, -1)
    torch.testing.assert_close(head(torch.randn(16), alike), head.out(alike[:, 0]))


def test_kapt_same_descriptions_make_same_contexts(tmp_path: Path) -> None:
    (tmp_path / "k.txt").write_text("cat: the same\ntall tree: the same\nred square: another\n")
    method = made("kapt", knowledge=str(tmp_path / "k.txt"), hidden=8)
    method.prepare(data_of(method), 0)
    with torch.no_grad():
        method.network[2].weight.normal_()
        shift = method.network(method._described)
    torch.testing.assert_close(shift[0], shift[1])
    assert not torch.allclose(shift[0], shift[2])
    long = made("kapt", knowledge=str(tmp_path / "k.txt"), words=100)
    (tmp_path / "k.txt").write_text("cat: " + " ".join(f"unheardof{k}x" for k in range(90)) + "\n")
    long.prepare(data_of(long), 0)  # the discrete part is cut to what the tower reads
    assert long.tokens.ids.shape[1] <= 77


# ---- CTP+TFT -----------------------------------------------------------------------------------------------


def test_ctp_tft_routes_and_symmetries() -> None:
    method = made("ctp-tft").train()
    batch = batch_of(method, 2)
    found = gradients(method.loss(batch), method)
    assert found["network.2.weight"].any() and found["out.weight"].any()  # type: ignore[union-attr]
    for name in ("class_query", "patch_key", "image_query", "class_key"):
        assert not found[f"{name}.weight"].any()  # type: ignore[union-attr]
    with torch.no_grad():
        for layer in (method.network[2], method.out):
            layer.weight.normal_(0, 0.3)
    found = gradients(method.loss(batch), method)
    for name in ("class_query", "patch_key", "image_query", "class_key"):
        assert found[f"{name}.weight"].any()  # type: ignore[union-attr]
    with torch.no_grad():
        images, texts = method.both(batch)
        tokens = normalize(method.image_tokens(batch), dim=-1)
        heard = method.heard(tokens)
        assert not torch.allclose(heard[:, 0], heard[:, 1], atol=1e-4)
        alike = tokens[:, :2].mean(1, keepdim=True).expand(-1, 5, -1)
        torch.testing.assert_close(method.heard(alike), alike[:, :3])
        method.config = method.config.model_copy(update={"texts_at_once": 4})
        torch.testing.assert_close(method.both(batch)[1], texts)
        method.rename(("red square", "cat", "tall tree"))
        moved, order = method.both(batch)
        torch.testing.assert_close(order, texts[:, [2, 0, 1]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moved, images, rtol=1e-4, atol=1e-5)
        method._zero_shot.clear()
        method.zero_shot = lambda *_, **__: torch.ones(3, 16) / 4  # classes that ask alike
        alike = method.heard(tokens)
        torch.testing.assert_close(alike[:, 0], alike[:, 1])


def test_ctp_without_class_queries_is_cocoop() -> None:
    method = made("ctp-tft", query="shared", image_fusion=False)
    batch = batch_of(method, 2)
    with torch.no_grad():
        method.network[2].weight.normal_(0, 0.3)
        images = normalize(method.frozen_features(batch), dim=-1)
        shift = method.network(images)  # CoCoOp's: of the picture's feature, for all classes
        for k in range(2):
            text = encode_text(method.backbone, method.tokens, method.context + shift[k])
            torch.testing.assert_close(method.scores(batch)[k], method.dual.scale * images[k] @ text.T)


# ---- GRAM --------------------------------------------------------------------------------------------------


def test_the_regulator_is_a_gate() -> None:
    gate, gradient = gram.Regulator(32), torch.randn(5, 32)
    assert torch.equal(gate(gradient), gradient)
    torch.nn.init.normal_(gate.up.weight)
    found = gate(gradient)
    ratio = found / gradient
    assert float(ratio.min()) > 0 and float(ratio.max()) < 2 and float(ratio.std()) > 0.01
    torch.testing.assert_close(gate(gradient[[3, 1, 0]]), found[[3, 1, 0]])
    torch.testing.assert_close(gate(1e-6 * gradient), 1e-6 * found)
    assert torch.equal(gate(torch.zeros(2, 32)), torch.zeros(2, 32))
    free = gram.Regulator(32, residual=True)
    assert torch.equal(free(gradient), gradient)


@pytest.mark.parametrize(("second_order", "expected"), [(True, 0.5008), (False, 0.6870)])
def test_the_meta_gradient_of_a_quadratic(second_order: bool, expected: float) -> None:
    theta = torch.tensor([[2.0]], requires_grad=True)
    found = gram.adapted(
        [theta],
        lambda t: 0.5 * (t[0] + 1).square().sum(),
        [lambda g: g],
        steps=3,
        rate=0.1,
        second_order=second_order,
    )
    (0.5 * (found[0] - 0.5).square().sum()).backward()
    assert float(found[0]) == pytest.approx(-1 + 0.9**3 * 3)
    assert theta.grad is not None
    assert float(theta.grad) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("steps", "second_order", "exact"), [(1, False, True), (3, True, True), (3, False, False)]
)
def test_the_regulators_gradient_by_differences(steps: int, second_order: bool, exact: bool) -> None:
    torch.manual_seed(0)
    gate = gram.Regulator(16).double()
    torch.nn.init.normal_(gate.up.weight)
    theta = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    goals = torch.randn(2, 2, 16, dtype=torch.float64)

    def outer() -> Tensor:
        def inner(t: Any) -> Tensor:
            return (t[0] - goals[0]).pow(4).sum()

        found = gram.adapted([theta], inner, [gate], steps, 0.02, second_order=second_order)
        return (found[0] - goals[1]).square().sum()

    outer().backward()
    place, step = (3, 0), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            gate.up.weight[place] += sign * step
        values.append(float(outer().detach()))
        with torch.no_grad():
            gate.up.weight[place] -= sign * step
    slope = (values[0] - values[1]) / (2 * step)
    assert (float(gate.up.weight.grad[place]) == pytest.approx(slope, rel=1e-4)) is exact  # type: ignore[index]


def test_no_inner_steps_no_gradient_to_the_regulator() -> None:
    theta, gate = torch.randn(2, 8, requires_grad=True), gram.Regulator(8)
    found = gram.adapted([theta], lambda t: t[0].sum(), [gate], 0, 0.1)
    found[0].square().sum().backward()
    assert theta.grad is not None and all(p.grad is None for p in gate.parameters())


@cache
def pairs_file() -> str:
    """Captioned squares: five colours in two styles."""
    import io
    import tempfile

    import pandas as pd

    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white", "black")):
        for k in range(16):
            draw = np.random.RandomState(100 * number + k)
            base = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}.get(
                colour, (250,) * 3 if colour == "white" else (5,) * 3
            )
            pixels = np.full((32, 32, 3), base, dtype=np.uint8)
            noise = draw.randint(0, 60 if k % 2 else 4, pixels.shape)
            buffer = io.BytesIO()
            Image.fromarray(np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
            rows.append({"image": buffer.getvalue(), "caption": f"There is a {colour} square, number {k}."})
    path = Path(tempfile.mkdtemp()) / "pairs.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return str(path)


def test_tasks_from_captions() -> None:
    method = made("gram", pairs=pairs_file(), ways=3, class_size=8)
    method.prepare(data_of(method), 0)
    assert len(method._classes) >= 3
    for one in method._classes:
        assert min(map(len, one.domains)) >= 2 and not set(one.domains[0]) & set(one.domains[1])
        assert one.name and one.name.lower() not in CLASSES
    for number in range(10):
        task = method.episode(number)
        ways = len(task.tokens)
        assert 2 <= ways <= 3
        for items, labels in (task.support, task.query):
            assert len(items) == len(labels) == 2 * ways
        learned, checked = ({item.key for item in side[0]} for side in (task.support, task.query))
        assert not learned & checked
    assert method.episode(3).support[1].tolist() == method.episode(3).support[1].tolist()


def test_gram_regulates_the_target() -> None:
    method = made("gram", pairs=pairs_file())
    batch = batch_of(method)
    plain = made("gram")
    torch.nn.init.normal_(method.regulators[0].up.weight)
    ours, other = (gradients(m.loss(batch), m) for m in (method, plain))
    torch.testing.assert_close(ours["theta.0"], method.regulators[0](other["theta.0"]).detach())
    assert all(g is None for n, g in ours.items() if n.startswith("regulators"))
    off = made("gram", pairs=pairs_file(), regulate=False)
    torch.testing.assert_close(gradients(off.loss(batch), off)["theta.0"], other["theta.0"])
    coop = made("coop", init="words")
    torch.testing.assert_close(gradients(coop.loss(batch), coop)["context"], other["theta.0"])


def test_a_gram_artifact_is_a_start(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": random_clip(), "data": folder, "shots": 2, "epochs": 2}
    run = cuelight.tune("gram", pairs=pairs_file(), meta_steps=3, **options, output=tmp_path / "one")
    assert run.training is not None
    assert {entry["stage"] for entry in run.training.history} == {"meta", "gram"}
    first = run.prompt.method
    words = made("gram").theta[0]
    assert not torch.allclose(first.start[0], words)
    assert not torch.allclose(first.start[0], first.theta[0])
    again = cuelight.tune("gram", pairs=str(tmp_path / "one"), **options)
    assert torch.equal(again.prompt.method.start[0], first.start[0])
    assert torch.equal(again.prompt.method.theta[0], first.theta[0])  # the same target run
    with pytest.raises(ArtifactError, match="another kind of prompt"):
        cuelight.tune("gram", pairs=str(tmp_path / "one"), base="unified", **options)


# ---- whole runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of squares, train and test."""
    root = tmp_path_factory.mktemp("squares")
    for split, count, first in (("train", 6, 0), ("test", 3, 100)):
        for k, colour in enumerate(("red", "green", "blue")):
            place = root / split / f"{colour}_square"
            place.mkdir(parents=True)
            for n in range(count):
                pixels = np.random.RandomState(first + n).randint(0, 120, (36, 36, 3)).astype(np.uint8)
                pixels[8:28, 8:28, k] = 230
                Image.fromarray(pixels).save(place / f"{n}.png")
    return root


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maple", {}),
        ("promptsrc", {}),
        ("coprompt", {}),
        ("mvlpt", {"sources": True, "source_runs": 2}),
        ("mvlpt", {"sources": True, "together": True, "variant": "text"}),
        ("restore", {"shift_weight": 0.1}),
        ("mocoop", {}),
        ("kapt", {"knowledge": True}),
        ("ctp-tft", {}),
        ("gram", {"pairs": True, "base": "unified", "meta_steps": 2}),
    ],
)
def test_learns_saves_and_answers(name: str, options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    names = ("blue square", "green square", "red square")
    (tmp_path / "k.txt").write_text("".join(f"{n}: a shape of {n[:4]}\n" for n in (*names, "owl")))
    files = {"sources": str(folder), "knowledge": str(tmp_path / "k.txt"), "pairs": pairs_file()}
    given = {k: files[k] if v is True and k in files else v for k, v in options.items()}
    run = cuelight.tune(
        name,
        backbone=random_clip(),
        data=folder,
        shots=4,
        epochs=15 if name != "ctp-tft" else 6,
        batch_size=4,
        learning_rate=0.05 if name != "restore" else 0.01,  # its ratios start at tiny norms
        output=tmp_path / "run",
        **given,
    )
    assert run.training is not None
    losses = [
        entry["loss"] for entry in run.training.history if entry["stage"] == run.training.history[-1]["stage"]
    ]
    third = max(1, len(losses) // 3)
    assert np.mean(losses[-third:]) < np.mean(losses[:third])
    assert all(math.isfinite(loss) for loss in losses)
    again = cuelight.load(tmp_path / "run", backbone=random_clip())
    pictures = sorted(folder.glob("test/*/*.png"))
    assert again.predict(pictures, probabilities=True) == run.prompt.predict(pictures, probabilities=True)
    again.method.rename(("owl", "red square"))
    assert set(again.predict(pictures)) <= {"owl", "red square"}


@pytest.mark.parametrize(("name", "event"), [("promptsrc", "_gather"), ("restore", "_strengthen")])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    name: str, event: str, folder: Path, tmp_path: Path
) -> None:
    """What happens at the ends of epochs is in the checkpoints."""
    given: dict[str, Any] = {"backbone": random_clip(), "data": folder, "shots": 2, "epochs": 4}
    whole = cuelight.tune(name, **given, output=tmp_path / "whole").prompt.method.kept()
    kind = get_method(name)
    usual, seen = getattr(kind, event), []

    def torn(self: Any, epoch: int, epochs: int) -> None:
        usual(self, epoch, epochs)
        seen.append(epoch)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, event, torn)
        with pytest.raises(KeyboardInterrupt):
            cuelight.tune(name, **given, checkpoint_every=1, output=tmp_path / "torn")
        found = cuelight.tune(name, **given, checkpoint_every=1, output=tmp_path / "torn")
    assert seen == [1, 2, 3, 3, 4]
    for key, value in found.prompt.method.kept().items():
        assert torch.equal(value, whole[key]), key


def test_cosines_are_between_unit_vectors() -> None:
    for name in ("maple", "promptsrc", "coprompt", "restore"):
        method = made(name)
        batch = batch_of(method)
        for features in (method.class_features(), method.image_features(batch)):
            torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
        scores = method.scores(batch) / method.dual.scale
        expected = cosine_similarity(
            method.image_features(batch)[:, None], method.class_features()[None], dim=-1
        )
        torch.testing.assert_close(scores, expected)
