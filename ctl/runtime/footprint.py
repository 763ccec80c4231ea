"""What keeps xlbd small from its first moment: settle it before the big imports and before the first thread.

Resident memory of an idle daemon falls by about 5 MB, and what a thousand farms took for a moment goes back to the kernel.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_MMAP_THRESHOLD = -3  # mallopt(3)
M_ARENA_MAX = -8
OWN_MAPPING_BYTES = 128 * 1024  # glibc's own beginning, but fixed: it grows with what is freed
ARENAS = 1

UNUSED = ("ssl", "_hashlib", "unittest")
"""asyncio and hashlib do without the first two, which bring OpenSSL: nothing here speaks it, the pair uses ZeroMQ's CURVE. For
the last see `ctl.network.kernel.lean_pyroute2`."""


def keep_small() -> None:
    """Leave OpenSSL out, give the linear algebra that comes with numpy one thread, and make malloc return what it can.

    Modules that are loaded already stay. On a C library without mallopt the allocator is left as it is.
    """
    for name in UNUSED:
        if name not in sys.modules:
            bar(name)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, ARENAS)
    mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)


def bar(name: str) -> None:
    """From now on importing the module raises ImportError."""
    sys.modules[name] = None  # type: ignore[assignment]  # as the language reference has it, "The module cache"
