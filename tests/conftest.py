"""What all tests run under: one thread for each of several test processes, and a Ctrl-C that works.

Two processes with two threads each on two cores spend most of their time waiting for each other.  Set before torch
is imported; processes that tests start inherit it.
"""

from __future__ import annotations

import os
import signal

# A shell starts background commands with Ctrl-C ignored, and what they start inherits it; some tests send one.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
