"""Clinical prompt learning: a frozen language model classifies by a template and a verbalizer, against a head.

A comparison first of all: how far does prompting get with nothing of the model tuned, against a classification head on
the same frozen model, and at how many trained values.  Templates are the task's (`cuelight.tasks.template`): words
(``"{text} Patient should go to department {mask}."``), 20 free vectors before the text (a ``{soft}`` with a count) or
words of which some learn (``"{text} {soft:This} patient should {soft:go to} {mask}."``, the paper's best).
``--verbalizer`` is words, or a vector a class (the paper's best).  ``--form head`` is what they are compared with: the
state at the text's first token (a causal model's last, an encoder-decoder's decoder's first), a hidden layer, a layer;
its ``--head-width`` is by default as wide as spends what the prompt would (at least 1).

Learns: ``(n + classes) width`` values, ``n`` of them vectors of the template; a head ``width H + H + H classes +
classes``.  Costs: one pass of the frozen model a step and a text.

Source: Taylor et al., *Clinical Prompt Learning with Frozen Language Models*, 2022, arXiv 2205.05535.  Frozen means
frozen here.  The released code copies what a masked model has between its last state and its word scores before it
freezes the model, and trains the copy: ``--freezing as_released``, ``width^2 + 3 width`` values more (it also allocates
a vector of the template that nothing reads, and a bias a word that nothing uses).  There soft templates with a soft
verbalizer read the state of another token; ours read the slot.  Departures: AdamW for everything (there Adafactor at 0.3
for the template); rows of a soft verbalizer start as the label words' (there at random unless words are given; ``--start
random``), a word of several tokens counts by its likelihood (there by its first token; ``--word-score first``), the best
state by accuracy (there balanced accuracy).  ``--start fixed`` and ``--reads start`` are controls.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cuelight.backbones.adapters import own_head
from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.cloze import Cloze, ClozeConfig
from cuelight.prompts.conditioning import Condition, TextBatch, answer_states
from cuelight.tasks.text import TextTask
from cuelight.tasks.verbalizers import SoftVerbalizer
from cuelight.training import ParamGroup


class ClinicalConfig(ClozeConfig):
    model: Literal["tuned", "frozen"] = Field(
        "frozen", description="Whether the language model's weights learn too."
    )
    form: Literal["prompt", "head"] = Field(
        "prompt", description="A template with a verbalizer, or a classification head on the text alone."
    )
    verbalizer: Literal["manual", "soft"] = Field(
        "soft", description="From the slot to classes: words, or a vector a class."
    )
    start: Literal["words", "random", "fixed"] = Field(
        "words",
        description="A soft verbalizer's vectors: label words at the start, random, or random for good (a control).",
    )
    start_seed: int = Field(0, ge=0, description="Seed of random vectors, and of a head.")
    reads: Literal["slot", "start"] = Field(
        "slot", description="Where a soft verbalizer reads: the slot, or the text's start (a control)."
    )
    freezing: Literal["strict", "as_released"] = Field(
        "strict",
        description="What is frozen: all of the model, or all but its masked-LM head's dense part, as the release had it.",
    )
    head_width: int = Field(
        0, ge=0, description="Width of the head's hidden layer; 0: what the prompt would spend."
    )
    head_rate: float = Field(1e-3, gt=0, description="Rate of the head.")
    head_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout in the head.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.freezing == "as_released" and (self.model, self.verbalizer, self.form) != (
            "frozen",
            "soft",
            "prompt",
        ):
            raise ValueError(
                "freezing=as_released: is of a frozen model with a soft verbalizer; drop one of the others"
            )
        if self.form == "head" and self.calibrate != "none":
            raise ValueError(f"calibrate={self.calibrate}: a head reads no words; drop it, or --form head")
        if self.reads == "start" and (self.form, self.verbalizer) != ("prompt", "soft"):
            raise ValueError("reads=start: needs a soft verbalizer, which reads a state; drop one of them")
        return self


class Clinical(Cloze):
    """A frozen model with a template and a verbalizer, or with a head.

    Attributes:
        head: the classification head of ``--form head``.
    """

    card: ClassVar[Card] = Card(
        name="clinical",
        title="Clinical prompt learning: frozen models with templates and verbalizers, against a head",
        family="fewshot",
        modality="text",
        learns="soft words of the template and a vector a class, or a classification head; the model too if asked",
        cost="one pass of the frozen model and the gradient through it",
        kinds=("masked", "causal", "seq2seq"),
        tasks=("classification",),
        paper="Clinical Prompt Learning with Frozen Language Models",
        arxiv="2205.05535",
        year=2022,
    )
    Config: ClassVar[type[MethodConfig]] = ClinicalConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06, "batch_size": 8}

    def __init__(self, backbone: Backbone, task: TextTask, config: ClinicalConfig) -> None:
        super().__init__(backbone, task, config)
        self.head: nn.Sequential | None = None
        if config.form == "head":
            self.soft, self.verbalizer = None, nn.Identity()
            self.head = self._head().to(backbone.device)
            body = {id(p) for p in self.lm.model.base_model.parameters()}
            self.weights = nn.ParameterDict({n: p for n, p in self.weights.items() if id(p) in body})
        if config.freezing == "as_released":
            if backbone.kind != "masked":
                raise ConfigError(
                    f"freezing: as_released is of masked language models; {backbone.id} is a {backbone.kind} model"
                )
            self.lm = backbone.twin()
            learned = own_head(self.lm.model)
            self.weights = nn.ParameterDict({name.replace(".", "/"): p for name, p in learned.items()})

    def make_verbalizer(self) -> nn.Module:
        made = super().make_verbalizer()
        if isinstance(made, SoftVerbalizer) and self.config.start != "words":
            draw = torch.Generator().manual_seed(self.config.start_seed)
            rows = torch.randn(made.rows.shape, generator=draw) / made.rows.shape[1] ** 0.5
            made = SoftVerbalizer(rows).requires_grad_(self.config.start == "random")
        return made

    def _head(self) -> nn.Sequential:
        width, classes = self.backbone.tower.width, len(self.task.classes)
        hidden = self.config.head_width
        if not hidden:
            spent = (len(self.task.soft_start) + classes) * width
            hidden = max(1, round((spent - classes) / (width + 1 + classes)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.start_seed)
            return nn.Sequential(
                nn.Linear(width, hidden),
                nn.ReLU(),
                nn.Dropout(self.config.head_dropout),
                nn.Linear(hidden, classes),
            )

    # ---- scores ----------------------------------------------------------------------------------------

    def state(self, batch: TextBatch) -> Tensor:
        if self.config.reads == "slot":
            return super().state(batch)
        return answer_states(self.lm, batch, self.condition(batch)).float()

    def scores(self, batch: TextBatch) -> Tensor:
        if self.head is None:
            return super().scores(batch)
        if self.tunes:
            self.lm.model.train(self.training)
        return self.head(answer_states(self.lm, self.bare(batch), Condition()).float())

    def bare(self, batch: TextBatch) -> TextBatch:
        """The batch's texts without a template."""
        rows = [item.row for item in batch.extra["items"]]
        texts = [
            [row["text"] for row in rows],
            *([[row["text_b"] for row in rows]] if self.task.pairs else []),
        ]
        fed = self.backbone.tokenizer(
            *texts, truncation=True, max_length=self.task.max_length, padding=True, return_tensors="pt"
        )
        return TextBatch(fed.input_ids, fed.attention_mask).to(self.backbone.device)

    # ---- learning --------------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        if self.head is None:
            super().prepare(data, seed)

    def groups(self) -> list[ParamGroup]:
        found = [g for g in super().groups() if all(p.requires_grad for p in g.params.values())]
        if self.head is not None:
            found.append(ParamGroup("head", dict(self.head.named_parameters()), lr=self.config.head_rate))
        return found
