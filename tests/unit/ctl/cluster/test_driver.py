"""Two daemons that are a pair: the real state machines and cluster link over loopback, fake kernels."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bpf.constants import LEASE_FOREVER_NS, LEASE_HANDED_OVER_NS
from ctl.cluster.driver import FailoverDriver
from ctl.cluster.effects import Sinks
from ctl.cluster.epoch_writer import EpochWriter
from ctl.cluster.member import failover_config
from ctl.cluster.operator_requests import Requests
from ctl.config.model import Config, Vip
from ctl.errors import Code, InvalidInput, XlbError
from ctl.network.network import InterfaceAddress, Observed
from ctl.network.vip_addresses import VipAddresses
from ctl.state.cluster_file import ClusterFile
from ctl.state.epoch_file import EpochFile, EpochState
from sync.failover.timing import Timing
from sync.failover.types import Announce, CloseLease, ExtendLease, FailoverConfig, Heartbeat, Role, SendAdvert, Serve
from tests.fakes.network import FakeNetwork, FakeReadyAddresses
from tests.fakes.pair import Site, addresses, in_step, join, pair_without, paired_sites, site, two_sites
from tests.fakes.plane import FakePlane
from tests.refusals import refused
from tests.wait import wait_until, wait_until_async

VIP = InterfaceAddress("eth0", "10.77.0.100", 24)
CONFIG = Config(generation=1, vips={VIP.address: Vip(VIP.address, VIP.prefix_length, VIP.device, True)})
ADDRESS = "10.77.0.100/24"
FAST = "heartbeat_ms = 60\nlease_ms = 600\ntakeover_ms = 700"  # long enough for two daemons in one process


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """lb1 is active with one VIP, lb2 is a backup in step."""
    with paired_sites(tmp_path, {0: FAST, 1: FAST}, ADDRESS) as both:
        yield both


def is_open(one: Site) -> bool:
    return one.daemon.plane.lease()[0] > time.monotonic_ns()


# --- roles ----------------------------------------------------------------------------------------------------------


def test_the_creator_stays_active_without_interruption(tmp_path: Path) -> None:
    with two_sites(tmp_path, cluster={0: FAST, 1: FAST}) as (one, two):
        one.call("vip.add", address=ADDRESS, device="eth0")
        leases: list[tuple[int, int]] = []
        plane, write = one.daemon.plane, one.daemon.plane.set_lease

        def watched(deadline_ns: int, epoch: int) -> None:
            leases.append((time.monotonic_ns(), deadline_ns))
            write(deadline_ns, epoch)

        plane.set_lease = watched  # type: ignore[method-assign]
        join(one, two)
        in_step(one, two)
        assert leases
        assert all(deadline_ns > at_ns for at_ns, deadline_ns in leases)
        deadlines = [LEASE_FOREVER_NS] + [deadline_ns for _, deadline_ns in leases]
        assert all(at_ns < before for (at_ns, _), before in zip(leases, deadlines, strict=False)), "the lease had run out"
        assert VIP in one.daemon.network.present


def test_only_the_active_node_carries_the_addresses_and_an_open_lease(pair: tuple[Site, Site]) -> None:
    one, two = pair
    assert is_open(one) and not is_open(two)
    assert VIP in one.daemon.network.present and VIP not in two.daemon.network.present
    assert not two.daemon.network.announced
    assert two.daemon.farms.vips.keys() == {"10.77.0.100"}, "the backup's maps are those of the active node"


def test_doctor_accepts_a_backup_and_fenced_packets(pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    for node in pair:
        counted = node.daemon.plane.counters() | {"drop_fenced": (3, 180)}
        monkeypatch.setattr(node.daemon.plane, "counters", lambda counted=counted: counted)
        findings = {each["name"]: each["ok"] for each in node.call("doctor")}
        assert (findings["vips"], findings["drops"]) == (True, True)
    pair[0].call("cluster.destroy")
    assert "drop_fenced" in {each["name"] for each in pair[0].call("doctor")}, "a single node's lease never expires"


def test_conn_show_on_the_backup_names_the_active_node(pair: tuple[Site, Site]) -> None:
    one, two = pair
    one.call("farm.add", name="web", vip="10.77.0.100", port=80, health={"kind": "none"})
    one.call("backend.add", farm="web", address="10.77.0.11", port=8080)
    wait_until(lambda: "web" in two.daemon.farms.farms and two.daemon.network.kept, "the farm on the backup")
    packet = {"source": "192.0.2.1", "source_port": 4000, "destination": "10.77.0.100", "destination_port": 80}
    wait_until(lambda: one.call("conn.show", **packet)["verdict"] == "forward", "the next hop on the active node")
    shown = two.call("conn.show", **packet)
    assert (shown["verdict"], shown["why"]) == ("drop_fenced", "backup; lb1 handles this")
    assert shown["backend"] == "10.77.0.11:8080" and shown["steps"][-1] == "on the active node: forward"
    assert two.call("conn.show", **packet | {"destination": "10.77.0.7"})["verdict"] == "pass_not_ours"
    one.cut_links()
    one.daemon.on_loop(one.member.pair.stop)
    two.call("cluster.maintenance", on=True, force=True)
    wait_until(lambda: not two.status["peer"]["alive"], "the peer to be missed")
    assert two.call("conn.show", **packet)["why"] == "maintenance; neither node answers for the VIPs"


def test_only_what_an_operator_should_look_at_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ctl")
    with paired_sites(tmp_path, {0: FAST, 1: FAST}, ADDRESS) as (one, two):
        assert "pairing: lb2 at" in caplog.text
        one.call("cluster.switchover")
        wait_until(lambda: two.status["role"] == "active", "the peer to become active")
        in_step(two, one)
        two.call("cluster.maintenance", on=True)
        wait_until(lambda: one.status["role"] == "active", "the VIPs to come back")
        two.call("cluster.maintenance", on=False)
        in_step(one, two)
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
        one.cut_links()
        wait_until(lambda: two.status["role"] == "active", "the takeover")
    raised = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
    assert any("is active" in message and "lb1 silent on every heartbeat path" in message for message in raised)
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


@pytest.mark.parametrize("asked_on", [0, 1])
def test_switchover_from_either_node(pair: tuple[Site, Site], asked_on: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.cluster.effects.HANDED_OVER_S", 0.2)
    one, two = pair
    before = one.status["epoch"]
    pair[asked_on].call("cluster.switchover")
    wait_until(lambda: two.status["role"] == "active", "the peer to become active")
    in_step(two, one)
    assert two.status["epoch"] > before
    assert VIP in two.daemon.network.present and VIP not in one.daemon.network.present
    assert VIP in two.daemon.network.announced
    assert one.daemon.plane.lease()[0] in (0, LEASE_HANDED_OVER_NS)
    wait_until(lambda: one.daemon.plane.lease()[0] == 0, "the end of forwarding what came late")


def test_a_switchover_to_an_absent_node_is_refused(tmp_path: Path) -> None:
    with pair_without(tmp_path, 1, FAST, ADDRESS) as (one, _):
        wait_until(lambda: not one.status["peer"]["alive"], "the end of the peer")
        with refused(Code.FAILOVER_REFUSED):
            one.call("cluster.switchover")
        assert one.status["role"] == "active" and is_open(one)


def test_the_backup_takes_over_from_a_dead_peer(pair: tuple[Site, Site]) -> None:
    one, two = pair
    one.daemon.on_loop(one.member.pair.stop)  # like kill -9: it sends no further packet
    wait_until(lambda: two.status["role"] == "active", "takeover")
    assert is_open(two)
    assert "silent on every heartbeat path" in two.status["why"]
    assert VIP in two.daemon.network.present and VIP in two.daemon.network.announced
    assert not is_open(one), "the dead node's lease expired by itself before"


def test_maintenance_hands_over_survives_a_restart_and_ends(pair: tuple[Site, Site]) -> None:
    one, two = pair
    assert one.call("cluster.maintenance", on=True)["role"] == "maintenance"
    wait_until(lambda: two.status["role"] == "active", "the peer to become active")
    assert EpochFile(one.directory / "state").load()[0].maintenance
    with refused(Code.FAILOVER_REFUSED):
        two.call("cluster.switchover")
    one.call("cluster.maintenance", on=False)
    in_step(two, one)
    assert not EpochFile(one.directory / "state").load()[0].maintenance


def test_maintenance_without_a_peer_needs_force(pair: tuple[Site, Site]) -> None:
    one, two = pair
    two.call("cluster.maintenance", on=True)
    with refused(Code.FAILOVER_REFUSED):
        one.call("cluster.maintenance", on=True)
    assert one.status["role"] == "active" and is_open(one)
    one.call("cluster.maintenance", on=True, force=True)
    assert one.status["role"] == "maintenance" and not is_open(one)


def test_failback_goes_to_the_higher_priority_and_does_nothing_when_it_is_active(tmp_path: Path) -> None:
    with paired_sites(tmp_path, {0: f"{FAST}\npriority = 100", 1: f"{FAST}\npriority = 200"}, ADDRESS) as (one, two):
        one.call("cluster.failback")
        wait_until(lambda: two.status["role"] == "active", "the preferred node to serve")
        in_step(two, one)
        epoch = two.status["epoch"]
        one.call("cluster.failback")
        assert two.status["epoch"] == epoch


def test_a_stopped_daemon_hands_over_first(tmp_path: Path) -> None:
    with pair_without(tmp_path, 0, FAST, ADDRESS) as (one, two):
        assert two.status["role"] == "active"
        assert "granted the claim" in two.status["why"], "handed over, not timed out"
        assert VIP not in one.daemon.network.present
        assert one.daemon.plane.lease()[0] == 0


def test_a_restarted_node_starts_fenced_and_announces_nothing(tmp_path: Path) -> None:
    with (
        pair_without(tmp_path, 0, FAST, ADDRESS) as (one, two),
        site(tmp_path / "1", "lb1", one.address, FAST, one.daemon.plane) as again,
    ):
        in_step(two, again)
        assert not again.daemon.network.announced
        assert VIP not in again.daemon.network.present
        assert not is_open(again)


def test_times_raised_on_one_node_are_waited_for_and_reported_by_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ctl.cluster.effects")
    raised = "heartbeat_ms = 60\nlease_ms = 900\ntakeover_ms = 1000"
    with pair_without(tmp_path, 0, FAST) as (one, two):
        stored = EpochFile(one.directory / "state").load()[0]
        assert (stored.lease_ns, stored.peer_lease_ns) == (600_000_000, 600_000_000)
        with site(tmp_path / "1", "lb1", one.address, raised, one.daemon.plane) as again:
            in_step(two, again)
            timing = two.member.pair.machine.timing
            assert timing.takeover_ns > 900_000_000
            findings = {each["name"]: each for each in again.call("cluster.check")}
            assert findings["failover times"]["status"] == "warn"
            again.call("cluster.switchover")
            in_step(again, two)
            wait_until(lambda: again.status["lease_ms_left"] > 600, "the raised lease in force")
        assert EpochFile(two.directory / "state").load()[0].peer_lease_ns == 900_000_000
    assert "lb1 has lease_ms 900, this node 600: takeovers here wait 912 ms; make both node files equal" in caplog.text


def test_the_lease_left_by_a_single_node_is_closed_first(tmp_path: Path) -> None:
    with two_sites(tmp_path, cluster={0: FAST, 1: FAST}) as (one, two):
        join(one, two)
    plane = one.daemon.plane
    plane.set_lease(LEASE_FOREVER_NS, 0)  # the daemon died after writing cluster.json and before entering the pair
    with site(tmp_path / "1", "lb1", one.address, FAST, plane):
        assert plane.lease()[0] != LEASE_FOREVER_NS


def test_carrier_loss_moves_the_vips_and_its_return_does_not(pair: tuple[Site, Site]) -> None:
    one, two = pair
    member = one.member
    one.daemon.on_loop(member.fault_changed, "carrier eth0", "no carrier on eth0", True)
    wait_until(lambda: two.status["role"] == "active", "the peer to become active")
    assert one.status["role"] == "fault" and "no carrier on eth0" in one.status["why"]
    one.daemon.on_loop(member.fault_changed, "carrier eth0", "", True)
    in_step(two, one)


def test_a_failing_effect_stops_the_daemon(pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair

    def broken(_: Heartbeat) -> None:
        raise RuntimeError("a bug")

    member = one.member
    monkeypatch.setattr(member.links, "send_heartbeat", broken)
    wait_until(lambda: one.daemon.node.failed.done(), "the daemon to give up")
    assert "a bug" in one.daemon.node.failed.result()
    wait_until(lambda: two.status["role"] == "active", "the peer to become active")


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_has_the_fields_of_the_contract(pair: tuple[Site, Site]) -> None:
    one, two = pair
    for answer, role, peer_role in ((one.status, "active", "backup"), (two.status, "backup", "active")):
        assert json.loads(json.dumps(answer)) == answer
        assert answer["role"] == role and answer["epoch"] > 0 and answer["generation"] > 0
        assert (answer["lease_ms_left"] > 0) == (role == "active")
        assert set(answer["peer"]) >= {"name", "role", "alive", "last_heard_ms"}
        assert answer["peer"]["role"] == peer_role and answer["peer"]["alive"]
        assert 0 <= answer["peer"]["last_heard_ms"] < 5000
        assert set(answer["sync"]) >= {"in_step", "protected", "lag_ms"}
        assert answer["why"] and answer["paths"] == {"cluster": True, "data": False}


def test_a_single_node_has_no_switchover(tmp_path: Path) -> None:
    with site(tmp_path / "1", "lb1", addresses()[0]) as one:
        for command, arguments in (("cluster.switchover", {}), ("cluster.failback", {}), ("cluster.maintenance", {"on": True})):
            with refused(Code.NOT_IN_PAIR):
                one.call(command, **arguments)
        with pytest.raises(InvalidInput, match="true or false"):
            one.call("cluster.maintenance", on="yes")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("heartbeat_ms = 60\nlease_ms = 120\ntakeover_ms = 160", "cluster.lease_ms"),
        ("heartbeat_ms = 4\nlease_ms = 120\ntakeover_ms = 160", "cluster.heartbeat_ms"),
    ],
)
def test_times_that_do_not_fit_are_named(pair: tuple[Site, Site], change: str, key: str) -> None:
    one, _ = pair
    cluster = ClusterFile(one.directory / "state").load()
    assert cluster is not None
    from ctl.state import node_file

    path = one.directory / "node.toml"
    path.write_text(path.read_text().replace(FAST, change))
    with pytest.raises(InvalidInput) as caught:
        failover_config(node_file.load(path), cluster)
    assert caught.value.key == key


# --- order of effects -----------------------------------------------------------------------------------------------


class SilentLinks:
    """Discards what it sends."""

    def __init__(self) -> None:
        self.adverts: list[int] = []
        self.drained = 0

    def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        return

    def send_advert(self, priority: int) -> None:
        self.adverts.append(priority)

    def peer_lives(self, boot: int) -> None:
        return

    def ask_vote(self, asked_ns: int) -> None:
        return

    def drain(self) -> None:
        self.drained += 1


class NoFlows:
    """Applies received flows when the test releases it."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.serving: int = 0

    def peer_present(self, present: bool, boot: int = 0) -> None:
        return

    def serve(self, epoch: int) -> None:
        self.serving = epoch

    def stop_serving(self) -> None:
        self.serving = 0

    def flush(self, number: int, done: Any) -> None:
        done(number)

    def apply_pending(self, done: Any) -> None:
        self.waiting.append(done)


