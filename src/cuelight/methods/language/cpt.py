"""CPT: in-context examples whose embeddings may move a little, and only against the loss.

Solved examples stand before the query as in in-context learning.  Each of their tokens gets an offset that gradient
descent learns, held inside a small ball around the token's own embedding by projection after every step; label tokens
and separators never move.  The loss is that of the training row's answer and of the answers inside the context, the
earlier the less: example ``k`` of ``N`` weighs ``gamma^(N + 1 - k)``, the training row 1.  Radius 0 is in-context
learning, no radius prompt tuning.

Learns: ``context tokens x width`` offsets, of which those of labels and separators stay 0.  Costs: the context before
every query, as in in-context learning.  A causal model reads it once per batch, the loss inside it included; an
encoder-decoder model, whose encoder predicts nothing, answers each example from what stands before it in a short pass
of its own (ours: the paper has causal models only).

Source: Blau et al., *Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods*, 2024, arXiv
2410.17222; the authors' code in PEFT.  Losses are summed as in the paper; ``--reduction mean`` takes PEFT's mean over all
label tokens.  As in PEFT, radii are scaled by ``sqrt(width / 2048)``.  Training rows that stand in the context are left
out as long as there are others (ours: the paper does not say).  Departure: no free vectors before the context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cuelight.config import build
from cuelight.errors import ArtifactError, ConfigError
from cuelight.methods.base import Card, Data, MethodConfig, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch, answer_logits, prompt_logits
from cuelight.tasks.demonstrations import Demonstration, choose, room, start_tokens, without_start
from cuelight.training import ParamGroup, Stage

INPUT_TEMPLATE, INPUT, OUTPUT_TEMPLATE, LABEL = 1, 2, 3, 4
"""Codes of the tokens of the first example, as in PEFT; each later example adds 4, and 0 never moves."""


class CPTConfig(MethodConfig):
    demonstrations: int = Field(
        8, ge=1, description="Examples in the context, spread evenly over the classes."
    )
    max_context: int = Field(
        1024, ge=16, description="Longest context in tokens; examples that do not fit are left out."
    )
    epsilon_input: float = Field(0.1, ge=0, description="Radius for tokens of the examples' texts.")
    epsilon_format: float = Field(0.1, ge=0, description="Radius for tokens of the template.")
    scale_radius: bool = Field(True, description="Multiply radii by sqrt(width / 2048), as PEFT does.")
    gamma: float = Field(0.95, gt=0, le=1, description="How much less each earlier example's answer weighs.")
    context_loss: Literal["all", "last", "random", "none"] = Field(
        "all", description="Which answers inside the context count."
    )
    reduction: Literal["sum", "mean"] = Field(
        "sum", description="Losses summed over examples (paper) or averaged over label tokens (PEFT)."
    )
    project: bool = Field(True, description="Off: no balls (ablation).")
    move_labels: bool = Field(False, description="Labels may move as texts do (ablation).")


class CPT(PromptedLM):
    """Examples in the context, moved inside small balls."""

    card: ClassVar[Card] = Card(
        name="cpt",
        title="CPT: context-aware prompt tuning",
        family="language",
        modality="text",
        learns="an offset for every token of the context, those of labels and separators aside",
        cost="the context before every query, read once per batch; encoder-decoder: a second, short pass",
        kinds=("causal", "seq2seq"),
        tasks=("classification", "generation"),
        paper="Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods",
        arxiv="2410.17222",
        year=2024,
        peft="CPT",
    )
    Config: ClassVar[type[MethodConfig]] = CPTConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06, "batch_size": 8}
    config: CPTConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.ids: Tensor
        self.types: Tensor
        self._places: set[int] = set()
        self._fixed: tuple[int, Condition] | None = None
        self._hold([], [])

    def _hold(self, ids: list[int], types: list[int]) -> None:
        """Take a context, unmoved: token ids, and what each token is."""
        place = self.backbone.device
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long, device=place))
        self.register_buffer("types", torch.tensor(types, dtype=torch.long, device=place))
        self.delta = nn.Parameter(torch.zeros(len(ids), self.backbone.tower.width, device=place))
        self.delta.register_hook(lambda grad: grad * self.movable[:, None])
        self._fixed = None

    def prepare(self, data: Data, seed: int) -> None:
        if not data.train:
            raise ConfigError("cpt: there are no training rows to show; give data with a train split")
        most = room(self.task, self.config.max_context)
        found = choose(self.task, data.train, self.config.demonstrations, most, seed)
        ids, types = start_tokens(self.task), [0] * len(start_tokens(self.task))
        for k, example in enumerate(found):
            ids += example.ids
            types += [4 * k + code if code else 0 for code in self._codes(example, data)]
        self._places = {example.place for example in found}
        self._hold(ids, types)

    def _codes(self, example: Demonstration, data: Data) -> list[int]:
        """What each token of an example is; all of a text that was cut counts as text."""
        whole, own = data.train[example.place].text, None
        if data.rows is not None:
            own = self.task.own_tokens(data.rows[example.place], whole)
        codes = [INPUT] * len(example.text)
        if own is not None and any(own):
            lead = start_tokens(self.task)
            first = len(lead) if whole[: len(lead)] == lead else 0
            own = own[first : first + len(example.text)]
            last = max(k for k, mine in enumerate(own) if mine)
            codes = [INPUT if mine else INPUT_TEMPLATE for mine in own]
            codes[last + 1 :] = [OUTPUT_TEMPLATE] * (len(codes) - last - 1)
        return [*codes, *[LABEL] * len(example.answer), *[0] * len(example.separator)]

    # ---- the context -----------------------------------------------------------------------------------

    @property
    def movable(self) -> Tensor:
        """``[n]`` of bool: which tokens may move."""
        codes = self.types % 4
        return (self.types > 0) & ((codes != 0) | self.config.move_labels)

    @property
    def trainable(self) -> int:
        return int(self.movable.sum()) * self.delta.shape[1]

    @property
    def radii(self) -> Tensor:
        """``[n]``: how far each token may move."""
        c, codes = self.config, self.types % 4
        scale = math.sqrt(self.delta.shape[1] / 2048) if c.scale_radius else 1.0
        formats = (codes == INPUT_TEMPLATE) | (codes == OUTPUT_TEMPLATE)
        radius = torch.where(formats, c.epsilon_format * scale, c.epsilon_input * scale)
        radius = radius if c.project else torch.full_like(radius, math.inf)
        return torch.where(self.movable, radius, 0.0)

    @torch.no_grad()
    def project(self) -> None:
        """Bring every offset back into its ball."""
        norms, radii = self.delta.norm(dim=1), self.radii
        shrink = torch.where(norms > radii, radii / norms.clamp(min=1e-30), 1.0)
        self.delta.mul_(shrink[:, None])

    def context(self) -> Tensor:
        """``[n, width]``: the embeddings of the context, moved."""
        return self.backbone.embed(self.ids).detach().float() + self.delta

    def condition(self, batch: TextBatch) -> Condition:
        if torch.is_grad_enabled():
            return Condition(prompt=self.context())
        if self._fixed is None or self._fixed[0] != self.delta._version:  # else the context is read already
            self._fixed = self.delta._version, Condition(prompt=self.context())
        return self._fixed[1]

    def fed(self, batch: TextBatch) -> TextBatch:
        return without_start(self.task, batch)

    # ---- the loss --------------------------------------------------------------------------------------

    def label_weights(self) -> Tensor:
        """``[N]``: what the answer of each example in the context counts, first to last."""
        count = int(self.types.max()) // 4
        weights = self.config.gamma ** torch.arange(count, 0, -1.0, device=self.delta.device)
        if self.config.context_loss == "last":
            weights[:-1] = 0
        elif self.config.context_loss == "random":
            weights = weights * nn.functional.one_hot(torch.randint(count, ()), count).to(weights.device)
        return weights if self.config.context_loss != "none" else weights * 0

    def loss(self, batch: TextBatch) -> Tensor:
        batch = self.fed(batch)
        condition = Condition(prompt=self.context())
        columns = torch.nonzero((self.types > 0) & (self.types % 4 == 0))[:, 0]
        weights = self.label_weights()[self.types[columns] // 4 - 1]
        counted = weights > 0
        columns, weights = columns[counted], weights[counted]
        inside = torch.zeros((), device=self.delta.device)
        if len(columns):
            inside = (weights * self._inside(condition, columns)).sum()
        if self.task.kind == "classification" and self.task.config.objective == "choices":
            return self.task.loss(batch, condition) + inside
        logits, targets = answer_logits(self.backbone, batch, condition)
        outside = cross_entropy(logits.float(), targets, reduction="sum")
        if self.config.reduction == "mean":
            return (outside + len(batch) * inside) / (len(targets) + len(batch) * len(columns))
        return outside / len(batch) + inside

    def _inside(self, condition: Condition, columns: Tensor) -> Tensor:
        """Cross-entropy of the context's tokens at ``columns``, each predicted from what stands before it."""
        targets = self.ids[columns]
        if self.backbone.kind == "causal":
            logits = prompt_logits(self.backbone, condition, columns - 1)
            return cross_entropy(logits.float(), targets, reduction="none")
        context, end = condition.prompt, self.task.tokenizer.eos_token_id
        assert context is not None
        examples, counts = self.types[columns].unique_consecutive(return_counts=True)
        firsts = columns[counts.cumsum(0) - counts].tolist()
        answers = nn.utils.rnn.pad_sequence(list(targets.split(counts.tolist())), batch_first=True)
        steps = torch.arange(answers.shape[1], device=answers.device)
        text = answers.new_full((len(examples), 1), end)  # a text ends so for these models
        rows = TextBatch(text, torch.ones_like(text), answers, (steps < counts[:, None]).long())
        each = Condition(rows=[Condition(prompt=context[:first]) for first in firsts])
        logits, said = answer_logits(self.backbone, rows, each)
        return cross_entropy(logits.float(), said, reduction="none")

    # ---- learning, saving ------------------------------------------------------------------------------

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("context", {"delta": self.delta}, lr=1e-3)]

    def stages(self, data: Data) -> list[Stage]:
        (stage,) = super().stages(data)
        stage.examples = [item for k, item in enumerate(data.train) if k not in self._places] or data.train
        stage.after_step = self.project
        return [stage]

    def restore(self, tensors: Mapping[str, Tensor], source: str) -> None:
        if "ids" in tensors and "types" in tensors:
            self._hold(tensors["ids"].tolist(), tensors["types"].tolist())
        super().restore(tensors, source)

    def to_peft(self) -> tuple[Any, dict[str, Tensor]]:
        import peft

        if self.backbone.kind != "causal":
            raise ArtifactError("cpt: PEFT has it for causal models only; save it as a cuelight artifact")
        c = self.config
        shape = peft.CPTConfig(
            task_type="CAUSAL_LM",
            cpt_token_ids=self.ids.tolist(),
            cpt_mask=[1] * len(self.ids),
            cpt_tokens_type_mask=self.types.tolist(),
            opt_weighted_loss_type="decay",
            opt_loss_decay_factor=c.gamma,
            opt_projection_epsilon=c.epsilon_input,
            opt_projection_format_epsilon=c.epsilon_format,
        )
        shape.token_dim = self.delta.shape[1]
        return shape, {"prompt_embeddings": self.context()}

    @classmethod
    def from_peft(cls, backbone: Any, task: Any, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        decays = config.opt_weighted_loss_type == "decay"
        options = {
            "gamma": config.opt_loss_decay_factor if decays else 1.0,
            "epsilon_input": config.opt_projection_epsilon,
            "epsilon_format": config.opt_projection_format_epsilon,
            "reduction": "mean",
        }
        method = cls(backbone, task, build(CPTConfig, options))
        method._hold(list(config.cpt_token_ids), list(config.cpt_tokens_type_mask))
        moved = tensors["prompt_embeddings"]
        if moved.shape != method.delta.shape:
            raise ArtifactError(
                f"PEFT adapter: its context is {list(moved.shape)}, {len(config.cpt_token_ids)} tokens on "
                f"{backbone.id} are {list(method.delta.shape)}; the backbone is of another size"
            )
        with torch.no_grad():
            method.delta.copy_(moved.to(method.delta.device) - method.context())
        return method
