"""From what the user brings to named tables: files, folders, hub ids, data sets, frames, built-in names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuelight.cache import sha256_of
from cuelight.data import builtin
from cuelight.data.files import (
    FILE_SUFFIXES,
    READABLE,
    Table,
    declared_classes,
    missing_file,
    one_line,
    read_file,
    read_text,
)
from cuelight.data.images import IMAGE_SUFFIXES
from cuelight.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ROLES", "Source", "contents", "open_source", "role_of"]

ROLES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?(:[\w.+-]+)?$")
_SHARD = re.compile(r"^(?P<split>.+?)-\d{5}-of-\d{5}$")
_SOUNDS = (".wav", ".flac", ".mp3", ".ogg")


@dataclass
class Source:
    """Named tables; a source without splits is one table under the name ``""``.

    ``folder`` is where relative paths in the tables start.
    """

    name: str
    tables: dict[str, pd.DataFrame]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    provenance: str = ""
    licence: str = ""
    folder: Path | None = None


def role_of(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` when ``name`` is a usual name of one of them."""
    return next((role for role, names in ROLES.items() if name.strip().lower() in names), None)


def open_source(source: Any) -> Source:
    """Read whatever the user brought.

    An existing path wins over a built-in name, that over a name in the folder ``$CUELIGHT_DATA``, that over a
    hub id.

    Raises ``DataError`` when it can not be read or is of an unknown kind.
    """
    if isinstance(source, Path):
        out = _open_path(source)
    else:
        out = _open_string(source) if isinstance(source, str) else _open_object(source)
    for table in out.tables.values():
        twice = table.columns[table.columns.duplicated()]
        if len(twice):
            raise DataError(f"{out.name} has two columns '{twice[0]}': rename or remove one of them")
    if not any(map(len, out.tables.values())):
        raise DataError(f"{out.name} has no rows: add rows to it")
    return out


def _open_string(source: str) -> Source:
    if not source.strip():
        raise DataError("data='' is empty: give a file, a folder, a hub id or a built-in name")
    path = Path(source).expanduser()
    if path.exists():
        return _open_path(path)
    if source in builtin.builtin_names():
        data = builtin.load_builtin(source)
        return Source(source, {"": data.frame}, provenance=data.provenance, licence=data.licence)
    own = _named(source)
    if own is not None:
        out = _open_path(own)
        out.name = source
        return out
    looks_like_path = source.startswith((".", "~", "/")) or "\\" in source or source.count("/") > 1
    if looks_like_path or path.suffix.lower() in FILE_SUFFIXES or not _HUB_ID.match(source):
        raise missing_file(path)
    return _open_hub(source)


def _named(name: str) -> Path | None:
    """A file or folder called ``name`` in the user's own collection, ``$CUELIGHT_DATA``, or a folder of it."""
    collection = os.environ.get("CUELIGHT_DATA")
    if not collection or not re.fullmatch(r"[\w-]+", name):
        return None
    root = Path(collection).expanduser()
    for folder in (root, *sorted(p for p in root.glob("*") if p.is_dir())):
        for path in (folder / name, *(folder / f"{name}{suffix}" for suffix in READABLE)):
            if path.exists():
                return path
    return None


def contents(source: str) -> str:
    """A digest of the files that ``source`` stands for on this machine; empty for what lies elsewhere."""
    path = Path(source).expanduser()
    place = path if path.exists() else _named(source)
    if place is None:
        return ""
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(place)}\0{sha256_of(file)}\0".encode())
    return digest.hexdigest()


def _open_path(path: Path) -> Source:
    if path.is_dir():
        out = _open_folder(path)
        out.folder = out.folder or path
        return out
    tables = read_file(path)
    out = _joined(str(path), tables if isinstance(tables, dict) else {"": tables})
    out.folder = path.parent
    return out


def _joined(name: str, tables: dict[str, Table]) -> Source:
    """One source of several tables; declared class names have to agree."""
    out = Source(name, {split: table.frame for split, table in tables.items()})
    for table in tables.values():
        out.notes += [note for note in table.notes if note not in out.notes]
        for column, names in table.class_names.items():
            if out.class_names.setdefault(column, names) != names:
                raise DataError(
                    f"{name}: the splits declare different classes for '{column}': make them equal"
                )
    return out


def _open_folder(folder: Path) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _open_saved(folder)
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    files = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in READABLE]
    if files:
        return _open_files(folder, files)
    folders = [entry for entry in entries if entry.is_dir()]
    if any(role_of(entry.name) for entry in folders):
        parts = {entry.name: _class_folders(entry) for entry in folders if role_of(entry.name)}
        return _joined(str(folder), parts)
    return _joined(str(folder), {"": _class_folders(folder)})


def _open_files(folder: Path, files: list[Path]) -> Source:
    """Files named after splits (shards of one split are joined), or a single file."""
    import pandas as pd

    if len(files) == 1 and role_of(files[0].stem) is None:
        return _open_path(files[0])
    parts: dict[str, list[Table]] = {}
    for file in files:
        shard = _SHARD.match(file.stem)
        table = read_file(file)
        if isinstance(table, dict):
            raise DataError(
                f"'{file}' holds several splits, but the folder has other files: give the file alone"
            )
        parts.setdefault(shard["split"] if shard else file.stem, []).append(table)
    if not any(role_of(name) for name in parts):
        names = ", ".join(file.name for file in files[:6])
        raise DataError(
            f"folder '{folder}' holds {names}, none named after a split: "
            "name one train.csv (or .tsv, .jsonl, .json, .parquet), or give one file"
        )
    for tables in parts.values():
        tables[0].frame = pd.concat([table.frame for table in tables], ignore_index=True)
    return _joined(str(folder), {name: tables[0] for name, tables in parts.items()})


