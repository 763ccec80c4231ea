"""Keeps the daemon's memory near what it needs: one allocator arena, and what a big message took given back. And, for a pair's
node, in memory: what is used is never paged out.

glibc keeps freed memory per arena and makes arenas per thread: after applying a thousand farms 60 MB stayed resident that
nobody used. On another C library nothing here does anything.
"""

from __future__ import annotations

import asyncio
import ctypes
import os

M_ARENA_MAX = -8  # mallopt(3)
ARENAS = 1
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # mlockall(2)


def limit_arenas() -> None:
    """Call once, before the first thread starts."""
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    except (OSError, AttributeError):
        return


def give_back() -> None:
    """Return freed memory to the kernel; some milliseconds, with the interpreter released: call it in a thread."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def lock() -> str:
    """Never page out what this process uses; pages it does not touch take no memory. Returns why not, or ""."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    except (OSError, AttributeError):
        return "this C library cannot"
    return os.strerror(ctypes.get_errno()) if failed else ""


def unlock() -> None:
    """Undo `lock`."""
    try:
        ctypes.CDLL(None).munlockall()
    except (OSError, AttributeError):
        return


class Tidier:
    """Gives memory back some time after somebody said that much was used. Runs as one task."""

    DELAY_S = 1.0

    def __init__(self) -> None:
        self._wanted = asyncio.Event()

    def soon(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self.DELAY_S)  # until what it was used for is over
            self._wanted.clear()
            await asyncio.to_thread(give_back)
