"""What is known of a class in words: definitions and descriptions, from WordNet or from the user's own file.

Nothing is fetched: WordNet is read where it is installed, CuPL's descriptions (Pratt et al. 2023) and the like are read
as they come, as JSON or as a table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cuelight.data.files import READABLE, missing_file, read_file, read_text
from cuelight.data.wordnet import find_wordnet
from cuelight.errors import DataError

__all__ = ["class_descriptions", "known_as"]

_CLASS = ("class_name", "class", "label_name", "name", "label")
_TEXT = ("description", "descriptions", "descriptor", "sentence", "definition", "gloss", "text")


def class_descriptions(source: str, classes: Sequence[str], *, wordnet: str = "") -> list[list[str]]:
    """Texts about every class, in the source's order; none for a class that the source does not know.

    Args:
        source: ``wordnet``; a JSON file ``{class: text or list of texts}``; a CSV, JSON-lines or Parquet file with a
            class and a description column; or a text file with lines ``class: text``.
        classes: class names; spelling counts apart from case, underscores and hyphens.
        wordnet: the folder with WordNet's files, when it is not where it is usually installed.

    Raises:
        DataError: the source can not be read, or knows none of the classes.
    """
    if source == "wordnet":
        try:
            words = find_wordnet(wordnet)
        except DataError as error:
            raise DataError(f"{error}; or name a file with a text for each class instead") from error
        found = [words.definitions(name) for name in classes]
    else:
        table = _read(Path(source).expanduser())
        found = [list(dict.fromkeys(table.get(known_as(name), []))) for name in classes]
    if not any(found):
        raise DataError(
            f"descriptions: {source} knows none of the classes ({', '.join(classes[:5])}, ...); "
            "class names must be the same in both"
        )
    return found


def known_as(name: str) -> str:
    """A class name as names are compared."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _read(path: Path) -> dict[str, list[str]]:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise missing_file(path)
    if suffix == ".json":
        try:
            said = json.loads(read_text(path)[0])
        except ValueError as error:
            raise DataError(f"'{path}' is no JSON ({error}); give {{class: [texts]}}") from error
        if isinstance(said, dict):
            return _table([(name, text) for name, texts in said.items() for text in _listed(path, texts)])
    if suffix in READABLE:
        return _table(_rows(path))
    rows = []
    for number, line in enumerate(read_text(path)[0].splitlines(), 1):
        if line.strip():
            name, colon, text = line.partition(":")
            if not colon:
                raise DataError(f"'{path}', line {number}: has no colon; write 'class: text'")
            rows.append((name, text))
    return _table(rows)


def _listed(path: Path, texts: object) -> list[str]:
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise DataError(f"'{path}': a class has neither a text nor a list of texts; give {{class: [texts]}}")
    return listed


def _rows(path: Path) -> list[tuple[str, str]]:
    found = read_file(path)
    frame = next(iter(found.values())).frame if isinstance(found, dict) else found.frame
    columns = {str(name).strip().lower(): name for name in frame.columns}
    chosen = [next((columns[n] for n in names if n in columns), None) for names in (_CLASS, _TEXT)]
    if None in chosen:
        raise DataError(
            f"'{path}' has the columns {', '.join(map(str, frame.columns))}: name them 'class' and 'description'"
        )
    return [(str(n), str(t)) for n, t in zip(frame[chosen[0]], frame[chosen[1]], strict=True)]


def _table(rows: list[tuple[str, str]]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for name, text in rows:
        if text.strip():
            table.setdefault(known_as(name), []).append(" ".join(text.split()))
    return table
