"""The lease of one node: what extends it, and when a node must continue without acknowledgements."""

from __future__ import annotations

from sync.failover.lease_clock import LeaseClock
from sync.failover.timing import FAR_NS, Timing
from sync.failover.timing import NS_PER_MS as MS

TIMING = Timing.from_ms(10, 30, 36)
AWAKE_NS = -1000 * MS


def opened_at(ms: int) -> LeaseClock:
    lease = LeaseClock()
    lease.open(ms * MS)
    assert lease.extend(ms * MS, TIMING)
    return lease


def test_a_closed_lease_has_expired() -> None:
    lease = opened_at(100)
    assert lease.deadline_ns == 130 * MS
    assert not lease.has_expired(130 * MS - 1) and lease.has_expired(130 * MS)
    lease.close()
    assert lease.deadline_ns == 0 and lease.has_expired(100 * MS)


def test_a_deadline_never_moves_back() -> None:
    lease = opened_at(100)
    assert not lease.extend(100 * MS, TIMING) and not lease.extend(90 * MS, TIMING)
    assert lease.extend(101 * MS, TIMING) and lease.deadline_ns == 131 * MS


def test_acknowledgements_count_in_the_order_of_sending_only() -> None:
    lease = opened_at(100)
    for ms in (100, 110, 120):
        lease.sent(ms * MS)
    assert not lease.acknowledge(100 * MS, 125 * MS), "the lease was opened on it"
    assert not lease.acknowledge(126 * MS, 125 * MS), "from the future"
    assert lease.acknowledge(120 * MS, 125 * MS)
    assert not lease.acknowledge(110 * MS, 126 * MS)


def test_a_node_is_alone_when_an_acknowledgement_could_have_arrived_and_did_not() -> None:
    lease = opened_at(100)
    assert lease.alone_at_ns(TIMING) == FAR_NS, "nothing was sent"
    lease.sent(112 * MS)
    assert lease.alone_at_ns(TIMING) == 117 * MS, "a sixth of a lease after the first that is not acknowledged"
    lease.sent(113 * MS)
    assert lease.acknowledge(112 * MS, 114 * MS)
    assert lease.alone_at_ns(TIMING) == 127 * MS, "half a lease after the last that was acknowledged"
    assert not lease.is_alone(126 * MS, AWAKE_NS, TIMING) and lease.is_alone(127 * MS, AWAKE_NS, TIMING)
    assert not lease.is_alone(127 * MS, 113 * MS, TIMING), "it slept, and may have missed acknowledgements"
    assert lease.is_alone(128 * MS, 113 * MS, TIMING)
    assert lease.acknowledge(113 * MS, 128 * MS) and lease.alone_at_ns(TIMING) == FAR_NS


def test_a_vote_counts_if_acknowledgements_were_missing_when_it_was_asked_for() -> None:
    lease = opened_at(100)
    assert not lease.is_unacknowledged(114 * MS, TIMING) and lease.is_unacknowledged(115 * MS, TIMING)


def test_a_follower_is_lost_after_the_takeover_time_if_there_was_one() -> None:
    lease = opened_at(100)
    assert not lease.is_carried(101 * MS, TIMING) and not lease.has_lost_follower(999 * MS, TIMING)
    lease.sent(110 * MS)
    lease.acknowledge(110 * MS, 111 * MS)
    assert lease.is_carried(124 * MS, TIMING) and not lease.is_carried(125 * MS, TIMING)
    assert not lease.has_lost_follower(145 * MS, TIMING) and lease.has_lost_follower(146 * MS, TIMING)
    lease.open(150 * MS)
    assert not lease.has_lost_follower(999 * MS, TIMING), "of another epoch"
