"""Client traffic after a takeover: the addresses are announced until it arrives, a bounded number of times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from ctl.cluster.after_takeover import FIRST_CHECK_NS, GIVE_UP_NS, AnnounceAgain, Arrival, Arrived, NothingArrived
from ctl.dataplane.kernel import sweeper as kernel_sweeper
from tests.fakes.pair import paired_sites
from tests.wait import wait_until

SINCE_NS = 7_000_000_000


def test_immediate_client_traffic_stops_announcements() -> None:
    arrival = Arrival(SINCE_NS, 100)
    assert arrival.check_at_ns == SINCE_NS + FIRST_CHECK_NS
    assert arrival.check(SINCE_NS + FIRST_CHECK_NS, 103, expected=True) == Arrived(3, FIRST_CHECK_NS, 0)
    assert arrival.check_at_ns is None


def test_missing_client_traffic_repeats_announcements_with_backoff() -> None:
    arrival, at = Arrival(SINCE_NS, 100), list[int]()
    while len(at) < 5:
        assert arrival.check_at_ns is not None
        at.append(arrival.check_at_ns)
        assert arrival.check(arrival.check_at_ns, 100, expected=True) == AnnounceAgain()
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps == [2 * FIRST_CHECK_NS * 2**number for number in range(4)]
    assert arrival.check_at_ns is not None
    verdict = arrival.check(arrival.check_at_ns, 101, expected=True)
    assert verdict == Arrived(1, arrival_after(verdict), 5)


def arrival_after(verdict: object) -> int:
    assert isinstance(verdict, Arrived)
    return verdict.after_ns


def test_it_gives_up_and_reports_whether_traffic_was_expected() -> None:
    for expected in (True, False):
        arrival, checks = Arrival(SINCE_NS, 100), 0
        while True:
            assert arrival.check_at_ns is not None
            now_ns = arrival.check_at_ns
            verdict = arrival.check(now_ns, 100, expected)
            checks += 1
            assert checks < 50
            if verdict != AnnounceAgain():
                break
        assert verdict == NothingArrived(now_ns - SINCE_NS, checks - 1, expected)
        assert GIVE_UP_NS <= now_ns - SINCE_NS < GIVE_UP_NS + 2 * FIRST_CHECK_NS
        assert arrival.check_at_ns is None


def test_a_node_that_becomes_active_sweeps_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain's deadline and a failed backend end flows there that the former active node did not end any more."""
    with paired_sites(tmp_path) as (one, two):
        sweeper = two.daemon.node.parts.local.sweeper
        monkeypatch.setattr(kernel_sweeper, "MIN_PAUSE_S", 3600.0)
        monkeypatch.setattr(kernel_sweeper, "MAX_PAUSE_S", 3600.0)
        before = sweeper.sweeps
        two.daemon.on_loop(sweeper.soon)
        wait_until(lambda: sweeper.sweeps > before, "the last sweep before a long pause")
        before = sweeper.sweeps
        one.call("cluster.switchover")
        wait_until(lambda: two.status["role"] == "active" and sweeper.sweeps > before, "a sweep of the active node", 5)
