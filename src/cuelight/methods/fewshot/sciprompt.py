"""SciPrompt: a class's name grows into many terms of its field, each as strong as it is near to the name.

For topics of scientific texts, many and fine-grained, from few labels or none.  Terms come from sources read offline
(``--sources``): the words of the training texts or of ``--unlabelled DATA``, the user's list (``--terms FILE``), WordNet.
No two classes share one: who comes first has it.  A sentence encoder keeps those above ``--tau-a`` in cosine to the
class's name; the cosine is the term's weight.  A class scores the weighted mean of its terms' ``log P``, ``P`` over the
terms of all classes together, divided by what the untuned model says over unlabelled texts on average; terms with a
token that it hardly ever says are dropped, names stay.  ``--verbalizer soft`` makes of a class's terms one vector.

The paper's template is ``--template "The field of this study is related to: {mask}. {text}"``.  Zero-shot is ``--model
frozen --weights fixed``: nothing learns.  Ablations: ``--no-expand`` (names alone), ``--no-filter``, ``--weights equal``,
``--calibrate none``.  The terms found stand in the artifact's ``prompt.txt``, which ``--sources file --terms`` reads too.

Learns: all weights of a copy of the model, a weight a term (soft: a vector a class).  Costs: full fine-tuning, one slot a
text however many terms; beforehand an embedding for every candidate term and a pass over the unlabelled texts.

Source: You et al., *SciPrompt: Knowledge-augmented Prompting for Fine-grained Categorization of Scientific Topics*, EMNLP
2024, arXiv 2410.01946.  Departures: the paper asks two web services for terms, and tunes both its encoders on SciNLI; here
sources are local, the bi-encoder is ``minilm-l6`` as it is, and a cross-encoder that says whether two sentences contrast
is the user's own (``--cross-encoder``; tried with random weights only, since none is built in).  In a soft verbalizer
terms of few tokens count in full and nothing is dropped (the release scales and filters them by mistake).  As weights lie
between ``tau_a`` and 1 they differ by less than a factor of two; ``--temperature`` below 1 spreads them (ours).  They learn
at ``--verbalizer-rate``, in the release at the model's, where they hardly move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cuelight.backbones.backbone import Backbone
from cuelight.data.texts import read_texts
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.cloze import UNLABELLED, Cloze, ClozeConfig, label_rows
from cuelight.tasks import terms as sources
from cuelight.tasks.terms import CrossEncoder, Term, bi_encoder
from cuelight.tasks.text import TextTask
from cuelight.tasks.verbalizers import (
    ManualVerbalizer,
    SoftVerbalizer,
    WeightedVerbalizer,
    pieces_of,
    word_scores,
)
from cuelight.training import ParamGroup


class SciPromptConfig(ClozeConfig):
    verbalizer: Literal["weighted", "soft"] = Field(
        "weighted", description="Weighted terms, or a vector a class that starts as their weighted mean."
    )
    word_score: Literal["mean", "max"] = Field(
        "mean", description="Score of a term of several tokens: the mean or largest of theirs at one slot."
    )
    calibrate: Literal["none", "contextual", "domain", "data"] = Field(
        "data",
        description="Divide by what is said regardless of the text: for texts without content, for --domain-text, or on "
        "average over unlabelled texts (a soft verbalizer is not calibrated).",
    )
    drop: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="With --calibrate data: drop terms with a token in this share of the vocabulary, the least likely.",
    )
    weights: Literal["learned", "fixed", "equal"] = Field(
        "learned",
        description="Terms' weights: from similarity, learned on or fixed; or equal (and fixed).  Fixed also fixes a soft "
        "verbalizer's vectors.",
    )
    temperature: float = Field(
        1.0, gt=0, description="Of the softmax over similarities; below 1 terms' weights differ more."
    )
    expand: bool = Field(True, description="Off: the classes' names (label words) alone.")
    sources: tuple[Literal["texts", "file", "wordnet"], ...] = Field(
        ("texts",), min_length=1, description="Where terms come from, in order."
    )
    terms: str = Field(
        "", description="Source file: lines 'class: term, term', or a table with columns class and term."
    )
    wordnet: str = Field("", description="Folder with WordNet's data.noun, if not installed where usual.")
    most_terms: int = Field(50, ge=1, description="Most terms that texts and WordNet give a class.")
    encoder: str = Field("minilm-l6", description="Sentence encoder that compares terms with a class's name.")
    wrapping: str = Field(
        "The field of this study is related to {term}",
        description="The sentence in which terms and names are compared.",
    )
    filter: bool = Field(True, description="Off: keep terms however far from the name.")
    tau_a: float = Field(0.5, ge=-1, le=1, description="Keep terms whose cosine to the name is above this.")
    cross_encoder: str = Field(
        "",
        description="Sequence classifier (folder or hub id) with a label 'contrasting' or 'contradiction'.",
    )
    tau_b: float = Field(
        0.9, ge=0, le=1, description="Keep terms whose chance to contrast is below this (--cross-encoder)."
    )
    unlabelled: str | None = Field(
        None,
        description="Data whose texts (training split) give terms and calibrate; default: training rows.",
    )
    max_unlabelled: int = Field(2000, ge=1, description="Most texts of --unlabelled, drawn by the seed.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.terms) != ("file" in self.sources):
            raise ValueError(f"terms='{self.terms}': give a file together with --sources file, or neither")
        if self.wordnet and "wordnet" not in self.sources:
            raise ValueError("wordnet: is read with --sources wordnet; add it, or drop --wordnet")
        if "{term}" not in self.wrapping:
            raise ValueError(f"wrapping='{self.wrapping}': has no place for the term; write {{term}}")
        return self


class SciPrompt(Cloze):
    """A verbalizer over many terms a class, weighted by their similarity to its name.

    Attributes:
        terms: for every class the terms beside its label words, with their similarity; set by `prepare`.
    """

    card: ClassVar[Card] = Card(
        name="sciprompt",
        title="SciPrompt: class names expanded into weighted terms of their field",
        family="fewshot",
        modality="text",
        learns="all weights of a copy of the model, or none; a weight a term (soft: a vector a class)",
        cost="full fine-tuning, one slot a text; beforehand an embedding a candidate term",
        kinds=("masked", "seq2seq", "causal"),
        tasks=("classification",),
        paper="SciPrompt: Knowledge-augmented Prompting for Fine-grained Categorization of Scientific Topics",
        arxiv="2410.01946",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = SciPromptConfig
    opens: ClassVar[tuple[str, ...]] = ("terms", "unlabelled")
    training_defaults: ClassVar[dict[str, Any]] = {"epochs": 5.0, "batch_size": 5, "weight_decay": 0.01}

    def __init__(self, backbone: Backbone, task: TextTask, config: SciPromptConfig) -> None:
        super().__init__(backbone, task, config)
        self.terms: list[list[Term]] = [[] for _ in task.classes]

    # ---- the verbalizer over terms ---------------------------------------------------------------------

    def make_verbalizer(self) -> nn.Module:
        ids = self.task.word_ids
        return self._verbalizer(ids, [[1.0] * len(listed) for listed in ids])

    def take(self, terms: Sequence[Sequence[Term]]) -> None:
        """Let every class have these terms beside its label words, which weigh 1.

        Terms that are the same tokens as another's, or tokens the model does not know, are left out.
        """
        taken = {tuple(ids) for listed in self.task.word_ids for ids in listed}
        unknown = self.task.tokenizer.unk_token_id
        self.terms, all_ids, strengths = [], [], []
        for own, offered in zip(self.task.word_ids, terms, strict=True):
            kept, ids = [], list(own)
            for term, similarity in offered:
                tokens = self.task.continuation(term)
                if tokens and unknown not in tokens and tuple(tokens) not in taken:
                    taken.add(tuple(tokens))
                    kept.append((term, min(similarity, 1.0)))
                    ids.append(tokens)
            self.terms.append(kept)
            all_ids.append(ids)
            strengths.append([*(1.0 for _ in own), *(similarity for _, similarity in kept)])
        self.words = [ids for listed in all_ids for ids in listed]
        self.verbalizer = self._verbalizer(all_ids, strengths).to(self.backbone.device)

    def _verbalizer(
        self, ids: Sequence[Sequence[Sequence[int]]], strengths: Sequence[Sequence[float]]
    ) -> nn.Module:
        """Over words ``ids`` of every class, with their ``strengths``."""
        counts, how = [len(listed) for listed in ids], self.config.weights
        flat = torch.tensor([s for listed in strengths for s in listed])
        if how == "equal":
            flat = torch.ones_like(flat)
        if self.config.verbalizer == "soft":
            rows = label_rows(self.backbone, [[word] for listed in ids for word in listed])
            parts = (rows * flat.to(rows)[:, None]).split(counts)
            return SoftVerbalizer(torch.stack([part.mean(0) for part in parts])).requires_grad_(
                how != "fixed"
            )
        return WeightedVerbalizer(counts, flat / self.config.temperature).requires_grad_(how == "learned")

    def groups(self) -> list[ParamGroup]:
        return [group for group in super().groups() if all(p.requires_grad for p in group.params.values())]

    # ---- before learning: find terms, calibrate --------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        if self.config.unlabelled is not None:
            rows = read_texts(
                self.config.unlabelled,
                pairs=self.task.pairs,
                columns=self.task.columns,
                most=self.config.max_unlabelled,
                seed=seed,
            )
            data = Data(self.task.encode(rows[:UNLABELLED], answers=False), [], rows)
        if self.config.expand:
            self.take(self.find([f"{row['text']} {row.get('text_b') or ''}" for row in data.rows]))
        if isinstance(self.verbalizer, ManualVerbalizer) or self.config.calibrate != "data":
            super().prepare(data, seed)

    def find(self, texts: Sequence[str]) -> list[list[Term]]:
        """Retrieve terms for every class, and keep those near to its name (its first label word).

        Raises:
            DataError: a source can not be read.
            BackboneError: an encoder can not be loaded.
        """
        config, names = self.config, self.task.words
        near = bi_encoder(config.encoder, str(self.backbone.device), config.wrapping)
        near.progress = "comparing terms" if self.progress else None
        offered = []
        for source in config.sources:
            if source == "texts":
                offered.append(sources.from_texts(names, texts, near, config.most_terms))
            elif source == "file":
                offered.append(sources.from_file(config.terms, self.task.classes))
            else:
                offered.append(sources.from_wordnet(names, config.wordnet, config.most_terms))
        words = [word for listed in self.task.word_lists for word in listed]
        found = []
        for name, own in zip(names, sources.first_come(offered, words), strict=True):
            found.append(list(zip(own, near([name], own)[0].tolist(), strict=True)))
        return self.filtered(found) if config.filter else found

    def filtered(self, terms: Sequence[Sequence[Term]]) -> list[list[Term]]:
        """Those above ``tau_a`` in similarity and, with a cross-encoder, below ``tau_b`` in the chance to contrast."""
        config = self.config
        kept = [[entry for entry in listed if entry[1] > config.tau_a] for listed in terms]
        if config.cross_encoder:
            cross = CrossEncoder(config.cross_encoder, self.backbone.device, config.wrapping)
            for c, name in enumerate(self.task.words):
                chances = cross(name, [term for term, _ in kept[c]]).tolist()
                kept[c] = [entry for entry, b in zip(kept[c], chances, strict=True) if b < config.tau_b]
        return kept

    @torch.no_grad()
    def prior(self, data: Data) -> Tensor:
        """Term scores ``[words]`` regardless of the text; over unlabelled texts it also drops terms rarely said."""
        if self.config.calibrate != "data":
            return super().prior(data)
        common = self.common(data.train)
        self.drop_rare(common)
        return word_scores(common[pieces_of(self.words)], self.words, self.config.word_score)

    # ---- in an artifact --------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """The terms, a line a class."""
        return sources.lines(self.task.classes, self.terms)

    def load_text(self, text: str) -> None:
        self.take(sources.parse_lines(text, self.task.classes))
