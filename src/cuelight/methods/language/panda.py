"""PANDA: a prompt from another task teaches a fresh one, instead of being where it starts.

Vanilla prompt transfer begins the target's prompt at one that was learned on a source task; it forgets, and depends on
the source.  Here the transferred prompt is trained on the target, with a head of its own, and then frozen: the teacher.
A new student prompt learns the target with the task's loss plus the squared difference of its scores from the teacher's,
weighed by how near the two tasks are: the cosine of their embeddings, each the mean state the frozen backbone answers
from with the task's own prompt attached.

Learns: the student; ``2 length layers width`` keys and values and a linear head for a masked model or an encoder (as in
P-tuning v2), keys and values for a causal model, vectors at every encoder layer for an encoder-decoder model; the latter
two answer with label words (ours: the paper has BERT only).  Costs: training runs three times (source, teacher, student),
the last with one more forward pass; in use nothing but the student is there.

Stages: one per source (none if the source is a saved ``panda`` artifact), one per teacher, the student's.  ``--transfer``
stops elsewhere: ``none`` is the plain prompt, ``pot`` vanilla transfer, ``self`` a teacher without a source, ``untrained`` a
teacher that learned nothing.

Source: Zhong et al., *PANDA: Prompt Transfer Meets Knowledge Distillation for Efficient Model Adaptation*, IEEE TKDE 2024,
arXiv 2208.10160.  Where its code differs from the paper we follow the paper: the similarity is in the loss, the teacher is
in evaluation mode, the squared error is a mean and not divided again.  Ours: the features behind a task's embedding, the
weight of the distillation, the default source (film reviews: sentiment of films was the paper's best source).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.backbones.backbone import Backbone
from cuelight.config import build
from cuelight.data import read
from cuelight.errors import ArtifactError, ConfigError
from cuelight.methods.base import Card, Data, Method, MethodConfig
from cuelight.prompts.conditioning import (
    Condition,
    TextBatch,
    answer_states,
    choice_scores,
    self_attention_cache,
)
from cuelight.prompts.initial import vocabulary_sample
from cuelight.tasks.text import Item, Predictions, TaskConfig, TextTask
from cuelight.training import ParamGroup, Stage
from cuelight.training.batches import order_by_seed

_MOST = 200
"""Rows a task's embedding is the mean over, and rows a source is validated on."""


class PANDAConfig(MethodConfig):
    source: str = Field(
        "film-reviews",
        description="Source tasks, comma separated: data as --data takes it, or folders of panda artifacts.",
    )
    source_rows: int = Field(1000, ge=1, description="Most training rows of a source.")
    transfer: Literal["panda", "pot", "self", "untrained", "none"] = Field(
        "panda", description="What is done with the source; all but panda are for comparison."
    )
    fusion: Literal["late", "early"] = Field(
        "late", description="Several sources: a teacher each, or one from the mean of their prompts."
    )
    distill: float = Field(1.0, ge=0, description="Weight of the distillation.")
    similarity: Literal["embedding", "prompt", "constant"] = Field(
        "embedding", description="What weighs a teacher: tasks' embeddings, prompts' means, or nothing."
    )
    length: int = Field(20, ge=1, le=2000, description="Prompt positions in every layer.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on prompts and before the head.")
    init_seed: int = Field(0, ge=0, description="Seed of the student's start.")


