"""LiST: self-training with prompts, in which only adapters and the head learn.

A teacher, adapters in a frozen language model, is tuned by cloze prompting on the few labels there are.  It labels many
texts, softly.  A student, with adapters as at the start, learns from these labels alone, and then from the true ones.
The student is the next round's teacher.  Each pseudo-label counts as much as one step on it would lower the loss on true
labels: ``w_u ~ max(<grad L_labelled, grad L_u>, 0)``, which is what differentiating through that step comes to.  All
count alike in the first part of a round.

Learns: adapters behind the output layers of all sublayers, ``4 layers rank width`` values, and the dense part of a masked
model's head; the encoder and the word scores stay.  Costs: a tuning for the teacher and two for every round; with
weights learned, a step takes two passes over true labels and three over pseudo-labelled texts more.  The adapters are
linear, and merge exactly.

Source: Wang et al., *LiST: Lite Prompted Self-training Makes Parameter-Efficient Few-shot Learners*, Findings of NAACL
2022, arXiv 2110.06274.  Departures: word scores stay (there the label words' rows learn, and with them, tied, their
embeddings); pseudo-labels of a round are all made before it begins, of at most ``max_unlabelled`` texts drawn anew;
weights are normalised by their sum with a relative epsilon (1e-6 as such swallows small gradients).  Ours: rates and
numbers of steps that suit small models (the paper: 6 rounds of 1,000 steps, 50 epochs of true labels), encoder-decoder
and causal models, in which there is no head to learn.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import kl_div

from cuelight.backbones.adapters import Adapters
from cuelight.backbones.backbone import Backbone
from cuelight.data.texts import read_texts
from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.cloze import Cloze, ClozeConfig
from cuelight.prompts.conditioning import TextBatch
from cuelight.tasks.text import Item, TextTask
from cuelight.training import ParamGroup, Stage

Pseudo = tuple[Item, Tensor, bool]
"""A text, its label ``[C]`` as the teacher gives it, and whether it was corrupted on purpose."""


class LiSTConfig(ClozeConfig):
    model: Literal["adapters", "tuned"] = Field(  # type: ignore[assignment]
        "adapters", description="What learns: adapters and the head, or all weights."
    )
    verbalizer: Literal["manual", "weighted", "soft"] = Field(
        "manual", description="From the slot to classes: words; words with learned weights; a vector a class."
    )
    model_rate: float | None = Field(
        None, gt=0, description="Rate of what learns in the model (default 1e-3 adapters, 2e-5 all weights)."
    )
    unlabelled: str | None = Field(
        None, description="Data with the texts to label (its training split); needed unless --rounds is 0."
    )
    max_unlabelled: int = Field(2000, ge=1, description="Texts labelled in a round at most, drawn anew.")
    rank: int = Field(128, ge=1, description="Width of the adapters' bottlenecks.")
    adapter: Literal["linear", "relu"] = Field(
        "linear", description="Adapter without a non-linearity, or with one (Houlsby et al.)."
    )
    adapter_deviation: float = Field(2e-4, gt=0, description="Deviation of the adapters' start.")
    targets: str = Field(
        "", description="Linear layers that get an adapter, comma separated; found by default."
    )
    rounds: int = Field(3, ge=0, description="Rounds of self-training; 0 is prompt-based tuning of adapters.")
    pseudo_steps: int = Field(150, ge=1, description="Steps on pseudo-labels in each round.")
    pseudo_batch: int = Field(16, ge=1, description="Pseudo-labelled texts in a step.")
    reweight: Literal["meta", "uniform", "random"] = Field(
        "meta",
        description="Weights of pseudo-labels: learned from the true labels, equal, or drawn (a control).",
    )
    reweight_from: float = Field(
        0.6, ge=0, le=1, description="Share of a round's steps before weights are learned."
    )
    meta_batch: int = Field(4, ge=1, description="True labels that a step's weights are learned from.")
    new_student: bool = Field(
        True, description="Off: the student goes on from the teacher's weights (a control)."
    )
    final_labels: bool = Field(True, description="Off: a round ends without true labels (a control).")
    corrupt: float = Field(
        0.0, ge=0, le=1, description="Share of pseudo-labels made wrong on purpose (a test)."
    )


class LiST(Cloze):
    """Rounds of self-training over a twin of the backbone with adapters.

    Attributes:
        trust: ``[2, 2]``, sums of learned weights and their number, for pseudo-labels as they are and corrupted ones.
    """

    card: ClassVar[Card] = Card(
        name="list",
        title="LiST: lite prompted self-training",
        family="fewshot",
        modality="text",
        learns="adapters behind every sublayer, and the dense part of a masked model's head",
        cost="a tuning of adapters for the teacher and two for every round; none in use, when merged",
        kinds=("masked", "causal", "seq2seq"),
        tasks=("classification",),
        paper="LiST: Lite Prompted Self-training Makes Parameter-Efficient Few-shot Learners",
        arxiv="2110.06274",
        year=2022,
    )
    Config: ClassVar[type[MethodConfig]] = LiSTConfig
    opens: ClassVar[tuple[str, ...]] = ("unlabelled",)
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 150, "batch_size": 4, "keep": "last"}

    def __init__(self, backbone: Backbone, task: TextTask, config: LiSTConfig) -> None:
        super().__init__(backbone, task, config)
        self.adapters: Adapters | None = None
        if config.model == "adapters":
            names = [name.strip() for name in config.targets.split(",") if name.strip()]
            self.adapters = Adapters(
                backbone,
                config.rank,
                deviation=config.adapter_deviation,
                relu=config.adapter == "relu",
                targets=names or None,
            )
            self.lm = self.adapters.lm
            self.weights = nn.ParameterDict(self.adapters.weights)
        self._fresh = {name: tensor.detach().clone() for name, tensor in self.named_parameters()}
        self.step: Tensor
        self.trust: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("trust", torch.zeros(2, 2, dtype=torch.float64))

    def kept(self) -> dict[str, Tensor]:
        return {name: t for name, t in super().kept().items() if name not in ("step", "trust")}

    def merged(self) -> Backbone:
        """The tuned model without adapters, as a backbone."""
        return self.lm if self.adapters is None else self.adapters.merged()

    def groups(self) -> list[ParamGroup]:
        found = super().groups()
        if self.adapters is not None:
            found[0].lr = self.config.model_rate or 1e-3
        return found

    # ---- pseudo-labels ---------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        """Read the unlabelled texts.

        Raises:
            ConfigError, DataError: there are none, or they can not be read.
        """
        super().prepare(data, seed)
        self._labelled = data.train
        if not self.config.rounds:
            return
        if self.config.unlabelled is None:
            raise ConfigError(
                "unlabelled: list learns from unlabelled texts; give --unlabelled DATA, or --rounds 0"
            )
        rows = read_texts(self.config.unlabelled, pairs=self.task.pairs, columns=self.task.columns)
        known = {tuple(item.text) for item in data.train}
        items = [item for item in self.task.encode(rows, answers=False) if tuple(item.text) not in known]
        if not items:
            raise ConfigError("unlabelled: has no text that is not among the labelled rows; give more")
        self._pool = items

    @torch.no_grad()
    def pseudo_labels(self, items: Sequence[Item]) -> Tensor:
        """Class probabilities ``[n, C]`` as the model gives them now."""
        self.eval()
        order = sorted(range(len(items)), key=lambda k: len(items[k].text))
        parts = []
        for k in range(0, len(order), 32):
            batch = self.task.collate([items[j] for j in order[k : k + 32]]).to(self.backbone.device)
            parts.append(self.scores(batch).softmax(-1).cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def _begin_round(self) -> None:
        """The model labels texts as teacher, and starts again as student."""
        drawn = torch.randperm(len(self._pool))[: self.config.max_unlabelled].tolist()
        items = [self._pool[k] for k in drawn]
        labels = self.pseudo_labels(items)
        wrong = torch.rand(len(items)) < self.config.corrupt
        # Another class gets the probability of the likeliest: as sure as before, and wrong.
        moved = labels.roll(1, dims=-1)
        labels = torch.where(wrong[:, None], moved, labels)
        self._pseudo = list(zip(items, labels, wrong.tolist(), strict=True))
        self.step.zero_()
        if self.config.new_student:
            with torch.no_grad():
                for name, parameter in self.named_parameters():
                    parameter.copy_(self._fresh[name])

    def _collate(self, rows: Sequence[Pseudo]) -> TextBatch:
        batch = self.task.collate([item for item, _, _ in rows])
        batch.extra["pseudo"] = torch.stack([label for _, label, _ in rows])
        batch.extra["corrupt"] = torch.tensor([wrong for _, _, wrong in rows])
        return batch

    def divergences(self, batch: TextBatch) -> Tensor:
        """``KL(pseudo-label, prediction)`` of every row, ``[B]``."""
        return kl_div(self.scores(batch).log_softmax(-1), batch.extra["pseudo"], reduction="none").sum(-1)

    def pseudo_loss(self, batch: TextBatch) -> Tensor:
        """The weighted sum of the rows' divergences."""
        weights = self._weights(batch)
        return (weights * self.divergences(batch)).sum()

    def _weights(self, batch: TextBatch) -> Tensor:
        rows = len(batch.text)
        equal = torch.full((rows,), 1 / rows, device=batch.text.device)
        early = int(self.step) < self.config.reweight_from * self.config.pseudo_steps
        if early or self.config.reweight == "uniform":
            return equal
        if self.config.reweight == "random":
            drawn = torch.rand(rows).to(equal)
            return drawn / drawn.sum()
        chosen = torch.randperm(len(self._labelled))[: self.config.meta_batch].tolist()
        shown = self.task.collate([self._labelled[k] for k in chosen]).to(self.backbone.device)
        found = self.meta_weights(batch, shown)
        for wrong in (False, True):
            these = found[batch.extra["corrupt"] == wrong]
            self.trust[int(wrong)] += torch.tensor([float(these.sum()), len(these)]).to(self.trust)
        return found

    def meta_weights(self, batch: TextBatch, labelled: TextBatch) -> Tensor:
        """How much each pseudo-labelled row counts, ``[B]``, at least 0, with a sum of 1 (or 0: none would help).

        The inner products of the rows' gradients with that of the true labels, in evaluation mode.  One backward pass
        gives them all: the gradient of ``sum_u v_u L_u`` is linear in ``v``, and what its product with the other
        gradient changes by with ``v_u`` is the product wanted.
        """
        was = self.training
        self.eval()
        learned = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # others can not be differentiated twice
            wanted = torch.autograd.grad(self.loss(labelled), learned, allow_unused=True)
            losses = self.divergences(batch)
            counts = torch.ones_like(losses, requires_grad=True)
            given = torch.autograd.grad(losses, learned, counts, create_graph=True, allow_unused=True)
            pairs = [(a, b) for a, b in zip(given, wanted, strict=True) if a is not None and b is not None]
            product = torch.stack([(a * b).sum() for a, b in pairs]).sum()
            (inner,) = torch.autograd.grad(product, counts)
        self.train(was)
        useful = inner.clamp(min=0)
        return useful / useful.sum().clamp(min=torch.finfo(useful.dtype).tiny)

    def _count(self) -> None:
        self.step += 1

    # ---- stages ----------------------------------------------------------------------------------------

    def stages(self, data: Data) -> list[Stage]:
        (teacher,) = super().stages(data)
        found = [teacher]
        insists = {
            "steps": self.config.pseudo_steps,
            "batch_size": self.config.pseudo_batch,
            "accumulation": 1,
            "keep": "last",
            "evaluate_every": self.config.pseudo_steps,
        }
        for k in range(1, self.config.rounds + 1):
            found.append(
                Stage(
                    name=f"round {k}, pseudo-labels",
                    groups=self.groups(),
                    examples=lambda: self._pseudo,
                    collate=self._collate,
                    loss=self.pseudo_loss,
                    begin=self._begin_round,
                    after_step=self._count,
                    insists=insists,
                )
            )
            if self.config.final_labels:
                last = copy.copy(teacher)
                last.name = f"round {k}, labels"
                found.append(last)
        return found
