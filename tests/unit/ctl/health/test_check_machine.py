"""Health checks: which backend is probed when, and the effect of results."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctl.config.changes import change, replace_from_document
from ctl.config.farms_file import to_document
from ctl.config.model import Config
from ctl.health.check_machine import WAITING, HealthChecks, Probe, Transition
from ctl.health.probe_queue import Place, ProbeQueue


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
        probes: tuple[Probe, ...] = ()
        while not probes:  # the first may be outdated
            due = self.checks.next_due_ms()
            assert due is not None
            self.now_ms = max(due, self.now_ms)
            probes = self.checks.due(self.now_ms, 1)
        (probe,) = probes
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


def test_a_backend_of_the_start_is_up_until_its_first_failure() -> None:
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


def test_stopped_farms_and_farms_without_a_check_are_not_probed() -> None:
    config = configured()
    for quiet in (
        change(config, "farm.stop", {"name": "web"}),
        change(config, "farm.set", {"name": "web", "health": {"kind": "none"}}),
        change(config, "farm.delete", {"name": "web"}),
        change(config, "backend.remove", {"farm": "web", "address": "10.0.1.1", "port": 8080}),
    ):
        clock = Clock(config)
        clock.result(False)
        assert clock.checks.down == clock.checks.unusable(config)
        assert clock.checks.unusable(quiet) == frozenset()
        clock.checks.configure(quiet, clock.now_ms)
        assert clock.checks.down == clock.checks.unusable(quiet) == frozenset() and clock.checks.due(10**9, 10) == ()


def test_results_of_an_older_check_are_ignored() -> None:
    config = configured()
    clock = Clock(config)
    (probe,) = clock.checks.due(10_000, 10)
    assert clock.checks.due(10_000, 10) == (), "in flight"
    changed = change(config, "farm.set", {"name": "web", "health": {"port": 9}})
    clock.checks.configure(changed, 10_000)
    assert clock.checks.finish(probe, False, "old", 10_001) is None
    (probe,) = clock.checks.due(10_000, 10)
    assert probe.port == 9, "a changed check is probed at once"
    clock.checks.configure(config, 10_002)
    assert clock.checks.finish(probe, False, "old", 10_003) is None and clock.checks.down == frozenset()
    (probe,) = clock.checks.due(20_000, 10)
    assert clock.checks.finish(probe, True, "", 20_000) is None and clock.checks.down == frozenset()


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


# --- changes of the configuration ------------------------------------------------------------------------------------


def set_health(config: Config, **health: object) -> Config:
    return change(config, "farm.set", {"name": "web", "health": health})


def one_down(number: int = 2) -> tuple[Config, HealthChecks, int]:
    """A farm whose first backend is down and whose others are up, the checks, and the id of the first."""
    config, checks = configured(number), HealthChecks()
    checks.configure(config, 0)
    first = config.farms["web"].backends[0].id
    for probe in checks.due(1000, 99):
        checks.finish(probe, probe.backend_id != first, "refused", 1000)
    assert checks.down == {first}
    return config, checks, first


def renamed(config: Config) -> Config:
    document = to_document(config)
    farms = document["farm"]
    assert isinstance(farms, list)
    farms[0]["name"] = "shop"
    return replace_from_document(config, document)


def moved(config: Config) -> Config:
    config = change(config, "vip.add", {"address": "10.0.0.2/24", "device": "eth0"})
    return change(config, "farm.set", {"name": "web", "vip": "10.0.0.2"})


def with_backend(verb: str, **values: object) -> Callable[[Config], Config]:
    place = {"farm": "web", "address": "10.0.1.1", "port": 8080}
    return lambda config: change(config, f"backend.{verb}", place | values)


CHANGES_OF_A_FARM: list[Callable[[Config], Config]] = [
    lambda config: set_health(config, host="www.example.org"),
    lambda config: set_health(config, path="/up"),
    lambda config: set_health(config, port=81),
    lambda config: set_health(config, status="204"),
    lambda config: set_health(config, kind="http"),
    lambda config: set_health(config, interval_ms=500),
    lambda config: set_health(config, interval_ms=5000, timeout_ms=5000, rise=9, fall=9),
    lambda config: change(config, "farm.set", {"name": "web", "port": 443, "scheduler": "source"}),
    lambda config: change(config, "backend.add", {"farm": "web", "address": "10.0.9.9", "port": 8080}),
    with_backend("set", weight=7),
    with_backend("drain"),
    lambda config: replace_from_document(config, to_document(config)),
    renamed,
    moved,
]


@pytest.mark.parametrize("alter", CHANGES_OF_A_FARM)
def test_no_change_of_a_farm_forgets_that_a_backend_is_down(alter: Callable[[Config], Config]) -> None:
    config, checks, _ = one_down()
    after = alter(config)
    (down,) = (each.id for farm in after.farms.values() for each in farm.backends if each.address == "10.0.1.1")
    assert down in checks.unusable(after), "from the moment at which the change is planned"
    for _ in checks.configure_in_steps(after, 1500):
        assert down in checks.unusable(after), "in the middle of the change"
    assert checks.down == {down} and down in checks.unusable(after) and down in checks.to_remember
    status = checks.status(down)
    assert status is not None and not status.up and status.last_error == "refused"


@pytest.mark.parametrize(
    "quiet",
    [
        lambda config: change(config, "farm.stop", {"name": "web"}),
        lambda config: change(config, "farm.set", {"name": "web", "enabled": False}),
        lambda config: set_health(config, kind="none"),
    ],
)
def test_a_pause_of_the_checks_keeps_what_is_known(quiet: Callable[[Config], Config]) -> None:
    config, checks, first = one_down()
    checks.configure(quiet(config), 2000)
    assert checks.down == frozenset()
    assert (first in checks.to_remember) is not quiet(config).farms["web"].enabled or first not in checks.to_remember
    assert checks.unusable(config) == {first}
    checks.configure(config, 500_000)
    assert checks.down == checks.unusable(config) == {first}
    probes = {probe.backend_id: probe for probe in checks.due(500_000, 9)}
    assert len(probes) == 2, "all are probed at once"
    turned = checks.finish(probes[first], True, "", 500_001)
    assert turned is not None and turned.up and checks.down == frozenset(), "the first result decides"


def test_a_farm_that_is_stopped_during_a_restart_starts_with_what_was_known() -> None:
    config, checks, first = one_down()
    stopped = change(config, "farm.stop", {"name": "web"})
    checks.configure(stopped, 2000)
    checks = HealthChecks(checks.to_remember)
    checks.configure(stopped, 0)
    assert checks.unusable(config) == {first}


def test_a_changed_check_is_probed_at_once_and_its_first_result_decides() -> None:
    config, checks, first = one_down()
    checks.configure(set_health(config, port=81), 1001)
    probes = checks.due(1001, 9)
    assert {probe.port for probe in probes} == {81} and len(probes) == 2
    turned = [checks.finish(probe, probe.backend_id == first, "no", 1002) for probe in probes]
    assert [each and each.up for each in turned] == [True, False] or [each and each.up for each in turned] == [False, True]


def test_a_new_backend_waits_beside_others_for_its_first_success() -> None:
    config, checks, first = one_down()
    wider = change(config, "backend.add", {"farm": "web", "address": "10.0.9.9", "port": 8080})
    new = wider.farms["web"].backends[-1].id
    assert checks.unusable(wider) == {first, new}
    checks.configure(wider, 1500)
    assert checks.unusable(wider) == {first, new} and checks.down == {first} and new in checks.to_remember
    status = checks.status(new)
    assert status is not None and not status.up and status.last_error == WAITING
    (probe,) = (each for each in checks.due(1500, 9) if each.backend_id == new)  # at once
    turned = checks.finish(probe, True, "", 1501)
    assert turned is not None and turned.up and turned.reason == "its first check succeeded"
    assert checks.unusable(wider) == {first} and checks.status(new) is not None


def test_a_new_backend_that_fails_its_first_check_is_down() -> None:
    config, checks, first = one_down()
    wider = change(config, "backend.add", {"farm": "web", "address": "10.0.9.9", "port": 8080})
    checks.configure(wider, 1500)
    (probe,) = (each for each in checks.due(1500, 9) if each.address == "10.0.9.9")
    turned = checks.finish(probe, False, "refused", 1501)
    assert turned is not None and not turned.up and checks.down == {first, probe.backend_id}


def test_new_backends_of_a_farm_without_any_other_take_connections_at_once() -> None:
    checks = HealthChecks()
    checks.configure(configured(0), 0)
    config = configured(3)
    assert checks.unusable(config) == frozenset()
    checks.configure(config, 10)
    assert checks.unusable(config) == frozenset()
    probes = checks.due(10, 9)
    assert len(probes) == 3
    checks.finish(probes[0], False, "refused", 11)
    assert checks.unusable(config) == {probes[0].backend_id}, "two are left to try"
    checks.finish(probes[1], True, "", 12)
    assert checks.unusable(config) == {probes[0].backend_id, probes[2].backend_id}, "one is known to work: the third waits"
    checks.finish(probes[2], True, "", 13)
    assert checks.unusable(config) == {probes[0].backend_id}


@pytest.mark.parametrize("alter", [with_backend("drain"), with_backend("set", weight=0)])
def test_a_backend_that_takes_no_connections_makes_no_new_one_wait(alter: Callable[[Config], Config]) -> None:
    config, checks = alter(configured()), HealthChecks()
    checks.configure(config, 0)
    wider = change(config, "backend.add", {"farm": "web", "address": "10.0.9.9", "port": 8080})
    checks.configure(wider, 1)
    assert checks.unusable(wider) == frozenset()


def test_the_last_healthy_backend_goes_down_and_the_new_one_is_tried() -> None:
    config, checks = configured(), HealthChecks()
    checks.configure(config, 0)
    wider = change(config, "backend.add", {"farm": "web", "address": "10.0.9.9", "port": 8080})
    checks.configure(wider, 1)
    old, new = (each.id for each in wider.farms["web"].backends)
    assert checks.unusable(wider) == {new}
    probes = {probe.backend_id: probe for probe in checks.due(1000, 9)}
    checks.finish(probes[old], False, "refused", 1000)
    assert checks.unusable(wider) == {old}


def test_enabling_a_check_leaves_the_backends_in_service_until_their_first_failure() -> None:
    checks, plain = HealthChecks(), configured(2, kind="none")
    checks.configure(configured(0), 0)
    checks.configure(plain, 1)
    checked = set_health(plain, kind="tcp")
    checks.configure(checked, 2)
    assert checks.unusable(checked) == frozenset()
    probes = checks.due(2, 9)
    assert checks.finish(probes[0], True, "", 3) is None and checks.unusable(checked) == frozenset()
    turned = checks.finish(probes[1], False, "refused", 3)
    assert turned is not None and checks.down == {probes[1].backend_id}


def test_an_id_that_another_server_had_carries_nothing_over() -> None:
    config, checks, first = one_down()
    web = config.farms["web"]
    backends = (replace(web.backends[0], address="10.0.9.9"), web.backends[1])
    other = replace(config, farms=MappingProxyType({"web": replace(web, backends=backends)}))
    checks.configure(other, 1500)
    assert checks.down == frozenset() and checks.unusable(other) == {first}, "new, and waits"
    swapped = replace(config, farms=MappingProxyType({"shop": replace(web, id=9, name="shop", backends=backends)}))
    checks.configure(swapped, 1600)
    assert first in {probe.backend_id for probe in checks.due(5000, 9)}


# --- fairness --------------------------------------------------------------------------------------------------------


def two_farms(silent: int) -> Config:
    config = configured(silent, interval_ms=3000, timeout_ms=3000)
    check = {"kind": "tcp", "interval_ms": 1000, "timeout_ms": 1000, "fall": 2}
    config = change(config, "farm.add", {"name": "other", "vip": "10.0.0.1", "port": 81, "health": check})
    for last in (1, 2, 3):
        config = change(config, "backend.add", {"farm": "other", "address": f"10.1.0.{last}", "port": 8080})
    return config


def detection_ms(config: Config, slots: int, web_takes_ms: int) -> int:
    """Simulated ms until a failure of farm "other" is found, while every probe of "web" takes this time."""
    checks = HealthChecks(max_probes=slots)
    checks.configure(config, 0)
    ends: list[tuple[int, Probe]] = []
    most = 0
    for now in range(0, 15_000, 20):
        ended, ends = [each for each in ends if each[0] <= now], [each for each in ends if each[0] > now]
        for _, probe in ended:
            dead = probe.address == "10.1.0.2" and now > 5000
            turned = checks.finish(probe, probe.farm == "other" and not dead, "no answer", now)
            if turned is not None and turned.farm == "other":
                return now - 5000
        for probe in checks.due(now, 16):
            ends.append((now + (web_takes_ms if probe.farm == "web" else 10), probe))
        most = max(most, len(ends))
        assert most <= slots
    raise AssertionError("not found")


def test_silent_backends_of_one_farm_do_not_delay_another_farm() -> None:
    alone = detection_ms(two_farms(600), slots=100, web_takes_ms=10)
    assert detection_ms(two_farms(600), slots=100, web_takes_ms=3000) <= alone + 40 <= 2200


CHANGES_OF_A_CHECK: list[dict[str, object]] = [
    {"kind": "http"},
    {"kind": "https"},
    {"kind": "icmp"},
    {"kind": "udp"},
    {"kind": "grpc"},
    {"kind": "dns", "query": "a"},
    {"kind": "command", "command": ["/bin/true"]},
    {"port": 9},
    {"address": "10.9.9.9"},
    {"host": "a"},
]


@pytest.mark.parametrize("new", CHANGES_OF_A_CHECK)
def test_any_other_check_is_probed_at_once_and_a_dead_backend_stays_down(new: dict[str, object]) -> None:
    clock = Clock(configured())
    assert clock.results("---") == "D.."
    config = change(configured(), "farm.set", {"name": "web", "health": new})
    clock.checks.configure(config, clock.now_ms)
    (number,) = clock.checks.down
    assert clock.checks.unusable(config) == {number}
    (probe,) = clock.checks.due(clock.now_ms, 9)
    assert (probe.address, probe.port) == (new.get("address", "10.0.1.1"), new.get("port", 8080))
    assert clock.checks.finish(probe, False, "refused", clock.now_ms) is None
    assert clock.checks.down == {number}
    assert clock.result(True) is None, "the first result has decided"
    assert clock.result(True) is not None and not clock.checks.down


@pytest.mark.parametrize(("mode", "vip"), [("dsr", "10.0.0.1"), ("ipip", "10.0.0.1")])
def test_a_check_via_the_vip(mode: str, vip: str) -> None:
    config = change(
        configured(), "farm.add", {"name": "direct", "vip": vip, "port": 8080, "mode": mode, "health": {"via": "vip"}}
    )
    config = change(config, "backend.add", {"farm": "direct", "address": "10.2.0.1", "port": 8080})
    checks = HealthChecks()
    checks.configure(config, 0)
    probes = {probe.farm: (probe.vip, probe.is_tunnel) for probe in checks.due(60_000, 9)}
    assert probes == {"web": ("", False), "direct": (vip, mode == "ipip")}


CHANGES_WITHIN: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"kind": "https"}, {"text": "well"}),
    ({"kind": "https"}, {"verify": True}),
    ({"kind": "https"}, {"sni": "a"}),
    ({"kind": "udp"}, {"payload": "a"}),
    ({"kind": "udp"}, {"answer": "a"}),
    ({"kind": "dns", "query": "a"}, {"query": "b"}),
    ({"kind": "dns", "query": "a"}, {"rcode": "REFUSED"}),
    ({"kind": "dns", "query": "a"}, {"query_type": "NS"}),
    ({"kind": "grpc"}, {"service": "a"}),
    ({"kind": "command", "command": ["/a"]}, {"command": ["/b"]}),
]


@pytest.mark.parametrize(("old", "new"), CHANGES_WITHIN)
def test_any_setting_of_a_check_has_it_probed_at_once_and_timing_does_not(
    old: dict[str, object], new: dict[str, object]
) -> None:
    config = configured(1, **old)
    clock = Clock(config)
    assert clock.result(True) is None
    timing = {"interval_ms": 1500, "interval_down_ms": 5000, "timeout_ms": 400, "rise": 9, "fall": 9}
    config = change(config, "farm.set", {"name": "web", "health": timing})
    clock.checks.configure(config, clock.now_ms)
    assert clock.checks.due(clock.now_ms, 9) == ()
    clock.checks.configure(change(config, "farm.set", {"name": "web", "health": new}), clock.now_ms)
    assert len(clock.checks.due(clock.now_ms, 9)) == 1


def test_a_dead_backend_is_probed_at_the_slow_interval() -> None:
    """Until its first success; a shorter interval applies at once."""
    clock = Clock(configured(interval_down_ms=7000))
    times = []
    for ok in (True, True, False, False, False, False, False, False, True, True, True):
        clock.result(ok)
        times.append(clock.now_ms)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[:4] == [1000] * 4
    assert gaps[5:8] == [7000] * 3, "down"
    assert gaps[8] <= 1000 == gaps[9], "recovers"
    assert clock.results("---") == "..D"
    clock.result(False)
    assert (clock.checks.next_due_ms() or 0) == clock.now_ms + 7000
    clock.checks.configure(configured(interval_down_ms=1000), clock.now_ms)
    clock.checks._queue.forget_unwanted(clock.checks._is_wanted)
    assert (clock.checks.next_due_ms() or 0) <= clock.now_ms + 1000


def test_commands_have_places_of_their_own() -> None:
    """Hanging commands delay neither other checks nor, taking half of the places, another farm's commands."""
    command = {"kind": "command", "command": ["/bin/sleep", "9"]}
    config = configured(40, **command)
    for port, check in ((81, command), (82, {"kind": "tcp"})):
        name = f"farm{port}"
        config = change(config, "farm.add", {"name": name, "vip": "10.0.0.1", "port": port, "health": check})
        config = change(config, "backend.add", {"farm": name, "address": "10.1.0.1", "port": 80})
    checks = HealthChecks(max_probes=2, max_commands=8)
    checks.configure(config, 0)
    probes = checks.due(60_000, 99)
    assert Counter(probe.farm for probe in probes) == {"web": 4, "farm81": 1, "farm82": 1}
    for probe in probes:
        checks.finish(probe, True, "", 60_000)
    assert len(checks.due(60_000, 99)) == 4


