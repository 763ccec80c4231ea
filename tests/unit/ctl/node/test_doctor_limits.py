"""doctor names full farms, limits that refuse clients now, and prefix lists that close a farm or differ between the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.dataplane import PutPrefixes
from ctl.config.prefixes import packed, parse_texts
from ctl.dataplane.limits import lists_in_use
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.pair import paired_sites
from tests.wait import wait_until

VIP = {"address": "10.77.0.100/24", "device": "eth0"}
FARM = {"name": "web", "vip": "10.77.0.100", "port": 80, "health": {"kind": "none"}}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path) as daemon:
        daemon.call("vip.add", **VIP)
        yield daemon


def listed(*prefixes: str) -> dict[str, str]:
    return packed(parse_texts("office", prefixes, "office"))


def findings(daemon: RunningDaemon, *names: str) -> dict[str, str]:
    """The status of those findings that there are."""
    return {each["name"]: each["status"] for each in daemon.call("doctor") if each["name"] in names}


def load(daemon: RunningDaemon, farm: str, count: int) -> None:
    values = daemon.plane.load_values["farm"]
    values["base"][daemon.farms.farms[farm].id] = count


def drop(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    counters: Any = daemon.plane.counters
    monkeypatch.setattr(daemon.plane, "counters", lambda: counters() | {name: (count, 0)})


def test_a_single_node(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.call("prefixes.set", name="office", **listed("198.51.100.0/24"))
    daemon.call("farm.add", **FARM, max_connections=10, max_rate=5, deny="office")
    daemon.call("backend.add", farm="web", address="10.77.0.11")
    wanted = "farm web limit", "connection limits", "max_rate", "prefix lists", "farm web lists"
    assert findings(daemon, *wanted) == {"connection limits": "ok", "prefix lists": "ok"}
    sweeps = daemon.node.parts.local.sweeper
    monkeypatch.setattr(sweeps, "_correct", lambda *_: None)  # nobody is connected in fact
    load(daemon, "web", 10)
    drop(daemon, monkeypatch, "drop_rate", 7)
    daemon.call("prefixes.set", name="office", **listed("0.0.0.0/0"))
    assert findings(daemon, *wanted) == {"farm web limit": "fail", "max_rate": "warn", "farm web lists": "fail"}


def test_what_was_refused_since_the_start_is_no_finding(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.call("farm.add", **FARM, max_half_open=5)
    drop(daemon, monkeypatch, "drop_half_open", 7)
    recent = daemon.node.parts.local.drops.recent
    assert findings(daemon, "max_half_open") == {"max_half_open": "warn"}
    recent._readings.clear()
    assert findings(daemon, "max_half_open") == {}


def test_a_list_that_the_kernel_lost(daemon: RunningDaemon) -> None:
    daemon.call("prefixes.set", name="office", **listed("198.51.100.0/24", "fd00::/8"))
    daemon.call("farm.add", **FARM, allow="office")
    daemon.plane.prefixes.clear()
    (finding,) = [each for each in daemon.call("doctor") if each["name"] == "prefix list office"]
    assert finding["status"] == "fail" and "0 of 2 prefixes are in the kernel" in finding["message"]


def test_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both nodes compare the lists; only the active one judges limits."""
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        one.call("prefixes.set", name="office", **listed("198.51.100.0/24"))
        one.call("farm.add", **FARM, max_connections=10, deny="office")
        (number,) = [each.id for each in lists_in_use(one.daemon.farms).values()]
        nodes = one.daemon, two.daemon
        wait_until(lambda: number in two.daemon.plane.prefixes, "the backup's maps")
        assert [findings(node, "prefix lists") for node in nodes] == [{"prefix lists": "ok"}] * 2
        messages = [each["message"] for node in nodes for each in node.call("doctor") if each["name"] == "prefix lists"]
        assert "this node and lb2" in messages[0] and "this node and lb1" in messages[1]
        kept = two.daemon.plane.prefixes.pop(number)
        wanted = "prefix list office", "prefix lists"
        assert [findings(node, *wanted) for node in nodes] == [{"prefix list office": "warn"}, {"prefix list office": "fail"}]
        two.daemon.plane.apply([PutPrefixes(number, *kept)])
        monkeypatch.setattr(one.daemon.node.parts.local.sweeper, "_correct", lambda *_: None)
        monkeypatch.setattr(two.daemon.node.parts.local.sweeper, "_correct", lambda *_: None)
        for node in nodes:
            load(node, "web", 9)
        assert [findings(node, "farm web limit", *wanted) for node in nodes] == [
            {"farm web limit": "warn", "prefix lists": "ok"},
            {"prefix lists": "ok"},
        ]
        two.cut_links()
        wait_until(lambda: two.status["role"] == "active", "the takeover")
        assert findings(two.daemon, "farm web limit", *wanted) == {"farm web limit": "warn", "prefix lists": "ok"}
