"""What has happened since the daemon started, as counts: what a reader that looks now and then cannot miss. Pure.

Decides which events are counted as what. A histogram has bounds and counts, as metrics show them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ctl.events.catalogue import LEASE_DISCARDED, ROLE_CHANGED, TAKEOVER_DONE, Event

TAKEOVER_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 500)
LATENESS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 500)
_LEASE_LOST = ("lease_expired",)
"""Causes of a role change that are a lost lease (`sync.failover.transitions.Cause`)."""


class Histogram:
    """bounds: upper ones, ascending; what is beyond the last is counted as well."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def view(self) -> dict[str, Any]:
        """Bounds, counts of each interval (one more than bounds) and the sum."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}


class Tally:
    """Counts events."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.role_changes = self.leases_lost = self.extensions_discarded = 0
        self.takeovers = Histogram(TAKEOVER_MS)
        self._role = ""

    def take(self, event: Event) -> None:
        """An event happened."""
        self.events[event.name] += 1
        if event.type is ROLE_CHANGED:
            role = str(event.fields["role"])
            self.role_changes += self._role not in ("", role)
            self.leases_lost += event.fields["cause"] in _LEASE_LOST
            self._role = role
        elif event.type is LEASE_DISCARDED:
            self.extensions_discarded += 1
        elif event.type is TAKEOVER_DONE:
            self.takeovers.observe(float(event.fields["took_ms"]))
