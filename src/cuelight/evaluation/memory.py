"""Peak memory of a part of a program: the GPU's where there is one, else the process's resident set."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["PeakMemory", "peak_memory"]


class PeakMemory:
    """``with PeakMemory(device) as peak: ...`` and then ``peak.bytes``.

    On a CUDA device what tensors took there.  Else the largest resident set of the process: on Linux since
    the ``with`` began (the kernel's mark is set back), elsewhere since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bytes = peak_memory(self.device)


def peak_memory(device: torch.device) -> int:
    """Bytes at most since the last reset: what tensors took on a CUDA device, else the resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
