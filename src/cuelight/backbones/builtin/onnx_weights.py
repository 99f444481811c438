"""Float weights out of an ONNX graph, keyed as the torch modules that were exported.

Exporters keep the names of most parameters, but fold each linear layer's transposed weight into an
anonymous initialiser (``onnx::MatMul_123``).  The layer's name survives in the node that uses it.
onnxruntime's dynamic quantisation further replaces an initialiser ``x`` by the integers
``x_quantized`` with ``x_scale`` and ``x_zero_point``.  Both are undone here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

__all__ = ["read_onnx"]

Array = npt.NDArray[np.float32]


def read_onnx(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read the weights of the ONNX file ``path`` as float32.

    Returns:
        Two dictionaries.  The first maps parameter names (``encoder.layer.0.fc.weight``) to tensors in
        torch's layout, linear weights being (out, in).  The second maps the names of the float
        initialisers that no parameter name could be found for to their values as stored.

    Raises:
        ValueError: a quantised weight whose scale fits none of its axes.
    """
    graph = onnx.load(str(path)).graph
    arrays = _float_initialisers({i.name: numpy_helper.to_array(i) for i in graph.initializer})
    named: dict[str, Array] = {}
    for node in graph.node:
        weight = node.input[1].removesuffix("_quantized") if len(node.input) > 1 else ""
        if node.op_type in ("MatMul", "MatMulInteger") and _is_anonymous(weight) and weight in arrays:
            named[_module_of(node.name) + ".weight"] = arrays.pop(weight).T
    for name in [name for name in arrays if not _is_anonymous(name)]:
        named[name] = arrays.pop(name)
    return _as_torch(named), _as_torch(arrays)


def _float_initialisers(raw: dict[str, np.ndarray]) -> dict[str, Array]:
    """All float weights by their names before quantisation; integer shapes and scales are left out."""
    quantised = {name.removesuffix("_quantized") for name in raw if name.endswith("_quantized")}
    helpers = {base + suffix for base in quantised for suffix in ("_quantized", "_scale", "_zero_point")}
    floats = {base: _dequantise(base, raw) for base in quantised}
    for name, value in raw.items():
        if name not in helpers and value.dtype.kind == "f" and value.ndim:
            floats[name] = value.astype(np.float32)
    return floats


def _dequantise(base: str, raw: dict[str, np.ndarray]) -> Array:
    """``(quantised - zero point) * scale``; a scale of several values runs along the last axis."""
    values, scale = raw[base + "_quantized"], raw[base + "_scale"]
    zero = raw.get(base + "_zero_point", np.zeros((), np.int32))
    if scale.size > 1 and scale.shape != values.shape[-1:]:
        raise ValueError(f"{base}: scale of shape {scale.shape} does not fit weight {values.shape}")
    return (values.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)


def _is_anonymous(name: str) -> bool:
    return name.startswith(("onnx::", "/"))


def _module_of(node: str) -> str:
    """``/decoder/block.0/q/MatMul_quant`` to ``decoder.block.0.q``."""
    return node.strip("/").rpartition("/")[0].replace("/", ".")


def _as_torch(arrays: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in arrays.items()}
