"""Which times are consistent, and which are in force when the nodes differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.errors import TimingError
from sync.failover.timing import COARSE_TICK_NS, COARSEST_TICK_NS, Timing, check_timing, smallest_takeover_ns, timing_in_force
from sync.failover.timing import NS_PER_MS as MS


@pytest.mark.parametrize("times", [(10, 30, 36), (100, 300, 350), (20, 60, 72)])
def test_the_advertised_times_fit(times: tuple[int, int, int]) -> None:
    check_timing(Timing.from_ms(*times))


@pytest.mark.parametrize(
    ("times", "key", "text"),
    [
        ((10, 30, 30), "takeover_ms", "must be at least 35"),
        ((100, 300, 300), "takeover_ms", "both nodes could answer at once"),
        ((10, 20, 60), "lease_ms", "less than two and a half heartbeats"),
        ((1, 30, 60), "heartbeat_ms", "not between 5 and 10000"),
    ],
)
def test_times_that_do_not_fit_are_named(times: tuple[int, int, int], key: str, text: str) -> None:
    with pytest.raises(TimingError, match=text) as caught:
        check_timing(Timing.from_ms(*times))
    assert caught.value.key == f"cluster.{key}"


def test_a_slower_kernel_clock_needs_more() -> None:
    with pytest.raises(TimingError, match="clock step of 10 ms"):
        check_timing(Timing.from_ms(10, 30, 36), tick_ns=10 * MS)


@given(st.integers(1, 10**11), st.integers(0, 10**7), st.integers(0, 2000), st.integers(-2000, 2000), st.integers(-2000, 2000))
def test_the_least_takeover_keeps_leases_apart_whatever_the_clocks_do(
    lease: int, tick: int, drift: int, a: int, b: int
) -> None:
    """In real time the lease ends before the takeover, for clocks wrong by up to the bound."""
    takeover = smallest_takeover_ns(lease, tick, drift)
    slow, fast = max(-drift, min(drift, a)), max(-drift, min(drift, b))
    assert (lease + tick) * (10**6 + slow) <= takeover * (10**6 + fast)


def test_equal_times_are_in_force_as_they_are() -> None:
    timing = Timing.from_ms(10, 30, 36)
    assert timing_in_force(timing, 30 * MS, 30 * MS) == timing


valid_times = st.integers(5, 2000).flatmap(
    lambda heartbeat: st.integers(5 * heartbeat // 2 + 1, 20_000).map(
        lambda lease: Timing(heartbeat * MS, lease * MS, smallest_takeover_ns(lease * MS) + MS)
    )
)


@given(valid_times, valid_times, valid_times)
def test_whatever_is_in_force_fits_together_and_is_longer_than_the_peers_lease(own: Timing, old: Timing, peer: Timing) -> None:
    used = timing_in_force(own, min(own.lease_ns, old.lease_ns), peer.lease_ns)
    check_timing(used)
    tick_ns = COARSEST_TICK_NS if peer.lease_ns != own.lease_ns else COARSE_TICK_NS
    assert used.takeover_ns >= max(own.takeover_ns, smallest_takeover_ns(peer.lease_ns, tick_ns))
    assert used.start_wait_ns >= 3 * used.takeover_ns - 3 and used.lease_ns <= own.lease_ns
