"""PTEC: a soft prompt, and a linear head on the last token's state instead of the language-model head.

For several labels a row.  A model that writes its labels may invent some, depends on their order, and takes a step
per token; a head gives every label a score in one pass.  Prompt and head learn together, at rates of their own, by
binary cross-entropy in which a label's positives weigh as much more as the label is rarer than the commonest.

Learns: ``length width + classes width`` values.  Costs: ``length`` more tokens, which a causal model reads once per
batch; one pass, no decoding.

Source: Buchner et al., *Prompt Tuned Embedding Classification for Multi-Label Industry Sector Allocation*, NAACL 2024
(industry track), arXiv 2309.12075.  Its baseline, labels written as text under a trie, is ``prompt-tuning`` on the same
data (``--decoding free`` takes the trie away).  Departures: the rate falls linearly, not exponentially to 1 %; vectors
that label names do not fill start from sampled vocabulary, not from ids 1000 on; other kinds of backbone are read where
their answer would stand, and one label a row is learned by softmax (ours).  Weighted positives inflate the scores:
answers are the paper's (score above one half), the probabilities beside them are calibrated on the validation
rows, by the weights taken back and one scale and shift fitted (ours; ``--calibration none`` shows the scores).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.methods.base import Card, Data, Method, MethodConfig, PromptStart
from cuelight.prompts.conditioning import Condition, TextBatch, answer_states
from cuelight.prompts.initial import Initialisation
from cuelight.tasks.text import Item, Predictions
from cuelight.training import ParamGroup, Stage


class PTECConfig(PromptStart):
    length: int = Field(
        50, ge=0, le=2000, description="Soft tokens before the text; 0 leaves the head alone."
    )
    head_rate: float = Field(2e-3, gt=0, description="Learning rate of the head.")
    train_head: bool = Field(True, description="Off: the head stays as it was drawn.")
    positive_weights: bool = Field(True, description="Off: rare labels weigh as much as common ones.")
    calibration: Literal["platt", "none"] = Field(
        "platt", description="Probabilities: fitted on validation rows, or the scores as they are."
    )
    init: Initialisation = Field("labels", description="Where the prompt starts.")


class PTEC(Method):
    """A soft prompt and a linear head."""

    card: ClassVar[Card] = Card(
        name="ptec",
        title="PTEC: prompt tuned embedding classification",
        family="language",
        modality="text",
        learns="length x width values of the prompt, classes x width of the head",
        cost="length more tokens, read once per batch by a causal model; one pass, no decoding",
        kinds=("causal", "seq2seq", "masked", "text-encoder"),
        tasks=("multilabel", "classification"),
        paper="Prompt Tuned Embedding Classification for Multi-Label Industry Sector Allocation",
        arxiv="2309.12075",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = PTECConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: PTECConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.prompt = config.vectors(backbone, config.length, task.words)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            self.head = nn.Linear(backbone.tower.width, len(task.classes), bias=False).to(backbone.device)
        self.head.requires_grad_(config.train_head)
        self.positive: Tensor
        self.platt: Tensor
        self.register_buffer("positive", torch.ones(len(task.classes), device=backbone.device))
        self.register_buffer("platt", torch.tensor([1.0, 0.0], device=backbone.device))

    def prepare(self, data: Data, seed: int) -> None:
        if self.task.kind == "multilabel" and self.config.positive_weights and data.train:
            counts = torch.tensor([item.labels for item in data.train]).sum(0)
            self.positive.copy_(counts.max() / counts.clamp(min=1))

    def scores(self, batch: TextBatch) -> Tensor:
        """Logits ``[B, classes]``."""
        prompt = self.prompt if len(self.prompt) else None
        return self.head(answer_states(self.backbone, batch, Condition(prompt=prompt)).float())

    def loss(self, batch: TextBatch) -> Tensor:
        if self.task.kind == "classification":
            return nn.functional.cross_entropy(self.scores(batch), batch.extra["label"])
        return nn.functional.binary_cross_entropy_with_logits(
            self.scores(batch), batch.extra["labels"], pos_weight=self.positive
        )

    def predict(self, batch: TextBatch) -> Predictions:
        with torch.no_grad():
            scores = self.scores(batch)
        found = self.task.from_scores(scores)
        return Predictions(found.answers, self.task.from_scores(self.calibrated(scores)).probabilities)

    def calibrated(self, scores: Tensor) -> Tensor:
        """``scores [B, classes]`` such that their sigmoid (or softmax) is a chance."""
        if self.config.calibration == "none":
            return scores
        return self.platt[0] * (scores - self.positive.log()) + self.platt[1]

    def groups(self) -> list[ParamGroup]:
        rate = 0.3 if self.backbone.kind == "seq2seq" else 0.01
        found = [ParamGroup("prompt", {"prompt": self.prompt}, lr=rate)]
        if self.config.train_head:
            found.append(ParamGroup("head", dict(self.head.named_parameters()), lr=self.config.head_rate))
        return found

    def stages(self, data: Data) -> list[Stage]:
        (stage,) = super().stages(data)
        stage.finish = lambda: self._calibrate(data.validation)
        return [stage]

    @torch.no_grad()
    def _calibrate(self, items: list[Item]) -> None:
        """One scale and one shift for all labels, fitted as a logistic regression (Platt 1999)."""
        from scipy.optimize import minimize

        self.platt.copy_(torch.tensor([1.0, 0.0]))
        if self.config.calibration == "none" or not items:
            return
        place = self.backbone.device
        batches = [self.task.collate(items[k : k + 32]).to(place) for k in range(0, len(items), 32)]
        scores = torch.cat([self.calibrated(self.scores(batch)) for batch in batches]).double().cpu()
        several = self.task.kind == "multilabel"
        truth = (
            torch.tensor([i.labels for i in items]).double()
            if several
            else torch.tensor([i.label for i in items])
        )

        def error(fit: Any) -> float:
            moved = fit[0] * scores + fit[1]
            loss = nn.functional.binary_cross_entropy_with_logits if several else nn.functional.cross_entropy
            return float(loss(moved, truth))

        fit = minimize(error, [1.0, 0.0], method="Nelder-Mead").x
        if fit[0] > 0:  # a scale below 0 would say that the scores are worse than nothing; then they stay
            self.platt.copy_(torch.tensor(fit, dtype=torch.float32))
