"""The program gets the features that a change needs, before it; where the compiler refuses, so is the change, or it is seen."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ctl.api.client import Client
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.dataplane import features
from ctl.dataplane.kernel import program_features
from ctl.dataplane.kernel.program_features import ProgramFeatures
from ctl.errors import Code
from ctl.node import running_configuration
from ctl.state.store import Store
from tests.fakes.daemon import FakeAttacher, RunningDaemon, running_daemon
from tests.fakes.network import FakeNetwork
from tests.fakes.pair import paired_sites
from tests.refusals import refused
from tests.tree import TREE
from tests.wait import wait_until, wait_until_async

VIP = {"address": "10.77.0.100/24", "device": "eth0"}
FARM = {"name": "web", "vip": "10.77.0.100", "port": 80, "health": {"kind": "none"}}
NEEDED: list[tuple[Mapping[str, Any], Mapping[str, Any], set[str]]] = [
    ({}, {"weight": 3, "priority": 1}, set()),
    ({"mode": "dnat", "scheduler": "source", "idle_timeout_s": 5}, {}, set()),
    ({"mode": "dsr"}, {}, {"dsr"}),
    ({"mode": "ipip"}, {}, {"ipip"}),
    ({"allow": "office"}, {}, {"lists"}),
    ({"deny": "office"}, {}, {"lists"}),
    ({"max_rate": 5}, {}, {"rate"}),
    ({"max_half_open": 5}, {}, {"half_open"}),
    ({"max_connections": 5}, {}, {"loads"}),
    ({"scheduler": "leastconn"}, {}, {"loads"}),
    ({}, {"max_connections": 5}, {"loads"}),
    ({"persistence_s": 5}, {}, {"persistence"}),
    ({"toa": True, "enabled": False}, {}, {"toa"}),
    ({"quic_cid": "prefix:8", "proto": "udp"}, {}, {"quic"}),
]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path) as daemon:
        daemon.call("vip.add", **VIP)
        daemon.call("farm.add", **FARM)
        yield daemon


@pytest.mark.parametrize(("farm", "backend", "needed"), NEEDED, ids=[str({**each[0], **each[1]}) for each in NEEDED])
def test_what_a_farm_needs(farm: Mapping[str, Any], backend: Mapping[str, Any], needed: set[str]) -> None:
    config = change(Config(), "vip.add", VIP)
    config = change(config, "prefixes.set", {"name": "office"})
    config = change(config, "farm.add", {**FARM, **farm})
    config = change(config, "backend.add", {"farm": "web", "address": "10.77.0.11", **backend})
    assert features.features_of(config) == needed
    assert all(features.in_words(needed).split(", ")) or not needed


def test_every_feature_is_a_macro_of_the_program() -> None:
    text = "".join(path.read_text() for path in (TREE / "bpf" / "program").iterdir())
    macros = set(re.findall(r"(?:#ifdef |\bdefined\()([A-Z_]+)", text))
    derived = set(re.findall(r"#define (\w+)(?: 1)?$", text, re.MULTILINE))
    assert macros - derived - {"TEST_CLOCK", "CAPTURE"} == {name.upper() for name in features.WORDS}


def test_a_change_has_the_program_compiled_before_it_is_in_force(
    daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, seen = FakeAttacher.add_features, list[bool]()

    def recorded(attacher: FakeAttacher, wanted: frozenset[str]) -> None:
        seen.append(daemon.farms.farms["web"].toa)
        add(attacher, wanted)

    monkeypatch.setattr(FakeAttacher, "add_features", recorded)
    with Client(daemon.socket_path) as client:
        client.call("farm.set", {"name": "web", "toa": True})
        assert client.note.startswith("compiled the program for toa: ")
        client.call("farm.set", {"name": "web", "idle_timeout_s": 60})
        assert client.note == ""
        client.call("farm.set", {"name": "web", "toa": False})
    assert seen == [False] and daemon.attacher.compiled == {"toa"}, "compiled once, before; features are only added"


def test_what_the_compiler_refuses_is_refused_and_changes_nothing(daemon: RunningDaemon) -> None:
    before, applied = daemon.call("config.export"), len(daemon.plane.applied)
    daemon.attacher.compiler_fails = "the verifier rejects it"
    with refused(Code.KERNEL_REFUSED) as caught:
        daemon.call("farm.set", name="web", toa=True)
    assert all(each in str(caught.value) for each in ("toa", "lb1", "the verifier rejects it"))
    assert daemon.call("config.export") == before and len(daemon.plane.applied) == applied
    daemon.call("farm.set", name="web", idle_timeout_s=60)
    assert daemon.call("status")["faults"] == [], "the node is as well as before"
    daemon.attacher.compiler_fails = ""
    daemon.call("farm.set", name="web", toa=True)
    assert daemon.attacher.compiled == {"toa"}, "an operator need not wait"


def test_the_loop_answers_while_the_compiler_runs(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = threading.Event(), threading.Event()
    add = FakeAttacher.add_features

    def slow(attacher: FakeAttacher, wanted: frozenset[str]) -> None:
        began.set()
        assert may_end.wait(20)
        add(attacher, wanted)

    monkeypatch.setattr(FakeAttacher, "add_features", slow)
    asking = threading.Thread(target=lambda: daemon.call("farm.set", name="web", toa=True))
    asking.start()
    try:
        assert began.wait(20)
        assert daemon.call("farm.show", name="web")["toa"] is False
        daemon.call("status")
    finally:
        may_end.set()
        asking.join(20)
    assert daemon.call("farm.show", name="web")["toa"] is True


def test_a_build_is_not_abandoned_when_its_asker_goes_away() -> None:
    running: list[int] = []

    class Slow(FakeAttacher):
        def add_features(self, features: frozenset[str]) -> None:
            running.append(1)
            assert len(running) == 1, "two builds at once"
            may_end.wait(20)
            self.compiled |= features
            running.pop()

    async def scene() -> None:
        attacher = Slow(FakeNetwork())
        program = ProgramFeatures("lb1", attacher)
        first = asyncio.ensure_future(program.require(frozenset({"toa"})))
        await wait_until_async(lambda: bool(running), "the build")
        first.cancel()
        second = asyncio.ensure_future(program.require(frozenset({"toa", "quic"})))
        await asyncio.sleep(0)
        may_end.set()
        await second
        assert attacher.compiled == {"toa", "quic"} and first.cancelled()

    may_end = threading.Event()
    asyncio.run(scene())


def test_a_restart_has_the_program_of_its_configuration(daemon: RunningDaemon, tmp_path: Path) -> None:
    daemon.call("farm.set", name="web", toa=True)
    store = Store(daemon.node.parts.local.transaction._store.state_dir)
    assert features.features_of(store.look()) == {"toa"}
    assert store.load().config is not store.load().config, "what was looked at is loaded once, later what is on disk"


def test_a_backup_compiles_what_it_receives(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        one.call("farm.add", **FARM, toa=True)
        wait_until(lambda: "toa" in two.daemon.attacher.compiled, "the backup compiles")
        number = one.daemon.farms.farms["web"].id
        wait_until(lambda: number in two.daemon.plane.farm_flags, "and follows")


def test_both_nodes_compile_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, both = FakeAttacher.add_features, threading.Barrier(2)

    def together(attacher: FakeAttacher, wanted: frozenset[str]) -> None:
        if "toa" in wanted:
            both.wait(20)
        add(attacher, wanted)

    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        monkeypatch.setattr(FakeAttacher, "add_features", together)
        one.call("farm.add", **FARM, toa=True)
        assert "toa" in two.daemon.attacher.compiled, "before the change is in force"


def test_a_backup_that_cannot_compile_is_seen_and_does_not_hold_up_the_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_features, "RETRY_NS", 0)
    monkeypatch.setattr(running_configuration, "PROGRAM_RETRY_S", 0.05)
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        two.daemon.attacher.compiler_fails = "no memory"
        one.call("farm.add", **FARM)
        assert one.call("farm.set", name="web", toa=True)["toa"] is True
        wait_until(lambda: any("no memory" in each for each in two.status["faults"]), "the fault is seen on the backup")
        one.call("farm.set", name="web", idle_timeout_s=60)
        wait_until(lambda: two.daemon.farms.generation == one.daemon.farms.generation, "it still receives the configuration")
        assert one.status["role"] == "active"
        findings = {each["message"]: each["ok"] for each in two.call("doctor") if each["name"] == "fault"}
        assert [ok for message, ok in findings.items() if "no memory" in message] == [False]
        number = one.daemon.farms.farms["web"].id
        assert one.daemon.plane.farm_flags[number] and not two.daemon.plane.farm_flags.get(number), "not without the program"
        two.daemon.attacher.compiler_fails = ""
        wait_until(lambda: not any("program" in each for each in two.status["faults"]), "and ends")
        wait_until(lambda: two.daemon.plane.farm_flags.get(number, 0) != 0, "the maps have the farm with its setting")


def test_the_fault_of_a_backup_ends_with_the_next_change_that_compiles(tmp_path: Path) -> None:
    """Not only with its own next attempt, a minute after the last."""
    with paired_sites(tmp_path, vip=VIP["address"]) as (one, two):
        one.call("farm.add", **FARM)
        two.daemon.attacher.compiler_fails = "no memory"
        one.call("farm.set", name="web", toa=True)
        wait_until(lambda: any("no memory" in each for each in two.status["faults"]), "the fault is seen on the backup")
        two.daemon.attacher.compiler_fails = ""
        one.call("farm.set", name="web", persistence_s=60)
        wait_until(lambda: not any("program" in each for each in two.status["faults"]), "the fault ends")
        assert two.daemon.attacher.compiled >= {"toa", "persistence"}
