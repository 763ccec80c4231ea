"""What other programs change on a node of a pair: announcements, addresses and faults follow what is there, not what was."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP, Ether

from bpf import libbpf, xdp
from ctl.errors import Code, XlbError
from ctl.network.opposition import TIMES
from tests.net.paired import PairSite, paired
from tests.rig import VIP4, VIP6, Layout, Node, xdp_pass
from tests.wait import wait_until

SLOW = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
FORWARDING = "net.ipv4.conf.eth0.forwarding"


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(Layout(backends=1, nodes=2), SLOW) as pair:
        pair.node.call("vip.add", address=f"{VIP6}/64", device="eth0")
        pair.add_farm("tcp")
        pair.settle()
        yield pair


def own(node: Node) -> str:
    return f"10.77.0.{node.name[-1]}"


def announced(frames: list[bytes]) -> set[tuple[str, str]]:
    """(VIP, MAC) of each gratuitous ARP and unsolicited neighbour advertisement."""
    found = set()
    for frame in map(Ether, frames):
        if ARP in frame and frame[ARP].psrc == frame[ARP].pdst:
            found.add((frame[ARP].psrc, frame[ARP].hwsrc))
        elif ICMPv6ND_NA in frame and not frame[ICMPv6ND_NA].S:
            found.add((frame[ICMPv6ND_NA].tgt, frame[ICMPv6ND_NA].payload.lladdr))
    return found


def drained(heard: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(heard.recv(1514))
        except BlockingIOError:
            return frames


def handed_over(node: Node) -> bool:
    """False while the peer is not in step: on a busy machine the shortest times cost a lease now and then."""
    try:
        node.call("cluster.switchover")
    except XlbError as error:
        assert error.code == Code.FAILOVER_REFUSED, error
        return False
    return True


def test_a_takeover_announces_the_mac_of_that_moment(site: PairSite) -> None:
    """The daemon does not even run while the MAC changes, so that no notification can have prepared it."""
    site.settle()
    old, new = site.node, site.other
    mac, before = "02:00:00:00:99:01", new.namespace.mac("eth0").hex(":")
    heard = site.rig.client.namespace.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    frames: list[bytes] = []
    with closing(heard):
        heard.setblocking(False)
        new.namespace.ip(f"link set eth0 address {mac}")
        drained(heard)
        wait_until(lambda: handed_over(old), "the switchover to be accepted: in step")

        def both() -> bool:
            frames.extend(drained(heard))
            return {(VIP4, mac), (VIP6, mac)} <= announced(frames)

        wait_until(both, "the announcements")
    assert before not in {each for _, each in announced(frames)}
    site.settle()
    assert site.tcp().error == ""


def test_an_own_address_renewed_on_the_active_node_survives_a_switchover(site: PairSite) -> None:
    site.settle()
    node, seen = site.node, [each.log.read_text() for each in site.rig.nodes]
    address = own(node)
    node.namespace.ip(f"addr del {address}/24 dev eth0", f"addr add {address}/24 dev eth0")
    node.call("cluster.switchover")
    site.settle()
    assert site.node is not node
    wait_until(lambda: f" {address}/24 " in site.addresses(node) and VIP4 not in site.addresses(node), "the own address alone")
    assert f" {own(site.node)}/24 " in site.addresses(site.node)
    for each, before in zip(site.rig.nodes, seen, strict=True):
        log = each.log.read_text()[len(before) :]
        assert "was missing" not in log and "not active: removed" not in log, "its own work is reported as another program's"


def test_a_node_whose_program_was_replaced_hands_over(site: PairSite) -> None:
    site.settle()
    node, other = site.node, site.other
    index = node.namespace.interface_index("eth0")

    def replace_it() -> None:
        old = libbpf.program_by_id(xdp.query(index).program_id)
        xdp.attach(index, xdp_pass.load(), xdp.XDP_FLAGS_DRV_MODE, old)
        os.close(old)

    node.namespace.call(replace_it)
    wait_until(lambda: site.status(other)["role"] == "active", "the other node to take over", timeout_s=2)
    status = site.status(node)
    assert (status["role"], status["can_serve"]) == ("fault", False)
    assert "interface eth0 balances nothing" in status["why"]
    node.namespace.ip("link set dev eth0 xdp off")
    site.settle()
    assert site.node is other
    assert site.tcp().error == ""


def test_a_node_whose_settings_another_program_changes_hands_over(site: PairSite) -> None:
    site.settle()
    node, other = site.node, site.other
    for number in range(TIMES):
        node.namespace.sysctl({FORWARDING: 0})
        restored = partial(lambda count: node.log.read_text().count(f"{FORWARDING} was changed") > count, number)
        wait_until(restored, "the setting to be restored")
    wait_until(lambda: site.status(other)["role"] == "active", "the other node to take over")
    assert any(FORWARDING in fault and "again and again" in fault for fault in site.status(node)["faults"])
    assert site.tcp().error == ""


def test_lost_notifications_on_the_active_node(site: PairSite) -> None:
    """Within a second it has its VIPs again, or its peer has them: it stood still for longer than a lease."""
    site.settle()
    node = site.node
    routes = [
        f"route add 10.{128 + number // 65536}.{number // 256 % 256}.{number % 256}/32 dev eth0" for number in range(40_000)
    ]
    node.signal(signal.SIGSTOP)
    node.namespace.ip(*routes, f"addr del {VIP4}/24 dev eth0", "link set dev eth0 xdpdrv off")
    node.signal(signal.SIGCONT)
    index = node.namespace.interface_index("eth0")
    wait_until(lambda: node.namespace.call(lambda: xdp.query(index)).program_id, "XDP", timeout_s=1)
    site.settle()
    assert VIP4 in site.addresses(site.node) and VIP4 not in site.addresses(site.other)
    assert site.tcp().error == ""
