"""A backup takes over before its program is compiled for what the pair has; and what a program can run meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpf.constants import FlowFlag
from bpf.constants import Mode as ProgramMode
from bpf.dataplane import (
    PlaneError,
    PutAffinity,
    PutBackendAffinity,
    PutBackendLimits,
    PutFarmLimits,
    PutPrefixes,
    PutQuicServers,
)
from bpf.loading import loader
from bpf.loading.loader import Build, Loaded
from ctl.cluster import pair_configuration
from ctl.config.changes import change
from ctl.config.model import Config, Farm, Mode, Scheduler
from ctl.dataplane import features, planner
from ctl.dataplane.features import features_of, runnable
from ctl.dataplane.kernel import program_features, sweeper
from ctl.node import process, running_configuration
from tests.fakes.daemon import FakeAttacher, running_daemon, write_node_file
from tests.fakes.flows import connections, put
from tests.fakes.layouts import LAYOUTS
from tests.fakes.pair import Site, paired_sites
from tests.wait import wait_until

VIP = {"address": "10.77.0.100/24", "device": "eth0"}
FARM = {"name": "web", "vip": "10.77.0.100", "port": 80, "health": {"kind": "none"}}
SETTINGS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "dsr": ({"mode": "dsr"}, {}),
    "ipip": ({"mode": "ipip"}, {}),
    "lists": ({"deny": "office"}, {}),
    "rate": ({"max_rate": 5}, {}),
    "half_open": ({"max_half_open": 5}, {}),
    "loads": ({"max_connections": 9, "scheduler": "leastconn"}, {"max_connections": 5}),
    "persistence": ({"persistence_s": 5}, {}),
    "toa": ({"toa": True}, {}),
    "quic": ({"quic_cid": "prefix:8", "proto": "udp"}, {}),
}
NEED_MAPS = (PutAffinity, PutBackendAffinity, PutQuicServers, PutPrefixes, PutFarmLimits, PutBackendLimits)


def configured(*wanted: str) -> Config:
    config = change(Config(), "vip.add", VIP)
    config = change(config, "prefixes.set", {"name": "office"})
    farm, backend = dict[str, Any](), dict[str, Any]()
    for feature in wanted:
        farm |= SETTINGS[feature][0]
        backend |= SETTINGS[feature][1]
    config = change(config, "farm.add", {**FARM, **farm})
    config = change(config, "backend.add", {"farm": "web", "address": "10.77.0.11", **backend})
    config = change(config, "farm.add", {**FARM, "name": "other", "port": 81})
    return change(config, "backend.add", {"farm": "other", "address": "10.77.0.11"})


TOGETHER = [("dsr", "lists"), ("dsr", "persistence", "loads"), ("lists", "rate", "half_open", "toa")]


@pytest.mark.parametrize("missing", [*((each,) for each in SETTINGS), *TOGETHER], ids="+".join)
def test_a_program_gets_only_what_it_can_run(missing: tuple[str, ...]) -> None:
    assert SETTINGS.keys() == features.WORDS.keys() - {features.REPLICATION, features.VLANS}
    config = configured(*missing)
    assert features_of(config) == set(missing)
    able = runnable(config, frozenset(missing))
    farm = able.farms["web"]
    assert able.farms["other"] is config.farms["other"], "others are not touched"
    assert features_of(able) <= features.KEPT, "no operation on a map that the program does not have"
    assert farm.mode is config.farms["web"].mode
    assert farm.enabled == ("lists" not in missing or farm.mode in (Mode.DSR, Mode.IPIP)), "who may come in is not known"
    operations = planner.plan(planner.PlannerState(), able, frozenset()).operations
    assert not [each for each in operations if isinstance(each, NEED_MAPS)]


def test_a_program_that_has_everything_gets_everything() -> None:
    config = configured("dsr", "loads")
    assert runnable(config, frozenset()) is config
    assert runnable(config, frozenset({"toa"})).farms["web"] is config.farms["web"], "what no farm needs is not missing"
    assert runnable(config, frozenset({"loads"})).farms["web"].scheduler is Scheduler.ROUNDROBIN


# --- in a pair -----------------------------------------------------------------------------------------------


@pytest.fixture
def held_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The compiler of the second node waits for the event."""
    may_end, add = threading.Event(), FakeAttacher.add_features

    def slow(attacher: FakeAttacher, wanted: frozenset[str]) -> None:
        if getattr(attacher, "slow", False):
            assert may_end.wait(30)
        add(attacher, wanted)

    monkeypatch.setattr(FakeAttacher, "add_features", slow)
    monkeypatch.setattr(pair_configuration, "COMPILE_S", 0.05)
    yield may_end
    may_end.set()


