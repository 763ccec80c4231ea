"""A real pair under faults: which node is active afterwards, what clients lose, and that two nodes never answer at once."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from tests.net.faults import FAULTS, Fault, Observer, ProbeFarm
from tests.net.paired import PairSite, paired
from tests.net.serving import PORTS
from tests.rig import VIP4, HeldConnections, Node, Rig, Tally, http_get, repeat
from tests.wait import wait_until

HELD = 200
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
"""Slow enough for a machine that runs other tests at the same time; the benchmarks measure how fast a pair can be."""

OUTAGE_MS = 1000


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(cluster=TIMES) as pair:
        pair.add_farm("tcp")
        with ProbeFarm(pair.rig, pair.node):
            yield pair


@pytest.fixture
def held(site: PairSite) -> Iterator[HeldConnections]:
    with site.holding(HELD) as connections:
        yield connections


def step_back(site: PairSite, struck: Node, fault: Fault) -> None:
    fault.heal(site.rig, struck)
    wait_until(lambda: site.status(struck)["role"] == "backup", f"{struck.name} steps back", 15)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name)
def test_a_fault_of_the_serving_node(site: PairSite, held: HeldConnections, fault: Fault) -> None:
    struck, other = site.node, site.other
    with Observer(site.rig, held) as observer:
        observer.strike(fault, struck)
        if not fault.splits:
            step_back(site, struck, fault)
        cost = observer.cost()
    if fault.splits:
        step_back(site, struck, fault)
        if f" ERROR   {struck.name} is backup" in struck.tail(200):  # both were active; else the carrier was lost first
            said = f"split brain: {struck.name} was active too until now; {other.name} stays active"
            wait_until(lambda: said in other.tail(200), "the journal of the winner")
    assert cost.both_ms == 0, cost
    assert cost.harmless, cost
    assert cost.outage_ms < OUTAGE_MS, cost
    site.settle()
    assert site.node is other, "the VIPs moved once and stayed"
    assert VIP4 in site.addresses(other)
    assert VIP4 not in site.addresses(struck)


def cut_cluster(rig: Rig, node: Node) -> None:
    rig.cut(node.name, "ha0", silently=True)


def mend_cluster(rig: Rig, node: Node) -> None:
    rig.mend(node.name, "ha0")


def test_both_nodes_of_a_sound_pair_are_ok_for_monitoring(site: PairSite) -> None:
    site.settle()
    wait_until(lambda: {node.call("status")["check"]["exit_code"] for node in site.rig.nodes} == {0}, "both to be sound", 10)
    for node in site.rig.nodes:
        views = {each["name"]: each["status"]["role"] for each in node.call("cluster.nodes")["nodes"]}
        assert views == {site.node.name: "active", site.other.name: "backup"}


def test_a_client_on_the_nodes_themselves(site: PairSite) -> None:
    """As docs/OPERATIONS.md has it: the serving node's kernel refuses it, the backup is a client like any other."""
    site.settle()

    def connect() -> str:
        with socket.socket() as one:
            one.settimeout(5)
            try:
                one.connect((VIP4, PORTS["tcp"]))
                return one.recv(200).decode().split()[0]
            except OSError as error:
                return type(error).__name__

    assert site.node.namespace.call(connect) == "ConnectionRefusedError"
    assert site.other.namespace.call(connect).startswith("b")
    for node, message in ((site.node, "refused by this node's own kernel"), (site.other, "as long as it is the backup")):
        (found,) = [each for each in node.call("doctor") if each["name"] == "local clients"]
        assert found["ok"] and found["status"] == "info" and message in found["message"]


def test_a_cut_of_the_cluster_link_alone_changes_nothing(site: PairSite, held: HeldConnections) -> None:
    """VRRP on the data network still shows which node is active."""
    serving, other = site.node, site.other
    epoch = site.status(serving)["epoch"]
    with Observer(site.rig, held) as observer:
        observer.strike(Fault("cluster link", cut_cluster, mend_cluster, moves=False), serving)
        wait_until(lambda: not site.status(other)["paths"]["cluster"], "the peer to be detected as silent")
        observer.good(300)
        assert site.status(other)["paths"]["data"]
        assert site.status(other)["role"] == "backup"
        check = other.call("status")["check"]
        assert check["exit_code"] == 1 and "cluster link: brings no heartbeat" in check["line"]
        assert serving.call("status")["check"]["exit_code"] == 1
        mend_cluster(site.rig, serving)
        site.settle()
        cost = observer.cost()
    assert cost.harmless, cost
    assert (site.node, site.status(serving)["epoch"]) == (serving, epoch)


