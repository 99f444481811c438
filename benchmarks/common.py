"""What every benchmark shares: where results go, and what is written beside the figures."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from cuelight.artifact import versions
from cuelight.cache import atomic_write

ROOT = Path(__file__).resolve().parent
DATA = Path(os.environ.get("CUELIGHT_DATA", ROOT.parent.parent / "shared" / "data"))
"""The public data sets of the claims as Parquet files; ``CUELIGHT_DATA`` says where they are."""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write_result(kind: str, name: str, module: str, result: dict[str, Any]) -> Path:
    """Write ``benchmarks/<kind>/results/<name>.json``: figures, and the command, versions and date that made them."""
    record = {
        "command": " ".join(["python -m", module, *_said(sys.argv[1:])]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "machine": machine(),
        **result,
    }
    path = ROOT / kind / "results" / f"{name}.json"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(ROOT.parent)}")
    return path


def _said(words: list[str]) -> list[str]:
    """A command line's words without ``--folder``, which says where on this machine runs are kept, and nothing else."""
    out, skip = list[str](), False
    for word in words:
        if skip or word == "--folder":
            skip = not skip
        elif not word.startswith("--folder="):
            out.append(word)
    return out


def read_result(kind: str, name: str) -> dict[str, Any]:
    """What `write_result` wrote before; empty without."""
    path = ROOT / kind / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def data_file(name: str) -> str:
    """A Parquet file of the public data sets, by its path below ``CUELIGHT_DATA``."""
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"{path} is not there: set CUELIGHT_DATA to the folder that holds {name}")
    return str(path)
