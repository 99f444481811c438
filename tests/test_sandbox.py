"""The sandbox: what code may do runs, and every way out that a test could think of is shut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import cuelight.sandbox as sandbox
from cuelight.sandbox import Limits, SandboxError, run_python, why_not

isolated = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
SHUT = (
    "PermissionError",
    "OSError",
    "BlockingIOError",
    "gaierror",
    "RuntimeError",
    "ValueError: not allowed to raise",
)


def test_code_computes_prints_and_uses_its_folder() -> None:
    code = "import math, statistics\nprint('hi')\nopen('a.txt', 'w').write('7')\n"
    code += "ans = [math.comb(5, 2), statistics.mean([1, 2]), int(open('a.txt').read())]"
    ran = run_python(code, unprotected=bool(why_not()))
    assert (ran.stdout, ran.value, ran.error) == ("hi\n", [10, 1.5, 7], "")


def test_errors_are_one_line_with_the_place() -> None:
    for code, said in {
        "x = 1\ny = x / 0": "ZeroDivisionError: division by zero (line 2)",
        "x = (": "SyntaxError: '(' was never closed",
        "raise SystemExit": "",
        "import nothing_of_this_name": "ModuleNotFoundError",
        "import numpy": "ModuleNotFoundError",  # no site packages
    }.items():
        assert run_python(code, unprotected=True).error.startswith(said)


def test_values_come_back_as_json_has_them() -> None:
    code = "from fractions import Fraction\nans = {1: (2, {3}), 'f': Fraction(1, 3), 'n': float('nan'), 'b': 2**80}"
    assert run_python(code, unprotected=True).value == {
        "1": [2, [3]],
        "f": "1/3",
        "n": "nan",
        "b": str(2**80),
    }
    assert run_python("x = 5", value="x", unprotected=True).value == 5
    assert run_python("x = 5", unprotected=True).value is None


def test_the_order_of_sets_is_fixed() -> None:
    code = "ans = list({'a', 'b', 'c', 'd', 'e'})"
    assert run_python(code, unprotected=True).value == run_python(code, unprotected=True).value


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)",
        "import socket; socket.getaddrinfo('example.com', 80)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.socketpair()",
        "import os; os.fork()",
        "import os; os.execv('/bin/sh', ['sh', '-c', 'echo out'])",
        "import os; os.posix_spawn('/bin/sh', ['sh'], dict())",
        "import threading; threading.Thread(target=print).start()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(os.getpid(), 9)",
        "import os, fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "import os; os.listdir('/')",
        "import os; os.listdir('{outside}')",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "import os; open(f'/proc/{{os.getppid()}}/environ')",
        "import os; open(f'/proc/{{os.getppid()}}/mem', 'rb')",
        "open('{secret}')",
        "open('{outside}/new', 'w')",
        "import os; os.unlink('{secret}')",
        "import os; os.rename('{secret}', 'mine')",
        "import os; os.symlink('{secret}', 'link')",
        "import os; os.link('{secret}', 'link')",
        "import os; os.chmod('{secret}', 0o777)",
        "import os; os.truncate('{secret}', 0)",
        "import os; os.mkfifo('pipe')",
        "import os; os.memfd_create('m')",
        "import os; os.setuid(0)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
        "import os; os.listdir('/dev/shm')",
    ],
)
def test_ways_out_are_shut(code: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the user's own")
    filled = code.format(port=9, secret=secret, outside=tmp_path)
    ran = run_python(filled + "\nans = 'out'", limits=Limits(seconds=3))
    assert ran.error.startswith(SHUT), ran
    assert ran.value is None
    assert secret.read_text() == "the user's own"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


@isolated
def test_a_server_on_this_machine_hears_nothing() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        ran = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)")
        assert ran.error.startswith("PermissionError")
        with pytest.raises(TimeoutError):
            server.accept()


@isolated
def test_raw_system_calls_are_filtered_too() -> None:
    """Not Python's modules are restricted but the process: ctypes reaches the kernel and is refused."""
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "tries = [libc.socket(2, 1, 0), libc.fork(), libc.kill(1, 0), libc.syscall(425, 8, None), libc.ptrace(0, 0, 0, 0)]\n"
        "tries += [libc.unshare(0x10000000), libc.mount(None, b'/', None, 0, None), libc.prctl(4, 1, 0, 0, 0)]\n"
        "ans = tries"
    )
    ran = run_python(code)
    assert ran.value is None or set(ran.value) == {-1}
    assert ran.value is not None or ran.error.startswith(("ImportError", "ModuleNotFoundError", "OSError"))


