"""A node that lost its lease sends nothing as the VIP, in any form, although its kernel still owns the address."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from tests.net.paired import DEFAULT_TIMING, PairSite, paired
from tests.rig import CLIENT4, CLIENT6, TCP_PORT, VIP4, VIP6, Node
from tests.rig.capture import Capture
from tests.wait import wait_until


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(cluster=DEFAULT_TIMING) as pair:
        pair.node.call("vip.add", address=f"{VIP6}/64", device="eth0")
        for family in (4, 6):
            pair.add_farm("tcp", family)
        yield pair


def questions(client: bytes, node: bytes) -> Sequence[Packet]:
    """Everything that a kernel with the VIPs would answer, plain and priority-tagged."""
    source, destination = client.hex(":"), node.hex(":")
    asked: list[Packet] = [
        ARP(op=1, hwsrc=source, psrc=CLIENT4, pdst=VIP4),
        ARP(op=1, hwsrc=source, psrc=VIP4, pdst=VIP4),
        ARP(op=1, hwsrc=source, psrc="0.0.0.0", pdst=VIP4),
        IP(src=CLIENT4, dst=VIP4) / TCP(sport=9999, dport=TCP_PORT, flags="S"),
        IP(src=CLIENT4, dst=VIP4) / TCP(sport=9999, dport=22, flags="A"),
        IP(src=CLIENT4, dst=VIP4) / ICMP(),
        IPv6(src=CLIENT6, dst=VIP6, hlim=255) / ICMPv6ND_NS(tgt=VIP6),
        IPv6(src=CLIENT6, dst=VIP6) / TCP(sport=9999, dport=TCP_PORT, flags="S"),
        IPv6(src=CLIENT6, dst=VIP6) / ICMPv6EchoRequest(),
    ]
    kinds = [{ARP: 0x0806, IP: 0x0800, IPv6: 0x86DD}[type(each)] for each in asked]
    plain = [Ether(src=source, dst=destination, type=kind) / each for kind, each in zip(kinds, asked, strict=True)]
    tagged = [
        Ether(src=source, dst=destination, type=0x8100) / Dot1Q(vlan=0, prio=5, type=kind) / each
        for kind, each in zip(kinds, asked, strict=True)
    ]
    return plain + tagged


def ask(site: PairSite, struck: Node) -> None:
    client = site.rig.client.namespace
    frames = [bytes(each) for each in questions(client.mac("eth0"), struck.namespace.mac("eth0"))]

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("eth0", 0))
            for frame in frames:
                link.send(frame)

    client.call(send)


def test_a_dead_daemons_kernel_is_silent(site: PairSite) -> None:
    """On every port of the switch: the successor's gratuitous ARP was answered by unicast, which only its own port shows."""
    struck, other = site.node, site.other
    ports = ["client-eth0", "lb1-eth0", "lb2-eth0", *(f"{backend.name}-eth0" for backend in site.rig.backends)]
    struck.kill()
    wait_until(lambda: site.status(other)["role"] == "active", "the peer takes over", 5)
    assert VIP4 in site.addresses(struck), "the kernel still owns the VIP"
    capture = Capture(site.rig.switch, ports, {struck.namespace.mac("eth0"): struck.name}, VIP4, VIP6)
    try:
        ask(site, struck)
        assert other.call("vip.list")
        site.rig.client.namespace.run("ping", "-c", "3", "-i", "0.3", "-W", "1", VIP4)
    finally:
        frames = capture.stop()
    assert [frame.head.hex() for frame in frames] == []
    struck.start()
    site.settle()
