"""Files to tables: every format a user may bring, and every way such a file can be broken.

Text formats are read with all values as strings and only a blank counts as missing: a class named "NA" or
"none" stays a class and "007" keeps its zeros.  A parser's traceback never reaches the user.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cuelight.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FILE_SUFFIXES",
    "READABLE",
    "Table",
    "missing_file",
    "one_line",
    "read_file",
    "read_frame",
    "read_text",
]

READABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
FILE_SUFFIXES = (*READABLE, ".txt", ".xlsx", ".xls", ".arrow", ".feather", ".gz", ".zip", ".pkl", ".npz")
_QUOTED: Literal[0] = 0  # csv.QUOTE_MINIMAL
_AS_IS: Literal[3] = 3  # csv.QUOTE_NONE
_ADVICE = "use CSV, TSV, JSON, JSONL or Parquet"


@dataclass
class Table:
    """One table as read: the rows, class names that the file itself declares, remarks for the report."""

    frame: pd.DataFrame
    class_names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def one_line(error: BaseException, limit: int = 160) -> str:
    """An error of another library as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def missing_file(path: Path) -> DataError:
    """The error for a path that is not there, with the nearest name beside it."""
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"no file '{path}': there is no folder '{folder}'")
    hint = nearest(path.name, (entry.name for entry in folder.iterdir()))
    return DataError(f"no file '{path}'{hint}: check the name and the folder")


def read_file(path: Path) -> Table | dict[str, Table]:
    """Read one file; a JSON file whose top level names splits gives one table per split.

    Raises ``DataError`` for a file that is missing, empty, damaged or of another format.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise missing_file(path)
    if suffix not in READABLE:
        remedy = "save the sheet as CSV" if suffix in (".xlsx", ".xls") else _ADVICE
        raise DataError(f"'{path}' is not a data file cuelight reads ('{suffix or 'no suffix'}'): {remedy}")
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty: it has no header and no rows")
    if suffix == ".parquet":
        return _read_parquet(path)
    text, notes = read_text(path)
    if not text.strip():
        raise DataError(f"'{path}' is empty: it has no header and no rows")
    if suffix in (".csv", ".tsv"):
        table: Table | dict[str, Table] = _read_csv(path, text)
    elif suffix == ".json":
        table = _read_json(path, text)
    else:
        table = _records(path, _json_lines(path, text))
    for part in table.values() if isinstance(table, dict) else [table]:
        part.notes[:0] = notes
        if part.frame.empty:
            raise DataError(f"'{path}' has a header but no rows: add rows to it")
    return table


def read_frame(path: Path) -> pd.DataFrame:
    """The one table of a file, or its first split; errors as for `read_file`."""
    table = read_file(path)
    return table.frame if isinstance(table, Table) else next(iter(table.values())).frame


def read_text(path: Path) -> tuple[str, list[str]]:
    """The text of a file and remarks on its encoding: UTF-8, with or without mark, UTF-16, else cp1252."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' can not be read: {one_line(error)}") from error
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _decode(path, raw, "utf-16"), [f"'{path.name}' was read as utf-16"]
    if b"\x00" in raw:
        raise DataError(f"'{path}' is a binary file, not text: {_ADVICE}")
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        note = f"'{path.name}' is not UTF-8 and was read as cp1252 (Western European): check its accents"
        return _decode(path, raw, "cp1252"), [note]


def _decode(path: Path, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is neither UTF-8 nor cp1252 text: save it as UTF-8") from error


def _read_csv(path: Path, text: str) -> Table:
    notes = []
    header = text.lstrip("\n").split("\n", 1)[0]
    tabs = path.suffix.lower() == ".tsv"
    separator = "\t" if tabs else ","
    if separator not in header:
        other = max(";\t,|", key=header.count)
        if header.count(other):
            separator = other
            notes.append(f"'{path.name}' is separated by {other!r}")
    frame = _parse_csv(path, text, separator, _QUOTED)
    if separator == "\t":
        lines = [line for line in text.splitlines() if line.strip()]
        if frame is None or len(frame) < len(lines) - 1:
            # a stray quote swallows rows; where each line is whole by itself, quotes are only characters
            if len({line.count("\t") for line in lines}) == 1:
                frame = _parse_csv(path, text, separator, _AS_IS)
                notes.append(f"'{path.name}' has unpaired quotes: read as plain characters, one row a line")
            elif frame is None:
                raise DataError(f"'{path}' has an unpaired quote: close it, or double quotes inside a field")
    elif frame is None:
        raise DataError(f"'{path}' has an unpaired quote: close it, or double quotes inside a field")
    assert frame is not None
    return Table(frame, notes=notes)


def _parse_csv(path: Path, text: str, separator: str, quoting: Literal[0, 3]) -> pd.DataFrame | None:
    """The table; None when a quote is left open."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                quoting=quoting,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        message = one_line(error).removeprefix("Error tokenizing data. C error: ")
        if "EOF inside string" in message:
            return None
        if "does not match length" in message:
            message = "rows have more fields than the header"
        raise DataError(
            f"'{path}' is not a regular table: {message}: quote fields that hold {separator!r}"
        ) from error
    except pd.errors.EmptyDataError as error:
        raise DataError(f"'{path}' is empty: it has no header and no rows") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame


def _json_lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"'{path}' line {number} is not JSON ({one_line(error)}): mend that line"
            ) from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise DataError(f"'{path}' line {number} holds a {kind}: each line should be one JSON object")
        rows.append(row)
    return rows


def _read_json(path: Path, text: str) -> Table | dict[str, Table]:
    try:
        value = json.loads(text)
    except ValueError as error:
        if "Extra data" in str(error):  # JSON lines under the wrong name
            return _records(path, _json_lines(path, text))
        raise DataError(f"'{path}' is not JSON ({one_line(error)}): mend it, or use JSONL") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, list):
        return _records(path, value)
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        if all(part and isinstance(part[0], dict) for part in value.values()):
            return {name: _records(path, part) for name, part in value.items()}
        if len({len(part) for part in value.values()}) == 1:
            import pandas as pd

            return Table(pd.DataFrame({name: pd.Series(part, dtype=object) for name, part in value.items()}))
    raise DataError(f"'{path}' is no table: give a list of objects, columns of equal length, or JSONL")


def _records(path: Path, rows: list[Any]) -> Table:
    import pandas as pd

    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"'{path}' row {number} holds a {type(row).__name__}: each row should be an object"
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    # object columns keep integers whole where other rows miss the field
    columns = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names}
    return Table(pd.DataFrame(columns))


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        frame = table.to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"'{path}' is damaged or no Parquet file: {one_line(error)}") from error
    if frame.empty:
        raise DataError(f"'{path}' has no rows: add rows to it")
    names: dict[str, list[str]] = {}
    if b"huggingface" in (table.schema.metadata or {}):
        names = declared_classes(_features(table.schema))
    return Table(frame.reset_index(drop=True), names)


def _features(schema: Any) -> Any:
    import datasets

    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):  # metadata of a later datasets version: go on without names
        return {}


def declared_classes(features: Any) -> dict[str, list[str]]:
    """Class names that ``datasets`` features declare, by column (also inside lists)."""
    found = {}
    for column, feature in dict(features).items():
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
        names = getattr(inner, "names", None)
        if isinstance(names, list):
            found[column] = [str(name) for name in names]
    return found
