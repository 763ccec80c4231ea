"""Returns freed memory to the kernel, and locks the memory of a pair's node so that it is never paged out.

glibc keeps freed memory. On another C library these functions have no effect. See also `ctl.runtime.footprint`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os

GC_THRESHOLDS = (5000, 4, 50)  # 0.5 ms, 2 ms; the oldest generation once per million surviving objects
M_ARENA_MAX = -8  # mallopt(3)
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # mlockall(2)


def collect_rarely() -> None:
    """Collect young objects often and old ones rarely: old ones take 10 ms per 100,000 objects."""
    gc.set_threshold(*GC_THRESHOLDS)


def settle() -> None:
    """Move all live objects to the permanent GC generation (gc.freeze). Reference cycles among them are never freed, so call it
    only after large and rare changes. Reference counting still frees plain values, such as those of a configuration.
    """
    gc.freeze()


def share_arenas() -> None:
    """Have all threads allocate from one arena, where memory that one has freed is used by the others. For processes whose
    threads do not compete."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Return freed memory to the kernel. Takes milliseconds and releases the interpreter: call it in a thread."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def lock() -> str:
    """Lock the pages that this process uses; untouched pages take no memory. Returns the reason of a refusal, or ""."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    except (OSError, AttributeError):
        return "not supported by this C library"
    return os.strerror(ctypes.get_errno()) if failed else ""


def unlock() -> None:
    """Undo `lock`."""
    try:
        ctypes.CDLL(None).munlockall()
    except (OSError, AttributeError):
        return


class Tidier:
    """Returns memory to the kernel DELAY_S after a request. Runs as one task."""

    DELAY_S = 1.0

    def __init__(self) -> None:
        self._wanted = asyncio.Event()

    def soon(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self.DELAY_S)  # until the memory is free
            self._wanted.clear()
            await asyncio.to_thread(give_back)
