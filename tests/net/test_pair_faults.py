"""What a pair loses and keeps beyond the faults of its active node: IPv6, a backup that leaves and returns, a large map."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.net.faults import FAULTS, Fault, Observer, ProbeFarm
from tests.net.many_flows import put_connections
from tests.net.paired import PairSite, paired
from tests.rig import VIP6, Layout, Node, Rig
from tests.wait import wait_until

HELD = 200
CONNECTIONS = 100_000
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
OUTAGE_MS = 1000


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(Layout(backends=2, nodes=2, max_flows=4 * CONNECTIONS), TIMES) as pair:
        pair.node.call("vip.add", address=f"{VIP6}/64", device="eth0")
        for family in (4, 6):
            pair.add_farm("tcp", family)
        with ProbeFarm(pair.rig, pair.node), ProbeFarm(pair.rig, pair.node, VIP6, acceptors=False):
            yield pair


@pytest.mark.parametrize("name", ["kill -9", "silent cut", "switchover"])
def test_an_ipv6_vip_moves_like_an_ipv4_one(site: PairSite, name: str) -> None:
    fault = FAULTS[name]
    with site.holding(HELD, 6) as held:
        struck, other = site.node, site.other
        with Observer(site.rig, held, VIP6) as observer:
            observer.strike(fault, struck)
            cost = observer.cost()
        fault.heal(site.rig, struck)
        assert cost.harmless, cost
        assert cost.outage_ms < OUTAGE_MS, cost
        site.settle()
        assert site.node is other
        assert f"{VIP6}/64" in site.addresses(other)
        assert f"{VIP6}/64" not in site.addresses(struck)
        assert f"local {VIP6} " not in struck.namespace.run("ip", "-6", "route", "show", "table", "local").stdout


def _restart(node: Node) -> None:
    assert node.stop() == 0, node.tail()
    node.start()


def _crash(node: Node) -> None:
    node.kill()
    node.start()


def _isolate(rig: Rig, node: Node) -> None:
    rig.cut_off(node.name)
    rig.mend_all(node.name)


def _pause(node: Node) -> None:
    node.signal(signal.SIGSTOP)
    node.signal(signal.SIGCONT)


BACKUP_FAULTS: dict[str, Callable[[Rig, Node], None]] = {
    "restart": lambda rig, node: _restart(node),
    "kill -9": lambda rig, node: _crash(node),
    "cut off": _isolate,
    "SIGSTOP": lambda rig, node: _pause(node),
}


@pytest.mark.parametrize("name", BACKUP_FAULTS)
def test_what_happens_to_the_backup_costs_clients_nothing(site: PairSite, name: str) -> None:
    with site.holding(HELD) as held:
        serving, other = site.node, site.other
        with Observer(site.rig, held) as observer:
            observer.strike(Fault(name, lambda rig, _: BACKUP_FAULTS[name](rig, other), moves=False), serving)
            site.settle()
            cost = observer.cost()
        assert cost.harmless, cost
        assert cost.failed == 0, cost
        assert cost.first_ms == 0, "the backup spoke for the VIP"
        assert site.node is serving


def reboot(node: Node) -> None:
    """What a machine loses with its power: its processes, its pins and the files under /run."""
    node.kill()
    node.namespace.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "off")
    for directory in (node.bpf_dir, node.run_dir):
        shutil.rmtree(directory)
    node.run_dir.mkdir()


def connections(node: Node) -> int:
    return int(node.call("conn.count")["total"])


def test_a_node_that_lost_everything_gets_100000_connections_back(site: PairSite) -> None:
    with site.holding(HELD) as held:
        serving, other = site.node, site.other
        put_connections(serving, CONNECTIONS)
        with Observer(site.rig, held) as observer:
            observer.strike(Fault("reboot", lambda rig, _: reboot(other), moves=False), serving)
            other.start()
            assert "data plane built" in other.tail()
            site.settle(30)
            cost = observer.cost()
        assert cost.harmless, cost
        assert cost.failed == 0, cost
        wait_until(lambda: connections(other) >= CONNECTIONS + HELD, "all of them counted on the node that came back", 30)
        other.call("cluster.switchover")
        assert site.rig.client.run(held.confirm()) == 0
        assert held.broken == []
        assert held.wrong_bytes == 0
