"""Terms for classes: where words that speak of a class come from, and how near they are to its name.

A source gives for every class terms with a score, best first.  *texts* are the words and pairs of words of unlabelled
texts, each with the class whose name it is nearest to; *file* is the user's own list; *wordnet* what WordNet relates to
the name.  All are read offline.

Nearness is the cosine of two sentences' embeddings (a bi-encoder: ``minilm-l6`` or any encoder).  A cross-encoder, which
reads both sentences at once, may say besides whether they contrast.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.data.files import READABLE, missing_file, one_line, read_file, read_text
from cuelight.data.wordnet import find_wordnet
from cuelight.errors import BackboneError, DataError, nearest
from cuelight.progress import track
from cuelight.prompts.conditioning import Condition, TextBatch, text_states

__all__ = [
    "BiEncoder",
    "CrossEncoder",
    "Term",
    "bi_encoder",
    "first_come",
    "from_file",
    "from_texts",
    "from_wordnet",
    "lines",
    "parse_lines",
]

Term = tuple[str, float]
"""A term and its score: how sure the source is, or how near it is to the class's name."""

_CANDIDATES = 2000
"""Most different words and pairs of words of the texts that are looked at, the commonest."""
_WORD = re.compile(r"[^\W\d_][\w-]*|[^\w\s]")
_SEPARATORS = re.compile(r"[,;|]")
_SCORED = re.compile(r"(.+?)\s*\((-?\d+(?:\.\d+)?)\)$")
_CLASS, _TERM = ("class", "class_name", "label", "label_name"), ("term", "terms", "word", "words")
_CONTRASTS = re.compile(r"contrast|contradict", re.IGNORECASE)


# ---- how near two texts are ------------------------------------------------------------------------------------


class BiEncoder:
    """Cosines of sentence embeddings: the mean of an encoder's last states over a sentence's tokens.

    Args:
        name: a text encoder, as for `load_backbone`.
        wrapping: the sentence that a term is put into, at ``{term}``.

    Attributes:
        progress: the name of a bar on the terminal; None for none.

    Raises:
        BackboneError: no such model, or none whose states stand for a sentence.
    """

    def __init__(self, name: str, device: str = "auto", wrapping: str = "{term}") -> None:
        self.backbone: Backbone = load_backbone(name, device=device, progress=False)
        if self.backbone.kind not in ("text-encoder", "masked"):
            raise BackboneError(f"encoder: {name} is a {self.backbone.kind} model; give a sentence encoder")
        self.wrapping = wrapping
        self.progress: str | None = None
        self._known: dict[str, Tensor] = {}

    def __call__(self, names: Sequence[str], terms: Sequence[str]) -> Tensor:
        """Cosines ``[names, terms]``."""
        if not terms:
            return torch.zeros(len(names), 0)
        return self.embed(names) @ self.embed(terms).T

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of the texts in the wrapping, ``[n, width]``, of length 1."""
        new = sorted({text for text in texts if text not in self._known}, key=len)
        for k in track(range(0, len(new), 64), self.progress):
            part = new[k : k + 64]
            sentences = [self.wrapping.replace("{term}", text) for text in part]
            fed = self.backbone.tokenizer(
                sentences, padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            batch = TextBatch(fed.input_ids, fed.attention_mask).to(self.backbone.device)
            states, mask = text_states(self.backbone, batch, Condition())
            weight = mask[..., None].to(states.dtype)
            found = normalize(((states * weight).sum(1) / weight.sum(1)).float(), dim=-1).cpu()
            self._known.update(zip(part, found, strict=True))
        return torch.stack([self._known[text] for text in texts])


@lru_cache(maxsize=1)
def bi_encoder(name: str, device: str, wrapping: str) -> BiEncoder:
    """A `BiEncoder` that several runs share: it knows the terms that it has embedded before."""
    return BiEncoder(name, device, wrapping)


class CrossEncoder:
    """How likely two sentences contrast, by a sequence classifier that was tuned to tell.

    Args:
        name: folder or hub id; one of its labels is called contrast(ing) or contradict(ion).

    Raises:
        BackboneError: it can not be loaded, or has no such label.
    """

    def __init__(self, name: str, device: torch.device, wrapping: str = "{term}") -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(name).eval().to(device)
        except (OSError, ValueError) as error:
            raise BackboneError(
                f"cross_encoder: '{name}' can not be loaded ({one_line(error)}); give a folder or hub id"
            ) from error
        labels = self.model.config.id2label
        found = [int(k) for k, label in labels.items() if _CONTRASTS.search(str(label))]
        if len(found) != 1:
            raise BackboneError(
                f"cross_encoder: '{name}' has the labels {', '.join(map(str, labels.values()))}; one has to be "
                "called contrasting or contradiction"
            )
        self.column, self.wrapping = found[0], wrapping

    @torch.no_grad()
    def __call__(self, name: str, terms: Sequence[str]) -> Tensor:
        """The chance ``[terms]`` that each contrasts with ``name``."""
        wrapped = [self.wrapping.replace("{term}", text) for text in (name, *terms)]
        found = [torch.zeros(0)]
        for k in range(1, len(wrapped), 32):
            part = wrapped[k : k + 32]
            fed = self.tokenizer(
                [wrapped[0]] * len(part), part, padding=True, truncation=True, return_tensors="pt"
            )
            logits = self.model(**fed.to(self.model.device)).logits
            found.append(logits.float().softmax(-1)[:, self.column].cpu())
        return torch.cat(found)


# ---- sources ---------------------------------------------------------------------------------------------------


def from_texts(
    names: Sequence[str],
    texts: Iterable[str],
    near: Callable[[Sequence[str], Sequence[str]], Tensor],
    most: int = 50,
) -> list[list[Term]]:
    """The commonest words and pairs of neighbouring words of ``texts``, without stop words.

    Each goes to the class whose name it is nearest to; a class keeps its ``most`` nearest.
    """
    found = _common(texts)
    cosines = near(names, found)
    terms: list[list[Term]] = [[] for _ in names]
    if not found:
        return terms
    best, owner = cosines.max(0)
    for k in best.argsort(descending=True, stable=True).tolist():
        terms[int(owner[k])].append((found[k], float(best[k])))
    return [listed[:most] for listed in terms]


def from_file(file: str | Path, classes: Sequence[str]) -> list[list[Term]]:
    """A user's terms: lines ``class: term, term``, or a table with the columns ``class`` and ``term``.

    Raises:
        DataError: it can not be read, or names another class.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() not in READABLE:
        if not path.is_file():
            raise missing_file(path)
        return parse_lines(read_text(path)[0], classes, f"'{path}'")
    table = read_file(path)
    frame = next(iter(table.values())).frame if isinstance(table, dict) else table.frame
    columns = {str(name).strip().lower(): name for name in frame.columns}
    chosen = [next((columns[n] for n in names if n in columns), None) for names in (_CLASS, _TERM)]
    if None in chosen:
        raise DataError(
            f"'{path}' has the columns {', '.join(map(str, frame.columns))}: name them 'class' and 'term'"
        )
    terms: list[list[Term]] = [[] for _ in classes]
    for name, said in zip(frame[chosen[0]], frame[chosen[1]], strict=True):
        terms[_place(str(name), classes, f"'{path}'")] += _split(str(said))
    return terms


