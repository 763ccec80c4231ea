"""The vote that decides between two nodes that cannot hear each other.

Decides when to ask, and from when a lease may count as far as the vote goes. Must not know how the question travels.
"""

from __future__ import annotations

from sync.failover.timing import NEVER_NS, Timing
from sync.failover.types import AskVote, Vote


class TieBreaker:
    """Questions to the tie-breaker and its answers; `kind` is what the node file configures."""

    __slots__ = ("_granted_ns", "_held_since_ns", "_question_ns", "kind")

    def __init__(self, kind: Vote) -> None:
        self.kind = kind
        self._question_ns = NEVER_NS  # the last question
        self._granted_ns = NEVER_NS  # the last question that was answered with the vote
        self._held_since_ns = NEVER_NS  # the first such question of an unbroken series

    def asks_with_heartbeat(self, active: bool) -> bool:
        """Whether each heartbeat comes with a question. A witness is asked by a backup only when the peer is silent."""
        return self.kind is Vote.GATEWAY or (self.kind is Vote.WITNESS and active)

    def ask(self, now_ns: int, timing: Timing) -> AskVote | None:
        """The next question, unless one was asked within half a heartbeat."""
        if now_ns - self._question_ns < timing.heartbeat_ns // 2:
            return None
        self._question_ns = now_ns
        return AskVote(now_ns)

    def answered(self, asked_ns: int, granted: bool, now_ns: int, timing: Timing) -> bool:
        """Take in an answer; False if it is a refusal, or to no later question than the answers before."""
        if not granted or not self._granted_ns < asked_ns <= now_ns:
            return False
        if asked_ns - self._granted_ns > 3 * timing.heartbeat_ns:
            self._held_since_ns = asked_ns
        self._granted_ns = asked_ns
        return True

    def basis_ns(self, now_ns: int, timing: Timing) -> int | None:
        """From when a lease may count; None: this node has no vote now. A gateway must have answered for the takeover time."""
        if self.kind is Vote.NONE:
            return now_ns
        held = self.kind is Vote.WITNESS or now_ns - self._held_since_ns >= timing.takeover_ns
        return self._granted_ns if held and now_ns - self._granted_ns < timing.alone_ns else None
