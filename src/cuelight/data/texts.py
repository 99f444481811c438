"""Unlabelled texts: what self-training, continued pre-training and looking at a domain need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cuelight.data.columns import choose_texts, shown
from cuelight.data.files import read_text
from cuelight.data.sources import Source, open_source, role_of
from cuelight.data.spec import DataSpec
from cuelight.errors import DataError, nearest

__all__ = ["read_texts"]


def read_texts(
    source: Any,
    *,
    pairs: bool = False,
    columns: Sequence[str] = (),
    most: int | None = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Different texts of ``source`` as rows ``{"text": ..., "text_b": ..., <columns>}``.

    Of a source with splits the training split is read; labels are never looked at, and need not be there.

    Args:
        source: whatever `cuelight.data.read` takes, or a ``.txt`` file with a text a line.
        pairs: whether rows need a second text.
        columns: other columns that rows need.
        most: keep so many at most, drawn by ``seed``.

    Raises:
        DataError: it can not be read, lacks what rows need, or holds no text.
    """
    found = _opened(source)
    frame = _rows_to_learn_from(found)
    chosen = choose_texts(frame, DataSpec(), found.name)
    if pairs and "text_b" not in chosen:
        names = ", ".join(map(str, frame.columns))
        raise DataError(
            f"{found.name}: has no second text, which the labelled rows have: name its columns 'text' and "
            f"'text_b'; columns: {names}"
        )
    if not pairs:
        chosen.pop("text_b", None)
    for name in columns:
        if name not in frame.columns:
            hint = nearest(name, list(map(str, frame.columns)))
            raise DataError(f"{found.name}: has no column '{name}', which the template names{hint}")
    wanted = {**chosen, **{name: name for name in columns}}
    table = pd.DataFrame(
        {use: [shown(value, name, found.name) for value in frame[name]] for use, name in wanted.items()}
    )
    texts = [use for use in ("text", "text_b") if use in table]
    table = table[(table[texts].apply(lambda part: part.str.strip()) != "").all(axis=1)].drop_duplicates()
    if table.empty:
        raise DataError(f"{found.name} holds no text: give a source with texts")
    if most is not None and len(table) > most:
        table = table.sample(most, random_state=seed % 2**32)
    rows: list[dict[str, str]] = table.to_dict("records")
    return rows


def _opened(source: Any) -> Source:
    path = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    if path is None or path.suffix.lower() != ".txt" or not path.is_file():
        return open_source(source)
    lines = [line for line in read_text(path)[0].splitlines() if line.strip()]
    if not lines:
        raise DataError(f"'{path}' is empty: give a file with a text a line")
    return Source(str(path), {"": pd.DataFrame({"text": lines})})


def _rows_to_learn_from(source: Source) -> pd.DataFrame:
    """The training split's rows; all rows of a source without one."""
    tables = source.tables
    if list(tables) == [""]:
        frame = tables[""]
        column = next((name for name in frame.columns if str(name).strip().lower() == "split"), None)
        if column is None:
            return frame
        tables = {str(name): part for name, part in frame.groupby(column, sort=False)}
    training = [part for name, part in tables.items() if role_of(name) == "train"]
    frame = training[0] if training else pd.concat(tables.values(), ignore_index=True)
    return frame.drop(columns=[n for n in frame.columns if str(n).strip().lower() == "split"])
