"""LLM-BBO: a chat model writes the class template of a vision-language model, told which ones work and which do not.

The pool starts with some templates ("a photo of a {}.") and their accuracy on a few labelled pictures.  In every step the
writing model sees the best and the worst of the pool, works out what tells them apart, and proposes a new one; it is
scored and joins the pool.  Nothing of the scored model is needed but the score: no gradient, no weights, no features.
The bad examples are the paper's point (``feedback`` good-bad against good alone); none and shuffled scores are
controls.  Two other forms: a conversation, in which each proposal is answered by what it scored, and paraphrases of the
best, as iterative APE has it.  `cuelight.search` runs the same loop for any score, ``llm-bbo-text`` for instructions.

Learns: a string.  Costs: ``start_size`` scores, then for every step a call of the writing model and a score; a score is the
class names in one template, since the pictures' features are computed once.  The result answers as zero-shot does.

Source: Liu, Yu, Lin, Lee, Ling, Pathak, Ramanan, *Language Models as Black-Box Optimizers for Vision-Language Models*,
CVPR 2024, arXiv 2309.05950; loop and defaults from the authors' code.  Departures: the words in which the model is
asked are ours; where the pool has fewer than two lists' worth, what is shown as good is not shown as bad; a step whose
replies all failed to parse is skipped and counted.  How restarts and resets divide the work is not in the code; both
are options, and one of each is the default.  Ours: the templates to start from (the paper draws from a million captions;
``--pool`` takes any file), and choosing among the best by validation pictures when there are some.  Not here: images
made and inverted by the same loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cuelight.backbones.backbone import Backbone
from cuelight.errors import ArtifactError, ConfigError
from cuelight.lm import Meter
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import Contrastive
from cuelight.methods.proposing import ClimbConfig, ProposingConfig, calls, climb, read_pool, writer
from cuelight.methods.searching import Searching, Start
from cuelight.tasks.image import TEMPLATE_SETS, ImageItem, ImageTask
from cuelight.tasks.objective import Objective


class LlmBbo(Contrastive, Searching):
    """A class template that a language model wrote, told by accuracies."""

    card: ClassVar[Card] = Card(
        name="llm-bbo",
        title="LLM-BBO: a language model as black-box optimiser of class templates",
        family="search",
        modality="vision-language",
        learns="a string",
        cost="a score for each template of the start, then a call of the writing model and a score each step",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Language Models as Black-Box Optimizers for Vision-Language Models",
        arxiv="2309.05950",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = ProposingConfig
    Search: ClassVar[type[MethodConfig]] = ClimbConfig
    reads: ClassVar[tuple[str, ...]] = ("pool",)
    config: ProposingConfig

    def __init__(self, backbone: Backbone, task: ImageTask, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.template = task.templates[0]
        everything = (template for listed in TEMPLATE_SETS.values() for template in listed)
        own = tuple(dict.fromkeys((*task.templates, *everything)))
        self._pool = own if config.pool is None else read_pool(config.pool)

    @property
    def text(self) -> str:
        return self.template

    def load_text(self, text: str) -> None:
        if text.count("{}") != 1:
            raise ArtifactError("prompt.txt: has no {} for the class name, or several")
        self.template, self._class_features = text, None

    def class_features(self) -> Tensor:
        return self.zero_shot((self.template,))

    def forecast(self, data: Data) -> list[str]:
        most, steps = calls(self.config, len(self._pool))
        return [
            f"search: at most {most:,} templates on {len(data.train)} pictures, and {steps:,} calls of {self.config.lm} "
            f"(up to {self.config.retries + 1} times as many if it does not keep the form)",
            *self.selection_lines(data.validation),
        ]

    def prepare(self, data: Data, seed: int) -> None:
        self.need_rows(data)
        if self.config.lm is None:
            raise ConfigError("lm: llm-bbo needs a model that writes; give --lm, a name or URL#model")
        meter = Meter(self.config.budget)
        objective = Objective(
            lambda templates, _: self.quality(templates, data.train, "accuracy"),
            progress="searching" if self.progress else None,
            most=calls(self.config, len(self._pool))[0],
        )
        model = writer(self.config, meter)
        found = self.searched(objective, Start(pool=self._pool, model=model, seed=seed))
        self.template = self.selected(found, objective, data.validation)
        self._class_features = None  # they were another template's
        self.note_spent(meter)
        begun = self.history[: min(self.config.start_size, len(self._pool))]
        self.facts |= {
            "figure": "accuracy",
            "rows": len(data.train),
            "writer": model.name,
            "best_of_start": max(trial.score for trial in begun),
        }

    @torch.no_grad()
    def quality(self, prompts: Sequence[str], items: Sequence[ImageItem], figure: str) -> Iterator[float]:
        self.remember(items)
        features = torch.stack([item.feature for item in items if item.feature is not None])
        features = features.to(self.backbone.device, self.backbone.dtype)
        labels = torch.tensor([item.label for item in items], device=features.device)
        for template in prompts:
            scores = features @ self.zero_shot((template,)).T
            yield float((scores.argmax(1) == labels).double().mean())

    @classmethod
    def search(cls, objective: Objective, start: Start, config: Any) -> str:
        return climb(objective, start, config)
