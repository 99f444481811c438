"""Text tasks: what the model reads, what counts as an answer, and how good an answer is.

Three kinds.  *Classification*: every class has a label word (one token or several), the answer is the
likeliest. *Multilabel*: the answer is the list of label words, most frequent class first, decoded under a
trie so that only label sets can come out.  *Generation*: the answer is free text.

A task is bound to a backbone (its tokenizer decides what a label word is) and to the classes of the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cuelight.backbones.backbone import Backbone
from cuelight.data import Splits
from cuelight.errors import ConfigError, DataError, nearest
from cuelight.prompts.conditioning import Condition, TextBatch, answer_logits, choice_scores, generate
from cuelight.tasks.metrics import (
    classification_metrics,
    generation_metrics,
    multilabel_metrics,
    number_match,
)
from cuelight.tasks.predictions import Predictions
from cuelight.tasks.template import (
    Span,
    check_template,
    columns_of,
    default_template,
    has_slot,
    render,
    soft_parts,
    split_marks,
)

__all__ = ["Item", "Predictions", "TaskConfig", "TextTask"]

TaskKind = Literal["classification", "multilabel", "generation"]
_SEPARATOR = ";"
_OR = "|"
_SENTINEL = "<extra_id_0>"
_NO_LABEL = ("none", "no label", "nothing at all")


class TaskConfig(BaseModel):
    """What a user may set about a text task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | None = Field(
        None,
        description="Text the model reads, e.g. 'Review: {text}\\nSentiment:'; {mask} is the answer's place, {soft:words} "
        "learned vectors, @FILE a file.",
    )
    label_words: dict[str, str] | None = Field(
        None,
        description="Word for each class, e.g. '0=negative,1=positive'; methods with a verbalizer take several, "
        "'0=bad|awful'.",
    )
    max_length: int = Field(
        256, ge=8, description="Longest input in tokens, template included; longer texts are cut."
    )
    max_new_tokens: int = Field(64, ge=1, description="Longest generated answer in tokens.")
    num_beams: int = Field(1, ge=1, description="Beams for generated answers; 1 is greedy.")
    objective: Literal["answer", "choices"] = Field(
        "answer",
        description="Classification loss: over the whole vocabulary (answer) or among the classes (choices).",
    )
    decoding: Literal["trie", "free"] = Field(
        "trie",
        description="Several labels as text: only label sets can come out (trie), or anything can and what is no "
        "label is dropped (free).",
    )
    chat: bool = Field(False, description="Wrap the template in the backbone's chat format.")
    judge: Literal["text", "number"] = Field(
        "text",
        description="Generated answers are judged as texts, or by their last number, as reasoning is.",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that the template names."""
        return columns_of(self.template)


@dataclass
class Item:
    """One tokenised row: ids of the text, ids of the answer (training), and what it is judged by.

    In ``text`` the vector ``k`` of a soft template is the id ``-1 - k``.  ``columns`` are those of the data that the
    template names.  ``row`` is what was read, for who fills another template with it.
    """

    text: list[int]
    answer: list[int]
    label: int = -1
    labels: list[int] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


class TextTask:
    """A text task for one backbone.

    Args:
        backbone: decides tokens, and where an answer goes.
        kind: ``classification``, ``multilabel`` or ``generation``.
        classes: class names in order (empty for generation).
        pairs: whether rows have a second text.
        config: template, label words and lengths.
        frequencies: training rows per class, for the order of labels in a multilabel answer.
        columns: other columns that rows have, and the template may name.

    Attributes:
        words: every class's (first) label word.
        word_lists: all of every class's label words.
        soft_start: for every vector of a soft template the id of the token it starts as, None for a random start.
        soft_names: for every such vector the name it has in the template, "" without.

    Raises:
        ConfigError: template or label words that do not fit the backbone or the classes.
    """

    modality: ClassVar[str] = "text"

    def __init__(
        self,
        backbone: Backbone,
        kind: TaskKind,
        classes: Sequence[str],
        *,
        pairs: bool = False,
        config: TaskConfig | None = None,
        frequencies: Mapping[str, int] | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.backbone, self.kind, self.classes, self.pairs = backbone, kind, tuple(classes), pairs
        self.config = config or TaskConfig.model_validate({})
        template = self.config.template or default_template(backbone.kind, kind, pairs)
        self.template = check_template(template, backbone.kind, pairs, tuple(columns))
        self.columns = columns_of(self.template)
        self.word_lists = self._label_words()
        self.words = tuple(words[0] for words in self.word_lists)
        self.frequencies = dict(frequencies or {})
        self.max_length = min(self.config.max_length, backbone.max_positions or self.config.max_length)
        self.truncated = 0
        self._spaced = not self.config.chat and not self.template[-1:].isspace()
        self.tokenizer = backbone.tokenizer
        if self.config.chat and backbone.kind != "remote" and not self.tokenizer.chat_template:
            raise ConfigError(f"chat: {backbone.id} has no chat format; drop --chat")
        # T5 learned to fill a sentinel in the text and to name it before the answer.
        self.lead = self._sentinel() if backbone.kind == "seq2seq" and has_slot(self.template) else []
        self._soft: list[list[int]] = []
        self.soft_start: list[int | None] = []
        self.soft_names: list[str] = []
        self._find_soft_slots()
        self._pieces: list[list[int]] = []
        self.word_ids: list[list[list[int]]] = []
        """Token ids of all of every class's label words."""
        self.word_answers: list[list[list[int]]] = []
        """The same as they are answered, with an end mark where it is needed."""
        self.choices: list[list[int]] = []
        """Token ids of every class's answer; none for generation, and for models without a language-model head."""
        if kind != "generation" and self._answers_in_words:
            self.choices = self._make_choices()
        if backbone.kind == "masked" and backbone.max_positions and self.choices:
            longest = max(len(ids) for listed in self.word_ids for ids in listed)  # a mask for every token
            self.max_length = min(self.max_length, backbone.max_positions - longest + 1)

    @property
    def _answers_in_words(self) -> bool:
        return self.backbone.kind in ("causal", "seq2seq", "masked")

    @property
    def metric(self) -> str:
        """The figure that decides which checkpoint is best and heads the tables."""
        if self.kind == "generation" and self.config.judge == "number":
            return "number_match"
        return {"classification": "accuracy", "multilabel": "micro_f1", "generation": "rouge_l"}[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """All it takes to build the task again."""
        return {
            "kind": self.kind,
            "classes": list(self.classes),
            "pairs": self.pairs,
            "config": self.config.model_dump() | {"template": self.template},
            "frequencies": self.frequencies,
            "columns": list(self.columns),
        }

    @staticmethod
    def from_dict(backbone: Backbone, spec: Mapping[str, Any], config: TaskConfig) -> TextTask:
        """The task that `to_dict` described."""
        return TextTask(
            backbone,
            spec["kind"],
            spec["classes"],
            pairs=spec["pairs"],
            config=config,
            frequencies=spec["frequencies"],
            columns=spec.get("columns", ()),
        )

    @staticmethod
    def of(backbone: Backbone, splits: Splits, config: TaskConfig) -> TextTask:
        """The task that ``splits`` pose to ``backbone``."""
        counts: dict[str, int] = {}
        own = ("text", "text_b", "label", "labels", "targets", "row")
        columns = [name for name in splits.train.column_names if name not in own]
        if splits.kind == "multilabel":
            table = [row["labels"] for row in splits.train]
            counts = {name: sum(row[c] for row in table) for c, name in enumerate(splits.classes)}
        return TextTask(
            backbone,
            splits.kind,
            splits.classes,
            pairs="text_b" in splits.train.column_names,
            config=config,
            frequencies=counts,
            columns=columns,
        )

    def lines(self) -> list[str]:
        """What a report says of the task."""
        shown = self.template.replace("\n", "\\n")
        lines = [f"template: {shown}"]
        if self.words:
            more = f", ... ({len(self.words)})" if len(self.words) > 12 else ""
            lines.append(f"label words: {', '.join(self.words[:12])}{more}")
        if self.truncated:
            lines.append(f"{self.truncated} texts were longer than {self.max_length} tokens and were cut")
        return lines

    # ---- from rows to batches --------------------------------------------------------------------------

    def row(self, place: int, text: Any) -> dict[str, str]:
        """What the task reads of one text, pair, or dictionary with the columns that the template names.

        Raises:
            DataError: it is none of these; ``place`` says which one.
        """
        wanted = ("text", "text_b")[: 1 + self.pairs] + self.columns
        if self.columns and not isinstance(text, Mapping):
            names = ", ".join(repr(name) for name in wanted)
            raise DataError(
                f"texts: number {place} is {_shown(text)}; give a dictionary with {names} for each"
            )
        if isinstance(text, Mapping):
            missing = [n for n in wanted if not isinstance(text.get(n), str)]
            if missing:
                raise DataError(f"texts: number {place} has no text '{missing[0]}'; give it")
            return {n: text[n] for n in wanted}
        parts = [text] if isinstance(text, str) else list(text) if isinstance(text, tuple | list) else []
        if len(parts) != 1 + self.pairs or not all(isinstance(part, str) for part in parts):
            given = "a pair of strings" if self.pairs else "a string"
            raise DataError(f"texts: number {place} is {_shown(text)}; give {given} for each")
        if not all(part.strip() for part in parts):
            raise DataError(f"texts: number {place} is empty; leave it out")
        return dict(zip(("text", "text_b"), parts, strict=False))

    def length(self, item: Item) -> int:
        """Rows of like length share a batch."""
        return len(item.text)

    def encode(self, rows: Any, *, answers: bool = True) -> list[Item]:
        """Tokenise rows (a ``datasets.Dataset``, or dictionaries with ``text``) and their answers."""
        rows = list(rows)
        texts = self._tokenise(rows)
        items = []
        for row, text in zip(rows, texts, strict=True):
            item = Item(
                text,
                [],
                row.get("label", -1),
                list(row.get("labels", [])),
                list(row.get("targets", [])),
                {name: row[name] for name in self.columns},
                row,
            )
            if answers and self._answers_in_words:
                item.answer = self.answer_ids(item)
            items.append(item)
        return items

    def collate(self, items: Sequence[Item]) -> TextBatch:
        """A right-padded batch, on the CPU: a worker process may make it; whoever runs it moves it."""
        pad = 0 if self.tokenizer is None else self.tokenizer.pad_token_id or 0

        def padded(rows: list[list[int]], value: int) -> Tensor:
            return pad_sequence(
                [torch.tensor(r, dtype=torch.long) for r in rows], batch_first=True, padding_value=value
            )

        def table(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
            return padded(rows, pad), padded([[1] * len(r) for r in rows], 0)

        text, text_mask = table([i.text for i in items])
        answer, answer_mask = (
            table([i.answer for i in items]) if any(i.answer for i in items) else (None, None)
        )
        extra: dict[str, Any] = {"items": list(items)}
        if self.kind == "classification":
            extra["label"] = torch.tensor([i.label for i in items])
        elif self.kind == "multilabel":
            extra["labels"] = torch.tensor([i.labels for i in items], dtype=torch.float32)
        return TextBatch(text, text_mask, answer, answer_mask, extra, tuple(self.lead))

    @property
    def longest_answer(self) -> int:
        """How many tokens an answer may have."""
        if self.kind == "generation":
            return self.config.max_new_tokens
        if self.kind == "multilabel":
            return max(sum(len(c) + 1 for c in self._pieces), len(self._none) + 1)
        return max((len(c) for c in self.choices), default=1)

    def answer_ids(self, item: Item) -> list[int]:
        """The tokens a model should answer with for ``item``."""
        if self.kind == "classification":
            return self.choices[item.label] if item.label >= 0 else []
        if self.kind == "multilabel":
            present = [c for c, on in enumerate(item.labels) if on]
            present.sort(key=lambda c: -self.frequencies.get(self.classes[c], 0))
            return self._label_list(present)
        return [*self.continuation(item.targets[0]), *self._end] if item.targets else []

    def own_tokens(self, row: Mapping[str, Any], ids: Sequence[int]) -> list[bool] | None:
        """Which of a row's tokens ``ids`` are its own text and not the template's.

        None where that can not be told: the text was cut, or the tokenizer keeps no offsets.
        """
        if not self.tokenizer.is_fast:
            return None
        marks = ("\ue000", "\ue001")  # private use: no text has them
        values = row["text"], row.get("text_b")
        texts = (None if v is None else marks[0] + v + marks[1] for v in values)
        marked = self._render(*texts, columns=row)  # type: ignore[arg-type]
        plain, inside = [], False
        own: list[bool] = []
        for character in marked:
            if character in marks:
                inside = character == marks[0]
            else:
                plain.append(character)
                own.append(inside)
        found = self.tokenizer(
            "".join(plain), add_special_tokens=not self.config.chat, return_offsets_mapping=True
        )
        if list(found.input_ids) != list(ids):
            return None
        return [end > start and any(own[start:end]) for start, end in found.offset_mapping]

    def continuation(self, word: str) -> list[int]:
        """Token ids of ``word`` as it would follow the template.

        Tokenised behind another word and cut off there, since a tokenizer may mark the start of a text
        specially.
        """
        if self.backbone.kind == "causal":
            lead = "x" if self._spaced else "x\n"
            joined = self.tokenizer(
                lead + (" " if self._spaced else "") + word, add_special_tokens=False
            ).input_ids
            return joined[len(self.tokenizer(lead, add_special_tokens=False).input_ids) :]
        if self.backbone.kind == "masked":
            forms = [self.tokenizer(form, add_special_tokens=False).input_ids for form in (" " + word, word)]
            return min(forms, key=len)
        return self.tokenizer(word, add_special_tokens=False).input_ids

    # ---- learning and answering ------------------------------------------------------------------------

    def loss(self, batch: TextBatch, condition: Condition) -> Tensor:
        """Mean cross-entropy of the answers under ``condition``."""
        if self.kind == "classification" and self.config.objective == "choices":
            scores = choice_scores(self.backbone, batch, condition, self.choices)
            return torch.nn.functional.cross_entropy(scores.float(), batch.extra["label"])
        logits, targets = answer_logits(self.backbone, batch, condition)
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    @torch.no_grad()
    def predict(self, batch: TextBatch, condition: Condition) -> Predictions:
        """The backbone's answers under ``condition``."""
        if self.kind == "classification":
            return self.from_scores(choice_scores(self.backbone, batch, condition, self.choices))
        options: dict[str, Any] = {
            "num_beams": self.config.num_beams,
            "max_new_tokens": self.config.max_new_tokens,
        }
        if self.kind == "multilabel":
            options["max_new_tokens"] = self.longest_answer
            if self.config.decoding == "trie":
                options["allowed"] = self._allowed
        answers = generate(self.backbone, batch, condition, **options)
        if self.kind == "multilabel" and self.config.decoding == "trie":
            return Predictions([self._read_labels(ids) for ids in answers])
        if self.kind == "multilabel":
            texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
            said = [{part.strip() for part in text.split(_SEPARATOR)} for text in texts]
            named = list(zip(self.classes, self.words, strict=True))
            return Predictions([[name for name, word in named if word in parts] for parts in said])
        return Predictions(
            [t.strip() for t in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]
        )

    def from_scores(self, scores: Tensor) -> Predictions:
        """Predictions from class scores ``[B, C]``: softmax for one label, sigmoid and 0.5 for several."""
        scores = scores.detach().float().cpu()
        if self.kind == "multilabel":
            chances = scores.sigmoid()
            return Predictions(
                [[self.classes[c] for c in torch.nonzero(row > 0.5)[:, 0].tolist()] for row in chances],
                chances,
            )
        return Predictions([self.classes[k] for k in scores.argmax(1).tolist()], scores.softmax(1))

    def metrics(self, predictions: Predictions, items: Sequence[Item]) -> dict[str, float]:
        """How good ``predictions`` are for ``items``; figures between 0 and 1 (Matthews' -1 to 1)."""
        index = {name: k for k, name in enumerate(self.classes)}
        if self.kind == "classification":
            return classification_metrics(
                [index.get(a, len(index)) for a in predictions.answers],
                [i.label for i in items],
                len(self.classes),
            )
        if self.kind == "multilabel":
            table = [[int(name in answer) for name in self.classes] for answer in predictions.answers]
            chances = predictions.probabilities
            return multilabel_metrics(
                table, [i.labels for i in items], None if chances is None else chances.numpy()
            )
        targets = [i.targets for i in items]
        figures = generation_metrics(predictions.answers, targets)
        if self.config.judge == "number":
            figures = {"number_match": number_match(predictions.answers, targets), **figures}
        return figures

    # ---- inside ----------------------------------------------------------------------------------------

    def _label_words(self) -> tuple[tuple[str, ...], ...]:
        given = self.config.label_words or {}
        for name in given:
            if name not in self.classes:
                raise ConfigError(
                    f"label_words: '{name}' is no class{nearest(name, self.classes)}; classes are "
                    f"{', '.join(self.classes[:12])}"
                )
        lists = tuple(
            tuple(dict.fromkeys(word.strip() for word in given[c].split(_OR)))
            if c in given
            else (c.replace("_", " ").replace("-", " ").strip() or c,)
            for c in self.classes
        )
        for word, count in Counter(word for words in lists for word in words).items():
            if count > 1:
                raise ConfigError(
                    f"label_words: '{word}' stands for {count} classes; give each class a word of its own"
                )
            if not word:
                raise ConfigError(
                    "label_words: a class has an empty word; give it one, e.g. --label-words 'class=word'"
                )
        return lists

    @property
    def _end(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None or self.backbone.kind == "masked" else [end]

    def _make_choices(self) -> list[list[int]]:
        words = [word for listed in self.word_lists for word in listed]
        found = [self.continuation(word) for word in words]
        taken: dict[tuple[int, ...], str] = {}
        for word, ids in zip(words, found, strict=True):
            if not ids:
                raise ConfigError(
                    f"label_words: '{word}' has no tokens in {self.backbone.id}; choose another word"
                )
            if tuple(ids) in taken:
                raise ConfigError(
                    f"label_words: '{taken[tuple(ids)]}' and '{word}' are the same tokens; give other words"
                )
            taken[tuple(ids)] = word
        firsts = [sum(len(listed) for listed in self.word_lists[:c]) for c in range(len(self.classes))]
        choices = [found[k] for k in firsts]
        self._pieces = choices
        if self.kind == "multilabel":
            for c, word in enumerate(self.words):
                if self._read_labels(choices[c]) != [self.classes[c]]:
                    raise ConfigError(
                        f"label_words: '{word}' reads as a list of labels; give it a word without "
                        f"'{_SEPARATOR}'"
                    )
        # A word that begins another would always be likelier; then, as for T5, an end mark belongs to it.
        starts = {tuple(ids[:k]) for ids in found for k in range(1, len(ids))}
        nested = any(tuple(ids) in starts for ids in found)
        ended = (self.backbone.kind == "seq2seq" and not self.lead) or nested
        end = self._end if ended else []
        self.word_ids = [
            found[k : k + len(listed)] for k, listed in zip(firsts, self.word_lists, strict=True)
        ]
        self.word_answers = [[[*ids, *end] for ids in listed] for listed in self.word_ids]
        return [listed[0] for listed in self.word_answers]

    def shortened(self, text: str) -> str:
        """``text`` without what is beyond ``max_length`` tokens; as it is where the backbone's tokens are not known."""
        if self.tokenizer is None or len(text) <= self.max_length:  # a token has a character at least
            return text
        ends = self._token_ends(text)
        return text if len(ends) <= self.max_length else text[: ends[self.max_length - 1]]

    def _tokenise(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        if self.tokenizer is None:
            return [[] for _ in rows]
        ids = self._ids([self._render(row["text"], row.get("text_b"), columns=row) for row in rows])
        for k, row in enumerate(rows):
            if len(ids[k]) > self.max_length:
                self.truncated += 1
                ids[k] = self._cut(row, len(ids[k]))
            if not ids[k]:
                raise DataError("text: a row has no tokens; remove it or add words to the template")
        return ids

    def _ids(self, rendered: list[str]) -> list[list[int]]:
        if not rendered:
            return []
        if not self._soft:
            found = self.tokenizer(rendered, add_special_tokens=not self.config.chat, verbose=False)
            return list(found.input_ids)
        parted = [split_marks(text) for text in rendered]
        found = self.tokenizer(
            [text for text, _ in parted],
            add_special_tokens=not self.config.chat,
            return_offsets_mapping=True,
            verbose=False,  # too long ones are cut below, and said
        )
        rows = zip(found.input_ids, found.offset_mapping, [spans for _, spans in parted], strict=True)
        return [self._with_slots(ids, places, spans) for ids, places, spans in rows]

    def _with_slots(self, ids: list[int], places: list[tuple[int, int]], spans: list[Span]) -> list[int]:
        """``ids`` with the tokens of every soft part replaced by its slots."""
        out: list[int] = []
        last: Span | None = None
        for token, (start, end) in zip(ids, places, strict=True):
            span = next((s for s in spans if start < s.end and end > s.start), None)
            if span is None:
                out.append(token)
            elif span is not last:
                out += self._soft[span.part]
                last = span
        return out

    def _find_soft_slots(self) -> None:
        """Number the slots of the template's soft parts, and find the token each starts as."""
        parts = soft_parts(self.template)
        if not parts:
            return
        if self.tokenizer is None or not self.tokenizer.is_fast:
            raise ConfigError(
                f"template: soft words need a fast tokenizer, which {self.backbone.id} lacks; drop {{soft}}"
            )
        self._soft = [[] for _ in parts]
        any_row = {name: "0 1" if name.endswith("_span") else "x" for name in self.columns}
        plain, spans = split_marks(self._render("x", "x", columns=any_row))
        found = self.tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True)
        for k, part in enumerate(parts):
            span = next(s for s in spans if s.part == k)
            tokens = zip(found.input_ids, found.offset_mapping, strict=True)
            words = [token for token, (start, end) in tokens if start < span.end and end > span.start]
            own: list[int | None] = [*words] if part.words else [None] * part.count
            self._soft[k] = [-1 - len(self.soft_start) - j for j in range(len(own))]
            self.soft_start += own
            self.soft_names += [part.name] * len(own)

    def _sentinel(self) -> list[int]:
        token = self.tokenizer.convert_tokens_to_ids(_SENTINEL)
        if token is None or token == self.tokenizer.unk_token_id:
            raise ConfigError(
                f"template: {{mask}} is T5's {_SENTINEL}, which {self.backbone.id} lacks; leave {{mask}} out"
            )
        return [token]

    def _cut(self, row: Mapping[str, Any], length: int) -> list[int]:
        """Take tokens off the end of the longer text until the filled template, ``length`` now, fits."""
        texts = [row["text"], row.get("text_b") or ""]
        ends = [self._token_ends(t) for t in texts]
        kept = [len(e) for e in ends]
        ids: list[int] = []
        while length > self.max_length:
            if not any(kept):
                raise ConfigError(
                    f"max_length: {self.max_length} tokens do not hold the template itself; raise it or "
                    "shorten the template"
                )
            for _ in range(min(length - self.max_length, sum(kept))):
                kept[kept[1] > kept[0]] -= 1
            short = [t[: e[k - 1]] if k else "" for t, e, k in zip(texts, ends, kept, strict=True)]
            ids = self._ids(
                [self._render(short[0], short[1] if row.get("text_b") is not None else None, columns=row)]
            )[0]
            length = len(ids)
        return ids

    def _token_ends(self, text: str) -> list[int]:
        """Where in ``text`` each of its tokens ends, in characters."""
        if self.tokenizer.is_fast:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return [end for _, end in found.offset_mapping]
        count = len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        return [len(text) * (k + 1) // count for k in range(count)]

    def _render(self, text: str, text_b: str | None, *, columns: Mapping[str, Any] | None = None) -> str:
        values = {"text": text, "text_b": text_b or ""}
        values |= {name: str((columns or {})[name]) for name in self.columns}
        mask = self.tokenizer.mask_token if self.backbone.kind == "masked" else _SENTINEL if self.lead else ""
        if mask:
            # A text that talks about the mask must not add a second place for the answer.
            values = {name: value.replace(mask, " ") for name, value in values.items()}
        values |= {"options": ", ".join(self.words), "mask": mask}
        filled = render(self.template, values, marks=bool(self._soft))
        if self.config.chat:
            message = [{"role": "user", "content": filled}]
            return self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return filled

    @cached_property
    def _separator(self) -> list[int]:
        return self.tokenizer("x" + _SEPARATOR, add_special_tokens=False).input_ids[-1:]

    @cached_property
    def _none(self) -> list[int]:
        """What stands for no label at all; no class has the same tokens."""
        words = (self.continuation(word) for word in _NO_LABEL)
        return next(ids for ids in words if ids not in self._pieces)

    def _label_list(self, classes: Sequence[int]) -> list[int]:
        """``a; b`` as tokens, piece by piece, so that training and decoding agree on every token."""
        if not classes:
            return [*self._none, *self._end]
        ids = [*self._pieces[classes[0]]]
        for c in classes[1:]:
            ids += [*self._separator, *self._pieces[c]]
        return [*ids, *self._end]

    def _allowed(self, generated: list[int]) -> list[int]:
        """Tokens that keep a label list valid: labels not yet said, the separator, or the end."""
        said, rest = self._split_labels(generated)
        open_ = [c for c in range(len(self.classes)) if c not in said]
        allowed = {
            self._pieces[c][len(rest)]
            for c in open_
            if len(self._pieces[c]) > len(rest) and self._pieces[c][: len(rest)] == rest
        }
        none = self._none
        if not said and len(none) > len(rest) and none[: len(rest)] == rest:
            allowed.add(none[len(rest)])
        complete = any(self._pieces[c] == rest for c in open_)
        if complete or (not said and rest == none):
            allowed.update(self._end)
        if complete and len(open_) > 1:
            allowed.update(self._separator)
        return sorted(allowed) or self._end

    def _split_labels(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Finished labels (those a separator follows) and the tokens after the last separator."""
        said: list[int] = []
        rest: list[int] = []
        for token in ids:
            if [token] == self._separator and rest in self._pieces:
                said.append(self._pieces.index(rest))
                rest = []
            else:
                rest.append(token)
        return said, rest

    def _read_labels(self, ids: list[int]) -> list[str]:
        said, rest = self._split_labels(ids)
        if rest in self._pieces:
            said.append(self._pieces.index(rest))
        return [name for c, name in enumerate(self.classes) if c in said]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
