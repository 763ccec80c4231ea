"""Times that fit, clocks that are compared, and files that must not know the world."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.errors import TimingError
from sync.failover.clock import ClockEstimator
from sync.failover.session import SessionGuard
from sync.failover.timing import COARSE_TICK_NS, COARSEST_TICK_NS, Timing, check_timing, smallest_takeover_ns, timing_in_force
from sync.failover.timing import NS_PER_MS as MS
from tests.tree import TREE

SYNC = TREE / "sync"
EDGES = {"transport", "flowcodec", "flowwire", "wire"}  # sockets, numpy, msgpack
FORBIDDEN = {"socket", "time", "os", "zmq", "asyncio", "select", "subprocess", "threading", "random", "secrets", "ctl", "bpf"}


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


def test_the_best_sample_tells_the_offset_within_half_its_round_trip() -> None:
    rng, estimator, offset = random.Random(1), ClockEstimator(), 123_456_789
    for _ in range(100):
        sent = rng.randint(10**9, 10**10)
        there, held, back = rng.randint(50_000, 5 * MS), rng.randint(0, 10 * MS), rng.randint(50_000, 5 * MS)
        peer_sends = sent + there + held - offset
        estimator.heard(5, peer_sends, sent, held, sent + there + held + back)
        best = estimator.best
        assert best and abs(best.offset_ns - offset) <= best.round_trip_ns / 2


def test_nonsense_and_another_boot_give_no_offset() -> None:
    estimator = ClockEstimator()
    for sent, held in ((0, 0), (2_000, 0), (10, 5_000)):
        estimator.heard(5, 10, sent, held, 1_000)
    assert estimator.offset_ns is None
    estimator.heard(5, 10, 900, 0, 1_000)
    assert estimator.offset_ns == 940
    estimator.heard(6, 10, 0, 0, 1_000)
    assert estimator.offset_ns is None


def test_a_session_takes_each_message_once_and_follows_the_present_run() -> None:
    guard = SessionGuard()
    assert guard.accept(5, 1, 0) and not guard.accept(5, 1, 0) and guard.accept(5, 7, 10) and not guard.accept(5, 6, 20)
    assert not guard.accept(6, 1, 0)  # a new run that has not heard us yet looks like an old one
    assert guard.accept(6, 2, 11)
    assert not guard.accept(5, 900, 10)  # a late message of the earlier run
    assert guard.accept(6, 3, 11)
    guard.forget()
    assert guard.accept(8, 1, 0) and not guard.accept(8, 1, 0)


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or ".")
    return names


@pytest.mark.parametrize("path", sorted(SYNC.glob("*.py")), ids=lambda path: path.stem)
def test_what_decides_knows_nothing_of_the_world(path: Path) -> None:
    names = imports(path)
    assert not {name.split(".")[0] for name in names} & {"ctl", "bpf"}
    if path.stem not in EDGES:
        assert not {name.split(".")[0] for name in names} & (FORBIDDEN | {"numpy", "msgpack"})
        assert not {name.removeprefix("sync.") for name in names} & EDGES
