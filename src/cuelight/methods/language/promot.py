"""ProMoT: a soft prompt learns the task's format first, so that fine-tuning the model need not.

A model that is fine-tuned on one task soon answers everything in that task's words.  Stage one learns a soft prompt, model
frozen: the prompt takes up the format.  Stage two fine-tunes the model with the prompt frozen and still before the text.
In use the prompt stands before the target task only; all other tasks go to the fine-tuned model as it is.

Learns: stage one ``length x width`` values, stage two all weights, in a copy, or with ``--model lora`` low-rank updates
of them; never both at once.  Costs: two trainings and the memory of full fine-tuning (or of LoRA); in use ``length`` more
tokens on the target, nothing elsewhere.  The artifact holds the model, or its updates; ``cuelight export`` and
`Prompt.export_model` write the tuned model as a backbone for other methods.

``--also`` names further tasks: each has a prompt and a first stage of its own, and the second stage mixes their rows, every
row with its own task's prompt (``--mixing sequential``: one task after the other).  ``--one-shot`` puts a solved example of
the same task before every text.  ``--joint``, ``--random-prompt`` and ``--drop-prompt`` are the paper's controls.

Source: Wang et al., *Two-stage LLM Fine-tuning with Less Specialization and More Generalization*, ICLR 2024, arXiv
2211.00635 (there also as *Preserving In-Context Learning ability in Large Language Model Fine-tuning*).  Departures: AdamW
and rates that suit small models where the paper has Adafactor at 0.2 and 0.001; 20 vectors for its 100; no label
smoothing; the second stage takes as many steps as the first unless ``--model-steps`` says so (the paper: 1,000 after
5,000).  Ours where the paper is silent: how solved examples are drawn (one of 64, anew for every row and never the row
itself; the same one in use), LoRA's defaults, and the start of the prompt.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cuelight.backbones.backbone import Backbone
from cuelight.backbones.lora import LoRALayers
from cuelight.config import build
from cuelight.data import read
from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig, PromptedLM, PromptStart
from cuelight.prompts.conditioning import Condition, TextBatch, answer_logits
from cuelight.tasks.demonstrations import choose, start_tokens
from cuelight.tasks.text import Item, Predictions, TaskConfig, TextTask
from cuelight.training import ParamGroup, Stage

Example = tuple[int, Item]
"""A row and the number of its task; 0 is the target."""
_SHOWN = 64
"""How many solved examples of each task training draws from."""


class ProMoTConfig(PromptStart):
    length: int = Field(20, ge=1, le=2000, description="Soft tokens before the text.")
    model_rate: float | None = Field(
        None,
        gt=0,
        description="Rate of the second stage (default 3e-4 encoder-decoder, 3e-5 causal, 1e-3 with LoRA).",
    )
    model_steps: int | None = Field(
        None, ge=1, description="Steps of the second stage; as many as of the first by default."
    )
    model: Literal["all", "lora"] = Field(
        "all", description="What the second stage learns: all weights, or low-rank updates."
    )
    rank: int = Field(8, ge=1, description="Rank of the updates of --model lora.")
    one_shot: bool = Field(False, description="Put one solved example before every text.")
    also: str = Field("", description="More tasks, comma separated, as --data takes them.")
    mixing: Literal["mixed", "sequential"] = Field(
        "mixed", description="Several tasks in the second stage: in one, or one after the other."
    )
    joint: bool = Field(False, description="Control: prompt and model at once.")
    random_prompt: bool = Field(False, description="Control: the first stage is left out.")
    drop_prompt: bool = Field(False, description="Control: no prompt in the second stage.")


class ProMoT(PromptedLM):
    """A soft prompt, then the model behind it."""

    card: ClassVar[Card] = Card(
        name="promot",
        title="ProMoT: prompt tuning, then model tuning",
        family="language",
        modality="text",
        learns="length x width values of a prompt, then all weights of a copy of the backbone (or LoRA's)",
        cost="two trainings, the second a full fine-tuning; the artifact is as large as the backbone (not with LoRA)",
        kinds=("causal", "seq2seq"),
        paper="Two-stage LLM Fine-tuning with Less Specialization and More Generalization",
        arxiv="2211.00635",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = ProMoTConfig
    opens: ClassVar[tuple[str, ...]] = ("also",)
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: ProMoTConfig
    only_conditions: ClassVar[bool] = False

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        if config.joint and (config.random_prompt or config.drop_prompt):
            raise ConfigError("joint: prompt and model learn at once; give no other control with it")
        self.sources = [name.strip() for name in config.also.split(",") if name.strip()]
        twice = sorted({name for name in self.sources if self.sources.count(name) > 1})
        if twice:
            raise ConfigError(f"also: names '{twice[0]}' twice; name every further task once")
        if self.sources and task.kind == "classification" and task.config.objective == "choices":
            raise ConfigError("objective: 'choices' has the target's classes only; with --also give 'answer'")
        self._layers: LoRALayers | None = None
        self._copy = backbone
        if config.model == "lora":
            self._layers = LoRALayers(backbone, config.rank, 2.0 * config.rank, seed=config.init_seed)
            weights = self._layers.weights
        else:
            self._copy, weights = backbone.copy()
        self.weights = nn.ParameterDict({n.replace(".", "/"): p for n, p in weights.items()})
        seeds = [config.init_seed + k for k in range(1 + len(self.sources))]
        starts = [config.model_copy(update={"init_seed": seed}) for seed in seeds]
        self.prompts = nn.ParameterList([s.vectors(backbone, config.length, task.words) for s in starts])
        self._stage = 2
        self._start = start_tokens(task) if config.one_shot else []
        self._pools: list[list[tuple[Item, list[int]]]] = []
        self._shown: list[int] = []

    def prepare(self, data: Data, seed: int) -> None:
        """Read the other tasks; draw solved examples.

        Raises:
            DataError, ConfigError: a further task that can not be read, or has one text only to show.
        """
        tasks, train = [self.task], [data.train]
        self._held: list[list[Example]] = [[(0, item) for item in data.validation]]
        for k, name in enumerate(self.sources, start=1):
            splits = read(
                name, max_train=len(data.train), max_validation=max(1, len(data.validation)), seed=seed
            )
            if "multilabel" in (splits.kind, self.task.kind):
                raise ConfigError(
                    f"also: {name} can not stand beside the target: several labels a row do not mix"
                )
            options = build(TaskConfig, {"max_length": self.task.config.max_length})
            tasks.append(TextTask.of(self.backbone, splits, options))
            train.append(tasks[k].encode(splits.train))
            self._held.append([(k, item) for item in tasks[k].encode(splits.validation)])
        self._rows: list[list[Example]] = [[(k, item) for item in part] for k, part in enumerate(train)]
        if self.config.one_shot:
            self._pools = [self._pool(*pair, seed) for pair in zip(tasks, train, strict=True)]
            self._shown = self._pools[0][0][1]

    def _pool(self, task: TextTask, items: list[Item], seed: int) -> list[tuple[Item, list[int]]]:
        """Solved examples to draw from: the row each is made of, and its tokens."""
        found = choose(task, items, _SHOWN, 10**9, seed)
        if all(items[example.place].text == items[found[0].place].text for example in found):
            raise ConfigError("one_shot: there is no other row to show before a row; give more training rows")
        return [(items[example.place], example.ids) for example in found]

    # ---- what is fed -----------------------------------------------------------------------------------

    def collate(self, rows: Sequence[Example], *, fixed: bool = False) -> TextBatch:
        """A batch of rows of any task; each knows whose prompt it has.  ``fixed``: always the same solved example."""
        items = [item for _, item in rows]
        if self._pools:
            items = [self._after(self._drawn(k, item, fixed), item) for k, item in rows]
        batch = self.task.collate(items)
        batch.extra["task"] = torch.tensor([k for k, _ in rows])
        return batch

    def _drawn(self, task: int, item: Item, fixed: bool) -> list[int]:
        """A solved example of the same task, never the row itself, which would show its answer."""
        others = [ids for other, ids in self._pools[task] if other.text != item.text]
        return others[0 if fixed else int(torch.randint(len(others), ()))]

    def _after(self, solved: list[int], item: Item) -> Item:
        """``item`` behind a solved example."""
        begins = len(self._start) if item.text[: len(self._start)] == self._start else 0
        return replace(item, text=[*self._start, *solved, *item.text[begins:]])

    def condition(self, batch: TextBatch) -> Condition:
        """Every row's own prompt ``[B, length, width]``, or with one task the one they share."""
        tasks = batch.extra.get("task")
        if tasks is None or not self.sources:
            return Condition(prompt=self.prompts[0])
        return Condition(prompt=torch.stack(list(self.prompts))[tasks.to(self.prompts[0].device)])

    # ---- the two models --------------------------------------------------------------------------------

    @property
    def tuned(self) -> Backbone:
        """The fine-tuned model, without a prompt: what all other tasks are asked."""
        return self._copy if self._layers is None else self._layers.merged()

    @contextlib.contextmanager
    def _model(self) -> Iterator[Backbone]:
        """The model of the second stage as far as it has come."""
        if self._layers is None:
            self._copy.model.train(self.training)
            yield self._copy
        else:
            with self._layers.active(self.training):
                yield self.backbone

    def _loss(self, backbone: Backbone, batch: TextBatch, condition: Condition) -> Tensor:
        if self.sources:  # rows of tasks with other classes: what they share is that the answer is text
            logits, targets = answer_logits(backbone, batch, condition)
            return cross_entropy(logits.float(), targets)
        return self._task_of(backbone).loss(batch, condition)

    def _task_of(self, backbone: Backbone) -> TextTask:
        task = copy.copy(self.task)
        task.backbone = backbone
        return task

    def prompt_loss(self, batch: TextBatch) -> Tensor:
        """Stage one: the backbone as it came."""
        return self._loss(self.backbone, batch, self.condition(batch))

    def model_loss(self, batch: TextBatch) -> Tensor:
        """Stage two: the model that learns, behind prompts that stay."""
        condition = Condition() if self.config.drop_prompt else self.condition(batch)
        if condition.prompt is not None and not self.config.joint:
            condition = Condition(prompt=condition.prompt.detach())
        with self._model() as model:
            return self._loss(model, batch, condition)

    def loss(self, batch: TextBatch) -> Tensor:
        """The loss of the stage that runs."""
        return self.prompt_loss(batch) if self._stage == 1 else self.model_loss(batch)

    def predict(self, batch: TextBatch) -> Predictions:
        """Answers on the target: the prompt before the text, in the model as far as it has come."""
        if self._shown:
            items = [self._after(self._shown, item) for item in batch.extra["items"]]
            batch = self.task.collate(items).to(self.backbone.device)
        condition = Condition(prompt=self.prompts[0])
        with torch.no_grad():
            if self._stage == 1:
                return self.task.predict(batch, condition)
            with self._model() as model:
                return self._task_of(model).predict(
                    batch, Condition() if self.config.drop_prompt else condition
                )

    # ---- stages ----------------------------------------------------------------------------------------

    def stages(self, data: Data) -> list[Stage]:
        usual = 1e-3 if self._layers else 3e-4 if self.backbone.kind == "seq2seq" else 3e-5
        rate = self.config.model_rate or usual
        insists: dict[str, Any] = {"learning_rate": rate}
        if self.config.model_steps:
            insists["steps"] = self.config.model_steps
        weights = ParamGroup("weights", dict(self.weights.items()), lr=rate)
        if self.config.joint:
            both = [weights, ParamGroup("prompt", self._named_prompts(), lr=self._prompt_rate)]
            return [self._make("model", both, self._rows, insists)]
        found = []
        if not self.config.random_prompt:
            for k, prompt in enumerate(self.prompts):
                group = ParamGroup("prompt", {f"prompt {k}": prompt}, lr=self._prompt_rate)
                stage = self._make(
                    "prompt" if k == 0 else f"prompt of {self.sources[k - 1]}", [group], [self._rows[k]]
                )
                stage.begin, stage.loss = partial(self._enter, 1), self.prompt_loss
                if k:
                    self._watch(stage, self._held[k], self.prompt_loss)
                found.append(stage)
        if self.config.mixing == "mixed":
            return [*found, self._make("model", [weights], self._rows, insists)]
        names = ["model", *(f"model on {name}" for name in self.sources)]
        for k, name in enumerate(names):
            stage = self._make(name, [weights], [self._rows[k]], insists)
            if k:
                self._watch(stage, self._held[k], self.model_loss)
            found.append(stage)
        return found

    def _make(
        self,
        name: str,
        groups: list[ParamGroup],
        rows: list[list[Example]],
        insists: dict[str, Any] | None = None,
    ) -> Stage:
        return Stage(
            name=name,
            groups=groups,
            examples=[row for part in rows for row in part],
            collate=self.collate,
            loss=self.model_loss,
            begin=partial(self._enter, 2),
            defaults=dict(self.training_defaults),
            insists=insists or {},
        )

    def _enter(self, stage: int) -> None:
        self._stage = stage

    def _watch(self, stage: Stage, rows: list[Example], loss: Any) -> None:
        """A stage on another task watches that task's own rows."""

        def validate() -> dict[str, float]:
            parts = [rows[k : k + 32] for k in range(0, len(rows), 32)]
            batches = [self.collate(part, fixed=True).to(self.backbone.device) for part in parts]
            return {"validation_loss": sum(float(loss(b)) * len(b) for b in batches) / len(rows)}

        stage.validate, stage.monitor = validate, "validation_loss"

    @property
    def _prompt_rate(self) -> float:
        return 0.3 if self.backbone.kind == "seq2seq" else 0.01

    def _named_prompts(self) -> dict[str, nn.Parameter]:
        return {f"prompt {k}": prompt for k, prompt in enumerate(self.prompts)}

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompt", self._named_prompts(), lr=self._prompt_rate)]

    @property
    def text(self) -> str | None:
        return json.dumps(self._shown) if self.config.one_shot else None

    def load_text(self, text: str) -> None:
        self._shown = json.loads(text)
