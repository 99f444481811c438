"""What methods with a template, a slot and a verbalizer share.

The language model reads the filled template; what it says in the slot is turned into classes by a verbalizer
(`cuelight.tasks.verbalizers`).  The model is frozen or tuned (a copy), the template's soft words learn, and so may the
verbalizer.  A method of the family says what its verbalizer is and in which stages things learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ConfigError
from cuelight.methods.base import Data, Method, MethodConfig
from cuelight.prompts.conditioning import Condition, TextBatch, choice_scores, slot
from cuelight.tasks.text import Item, Predictions, TextTask
from cuelight.tasks.verbalizers import (
    Aggregate,
    ManualVerbalizer,
    PrototypeVerbalizer,
    SoftVerbalizer,
    WeightedVerbalizer,
    WordScore,
    check_first_tokens,
    combined,
    pieces_of,
    word_scores,
)
from cuelight.training import ParamGroup, Stage

__all__ = ["UNLABELLED", "Cloze", "ClozeConfig", "label_rows"]

_NOTHING = ("N/A", "")
"""Texts without content, for contextual calibration (Zhao et al. 2021)."""
UNLABELLED = 200
"""Most texts that calibration by the data looks at."""


class ClozeConfig(MethodConfig):
    model: Literal["tuned", "frozen"] = Field(
        "tuned", description="Whether the language model's weights learn too."
    )
    verbalizer: Literal["manual", "weighted", "soft", "prototypical"] = Field(
        "manual",
        description="From the slot to classes: words; words with learned weights; a vector a class; prototypes.",
    )
    word_score: WordScore = Field(
        "exact",
        description="Score of a word of several tokens: its likelihood, or of its tokens at one slot.",
    )
    normalise: bool = Field(False, description="Divide a word's log-likelihood by its number of tokens.")
    aggregate: Aggregate = Field(
        "mean", description="Several words a class: mean of log P, log sum, or largest."
    )
    calibrate: Literal["none", "contextual", "domain", "data"] = Field(
        "none",
        description="Divide by what is said regardless of the text: for texts without content, for --domain-text, or on "
        "average over the training texts (labels unused).",
    )
    domain_text: str = Field("", description="The text for --calibrate domain.")
    drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="With --calibrate data: drop label words with a token in this share of the vocabulary, the least "
        "likely; the first word of a class stays.",
    )
    model_rate: float | None = Field(
        None, gt=0, description="Rate of the model's weights (default 1e-4 seq2seq, 2e-5 else)."
    )
    template_rate: float = Field(0.01, gt=0, description="Rate of the template's soft words.")
    verbalizer_rate: float = Field(1e-3, gt=0, description="Rate of a learned verbalizer.")


class Cloze(Method):
    """A template with a slot, a language model, and a verbalizer.

    Attributes:
        lm: the model that reads: the backbone, or its tuned copy.
        soft: ``[vectors, width]``, the template's learned words; None without.
        words: token ids of all label words, class by class.
        answers: the same as they are answered, with an end mark where it is needed.
    """

    Config: ClassVar[type[MethodConfig]] = ClozeConfig
    learns_template: ClassVar[bool] = True
    verbalizes: ClassVar[bool] = True
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 200, "warmup": 0.06, "batch_size": 8}
    config: Any

    def __init__(self, backbone: Backbone, task: TextTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.lm: Backbone = backbone
        self.weights = nn.ParameterDict()
        if self.tunes:
            self.lm, weights = backbone.copy()
            self.weights = nn.ParameterDict({n.replace(".", "/"): p for n, p in weights.items()})
        self.soft: nn.Parameter | None = None
        if task.soft_start:
            self.soft = nn.Parameter(self._soft_start())
        self.words = [ids for listed in task.word_ids for ids in listed]
        self.answers = [ids for listed in task.word_answers for ids in listed]
        if config.word_score == "first":
            names = [word for listed in task.word_lists for word in listed]
            check_first_tokens(list(zip(names, self.words, strict=True)))
        self.verbalizer = self.make_verbalizer().to(backbone.device)

    @property
    def tunes(self) -> bool:
        """Whether the language model's own weights learn."""
        return bool(self.config.model == "tuned")

    def make_verbalizer(self) -> nn.Module:
        """The verbalizer at its start."""
        counts = [len(listed) for listed in self.task.word_ids]
        width = self.backbone.model.get_output_embeddings().weight.shape[1]
        if self.config.verbalizer == "weighted":
            return WeightedVerbalizer(counts)
        if self.config.verbalizer == "soft":
            return SoftVerbalizer(label_rows(self.backbone, self.task.word_ids))
        if self.config.verbalizer == "prototypical":
            return PrototypeVerbalizer(width, len(counts))
        return ManualVerbalizer(counts, self.config.aggregate)

    def _soft_start(self) -> Tensor:
        """Soft words as the tokens they name; free ones as tokens drawn from the vocabulary."""
        rows = self.backbone.tower.embedding.weight.shape[0]  # type: ignore[union-attr]
        draw = torch.Generator().manual_seed(0)
        ids = [int(torch.randint(rows, (), generator=draw)) if t is None else t for t in self.task.soft_start]
        with torch.no_grad():
            return self.backbone.embed(torch.tensor(ids, device=self.backbone.device)).float().clone()

    # ---- what the model says ---------------------------------------------------------------------------

    def condition(self, batch: TextBatch) -> Condition:
        """What conditions the model: the template's soft words."""
        return Condition(soft=self.soft)

    def says(self, batch: TextBatch, lm: Backbone | None = None) -> Tensor:
        """Scores of all label words ``[B, words]``."""
        lm, condition = lm or self.lm, self.condition(batch)
        if self.config.word_score == "exact":
            found = choice_scores(lm, batch, condition, self.answers).float()
            if self.config.normalise:
                found = found / torch.tensor([len(ids) for ids in self.answers], device=found.device)
            return found
        scores = slot(lm, batch, condition, pieces_of(self.words))[1]
        return word_scores(scores.float(), self.words, self.config.word_score)

    def state(self, batch: TextBatch) -> Tensor:
        """What the language-model head reads at the slot, ``[B, width]``."""
        return slot(self.lm, batch, self.condition(batch), self.words[0][:1])[0].float()

    def scores(self, batch: TextBatch) -> Tensor:
        """Class scores ``[B, C]``."""
        if self.lm is not self.backbone:
            self.lm.model.train(self.training)
        verbalizer = self.verbalizer
        if isinstance(verbalizer, PrototypeVerbalizer):
            counts = [len(listed) for listed in self.task.word_ids]
            by_words = ManualVerbalizer(counts, self.config.aggregate).to(self.backbone.device)(
                self.says(batch)
            )
            return by_words if self._words_only else combined([by_words, verbalizer(self.state(batch))])
        if isinstance(verbalizer, SoftVerbalizer):
            return verbalizer(self.state(batch))
        return verbalizer(self.says(batch))

    _words_only = False
    """While the model is tuned by its words, before prototypes are fitted."""

    def loss(self, batch: TextBatch) -> Tensor:
        return cross_entropy(self.scores(batch), batch.extra["label"])

    def predict(self, batch: TextBatch) -> Predictions:
        with torch.no_grad():
            return self.task.from_scores(self.scores(batch))

    # ---- before learning -------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        if self.config.calibrate != "none":
            if not isinstance(self.verbalizer, ManualVerbalizer):
                raise ConfigError(
                    f"calibrate: a {self.config.verbalizer} verbalizer reads no words; drop --calibrate"
                )
            self.verbalizer.calibrate(self.prior(data))

    @torch.no_grad()
    def prior(self, data: Data) -> Tensor:
        """Word scores ``[words]`` regardless of the text, of the model as it came."""
        if self.config.calibrate == "data":
            items = data.train[:UNLABELLED]
            if self.config.drop:
                self.drop_rare(self.common(items))
        else:
            texts = _NOTHING if self.config.calibrate == "contextual" else (self.config.domain_text,)
            items = self.items(texts)
        parts = []
        for k in range(0, len(items), 16):
            batch = self.task.collate(items[k : k + 16]).to(self.backbone.device)
            parts.append(self.says(batch, self.backbone).float())
        found = torch.cat(parts)
        # Zhao et al. average what the words' probabilities are, Hu et al. the scores themselves.
        return found.mean(0) if self.config.calibrate == "data" else found.softmax(-1).mean(0).log()

    @torch.no_grad()
    def common(self, items: Sequence[Item]) -> Tensor:
        """Mean scores ``[vocabulary]`` at the slot over (at most 200) texts, of the model as it came."""
        items = items[:UNLABELLED]
        size = self.backbone.model.get_output_embeddings().weight.shape[0]
        total = torch.zeros(size, device=self.backbone.device)
        for k in range(0, len(items), 16):
            batch = self.task.collate(items[k : k + 16]).to(self.backbone.device)
            total += slot(self.backbone, batch, self.condition(batch), range(size))[1].float().sum(0)
        return total / len(items)

    def drop_rare(self, common: Tensor) -> None:
        """Leave out label words with a token in the share ``drop`` of the vocabulary that is least common."""
        assert isinstance(self.verbalizer, ManualVerbalizer)
        rare = common < common.quantile(self.config.drop)
        unused = [bool(rare[torch.tensor(ids, device=rare.device)].any()) for ids in self.words]
        self.verbalizer.drop(torch.tensor(unused))

    def items(self, texts: Sequence[str]) -> list[Item]:
        """Texts in the template, without answers."""
        rest = dict.fromkeys([*self.task.columns, *(["text_b"] if self.task.pairs else [])], "")
        return self.task.encode([{**rest, "text": text} for text in texts], answers=False)

    # ---- learning --------------------------------------------------------------------------------------

    def groups(self) -> list[ParamGroup]:
        found = []
        if self.weights:
            usual = 1e-4 if self.backbone.kind == "seq2seq" else 2e-5
            rate = self.config.model_rate or usual
            found.append(ParamGroup("weights", dict(self.weights.items()), lr=rate))
        if self.soft is not None:
            found.append(ParamGroup("template", {"soft": self.soft}, lr=self.config.template_rate))
        own = dict(self.verbalizer.named_parameters())
        if own and not isinstance(self.verbalizer, PrototypeVerbalizer):
            found.append(ParamGroup("verbalizer", own, lr=self.config.verbalizer_rate))
        return found

    def stages(self, data: Data) -> list[Stage]:
        found = super().stages(data)
        if isinstance(self.verbalizer, PrototypeVerbalizer):
            for stage in found:
                stage.begin = self._by_words
            found.append(self._prototype_stage(data))
        return found

    def _by_words(self) -> None:
        self._words_only = True

    def _prototype_stage(self, data: Data) -> Stage:
        verbalizer = self.verbalizer
        assert isinstance(verbalizer, PrototypeVerbalizer)

        def begin() -> None:
            self._words_only = False

        @torch.no_grad()
        def states() -> list[tuple[Tensor, Tensor]]:
            """What the model, which no longer learns, has at the slot of every row."""
            self.lm.model.eval()
            found = []
            for k in range(0, len(data.train), 16):
                batch = self.task.collate(data.train[k : k + 16]).to(self.backbone.device)
                found += list(zip(self.state(batch).cpu(), batch.extra["label"].cpu(), strict=True))
            return found

        def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            return torch.stack([state for state, _ in rows]), torch.stack([label for _, label in rows])

        return Stage(
            name="prototypes",
            groups=[ParamGroup("prototypes", dict(verbalizer.named_parameters()), lr=1e-3)],
            examples=states,
            collate=collate,
            loss=lambda batch: verbalizer.contrast(*batch),
            begin=begin,
            insists={"epochs": 5.0, "learning_rate": 1e-3},
        )


def label_rows(backbone: Backbone, word_ids: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """For each class the mean of its words' rows in the language-model head, ``[C, width]``."""
    weight = backbone.model.get_output_embeddings().weight.detach().float()
    words = [
        [weight[torch.tensor(ids, device=weight.device)].mean(0) for ids in listed] for listed in word_ids
    ]
    return torch.stack([torch.stack(listed).mean(0) for listed in words])
