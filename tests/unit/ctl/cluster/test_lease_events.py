"""Extensions of the lease that come late, or nearly too late, are events; a series of them is one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from ctl.cluster.effects import NEARLY_LOST_QUIET_NS, Performer, Sinks
from ctl.cluster.operator_requests import Requests
from ctl.events.catalogue import Event
from sync.failover.types import ExtendLease

MS = 1_000_000
LEASE_MS = 300


class Bed:
    """A performer whose clock moves by hand."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * MS
        self.events: list[Event] = []
        plane = SimpleNamespace(set_lease=lambda deadline_ns, epoch: None)
        sinks = Sinks(plane, None, None, None, None, report=lambda _, event: self.events.append(event))  # type: ignore[arg-type]
        self.performer = Performer("lb1", sinks, Requests(), lambda event: None, lambda: None, lambda: 1, lambda: self.now_ns)

    def extend(self, after_ms: int, void_in_ms: int = 1000) -> None:
        """Extend the lease so long after the last extension."""
        self.now_ns += after_ms * MS
        effect = ExtendLease(self.now_ns + LEASE_MS * MS, 1, void_after_ns=self.now_ns + void_in_ms * MS)
        self.performer.perform(effect, self.now_ns)

    def names(self) -> list[str]:
        return [event.name for event in self.events]


def test_a_lease_that_was_nearly_lost_is_an_event_and_a_series_is_one() -> None:
    async def run() -> None:
        bed = Bed()
        for _ in range(3):
            bed.extend(100)
        assert bed.names() == [], "in time"
        bed.extend(260)
        assert bed.names() == ["lease.nearly_lost"] and bed.events[0].fields == {"left_ms": 40.0, "times": 1}
        bed.extend(270)
        bed.extend(100)
        assert len(bed.events) == 1, "not again at once"
        bed.now_ns += NEARLY_LOST_QUIET_NS
        bed.extend(0)  # the lease has ended: no extension
        bed.extend(290)
        assert bed.names() == ["lease.nearly_lost"] * 2 and bed.events[1].fields["times"] == 2

    asyncio.run(run())


def test_an_extension_that_comes_too_late_is_discarded() -> None:
    async def run() -> None:
        bed = Bed()
        bed.extend(100, void_in_ms=-12)
        assert bed.names() == ["lease.discarded"] and bed.events[0].fields == {"late_ms": 12.0}

    asyncio.run(run())
