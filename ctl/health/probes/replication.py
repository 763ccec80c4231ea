"""Replicates the results of checks: the active node sends them, its backup adopts them and does not probe.

Connects `ctl.health.results` (what is sent, and when it is complete) to the peer. A backup that gets no results, because the
peer is of version 0.1.0 or cannot be reached, probes itself. Must not know roles beyond "active or not".
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ctl.errors import Code, InvalidInput, XlbError
from ctl.health.check_machine import HealthChecks, Transition
from ctl.health.results import BATCH, SAY_MS, Inbox, Outbox

QUESTION = "health.results"
"""Version 0.1.0 does not know it."""
POLL_S = 0.1
ANSWER_TIMEOUT_S = 2.0
RETRY_S = 1.0
OLD_PEER_S = 10.0

log = logging.getLogger(__name__)

Tell = Callable[[Sequence[Transition]], None]
Ask = Callable[[str, dict[str, Any], float], Awaitable[Any]]


class CheckReplication:
    """Create once; `begin` and `end` with each membership in a pair.

    adopted: called when a backend's state is another one, with those that went up or down.

    now_ms: the clock of the checks.
    """

    def __init__(self, checks: HealthChecks, adopted: Tell, now_ms: Callable[[], int]) -> None:
        self._checks, self._adopted, self._now_ms = checks, adopted, now_ms
        self._is_active: Callable[[], bool] = lambda: True
        self._inbox, self._outbox = Inbox(), Outbox()
        self._wake = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    def begin(self, ask: Ask, is_active: Callable[[], bool]) -> None:
        """This node is in a pair. Call it on the loop."""
        self._is_active = is_active
        self._inbox.forget()
        self._outbox.restart()
        self._sending = asyncio.get_running_loop().create_task(self._send(ask), name="check results")

    async def end(self) -> None:
        """This node is single."""
        self._is_active = lambda: True
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            self._sending = None

    @property
    def follows(self) -> bool:
        """Whether this node adopts the peer's results in place of probing."""
        return not self._is_active() and self._inbox.is_current(self._now_ms())

    def wake(self) -> None:
        """A backend went up or down."""
        self._wake.set()

    async def receive(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer the peer's message. Raises InvalidInput."""
        if self._is_active():
            return {"again": True}  # this node knows better
        try:
            results = self._inbox.receive(message, self._now_ms())
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        if results is None:
            return {"again": True}
        adopted = self._checks.adopt(results, self._now_ms())
        if adopted.changed:
            self._adopted(adopted.transitions)
        return {"again": False}

    async def _send(self, ask: Ask) -> None:
        while True:
            if not self._is_active():
                self._outbox.restart()
                await self._rest(POLL_S)
                continue
            self._inbox.forget()
            if not self._outbox.is_open:
                self._checks.take_news(None)
                self._outbox.begin(secrets.token_hex(8), self._checks.known)
            now_ms = self._now_ms()
            if not self._outbox.is_due(self._checks.has_news, now_ms):
                await self._rest(SAY_MS / 1000)
                continue
            ids = self._outbox.take(() if self._outbox.sends_snapshot else self._checks.take_news(BATCH))
            message = self._outbox.message(self._checks.results(ids), now_ms)
            try:
                answer = await ask(QUESTION, message, ANSWER_TIMEOUT_S)
            except XlbError as error:
                self._outbox.restart()
                old = error.code in (Code.PEER_VERSION, Code.UNCODED)
                await asyncio.sleep(OLD_PEER_S if old else RETRY_S)
            else:
                if not isinstance(answer, dict) or answer.get("again") is not False:
                    self._outbox.restart()
                    await self._rest(POLL_S)

    async def _rest(self, most_s: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(most_s):
                await self._wake.wait()
        except TimeoutError:
            return
