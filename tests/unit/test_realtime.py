"""When a real-time worker leaves the processor to others."""

from __future__ import annotations

import pytest

from ctl import realtime


@pytest.mark.parametrize(
    ("granted", "now_s", "slept_s"),
    [
        (True, 10.001, realtime.REST_S - 0.001),
        (True, 10 + realtime.PERIOD_S - 0.001, None),
        (True, 10 + realtime.REST_S, None),
        (False, 10.001, None),
    ],
)
def test_workers_rest_at_the_beginning_of_each_period_together(
    monkeypatch: pytest.MonkeyPatch, granted: bool, now_s: float, slept_s: float | None
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(realtime, "_granted", granted)
    monkeypatch.setattr("ctl.realtime.time.monotonic", lambda: now_s)
    monkeypatch.setattr("ctl.realtime.time.sleep", slept.append)
    realtime.rest()
    assert slept == ([] if slept_s is None else [pytest.approx(slept_s)])


def test_the_rests_leave_more_than_the_kernel_would_take() -> None:
    assert realtime.REST_S / realtime.PERIOD_S > 0.05
