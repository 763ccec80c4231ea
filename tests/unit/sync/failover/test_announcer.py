"""When the announcer sends gratuitous ARP."""

from __future__ import annotations

from sync.failover.announcer import Announcer
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.timing import Timing

TIMING = Timing.from_ms(10, 30, 36)


def made_at_ms(announcer: Announcer, until_ms: int) -> list[int]:
    return [ms for ms in range(until_ms) if announcer.take_due(ms * MS)]


def test_new_addresses_are_announced_five_times() -> None:
    announcer = Announcer()
    announcer.repeat(100 * MS, TIMING)
    assert made_at_ms(announcer, 9000) == [110, 150, 350, 1600, 4100]


def test_long_heartbeats_keep_the_order() -> None:
    announcer = Announcer()
    announcer.repeat(0, Timing.from_ms(1000, 3000, 3500))
    assert made_at_ms(announcer, 30_000) == [1000, 1500, 4000, 5000, 25_000]


def test_one_announcement_replaces_those_that_are_due_and_cancel_removes_all() -> None:
    announcer = Announcer()
    announcer.repeat(0, TIMING)
    announcer.once(5 * MS)
    assert made_at_ms(announcer, 9000) == [5]
    announcer.repeat(0, TIMING)
    announcer.cancel()
    assert made_at_ms(announcer, 9000) == []