class Bench:
    """A Pair on fakes, on a running loop."""

    def __init__(self, tmp_path: Path, takeover_ms: int = 36) -> None:
        self.plane, self.network = FakePlane(), FakeNetwork()
        self.plane.set_lease(0, 0)
        self.vips = VipAddresses(self.network, tmp_path)
        self.vips.pair(serving=False)
        self.vips.follow(CONFIG)
        self.links, self.flows = SilentLinks(), NoFlows()
        timing = Timing.from_ms(10, 30, takeover_ms, start_wait_ns=takeover_ms * 1_000_000)
        config = FailoverConfig("lb1", "lb2", timing)
        self.epochs = EpochWriter(EpochFile(tmp_path), EpochState())
        sinks = Sinks(self.plane, self.vips, self.links, self.flows, self.epochs)
        self.pair = FailoverDriver(config, sinks, lambda: (True, (0, 1)))

    def do(self, *effects: Any) -> None:
        self.pair._effects.extend(effects)
        self.pair._run()


def open_lease() -> ExtendLease:
    """An extension for a second."""
    now_ns = time.monotonic_ns()
    return ExtendLease(now_ns + 10**9, 4, void_after_ns=now_ns + 10**9)


def test_vips_wait_for_the_lease_when_its_extension_is_discarded(tmp_path: Path) -> None:
    """A node without a lease that announced its VIPs would take traffic it must drop, from a peer that may serve it."""

    async def scene() -> None:
        bench = Bench(tmp_path)
        now_ns = time.monotonic_ns()
        bench.do(ExtendLease(now_ns + 10**9, 4, void_after_ns=now_ns - 1), Serve(4), Announce())
        assert not bench.network.present and not bench.network.announced
        bench.do(open_lease())
        assert bench.network.present and bench.network.announced and bench.flows.serving == 4
        bench.pair.stop()

    asyncio.run(scene())


