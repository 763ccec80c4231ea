"""What a pair's sockets follow: replaced addresses, interfaces that are made again; and what is closed to the data network."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from ctl.state.cluster_file import BULK_PORT, CONFIG_PORT, CONTROL_PORT
from tests.net.faults import FAULTS, Observer, ProbeFarm
from tests.net.paired import PairSite, paired
from tests.rig import CLIENT4, Layout, Node
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
HELD = 50
OUTAGE_MS = 1000
PORTS = (CONTROL_PORT, BULK_PORT, CONFIG_PORT)


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    """A pair for which the client is the gateway that breaks ties."""
    with paired(Layout(backends=2, nodes=2), {**TIMES, "gateway": CLIENT4}) as pair:
        pair.add_farm("tcp")
        with ProbeFarm(pair.rig, pair.node):
            yield pair


def number_of(pair: PairSite, name: str) -> int:
    return 1 + [node.name for node in pair.rig.nodes].index(name)


def test_the_cluster_ports_take_no_connection_from_the_data_network(site: PairSite) -> None:
    client = site.rig.client.namespace
    for number in (1, 2):
        client.ip(f"route replace 10.99.0.{number}/32 via 10.77.0.{number}")
        for port in PORTS:

            def connect(address: tuple[str, int] = (f"10.99.0.{number}", port)) -> int:
                with socket.socket() as one:
                    one.settimeout(5)
                    return one.connect_ex(address)

            assert client.call(connect) == errno.ECONNREFUSED
            other = site.rig.nodes[2 - number].namespace
            assert other.call(connect) == 0, "from the peer's cluster interface"
        client.ip(f"route del 10.99.0.{number}/32")  # else it answers a node without a data address, while it knows its MAC


def test_a_backup_whose_data_address_was_replaced_takes_over(site: PairSite) -> None:
    struck, node = site.node, site.other
    number = number_of(site, node.name)
    old, new = f"10.77.0.{number}/24", f"10.77.0.{number + 60}/24"

    def vote() -> dict[str, object]:
        found: dict[str, object] = site.status(node)["vote"]
        return found

    assert vote()["can_be_asked"]
    node.namespace.ip(f"addr del {old} dev eth0")
    wait_until(lambda: not vote()["can_be_asked"], "the vote to be missed")
    assert CLIENT4 in str(vote()["why"])
    shown = node.xlbctl("cluster", "status").stdout
    assert "none: gateway" in shown, f"{shown}\n{vote()}\n{node.tail(40)}"
    node.namespace.ip(f"addr add {new} dev eth0")
    wait_until(lambda: vote()["can_be_asked"], "the gateway to be asked from the new address")
    wait_until(lambda: site.status(node)["paths"]["data"], "advertisements to arrive at the new address")
    with site.holding(HELD) as held:
        with Observer(site.rig, held) as observer:
            observer.strike(FAULTS["kill -9"], struck)
            cost = observer.cost()
        assert cost.harmless, cost
        assert cost.outage_ms < OUTAGE_MS, cost
    struck.start()
    site.settle()
    assert site.node is node
    wait_until(lambda: site.status(struck)["paths"]["data"], "its advertisements, from the new address")
    node.namespace.ip(f"addr del {new} dev eth0", f"addr add {old} dev eth0")
    wait_until(lambda: site.status(struck)["paths"]["data"], "its advertisements, from the old address again")
    site.settle()


def heard_on(pair: PairSite, node: Node, device: str) -> bool:
    """Whether connections of the cluster link are established in both directions, of sockets bound to the interface."""
    shown = node.namespace.run("ss", "-Htn", "state", "established", f"( sport = :{CONTROL_PORT} or dport = :{CONTROL_PORT} )")
    lines = [line for line in shown.stdout.splitlines() if f"%{device}:" in line]
    return len(lines) == 2 and bool(pair.status(node)["paths"]["cluster"])


def test_the_cluster_link_follows_an_interface_that_is_made_again(site: PairSite) -> None:
    node = site.other
    number = number_of(site, node.name)
    node.namespace.ip("link del ha0")
    wait_until(lambda: not site.status(site.node)["paths"]["cluster"], "the peer to be missed")
    site.rig._plug(node.namespace, "ha0", "cluster", (f"10.99.0.{number}/24",))
    wait_until(lambda: site.status(node)["paths"]["cluster"], "the peer to be heard again", 10)
    site.settle()
    assert "is on ha0 now" in node.tail(200)
    # Under another name it is another interface: the address has moved.
    node.namespace.ip("link set ha0 down", "link set ha0 name ha7", "link set ha7 up")
    wait_until(lambda: "is on ha7 now" in node.tail(200), "the move to be noticed")
    wait_until(lambda: heard_on(site, node, "ha7"), "the peer to be heard again", 10)
    site.settle()
    assert site.node is not node
