"""Limits the memory of xlbd and xlb-web. Call `keep_small` before the large imports and before the first thread.

An idle daemon uses about 5 MB less, and temporary memory for a thousand farms returns to the kernel.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_MMAP_THRESHOLD = -3  # mallopt(3)
M_ARENA_MAX = -8
OWN_MAPPING_BYTES = 128 * 1024  # glibc's initial value, but fixed: glibc raises it when large blocks are freed
ARENAS = 1

UNUSED = ("ssl", "_hashlib", "unittest")
"""asyncio and hashlib work without the first two, which load OpenSSL: the pair uses ZeroMQ's CURVE, and only a check by https
needs TLS, which allows it then. For the last see `ctl.network.kernel.lean_pyroute2`; numpy tests for it and does without."""


def keep_small() -> None:
    """Block the import of OpenSSL, limit numpy's linear algebra to one thread, and make malloc return freed memory.

    Loaded modules stay loaded.
    """
    for name in UNUSED:
        if name not in sys.modules:
            bar(name)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    limit_malloc()


def limit_malloc() -> None:
    """Make malloc return freed memory. A C library without mallopt keeps its allocator settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, ARENAS)
    mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)


def allow(name: str) -> None:
    """Undo `bar`: from now on the module can be imported."""
    if name in sys.modules and sys.modules[name] is None:
        del sys.modules[name]


def bar(name: str) -> None:
    """Make any later import of the module raise ImportError."""
    sys.modules[name] = None  # type: ignore[assignment]  # as the language reference has it, "The module cache"