def test_the_users_environment_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUELIGHT_API_KEY", "secret")
    ran = run_python("import os\nans = sorted(os.environ), os.listdir('.'), os.getcwd()", unprotected=True)
    names, listed, folder = ran.value
    assert names == ["HOME", "LC_ALL", "PYTHONHASHSEED", "TMPDIR"]
    assert listed == [] and folder != os.getcwd()
    assert not Path(folder).exists()  # it is gone afterwards


def test_an_endless_loop_is_stopped() -> None:
    started = time.monotonic()
    ran = run_python(
        "print('begun', flush=True)\nwhile True: pass", limits=Limits(seconds=0.5), unprotected=True
    )
    assert ran.stopped == "time" and "0.5 s" in ran.error and ran.stdout == "begun\n"
    assert time.monotonic() - started < 5


def test_sleeping_and_catching_everything_does_not_help() -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n"
        "    try: time.sleep(9)\n    except BaseException: pass"
    )
    assert run_python(code, limits=Limits(seconds=0.5), unprotected=True).stopped == "time"


def test_output_without_end_is_stopped() -> None:
    ran = run_python("while True: print('a' * 1000)", limits=Limits(seconds=5, output=5000), unprotected=True)
    assert ran.stopped == "output" and len(ran.stdout) == 5000


@isolated
def test_memory_is_limited() -> None:
    assert run_python("x = bytearray(2**31)").error.startswith("MemoryError")
    ran = run_python("x = []\nwhile True: x.append(bytearray(2**20))", limits=Limits(memory=256))
    assert ran.error and ran.value is None


@isolated
def test_files_are_limited() -> None:
    ran = run_python("open('big', 'wb').write(bytes(2**25))", limits=Limits(files=1))
    assert ran.error and ran.value is None
    many = "k = 0\nwhile True:\n    k += 1\n    open(str(k), 'wb').write(bytes(2**19))"
    assert run_python(many, limits=Limits(files=1)).stopped == "files"


def test_a_forged_report_is_not_believed_to_be_a_success_of_isolation() -> None:
    """Code may write to the report's pipe: it can spoil its own answer, nothing else."""
    code = "import os\nfor k in range(3, 12):\n    try: os.write(k, b'{}')\n    except OSError: pass\nos._exit(0)"
    ran = run_python(code, unprotected=True)
    assert ran.value is None and "without an answer" in ran.error


def test_nothing_is_left_running() -> None:
    run_python("while True: pass", limits=Limits(seconds=0.3), unprotected=True)
    assert psutil.Process().children(recursive=True) == []


def test_where_isolation_can_not_be_had_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "why_not", lambda: "this kernel has no Landlock")
    with pytest.raises(SandboxError, match=r"^sandbox: this kernel has no Landlock; .*unprotected") as caught:
        run_python("ans = 1")
    assert "\n" not in str(caught.value)
    ran = run_python("ans = 1", unprotected=True)
    assert ran.value == 1 and ran.isolation == ()


@isolated
def test_a_seal_that_does_not_hold_is_noticed(tmp_path: Path) -> None:
    """The child tries its own seal; without a filter it must refuse to go on."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport child\n"
        "try: child._try_seal()\nexcept child.SealError as error: print(error)"
    )
    folder = str(sandbox._CHILD.parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the seccomp filter does not hold"


@isolated
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_it_needs_no_privileges() -> None:
    """The same without any capability: the kernel's parts that it uses are for everybody."""
    code = (
        "from cuelight.sandbox import run_python\n"
        "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])\n"
        "print(run_python('ans = 6 * 7').value, run_python('import socket; socket.socket()').error[:15])"
    )
    drop = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"] if os.getuid() == 0 else []
    done = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.stderr.startswith("setpriv"):
        pytest.skip(done.stderr.strip())
    assert done.stdout.split() == ["0" * 16, "42", "PermissionError"]


def test_an_interrupt_leaves_no_folder_behind(tmp_path: Path) -> None:
    code = (
        "import os, signal, threading\nfrom cuelight.sandbox import run_python, Limits\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Timer(0.6, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try: run_python('while True: pass', limits=Limits(seconds=20), unprotected=True)\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "stopped\n"
    assert list(tmp_path.iterdir()) == []
