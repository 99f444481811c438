"""What the papers' claims share: arms on data sets over seeds, rates searched beforehand, one sentence at the end.

Every run, or of large models its figures, is kept in a folder and read from there when the command is given again.
Rates are chosen on the validation rows of the first data set with a seed that is not reported, and kept for the others;
test rows are looked at by the reported seeds only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import cuelight
from cuelight.cache import atomic_write

SEEDS = (0, 1, 2)
SEARCH_SEED = 99

Options = dict[str, Any]


def arguments_of(doc: str | None, folder: str, **more: int) -> argparse.Namespace:
    """The options all claims have; ``more`` are whole numbers with their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=f"runs/claims/{folder}", help="where runs are kept")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--only", default="", help="only these data sets, comma separated; nothing is written then"
    )
    parser.add_argument(
        "--keep", action="store_true", help="take what the committed result has; only new arms run"
    )
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    found = parser.parse_args()
    if found.threads:
        torch.set_num_threads(found.threads)
    return found


def kept(folder: str, *parts: Any) -> str:
    """A folder for the run that ``parts`` describe."""
    shown = "-".join(p.replace(" ", "-") if isinstance(p, str) else "" for p in parts[:2]).strip("-")
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return str(Path(folder) / f"{shown}-{digest}")


def tuned(folder: str, method: str, data: Any, seed: int, **options: Any) -> cuelight.Run:
    """`cuelight.tune`, kept in a folder of its own that says what was asked."""
    shown = {k: v for k, v in options.items() if k != "backbone"}
    where = kept(folder, method, Path(str(data)).stem if isinstance(data, str) else data[0], seed, shown)
    return cuelight.tune(
        method, data=data if isinstance(data, str) else data[1], seed=seed, output=where, **options
    )


def remembered(folder: str, parts: Sequence[Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` returns, from a file when it was measured before; for runs whose models are too large to keep."""
    file = Path(kept(folder, *parts) + ".json")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = measure()
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def search(
    grids: Mapping[str, Sequence[Options]], validate: Callable[[str, Options], float]
) -> tuple[dict[str, Options], dict[str, Any]]:
    """The best options of every arm by its validation figure, and all that was tried."""
    chosen, record = {}, {}
    for arm, grid in grids.items():
        tried = []
        for options in grid:
            tried.append({"validation": validate(arm, options), **options})
            print(f"search {arm}: {tried[-1]}", flush=True)
        best = max(tried, key=lambda entry: entry["validation"])
        chosen[arm] = {k: v for k, v in best.items() if k != "validation"}
        record[arm] = {"chosen": chosen[arm], "tried": tried}
    return chosen, record


def spread(values: Sequence[float], **more: Any) -> dict[str, Any]:
    """Values over seeds with their mean and deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"values": list(values), "mean": statistics.mean(values), "deviation": deviation, **more}


def shown(entry: Mapping[str, Any], scale: float = 100, digits: int = 1) -> str:
    """``83.1 ± 2.0``."""
    return f"{scale * entry['mean']:.{digits}f} ± {scale * entry['deviation']:.{digits}f}"


def listed(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """All arms with their figures."""
    return ", ".join(f"{arm} {shown(entry)}" for arm, entry in arms.items())


def paired(one: Sequence[float], other: Sequence[float], scale: float = 100) -> str:
    """Mean and standard error of ``one - other``, pair by pair: ``+1.8 ± 2.1``."""
    gaps = [scale * (a - b) for a, b in zip(one, other, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return f"{statistics.mean(gaps):+.1f} ± {error:.1f}"


def verdict(holds: bool) -> str:
    """What a sentence ends in."""
    return "holds" if holds else "fails"
