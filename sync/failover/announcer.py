"""When an active node announces its addresses, so that switches and neighbours learn where the VIPs are.

Decides moments. Must not know addresses or how they are announced.
"""

from __future__ import annotations

from sync.failover.timing import NS_PER_MS, Timing

AFTER_HEARTBEATS = (1, 5, 25)
AFTER_MS = (1500, 4000)
"""The kernel of a node that died may for three seconds continue to ask for neighbours in the name of an IPv6 VIP."""


class Announcer:
    """The announcements that are still due, earliest first."""

    __slots__ = ("_due_ns",)

    def __init__(self) -> None:
        self._due_ns: list[int] = []

    def repeat(self, now_ns: int, timing: Timing) -> None:
        """The addresses are new here, or the peer may have answered for them: announce several times."""
        waits_ns = [count * timing.heartbeat_ns for count in AFTER_HEARTBEATS]
        waits_ns += [wait_ms * NS_PER_MS for wait_ms in AFTER_MS]
        self._due_ns = sorted(now_ns + wait_ns for wait_ns in waits_ns)

    def once(self, now_ns: int) -> None:
        """Both nodes are active, and this one stays: announce with the next timer, and no more."""
        self._due_ns = [now_ns]

    def cancel(self) -> None:
        """The addresses are gone."""
        self._due_ns = []

    def take_due(self, now_ns: int) -> bool:
        """Whether an announcement is due; it then counts as made."""
        if not self._due_ns or now_ns < self._due_ns[0]:
            return False
        del self._due_ns[0]
        return True
