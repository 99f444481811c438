"""Files and folders are written whole or not at all, and a full disk is one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cuelight import cache
from cuelight.errors import CuelightError


def test_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUELIGHT_CACHE", str(tmp_path / "here"))
    assert cache.cache_dir("a", "b") == tmp_path / "here" / "a" / "b"
    assert cache.cache_dir("a", "b").is_dir()


def interrupted(path: Path) -> None:
    with cache.atomic_write(path) as temporary:
        temporary.write_text("half of the sec")
        raise KeyboardInterrupt


def interrupted_folder(path: Path) -> None:
    with cache.atomic_folder(path) as temporary:
        (temporary / "file").write_text("third")
        raise KeyboardInterrupt


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file"
    with cache.atomic_write(path) as temporary:
        temporary.write_text("first")
    assert path.read_text() == "first"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["file"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("first", "second"):
        with cache.atomic_folder(path) as temporary:
            (temporary / "file").write_text(text)
    assert (path / "file").read_text() == "second"
    with pytest.raises(KeyboardInterrupt):
        interrupted_folder(path)
    assert (path / "file").read_text() == "second"
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk full"), (errno.EACCES, "no permission")])
@pytest.mark.parametrize("write", [cache.atomic_write, cache.atomic_folder])
def test_a_full_disk_is_one_line(write: object, number: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(CuelightError, match=words) as caught, write(tmp_path / "x"):  # type: ignore[operator]
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