def from_wordnet(names: Sequence[str], folder: str = "", most: int = 50) -> list[list[Term]]:
    """What WordNet relates to each name, see `WordNet.related`.

    Raises:
        DataError: WordNet is not there.
    """
    wordnet = find_wordnet(folder)
    return [wordnet.related(name)[:most] for name in names]


def first_come(
    sources: Sequence[Sequence[Sequence[Term]]], taken: Iterable[str], shortest: int = 3
) -> list[list[str]]:
    """For every class the terms of all sources that no earlier class has, in order.

    Args:
        sources: each gives a list of terms for every class.
        taken: words that are no class's to take: the classes' names.
        shortest: terms of fewer characters are left out, and so are those whose score is not positive.
    """
    seen = {word.lower() for word in taken}
    found: list[list[str]] = []
    for offered in zip(*sources, strict=True):
        own = []
        for term, score in (entry for listed in offered for entry in listed):
            fit = score > 0 and len(term) >= shortest and not _SEPARATORS.search(term)
            if fit and term.lower() not in seen:
                seen.add(term.lower())
                own.append(term)
        found.append(own)
    return found


# ---- as text ---------------------------------------------------------------------------------------------------


def lines(classes: Sequence[str], terms: Sequence[Sequence[Term]]) -> str:
    """Terms for people: a line ``class: term (0.71), term (0.64)`` for every class."""
    parts = [", ".join(f"{term} ({score:.2f})" for term, score in listed) for listed in terms]
    return "".join(f"{name}: {part}".rstrip() + "\n" for name, part in zip(classes, parts, strict=True))


def parse_lines(text: str, classes: Sequence[str], source: str = "terms") -> list[list[Term]]:
    """What `lines` wrote, or a user did; a term without a score has 1.

    Raises:
        DataError: a line that does not begin with the name of a class and a colon.
    """
    terms: list[list[Term]] = [[] for _ in classes]
    longest = sorted(classes, key=len, reverse=True)  # a class's name may hold a colon
    for line in filter(None, map(str.strip, text.splitlines())):
        name = next((name for name in longest if line.startswith(f"{name}:")), line.partition(":")[0])
        terms[_place(name, classes, source)] += _split(line[len(name) + 1 :])
    return terms


def _split(said: str) -> list[Term]:
    found = []
    for part in _SEPARATORS.split(said):
        scored = _SCORED.match(part.strip())
        term, score = (scored[1], float(scored[2])) if scored else (part, 1.0)
        if term.strip():
            found.append((" ".join(term.split()), score))
    return found


def _place(name: str, classes: Sequence[str], source: str) -> int:
    if name.strip() not in classes:
        raise DataError(
            f"{source}: '{name.strip()[:60]}' is no class{nearest(name, classes)}; "
            f"write lines 'class: term, term' with the classes {', '.join(classes[:6])}"
        )
    return list(classes).index(name.strip())


def _common(texts: Iterable[str]) -> list[str]:
    """Words and pairs of words by the number of texts that have them."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    counts: Counter[str] = Counter()
    for text in texts:
        words = _WORD.findall(text.lower())
        fit = [word[0].isalpha() and len(word) > 2 and word not in ENGLISH_STOP_WORDS for word in words]
        pairs = zip(words, words[1:], fit, fit[1:], strict=False)
        counts.update({w for w, good in zip(words, fit, strict=True) if good})
        counts.update({f"{a} {b}" for a, b, first, second in pairs if first and second})
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [term for term, _ in ordered[:_CANDIDATES]]
