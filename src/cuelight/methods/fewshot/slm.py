"""SLM: small language models classify a domain's texts by prompts, from few labels or none.

*Few labels.*  The training rows are a pool of which ``--budget`` rows are labelled, 15 % at most in the paper; a cloze
model is tuned on these.  Which rows is a choice (``--strategy``, see `cuelight.data.active`): a first round of texts
unlike each other, then rounds of the texts that the model is least sure of.  Each round starts again from the model as it
came, since going on from the last round's weights would bias what it is sure of.  No label is looked at before its row is
chosen.  Rows held out for validation are labels as well, beside the budget: give few (``--max-validation``), or none
(``--keep last --patience 99`` makes no use of them).

*Ensemble.*  Each of ``--templates`` is one model more, tuned on the rows that the task's own template chose; the same
template again is another seed.  ``--combine mean`` averages class probabilities, ``vote`` counts votes, of ties the class
likelier on average.

*No labels.*  With ``--model frozen`` templates without soft words need no training.  ``--combine best`` takes the one
with the best accuracy on the validation rows, which the artifact holds beside their number.  P0 to P3 are templates of
growing instruction: ``--templates P0,P1,P2,P3``.

Learns: all weights of a copy of the model, for every template one.  Costs: full fine-tuning for every round and every
further template, before a round that asks the model a pass over the pool; in use as many passes as templates (``best``:
one).

Source: Luo, Liu, Esping, *Exploring Small Language Models with Prompt-Learning Paradigm for Efficient Domain-Specific
Text Classification*, arXiv 2309.14779.  No code was found, and the abstract alone could be read.  It says what is done
(active sampling, ensembles of prompts, prompts optimised for zero-shot; T5-base and FLAN-T5-large; at most 15 %), not
how: selectors, rounds, how members combine, P0 to P3, and all hyper-parameters are ours.  Members share their label
words.  Words of several tokens score by likelihood, divided by their number of tokens; free answers are not compared
with the labels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.functional import one_hot

from cuelight.backbones.backbone import Backbone
from cuelight.data.active import ASKING, Pool, Selector, Strategy, plan, select
from cuelight.errors import ConfigError
from cuelight.evaluation.evaluate import evaluate, predict_items
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.cloze import Cloze, ClozeConfig
from cuelight.prompts.conditioning import TextBatch
from cuelight.tasks.template import read_template
from cuelight.tasks.terms import bi_encoder
from cuelight.tasks.text import Predictions, TextTask
from cuelight.training import Stage

_LIST = "Text: {text}\nLabels: {options}"
_EXPERT = "You are an expert who finds the label that fits a text.\n{definitions}"
LEVELS = {
    "P0": "{text}\nLabel:",
    "P1": _LIST + "\nLabel:",
    "P2": _EXPERT + _LIST + "\nLabel:",
    "P3": _EXPERT + _LIST + "\nAnswer with one of the labels and with nothing else.\nLabel:",
}
"""Prompts for zero-shot: the text alone; with the labels; with a role and definitions; with the answer's form."""