def _class_folders(folder: Path) -> Table:
    """One sub-folder per class with one text or one picture a file; other files are counted."""
    import pandas as pd

    found: dict[str, list[tuple[str, str]]] = {"text": [], "image": []}
    notes, skipped, sounds = [], 0, False
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith((".", "_")):
            sounds |= entry.suffix.lower() in _SOUNDS
            continue
        for file in sorted(entry.rglob("*")):
            if file.name.startswith(".") or not file.is_file():
                continue
            suffix = file.suffix.lower()
            if suffix == ".txt":
                text, remarks = read_text(file)
                found["text"].append((text.strip(), entry.name))
                notes += remarks
            elif suffix in IMAGE_SUFFIXES:
                found["image"].append((str(file.absolute()), entry.name))
            else:
                skipped += 1
                sounds |= suffix in _SOUNDS
    use = "text" if found["text"] else "image"
    if not found[use]:
        what = "sounds, and this task reads texts or pictures" if sounds else "nothing usable"
        raise DataError(
            f"folder '{folder}' holds {what}: give class folders of .txt files or of pictures, "
            "or files named train.csv, test.jsonl, validation.parquet"
        )
    if use == "text":
        skipped += len(found["image"])
    if skipped:
        what = ".txt" if use == "text" else "pictures"
        notes.append(f"{skipped} files that are not {what} were skipped in '{folder}'")
    if len(notes) > 5:
        notes = [*notes[:4], f"{len(notes) - 4} more remarks like these on files of '{folder}'"]
    return Table(pd.DataFrame(found[use], columns=[use, "label"]), notes=notes)


def _open_saved(folder: Path) -> Source:
    """A folder written by ``Dataset.save_to_disk``."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises errors of many kinds on damaged folders
        raise DataError(f"folder '{folder}' is a damaged saved data set: {one_line(error)}") from error
    out = _open_object(saved)
    out.name = str(folder)
    return out


def _open_hub(name: str) -> Source:
    """A hub data set, ``id`` or ``id:config``.

    The hub is asked first whether it knows the name: without a network ``datasets`` alone would retry for
    half a minute before it says so.
    """
    import datasets
    import huggingface_hub

    repository, _, config = name.partition(":")
    cached = Path(datasets.config.HF_DATASETS_CACHE, repository.replace("/", "___")).exists()
    bars = datasets.utils.logging.is_progress_bar_enabled()
    try:
        if not cached and not datasets.config.HF_HUB_OFFLINE:
            huggingface_hub.HfApi().dataset_info(repository, timeout=10)
        if bars:
            datasets.disable_progress_bars()
        loaded = datasets.load_dataset(repository, config or None)
    except Exception as error:  # the hub client raises errors of many kinds
        raise _hub_error(name, error) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    out = _open_object(loaded)
    out.name = f"hub:{name}"
    return out


def _hub_error(name: str, error: Exception) -> DataError:
    known = builtin.builtin_names()
    hint = nearest(name, known)
    reason = one_line(error)
    kind = type(error).__name__
    if "Config name is missing" in reason or "BuilderConfig" in reason:
        return DataError(
            f"hub data set '{name}': name a config as '{name.partition(':')[0]}:CONFIG' ({reason})"
        )
    if kind == "GatedRepoError":
        return DataError(
            f"hub data set '{name}' is gated: accept its terms on its page, then log in (hf auth login)"
        )
    if kind in ("RepositoryNotFoundError", "DatasetNotFoundError"):
        return DataError(
            f"'{name}' is no file or folder here, no built-in name and no data set on the hub{hint}: "
            "check the spelling, or log in if it is private"
        )
    if _is_offline(error):
        return DataError(
            f"'{name}' is no file here and no hub can be reached to look it up{hint}: give a local file or "
            f"folder, a built-in name ({', '.join(known)}), or HF_HUB_OFFLINE=1 if it is cached"
        )
    return DataError(f"'{name}' is no file here and can not be read from the hub{hint}: {reason}")


def _is_offline(error: BaseException | None) -> bool:
    """Whether an error, or one it came from, speaks of the network rather than of the data set."""
    words = ("connect", "offline", "couldn't reach", "resolve", "network", "proxy", "timed out", "ssl")
    while error is not None:
        text = f"{type(error).__name__} {error}".lower()
        if any(word in text for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _open_object(source: Any) -> Source:
    """A pandas frame, a data set, a mapping of split names to these, or a list of dictionaries."""
    import pandas as pd

    if isinstance(source, list) and source and all(isinstance(row, dict) for row in source):
        source = pd.DataFrame(source)
    if isinstance(source, Mapping):
        if not source:
            raise DataError("the data has no splits: give at least 'train'")
        return _joined("memory", {str(name): _as_table(part) for name, part in source.items()})
    return _joined("memory", {"": _as_table(source)})


def _as_table(part: Any) -> Table:
    import pandas as pd

    if isinstance(part, pd.DataFrame):
        frame = part.reset_index(drop=True)
        frame.columns = [str(name) for name in frame.columns]
        return Table(frame)
    if hasattr(part, "to_pandas") and hasattr(part, "features"):
        return Table(part.to_pandas(), declared_classes(part.features))
    kind = type(part).__name__
    raise DataError(
        f"data of type '{kind}' can not be read: give a file, a folder, a hub id, a datasets.Dataset, "
        "a DatasetDict, a pandas DataFrame or a list of dictionaries"
    )
