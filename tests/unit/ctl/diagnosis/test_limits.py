"""What doctor says of limits and prefix lists: each finding names the thing, the cause and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from ctl.config.changes import change
from ctl.config.model import Config
from ctl.config.prefixes import packed, parse_texts
from ctl.diagnosis.finding import Finding, Severity
from ctl.diagnosis.limits import Lists, examine, examine_drops, examine_lists

FARM = {"name": "web", "vip": "10.77.0.100", "port": 80, "health": {"kind": "none"}}


def configured(prefixes: dict[str, list[str]] | None = None, backends: tuple[int, ...] = (), **farm: Any) -> Config:
    config = change(Config(), "vip.add", {"address": "10.77.0.100/24", "device": "eth0"})
    config = change(config, "vip.add", {"address": "fd77::100/64", "device": "eth0"})
    for name, texts in (prefixes or {}).items():
        config = change(config, "prefixes.set", {"name": name, **packed(parse_texts(name, texts, name))})
    config = change(config, "farm.add", {**FARM, **farm})
    for number, most in enumerate(backends):
        config = change(config, "backend.add", {"farm": "web", "address": f"10.77.0.{11 + number}", "max_connections": most})
    return config


def ids(config: Config) -> list[int]:
    return [backend.id for backend in config.farms["web"].backends]


def names(findings: list[Finding]) -> list[tuple[str, Severity]]:
    return [(each.name, each.status) for each in findings]


@pytest.mark.parametrize(
    ("now", "status", "text"),
    [
        (89, Severity.OK, "90%"),
        (90, Severity.WARN, "near its limit"),
        (100, Severity.FAIL, "refused"),
        (101, Severity.FAIL, ""),
    ],
)
def test_a_farm_at_its_limit(now: int, status: Severity, text: str) -> None:
    config = configured(max_connections=100)
    (finding,) = examine(config, {config.farms["web"].id: now}, {}, {})
    assert finding.status is status and text in finding.message
    assert (finding.name == "farm web limit" and "farm set web --max-connections" in finding.remedy) or status is Severity.OK


def test_full_backends() -> None:
    config = configured(backends=(5, 5, 0))
    first, second, third = ids(config)
    everybody = {"web": {first, second, third}}
    assert names(list(examine(config, {}, {first: 4, second: 4}, everybody))) == [("connection limits", Severity.OK)]
    (some,) = examine(config, {}, {first: 5}, everybody)
    assert some.status is Severity.WARN and "10.77.0.11:80 5 of 5" in some.message
    assert "xlbctl backend set web 10.77.0.11:80" in some.remedy
    (every,) = examine(config, {}, {first: 5, second: 6}, {"web": {first, second}})
    assert every.status is Severity.FAIL and "every backend" in every.message
    assert names(list(examine(config, {}, {first: 5}, {"web": {third}}))) == [("connection limits", Severity.OK)], "it drains"


def test_nothing_is_said_without_limits_or_of_a_stopped_farm() -> None:
    assert list(examine(configured(backends=(0,)), {}, {}, {})) == []
    stopped = configured(max_connections=1, enabled=False)
    assert [each.status for each in examine(stopped, {stopped.farms["web"].id: 5}, {}, {})] == [Severity.OK]


def test_what_limits_refuse_now() -> None:
    config = configured(max_rate=5, max_half_open=6, max_connections=7)
    assert list(examine_drops(config, 60.0, {"drop_rate": 0, "drop_denied": 9})) == []
    found = {each.name: each for each in examine_drops(config, 60.0, dict.fromkeys(("drop_rate", "drop_half_open"), 12))}
    assert found.keys() == {"max_rate", "max_half_open"} and {each.status for each in found.values()} == {Severity.WARN}
    assert "12 connections refused in the last 60 s; set for: web" in found["max_rate"].message
    assert "--max-half-open N" in found["max_half_open"].remedy
    (full,) = examine_drops(configured(), 60.0, {"drop_backend_full": 3, "drop_farm_full": 3, "drop_rate": 3})
    assert full.name == "backends full", "the others are of a farm that is gone"


CLOSED = [
    ({"deny": ["0.0.0.0/0"]}, ["IPv4"]),
    ({"deny": ["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/2"]}, ["IPv4"]),
    ({"deny": ["0.0.0.0/0", "10.0.0.0/8", "::/0"]}, ["IPv4", "IPv6"]),
    ({"deny": ["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3"]}, []),
    ({"deny": []}, []),
    ({"allow": []}, ["IPv4", "IPv6"]),
    ({"allow": ["10.0.0.0/8"]}, ["IPv6"]),
    ({"allow": ["10.0.0.0/8", "fd00::/8"]}, []),
    ({"allow": ["10.1.0.0/16", "10.2.0.0/16", "fd00::/8"], "deny": ["10.0.0.0/8"]}, ["IPv4"]),
    ({"allow": ["10.1.0.0/16", "11.0.0.0/16", "fd00::/8"], "deny": ["10.0.0.0/8"]}, []),
    ({"allow": ["10.0.0.0/8", "fd00::/8"], "deny": ["10.0.0.0/9", "10.128.0.0/9"]}, ["IPv4"]),
]


@pytest.mark.parametrize(("lists", "closed"), CLOSED, ids=str)
def test_lists_that_leave_nobody_in(lists: dict[str, list[str]], closed: list[str]) -> None:
    names_of: dict[str, Any] = {name: name for name in lists}
    config = configured(lists, **names_of)
    config = change(config, "farm.add", {**FARM, "name": "six", "vip": "fd77::100", **{name: name for name in lists}})
    found = [each for each in examine_lists(config, Lists({}, {})) if each.status is Severity.FAIL]
    assert [each.message.split()[2] for each in found] == closed
    assert [each.name for each in found] == [{"IPv4": "farm web lists", "IPv6": "farm six lists"}[each] for each in closed]
    assert all("xlbctl prefixes show" in each.remedy for each in found)


def test_lists_in_the_kernels() -> None:
    config, expected = configured(), {"office": (7, (2, 1))}
    whole, part = {7: (2, 1), 8: (1, 0)}, {7: (1, 1)}
    (fine,) = examine_lists(config, Lists(expected, whole))
    assert fine.status is Severity.OK and "this node as configured" in fine.message
    (fine,) = examine_lists(config, Lists(expected, whole, "lb2", whole))
    assert "this node and lb2" in fine.message
    (silent,) = examine_lists(config, Lists(expected, whole, "lb2", None))
    assert silent.status is Severity.OK and "lb2" not in silent.message
    (here,) = examine_lists(config, Lists(expected, part))
    assert (here.name, here.status) == ("prefix list office", Severity.FAIL) and "2 of 3 prefixes" in here.message
    for there in (part, {}):
        (other,) = examine_lists(config, Lists(expected, whole, "lb2", there))
        assert other.status is Severity.WARN and "not the same on lb2" in other.message and "doctor on lb2" in other.remedy