def test_vips_that_wait_for_the_lease_are_forgotten_when_it_is_closed(tmp_path: Path) -> None:
    async def scene() -> None:
        bench = Bench(tmp_path)
        bench.do(Serve(4), CloseLease(), open_lease())
        assert not bench.network.present and not bench.flows.serving
        bench.pair.stop()

    asyncio.run(scene())


def test_a_change_adds_no_vip_after_the_lease_has_expired(tmp_path: Path) -> None:
    """The event loop may be late to notice, and the peer may have the VIPs by then."""
    network, is_open = FakeNetwork(), [True]
    vips = VipAddresses(network, tmp_path, lease_open=lambda: is_open[0])
    vips.pair(serving=True)
    is_open[0] = False
    vips.follow(CONFIG)
    assert not network.present and not network.announced
    is_open[0] = True
    list(vips.serve())
    assert network.present and network.announced


def test_void_effects_are_not_performed(tmp_path: Path) -> None:
    async def scene() -> None:
        bench = Bench(tmp_path)
        now = time.monotonic_ns()
        bench.do(ExtendLease(now + 10**9, 4, void_after_ns=now - 1), SendAdvert(100, void_after_ns=now - 1))
        assert bench.plane.lease()[0] == 0 and not bench.links.adverts
        bench.do(ExtendLease(now + 10**9, 4, void_after_ns=now + 10**9), SendAdvert(100, void_after_ns=now + 10**9))
        assert bench.plane.lease() == (now + 10**9, 4) and bench.links.adverts == [100]
        bench.pair.stop()

    asyncio.run(scene())


