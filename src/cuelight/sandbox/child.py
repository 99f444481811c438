"""The other side of `cuelight.sandbox`: seals its own process, then runs the code it is given.

Run as a script by an interpreter without site packages, so it imports the standard library alone.  It reads a request
(JSON) on stdin and writes two lines to the pipe it was given: the seal, and at the end the value and the error.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import struct
import sys
from typing import Any

# System calls that the interpreter needs to compute, print and use files it may open, by machine.  All others fail
# with EPERM: sockets, processes, signals, mounts, changing owners and modes, shared memory outside the limit.
_X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17,
    "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28,
    "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "getcwd": 79, "chdir": 80, "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "umask": 95,
    "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "openat": 257, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263,
    "renameat": 264, "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "dup3": 292, "pipe2": 293,
    "renameat2": 316, "getrandom": 318, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_AARCH64 = {
    "getcwd": 17, "dup": 23, "dup3": 24, "mkdirat": 34, "unlinkat": 35, "renameat": 38, "ftruncate": 46, "faccessat": 48,
    "chdir": 49, "openat": 56, "close": 57, "pipe2": 59, "getdents64": 61, "lseek": 62, "read": 63, "write": 64,
    "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "pselect6": 72, "ppoll": 73, "newfstatat": 79, "fstat": 80,
    "fsync": 82, "fdatasync": 83, "exit": 93, "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101,
    "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124,
    "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
    "times": 153, "uname": 160, "getrlimit": 163, "getrusage": 165, "umask": 166, "gettimeofday": 169, "getpid": 172,
    "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179,
    "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "renameat2": 276,
    "getrandom": 278, "statx": 291, "rseq": 293, "faccessat2": 439,
}  # fmt: skip
_MACHINES = {  # audit number, allowed calls, ioctl, fcntl
    "x86_64": (0xC000003E, _X86_64, 16, 72),
    "aarch64": (0xC00000B7, _AARCH64, 29, 25),
}
_FCNTL = (0, 1, 2, 3, 1030)
"""Duplicate, and read or set flags of the handle; F_SETOWN, of all others, would send signals."""
_PRELOADED = """
bisect calendar cmath collections copy csv dataclasses datetime decimal fractions functools hashlib heapq io itertools
json math operator random re statistics string textwrap time typing unicodedata
"""
_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, System V messages
_OWN_FOLDER = 0x3E | 1 << 7 | 1 << 8  # read, list, write, remove, make folders and plain files


class SealError(Exception):
    """The kernel lacks what the seal needs."""


def limit(request: dict[str, Any]) -> None:
    """Limits that hold without any isolation; what a system does not know is left out."""
    try:
        import resource
    except ImportError:
        return
    wanted = {
        "RLIMIT_AS": request["memory"],
        "RLIMIT_CPU": request["cpu"],
        "RLIMIT_FSIZE": request["file"],
        "RLIMIT_NOFILE": 32,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue


def seal(box: str) -> list[str]:
    """Give up, for good, all that computing does not need; returns what did it.

    Raises:
        SealError: a part is not to be had, or does not hold.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise SealError(f"isolation knows x86_64 and aarch64, this is {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    done = []
    if libc.unshare(_NAMESPACES) == 0:
        done.append("namespaces")
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise SealError("the kernel refuses no-new-privileges")
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no other process of the user may look in
    _landlock(libc, box)
    _seccomp(libc, machine)
    _try_seal()
    return [*done, "landlock", "seccomp"]


def _landlock(libc: Any, box: str) -> None:
    version = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise SealError("this kernel has no Landlock (Linux 5.13 or later, switched on)")
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    fields = [everything, *([3] if version >= 4 else []), *([3] if version >= 6 else [])]
    wanted = struct.pack(
        f"{len(fields)}Q", *fields
    )  # files; TCP bind and connect; abstract sockets and signals
    rules = libc.syscall(444, wanted, ctypes.c_size_t(len(wanted)), 0)
    if rules < 0:
        raise SealError(f"Landlock refuses its rules (errno {ctypes.get_errno()})")
    folders = {os.path.dirname(os.__file__): 1 << 2 | 1 << 3, box: _OWN_FOLDER | (everything & 1 << 14)}
    folders.update({path: 1 << 2 | 1 << 3 for path in sys.path if path.endswith("lib-dynload")})
    for path, rights in folders.items():
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = struct.pack("=Qi", rights, handle)
        if libc.syscall(445, rules, 1, rule, 0):
            raise SealError(f"Landlock refuses the rule for {path} (errno {ctypes.get_errno()})")
        os.close(handle)
    if libc.syscall(446, rules, 0):
        raise SealError(f"Landlock can not be switched on (errno {ctypes.get_errno()})")
    os.close(rules)


def _seccomp(libc: Any, machine: str) -> None:
    audit, calls, ioctl, fcntl = _MACHINES[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, fail, kill = 0x7FFF0000, 0x00050000, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, fail | errno.EPERM)]  # x32 calls by other numbers
    program += [(equal, 0, 1, ioctl), (give, 0, 0, fail | errno.ENOTTY)]
    for number in sorted(calls.values()):
        program += [(equal, 0, 1, number), (give, 0, 0, allow)]
    program += [(equal, 1, 0, fcntl), (give, 0, 0, fail | errno.EPERM), (load, 0, 0, 24)]
    for command in _FCNTL:
        program += [(equal, 0, 1, command), (give, 0, 0, allow)]
    program += [(give, 0, 0, fail | errno.EPERM)]
    filled = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(filled, len(filled))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    if libc.prctl(22, 2, head, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise SealError(f"the kernel refuses a seccomp filter (errno {ctypes.get_errno()})")


def _try_seal() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.socket(2, 1, 0) >= 0 or libc.kill(os.getppid(), 0) == 0:
        raise SealError("the seccomp filter does not hold")
    try:
        os.listdir("/")
    except PermissionError:
        return
    raise SealError("Landlock does not hold")


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON has it: numbers, text and collections of them; all else as its ``str``."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if depth < 20 and isinstance(value, dict):
        return {str(k): plain(v, depth + 1) for k, v in value.items()}
    if depth < 20 and isinstance(value, list | tuple | set | frozenset):
        return [plain(v, depth + 1) for v in value]
    return str(value)


def main() -> None:
    """Seal, run, report."""
    request = json.loads(sys.stdin.buffer.read())
    report = open(int(sys.argv[1]), "w", encoding="utf-8")  # noqa: SIM115
    for name in _PRELOADED.split():
        __import__(name)
    isolation: list[str] = []
    limit(request)
    if not request["unprotected"]:
        try:
            isolation = seal(request["box"])
        except (SealError, OSError) as reason:
            report.write(json.dumps({"failed": str(reason)}) + "\n")
            return
    report.write(json.dumps({"isolation": isolation}) + "\n")
    report.flush()
    value, error = run(request["code"], request["value"])
    report.write(json.dumps({"value": value, "error": error}))
    report.flush()
    os._exit(0)


def run(code: str, name: str) -> tuple[Any, str]:
    """The variable called ``name`` after ``code`` ran, and the error as one line."""
    space: dict[str, Any] = {"__name__": "__main__"}
    error = ""
    try:
        exec(compile(code, "program", "exec"), space)
    except SystemExit:
        pass
    except BaseException as caught:
        error = said(caught)
    try:
        sys.stdout.flush()
        return plain(space.get(name)), error
    except BaseException as caught:
        return None, error or said(caught)


def said(caught: BaseException) -> str:
    """An exception as one line with the line of the program it came from."""
    line = caught.lineno if isinstance(caught, SyntaxError) else None
    place = caught.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename == "program":
            line = place.tb_lineno
        place = place.tb_next
    where = f" (line {line})" if line else ""
    text = str(caught).removesuffix(f" (program, line {line})")[:300]
    return " ".join(f"{type(caught).__name__}: {text}".split()) + where


if __name__ == "__main__":
    main()
