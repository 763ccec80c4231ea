"""The whole daemon on a fake plane and network: changes, failures, restarts and the kernel's notifications."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpf.constants import LEASE_FOREVER_NS, FlowFlag, FlowState, VipFlag
from bpf.dataplane import FlowTuple, Operation, PutService, PutSlots
from ctl.api.client import Client
from ctl.config.model import Protocol
from ctl.daemon import locked_run_dir, main
from ctl.dataplane.flow_hash import client_hash, flow_hash
from ctl.dataplane.flow_selection import PROTOCOL_NUMBERS
from ctl.errors import Advice, Code, InvalidInput, XlbError
from ctl.network.network import InterfaceAddress, Setting
from ctl.network.opposition import TIMES
from ctl.node.transaction import MAX_WAITING_CHANGES
from tests.fakes.cli import run
from tests.fakes.daemon import PROGRAM, FakeServers, RunningDaemon, running_daemon, write_node_file
from tests.fakes.logs import logging_restored
from tests.fakes.network import FakeNetwork
from tests.fakes.plane import FakePlane, flow_dtype
from tests.refusals import invalid, refused
from tests.wait import wait_until

VIP = "10.77.0.100"
SERVERS = ("10.77.0.11", "10.77.0.12", "10.77.0.13")
ADDRESS = InterfaceAddress("eth0", VIP, 24)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path) as running:
        add_web(running)
        yield running


def add_web(daemon: RunningDaemon, **fields: object) -> None:
    daemon.call("vip.add", address=f"{VIP}/24", device="eth0")
    daemon.call("farm.add", **{"name": "web", "vip": VIP, "port": 80, "health": {"kind": "none"}} | fields)
    for server in SERVERS:
        daemon.call("backend.add", farm="web", address=server, port=8080)


def backend_errors(daemon: RunningDaemon) -> list[str]:
    """The last error of each backend of farm web."""
    return [backend["last_error"] for backend in daemon.call("farm.show", name="web")["backends"]]


def accepting(plane: FakePlane) -> set[str]:
    """Backend addresses that may get new connections."""
    return {plane.backends[number][0] for number in plane.live_backends()}


# --- changes -------------------------------------------------------------------------------------------------


def test_a_change_is_on_disk_in_the_maps_and_on_the_interface_when_it_is_answered(daemon: RunningDaemon) -> None:
    assert accepting(daemon.plane) == set(SERVERS)
    assert daemon.plane.lease() == (LEASE_FOREVER_NS, 0)
    assert daemon.network.present == {ADDRESS}
    assert daemon.network.announced == [ADDRESS]
    stored = (daemon.config.parent / "state" / "farms.jsonl").read_text()
    assert all(server in stored for server in SERVERS)
    assert daemon.plane.hash_seed() == daemon.farms.hash_seed != 0


def test_draining_and_weights_reach_the_maps(daemon: RunningDaemon) -> None:
    daemon.call("backend.drain", farm="web", address=SERVERS[0], port=8080)
    assert accepting(daemon.plane) == set(SERVERS[1:])
    daemon.call("backend.set", farm="web", address=SERVERS[1], port=8080, weight=0)
    assert accepting(daemon.plane) == {SERVERS[2]}
    daemon.call("farm.stop", name="web")
    assert accepting(daemon.plane) == set()
    daemon.call("farm.start", name="web")
    assert accepting(daemon.plane) == {SERVERS[2]}


@pytest.mark.parametrize("failing", [PutService, PutSlots])
def test_a_change_the_kernel_refuses_is_rolled_back_everywhere(daemon: RunningDaemon, failing: type) -> None:
    generation = daemon.farms.generation
    stored = (daemon.config.parent / "state" / "farms.jsonl").read_bytes()
    daemon.plane.fail_next = failing
    with pytest.raises(XlbError, match="nothing was changed"):
        daemon.call("backend.add", farm="web", address="10.77.0.14", port=8080)
    assert accepting(daemon.plane) == set(SERVERS)
    assert daemon.farms.generation == generation
    assert (daemon.config.parent / "state" / "farms.jsonl").read_bytes() == stored
    daemon.call("backend.add", farm="web", address="10.77.0.14", port=8080)
    assert accepting(daemon.plane) == {*SERVERS, "10.77.0.14"}, "and the next one works"


def test_an_address_the_kernel_refuses_rolls_the_vip_back(daemon: RunningDaemon) -> None:
    daemon.network.refuse_addresses = True
    with refused(Code.KERNEL_REFUSED):
        daemon.call("vip.add", address="10.77.0.101/24", device="eth0")
    assert [vip["address"] for vip in daemon.call("vip.list")] == [VIP]
    assert set(daemon.plane.vips()) == {VIP}


def test_a_disk_that_refuses_leaves_everything_as_it_was(daemon: RunningDaemon) -> None:
    state = daemon.config.parent / "state"
    (state / "farms.jsonl.new").mkdir()  # blocks the temporary file of a save
    operations = daemon.plane.operations
    with pytest.raises(XlbError, match=r"farms\.jsonl"):
        daemon.call("farm.delete", name="web")
    assert daemon.plane.operations == operations
    assert daemon.call("farm.show", name="web")["name"] == "web"


def test_a_change_that_changes_nothing_writes_nothing(daemon: RunningDaemon) -> None:
    operations, generation = daemon.plane.operations, daemon.farms.generation
    daemon.call("backend.set", farm="web", address=SERVERS[0], port=8080, weight=1)
    assert (daemon.plane.operations, daemon.farms.generation) == (operations, generation)


def test_changes_of_many_clients_all_succeed(daemon: RunningDaemon) -> None:
    with ThreadPoolExecutor(12) as clients:
        list(clients.map(lambda n: daemon.call("farm.add", name=f"f{n}", vip=VIP, port=1000 + n), range(60)))
    assert len(daemon.call("farm.list")) == 61
    assert len(daemon.plane.services()) == 61


def test_the_queue_of_changes_is_bounded(daemon: RunningDaemon) -> None:
    transaction = daemon.node.parts.local.transaction
    daemon.on_loop(setattr, transaction, "_waiting", MAX_WAITING_CHANGES)
    with refused(Code.BUSY):
        daemon.call("farm.delete", name="web")
    daemon.on_loop(setattr, transaction, "_waiting", 0)


def test_apply_diff_and_export_agree(daemon: RunningDaemon) -> None:
    document = daemon.call("config.export")
    assert daemon.call("config.diff", document=document) == []
    document["farm"][0]["backend"].pop()
    wanted = daemon.call("config.apply", document=document, dry_run=True)
    assert len(wanted) == 1 and SERVERS[2] in wanted[0]
    assert accepting(daemon.plane) == set(SERVERS), "a dry run changes nothing"
    assert daemon.call("config.apply", document=document) == wanted
    assert accepting(daemon.plane) == set(SERVERS[:2])
    with pytest.raises(InvalidInput):
        daemon.call("config.apply", document={"farm": [{"name": "web"}]})
    assert daemon.call("config.export") == document


# --- addresses -----------------------------------------------------------------------------------------------


def test_only_addresses_added_by_the_daemon_are_removed(tmp_path: Path) -> None:
    network = FakeNetwork()
    own = InterfaceAddress("eth0", "10.77.0.1", 24)
    network.present.add(own)
    with running_daemon(tmp_path, network=network) as daemon:
        daemon.call("vip.add", address="10.77.0.1/24", device="eth0", force=True)
        daemon.call("vip.add", address=f"{VIP}/24", device="eth0")
    with running_daemon(tmp_path, network=network) as daemon:  # it remembers across a restart which address it added
        daemon.call("vip.delete", address="10.77.0.1")
        daemon.call("vip.delete", address=VIP)
    assert network.present == {own}


def test_stopping_leaves_everything_in_place_unless_asked(tmp_path: Path) -> None:
    plane, network = FakePlane(), FakeNetwork()
    with running_daemon(tmp_path, plane, network) as daemon:
        add_web(daemon)
    assert accepting(plane) == set(SERVERS) and network.present == {ADDRESS} and daemon.attacher.on
    plane.closed = False
    with running_daemon(tmp_path, plane, network, detach=True) as daemon:
        assert daemon.attacher.on
    assert network.present == set() and not daemon.attacher.on


@pytest.mark.parametrize("notified", [True, False])
def test_an_address_removed_by_others_is_restored(daemon: RunningDaemon, notified: bool) -> None:
    events = daemon.network.events
    assert events is not None
    daemon.network.present.clear()
    if notified:
        daemon.on_loop(events.changed)
    wait_until(lambda: daemon.network.present == {ADDRESS}, "the address to come back")
    wait_until(lambda: repairs(daemon) == {"vip_added": 1}, "the repair to be counted")


def repairs(daemon: RunningDaemon) -> dict[str, int]:
    """The reconciler's repairs, by kind."""
    counts: dict[str, int] = daemon.call("status")["reconcile"]["by_kind"]
    return counts


