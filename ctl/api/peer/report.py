"""What the peer reports of itself for `status`.

A peer that is silent has no report, one of version 0.1.0 only that it is older; `status` then shows what its heartbeats say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ctl.api.peer.fresh_answer import FreshAnswer
from ctl.cluster.membership import Membership
from ctl.cluster.peer_questions import PeerQuestions

QUESTION = "cluster.report"
EARLIER = "an earlier version"

Report = Mapping[str, Any]


class PeerReport:
    """Create on a running loop."""

    def __init__(self, membership: Membership) -> None:
        self._fresh = FreshAnswer(membership, QUESTION)

    def answer(self, questions: PeerQuestions, own: Callable[[], Awaitable[Report]]) -> None:
        """Register this node's own report."""
        questions.register(QUESTION, lambda _: own())

    async def take(self, alive: bool) -> Report:
        """The peer's report; empty: it has none. alive: whether the peer is heard."""
        answered = await self._fresh.take(alive)
        if answered.earlier:
            return {"version": EARLIER}
        return answered.fields or {}
