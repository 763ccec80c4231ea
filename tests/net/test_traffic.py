"""Real TCP and UDP through the node, in each wiring: every byte is checked at both ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.net.serving import BACKEND_PORTS, PORTS, VIPS, Serving, serving
from tests.rig import CLIENT4, CLIENT6, TCP_PORT, Answer, Client, Layout, Tally, http_get, repeat, tcp_connect, transfer
from tests.rig.payload import payload

WIRINGS = {
    "native-snat-one-interface": Layout(),
    "generic-snat-one-interface": Layout(xdp_mode="generic"),
    "native-dnat-one-interface": Layout(routed=True),
    "generic-dnat-one-interface": Layout(routed=True, xdp_mode="generic"),
    "native-snat-two-interfaces": Layout(interfaces=2),
    "native-dnat-two-interfaces": Layout(interfaces=2, routed=True),
    "generic-dnat-two-interfaces": Layout(interfaces=2, routed=True, xdp_mode="generic"),
}
both_families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module", params=list(WIRINGS))
def site(request: pytest.FixtureRequest) -> Iterator[Serving]:
    with serving(WIRINGS[request.param]) as serve:
        for service in ("http", "tcp", "udp"):
            for family in (4, 6):
                serve.add_farm(service, family)
        yield serve


def seen_by_backend(site: Serving, family: int) -> str:
    """The source address a backend must see: the client's own, or the VIP's."""
    if site.rig.layout.routed:
        return CLIENT4 if family == 4 else CLIENT6
    return VIPS[family]


@both_families
def test_http_reaches_every_backend(site: Serving, family: int) -> None:
    tally = Tally()
    peers = set()

    async def ask() -> Answer:
        answer = await http_get(VIPS[family], PORTS["http"])
        peers.add(answer.peer.split(" ")[0])
        return answer

    site.rig.client.run(repeat(ask, 300, tally))
    assert tally.failures == []
    assert set(tally.by_backend) == {"b1", "b2", "b3"}
    assert peers == {seen_by_backend(site, family)}


@both_families
def test_a_large_transfer_in_both_directions_arrives_byte_by_byte(site: Serving, family: int) -> None:
    length = 20_000_000
    assert site.rig.client.run(transfer(VIPS[family], PORTS["tcp"], length, number=family)) == (length, 0)


@both_families
def test_a_large_http_body_arrives_byte_by_byte(site: Serving, family: int) -> None:
    answer = site.http(family, "/bytes/5000000", timeout_s=30)
    assert answer.error == ""
    assert answer.body == payload(0, 0, 5_000_000)


@both_families
def test_datagrams_of_every_size_up_to_the_mtu_are_echoed(site: Serving, family: int) -> None:
    largest = (1472 if family == 4 else 1452) - len(f"b1 {site.udp(family, source_port=5_000).peer}\n")
    for length in (0, 1, 2, 3, 64, 1000, largest - 1, largest):
        answer = site.udp(family, payload(9, 0, length), source_port=5_000)
        assert answer.error == "", f"{length} bytes"
        assert answer.peer.split(" ")[0] == seen_by_backend(site, family)


def test_udp_without_a_checksum_is_balanced(site: Serving) -> None:
    def exchange() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: send the UDP checksum as zero
            one.settimeout(3)
            one.connect((VIPS[4], PORTS["udp"]))
            one.send(b"no checksum")
            return one.recv(2048)

    assert site.rig.client.namespace.call(exchange).endswith(b"no checksum")


@both_families
def test_packets_went_through_xdp_in_the_mode_asked_for(site: Serving, family: int) -> None:
    counter = "forward_tx" if site.rig.layout.interfaces == 1 else "forward_redirect"
    before = site.counters()
    assert site.rig.client.run(transfer(VIPS[family], PORTS["tcp"], 1_000_000)) == (1_000_000, 0)
    after = site.counters()
    assert after[counter] - before[counter] > 1_000_000 / 1500 * 2
    dropped = {name: after[name] - before[name] for name in after if name.startswith("drop") and after[name] != before[name]}
    assert dropped == {}
    modes = {interface["xdp_mode"] for interface in site.node.call("status")["interfaces"]}
    assert modes == {site.rig.layout.xdp_mode}


@both_families
def test_a_backend_that_is_a_client_reaches_the_farm_it_serves(site: Serving, family: int) -> None:
    """Hairpin: the backend picked may be the client itself, or a neighbour; in mode dnat its address is hidden from them."""
    client = Client(site.rig.backend("b1").namespace)
    try:
        tally = client.run(repeat(lambda: tcp_connect(VIPS[family], PORTS["tcp"]), 60, Tally(), concurrency=8))
    finally:
        client.close()
    assert tally.failures == []
    assert set(tally.by_backend) == {"b1", "b2", "b3"}


@both_families
def test_the_source_port_is_kept_where_it_is_free(site: Serving, family: int) -> None:
    def ports() -> tuple[int, int]:
        with socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM) as one:
            one.settimeout(5)
            one.bind(("", 3_450 + family))
            one.connect((VIPS[family], PORTS["tcp"]))
            return one.getsockname()[1], int(one.recv(200).split()[2])

    here, there = site.rig.client.namespace.call(ports)
    assert here == there


def test_two_clients_with_one_port_are_kept_apart(site: Serving) -> None:
    """In mode snat both would leave with the VIP and that port: the second one gets another port."""
    second = "10.77.0.11"
    namespace = site.rig.client.namespace
    namespace.ip(f"addr replace {second}/24 dev eth0")
    if site.rig.layout.routed and site.rig.layout.interfaces == 1:
        for backend in site.rig.backends:
            backend.namespace.ip(f"route replace {second}/32 via 10.77.0.1")

    def both() -> list[bytes]:
        heads = []
        with socket.socket() as one, socket.socket() as two:
            for number, (each, address) in enumerate(((one, CLIENT4), (two, second))):
                each.settimeout(5)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.bind((address, 4_567))
                each.connect((VIPS[4], single))
                heads.append(each.recv(200))
                each.sendall(payload(number, 0, 1000))
            for number, each in enumerate((one, two)):
                echoed = b""
                while len(echoed) < 1000:
                    echoed += each.recv(2000)
                assert echoed == payload(number, 0, 1000)
        return heads

    single = 7777
    mode = "dnat" if site.rig.layout.routed else "snat"
    site.node.call("farm.add", name="single", vip=VIPS[4], port=single, mode=mode)
    site.node.call("backend.add", farm="single", address=site.rig.backends[0].address4, port=BACKEND_PORTS["tcp"])
    first, other = namespace.call(both)
    assert first != other


@both_families
@pytest.mark.parametrize("service", ["tcp", "udp"])
def test_one_client_port_to_two_ports_of_one_backend(site: Serving, family: int, service: str) -> None:
    """Both reach the same server: in mode dnat too, where the client's address and port would be the same twice."""
    backend = site.rig.backends[0]
    for name, port in (("one", 7771), ("two", 7772)):
        mode, proto = "dnat" if site.rig.layout.routed else "snat", service
        site.node.call("farm.add", name=name, vip=VIPS[family], port=port, mode=mode, proto=proto)
        address = backend.address4 if family == 4 else backend.address6
        site.node.call("backend.add", farm=name, address=address, port=BACKEND_PORTS[service])

    def both() -> list[str]:
        kind = socket.SOCK_STREAM if service == "tcp" else socket.SOCK_DGRAM
        answers = []
        with contextlib.ExitStack() as stack:
            for port in (7771, 7772):
                one = stack.enter_context(socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind))
                one.settimeout(5)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind(("", 3_460))
                one.connect((VIPS[family], port))
                if service == "udp":
                    one.send(b"?")
                answers.append(one.recv(200).split()[0].decode())
        return answers

    try:
        assert site.rig.client.namespace.call(both) == ["b1", "b1"]
    finally:
        for name in ("one", "two"):
            site.node.call("farm.delete", name=name)


def test_a_port_range_keeps_the_offset(site: Serving) -> None:
    mode = "dnat" if site.rig.layout.routed else "snat"
    site.node.call("farm.add", name="range", vip=VIPS[4], port="6000-6020", mode=mode, health={"kind": "none"})
    site.node.call("backend.add", farm="range", address=site.rig.backends[1].address4, port=TCP_PORT - 10)
    assert site.rig.client.run(tcp_connect(VIPS[4], 6010)).backend == "b2"
    assert "[Errno 111]" in site.rig.client.run(tcp_connect(VIPS[4], 6011)).error, "the backend has no listener on that port"
    assert site.rig.client.run(tcp_connect(VIPS[4], 6021, timeout_s=0.3)).error == "TimeoutError", "outside of the range"
    site.node.call("farm.delete", name="range")
