"""The state of a run in one file, replaced at once.

A checkpoint is one safetensors file: tensors in its body, everything else as JSON in its header.  Tensors and
JSON therefore can not come apart, nothing is pickled, and a checksum over the body names a damaged file.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cuelight.errors import ArtifactError, ConfigError, CuelightError

__all__ = [
    "FILE",
    "LOG",
    "compare",
    "forget",
    "pack_optimizer",
    "read",
    "snapshot",
    "sweep",
    "unpack_optimizer",
    "write",
]

FILE, LOG = "training.safetensors", "log.jsonl"
SAVING = ".saving"  # a folder, because safetensors writes under random names of its own
VERSION = 1
REMEDY = "give another --output, or --restart to begin anew"


def forget(workdir: Path) -> None:
    """Delete what training left in ``workdir``; this is what ``--restart`` means."""
    sweep(workdir)
    for name in (FILE, LOG):
        (workdir / name).unlink(missing_ok=True)


def sweep(workdir: Path) -> None:
    """Delete what a killed process left half-written."""
    shutil.rmtree(workdir / SAVING, ignore_errors=True)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state on the CPU, in memory of its own."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in module.state_dict().items()
    }


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        if tensor.numel():
            value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def write(workdir: Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint in ``workdir``.

    Raises:
        CuelightError: the disk is full or may not be written; the checkpoint before is intact.
    """
    temporary, body = workdir / SAVING / FILE, dict(tensors)
    header = {"cuelight": json.dumps({**meta, "version": VERSION, "checksum": _checksum(body)})}
    try:
        temporary.parent.mkdir(exist_ok=True)
        save_file(body, temporary, metadata=header)
        _sync(temporary)
        os.replace(temporary, workdir / FILE)
        _sync(workdir)
    except (OSError, SafetensorError) as error:
        reason = str(getattr(error, "strerror", None) or error).removeprefix("Error while serializing: ")
        raise CuelightError(
            f"{workdir / FILE}: can not write a checkpoint ({reason}); the one before is intact: "
            "free disk space or give another --output"
        ) from error
    finally:
        sweep(workdir)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(workdir: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """``(meta, tensors)`` of the checkpoint in ``workdir``, or None when there is none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["cuelight"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if meta.pop("checksum") != _checksum(tensors):
            raise ValueError("its checksum is wrong")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path}: the checkpoint is damaged ({reason}); {REMEDY}") from error
    if meta.get("version") != VERSION:
        raise ArtifactError(f"{path}: the checkpoint is of another version of cuelight; {REMEDY}")
    return meta, tensors


def compare(workdir: Path, saved: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ConfigError: names the first field that differs.
    """
    old, new = _flat(saved), _flat(now)
    for key in [*new, *(k for k in old if k not in new)]:
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{workdir}: holds a run with {key}={old.get(key, 'not set')}{where}, "
                f"this one has {key}={new.get(key, 'not set')}; {REMEDY}"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return flat


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as named CPU tensors, and what else it takes to restore it as JSON.

    Tensors are named by the parameter's place in the groups.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in optimizer.state.get(parameter, {}).items():
            name = f"{place}/{key}"
            if isinstance(value, Tensor):
                tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            else:
                scalars[name] = value
    rates = [group["lr"] for group in optimizer.param_groups]
    return tensors, {"scalars": scalars, "rates": rates}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Put back what :func:`pack_optimizer` took, type for type (``load_state_dict`` would cast).

    Step counters stay on the CPU, as torch's own optimisers keep them; the rest goes to its parameter.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in {**tensors, **meta["scalars"]}.items():
        place, key = name.split("/", 1)
        parameter = parameters[int(place)]
        if isinstance(value, Tensor) and key != "step":
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value
    for group, rate in zip(optimizer.param_groups, meta["rates"], strict=True):
        group["lr"] = rate