def test_a_vip_that_is_deleted_is_not_put_back(daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.call("farm.delete", name="web")
    events = daemon.network.events
    assert events is not None
    for number in range(10):
        daemon.call("vip.add", address=f"10.77.0.{200 + number}/24", device="eth0")
        daemon.on_loop(events.changed)
        daemon.call("vip.delete", address=f"10.77.0.{200 + number}")
        daemon.on_loop(events.changed)
    passes = daemon.call("status")["reconcile"]["passes"]
    wait_until(lambda: daemon.call("status")["reconcile"]["passes"] > passes + 1, "another pass")
    assert repairs(daemon) == {}
    assert [record.message for record in caplog.records if "vip" in record.message] == []


def test_lost_notifications_have_everything_compared_at_once(daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    events = daemon.network.events
    assert events is not None
    kept = {(2, server) for server in SERVERS}
    wait_until(lambda: daemon.network.kept == kept, "the next hops to be resolved")
    daemon.network.present.clear()
    daemon.attacher.remove("eth0")
    setting = Setting("ipv4/conf/eth0/forwarding", "1")
    daemon.network.settings[setting] = "0"
    daemon.network.kept.clear()
    daemon.on_loop(events.overrun)
    wait_until(lambda: daemon.call("status")["reconcile"]["last_overrun"], "the comparison")
    assert daemon.network.present == {ADDRESS}
    assert daemon.network.links["eth0"].xdp_program == PROGRAM
    assert daemon.network.settings[setting] == "1"
    assert daemon.network.kept == kept
    assert repairs(daemon) == {"neighbours": 1, "sysctl": 1, "vip_added": 1, "xdp": 1}
    lines = [record for record in caplog.records if "notifications were lost" in record.message]
    assert [record.message.rpartition(", ")[2] for record in lines] == ["4 repairs"]


def test_a_mac_that_changes_is_announced(daemon: RunningDaemon) -> None:
    before = len(daemon.network.announced)
    daemon.network.links["eth0"] = replace(daemon.network.links["eth0"], mac="02:00:00:00:00:99")
    wait_until(lambda: daemon.network.announced[before:] == [ADDRESS], "the VIP to be announced with the new MAC")


def test_a_program_of_others_is_not_fought_over(daemon: RunningDaemon) -> None:
    daemon.attacher.remove("eth0", by=99)
    wait_until(lambda: daemon.call("status")["faults"], "the fault")
    status = daemon.call("status")
    assert status["faults"] == [
        "interface eth0 balances nothing: it has the XDP program 99 (other), not xlb's; "
        "stop the process that attached it, or: ip link set dev eth0 xdp off"
    ]
    (interface,) = status["interfaces"]
    assert (interface["xdp_mode"], interface["reason"]) == (None, "it has another XDP program: 99 (other)")
    (finding,) = [each for each in daemon.call("doctor") if each["name"] == "interface eth0"]
    assert not finding["ok"] and "99 (other)" in finding["message"]
    assert daemon.network.links["eth0"].xdp_program == 99
    daemon.attacher.remove("eth0")
    wait_until(lambda: not daemon.call("status")["faults"], "the end of the fault")
    assert daemon.network.links["eth0"].xdp_program == PROGRAM


def test_a_program_that_is_being_replaced_is_not_repaired(daemon: RunningDaemon) -> None:
    """What the interfaces have meanwhile says nothing; once that is over, it does."""
    wait_until(lambda: daemon.call("status")["reconcile"]["passes"], "the first pass")
    daemon.attacher.replaced = 1
    daemon.attacher.remove("eth0")
    passes, events = daemon.call("status")["reconcile"]["passes"], daemon.network.events
    assert events is not None
    daemon.on_loop(events.changed)
    wait_until(lambda: daemon.call("status")["reconcile"]["passes"] > passes + 1, "another pass")
    assert daemon.network.links["eth0"].xdp_program == 0 and "xdp" not in repairs(daemon)
    daemon.attacher.replaced = 2
    wait_until(lambda: daemon.network.links["eth0"].xdp_program == PROGRAM, "the repair")


def test_a_setting_that_is_undone_again_and_again_is_a_fault(daemon: RunningDaemon) -> None:
    setting = Setting("ipv4/conf/eth0/forwarding", "1")
    wait_until(lambda: daemon.call("status")["reconcile"]["passes"], "the interface to be known")
    for number in range(1, TIMES + 1):
        daemon.network.settings[setting] = "0"
        wait_until(partial(lambda number: repairs(daemon).get("sysctl") == number, number), "the repair")
    assert daemon.network.settings[setting] == "1"
    (fault,) = daemon.call("status")["faults"]
    assert "net.ipv4.conf.eth0.forwarding" in fault and "again and again" in fault


def test_a_setting_that_cannot_be_set_is_a_fault_until_it_is_right(daemon: RunningDaemon) -> None:
    setting = Setting("ipv4/conf/eth0/forwarding", "1")
    daemon.network.fixed.add(setting)
    daemon.network.settings[setting] = "0"
    wait_until(lambda: daemon.call("status")["faults"], "the fault")
    daemon.network.settings[setting] = "1"
    wait_until(lambda: not daemon.call("status")["faults"], "the end of the fault")


# --- restart -------------------------------------------------------------------------------------------------


def test_a_restart_finds_everything_and_disturbs_nothing(tmp_path: Path) -> None:
    plane, network = FakePlane(), FakeNetwork()
    with running_daemon(tmp_path, plane, network) as daemon:
        add_web(daemon)
        generation, seed = daemon.farms.generation, daemon.farms.hash_seed
        (key,) = plane.services()
        turns = plane.turn(key)
    plane.closed = False
    with running_daemon(tmp_path, plane, network) as daemon:
        assert (
            daemon.farms.generation,
            daemon.farms.hash_seed,
            plane.hash_seed(),
        ) == (generation, seed, seed)
        assert plane.turn(key) == turns, "clients keep their backends"
        assert len(daemon.call("farm.show", name="web")["backends"]) == 3
        assert set(network.announced) == {ADDRESS}


def test_a_restart_removes_what_is_not_in_the_store(tmp_path: Path) -> None:
    plane = FakePlane()
    with running_daemon(tmp_path / "a", plane) as daemon:
        add_web(daemon)
    plane.closed = False
    with running_daemon(tmp_path / "b", plane) as daemon:
        assert plane.services() == {} and plane.vips() == {}


def test_a_corrupt_state_file_is_kept_and_the_last_good_one_used(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        add_web(daemon)
    path = tmp_path / "state" / "farms.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with running_daemon(tmp_path) as daemon:
        assert len(daemon.call("farm.show", name="web")["backends"]) == 2, "the version before the last change"
    assert any("corrupt" in each.name for each in path.parent.iterdir())


def test_a_missing_interface_does_not_keep_the_node_from_starting(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.call("vip.add", address=f"{VIP}/24", device="eth1")
    network = FakeNetwork()
    eth1 = network.links.pop("eth1")
    with running_daemon(tmp_path, network=network) as daemon:
        assert daemon.call("status")["started"]
        findings = {each["name"]: each for each in daemon.call("doctor")}
        assert not findings[f"vip {VIP}"]["ok"]
        network.links["eth1"] = eth1
        wait_until(lambda: len(network.present) == 1, "the VIP on the interface that came")


# --- netlink notifications----------------------------------------------------------------------------------


def test_next_hops_of_backends_are_kept_resolved(daemon: RunningDaemon) -> None:
    wait_until(lambda: daemon.network.kept == {(2, server) for server in SERVERS}, "all three")
    asked = len(daemon.network.asked)
    events = daemon.network.events
    assert events is not None
    daemon.on_loop(events.neighbour_lost, 2, "192.0.2.9")
    daemon.on_loop(events.neighbour_lost, 2, SERVERS[1])
    wait_until(lambda: len(daemon.network.asked) > asked, "the lost one to be asked for")
    assert daemon.network.asked[asked:] == [(2, SERVERS[1])]
    daemon.network.gateways[SERVERS[0]] = "10.77.0.254"
    daemon.on_loop(events.routes_changed)
    wait_until(lambda: (2, "10.77.0.254") in daemon.network.kept, "the gateway instead of the backend")
    assert (2, SERVERS[0]) not in daemon.network.kept
    daemon.call("backend.remove", farm="web", address=SERVERS[2], port=8080)
    wait_until(lambda: (2, SERVERS[2]) not in daemon.network.kept, "the removed backend to be released")


def test_more_next_hops_than_the_kernel_keeps_are_noted_at_the_change_and_by_doctor(daemon: RunningDaemon) -> None:
    daemon.network.capacity = (4, 0)
    with Client(daemon.socket_path) as client:
        client.call("backend.add", {"farm": "web", "address": "10.77.0.14", "port": 8080})
        assert "the kernel keeps 4 neighbours" in client.note and "net.ipv4.neigh.default.gc_thresh3=8" in client.note
        client.call("backend.set", {"farm": "web", "address": "10.77.0.14", "port": 8080, "weight": 2})
        assert client.note == ""
    wait_until(lambda: [each for each in daemon.call("doctor") if each["name"] == "neighbour table"], "the finding")
    daemon.network.gateways = dict.fromkeys((*SERVERS, "10.77.0.14", "10.77.0.15"), "10.77.0.254")
    with Client(daemon.socket_path) as client:
        client.call("backend.add", {"farm": "web", "address": "10.77.0.15", "port": 8080})
        assert client.note == "", "they are behind one gateway"
    wait_until(lambda: not [each for each in daemon.call("doctor") if each["name"] == "neighbour table"], "the end of it")


def test_an_interface_that_comes_back_is_attached_again(daemon: RunningDaemon) -> None:
    events = daemon.network.events
    assert events is not None
    eth0 = daemon.network.links.pop("eth0")
    assert daemon.call("status")["interfaces"][0]["xdp_mode"] is None
    daemon.network.links["eth0"] = replace(eth0, index=9, xdp_program=0, xdp_mode="")
    daemon.on_loop(events.link_changed, "eth0", "new")
    wait_until(lambda: daemon.network.links["eth0"].xdp_program == PROGRAM, "the attachment")
    bumps = daemon.plane.next_hop_bumps
    daemon.on_loop(events.next_hops_changed)
    assert daemon.plane.next_hop_bumps == bumps + 1


# --- flows ---------------------------------------------------------------------------------------------------


def put_connection(
    daemon: RunningDaemon, client_port: int, server: str, protocol: Protocol = Protocol.TCP, age: int = 0, state: int = 1
) -> None:
    """Both flows of a SNAT connection of farm web, as the XDP program creates them."""
    plane = daemon.plane
    number = PROTOCOL_NUMBERS[protocol]
    backend = next(each for each, (address, _) in plane.backends.items() if address == server)
    forward = FlowTuple("192.0.2.1", VIP, client_port, 80, number)
    reply = FlowTuple(server, VIP, 8080, client_port, number)
    for arrives, leaves, flags in ((forward, reply, FlowFlag.FORWARD), (reply, forward, FlowFlag(0))):
        value = np.zeros(1, dtype=flow_dtype("v4"))
        turned = plane.encode_flow_keys("v4", [leaves])[0]
        value["source"], value["destination"] = turned["destination"], turned["source"]
        value["source_port"], value["destination_port"] = turned["destination_port"], turned["source_port"]
        value["last_seen"], value["farm"], value["backend"] = (
            plane.tick - age,
            daemon.farms.farms["web"].id,
            backend,
        )
        value["flags"], value["state"] = int(flags), state
        assert plane.update_flows("v4", plane.encode_flow_keys("v4", [arrives]), value) == 1


def test_connections_are_listed_counted_shown_and_flushed(daemon: RunningDaemon) -> None:
    for port in range(40000, 40010):
        put_connection(daemon, port, SERVERS[port % 3])
    listed = daemon.call("conn.list", farm="web", limit=4)
    assert (len(listed["connections"]), listed["total"]) == (4, 10)
    assert listed["connections"][0]["vip"] == f"{VIP}:80" and listed["connections"][0]["farm"] == "web"
    assert daemon.call("conn.count") == {"total": 10}
    shown = daemon.call("conn.show", source="192.0.2.1", source_port=40000, destination=VIP, destination_port=80)
    assert shown["exists"] and shown["backend"] == f"{SERVERS[40000 % 3]}:8080"
    on_first = sum(port % 3 == 0 for port in range(40000, 40010))
    assert daemon.call("conn.flush", farm="web", backend=f"{SERVERS[0]}:8080") == {"removed": 2 * on_first}
    assert daemon.call("conn.flush") == {"removed": 2 * (10 - on_first)}


def test_a_sweep_counts_the_live_and_removes_the_idle(daemon: RunningDaemon) -> None:
    long_ago = 200_000
    put_connection(daemon, 40001, SERVERS[0])
    put_connection(daemon, 40002, SERVERS[1], age=long_ago)
    put_connection(daemon, 40003, SERVERS[2], age=4000, state=int(FlowState.SEEN | FlowState.RST))
    wait_until(lambda: daemon.node.parts.local.sweeper.expired == 4, "two connections to expire")
    wait_until(lambda: sum(daemon.node.parts.local.sweeper.result.connections.values()) == 1, "the next count")
    backends = {each["address"]: each["connections"] for each in daemon.call("farm.show", name="web")["backends"]}
    assert backends == {SERVERS[0]: 1, SERVERS[1]: 0, SERVERS[2]: 0}
    assert daemon.call("conn.count") == {"total": 1}


def test_connections_of_a_removed_backend_are_deleted(daemon: RunningDaemon) -> None:
    put_connection(daemon, 40001, SERVERS[0])
    put_connection(daemon, 40002, SERVERS[1])
    daemon.call("backend.remove", farm="web", address=SERVERS[0], port=8080)
    wait_until(lambda: daemon.call("conn.count")["total"] == 1, "the flows to go")


def test_a_farm_may_keep_connections_of_removed_backends_and_remove_now_ends_them(daemon: RunningDaemon) -> None:
    daemon.call("farm.set", name="web", on_backend_removed="keep")
    for port, server in enumerate(SERVERS, 40001):
        put_connection(daemon, port, server)
    daemon.call("backend.remove", farm="web", address=SERVERS[1], port=8080, now=True)
    assert daemon.call("conn.count")["total"] == 2, "ended when the command is answered"
    daemon.call("backend.remove", farm="web", address=SERVERS[0], port=8080)
    sweeps = daemon.node.parts.local.sweeper.sweeps
    wait_until(lambda: daemon.node.parts.local.sweeper.sweeps > sweeps + 1, "the next sweeps")
    assert daemon.call("conn.count")["total"] == 2


def test_a_drain_with_a_deadline_cuts_what_is_left(daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    put_connection(daemon, 40001, SERVERS[0])
    put_connection(daemon, 40002, SERVERS[1])
    began = time.time()
    with caplog.at_level("INFO"):
        daemon.call("backend.drain", farm="web", address=SERVERS[0], port=8080, deadline=1, drain_then="cut")
        (drained,) = [each for each in daemon.call("farm.show", name="web")["backends"] if each["state"] == "drain"]
        assert began + 1 <= drained["drain_until"] <= time.time() + 2 and drained["drain_then"] == "cut"
        assert daemon.call("conn.count")["total"] == 2
        wait_until(lambda: daemon.call("conn.count")["total"] == 1, "the connection to be cut")
    assert time.time() >= drained["drain_until"]
    assert f"drain of backend {SERVERS[0]}:8080 of farm web reached its deadline" in caplog.text
    (ended,) = [each for each in daemon.call("watch", last=100)["events"] if each["event"] == "drain.ended"]
    assert ended["fields"] == {
        "farm": "web",
        "backend": f"{SERVERS[0]}:8080",
        "cause": "deadline",
        "connections": 1,
        "cut": True,
    }
    assert accepting(daemon.plane) == set(SERVERS[1:]), "it stays drained"


def test_a_drain_without_connections_is_reported_as_complete(daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    put_connection(daemon, 40001, SERVERS[0])
    sweeper = daemon.node.parts.local.sweeper

    def ended() -> list[dict[str, Any]]:
        return [each["fields"] for each in daemon.call("watch", last=100)["events"] if each["event"] == "drain.ended"]

    with caplog.at_level("INFO"):
        for server in SERVERS[:2]:
            daemon.call("backend.drain", farm="web", address=server, port=8080)
        wait_until(ended, "the end of the drain without connections")
        sweeps = sweeper.sweeps
        wait_until(lambda: sweeper.sweeps > sweeps + 1, "the next sweeps")
        assert [each["backend"] for each in ended()] == [f"{SERVERS[1]}:8080"]
        daemon.call("conn.flush", backend=f"{SERVERS[0]}:8080")
        wait_until(lambda: len(ended()) == 2, "the end of the other one")
    fields = {"farm": "web", "backend": f"{SERVERS[0]}:8080", "cause": "empty", "connections": 0, "cut": False}
    assert ended()[-1] == fields
    assert f"drain of backend {SERVERS[0]}:8080 of farm web is complete: it has no connections" in caplog.text


def test_a_dry_run_counts_live_connections_and_changes_nothing(daemon: RunningDaemon) -> None:
    for port in range(40001, 40011):
        put_connection(daemon, port, SERVERS[port % 3])
    on_first = sum(port % 3 == 0 for port in range(40001, 40011))
    generation, server = daemon.farms.generation, {"farm": "web", "address": SERVERS[0], "port": 8080}

    def asked(change: str, **more: object) -> tuple[dict[str, int], dict[str, Any]]:
        answer = daemon.call("config.impact", change=change, arguments=server | more)
        (farm,) = answer["farms"]
        return answer["connections"], farm

    totals, farm = asked("backend.remove")
    assert totals == {"stay": 10 - on_first, "move": 0, "end": on_first}
    assert 0.33 < farm["clients_moved"] < 0.36
    before = {each["backend"]: (each["share_before"], each["share_after"]) for each in farm["backends"]}
    assert before[f"{SERVERS[0]}:8080"] == (pytest.approx(1 / 3, abs=0.001), 0)
    assert before[f"{SERVERS[1]}:8080"] == (pytest.approx(1 / 3, abs=0.001), pytest.approx(1 / 2, abs=0.001))
    assert asked("backend.set", weight=0)[0] == {"stay": 10, "move": 0, "end": 0}
    assert asked("backend.drain", deadline=60, drain_then="cut")[0]["end"] == on_first
    whole = daemon.call("config.impact", change="farm.delete", arguments={"name": "web"})
    assert whole["connections"] == {"stay": 0, "move": 0, "end": 10}
    assert daemon.call("config.impact", document={"vip": [], "farm": []})["connections"]["end"] == 10
    with invalid(Code.INVALID_VALUE, "change"):
        daemon.call("config.impact", change="conn.flush")
    assert daemon.farms.generation == generation and daemon.call("conn.count") == {"total": 10}
    daemon.call("farm.set", name="web", on_backend_removed="keep")
    assert asked("backend.remove")[0] == asked("backend.remove", now=False)[0] == {"stay": 10, "move": 0, "end": 0}
    assert asked("backend.remove", now=True)[0] == {"stay": 10 - on_first, "move": 0, "end": on_first}
    with invalid(Code.INVALID_VALUE, "now"):
        asked("backend.remove", now="yes")


@pytest.mark.parametrize("deadline", [0, -1, True, "5", 10**9])
def test_a_wrong_deadline_changes_nothing(daemon: RunningDaemon, deadline: object) -> None:
    generation = daemon.farms.generation
    with invalid(Code.INVALID_VALUE, "deadline"):
        daemon.call("backend.drain", farm="web", address=SERVERS[0], port=8080, deadline=deadline)
    assert daemon.farms.generation == generation


# --- health --------------------------------------------------------------------------------------------------


def test_a_backend_that_fails_is_taken_out_with_its_udp_flows_only(tmp_path: Path) -> None:
    servers = FakeServers(SERVERS[0])
    with running_daemon(tmp_path, servers=servers) as daemon:
        daemon.call("vip.add", address=f"{VIP}/24", device="eth0")
        check = {"kind": "tcp", "port": 1, "interval_ms": 500, "timeout_ms": 500, "fall": 2}
        daemon.call("farm.add", name="web", vip=VIP, port=80, health=check)
        daemon.call("backend.add", farm="web", address=SERVERS[0], port=8080)
        put_connection(daemon, 40001, SERVERS[0], Protocol.UDP)
        put_connection(daemon, 40002, SERVERS[0], Protocol.TCP)
        wait_until(lambda: accepting(daemon.plane) == set(), "the backend to be taken out")
        wait_until(lambda: daemon.call("conn.count")["total"] == 1, "the UDP flow to go")
        assert daemon.call("conn.list")["connections"][0]["protocol"] == "tcp"
        backend = daemon.call("farm.show", name="web")["backends"][0]
        assert (backend["state"], backend["last_error"]) == ("down", "10.77.0.11:1: connection refused")
        assert backend["state_for_s"] is not None
        wait_until(lambda: (tmp_path / "run" / "health.json").exists(), "the note for the next daemon")
    plane = daemon.plane
    plane.closed = False
    with running_daemon(tmp_path, plane) as daemon:
        assert accepting(plane) == set(), "a restart does not try the dead backend on clients"
        daemon.call("farm.set", name="web", health={"kind": "none"})
        wait_until(lambda: accepting(plane) == {SERVERS[0]}, "an unchecked backend to accept connections")


def test_a_change_does_not_give_connections_to_a_backend_that_is_down_or_new(tmp_path: Path) -> None:
    """Neither in the maps that the change writes, nor later, before a check has succeeded."""
    check = {"kind": "tcp", "interval_ms": 20, "timeout_ms": 20, "fall": 1}
    servers = FakeServers(SERVERS[1], SERVERS[2])
    with running_daemon(tmp_path, servers=servers) as daemon:
        daemon.call("vip.add", address=f"{VIP}/24", device="eth0")
        daemon.call("farm.add", name="web", vip=VIP, port=80, health=check)
        for server in SERVERS[:2]:
            daemon.call("backend.add", farm="web", address=server, port=8080)
        wait_until(lambda: accepting(daemon.plane) == {SERVERS[0]}, "the dead backend to be taken out")
        seen = set[str]()
        apply = daemon.plane.apply

        def watched(operations: Sequence[Operation]) -> None:
            apply(operations)
            seen.update(accepting(daemon.plane))

        daemon.plane.apply = watched  # type: ignore[method-assign]
        daemon.call("farm.set", name="web", health={"host": "www.example.org", "interval_ms": 60_000})
        daemon.call("farm.set", name="web", port=443, health={"kind": "http"})
        daemon.call("farm.stop", name="web")
        daemon.call("farm.start", name="web")
        daemon.call("backend.set", farm="web", address=SERVERS[1], port=8080, weight=9)
        daemon.call("backend.add", farm="web", address=SERVERS[2], port=8080)
        wait_until(lambda: backend_errors(daemon)[2] == f"{SERVERS[2]}:8080: connection refused", "the new one to be checked")
        document = daemon.call("config.export")
        document["farm"][0]["name"] = "shop"
        daemon.call("config.apply", document=document)
        assert seen == {SERVERS[0]}
        wait_until(lambda: accepting(daemon.plane) == {SERVERS[0]}, "the maps to settle")
        servers.refusing.clear()
        daemon.call("farm.set", name="shop", health={"interval_ms": 20})
        wait_until(lambda: accepting(daemon.plane) == set(SERVERS), "all to be in service after a success")


# --- conn show without a connection -------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["maglev", "source"])
def test_conn_show_names_the_backend_the_slots_name(tmp_path: Path, scheduler: str) -> None:
    with running_daemon(tmp_path) as daemon:
        add_web(daemon, scheduler=scheduler)
        ((key, value),) = daemon.plane.services().items()
        wait_until(lambda: len(daemon.network.kept) == 3, "the next hops to be kept")
        seen = set()
        for port in range(50000, 50030):
            shown = daemon.call(
                "conn.show", source=f"192.0.2.{port % 200}", source_port=port, destination=VIP, destination_port=80
            )
            assert (shown["verdict"], shown["slots"]) == ("forward", value.slot_count)
            packet = FlowTuple(f"192.0.2.{port % 200}", VIP, port, 80, PROTOCOL_NUMBERS[Protocol.TCP])
            seed = daemon.plane.hash_seed()
            by_hash = client_hash(packet.source, seed) if scheduler == "source" else flow_hash(packet, seed)
            assert shown["slot"] == by_hash % value.slot_count
            address, backend_port = daemon.plane.backends[daemon.plane.turn(key)[shown["slot"]]]
            assert shown["backend"] == f"{address}:{backend_port}"
            seen.add(shown["backend"])
        assert len(seen) == 3


@pytest.mark.parametrize(
    ("tuple_change", "verdict"),
    [
        ({}, "forward"),
        ({"destination": "10.77.0.99"}, "pass_not_ours"),
        ({"destination_port": 81}, "drop_vip_guard"),
        ({"protocol": "udp"}, "drop_vip_guard"),
    ],
)
def test_conn_show_gives_the_reason_of_a_refusal(daemon: RunningDaemon, tuple_change: dict[str, object], verdict: str) -> None:
    packet = {"source": "192.0.2.1", "source_port": 4000, "destination": VIP, "destination_port": 80} | tuple_change
    wait_until(lambda: len(daemon.network.kept) == 3, "the next hops to be kept")
    shown = daemon.call("conn.show", **packet)
    assert (shown["exists"], shown["verdict"]) == (False, verdict)
    assert shown["why"] or verdict == "forward"


def test_conn_show_without_a_backend_to_take_it(daemon: RunningDaemon) -> None:
    for server in SERVERS:
        daemon.call("backend.drain", farm="web", address=server, port=8080)
    shown = daemon.call("conn.show", source="192.0.2.1", source_port=4000, destination=VIP, destination_port=80)
    assert shown["verdict"] == "drop_no_backend"
    assert "is draining" in shown["steps"][-1]


def test_conn_show_sees_a_stopped_farm(daemon: RunningDaemon) -> None:
    daemon.call("farm.stop", name="web")
    packet = {"source": "192.0.2.1", "source_port": 4000, "destination": VIP, "destination_port": 80}
    shown = daemon.call("conn.show", **packet)
    assert (shown["verdict"], shown["why"], shown["farm"]) == ("drop_vip_guard", "farm web is stopped", "web")
    _, out, _ = run("--config", str(daemon.config), "conn", "show", f"192.0.2.1:4000 -> {VIP}:80")
    assert out.startswith("outcome  farm web is stopped (drop_vip_guard)\n")


def test_conn_show_sees_an_unresolved_next_hop(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until(lambda: daemon.network.kept == {(2, server) for server in SERVERS}, "the next hops to be kept")
    packet = {"source": "192.0.2.1", "source_port": 4000, "destination": VIP, "destination_port": 80}
    shown = daemon.call("conn.show", **packet)
    backend = shown["backend"].split(":")[0]
    assert (shown["verdict"], shown["steps"][-1]) == ("forward", f"next hop {backend} on eth0")
    monkeypatch.setattr(daemon.network, "neighbours", list)
    shown = daemon.call("conn.show", **packet)
    assert (shown["verdict"], shown["why"]) == ("pass_unresolved", f"next hop unresolved: {backend} on eth0")
    daemon.network.gateways[backend] = "10.77.0.1"
    assert daemon.call("conn.show", **packet)["why"] == "next hop unresolved: 10.77.0.1 on eth0"
    monkeypatch.setattr(daemon.network, "routes", lambda destinations: [None] * len(destinations))
    assert daemon.call("conn.show", **packet)["verdict"] == "drop_no_route"
    _, out, _ = run("--config", str(daemon.config), "conn", "show", f"192.0.2.1:4000 -> {VIP}:80")
    assert out.startswith(f"outcome  no route to {backend} (drop_no_route)\n")


# --- the process ---------------------------------------------------------------------------------------------


def run_main(*arguments: str) -> int:
    with logging_restored():
        try:
            main(arguments)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_node_file(tmp_path)
    path = tmp_path / "node.toml"
    assert run_main("--config", str(path), "--check-config") == 0
    path.write_text(path.read_text().replace("interfaces", "interface"))
    assert run_main("--config", str(path), "--check-config") == 2
    assert "data.interface" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--colour"], 2), (["--log-level", "loud"], 2)])
def test_wrong_usage_gives_a_one_line_message(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    assert run_main(*arguments) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_node_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("--config", "/nonexistent/node.toml") == 1
    message = capsys.readouterr().err
    assert "/nonexistent/node.toml" in message and "Traceback" not in message


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with (
        locked_run_dir(tmp_path / "run"),
        pytest.raises(XlbError, match=rf"another xlbd \(pid {os.getpid()}\) uses run_dir {tmp_path}/run"),
        locked_run_dir(tmp_path / "run"),
    ):
        pass
    with locked_run_dir(tmp_path / "run"):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o750


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked_run_dir(tmp_path):
            os._exit(0)
    os.waitpid(child, 0)
    with locked_run_dir(tmp_path), (tmp_path / "xlbd.lock").open() as file:
        assert file.read() == f"{os.getpid()}\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_status_and_stats_are_documents(daemon: RunningDaemon) -> None:
    status = daemon.call("cluster.status")
    assert status.pop("since_s") >= 0
    assert status == {
        "node": "lb1",
        "role": "single",
        "epoch": 0,
        "generation": daemon.farms.generation,
        "lease_ms_left": None,
        "peer": None,
        "sync": None,
        "faults": [],
    }
    everything = daemon.call("status")
    assert everything.items() >= status.items()
    json.dumps([everything, daemon.call("stats"), daemon.call("doctor")])


def test_an_interface_of_the_node_file_that_is_missing_fails_the_doctor_not_the_node(daemon: RunningDaemon) -> None:
    daemon.network.links["eth0"] = replace(daemon.network.links["eth0"], carrier=False)
    daemon.network.problems = [Advice("net.ipv4.ip_forward is 0, must be 1", "sysctl -w net.ipv4.ip_forward=1")]
    findings = {each["name"]: each for each in daemon.call("doctor")}
    assert (findings["interface eth0"]["ok"], findings["interface eth0"]["message"]) == (False, "has no carrier")
    assert findings["forwarding"] == {
        "name": "forwarding",
        "ok": False,
        "status": "fail",
        "message": "net.ipv4.ip_forward is 0, must be 1",
        "remedy": "sysctl -w net.ipv4.ip_forward=1",
    }


def test_doctor_warns_of_farms_without_a_check(daemon: RunningDaemon) -> None:
    daemon.call("farm.add", name="dns", vip=VIP, port=53, proto="udp")
    daemon.call("farm.add", name="shop", vip=VIP, port=81)
    for farm in ("dns", "shop"):
        daemon.call("backend.add", farm=farm, address=SERVERS[0], port=53)
    findings = {each["name"]: each for each in daemon.call("doctor") if each["name"].endswith(" check")}
    assert {name: (each["status"], each["remedy"]) for name, each in findings.items()} == {
        "farm web check": ("warn", "xlbctl farm set web --check tcp"),
        "farm dns check": ("warn", "xlbctl farm set dns --check tcp --check-port PORT"),
    }


def test_own_addresses_are_refused_as_vip_and_backend(daemon: RunningDaemon) -> None:
    daemon.network.present.add(InterfaceAddress("eth1", "10.77.0.1", 24))
    with refused(Code.OWN_ADDRESS):
        daemon.call("vip.add", address="10.77.0.1/24", device="eth0")
    with refused(Code.OWN_ADDRESS):
        daemon.call("backend.add", farm="web", address="10.77.0.1", port=8080)
    document = daemon.call("config.export")
    document["vip"].append({"address": "10.77.0.1/32", "device": "eth0"})
    with refused(Code.OWN_ADDRESS):
        daemon.call("config.apply", document=document)
    with refused(Code.OWN_ADDRESS):
        daemon.call("config.apply", document=document, dry_run=True)
    daemon.call("config.apply", document=document, force=True)
    assert daemon.call("config.apply", document=daemon.call("config.export")) == []
    (finding,) = (each for each in daemon.call("doctor") if each["name"] == "vip 10.77.0.1" and each["status"] == "warn")
    assert finding["message"].startswith("10.77.0.1 is lb1's own address on eth1") and "free address" in finding["remedy"]
    daemon.call("vip.add", address="10.77.0.101/24", device="eth0")
    daemon.call("vip.delete", address="10.77.0.101")
    daemon.call("vip.add", address="10.77.0.101/24", device="eth0")  # what the daemon added is no address of the node's own


def test_the_guard_of_a_vip_can_be_changed(daemon: RunningDaemon) -> None:
    assert daemon.plane.vips() == {VIP: 0}
    assert daemon.call("vip.set", address=VIP, guard=False)["guard"] is False
    assert daemon.plane.vips() == {VIP: int(VipFlag.OPEN)}
    generation = daemon.farms.generation
    daemon.call("vip.set", address=VIP, guard=False)
    assert daemon.farms.generation == generation
    code, out, _ = run("--config", str(daemon.config), "vip", "set", VIP, "--guard")
    assert (code, out, daemon.plane.vips()) == (0, f"vip {VIP} changed: guard on\n", {VIP: 0})
    with refused(Code.UNKNOWN_VIP):
        daemon.call("vip.set", address="10.77.0.250", guard=True)
    with refused(Code.MISSING_ARGUMENT):
        daemon.call("vip.set", address=VIP)
