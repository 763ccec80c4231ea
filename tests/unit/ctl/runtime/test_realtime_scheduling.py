"""When a busy real-time process yields the processors, and that this applies to all of its threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from ctl.runtime import realtime_scheduling

LATE_S = 0.0001  # how late a timer fires


class Clock:
    """A clock that advances only while the loop sleeps; the process uses `share` of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
        self.now_s, self.share = 10.001, share
        self.held: list[tuple[float, float]] = []
        monkeypatch.setattr("ctl.runtime.realtime_scheduling.time.monotonic", lambda: self.now_s)
        monkeypatch.setattr("ctl.runtime.realtime_scheduling.time.process_time", lambda: self.now_s * self.share)
        monkeypatch.setattr("ctl.runtime.realtime_scheduling.asyncio.sleep", self.sleep)
        monkeypatch.setattr(
            "ctl.runtime.realtime_scheduling.hold_interpreter", lambda seconds: self.held.append((self.now_s, seconds))
        )

    async def sleep(self, seconds: float) -> None:
        if self.now_s > 10.1:
            raise asyncio.CancelledError
        self.now_s += seconds + LATE_S

    def run(self) -> list[tuple[float, float]]:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(realtime_scheduling.rest_when_busy())
        return self.held


def test_a_busy_process_rests_at_the_beginning_of_each_period(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Clock(monkeypatch, share=1.0).run()
    assert [at_s for at_s, _ in held] == pytest.approx([10.0201, 10.0401, 10.0601, 10.0801, 10.1001])
    assert [seconds for _, seconds in held] == pytest.approx([realtime_scheduling.REST_S - LATE_S] * 5)


def test_a_process_that_leaves_enough_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Clock(monkeypatch, share=0.8 * realtime_scheduling.BUSY_SHARE).run() == []


def test_the_rests_exceed_what_the_kernel_throttles() -> None:
    assert realtime_scheduling.REST_S / realtime_scheduling.PERIOD_S > 0.05


def test_no_other_thread_runs_python_during_a_rest() -> None:
    turns, stopped = [0], threading.Event()

    def work() -> None:
        while not stopped.is_set():
            turns[0] += 1

    def turns_during(wait: Callable[[float], object]) -> int:
        before = turns[0]
        wait(0.3)
        return turns[0] - before

    worker = threading.Thread(target=work)
    worker.start()
    try:
        free = turns_during(threading.Event().wait)
        held = turns_during(realtime_scheduling.hold_interpreter)
    finally:
        stopped.set()
        worker.join()
    assert held < free / 4, "it runs until it is asked for the lock, 5 ms, and no longer"
    realtime_scheduling.hold_interpreter(-1)  # too late for this period: nothing


def test_every_worker_runs_before_it_is_needed() -> None:
    with realtime_scheduling.worker_threads(3, "xlb-test"):
        assert sum(thread.name.startswith("xlb-test") for thread in threading.enumerate()) == 3
