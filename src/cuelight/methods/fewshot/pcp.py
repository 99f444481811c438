"""PCP: continued pre-training on the task's texts, already in the template and with a label word in the slot.

Continued pre-training on raw texts (TAPT) helps prompt-based fine-tuning unreliably.  Here the lines are filled
templates: labelled texts with their class's word, unlabelled ones with the word that a teacher, a model tuned on the
labels, would say.  The language model as it came goes on with its own objective on these lines, any token alike, and so
learns how words of classes go with texts.  Prompt-based fine-tuning on the labels starts from there.

Learns: all weights of a copy of the model, three times over (teacher, pre-training, tuning; the second starts anew);
with ``{soft:...}`` in the template and ``--verbalizer soft`` also pattern and label words in rows of their own, copies of
the words' at the start.  Costs: an extra tuning, a pass over the unlabelled texts, and pre-training.

Source: Shi, Lipani, *Don't Stop Pretraining? Make Prompt-based Fine-tuning Powerful Learner*, NeurIPS 2023, arXiv
2305.01711.  ``--lines`` has the comparisons: raw texts (TAPT), random words, other classes' words, and no words.
Departures: the last state of pre-training is kept, not that of the least loss on held-out lines (which there are made of
the validation texts); word scores stay tied to embeddings in the soft variant, only label rows are free; no regression
(STS-B).  Ours: causal models, which read the same lines from left to right, and numbers of steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cuelight.data.texts import read_texts
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.cloze import Cloze, ClozeConfig, label_rows
from cuelight.tasks.text import Item
from cuelight.tasks.verbalizers import SoftVerbalizer
from cuelight.training import ParamGroup, Stage


class PCPConfig(ClozeConfig):
    model: Literal["tuned"] = Field("tuned", description="All weights learn.")
    unlabelled: str | None = Field(
        None,
        description="Data with more texts (its training split); without, lines are of the labelled rows alone.",
    )
    max_unlabelled: int = Field(5000, ge=1, description="Unlabelled texts at most, drawn by the seed.")
    lines: Literal["words", "texts", "random", "permuted", "no-words"] = Field(
        "words",
        description="Lines to go on with: templates with the teacher's words; the texts alone (TAPT); or, as controls, "
        "random words, the next class's words, the template without a word.",
    )
    pretraining_steps: int = Field(300, ge=0, description="Steps of continued pre-training; 0 leaves it out.")
    pretraining_batch: int = Field(16, ge=1, description="Lines in a step of it.")
    pretraining_rate: float = Field(1e-4, gt=0, description="Its rate.")
    masking: float = Field(0.15, gt=0, lt=1, description="Share of tokens a masked model predicts.")


class PCP(Cloze):
    """A teacher, continued pre-training on filled templates, prompt-based fine-tuning."""

    card: ClassVar[Card] = Card(
        name="pcp",
        title="PCP: prompt-based continued pre-training",
        family="fewshot",
        modality="text",
        learns="all weights of a copy of the model; soft pattern and label words",
        cost="two full fine-tunings on few labels, and continued pre-training between them",
        kinds=("masked", "causal"),
        tasks=("classification",),
        paper="Don't Stop Pretraining? Make Prompt-based Fine-tuning Powerful Learner",
        arxiv="2305.01711",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = PCPConfig
    opens: ClassVar[tuple[str, ...]] = ("unlabelled",)
    training_defaults: ClassVar[dict[str, Any]] = {
        "steps": 200,
        "warmup": 0.06,
        "batch_size": 8,
        "weight_decay": 0.01,
    }

    def make_verbalizer(self) -> nn.Module:
        made = super().make_verbalizer()
        if not isinstance(made, SoftVerbalizer):
            return made
        # A masked model has a bias for every word; without it free label rows would not start as the words.
        own = getattr(self.backbone.model.get_output_embeddings(), "bias", None)
        if own is None:
            return made
        words = [torch.stack([own[ids].mean() for ids in listed]) for listed in self.task.word_ids]
        return SoftVerbalizer(made.rows, torch.stack([listed.mean() for listed in words]))

    # ---- lines -----------------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        """Read the unlabelled texts.

        Raises:
            DataError: they can not be read.
        """
        super().prepare(data, seed)
        self._labelled, self._pool = data.train, list[Item]()
        self._texts = [{"text": row["text"], "text_b": row.get("text_b")} for row in data.rows]
        if self.config.unlabelled is None or not self.config.pretraining_steps:
            return
        rows = read_texts(
            self.config.unlabelled,
            pairs=self.task.pairs,
            columns=self.task.columns,
            most=self.config.max_unlabelled,
            seed=seed,
        )
        known = {tuple(item.text) for item in data.train}
        items = self.task.encode(rows, answers=False)
        self._pool = [item for item in items if tuple(item.text) not in known]
        self._texts += rows

    @torch.no_grad()
    def labels(self, items: Sequence[Item]) -> list[int]:
        """The classes that the model as it is now gives to ``items``."""
        self.eval()
        order = sorted(range(len(items)), key=lambda k: len(items[k].text))
        found = [0] * len(items)
        for k in range(0, len(order), 32):
            part = order[k : k + 32]
            batch = self.task.collate([items[j] for j in part]).to(self.backbone.device)
            for j, label in zip(part, self.scores(batch).argmax(-1).tolist(), strict=True):
                found[j] = label
        return found

    def line(self, item: Item, label: int | None) -> list[int]:
        """``item``'s filled template with the first word of class ``label`` in the slot; None leaves it out."""
        word = [] if label is None else self.task.word_ids[label][0]
        mask = self.backbone.tokenizer.mask_token_id if self.backbone.kind == "masked" else None
        out: list[int] = []
        for token in item.text:
            if token < 0:  # a soft word stands as the word it starts as
                start = self.task.soft_start[-1 - token]
                out += [] if start is None else [start]
            else:
                out += word if token == mask else [token]
        return out if mask is not None else [*out, *word]

    def corpus(self) -> list[list[int]]:
        """All lines, labelled by the model as it is now."""
        items = [*self._labelled, *self._pool]
        if self.config.lines == "texts":
            return self._plain()
        if self.config.lines == "no-words":
            return [self.line(item, None) for item in items]
        classes = len(self.task.classes)
        labels = [item.label for item in self._labelled] + self.labels(self._pool)
        if self.config.lines == "random":
            labels = torch.randint(classes, (len(items),)).tolist()
        if self.config.lines == "permuted":
            labels = [(label + 1) % classes for label in labels]
        return [self.line(item, label) for item, label in zip(items, labels, strict=True)]

    def _plain(self) -> list[list[int]]:
        tokenizer, pairs = self.backbone.tokenizer, self.task.pairs
        texts = [[row["text"]] + ([row["text_b"]] if pairs else []) for row in self._texts]
        return [
            tokenizer(*text, truncation=True, max_length=self.task.max_length).input_ids for text in texts
        ]

    def _begin_pretraining(self) -> None:
        self._lines = self.corpus()
        with torch.no_grad():
            own = dict(self.backbone.model.named_parameters())
            for name, parameter in self.weights.items():
                parameter.copy_(own[name.replace("/", ".")])

    def _begin_tuning(self) -> None:
        """Soft words and label rows start as what the words have become."""
        with torch.no_grad():
            if self.soft is not None:
                for k, token in enumerate(self.task.soft_start):
                    if token is not None:
                        self.soft[k] = self.lm.embed(torch.tensor([token], device=self.soft.device))[0]
            if isinstance(self.verbalizer, SoftVerbalizer):
                self.verbalizer.rows.copy_(label_rows(self.lm, self.task.word_ids))

    # ---- the model's own objective ---------------------------------------------------------------------

    def masked(self, lines: Sequence[list[int]]) -> dict[str, Tensor]:
        """A batch of lines: ``input_ids``, ``attention_mask``, and ``labels``, -100 where nothing is predicted.

        A masked model predicts a share of the tokens, 80 % of them masked, 10 % replaced, 10 % as they are; a causal
        one all.
        """
        from transformers import DataCollatorForLanguageModeling

        collator = DataCollatorForLanguageModeling(
            self.backbone.tokenizer, mlm=self.backbone.kind == "masked", mlm_probability=self.config.masking
        )
        return dict(collator([{"input_ids": line, "attention_mask": [1] * len(line)} for line in lines]))

    def pretraining_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the tokens that are predicted."""
        self.lm.model.train(self.training)
        labels = batch["labels"]
        if self.backbone.kind == "causal":  # the token behind each position
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
        rows, columns = torch.nonzero(labels != -100, as_tuple=True)
        if not len(rows):  # short lines of which no token was drawn
            return sum(p.sum() for p in self.weights.values()) * 0.0
        with self.lm.scoring(rows, columns):
            found = self.lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return cross_entropy(found.float(), labels[rows, columns])

    # ---- stages ----------------------------------------------------------------------------------------

    def stages(self, data: Data) -> list[Stage]:
        found = super().stages(data)
        if not self.config.pretraining_steps:
            return found
        main = found[0]
        insists = {
            "steps": self.config.pretraining_steps,
            "batch_size": self.config.pretraining_batch,
            "learning_rate": self.config.pretraining_rate,
            "keep": "last",
            "evaluate_every": self.config.pretraining_steps,
        }
        pretraining = Stage(
            name="pre-training",
            groups=[ParamGroup("weights", dict(self.weights.items()), lr=self.config.pretraining_rate)],
            examples=lambda: self._lines,
            collate=self.masked,
            loss=self.pretraining_loss,
            begin=self._begin_pretraining,
            defaults={"warmup": 0.06, "weight_decay": 0.01},
            insists=insists,
        )
        after = main.begin

        def begin() -> None:
            self._begin_tuning()
            if after is not None:
                after()

        main.begin = begin
        teacher = copy.copy(main)
        teacher.name, teacher.begin = "teacher", after
        needs = bool(self._pool) and self.config.lines in ("words", "permuted")
        return [*([teacher] if needs else []), pretraining, *found]