class SLMConfig(ClozeConfig):
    verbalizer: Literal["manual", "weighted", "soft"] = Field(
        "manual", description="From the slot to classes: words; words with learned weights; a vector a class."
    )
    normalise: bool = Field(True, description="Divide a word's log-likelihood by its number of tokens.")
    budget: float = Field(
        0.15,
        ge=0,
        description="Rows to label: a number, or below 1 a share of the training rows; 0 labels all.",
    )
    strategy: Strategy = Field(
        "diversity+entropy",
        description="Which rows to label: a round of diversity and rounds of entropy; one of them, or the margin, in all "
        "rounds; at random; certain and one-cluster are controls.",
    )
    rounds: int = Field(
        3, ge=1, description="Rounds of labelling and tuning, for strategies that ask the model."
    )
    encoder: str = Field("minilm-l6", description="Sentence encoder that compares texts to choose from.")
    templates: tuple[str, ...] = Field(
        (), description="More templates: P0 to P3, templates, or @FILE with one a line."
    )
    combine: Literal["mean", "vote", "best"] = Field(
        "mean", description="Templates' answers: mean probability, votes, or the best template's alone."
    )
    definitions: str = Field(
        "", description="What the labels mean, for P2 and P3 (and {definitions} in --templates); or @FILE."
    )

    @field_validator("templates", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """Files are read at once, so that an artifact is whole without them."""
        if not isinstance(value, str | list | tuple):
            return value
        found: list[Any] = []
        for entry in (value,) if isinstance(value, str) else value:
            is_file = isinstance(entry, str) and entry.startswith("@")
            found += [s for s in read_template(entry).splitlines() if s.strip()] if is_file else [entry]
        return tuple(found)

    @field_validator("definitions")
    @classmethod
    def _read_definitions(cls, value: str) -> str:
        return read_template(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.budget > 1 and self.budget != int(self.budget):
            raise ValueError(f"budget={self.budget:g}: give a whole number of rows, or a share below 1")
        if self.combine == "best" and not self.templates:
            raise ValueError("combine=best: has one template to choose from; give --templates")
        return self


class SLM(Cloze):
    """A cloze model that chooses what is labelled, and an ensemble of such models over templates.

    Attributes:
        others: the models of ``templates``, each of them an `SLM` by itself.
        chosen: ``[budget]``, the training rows that were labelled, in the order of their choice; -1: not yet.
        accuracies: ``[templates]``, with ``--combine best`` on ``judged_on`` validation rows.
    """

    card: ClassVar[Card] = Card(
        name="slm",
        title="SLM: active few-shot sampling, ensembles of templates, zero-shot prompt choice",
        family="fewshot",
        modality="text",
        learns="all weights of a copy of the model, for every template one, or none",
        cost="full fine-tuning for every round and every further template; a pass a template in use",
        kinds=("seq2seq", "masked", "causal"),
        tasks=("classification",),
        paper="Exploring Small Language Models with Prompt-Learning Paradigm for Efficient Domain-Specific Text "
        "Classification",
        arxiv="2309.14779",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = SLMConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "epochs": 20,
        "batch_size": 8,
        "warmup": 0.06,
        "patience": 3,
    }
    chosen: Tensor
    accuracies: Tensor
    judged_on: Tensor

    def __init__(self, backbone: Backbone, task: TextTask, config: SLMConfig) -> None:
        super().__init__(backbone, task, config)
        small = {n: p for n, p in self.named_parameters() if not n.startswith("weights.")}
        self._fresh = {name: parameter.detach().clone() for name, parameter in small.items()}
        alone = config.model_copy(update={"templates": (), "combine": "mean"})
        tasks = [task_with(task, template, config.definitions) for template in config.templates]
        self.others = nn.ModuleList([SLM(backbone, other, alone) for other in tasks])
        for template, other in zip(config.templates, self.members[1:], strict=True):
            if bool(other.groups()) != bool(self.groups()):
                raise ConfigError(
                    f"templates: of '{template}' and --template one learns and the other does not; with --model "
                    "frozen put soft words into all of them or into none"
                )
        self.register_buffer("chosen", torch.empty(0, dtype=torch.long))
        self.register_buffer("accuracies", torch.zeros(len(self.members)))
        self.register_buffer("judged_on", torch.tensor(0))

    _learning: int | None = None
    """The member that is learning or judged at present, and so answers alone."""

    @property
    def members(self) -> list[SLM]:
        """The models of the ensemble, that of the task's own template first."""
        return [self, *self.others]

    def kept(self) -> dict[str, Tensor]:
        return {name: t for name, t in super().kept().items() if name.rsplit(".", 1)[-1] != "chosen"}

    # ---- answers ---------------------------------------------------------------------------------------

    def reread(self, batch: TextBatch) -> TextBatch:
        """The rows of another member's batch in this member's template."""
        rows = [item.row for item in batch.extra["items"]]
        return self.task.collate(self.task.encode(rows, answers=False)).to(self.backbone.device)

    def tables(self, batch: TextBatch) -> Tensor:
        """Class probabilities ``[members, B, C]`` by all members that have a say."""
        members = self.members
        if self._learning is not None:
            members = members[self._learning :][:1]
        elif self.config.combine == "best":
            members = [members[int(self.accuracies.argmax())]]
        found = [m.scores(batch if m is self else m.reread(batch)).softmax(-1) for m in members]
        return torch.stack(found)

    def predict(self, batch: TextBatch) -> Predictions:
        with torch.no_grad():
            return self.task.from_scores(combined(self.tables(batch), self.config.combine == "vote").log())

    # ---- before learning -------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        """Calibrate members, settle how many rows are labelled when, or choose among templates that do not learn.

        Raises:
            ConfigError: a budget that the pool or the rounds do not fit; no validation rows to choose a template by.
        """
        super().prepare(data, seed)
        for other in self.members[1:]:
            items = other.task.encode([item.row for item in data.train], answers=False)
            Cloze.prepare(other, Data(items, []), seed)
        if self.config.combine == "best" and not data.validation:
            raise ConfigError("combine: best is chosen on validation rows and there are none; give some")
        if not self.groups():
            if self.config.combine == "best":
                self._judge(data)
            return
        size, asked = len(data.train), self.config.budget
        budget = max(1, round(asked * size)) if 0 < asked < 1 else int(asked) or size
        if budget > size:
            raise ConfigError(f"budget: is {budget}, and there are {size} training rows; lower it")
        self.plan = plan(self.config.strategy if asked else "random", budget, self.config.rounds)
        self.chosen = torch.full((budget,), -1, device=self.backbone.device)
        self._seed = seed
        # Rows as a selector may see them: without their labels.
        names = ("text", "text_b")[: 1 + self.task.pairs]
        rows = [{name: item.row[name] for name in (*names, *self.task.columns)} for item in data.train]
        self._texts = [" ".join(row[name] for name in names) for row in rows]
        self._pool = self.task.encode(rows, answers=False)

    def _judge(self, data: Data) -> None:
        for k in range(len(self.members)):
            self._learning = k
            self.accuracies[k] = evaluate(self, data.validation)[0]["accuracy"]
        self._learning = None
        self.judged_on.fill_(len(data.validation))

    # ---- learning --------------------------------------------------------------------------------------

    @property
    def labelled(self) -> list[int]:
        """The training rows that have been chosen so far."""
        return [row for row in self.chosen.tolist() if row >= 0]

    def choose(self, selector: Selector, first: int, last: int) -> None:
        """Fill ``chosen[first:last]``, by the model as it stands where the selector asks it."""
        pool = Pool(len(self._pool), taken=self.chosen[:first].tolist())
        if selector in ASKING:
            self._learning = 0
            pool.probabilities = predict_items(self, self._pool).probabilities
        if selector != "random":
            encoder = bi_encoder(self.config.encoder, str(self.backbone.device), "{term}")
            pool.embeddings = encoder.embed(self._texts)
        self.chosen[first:] = -1
        self.chosen[first:last] = torch.tensor(
            select(selector, last - first, pool, seed=self._seed), device=self.chosen.device
        )

    @torch.no_grad()
    def restart(self) -> None:
        """Everything that learns as it was at the start."""
        came = dict(self.backbone.model.named_parameters())
        for name, weight in self.weights.items():
            weight.copy_(came[name.replace("/", ".")])
        for name, parameter in self.named_parameters():
            if name in self._fresh:
                parameter.copy_(self._fresh[name])

    def stages(self, data: Data) -> list[Stage]:
        """A stage for every round, then one for every further template."""
        if not self.groups():
            return []
        found, first = [], 0
        for k, (selector, rows) in enumerate(self.plan):
            found.append(self._stage(f"round {k + 1}", 0, data, (selector, first, first + rows)))
            first += rows
        found += [self._stage(f"template {k + 1}", k, data) for k in range(1, len(self.members))]
        if self.config.combine == "best":
            done = found[-1].finish
            assert done is not None

            def finish() -> None:
                done()
                self._judge(data)

            found[-1].finish = finish
        return found

    def _stage(self, name: str, k: int, data: Data, choice: tuple[Selector, int, int] | None = None) -> Stage:
        """Member ``k`` learns from what is labelled, after ``choice`` of more rows."""
        member = self.members[k]
        (stage,) = Cloze.stages(member, data)

        def begin() -> None:
            if choice is not None:
                self.choose(*choice)
            member.restart()
            self._learning = k

        def examples() -> list[Any]:
            items = [data.train[row] for row in self.labelled]
            return items if k == 0 else member.task.encode([item.row for item in items])

        def finish() -> None:
            self._learning = None

        stage.name, stage.begin, stage.examples, stage.finish = name, begin, examples, finish
        return stage


def task_with(task: TextTask, template: str, definitions: str) -> TextTask:
    """``task`` with another template, or one of `LEVELS` by its name.

    Raises:
        ConfigError: the template does not fit the backbone or the data.
    """
    if template in LEVELS:
        texts = "{text} {text_b}" if task.pairs else "{text}"
        template, definitions = LEVELS[template].replace("{text}", texts), definitions and definitions + "\n"
    words = definitions.replace("{", "{{").replace("}", "}}")
    config = task.config.model_copy(update={"template": template.replace("{definitions}", words)})
    try:
        return TextTask(
            task.backbone, task.kind, task.classes, pairs=task.pairs, config=config, columns=task.columns
        )
    except ConfigError as error:
        raise ConfigError(f"templates: '{template}' does not fit ({error})") from error


def combined(tables: Tensor, vote: bool = False) -> Tensor:
    """Class probabilities ``[B, C]`` of the members' ``[members, B, C]``: their mean, or how they vote.

    A vote's probabilities are ``(votes + mean) / (members + 1)`` (ours), whose largest is the majority, of ties the class
    that is likelier on average.
    """
    mean = tables.mean(0)
    if not vote:
        return mean
    votes = one_hot(tables.argmax(-1), tables.shape[-1]).sum(0)
    return (votes + mean) / (len(tables) + 1)
