"""Since when the daemon runs, and whether it has come so far that commands may be answered."""

from __future__ import annotations

import asyncio
import time


class Startup:
    """Create when the daemon starts; `complete` once."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._done = asyncio.Event()

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def complete(self) -> None:
        """Commands that waited go ahead."""
        self._done.set()

    async def wait(self) -> None:
        """Until `complete`."""
        await self._done.wait()
