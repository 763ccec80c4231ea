"""One step of all requests in each turn of the event loop, so that no number of requests delays what else the loop does.

Decides the order of steps: first come, first served. Must not know requests. A heartbeat that is due waits for one step at
most, instead of one step of each request in flight; commands keep their single steps short.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Turns:
    """Create on a running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def next(self) -> asyncio.Future[None]:
        """Done in the turn of the loop in which its owner may take a step."""
        turn = self._loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._grant)
        return turn

    def _grant(self) -> None:
        while self._waiting and self._waiting[0].cancelled():
            self._waiting.popleft()
        if not self._waiting:
            return
        self._waiting.popleft().set_result(None)
        if self._waiting:
            self._loop.call_soon(self._grant)  # in the loop's next turn: everything else that is ready comes first


class InTurns(Generic[T]):
    """Awaits a coroutine, each step of it in a turn of its own."""

    def __init__(self, work: Coroutine[Any, Any, T], turns: Turns) -> None:
        self._work, self._turns = work, turns

    def __await__(self) -> Generator[Any, None, T]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                yield from self._turns.next()
            except BaseException as cancelled:  # the coroutine decides what its cancellation means
                error = cancelled
            try:
                awaited = next(steps) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
            error = None
            try:
                yield awaited
            except BaseException as raised:
                error = raised
