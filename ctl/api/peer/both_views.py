"""The pair as each of its nodes sees it, for `cluster.nodes`: this node's `cluster.status`, and the peer's as it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctl.api.peer.fresh_answer import FreshAnswer
from ctl.cluster.membership import Membership
from ctl.cluster.peer_questions import PeerQuestions

QUESTION = "cluster.view"

View = Callable[[], dict[str, Any]]


class BothViews:
    """Create on a running loop. own: this node's `cluster.status`."""

    def __init__(self, membership: Membership, own: View) -> None:
        self._fresh, self._own = FreshAnswer(membership, QUESTION), own

    def answer(self, questions: PeerQuestions) -> None:
        """Register what the peer may ask."""

        async def view(_: dict[str, Any]) -> dict[str, Any]:
            return self._own()

        questions.register(QUESTION, view)

    async def nodes(self) -> list[dict[str, Any]]:
        """One entry for each node, this one first. One that did not answer has the reason, and no status."""
        own = self._own()
        nodes = [_entry(own["node"], True, own)]
        if own["peer"]:
            answered = await self._fresh.take(bool(own["peer"]["alive"]))
            status = None if answered.fields is None else dict(answered.fields)
            nodes.append(_entry(own["peer"]["name"], False, status, answered.why_not))
        return nodes


def _entry(name: str, own: bool, status: dict[str, Any] | None, why_not: str = "") -> dict[str, Any]:
    return {"name": name, "own": own, "answered": status is not None, "why_not": why_not, "status": status}
