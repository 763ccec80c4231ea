"""Health checks: which backend is probed when, and the effect of results."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ctl.config.changes import change
from ctl.config.model import Config
from ctl.health.check_machine import HealthChecks, Probe, Transition


def configured(number: int = 1, **health: object) -> Config:
    config = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    settings_of_check = {"kind": "tcp", "interval_ms": 1000, "timeout_ms": 500, "rise": 2, "fall": 3} | health
    config = change(config, "farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80, "health": settings_of_check})
    for each in range(number):
        config = change(
            config, "backend.add", {"farm": "web", "address": f"10.0.{1 + each // 250}.{1 + each % 250}", "port": 8080}
        )
    return config


class Clock:
    """One backend's check, driven result by result."""

    def __init__(self, config: Config, checks: HealthChecks | None = None) -> None:
        self.checks = checks or HealthChecks()
        self.now_ms = 0
        self.checks.configure(config, 0)

    def result(self, ok: bool, error: str = "refused") -> Transition | None:
        due = self.checks.next_due_ms()
        assert due is not None
        self.now_ms = max(due, self.now_ms)
        (probe,) = self.checks.due(self.now_ms, 1)
        return self.checks.finish(probe, ok, "" if ok else error, self.now_ms)

    def results(self, text: str) -> str:
        """ "+" and "-" in; "U" or "D" where that changed the backend's state, "." elsewhere."""
        turned = []
        for each in text:
            transition = self.result(each == "+")
            turned.append("." if transition is None else "U" if transition.up else "D")
        return "".join(turned)


def test_rise_and_fall() -> None:
    clock = Clock(configured())
    assert clock.results("+--+---") == "......D"
    assert clock.results("+-+-++") == ".....U"
    assert clock.results("--+--+") == "......"


def test_a_new_backend_is_up_until_its_first_failure() -> None:
    clock = Clock(configured())
    (number,) = (backend.id for backend in configured().farms["web"].backends)
    assert clock.checks.down == frozenset()
    transition = clock.result(False, "connection refused")
    assert transition == Transition(number, "web", "10.0.1.1", 8080, False, "connection refused")
    assert clock.checks.down == {number}
    transition = (clock.result(True), clock.result(True))[1]
    assert transition is not None and transition.up and transition.reason == "2 successes in a row"


def test_a_backend_that_was_down_before_a_restart_starts_down() -> None:
    (number,) = (backend.id for backend in configured().farms["web"].backends)
    clock = Clock(configured(), HealthChecks({number, 999}))
    assert clock.checks.down == {number}
    assert clock.results("-++") == "..U"


def test_status_gives_the_state_and_its_time() -> None:
    config = configured()
    number = config.farms["web"].backends[0].id
    clock = Clock(config)
    status = clock.checks.status(number)
    assert status is not None and status.up and (status.last_error, status.changed_ms, status.checked_ms) == ("", None, None)
    clock.result(False, "x" * 500)
    failed_ms = clock.now_ms
    clock.result(True)
    status = clock.checks.status(number)
    assert status is not None and not status.up
    assert (status.last_error, status.last_error_ms, status.changed_ms) == ("x" * 200, failed_ms, failed_ms)
    assert status.checked_ms == clock.now_ms > failed_ms
    assert clock.checks.status(12345) is None


def test_farms_without_health_checks_do_not_count() -> None:
    config = configured()
    clock = Clock(config)
    clock.result(False)
    for quiet in (
        change(config, "farm.stop", {"name": "web"}),
        change(config, "farm.set", {"name": "web", "health": {"kind": "none"}}),
        change(config, "farm.delete", {"name": "web"}),
        change(config, "backend.remove", {"farm": "web", "address": "10.0.1.1", "port": 8080}),
    ):
        clock.checks.configure(config, clock.now_ms)
        clock.result(False)
        assert clock.checks.down
        clock.checks.configure(quiet, clock.now_ms)
        assert clock.checks.down == frozenset() and clock.checks.due(10**9, 10) == ()


