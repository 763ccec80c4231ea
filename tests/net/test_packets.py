"""Packets that are not plain TCP or UDP of a known flow, by real sockets through a node with two interfaces and mode dnat."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.net.serving import PORTS, VIPS, Serving, serving
from tests.rig import CLIENT4, CLIENT6, Layout, transfer
from tests.rig.capture import Capture
from tests.rig.payload import payload
from tests.wait import wait_until, wait_until_async

both_families = pytest.mark.parametrize("family", [4, 6])
IPPROTO_IPV6, IPV6_UNICAST_HOPS, IPV6_RECVERR, IP_RECVERR = 41, 16, 25, 11
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
OWN_ADDRESS = {4: "10.77.0.1", 6: "fd77::1"}


@pytest.fixture(scope="module")
def site() -> Iterator[Serving]:
    with serving(Layout(interfaces=2, routed=True, backends=2)) as serve:
        for service in ("tcp", "udp"):
            for family in (4, 6):
                serve.add_farm(service, family, scheduler="roundrobin")
        yield serve


@both_families
def test_datagrams_in_fragments_are_echoed(site: Serving, family: int) -> None:
    for length in (2000, 8000, 20000):
        answer = site.udp(family, payload(3, 0, length))
        assert answer.error == "", f"{length} bytes"


@both_families
def test_a_ping_in_fragments_is_answered(site: Serving, family: int) -> None:
    done = site.rig.client.namespace.run("ping", f"-{family}", "-c", "2", "-i", "0.1", "-W", "2", "-s", "4000", VIPS[family])
    assert re.search(r"2 received", done.stdout), done.stdout


@both_families
def test_an_expired_hop_limit_is_reported_by_the_node(site: Serving, family: int) -> None:
    """What traceroute does."""

    def probe() -> tuple[int, int, str]:
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        with socket.socket(kind, socket.SOCK_DGRAM) as one:
            if family == 4:
                one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
                one.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            else:
                one.setsockopt(IPPROTO_IPV6, IPV6_UNICAST_HOPS, 1)
                one.setsockopt(IPPROTO_IPV6, IPV6_RECVERR, 1)
            one.setblocking(False)
            one.connect((VIPS[family], PORTS["udp"]))
            one.send(b"?")
            data = wait_until(lambda: _error(one), "an ICMP error", 10)
            kind_of_error, code = struct.unpack_from("=IBBBB", data)[2:4]
            offender = socket.inet_ntop(kind, data[20:24] if family == 4 else data[24:40])
            return kind_of_error, code, offender

    *error, offender = site.rig.client.namespace.call(probe)
    assert tuple(error) == TIME_EXCEEDED[family]
    assert offender in (OWN_ADDRESS[family], VIPS[family])  # the VIP before Linux 6.7


def _error(one: socket.socket) -> bytes:
    """struct sock_extended_err and the address of the sender; empty: none yet."""
    try:
        return bytes(one.recvmsg(64, 512, socket.MSG_ERRQUEUE)[1][0][2])
    except BlockingIOError:
        return b""


@both_families
def test_a_connection_that_the_node_has_lost_is_reset(site: Serving, family: int) -> None:
    """The client learns it from its next segment, the backend from its own; the backend's address is never seen."""

    async def talk() -> None:
        reader, writer = await asyncio.open_connection(VIPS[family], PORTS["tcp"])
        await reader.readline()
        site.node.call("conn.flush")
        writer.write(b"?")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 3)

    before = site.counters()["event_reset_sent"]
    backends = [backend.address4 if family == 4 else backend.address6 for backend in site.rig.backends]
    macs = {site.node.namespace.mac("eth0"): "lb1"}
    leaked = Capture(site.rig.switch, ["client-eth0"], macs, *backends)
    try:
        site.rig.client.run(talk())
        site.rig.client.run(_provoke(site, family))
        wait_until(lambda: site.counters()["event_reset_sent"] >= before + 2, "a reset for either end", 5)
    finally:
        frames = leaked.stop()
    assert frames == []


async def _provoke(site: Serving, family: int) -> None:
    """The backend continues to send on a connection that the node has lost."""
    reader, writer = await asyncio.open_connection(VIPS[family], PORTS["tcp"])
    await reader.readline()
    writer.write(b"x" * 8_000_000)  # more than fits in the buffers on the way; the client does not read the echo
    await _moving(site)
    before = site.counters()["event_reset_sent"]
    site.node.call("conn.flush")
    await wait_until_async(lambda: site.counters()["event_reset_sent"] > before, "a reset", 5)
    writer.transport.abort()


async def _moving(site: Serving) -> None:
    """Wait until a transfer is under way."""
    before = site.counters()["forward_redirect"]
    await wait_until_async(lambda: site.counters()["forward_redirect"] > before + 100, "segments", 5, every_s=0.01)


@both_families
@pytest.mark.parametrize("device", ["eth1", "eth0"])
def test_a_transfer_survives_a_smaller_mtu(site: Serving, family: int, device: str) -> None:
    """Of the interface to the backends, and of that to the clients: the sender is told, and continues.

    The hosts on that link have it too, because veth refuses what is longer than the receiver's MTU.
    """
    length = 40_000_000
    client, backends = site.rig.client.namespace, [backend.namespace for backend in site.rig.backends]
    ends = [
        *(((each, "eth0") for each in backends) if device == "eth1" else ((client, "eth0"),)),
        (site.node.namespace, device),
    ]

    async def shrink() -> None:
        await _moving(site)
        for namespace, name in ends:
            namespace.ip(f"link set {name} mtu 1300")

    async def both() -> tuple[int, int]:
        done, _ = await asyncio.gather(transfer(VIPS[family], PORTS["tcp"], length), shrink())
        return done

    before = site.counters()["forward_too_big"]
    try:
        assert site.rig.client.run(both(), 30) == (length, 0)
        assert site.counters()["forward_too_big"] > before
    finally:
        for namespace, name in ends:
            namespace.ip(f"link set {name} mtu 1500")
        for host in (client, *backends):
            host.run("ip", f"-{family}", "route", "flush", "cache")


def test_a_forged_datagram_of_a_backend_does_not_loop(site: Serving) -> None:
    one, two = site.rig.backends

    def forge() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            udp = struct.pack("!HHHH", PORTS["udp"], PORTS["udp"], 9, 0) + b"?"
            source = socket.inet_aton(one.address4)
            header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source, socket.inet_aton(VIPS[4]))
            raw.sendto(header + udp, (VIPS[4], 0))

    del two
    before = site.counters()["drop_martian"]
    site.rig.client.namespace.call(forge)
    wait_until(lambda: site.counters()["drop_martian"] > before, "the forged datagram", 3)


def test_a_client_may_reach_a_backend_past_the_vip(site: Serving) -> None:
    """The node is its router."""
    site.rig.client.namespace.ip("route replace 10.88.0.0/24 via 10.77.0.1", "route replace fd88::/64 via fd77::1")
    backend = site.rig.backends[0]

    async def talk(address: str) -> str:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, PORTS["tcp"]), 5)
        line = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        return line.decode()

    for address, client in ((backend.address4, CLIENT4), (backend.address6, CLIENT6)):
        assert client in site.rig.client.run(talk(address))
