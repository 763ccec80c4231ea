"""Requests of operators to the failover machine, and the callers that wait for the outcome.

Decides which request an outcome belongs to: one that comes while a request is handed to the machine belongs to that request, a
later one to every waiting request of that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ctl.errors import Code, XlbError

MAX_WAITING = 64


class Requests:
    """Create on a running loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._asking: asyncio.Future[None] | None = None

    async def ask(self, request: str, put: Callable[[], None]) -> None:
        """Hand a request to the machine with `put` and wait until it is done. Raises XlbError with the cause of a refusal."""
        if len(self._waiting) >= MAX_WAITING:
            raise XlbError(f"{len(self._waiting)} requests are waiting already; try again in a moment", Code.BUSY)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (request, answer)
        self._waiting.append(entry)
        self._asking = answer
        try:
            put()
            self._asking = None
            await answer
        finally:
            self._asking = None
            self._waiting.remove(entry)

    def completed(self, request: str) -> bool:
        """Returns whether a caller waits for it."""
        return self._answer(request, "")

    def refused(self, request: str, why: str) -> bool:
        """Returns whether a caller waits for it."""
        return self._answer(request, why)

    def end(self, why: str) -> None:
        """Refuse every waiting request."""
        for _, answer in self._waiting:
            _set(answer, why)

    def _answer(self, request: str, why: str) -> bool:
        if self._asking is not None and any(name == request and each is self._asking for name, each in self._waiting):
            _set(self._asking, why)
            return True
        waiting = [answer for name, answer in self._waiting if name == request]
        for answer in waiting:
            _set(answer, why)
        return bool(waiting)


def _set(answer: asyncio.Future[None], why: str) -> None:
    if answer.done():
        return
    if why:
        answer.set_exception(XlbError(why, Code.FAILOVER_REFUSED))
    else:
        answer.set_result(None)