def test_activation_waits_for_received_flows_within_a_bound(tmp_path: Path) -> None:
    async def scene() -> None:
        bench = Bench(tmp_path)
        bench.pair.start()
        await wait_until_async(lambda: bench.flows.waiting, "the driver to wait for flows")
        assert bench.plane.lease()[0] == 0 and not bench.network.present, "flows come before the lease"
        await wait_until_async(lambda: bench.network.present, "the VIP addresses")
        assert bench.flows.serving == bench.pair.machine.epoch
        assert bench.links.drained, "silence was judged without looking for messages"
        bench.pair.stop()

    asyncio.run(scene())


def test_after_a_hand_over_the_addresses_are_gone_before_the_kernel_may_forward(tmp_path: Path) -> None:
    async def scene() -> None:
        bench = Bench(tmp_path)
        bench.do(open_lease(), Serve(2))
        assert bench.network.present
        at_marker: list[bool] = []
        write = bench.plane.set_lease

        def watched(deadline_ns: int, epoch: int) -> None:
            if deadline_ns == LEASE_HANDED_OVER_NS:
                at_marker.append(bool(bench.network.present))
            write(deadline_ns, epoch)

        bench.plane.set_lease = watched  # type: ignore[method-assign]
        bench.do(CloseLease(handover=True))
        assert at_marker == [False]
        bench.pair.stop()
        assert bench.plane.lease()[0] == 0, "forwarding does not outlive the daemon"

    asyncio.run(scene())