class Learner(nn.Module):
    """A deep prompt, and a head where the backbone answers by one.

    ``prompt`` is ``[length, layers x 2, width]`` (keys and values) or ``[length, layers, width]`` (states).
    """

    def __init__(self, backbone: Backbone, classes: int, config: PANDAConfig, seed: int) -> None:
        super().__init__()
        self.backbone_kind, self.rate = backbone.kind, config.dropout
        self.depth, self.heads = backbone.tower.depth, 0
        width, count = backbone.tower.width, 2 * self.depth
        draw = torch.Generator().manual_seed(seed)
        if backbone.kind == "seq2seq":
            words = vocabulary_sample(backbone, config.length * self.depth, seed)
            with torch.no_grad():
                start = backbone.embed(torch.tensor(words, device=backbone.device)).float()
            start = start.view(config.length, self.depth, width)
        elif backbone.kind == "causal":
            words = vocabulary_sample(backbone, config.length, seed)
            real = self_attention_cache(backbone, torch.tensor(words, device=backbone.device))
            self.heads = real[0][0].shape[1]
            start = torch.stack([x[0].transpose(0, 1).flatten(1) for pair in real for x in pair], 1).float()
        else:
            self.heads = backbone.model.config.num_attention_heads
            start = torch.randn(config.length, count, width, generator=draw)
        self.prompt = nn.Parameter(start.to(backbone.device))
        self.head: nn.Linear | None = None
        if backbone.kind in ("masked", "text-encoder"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.head = nn.Linear(width, classes).to(backbone.device)

    def condition(self, dtype: torch.dtype) -> Condition:
        """The prompt as the backbone takes it."""
        prompt = nn.functional.dropout(self.prompt, self.rate, self.training).to(dtype)
        if not self.heads:
            layers = prompt.unbind(1)
            return Condition(prompt=layers[0], deep=dict(enumerate(layers)))
        length, _, width = prompt.shape
        table = prompt.view(length, self.depth, 2, self.heads, width // self.heads).permute(1, 2, 3, 0, 4)
        return Condition(keys_values=[(keys[None], values[None]) for keys, values in table])

    def scores(self, task: TextTask, batch: TextBatch) -> Tensor:
        """A score per class, ``[B, classes]``."""
        condition = self.condition(task.backbone.dtype)
        if self.head is None:
            found = choice_scores(task.backbone, batch, condition, task.choices)
            return found.float().log_softmax(-1)  # they are known up to a constant of each row
        states = answer_states(task.backbone, batch, condition).float()
        return self.head(nn.functional.dropout(states, self.rate, self.training))


class PANDA(Method):
    """A student prompt, distilled from a transferred one."""

    card: ClassVar[Card] = Card(
        name="panda",
        title="PANDA: prompt transfer by distillation",
        family="language",
        modality="text",
        learns="2 x length x layers x width values and a head (encoders); a prompt at every layer (others)",
        cost="training: source, teacher and student, the last with a second forward pass; in use a deep prompt",
        kinds=("masked", "text-encoder", "causal", "seq2seq"),
        tasks=("classification",),
        paper="PANDA: Prompt Transfer Meets Knowledge Distillation for Efficient Model Adaptation",
        arxiv="2208.10160",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = PANDAConfig
    opens: ClassVar[tuple[str, ...]] = ("source",)
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: PANDAConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.student = Learner(backbone, len(task.classes), config, config.init_seed)
        self.embedding: Tensor
        self.similarity: Tensor
        self.register_buffer("embedding", torch.zeros(backbone.tower.width, device=backbone.device))
        count = 1 if config.fusion == "early" or config.transfer != "panda" else len(self._sources())
        self.register_buffer("similarity", torch.zeros(count, device=backbone.device))
        self.sources, self.teachers = nn.ModuleList(), nn.ModuleList()
        self._work: list[tuple[str, TextTask, list[Item], list[Item]]] = []

    def _sources(self) -> list[str]:
        names = [name.strip() for name in self.config.source.split(",") if name.strip()]
        if not names:
            raise ConfigError("source: is empty; name a data set, or give --transfer none")
        return names

    def prepare(self, data: Data, seed: int) -> None:
        """Read the sources and make room for what is learned on the way."""
        sources = self._sources() if self.config.transfer in ("panda", "pot") else []
        self.sources = nn.ModuleList()
        self.source_embeddings: Tensor
        self.register_buffer("source_embeddings", torch.zeros(len(sources), self.backbone.tower.width))
        self._work = []
        for k, name in enumerate(sources):
            if (Path(name) / "cuelight.json").is_file():
                self._saved(k, Path(name))
                continue
            splits = read(name, max_train=self.config.source_rows, max_validation=_MOST, seed=seed)
            if splits.kind != "classification":
                raise ConfigError(f"source: {name} is {splits.kind} data; panda transfers classification")
            task = TextTask.of(
                self.backbone, splits, build(TaskConfig, {"max_length": self.task.config.max_length})
            )
            learner = Learner(self.backbone, len(task.classes), self.config, self.config.init_seed + 1 + k)
            self.sources.append(learner)
            self._work.append((name, task, task.encode(splits.train), task.encode(splits.validation)))
        count = len(self.similarity) if self.config.transfer in ("panda", "self", "untrained") else 0
        fresh = (self.config.init_seed + 1001 + k for k in range(count))
        self.teachers = nn.ModuleList(
            Learner(self.backbone, len(self.task.classes), self.config, seed_) for seed_ in fresh
        )

    def _saved(self, k: int, folder: Path) -> None:
        """A source that was learned before: its prompt and its task's embedding."""
        from safetensors.torch import load_file

        card = json.loads((folder / "cuelight.json").read_text(encoding="utf-8"))
        if card.get("method") != "panda" or card["backbone"]["sha256"] != self.backbone.fingerprint:
            raise ArtifactError(f"source: {folder} is no panda artifact of {self.backbone.id}; train one")
        tensors = load_file(folder / "prompt.safetensors")
        learner = Learner(self.backbone, 1, self.config, 0)
        if tensors["student.prompt"].shape != learner.prompt.shape:
            raise ArtifactError(f"source: {folder} has a prompt of another length; give --length as there")
        with torch.no_grad():
            learner.prompt.copy_(tensors["student.prompt"])
        learner.requires_grad_(False)
        self.sources.append(learner)
        self.source_embeddings[k].copy_(tensors["embedding"])

    # ---- stages ----------------------------------------------------------------------------------------

    def stages(self, data: Data) -> list[Stage]:
        trained = [
            k for k, learner in enumerate(self.sources) if any(p.requires_grad for p in learner.parameters())
        ]
        found = [self._source(k, *work) for k, work in zip(trained, self._work, strict=True)]
        if self.config.transfer != "untrained":
            for k, teacher in enumerate(_learners(self.teachers)):
                stage = self._stage(
                    f"teacher {k + 1}" if len(self.teachers) > 1 else "teacher", teacher, data
                )
                stage.begin = partial(self._transfer, teacher, k)
                stage.finish = partial(self._compare, k, data)
                found.append(stage)
        student = self._stage("panda", self.student, data)
        student.loss = self.loss
        student.validate = None  # the task's own figure
        if self.config.transfer == "pot":
            student.begin = partial(self._transfer, self.student, 0)
        student.finish = lambda: self._embed_task(self.student, self.task, data.train, self.embedding)
        return [*found, student]

    def _stage(self, name: str, learner: Learner, data: Data) -> Stage:
        return Stage(
            name=name,
            groups=self._groups(learner),
            examples=data.train,
            collate=self.task.collate,
            loss=partial(self._task_loss, learner, self.task),
            validate=partial(self._accuracy, learner, self.task, data.validation)
            if data.validation
            else None,
            monitor="accuracy",
            higher_is_better=True,
            defaults=dict(self.training_defaults),
            batch_order=order_by_seed,
        )

    def _source(self, k: int, name: str, task: TextTask, train: list[Item], held: list[Item]) -> Stage:
        learner = _learners(self.sources)[k]
        return Stage(
            name=f"source {name}",
            groups=self._groups(learner),
            examples=train,
            collate=task.collate,
            loss=partial(self._task_loss, learner, task),
            validate=partial(self._accuracy, learner, task, held),
            monitor="accuracy",
            higher_is_better=True,
            finish=partial(self._embed_task, learner, task, train, self.source_embeddings[k]),
            defaults=dict(self.training_defaults),
        )

    @torch.no_grad()
    def _transfer(self, learner: Learner, k: int) -> None:
        """Begin at the source's prompt (at the mean of all in early fusion); the head stays as drawn."""
        prompts: list[Tensor] = [source.prompt for source in _learners(self.sources)]
        if prompts:
            early = self.config.fusion == "early" or self.config.transfer == "pot"
            learner.prompt.copy_(torch.stack(prompts).mean(0) if early else prompts[k])

    @torch.no_grad()
    def _compare(self, k: int, data: Data) -> None:
        """How near the target is to the teacher's source; without a source a teacher counts fully."""
        teacher = _learners(self.teachers)[k]
        if not len(self.sources) or self.config.similarity == "constant":
            self.similarity[k] = 1.0
            return
        early = self.config.fusion == "early"
        if self.config.similarity == "prompt":
            prompts = torch.stack([source.prompt for source in _learners(self.sources)])
            own, other = (
                teacher.prompt.mean(0).flatten(),
                (prompts.mean(0) if early else prompts[k]).mean(0).flatten(),
            )
        else:
            own = torch.zeros_like(self.embedding)
            self._embed_task(teacher, self.task, data.train, own)
            other = self.source_embeddings.mean(0) if early else self.source_embeddings[k]
        self.similarity[k] = nn.functional.cosine_similarity(own, other.to(own.device), dim=0)

    @torch.no_grad()
    def _embed_task(self, learner: Learner, task: TextTask, items: list[Item], into: Tensor) -> None:
        """The mean state that the backbone answers from, with the task's prompt, over its rows."""
        was = learner.training
        learner.eval()
        condition = learner.condition(task.backbone.dtype)
        states = [
            answer_states(task.backbone, batch, condition).float() for batch in _batches(task, items[:_MOST])
        ]
        into.copy_(torch.cat(states).mean(0))
        learner.train(was)

    # ---- losses ----------------------------------------------------------------------------------------

    def _task_loss(
        self, learner: Learner, task: TextTask, batch: TextBatch, scores: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the answers; among the classes where they are scored anyway."""
        if learner.head is None and task.config.objective == "answer":
            return task.loss(batch, learner.condition(task.backbone.dtype))
        scores = learner.scores(task, batch) if scores is None else scores
        return nn.functional.cross_entropy(scores, batch.extra["label"])

    def loss(self, batch: TextBatch) -> Tensor:
        teachers = _learners(self.teachers) if self.config.distill else []
        if not teachers:
            return self._task_loss(self.student, self.task, batch)
        own = self.student.scores(self.task, batch)
        loss = self._task_loss(self.student, self.task, batch, own)
        untrained = self.config.transfer == "untrained"
        for weight, teacher in zip(self.similarity, teachers, strict=True):
            with torch.no_grad():
                wanted = teacher.eval().scores(self.task, batch)
            far = nn.functional.mse_loss(own, wanted)
            loss = loss + self.config.distill * (1.0 if untrained else weight) * far
        return loss

    @torch.no_grad()
    def _accuracy(self, learner: Learner, task: TextTask, items: list[Item]) -> dict[str, float]:
        was = learner.training
        learner.eval()
        right = sum(
            int((learner.scores(task, batch).argmax(1) == batch.extra["label"]).sum())
            for batch in _batches(task, items)
        )
        learner.train(was)
        return {"accuracy": right / len(items)}

    def predict(self, batch: TextBatch) -> Predictions:
        with torch.no_grad():
            return self.task.from_scores(self.student.scores(self.task, batch))

    def _groups(self, learner: Learner) -> list[ParamGroup]:
        rate = {"causal": 3e-3, "seq2seq": 0.03}.get(self.backbone.kind, 7e-3)
        return [ParamGroup("prompt", dict(learner.named_parameters()), lr=rate)]

    def groups(self) -> list[ParamGroup]:
        return self._groups(self.student)

    @property
    def trainable(self) -> int:
        return sum(p.numel() for p in self.student.parameters())

    def kept(self) -> dict[str, Tensor]:
        own = ("student.", "embedding", "similarity")
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(own)}


def _learners(modules: nn.ModuleList) -> list[Learner]:
    return cast(list[Learner], list(modules))


def _batches(task: TextTask, items: list[Item]) -> Iterator[TextBatch]:
    for k in range(0, len(items), 32):
        yield task.collate(items[k : k + 32]).to(task.backbone.device)
