"""The kernel of a node that lost the VIPs sends nothing in their name: every frame it sends, captured at the switch."""

from __future__ import annotations

import ipaddress
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import pytest

from tests.net.paired import PairSite, paired
from tests.net.serving import PORTS
from tests.rig import CLIENT4, VIP4, VIP6, Layout, Node, Rig
from tests.rig.client import tcp_connect
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140, "gateway": CLIENT4}
ANNOUNCED = 4
"""So often has the successor announced each VIP; a kernel that owns the address would answer each time."""
_ETH_P_ALL, _PACKET_OUTGOING, _SO_TIMESTAMPNS = 3, 4, 35
_VIPS = {ipaddress.ip_address(VIP4).packed, ipaddress.ip_address(VIP6).packed}


@dataclass(frozen=True, slots=True)
class Said:
    """A frame that a node sent as a VIP."""

    at_ns: int
    node: str
    frame: bytes


def sends_as_vip(frame: bytes) -> bool:
    """Whether a frame's sender claims or uses a VIP: ARP sender, IP source, target of a neighbour advertisement."""
    start, kind = 14, frame[12:14]
    if kind == b"\x81\x00":
        start, kind = 18, frame[16:18]
    body = frame[start:]
    if kind == b"\x08\x06":
        return body[14:18] in _VIPS
    if kind == b"\x08\x00":
        return body[12:16] in _VIPS
    if kind == b"\x86\xdd":
        return body[8:24] in _VIPS or (body[6:7] == b"\x3a" and body[40:41] == b"\x88" and body[48:64] in _VIPS)
    return False


def announces(frame: bytes, vip: bytes) -> bool:
    """Whether a frame is a gratuitous ARP or an unsolicited neighbour advertisement for the VIP."""
    return frame[28:32] == frame[38:42] == vip or (frame[54:55] == b"\x88" and frame[62:78] == vip)


class Ears:
    """What both nodes say as a VIP, at their ports of the switch. Use as a context manager."""

    def __init__(self, rig: Rig) -> None:
        self.said: list[Said] = []
        self._done = threading.Event()
        self._nodes = [node.name for node in rig.nodes]
        self._thread = threading.Thread(target=rig.switch.call, args=(self._listen,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join(10)

    def _listen(self) -> None:
        links: dict[socket.socket, str] = {}
        for name in self._nodes:
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            link.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            link.bind((f"{name}-eth0", _ETH_P_ALL))
            links[link] = name
        while not self._done.is_set():
            for link in select.select(list(links), [], [], 0.1)[0]:
                try:
                    frame, controls, _, address = link.recvmsg(2048, 128)
                except OSError:
                    continue  # the port is down
                if address[2] == _PACKET_OUTGOING or not sends_as_vip(frame):
                    continue
                seconds, nanoseconds = struct.unpack("qq", controls[0][2][:16])
                self.said.append(Said(seconds * 10**9 + nanoseconds, links[link], frame))
        for link in links:
            link.close()

    def of(self, node: Node) -> list[Said]:
        return [each for each in self.said if each.node == node.name]


def _start(rig: Rig, node: Node) -> None:
    node.start()


def _isolate(rig: Rig, node: Node) -> None:
    rig.cut_off(node.name, silently=True)


STRIKES: dict[str, tuple[Callable[[Rig, Node], None], Callable[[Rig, Node], None]]] = {
    "kill -9": (lambda rig, node: node.kill(), _start),
    "SIGSTOP": (lambda rig, node: node.signal(signal.SIGSTOP), lambda rig, node: node.signal(signal.SIGCONT)),
    "cut and heal": (_isolate, lambda rig, node: rig.mend_all(node.name)),
}


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    """A pair with a gateway, so that a node that is cut off lets its lease expire."""
    with paired(Layout(backends=1, nodes=2), TIMES) as pair:
        pair.node.call("vip.add", address=f"{VIP6}/64", device="eth0")
        for family in (4, 6):
            pair.add_farm("tcp", family)
        yield pair


def reach(pair: PairSite, vip: str) -> bool:
    """Ask who has the VIP, as a client without a neighbour entry does, and use it."""
    pair.rig.client.namespace.run("ip", "neigh", "flush", "dev", "eth0")
    return bool(pair.rig.client.run(tcp_connect(vip, PORTS["tcp"])).backend)


@pytest.mark.parametrize("name", STRIKES)
def test_a_fenced_node_says_nothing_as_a_vip(site: PairSite, name: str) -> None:
    strike, heal = STRIKES[name]
    site.settle()
    struck, successor = site.node, site.other
    with Ears(site.rig) as ears:
        strike(site.rig, struck)
        wait_until(lambda: successor.call("cluster.status")["role"] == "active", "the takeover")
        wait_until(lambda: reach(site, VIP4) and reach(site, VIP6), "both VIPs to answer")
        if name == "cut and heal":  # its kernel hears the announcements of its successor only then
            heal(site.rig, struck)
        for vip in _VIPS:
            announced = partial(announces, vip=vip)
            wait_until(lambda: sum(announced(each.frame) for each in ears.of(successor)) >= ANNOUNCED, "announcements")  # noqa: B023
        assert reach(site, VIP4) and reach(site, VIP6)
        taken_ns = min(each.at_ns for each in ears.of(successor))
        late = [each for each in ears.of(struck) if each.at_ns > taken_ns]
    assert not late, [
        f"{(each.at_ns - taken_ns) / 1e6:.1f} ms after the takeover: {each.frame[:60].hex(' ', 2)}" for each in late
    ]
    if name != "cut and heal":
        heal(site.rig, struck)
    site.settle()
    assert site.node is successor
