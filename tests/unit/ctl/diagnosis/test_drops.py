"""Drops are judged by what the last minute brought, not by totals."""

from __future__ import annotations

from ctl.diagnosis.drops import INTERVAL_S, WINDOW_S, RecentCounters, examine
from ctl.diagnosis.finding import Severity


def test_old_drops_are_no_finding() -> None:
    recent = RecentCounters()
    for step in range(100):
        recent.note(step * INTERVAL_S, {"drop_no_route": min(step, 10) * 1000})
    seconds, packets = recent.since(500.0, {"drop_no_route": 10_000})
    assert (seconds <= WINDOW_S + INTERVAL_S, packets) == (True, {"drop_no_route": 0})
    assert [each.status for each in examine(seconds, packets)] == [Severity.OK]


def test_recent_drops_are_shown_with_their_rate() -> None:
    recent = RecentCounters()
    recent.note(0.0, {"drop_no_route": 5000})
    (found,) = examine(*recent.since(30.0, {"drop_no_route": 5060}))
    assert (found.name, found.status) == ("drop_no_route", Severity.FAIL)
    assert found.message.startswith("60 packets in the last 30 s (2/s): ") and found.remedy


def test_new_counters_are_no_drops() -> None:
    """An upgrade replaces the counters by empty ones."""
    recent = RecentCounters()
    recent.note(0.0, {"drop_no_route": 5000})
    assert dict(recent.since(3.0, {"drop_no_route": 2})[1]) == {"drop_no_route": 2}
    recent.note(5.0, {"drop_no_route": 2})
    assert dict(recent.since(6.0, {"drop_no_route": 2})[1]) == {"drop_no_route": 0}


def test_without_a_reading_nothing_is_known() -> None:
    assert dict(RecentCounters().since(3.0, {"drop_no_route": 2})[1]) == {"drop_no_route": 0}
