"""Keeps the daemon's memory near what it needs: what a big message took is given back. And, for a pair's node, in memory:
what is used is never paged out.

glibc keeps what is freed. On another C library nothing here does anything. See also `ctl.runtime.footprint`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os

GC_THRESHOLDS = (5000, 4, 50)  # 0.5 ms, 2 ms; old ones once per million objects that stayed
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # mlockall(2)


def collect_rarely() -> None:
    """Look for cycles among young objects often and shortly, among old ones seldom: that takes 10 ms per 100,000 of them."""
    gc.set_threshold(*GC_THRESHOLDS)


def settle() -> None:
    """What is there now stays: collections need not look at it any more. What it refers to in cycles is never freed, so call it
    after big and rare things only. Plain values, as a configuration is made of, are freed all the same.
    """
    gc.freeze()


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
        return "not supported by this C library"
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
