"""BayesPrompt: prompt words that hold a draw from what the domain's texts look like.

For relation extraction from few labels.  Texts are pooled to the mean of their input embeddings.  A Gaussian mixture
is fitted to the pooled texts of the domain, Stein variational gradient descent moves the pooled training rows towards
it, and the mean of a few of these particles stands at the prompt words around the two entities.  The language model is
tuned with virtual label words, one vector a class that starts as the mean of the class name's tokens.  After a first
epoch of ordinary prompt-based fine-tuning the prompt words hold the draw, which no gradient reaches.

Relations: ``--template "{soft.sub:subject} {head} {soft.sub} {mask} {soft.obj:object} {tail} {soft.obj} .
{text:head_span,tail_span}"`` for data with the columns ``text``, ``head``, ``tail`` and their places (``{text:head,tail}``
looks the words up).  The paper's new vocabulary is soft slots here, so the model's own is untouched: the template's
soft words called ``sub`` and ``obj`` are the prompt words, ``{text:...}`` puts learned entity markers around the words,
and a soft verbalizer holds the label words.  On any other data, without soft words of these names, two prompt words
stand before the text.

Learns: all weights of a copy of the model, the markers, a vector a class; the prompt words only in the first epoch (and
with ``--abstraction none``, which is KnowPrompt without its knowledge).  Costs: full fine-tuning; beforehand the mixture
and ``svgd_steps`` steps, each ``particles x classes x width^2``.

Source: Li et al., *BayesPrompt: Prompting Large-Scale Pre-Trained Language Models on Few-shot Inference via Debiased
Domain Abstraction*, ICLR 2024, arXiv 2401.14166.  As released the mixture sees the text of the whole training split,
not just the shots; that is ``--unlabelled DATA``, and the default, the rows given, is ours.  So are: one draw for the
run and for answering (``--mode as_released`` draws anew for every batch, also when it answers), pooling over a text's
own tokens (``--pool padded`` counts padding up to ``max_length``, as released, which leaves little but the padding),
at most 512 particles, the optimiser and its rate starting anew behind the first epoch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.backbones.backbone import Backbone
from cuelight.data.texts import read_texts
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.cloze import Cloze, ClozeConfig, label_rows
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.prompts.svgd import Mixture, svgd
from cuelight.tasks.text import Item, TextTask
from cuelight.tasks.verbalizers import SoftVerbalizer
from cuelight.training import ParamGroup, Stage

_PROMPT_WORDS = {"sub": "subject", "obj": "object"}
_NO_RELATION = ("na", "other", "no relation", "none")
_MOST_PARTICLES = 512


class BayesPromptConfig(ClozeConfig):
    verbalizer: Literal["manual", "weighted", "soft", "prototypical"] = Field(
        "soft", description="From the slot to classes: virtual label words are 'soft'."
    )
    abstraction: Literal["svgd", "mean", "random", "none"] = Field(
        "svgd",
        description="What the prompt words hold: particles moved to the domain's mixture; the mean of the training rows; "
        "noise as long as svgd's; or nothing, they learn.",
    )
    mode: Literal["frozen_draw", "as_released"] = Field(
        "frozen_draw",
        description="One draw of particles for training and answering, or a new one for every batch of both.",
    )
    unlabelled: str | None = Field(
        None,
        description="Data whose texts (training split) the mixture is fitted to; default: the training rows.",
    )
    max_unlabelled: int = Field(2000, ge=2, description="Most texts of --unlabelled, drawn by the seed.")
    pool: Literal["tokens", "padded"] = Field(
        "tokens", description="Mean over a text's tokens, or over padding up to max_length too (as released)."
    )
    ridge: float = Field(0.1, gt=0, description="Added to the diagonal of the mixture's covariances.")
    svgd_steps: int = Field(1000, ge=0, description="Steps that move the particles.")
    svgd_rate: float = Field(0.01, gt=0, description="How far a step moves a particle in each coordinate.")
    negate: bool = Field(False, description="Control: move the particles away from the mixture.")


class BayesPrompt(Cloze):
    """Prompt words that hold the mean of some particles, a tuned model, virtual label words.

    Attributes:
        own: ``[2, width]``, the prompt words before the text, when the template has none.
        particles: ``[n, width]``, of which every draw takes the mean of as many as there are classes (all, if fewer);
            a single one if the draw is made already.  Empty before `prepare`, and without an abstraction.
    """

    card: ClassVar[Card] = Card(
        name="bayesprompt",
        title="BayesPrompt: prompt words drawn from a mixture fitted to the domain",
        family="fewshot",
        modality="text",
        learns="all weights of a copy of the model, entity markers, a vector a class",
        cost="full fine-tuning; beforehand a Gaussian mixture and 1,000 steps of particles",
        kinds=("masked", "seq2seq", "causal"),
        tasks=("classification",),
        paper="BayesPrompt: Prompting Large-Scale Pre-Trained Language Models on Few-shot Inference via Debiased Domain "
        "Abstraction",
        arxiv="2401.14166",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = BayesPromptConfig
    opens: ClassVar[tuple[str, ...]] = ("unlabelled",)
    training_defaults: ClassVar[dict[str, Any]] = {
        "steps": 200,
        "warmup": 0.1,
        "batch_size": 16,
        "weight_decay": 0.01,
    }

    def __init__(self, backbone: Backbone, task: TextTask, config: BayesPromptConfig) -> None:
        super().__init__(backbone, task, config)
        place = backbone.device
        written = torch.tensor([name in _PROMPT_WORDS for name in task.soft_names], dtype=torch.bool)
        self.written: Tensor
        self.register_buffer("written", written.to(place), persistent=False)
        self.own: nn.Parameter | None = None
        if not written.any():
            ids = [task.continuation(word) for word in _PROMPT_WORDS.values()]
            words = [backbone.embed(torch.tensor(i, device=place)).detach().float().mean(0) for i in ids]
            self.own = nn.Parameter(torch.stack(words))
        self.particles: Tensor
        self.register_buffer("particles", torch.zeros(0, backbone.tower.width, device=place))

    def make_verbalizer(self) -> nn.Module:
        if self.config.verbalizer != "soft":
            return super().make_verbalizer()
        given = self.task.config.label_words or {}
        words = [
            ids if name in given else [self.task.continuation(relation_words(name)) or ids[0]]
            for name, ids in zip(self.task.classes, self.task.word_ids, strict=True)
        ]
        return SoftVerbalizer(label_rows(self.backbone, words))

    # ---- the draw --------------------------------------------------------------------------------------

    _ordinary = False
    """In the first epoch, when prompt words are words that learn."""

    def draw(self) -> Tensor | None:
        """What stands at the prompt words, ``[width]``; None while they learn."""
        if self._ordinary or not len(self.particles):
            return None
        most, found = len(self.task.classes), self.particles
        if len(found) > most:
            found = found[torch.randperm(len(found))[:most].to(found.device)]
        return found.mean(0)

    def condition(self, batch: TextBatch) -> Condition:
        drawn = self.draw()
        if drawn is None:
            return Condition(prompt=self.own, soft=self.soft)
        if self.own is not None:
            return Condition(prompt=drawn.expand_as(self.own), soft=self.soft)
        assert self.soft is not None
        return Condition(soft=torch.where(self.written[:, None], drawn, self.soft))

    # ---- the domain ------------------------------------------------------------------------------------

    @torch.no_grad()
    def pooled(self, items: Sequence[Item]) -> Tensor:
        """Mean input embeddings of filled templates, ``[n, width]``, before anything is tuned."""
        lm, place = self.backbone, self.backbone.device
        padding = lm.embed(torch.tensor([lm.tokenizer.pad_token_id or 0], device=place))[0].double()
        found = []
        for item in items:
            ids = torch.tensor(item.text, device=place)
            rows = lm.embed(ids.clamp(min=0)).double()
            if self.soft is not None:
                slots = ids < 0
                rows[slots] = self.soft[-1 - ids[slots]].double()
            if self.config.pool == "tokens":
                found.append(rows.mean(0))
            else:
                rest = max(self.task.max_length - len(ids), 0)
                found.append((rows.sum(0) + rest * padding) / (len(ids) + rest))
        return torch.stack(found)

    def prepare(self, data: Data, seed: int) -> None:
        super().prepare(data, seed)
        if self.config.abstraction != "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.particles = self._abstracted(data, seed).to(self.particles)

    def _abstracted(self, data: Data, seed: int) -> Tensor:
        """The particles that draws are made of; random numbers come from torch, which is seeded."""
        shots = self.pooled(data.train)
        if self.config.abstraction == "mean":
            return shots.mean(0, keepdim=True)
        domain = shots
        if self.config.unlabelled is not None:
            rows = read_texts(
                self.config.unlabelled,
                pairs=self.task.pairs,
                columns=self.task.columns,
                most=self.config.max_unlabelled,
                seed=seed,
            )
            domain = self.pooled(self.task.encode(rows, answers=False))
        mixture = Mixture.fit(domain, len(self.task.classes), self.config.ridge, seed).to(torch.float32)
        start = shots[torch.randperm(len(shots))[:_MOST_PARTICLES].to(shots.device)]
        moved = svgd(
            mixture.score,
            start.float(),
            steps=self.config.svgd_steps,
            rate=self.config.svgd_rate,
            away=self.config.negate,
            progress="moving particles" if self.progress else None,
        )
        one = moved[: len(self.task.classes)].mean(0, keepdim=True)  # in no order: the first are a draw
        if self.config.abstraction == "random":
            noise = torch.randn(one.shape).to(one.device)
            return noise * one.norm() / noise.norm()
        return one if self.config.mode == "frozen_draw" else moved

    # ---- learning --------------------------------------------------------------------------------------

    def groups(self) -> list[ParamGroup]:
        found = super().groups()
        if self.own is not None:
            found.append(ParamGroup("prompt words", {"own": self.own}, lr=self.config.template_rate))
        return found

    def stages(self, data: Data) -> list[Stage]:
        """One epoch in which prompt words learn, then as many steps as asked for with the draw."""
        main, *more = super().stages(data)
        once = {"epochs": 1.0, "schedule": "constant", "keep": "last", "evaluate_every": 10**9}
        first = replace(main, name="first epoch", begin=self._entering(True, main.begin), insists=once)
        return [first, replace(main, begin=self._entering(False, main.begin)), *more]

    def _entering(self, ordinary: bool, before: Callable[[], None] | None) -> Callable[[], None]:
        def begin() -> None:
            self._ordinary = ordinary
            if before is not None:
                before()

        return begin

    def restore(self, tensors: Mapping[str, Tensor], source: str) -> None:
        saved = tensors.get("particles")
        if saved is not None and saved.shape[1:] == self.particles.shape[1:]:
            self.particles = self.particles.new_empty(saved.shape)
        super().restore(tensors, source)


def relation_words(name: str) -> str:
    """A relation's name as words: ``per:city_of_birth`` is ``person city of birth``, ``Other`` is ``no relation``."""
    words = re.split(r"[\s:_/-]+", name.lower().partition("(")[0].strip())
    plain = " ".join({"per": "person", "org": "organization"}.get(word, word) for word in words)
    return "no relation" if plain in _NO_RELATION else plain
