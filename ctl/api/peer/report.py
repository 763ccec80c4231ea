"""What the peer reports of itself for `status`: asked at most once a second, however many ask here, and never waited for long.

Decides how fresh a report must be. A peer that is silent has none, one of version 0.1.0 only that it is older; `status` then
shows what its heartbeats say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ctl.cluster.membership import Membership
from ctl.cluster.peer_questions import PeerQuestions
from ctl.errors import Code, XlbError

QUESTION = "cluster.report"
FRESH_S = 1.0
WAIT_S = 0.5
EARLIER = "an earlier version"

Report = Mapping[str, Any]


class PeerReport:
    """Create on a running loop."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._lock = asyncio.Lock()
        self._last: Report = {}
        self._asked_s = float("-inf")

    def answer(self, questions: PeerQuestions, own: Callable[[], Awaitable[Report]]) -> None:
        """Register this node's own report."""
        questions.register(QUESTION, lambda _: own())

    async def take(self, alive: bool) -> Report:
        """The peer's report, no older than FRESH_S; empty: it has none. alive: whether the peer is heard."""
        pair = self._membership.configuration
        if pair is None or not alive:
            return {}
        async with self._lock:
            if time.monotonic() - self._asked_s > FRESH_S:
                try:
                    async with asyncio.timeout(WAIT_S):
                        answer = await pair.ask(QUESTION, {}, WAIT_S)
                    self._last = answer if isinstance(answer, dict) else {}
                except (XlbError, TimeoutError) as error:
                    old = isinstance(error, XlbError) and error.code in (Code.PEER_VERSION, Code.UNCODED)
                    self._last = {"version": EARLIER} if old else {}
                self._asked_s = time.monotonic()
            return self._last
