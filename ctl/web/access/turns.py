"""Verifies one password at a time in a thread: each costs 20 MB and 30 ms. The queue for it is short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ctl.errors import Code
from ctl.web.serving.problems import HttpError

MAX_WAITING = 8
RETRY_S = 2

T = TypeVar("T")


class Turns:
    """Runs what hashes or verifies, in turn."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Raises HttpError (503) if too many wait already."""
        if self._waiting >= MAX_WAITING:
            raise HttpError(503, "too many logins at once; try again", Code.BUSY, retry_after=str(RETRY_S))
        self._waiting += 1
        try:
            async with self._lock:
                return await asyncio.to_thread(function, *arguments)
        finally:
            self._waiting -= 1
