"""What an operator or a preferred peer asked an active node for, and how far its hand-over has come.

Decides when a hand-over is complete or late. Must not know roles or leases.

The hand-over: the heartbeats of the active node carry `offering`, and it flushes its flow changes; the peer claims its
reserved epoch; once flushed and claimed the active node closes its lease and, after that, grants the claim; the peer opens its
lease when it hears the grant. Every step repeats with each heartbeat, so a lost message only delays. Before the lease is closed
either side may cancel and nothing has happened; after it, the peer holds a promise like any other.
"""

from __future__ import annotations

from sync.failover.types import FlushFlows


class HandOver:
    """`request`: what was asked for and is not done: switchover, failback, fault, maintenance, shutdown; empty if nothing."""

    __slots__ = ("_deadline_ns", "_flush_number", "flushed", "request")

    def __init__(self) -> None:
        self.request = ""
        self.flushed = False
        self._deadline_ns = 0
        self._flush_number = 0

    @property
    def leaves_service(self) -> bool:
        """Whether this node is to stay out of service once the peer is active."""
        return self.request in ("maintenance", "shutdown")

    def begin(self, request: str, deadline_ns: int) -> None:
        """Something is asked for that is to be done by `deadline_ns`."""
        self.request, self._deadline_ns = request, deadline_ns

    def end(self) -> str:
        """Nothing is asked for any more; returns what was."""
        request, self.request = self.request, ""
        return request

    def is_late(self, now_ns: int) -> bool:
        """Whether what was asked for is not done in time."""
        return bool(self.request) and now_ns >= self._deadline_ns

    def flush(self) -> FlushFlows:
        """Ask for all flow changes until now to be with the peer; answers to earlier flushes count no more."""
        self._flush_number, self.flushed = self._flush_number + 1, False
        return FlushFlows(self._flush_number)

    def flows_flushed(self, number: int) -> bool:
        """The peer has all that the flush of this number covered; False if a later one was begun."""
        if number != self._flush_number:
            return False
        self.flushed = True
        return True