def modes(site: Site) -> dict[int, int]:
    return {key.port: value.mode for key, value in site.daemon.plane.services().items()}


def established(site: Site, number: int, flags: int = 0) -> bytes:
    """A connection on the active node; returns its key."""
    rows = connections("v4", [number])
    rows[1]["flags"] |= np.uint8(flags)
    for entries in (rows[1], rows[3]):
        entries["farm"], entries["backend"] = farm(site).id, farm(site).backends[0].id
    put(site.daemon.plane, "v4", 1, rows)  # type: ignore[arg-type]
    return bytes(rows[0].tobytes())


def farm(site: Site) -> Farm:
    return site.daemon.farms.farms["web"]


def test_one_way_flows_wait_and_others_do_not(
    tmp_path: Path, held_compiler: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        one.call("farm.add", **FARM)
        one.call("backend.add", farm="web", address="10.77.0.11")
        two.daemon.attacher.slow = True  # type: ignore[attr-defined]
        one.call("farm.set", name="web", mode="dsr")
        one.call("farm.add", **{**FARM, "name": "other", "port": 81})
        wait_until(
            lambda: modes(two) == {80: ProgramMode.DSR, 81: ProgramMode.SNAT}, "the maps follow before the compiler ends"
        )
        flows = two.daemon.plane.flow_maps["flows", "v4"]
        nat, one_way = established(one, 1), established(one, 2, FlowFlag.DSR)
        held = two.member.replicator
        wait_until(lambda: nat in flows and held.status().held_flows == 1, "the flows")
        assert one_way not in flows
        wait_until(lambda: not one.status["peer"]["in_step"], "the active node knows it")
        assert not two.status["sync"]["in_step"]

        one.cut_links()
        wait_until(lambda: two.status["role"] == "active", "the takeover")
        assert one_way not in flows and nat in flows
        seen: list[bool] = []
        transaction = two.daemon.node.parts.local.transaction
        replan = transaction._replan

        def noted(config: Config, down: frozenset[int]) -> None:
            seen.append(one_way in flows)
            replan(config, down)

        monkeypatch.setattr(transaction, "_replan", noted)
        held_compiler.set()
        wait_until(lambda: one_way in flows, "the flow that was held back")
        wait_until(lambda: seen, "the maps are planned again")
        assert all(seen), "after the flows, or a packet would open its connection again"
        assert held.status().held_flows == 0 and two.daemon.attacher.compiled >= {"dsr"}


def test_what_was_held_back_goes_to_the_peer_that_comes_back(tmp_path: Path, held_compiler: threading.Event) -> None:
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        one.call("farm.add", **FARM)
        one.call("backend.add", farm="web", address="10.77.0.11")
        two.daemon.attacher.slow = True  # type: ignore[attr-defined]
        one.call("farm.set", name="web", mode="dsr")
        one_way = established(one, 2, FlowFlag.DSR)
        wait_until(lambda: two.member.replicator.status().held_flows == 1, "the flow is held back")
        held_compiler.set()
        wait_until(lambda: one.status["peer"]["in_step"], "the backup is in step again")
        one.call("cluster.switchover")
        wait_until(lambda: two.status["role"] == "active" and one.status["role"] == "backup", "the switchover")
        wait_until(lambda: one.status["sync"]["in_step"], "step")
        assert one_way in one.daemon.plane.flow_maps["flows", "v4"], "it was not taken for one that has ended"


def test_clients_of_persistence_wait_for_the_map(tmp_path: Path, held_compiler: threading.Event) -> None:
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        one.call("farm.add", **FARM)
        one.call("backend.add", farm="web", address="10.77.0.11")
        two.daemon.plane.keeps_clients = lambda: "persistence" in two.daemon.attacher.compiled  # type: ignore[method-assign]
        two.daemon.attacher.slow = True  # type: ignore[attr-defined]
        one.call("farm.set", name="web", persistence_s=60)
        client = (b"\x0a\0\0\x01", farm(one).id)
        one.daemon.plane.persistent["v4"][client] = (1, 1, one.daemon.plane.tick)
        wait_until(lambda: two.member.persistence._held, "the entry is held back")
        assert not two.daemon.plane.persistent["v4"]
        one.cut_links()
        wait_until(lambda: two.status["role"] == "active", "the takeover")
        held_compiler.set()
        wait_until(lambda: client in two.daemon.plane.persistent["v4"], "the client keeps its backend")


def test_loads_are_right_after_a_takeover_without_waiting_for_the_next_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decide who gets the first new connections (leastconn), and whether a farm is full (max_connections)."""
    for name in ("MIN_PAUSE_S", "MAX_PAUSE_S"):
        monkeypatch.setattr(sweeper, name, 600.0)
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        one.call("farm.add", **FARM, max_connections=5)
        one.call("backend.add", farm="web", address="10.77.0.11")
        wait_until(lambda: two.daemon.node.parts.local.sweeper.sweeps, "the first sweep of the backup")
        key = established(one, 1)
        wait_until(lambda: key in two.daemon.plane.flow_maps["flows", "v4"], "the flow")

        def load() -> int:
            row = two.daemon.plane.load_values["farm"][farm(one).id]
            return int(row["base"]) + int(row["opened"]) - int(row["closed"])

        assert load() == 0
        one.cut_links()
        wait_until(lambda: two.status["role"] == "active", "the takeover")
        wait_until(lambda: load() == 1, "the connection is counted")


def test_loads_count_the_connections_that_are_there_when_the_program_begins_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MIN_PAUSE_S", "MAX_PAUSE_S"):
        monkeypatch.setattr(sweeper, name, 600.0)
    with running_daemon(tmp_path) as daemon:
        daemon.call("vip.add", **VIP)
        daemon.call("farm.add", **FARM)
        sweeps = daemon.node.parts.local.sweeper
        wait_until(lambda: sweeps.sweeps, "the first sweep")
        before = sweeps.sweeps
        daemon.call("farm.set", name="web", max_connections=5)
        wait_until(lambda: sweeps.sweeps > before, "another sweep")


# --- a start ---------------------------------------------------------------------------------------------------------


def test_a_start_without_a_compiler_serves_what_the_pinned_program_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.call("vip.add", **VIP)
        daemon.call("farm.add", **FARM)
        daemon.call("farm.add", **{**FARM, "name": "direct", "port": 81, "mode": "dsr"})
        plane = daemon.plane
    plane.closed = False

    works, add = threading.Event(), FakeAttacher.add_features

    def may_refuse(attacher: FakeAttacher, wanted: frozenset[str]) -> None:
        if not works.is_set():
            raise PlaneError("no memory")
        add(attacher, wanted)

    monkeypatch.setattr(FakeAttacher, "add_features", may_refuse)
    monkeypatch.setattr(running_configuration, "PROGRAM_RETRY_S", 0.05)
    monkeypatch.setattr(program_features, "RETRY_NS", 0)
    with running_daemon(tmp_path, plane) as daemon:
        modes = {key.port: value.mode for key, value in plane.services().items()}
        assert modes == {80: ProgramMode.SNAT, 81: ProgramMode.DSR}
        assert any("no memory" in each for each in daemon.call("status")["faults"])
        ends = {"source": "192.0.2.1", "source_port": 5, "destination": "10.77.0.100", "destination_port": 81}
        assert daemon.call("conn.show", **ends, protocol="tcp")["verdict"] == "drop_not_compiled"
        works.set()
        wait_until(lambda: not daemon.call("status")["faults"], "the compiler works again")
        assert daemon.call("conn.show", **ends, protocol="tcp")["verdict"] == "drop_no_backend"


@pytest.mark.parametrize(
    ("wanted", "pinned", "used"),
    [
        ({"replication", "dsr"}, {"replication"}, {"replication"}),
        ({"dsr", "toa"}, {"toa", "quic"}, {"toa", "quic"}),
        ({"replication", "dsr"}, {"toa"}, None),  # of a single node
        ({"toa"}, {"toa"}, None),  # it is not the compiler
    ],
)
def test_which_pinned_program_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: set[str], pinned: set[str], used: set[str] | None
) -> None:
    settings, loaded = write_node_file(tmp_path), Loaded("adopted", LAYOUTS, 1.0)

    def ensure(build: Build, replace: bool = False, working: object = None) -> Loaded:
        if build.features.keys() != pinned or wanted == pinned:
            raise PlaneError("clang is not there")
        return loaded

    monkeypatch.setattr(loader, "ensure", ensure)
    monkeypatch.setattr(loader, "pinned_features", lambda _: frozenset(pinned))
    if used is None:
        with pytest.raises(PlaneError, match="clang"):
            process._pinned(settings, frozenset(wanted), False, lambda: None)
    else:
        assert process._pinned(settings, frozenset(wanted), False, lambda: None) == (loaded, frozenset(used))
        with pytest.raises(PlaneError, match="clang"):
            process._pinned(settings, frozenset(wanted), True, lambda: None)
