"""Checks of a VIP on a backend, as modes dsr and ipip lead clients there: two namespaces joined by a veth pair, no daemon.

The VIP is an address of both. For dsr the backend's kernel answers; for ipip, as this kernel has no tunnel devices, a thread
takes the inner packet out and answers it from the VIP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ctl.config.model import CheckKind, CheckVia, HealthCheck
from ctl.health.probes.probe import ProbeFailed, probe
from ctl.health.probes.vip_connect import ACK, RST, SYN, Path, segment
from tests.rig.namespaces import Namespace

NODE, BACKEND = {4: "10.77.0.1", 6: "fd77::1"}, {4: "10.77.0.11", 6: "fd77::11"}
VIP = {4: "10.77.0.100", 6: "fd77::100"}
PORT = 8080


@dataclass(frozen=True, slots=True)
class Link:
    node: Namespace
    backend: Namespace

    def failure(self, path: Path, backend: str, source: str, timeout_ms: int = 5000) -> str:
        check = HealthCheck(CheckKind.TCP, timeout_ms=timeout_ms, via=CheckVia.VIP)

        def run() -> str:
            try:
                asyncio.run(probe(check, backend, PORT, source, path))
            except ProbeFailed as failure:
                return str(failure)
            return ""

        return self.node.call(run)


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    node, backend = Namespace("node"), Namespace("backend")
    node.ip(f"link add eth0 type veth peer name eth0 netns {backend.path}", "link set eth0 up")
    backend.ip("link set eth0 up")
    for host, own in ((node, NODE), (backend, BACKEND)):
        host.plain_checksums("eth0")
        host.ip(f"addr add {own[4]}/24 dev eth0", f"addr add {own[6]}/64 dev eth0 nodad")
    for host, device in ((node, "eth0"), (backend, "lo")):
        host.ip(f"addr add {VIP[4]}/32 dev {device}", f"addr add {VIP[6]}/128 dev {device} nodad")
    backend.sysctl({"net.ipv4.conf.all.arp_ignore": 1})
    yield Link(node, backend)
    node.close()
    backend.close()


@pytest.mark.parametrize("family", [4, 6])
def test_dsr(link: Link, family: int) -> None:
    """Accepted, refused, and unanswered; and the backend sees a reset, not a connection that stays."""
    listener = link.backend.call(
        lambda: socket.create_server((VIP[family], PORT), family=socket.AF_INET6 if family == 6 else socket.AF_INET)
    )
    path = Path(VIP[family], is_tunnel=False)
    assert link.failure(path, BACKEND[family], NODE[family]) == ""
    listener.close()
    assert link.failure(path, BACKEND[family], NODE[family]).endswith(": connection refused")
    lost = BACKEND[family].removesuffix("1") + "2"
    assert link.failure(path, lost, NODE[family], 50).endswith("within 50 ms")


def answer_inner(link: Link, outer: int, inner: int, flags: int) -> tuple[threading.Thread, list[str]]:
    """A backend that decapsulates: answers the SYN in the first packet with `flags`; lists the sources and what came."""
    protocol = socket.IPPROTO_IPIP if inner == 4 else socket.IPPROTO_IPV6
    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    incoming = link.backend.call(lambda: socket.socket(families[outer], socket.SOCK_RAW, protocol))
    outgoing = link.backend.call(lambda: socket.socket(families[inner], socket.SOCK_RAW, socket.IPPROTO_RAW))
    incoming.settimeout(10)
    seen: list[str] = []

    def serve() -> None:
        with incoming, outgoing:
            for _ in range(2):
                data, source = incoming.recvfrom(200)
                data = data[20:] if outer == 4 else data
                ends, tcp = (data[12:20], data[20:]) if inner == 4 else (data[8:40], data[40:])
                client, vip = (str(ipaddress.ip_address(each)) for each in (ends[: len(ends) // 2], ends[len(ends) // 2 :]))
                port, own, number, _, _, found = struct.unpack_from("!HHIIBB", tcp)
                seen.append(f"{source[0]} {client}->{vip} {found}")
                if found != SYN or flags & RST:
                    return
                answer = bytearray(segment(vip, client, own, port, 7, flags))
                place = 28 if inner == 4 else 48
                answer[place : place + 4] = struct.pack("!I", (number + 1) & 0xFFFFFFFF)  # the checksum does not matter here
                outgoing.sendto(bytes(answer), (client, 0))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread, seen


@pytest.mark.parametrize(("outer", "inner"), [(4, 4), (6, 6), (4, 6), (6, 4)])
def test_ipip(link: Link, outer: int, inner: int) -> None:
    thread, seen = answer_inner(link, outer, inner, SYN | ACK)
    path = Path(VIP[inner], is_tunnel=True, outer=NODE[outer])
    assert link.failure(path, BACKEND[outer], NODE[inner]) == ""
    thread.join(10)
    between = f"{NODE[outer]} {NODE[inner]}->{VIP[inner]}"
    assert seen == [f"{between} {SYN}", f"{between} {RST}"]


def test_ipip_without_an_answer(link: Link) -> None:
    thread, _ = answer_inner(link, 4, 4, RST)
    assert link.failure(Path(VIP[4], is_tunnel=True), BACKEND[4], NODE[4], 50).endswith("within 50 ms")
    thread.join(10)
