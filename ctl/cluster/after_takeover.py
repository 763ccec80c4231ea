"""After a takeover: whether client traffic arrives, and when to announce the addresses again.

Decides from counts and times only. A switch or a neighbour that missed the announcement keeps sending to the dead node, and
only the new active node can notice. A packet for a VIP is the proof; until one arrives, the addresses are announced again at
growing intervals. A pair without clients proves nothing and is not in error: after the last interval one log line reports it.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_CHECK_NS = 20_000_000
GROWTH = 2
GIVE_UP_NS = 60_000_000_000


@dataclass(frozen=True, slots=True)
class AnnounceAgain:
    """Nothing has arrived yet."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """The proof: `packets` came in, noticed `after_ns` after the takeover and after `again` more announcements."""

    packets: int
    after_ns: int
    again: int


@dataclass(frozen=True, slots=True)
class NothingArrived:
    """Nothing came in for as long as this machine waits. `expected`: there were connections, so something should have."""

    after_ns: int
    again: int
    expected: bool


Verdict = AnnounceAgain | Arrived | NothingArrived


class Arrival:
    """Watches one takeover. `check_at_ns`: when `check` needs the next count; None once it has ended."""

    def __init__(self, now_ns: int, packets: int) -> None:
        """packets: how many had arrived for the VIPs before this node became active."""
        self._since_ns, self._packets_before = now_ns, packets
        self._interval_ns = FIRST_CHECK_NS
        self._again = 0
        self.check_at_ns: int | None = now_ns + FIRST_CHECK_NS

    def check(self, now_ns: int, packets: int, expected: bool) -> Verdict:
        """packets: as counted now; expected: whether connections exist that should bring some."""
        after_ns = now_ns - self._since_ns
        if packets != self._packets_before:
            self.check_at_ns = None
            return Arrived(packets - self._packets_before, after_ns, self._again)
        if after_ns >= GIVE_UP_NS:
            self.check_at_ns = None
            return NothingArrived(after_ns, self._again, expected)
        self._again += 1
        self._interval_ns *= GROWTH
        self.check_at_ns = min(now_ns + self._interval_ns, max(self._since_ns + GIVE_UP_NS, now_ns + FIRST_CHECK_NS))
        return AnnounceAgain()
