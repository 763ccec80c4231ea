"""Client traffic after a takeover: the addresses are announced until it arrives, a bounded number of times."""

from __future__ import annotations

from itertools import pairwise

from ctl.cluster.after_takeover import FIRST_CHECK_NS, GIVE_UP_NS, AnnounceAgain, Arrival, Arrived, NothingArrived

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
