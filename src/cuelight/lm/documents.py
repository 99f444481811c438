"""The user's own documents, cut into passages and found again: BM25 over words, or a sentence encoder.

library = Documents.read("notes/", encoder="bm25")      # a folder, a file, a table, or a list of texts
library.search("When was the bridge built?", 3)         # the three nearest passages, best first
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cuelight.errors import DataError, nearest

__all__ = ["Documents", "Passage", "embed"]

TEXT = (".txt", ".md", ".rst")
TITLE, BODY = ("title", "name", "id"), ("text", "passage", "document", "content", "body", "sentence")
_WORD = re.compile(r"\w+")
_COMMON = frozenset(["a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "he", "in", "is", "it", "its", "of", "on", "that", "the", "to", "was", "were", "what", "when", "where", "which", "who", "will", "with"])  # fmt: skip # noqa: E501
_K1, _B = 1.5, 0.75


@dataclass(frozen=True)
class Passage:
    """A piece of a document; ``score`` says how near it is to the query that found it."""

    title: str
    text: str
    score: float = 0.0


class Documents:
    """Passages that can be searched.

    Args:
        passages: what is searched.
        encoder: ``bm25``, ``words`` (cosine of TF-IDF) or a sentence encoder (``minilm-l6``, a folder, a hub id).
    """

    def __init__(self, passages: Sequence[Passage], encoder: str = "bm25") -> None:
        if not passages:
            raise DataError("documents: there are none; give a folder, a file or a list of texts")
        self.passages, self.encoder = list(passages), encoder
        self._index: _BM25 | np.ndarray | None = None

    def __repr__(self) -> str:
        return f"<{len(self.passages)} passages, {self.encoder}>"

    @staticmethod
    def read(source: Any, encoder: str = "bm25", words: int = 100) -> Documents:
        """Documents of ``source``, in passages of at most ``words`` words that end with a sentence where one does.

        Args:
            source: a folder of text files, a text file, a table with a text column, a list of texts or of
                ``(title, text)``, or `Documents`, which are returned as they are.

        Raises:
            DataError: it can not be read or holds no text.
        """
        if isinstance(source, Documents):
            return source
        if isinstance(source, str | Path):
            texts = _from_path(Path(source))
        else:
            texts = [_titled(entry, k) for k, entry in enumerate(source)]
        passages = [
            Passage(title, part) for title, text in texts for part in _parts(text, words) if part.strip()
        ]
        return Documents(passages, encoder)

    def search(self, query: str, count: int = 3) -> list[Passage]:
        """The ``count`` passages nearest to ``query``, best first; fewer when no others share a word with it."""
        if self.encoder == "bm25":
            if self._index is None:
                self._index = _BM25([f"{p.title} {p.text}" for p in self.passages])
            assert isinstance(self._index, _BM25)
            scores = self._index.scores(query)
        else:
            scores = self._cosines(query)
        order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))[:count]
        chosen = [k for k in order if scores[k] > 0]
        return [Passage(self.passages[k].title, self.passages[k].text, float(scores[k])) for k in chosen]

    def _cosines(self, query: str) -> np.ndarray:
        texts = [f"{p.title} {p.text}" for p in self.passages]
        if self.encoder == "words":
            vectors = embed([*texts, query], "words")
            return np.asarray(vectors[:-1] @ vectors[-1])
        if self._index is None:
            self._index = embed(texts, self.encoder)
        assert isinstance(self._index, np.ndarray)
        return np.asarray(self._index @ embed([query], self.encoder)[0])

    def article(self, title: str) -> list[Passage]:
        """The passages of the document called ``title``, in their order; the case of letters does not matter."""
        return [p for p in self.passages if p.title.lower() == title.strip().lower()]

    def near_titles(self, title: str, count: int = 5) -> list[str]:
        """Titles that are like ``title``."""
        import difflib

        titles = {p.title.lower(): p.title for p in self.passages}
        return [titles[t] for t in difflib.get_close_matches(title.lower(), titles, n=count, cutoff=0.3)]


class _BM25:
    """Okapi BM25 over an inverted index; k1 = 1.5, b = 0.75."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(_words(text)) for text in texts]
        self.lengths = np.array([sum(c.values()) for c in counts], dtype=float)
        self.mean = max(self.lengths.mean(), 1.0)
        self.where: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for k, found in enumerate(counts):
            for word, times in found.items():
                self.where[word].append((k, times))

    def scores(self, query: str) -> np.ndarray:
        total = np.zeros(len(self.lengths))
        for word in set(_words(query)):
            places = self.where.get(word, ())
            weight = math.log(1 + (len(total) - len(places) + 0.5) / (len(places) + 0.5))
            for k, times in places:
                damp = _K1 * (1 - _B + _B * self.lengths[k] / self.mean)
                total[k] += weight * times * (_K1 + 1) / (times + damp)
        return total


def embed(texts: Sequence[str], encoder: str = "minilm-l6") -> np.ndarray:
    """Vectors of length 1, ``[texts, width]``: by a sentence encoder, or ``words`` for TF-IDF over these texts."""
    if encoder == "words":
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            table = TfidfVectorizer(token_pattern=r"\w+").fit_transform(texts)
        except ValueError:  # no words at all
            return np.zeros((len(texts), 1))
        return np.asarray(table.toarray())
    from cuelight.tasks.terms import bi_encoder

    return bi_encoder(encoder, "auto", "{term}").embed(list(texts)).numpy()


def _words(text: str) -> list[str]:
    return [w for w in _WORD.findall(text.lower()) if w not in _COMMON]


def _titled(entry: Any, number: int) -> tuple[str, str]:
    if isinstance(entry, Passage):
        return entry.title, entry.text
    if isinstance(entry, str):
        return f"document {number + 1}", entry
    title, text = entry
    return str(title), str(text)


def _from_path(path: Path) -> list[tuple[str, str]]:
    from cuelight.data.files import READABLE, missing_file, read_frame, read_text

    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT and p.is_file())
        if not files:
            raise DataError(f"documents {path}: holds no text files ({', '.join(TEXT)})")
        return [(file.stem, read_text(file)[0]) for file in files]
    if not path.is_file():
        raise missing_file(path)
    if path.suffix.lower() not in READABLE:
        return [(path.stem, read_text(path)[0])]
    frame = read_frame(path)
    columns = {str(c).lower(): c for c in frame.columns}
    body = next((columns[name] for name in BODY if name in columns), None)
    if body is None:
        hint = nearest("text", columns)
        raise DataError(f"documents {path}: has no column called {', '.join(BODY)}{hint}; rename one")
    title = next((columns[name] for name in TITLE if name in columns), None)
    return [
        (f"row {k + 1}" if title is None else str(row[title]), str(row[body]))
        for k, row in enumerate(frame.to_dict("records"))
        if isinstance(row[body], str)
    ]


def _parts(text: str, words: int) -> list[str]:
    """``text`` cut between sentences, paragraphs kept apart, into parts of at most ``words`` words."""
    made: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        held: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            own = sentence.split()
            if held and len(held) + len(own) > words:
                made.append(" ".join(held))
                held = []
            while len(own) > words:
                made.append(" ".join(own[:words]))
                own = own[words:]
            held += own
        if held:
            made.append(" ".join(held))
    return made