def test_an_outdated_decision_does_not_remove_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover happened while the thread that reconciles the interfaces was waiting."""
    network = FakeNetwork()
    vips = VipAddresses(network, tmp_path)
    vips.pair(serving=True)
    vips.follow(CONFIG)
    assert network.present
    list(vips.stop_serving())
    assert not network.present
    list(vips.serve())
    looked = network.observe

    def overtaken(*arguments: Any) -> Observed:
        found = looked(*arguments)
        list(vips.serve())
        return found

    def never(_: FakeReadyAddresses) -> list[str]:
        raise AssertionError("the addresses of a serving node were taken away")

    vips._serving = False
    monkeypatch.setattr(FakeReadyAddresses, "remove", never)
    network.observe = overtaken  # type: ignore[assignment, method-assign]
    vips.follow(CONFIG)
    assert network.present


def test_requests_are_answered_one_at_a_time() -> None:
    async def scene() -> None:
        requests = Requests()
        first = asyncio.ensure_future(requests.ask("switchover", lambda: None))
        await asyncio.sleep(0)
        with refused(Code.FAILOVER_REFUSED):
            await requests.ask("switchover", lambda: cast(None, requests.refused("switchover", "another is under way")))
        assert not first.done(), "the refusal was for the second one"
        assert not requests.completed("maintenance")
        requests.completed("switchover")
        await first
        waiting = asyncio.ensure_future(requests.ask("maintenance", lambda: None))
        await asyncio.sleep(0)
        requests.end("the pair ends")
        with pytest.raises(XlbError, match="the pair ends"):
            await waiting

    asyncio.run(scene())


def test_every_role_is_one_of_the_contract() -> None:
    assert {role.value for role in Role} - {"left"} == {"active", "backup", "fault", "maintenance"}


def test_a_fault_is_logged_shown_and_hands_over_and_the_faulty_node_takes_over_from_a_dead_peer(
    pair: tuple[Site, Site], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair
    in_step(one, two)
    fault = one.daemon.node.parts.membership.fault_changed
    one.daemon.on_loop(fault, "storage", "the state directory is full")
    wait_until(lambda: two.status["role"] == "active", "the fit peer to become active")
    assert (one.status["role"], one.status["can_serve"], one.status["faults"]) == (
        "backup",
        False,
        ["the state directory is full"],
    )
    assert "node fault: the state directory is full" in caplog.text
    one.daemon.on_loop(fault, "storage", "")
    wait_until(lambda: one.status["can_serve"], "the fault to end")
    assert one.status["faults"] == []


def test_a_fault_that_is_older_than_the_pair_counts_in_it(tmp_path: Path) -> None:
    with two_sites(tmp_path, cluster={0: FAST, 1: FAST}) as (one, two):
        one.daemon.on_loop(one.daemon.node.parts.membership.fault_changed, "storage", "the state directory is full")
        join(one, two)
        wait_until(lambda: two.status["role"] == "active", "the fit peer to become active")
        assert one.status["faults"] == ["the state directory is full"]
