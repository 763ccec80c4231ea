"""How soon after it became active a node gives the VIPs away again because of a fault.

Decides when. Must not know faults, roles or the peer.

Where the carriers of both nodes flap in turn, each fault sends the VIPs to the other node, and a move costs clients more than a
short fault does. So a node that has left service because of faults stays active for a while when it is active again: half a
second after one departure, twice as long after each further one, never longer than LONGEST_NS. Departures count for WINDOW_NS.

Only that is delayed. A first failover, a takeover from a silent peer and what an operator asks for are not; and a node that
has been active for LONGEST_NS gives way at once.
"""

from __future__ import annotations

from collections import deque

from sync.failover.timing import NEVER_NS, NS_PER_MS

FIRST_NS = 500 * NS_PER_MS
LONGEST_NS = 8000 * NS_PER_MS
WINDOW_NS = 120_000 * NS_PER_MS
_MAX_DOUBLINGS = 4


class HoldDown:
    """Departures because of a fault, and when this node became active."""

    __slots__ = ("_departures_ns", "_opened_ns")

    def __init__(self) -> None:
        self._departures_ns: deque[int] = deque(maxlen=_MAX_DOUBLINGS + 1)
        self._opened_ns = NEVER_NS

    def opened(self, now_ns: int) -> None:
        """This node became active."""
        self._opened_ns = now_ns

    def left(self, now_ns: int) -> None:
        """This node left service because of a fault."""
        self._departures_ns.append(now_ns)

    def left_ns(self, now_ns: int) -> int:
        """How much longer this node stays active whatever its faults; 0: not at all."""
        recent = sum(now_ns - each < WINDOW_NS for each in self._departures_ns)
        if not recent:
            return 0
        length_ns = min(FIRST_NS << (recent - 1), LONGEST_NS)
        return max(0, self._opened_ns + length_ns - now_ns)