def test_farms_take_turns_and_the_slots_are_bounded() -> None:
    queue = ProbeQueue(8)
    for number in range(20):
        queue.put(Place("a", number, 0), 0)
    queue.put(Place("b", 100, 0), 5)
    assert [place.farm for place in queue.take(0, 99, lambda *_: True)] == ["a"] * 4, "as many as remain free"
    assert queue.next_due_ms() == 5
    queue.put(Place("b", 101, 0), 5)
    queue.put(Place("c", 200, 0), 6)
    assert [place.farm for place in queue.take(6, 3, lambda *_: True)] == ["b", "c", "b"], "one after the other"
    for farm in "bc":
        queue.ended(farm, 6)
    assert queue.next_due_ms() is None
    queue.ended("a", 7)
    assert queue.next_due_ms() == 7
    assert [place.farm for place in queue.take(7, 99, lambda *_: True)] == ["a"]
    assert queue.next_due_ms() is None and queue.take(10**6, 99, lambda *_: True) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pte"), st.sampled_from("abc"), st.integers(0, 300)), max_size=80), st.integers(1, 6))
def test_every_probe_in_the_queue_gets_its_turn(steps: list[tuple[str, str, int]], slots: int) -> None:
    queue, now, number, flying, waiting = ProbeQueue(slots), 0, 0, list[str](), set[int]()

    def take() -> None:
        for place in queue.take(now, 2, lambda *_: True):
            flying.append(place.farm)
            waiting.remove(place.backend_id)
        assert len(flying) <= slots and len(queue) == len(waiting)

    for step, farm, pause in steps:
        now += pause
        if step == "p":
            queue.put(Place(farm, number, 0), now + pause)
            waiting.add(number)
            number += 1
        elif step == "t":
            take()
        elif flying:
            queue.ended(flying.pop(pause % len(flying)), now)
        if pause == 300:
            queue.forget_unwanted(lambda *_: True)
    now += 1000
    for _ in range(4 * number + 4):
        take()
        if flying:
            queue.ended(flying.pop(0), now)
    assert not waiting and not flying and queue.next_due_ms() is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 700)), max_size=60))
def test_the_schedule_stays_bounded_and_down_follows_results(steps: list[tuple[int, bool, int]]) -> None:
    """In every history each checked backend is either scheduled once or in flight once."""
    configs = [configured(0), configured(1), configured(3), configured(3, kind="command", command=["/a"])]
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
        queues = [each for of in (checks._queue, checks._commands) for queue in of._queues.values() for each in queue]
        waiting = Counter(number for _, number, serial in queues if (e := checks._checked.get(number)) and e.serial == serial)
        assert set(waiting.values()) <= {1} and not current & set(waiting)
        assert current | set(waiting) == set(checks._checked)
        assert checks.down <= set(checks._checked) and len(queues) <= 2000
