"""Running code that a language model wrote: another process, sealed by the kernel, small and short-lived.

    ran = run_python("ans = sum(range(10))")
    ran.value                                   # 45

The code runs in an interpreter of its own without site packages, with an empty environment, in an empty folder that is
deleted afterwards.  Before its first line the process seals itself (`cuelight.sandbox.child`): a seccomp filter leaves it
some seventy system calls, among them none that opens a socket, starts a process or sends a signal; Landlock lets it read
Python's standard library and write in its folder and nowhere else; where the kernel allows it, it has a user and a network
namespace of its own besides.  The seal is tried (a socket, a foreign file) before the code starts.  Limits hold on wall
clock and processor time, memory, size of files and output; at a limit the process group is killed.

That needs Linux 5.13 or later on x86-64 or ARM64, and no privileges.  Elsewhere the code is refused, unless the caller
passes ``unprotected=True``: then only the limits hold, which is no protection against hostile code.

What the seal leaves: the code may see whether a path exists, and read the clock and the machine's name.  *Why not a
library*: RestrictedPython restricts the language, not the process; nsjail and bubblewrap need a binary; the bindings to
libseccomp need that library, and none of them combines it with Landlock.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cuelight.errors import CuelightError

__all__ = ["Limits", "Ran", "SandboxError", "run_python", "stepper_source", "why_not"]

_CHILD = Path(__file__).with_name("child.py")
_START = 20.0
"""Seconds that the interpreter may take to start and to seal itself; a busy machine is slow at that."""


class SandboxError(CuelightError):
    """Code can not be run in isolation here."""


@dataclass(frozen=True)
class Limits:
    """What the code may use: seconds of wall clock, memory in MiB, characters of output, MiB of files."""

    seconds: float = 5.0
    memory: int = 512
    output: int = 20_000
    files: int = 4


@dataclass(frozen=True)
class Ran:
    """What came of it.

    Attributes:
        stdout: what the code printed, cut at the limit.
        value: the variable asked for, as JSON has it; what JSON can not hold is its ``str``.
        error: one line, ``""`` when the code ran through.
        stopped: the limit that ended it, ``""`` when none did: time, output, files.
        seconds: wall clock, the interpreter's start included.
        isolation: what sealed the process.
    """

    stdout: str
    value: Any
    error: str
    stopped: str
    seconds: float
    isolation: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the code ran through."""
        return not self.error


@cache
def why_not() -> str:
    """Why code can not be isolated on this machine, ``""`` if it can; found out by trying, once."""
    if sys.platform != "linux":
        return f"isolation needs Linux, this is {sys.platform}"
    try:
        _run("", "ans", Limits(), unprotected=False)
    except SandboxError as error:
        return str(error)
    return ""


@cache
def stepper_source() -> str:
    """A program that runs another statement by statement, to stand before a call of its ``step``; see `stepper.py`."""
    return Path(__file__).with_name("stepper.py").read_text(encoding="utf-8")


def run_python(
    code: str, *, value: str = "ans", limits: Limits | None = None, unprotected: bool = False
) -> Ran:
    """Run ``code`` and return what it printed and the variable called ``value``.

    Args:
        unprotected: run it with limits alone where it can not be isolated.

    Raises:
        SandboxError: the code can not be isolated here, and ``unprotected`` is not set; nothing was run then.
    """
    limits = limits or Limits()
    reason = why_not()
    if os.name != "posix":
        raise SandboxError(
            f"sandbox: programs can not be limited on {sys.platform}; use a strategy that runs no code"
        )
    if reason and not unprotected:
        raise SandboxError(
            f"sandbox: {reason}; use a strategy that runs no code, or allow it with unprotected (--unprotected)"
        )
    return _run(code, value, limits, unprotected=bool(reason))


def _run(code: str, value: str, limits: Limits, *, unprotected: bool) -> Ran:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cuelight-box-", ignore_cleanup_errors=True) as box:
        answer, given = os.pipe()
        request = {
            "code": code,
            "value": value,
            "box": box,
            "answer": given,
            "unprotected": unprotected,
            "memory": limits.memory * 2**20,
            "cpu": math.ceil(limits.seconds) + 1,
            "file": limits.files * 2**20,
        }
        # -P -s with an environment of our own is -I, except that it can fix the order of sets.
        command = [sys.executable, "-P", "-s", "-S", str(_CHILD), str(given)]
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=box,
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "HOME": box, "TMPDIR": box},
                pass_fds=(given,) if os.name == "posix" else (),
                start_new_session=True,
            )
        except OSError as error:
            os.close(answer)
            raise SandboxError(f"the interpreter can not be started ({error.strerror})") from error
        finally:
            os.close(given)
        try:
            _send(child, request)
            stdout, report, stopped = _watch(child, answer, Path(box), limits)
        finally:
            _kill(child)
            os.close(answer)
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()
    return _judged(stdout, report, stopped, child.returncode, limits, time.monotonic() - started)


def _send(child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; what it left says why


def _watch(
    child: subprocess.Popen[bytes], answer: int, box: Path, limits: Limits
) -> tuple[bytes, bytes, str]:
    """Read until both pipes end or a limit is passed: printed, report, the limit that was passed.

    The clock of the code starts when the report begins: the child writes its first line when it is sealed.
    """
    assert child.stdout is not None
    pipes = {child.stdout.fileno(): bytearray(), answer: bytearray()}
    deadline = time.monotonic() + _START
    sealed = False
    with selectors.DefaultSelector() as waiting:
        for pipe in pipes:
            os.set_blocking(pipe, False)
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(pipes[child.stdout.fileno()]), bytes(pipes[answer]), "time"
            for key, _ in waiting.select(min(left, 0.05)):
                part = os.read(key.fd, 65536)
                if not part:
                    waiting.unregister(key.fd)
                pipes[key.fd] += part
                if len(pipes[key.fd]) > 4 * limits.output:
                    return bytes(pipes[child.stdout.fileno()]), bytes(pipes[answer]), "output"
            if not sealed and b"\n" in pipes[answer]:
                sealed, deadline = True, time.monotonic() + limits.seconds
            if _size(box) > limits.files * 2**20:
                return bytes(pipes[child.stdout.fileno()]), bytes(pipes[answer]), "files"
    return bytes(pipes[child.stdout.fileno()]), bytes(pipes[answer]), ""


def _size(box: Path) -> int:
    """Bytes below ``box``, with 4 KiB for every entry; what vanishes meanwhile counts nothing."""
    total = 0
    for folder, folders, files in os.walk(box):
        total += 4096 * (len(folders) + len(files))
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    except (ProcessLookupError, PermissionError):
        pass
    child.wait()


def _judged(stdout: bytes, report: bytes, stopped: str, code: int, limits: Limits, seconds: float) -> Ran:
    first, _, rest = report.partition(b"\n")
    try:
        seal = json.loads(first)
    except ValueError:
        raise SandboxError(f"the interpreter ended before it was sealed (exit code {code})") from None
    if seal.get("failed"):
        raise SandboxError(str(seal["failed"]))
    text = stdout.decode("utf-8", "replace")[: limits.output]
    value, error = None, ""
    if stopped:
        error = {
            "time": f"stopped after {limits.seconds:g} s",
            "output": f"stopped: it wrote more than {limits.output} characters",
            "files": f"stopped: its files passed {limits.files} MiB",
        }[stopped]
    else:
        try:
            said = json.loads(rest)
            value, error = said["value"], str(said["error"])
        except (ValueError, KeyError, TypeError):
            error = f"the process ended without an answer (exit code {code})"
    return Ran(text, value, error, stopped, seconds, tuple(seal["isolation"]))