def test_a_lost_carrier_hands_the_vips_over(site: PairSite, held: HeldConnections) -> None:
    struck = site.node
    loud = Fault("carrier", lambda rig, node: rig.cut(node.name), lambda rig, node: rig.mend(node.name))
    with Observer(site.rig, held) as observer:
        observer.strike(loud, struck)
        assert site.status(struck)["role"] == "fault"
        assert "no carrier on eth0" in site.status(struck)["why"]
        why = site.status(site.node)["why"]
        loud.heal(site.rig, struck)
        wait_until(lambda: site.status(struck)["role"] == "backup", "the lost carrier to be detected", 15)
        cost = observer.cost()
    assert cost.harmless, cost
    assert "silent" not in why, "the peer waited for a time-out"


def test_maintenance_by_the_real_command(site: PairSite, held: HeldConnections) -> None:
    node, other = site.node, site.other
    assert node.xlbctl("cluster", "maintenance", "on").stdout == f"{node.name} is maintenance, {other.name} is active\n"
    status = node.json("cluster", "status")
    assert (status["role"], status["peer"]["role"]) == ("maintenance", "active")
    refused = other.xlbctl("cluster", "switchover", expect=1).stderr
    assert f"{node.name} is maintenance" in refused
    assert node.xlbctl("cluster", "maintenance", "off").stdout == f"{node.name} is backup, {other.name} is active\n"
    site.settle()
    assert site.node is other
    assert site.rig.client.run(held.confirm()) == 0
    assert held.broken == []


def test_a_backup_that_dies_is_not_missed(site: PairSite, held: HeldConnections) -> None:
    serving, other = site.node, site.other
    epoch = site.status(serving)["epoch"]
    other.kill()
    wait_until(lambda: not site.status(serving)["peer"]["alive"], "the peer to be detected as silent")
    assert site.rig.client.run(held.confirm()) == 0
    assert (site.status(serving)["role"], site.status(serving)["epoch"]) == ("active", epoch)
    other.start()
    site.settle()
    assert site.node is serving


def test_both_stopped_at_once_are_one_active_again(site: PairSite, held: HeldConnections) -> None:
    """As after a hypervisor's hiccup: both leases have expired, both nodes notice, and one of them becomes active."""
    for node in site.rig.nodes:
        node.signal(signal.SIGSTOP)
    for node in site.rig.nodes:
        node.signal(signal.SIGCONT)
    site.settle()
    assert site.rig.client.run(held.confirm()) == 0
    assert held.broken == []


def test_a_successor_knows_which_backends_are_down(site: PairSite) -> None:
    """The active node dies: its successor, which did not check itself, sends nothing to a backend that is down, and connections
    to one that has come back.
    """
    site.settle()
    check = {"kind": "tcp", "interval_ms": 3000, "timeout_ms": 1000, "rise": 1, "fall": 1}  # slower than a takeover
    site.add_farm("http", health=check)
    dead, back = site.rig.backend("b1"), site.rig.backend("b2")

    def are(first: str, second: str) -> bool:
        """Whether both nodes have these states of the two."""
        found = []
        for node in site.rig.nodes:
            states = {each["address"]: each["state"] for each in node.call("farm.show", name="http4")["backends"]}
            found.append((states[dead.address4], states[back.address4]))
        return found == [(first, second)] * 2

    dead.kill()
    back.kill()
    wait_until(lambda: are("down", "down"), "both nodes know that b1 and b2 are down")
    back.start()
    wait_until(lambda: are("down", "up"), "both nodes know that b2 is up")
    struck, other = site.node, site.other
    struck.kill()
    wait_until(lambda: site.status(other)["role"] == "active", "the successor is active", every_s=0.005)
    tally = site.rig.client.run(repeat(lambda: http_get(VIP4, PORTS["http"]), 60, Tally()))
    assert tally.failures == []
    assert set(tally.by_backend) == {"b2", "b3"}
    dead.start()
    struck.start()
    site.settle()
    site.node.call("farm.delete", name="http4")
