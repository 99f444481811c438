"""Where cuelight keeps what it made or fetched once, and how it writes: whole or not at all.

A file or folder is written beside its final place under a temporary name and renamed over it, so an
interrupt, a crash or a full disk never leaves half of one behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from cuelight.errors import CuelightError

__all__ = ["atomic_folder", "atomic_write", "cache_dir", "sha256_of"]


def cache_dir(*parts: str) -> Path:
    """``$CUELIGHT_CACHE``, or the user's cache folder for cuelight; ``parts`` are sub-folders. Created."""
    root = os.environ.get("CUELIGHT_CACHE") or platformdirs.user_cache_dir("cuelight")
    folder = Path(root).expanduser().joinpath(*parts)
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def sha256_of(file: Path) -> str:
    """The SHA-256 sum of ``file`` in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    Raises ``CuelightError`` when the disk is full or the place can not be written to.
    """
    target = Path(path)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _open_to_readers(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it takes the place of ``path``, else it is removed.

    A folder already at ``path`` stays until the new one is complete.
    Raises ``CuelightError`` when the disk is full or the place can not be written to.
    """
    target = Path(path)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            new, old = work / "new", work / "old"
            new.mkdir()
            yield new
            had_old = target.exists()
            if had_old:  # rename can not replace a folder that holds files
                os.replace(target, old)
            try:
                os.replace(new, target)
            except OSError:
                if had_old:
                    os.replace(old, target)
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _open_to_readers(path: Path) -> None:
    """Give a temporary file the permissions an ordinary new file has (mkstemp makes it private)."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CuelightError(
                f"disk full while writing '{path}': free some space, or set CUELIGHT_CACHE to another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CuelightError(
                f"no permission to write '{path}': choose another place, or set CUELIGHT_CACHE"
            ) from error
        raise