def test_results_of_an_older_check_are_ignored() -> None:
    config = configured()
    clock = Clock(config)
    (probe,) = clock.checks.due(10_000, 10)
    assert clock.checks.due(10_000, 10) == (), "in flight"
    changed = change(config, "farm.set", {"name": "web", "health": {"port": 9}})
    clock.checks.configure(changed, 10_000)
    assert clock.checks.finish(probe, False, "old", 10_001) is None
    old = probe
    (probe,) = clock.checks.due(20_000, 10)
    assert probe.port == 9
    assert clock.checks.finish(old, False, "old", 20_000) is None and clock.checks.down == frozenset()
    assert clock.checks.finish(probe, True, "", 20_000) is None
    assert clock.checks.finish(probe, False, "twice", 20_000) is None and clock.checks.down == frozenset()


def test_other_thresholds_keep_the_state() -> None:
    config = configured()
    clock = Clock(config)
    clock.results("-")
    slower = change(config, "farm.set", {"name": "web", "health": {"rise": 1}})
    clock.checks.configure(slower, clock.now_ms)
    assert clock.checks.down and clock.results("+") == "U"


def test_a_shorter_interval_applies_immediately() -> None:
    config = configured(interval_ms=600_000)
    clock = Clock(config)
    clock.result(True)
    clock.checks.configure(change(config, "farm.set", {"name": "web", "health": {"interval_ms": 1000}}), clock.now_ms)
    due = [clock.checks.due(clock.now_ms + step, 10) for step in (0, 1000)]
    assert len(due[1]) == 1


def test_checks_are_spread_over_the_interval_and_stay_so() -> None:
    clock = Clock(configured(number=500))
    for round_ in range(3):
        started = Counter[int]()
        for now in range(round_ * 1000, (round_ + 1) * 1000, 10):
            for probe in clock.checks.due(now, 1000):
                clock.checks.finish(probe, True, "", now)
                started[now // 100] += 1
        assert set(started.values()) <= set(range(30, 72)), f"{started}"
    assert sum(started.values()) == 500


def test_slow_answers_do_not_shift_the_schedule() -> None:
    clock = Clock(configured())
    clock.result(True)
    for _ in range(5):
        due = clock.checks.next_due_ms()
        assert due is not None
        (probe,) = clock.checks.due(due, 1)
        clock.checks.finish(probe, True, "", due + 300)
        assert clock.checks.next_due_ms() == due + 1000


def test_checks_beyond_the_limit_are_postponed() -> None:
    clock = Clock(configured(number=5))
    assert len(clock.checks.due(5000, 3)) == 3 and len(clock.checks.due(5000, 3)) == 2


def test_checks_missed_in_a_long_pause_are_skipped() -> None:
    clock = Clock(configured())
    clock.result(True)
    clock.now_ms = 1_000_000
    clock.result(True)
    due = clock.checks.next_due_ms()
    assert due is not None and 1_000_000 < due <= 1_001_000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 700)), max_size=60))
def test_the_schedule_stays_bounded_and_down_follows_results(steps: list[tuple[int, bool, int]]) -> None:
    """In every history each checked backend is either scheduled once or in flight once."""
    configs = [configured(0), configured(1), configured(3), configured(3, interval_ms=700)]
    checks, now, flying = HealthChecks(), 0, list[Probe]()
    for kind, ok, pause in steps:
        now += pause
        if kind == 0:
            checks.configure(configs[pause % 4], now)
        elif kind == 1 and flying:
            checks.finish(flying.pop(), ok, "no", now)
        else:
            flying += checks.due(now, 2)
        current = {
            probe.backend_id for probe in flying if (e := checks._checked.get(probe.backend_id)) and e.serial == probe.serial
        }
        waiting = Counter(
            number for _, number, serial in checks._heap if (e := checks._checked.get(number)) and e.serial == serial
        )
        assert set(waiting.values()) <= {1} and not current & set(waiting)
        assert current | set(waiting) == set(checks._checked)
        assert checks.down <= set(checks._checked) and len(checks._heap) <= 2000
