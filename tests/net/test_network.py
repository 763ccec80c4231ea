"""The network around the node changes; the VIP stays private; `xlbctl` shows what happens on the network."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from bpf import xdp
from tests.net.serving import BACKEND_PORTS, PORTS, VIPS, Serving, serving
from tests.rig import Answer, HeldConnections, Layout, Rig, Tally, http_get, repeat, tcp_connect, udp_exchange
from tests.wait import wait_until

both_families = pytest.mark.parametrize("family", [4, 6])
PRIVATE_PORT = 2222


@pytest.fixture(scope="module", params=["native", "generic"])
def site(request: pytest.FixtureRequest) -> Iterator[Serving]:
    with serving(Layout(xdp_mode=request.param)) as serve:
        for family in (4, 6):
            serve.add_farm("tcp", family)
            serve.add_farm("udp", family)
        yield serve


@both_families
def test_no_packet_is_lost_when_the_node_forgets_its_neighbours(site: Serving, family: int) -> None:
    node = site.node.namespace
    for _ in range(5):
        assert site.udp(family).error == ""
        node.run("ip", "neigh", "flush", "dev", "eth0")
        answer = site.udp(family, timeout_s=3)
        assert answer.error == "", "a datagram is sent once: it was lost"


def test_a_next_hop_is_asked_for_in_the_nodes_own_name(site: Serving) -> None:
    """With the VIP as its source, neighbours would read it as an announcement, also when it is repeated after the VIP moved."""
    absent = "10.77.0.222"
    client = site.rig.client.namespace
    asked = client.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)))
    with closing(asked):
        asked.settimeout(5)
        datagram = UDP(sport=4444, dport=PORTS["udp"]) / b"?"
        frame = Ether(src=client.mac("eth0"), dst=site.node.namespace.mac("eth0")) / IP(src=absent, dst=VIPS[4]) / datagram
        asked.bind(("eth0", 0x0806))
        asked.send(bytes(frame))
        while (request := ARP(asked.recv(1514)[14:])).pdst != absent:
            pass
        assert (request.op, request.psrc) == (1, "10.77.0.1")


def test_held_connections_continue_when_the_node_forgets_its_neighbours(site: Serving) -> None:
    held = HeldConnections(VIPS[4], PORTS["tcp"], 50, pause_s=0.01)
    site.rig.client.run(held.open())
    site.node.namespace.run("ip", "neigh", "flush", "dev", "eth0")
    assert site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes) == ([], 0)
    site.rig.client.run(held.close())


def test_a_backend_that_changes_its_mac_keeps_its_connections(site: Serving) -> None:
    held = HeldConnections(VIPS[4], PORTS["tcp"], 30, pause_s=0.01)
    site.rig.client.run(held.open())
    assert held.on_backend("b1")
    backend = site.rig.backend("b1").namespace
    backend.ip("link set eth0 address 02:00:00:00:b1:b1", "neigh flush dev eth0")

    def speak() -> None:
        """Any packet that makes the backend ask for the node's MAC, and so announce its own."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"", ("10.77.0.1", 9))

    backend.call(speak)
    assert site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes) == ([], 0)
    site.rig.client.run(held.close())


@pytest.mark.parametrize("host", ["lb1", "client", "b1"])
def test_held_connections_continue_after_a_link_flap(site: Serving, host: str) -> None:
    held = HeldConnections(VIPS[4], PORTS["tcp"], 50, pause_s=0.01)
    site.rig.client.run(held.open())
    site.rig.cut(host)
    assert site.rig.client.run(held.confirm(deadline_s=0.2)) > 0
    site.rig.mend(host)
    assert site.rig.client.run(held.confirm()) == 0
    assert (held.broken, held.wrong_bytes) == ([], 0)
    site.rig.client.run(held.close())


@both_families
def test_ipv6_and_ipv4_vips_survive_a_link_flap(site: Serving, family: int) -> None:
    site.rig.cut("lb1")
    site.rig.mend("lb1")
    wait_until(lambda: not site.udp(family, timeout_s=0.3).error, "the VIP to answer again")


@both_families
def test_what_listens_on_the_node_is_not_reachable_by_the_vip(site: Serving, family: int) -> None:
    node_address = "10.77.0.1" if family == 4 else "fd77::1"

    def listen() -> socket.socket:
        return socket.create_server(("::", PRIVATE_PORT), family=socket.AF_INET6, dualstack_ipv6=True)

    def reach(address: str) -> bool:
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as one:
            one.settimeout(0.3)
            try:
                one.connect((address, PRIVATE_PORT))
            except OSError:
                return False
            return True

    with closing(site.node.namespace.call(listen)):
        assert site.rig.client.namespace.call(lambda: reach(node_address))
        before = site.counters()["drop_vip_guard"]
        assert not site.rig.client.namespace.call(lambda: reach(VIPS[family]))
        assert site.counters()["drop_vip_guard"] > before


def test_a_vip_without_guard_is_an_address_like_any_other(site: Serving) -> None:
    site.node.xlbctl("vip", "add", "10.77.0.101/24", "--dev", "eth0", "--no-guard")

    def exchange() -> bytes:
        with socket.create_connection(("10.77.0.101", PRIVATE_PORT), 3) as one:
            one.sendall(b"x")
            return one.recv(1)

    with closing(site.node.namespace.call(lambda: socket.create_server(("10.77.0.101", PRIVATE_PORT)))) as server:
        pending = site.rig.client.start(_in_executor(lambda: site.rig.client.namespace.call(exchange)))
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(1))
            assert pending.result(5) == b"x"
    site.node.xlbctl("vip", "delete", "10.77.0.101")


async def _in_executor(function: Callable[[], bytes]) -> bytes:
    return await asyncio.get_running_loop().run_in_executor(None, function)


@both_families
def test_the_vip_answers_echo_requests(site: Serving, family: int) -> None:
    def ping() -> int:
        kind, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if family == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        request, reply = (8, 0) if family == 4 else (128, 129)
        with socket.socket(kind, socket.SOCK_RAW, protocol) as one:
            one.settimeout(3)
            body = struct.pack("!BBHHH", request, 0, 0, 77, 1)
            if family == 4:
                total = sum(struct.unpack("!4H", body))
                body = struct.pack("!BBHHH", request, 0, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF, 77, 1)
            one.sendto(body, (VIPS[family], 0))
            while True:
                packet, (sender, *_) = one.recvfrom(2048)
                offset = 20 if family == 4 else 0
                if (
                    sender == VIPS[family]
                    and packet[offset] == reply
                    and packet[offset + 4 : offset + 6] == struct.pack("!H", 77)
                ):
                    return reply

    assert site.rig.client.namespace.call(ping) in (0, 129)


@both_families
def test_an_icmp_error_of_a_backend_reaches_the_client(site: Serving, family: int) -> None:
    """A closed UDP port on the backend is reported as refused to the client."""
    name = site.add_farm("udp", family, name=f"closed{family}", port=4444)
    for backend in site.node.call("farm.show", name=name)["backends"]:
        site.node.call("backend.remove", farm=name, address=backend["address"], port=backend["port"])
    backend = site.rig.backend("b1")
    site.node.call("backend.add", farm=name, address=backend.address4 if family == 4 else backend.address6, port=4445)
    answer = site.rig.client.run(udp_exchange(VIPS[family], 4444))
    assert "refused" in answer.error.lower()
    site.node.call("farm.delete", name=name)


@both_families
def test_conn_show_predicts_the_forwarding(site: Serving, family: int) -> None:
    address = "10.77.0.10" if family == 4 else "fd77::10"

    def written(host: str, port: int) -> str:
        return f"{host}:{port}" if family == 4 else f"[{host}]:{port}"

    for port in range(4_100, 4_112):
        asked = {"source": address, "source_port": port, "destination": VIPS[family], "destination_port": PORTS["tcp"]}
        before = site.node.call("conn.show", **asked)

        def talk(port: int = port, asked: dict[str, Any] = asked, before: dict[str, Any] = before) -> tuple[str, str]:
            with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as one:
                one.settimeout(5)
                one.bind((address, port))
                one.connect((VIPS[family], PORTS["tcp"]))
                name, peer, peer_port = one.recv(200).decode().split()
                during = site.node.call("conn.show", **asked)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert during["exists"]
            assert during["connection"]["backend_sees"] == written(peer, int(peer_port))
            assert before["rewrite"] == during["rewrite"], "not as foretold before the first packet"
            return name, str(during["backend"])

        name, backend = site.rig.client.namespace.call(talk)
        real = site.rig.backend(name)
        assert backend == written(real.address4 if family == 4 else real.address6, BACKEND_PORTS["tcp"])
        assert before["farm"] == f"tcp{family}"
        assert before["backend"] == backend
    shown = site.node.json("conn", "show", f"{written(address, 4_100)} -> {written(VIPS[family], PORTS['tcp'])}")
    assert shown["farm"] == f"tcp{family}"


@both_families
def test_conn_show_sees_what_the_kernel_cannot_reach(site: Serving, family: int) -> None:
    absent, elsewhere = ("10.77.0.99", "203.0.113.9") if family == 4 else ("fd77::99", "2001:db8:9::9")
    site.node.call("farm.add", name="absent", vip=VIPS[family], port=4999, health={"kind": "none"})
    site.node.call("backend.add", farm="absent", address=absent, port=80)
    asked = {"source": "10.77.0.10", "source_port": 4_100, "destination": VIPS[family], "destination_port": 4999}
    asked["source"] = asked["source"] if family == 4 else "fd77::10"
    shown = site.node.call("conn.show", **asked)
    assert (shown["verdict"], shown["why"]) == ("pass_unresolved", f"next hop unresolved: {absent} on eth0")
    site.node.call("farm.stop", name="absent")
    assert site.node.call("conn.show", **asked)["why"] == "farm absent is stopped"
    site.node.call("farm.start", name="absent")
    site.node.call("backend.remove", farm="absent", address=absent, port=80)
    site.node.call("backend.add", farm="absent", address=elsewhere, port=80)
    assert site.node.call("conn.show", **asked)["why"] == f"no route to {elsewhere}"
    site.node.call("farm.delete", name="absent")


FIREWALLS = {
    "nft": (
        ("nft add table inet other", "nft add chain inet other closed '{ type filter hook forward priority 0; policy drop; }'"),
        ("nft delete table inet other",),
    ),
    "iptables-nft": (
        ("iptables-nft -P FORWARD DROP", "iptables-nft -A FORWARD -i docker0 -j ACCEPT"),
        ("iptables-nft -P FORWARD ACCEPT", "iptables-nft -F"),
    ),
    "iptables-legacy": (
        ("iptables-legacy -A FORWARD -i docker0 -j ACCEPT", "iptables-legacy -A FORWARD -j REJECT"),
        ("iptables-legacy -F",),
    ),
    "ip6tables-nft": (("ip6tables-nft -P FORWARD DROP",), ("ip6tables-nft -P FORWARD ACCEPT",)),
}


@pytest.mark.parametrize("tool", FIREWALLS)
def test_a_firewall_that_drops_forwarded_packets_is_named(site: Serving, tool: str) -> None:
    closes, opens = FIREWALLS[tool]

    def named() -> list[str]:
        """Remedies of doctor."""
        return [each["remedy"] for each in site.node.call("doctor") if each["name"] == "firewall" and not each["ok"]]

    assert named() == []
    site.node.namespace.run("sh", "-c", " && ".join(closes))
    try:
        (remedy,) = named()
        if tool == "nft":
            check = {each["name"]: each for each in site.node.call("cluster.check")}
            assert (check["firewall of lb1"]["status"], check["firewall of lb1"]["remedy"]) == ("fail", remedy)
        site.node.namespace.run("sh", "-c", remedy.removeprefix("accept them before: "))
        assert named() == [], "the remedy does not help"
    finally:
        site.node.namespace.run("sh", "-c", " && ".join(opens))


@pytest.mark.parametrize("service", ["tcp", "udp"])
def test_idle_flows_are_forgotten(service: str) -> None:
    with serving() as site:
        farm = site.add_farm(service, idle_timeout_s=60)
        if service == "tcp":
            held = HeldConnections(VIPS[4], PORTS["tcp"], 100, pause_s=3600)
            site.rig.client.run(held.open())
        else:
            ports = itertools.count(20_000)  # the kernel may choose one twice
            site.rig.client.run(repeat(lambda: udp_exchange(VIPS[4], PORTS["udp"], source_port=next(ports)), 100, Tally()))
        assert site.node.call("conn.count", farm=farm)["total"] == 100
        site.node.call("farm.set", name=farm, idle_timeout_s=1)
        wait_until(lambda: site.node.call("conn.count", farm=farm)["total"] == 0, "idle flows gone", timeout_s=30, every_s=0.2)
        assert site.tcp().error == "" if service == "tcp" else site.udp().error == ""


def test_reset_connections_are_forgotten_before_the_idle_timeout() -> None:
    with serving() as site:
        site.add_farm("tcp", closing_timeout_s=5)
        site.rig.client.run(repeat(lambda: tcp_connect(VIPS[4], PORTS["tcp"]), 100, Tally()))
        assert site.node.call("conn.count", farm="tcp4")["total"] == 100
        wait_until(lambda: site.node.call("conn.count", farm="tcp4")["total"] == 0, "reset flows gone", 40, every_s=0.2)


def test_a_driver_without_native_xdp_is_served_in_generic_mode() -> None:
    with serving(Layout(plain_driver=True, xdp_mode="auto")) as site:
        site.add_farm("tcp")
        (interface,) = site.node.json("cluster", "status")["interfaces"]
        assert interface["xdp_mode"] == "generic"
        assert interface["reason"], "why not natively"
        tally = site.rig.client.run(repeat(lambda: tcp_connect(VIPS[4], PORTS["tcp"]), 100, Tally()))
        assert tally.failures == []
        assert site.counters()["forward_tx"] > 300


@both_families
def test_mixed_drivers_are_all_served_in_generic_mode(mixed: Serving, family: int) -> None:
    """eth0 has no native XDP, eth1 has: a native program on eth1 could not send by eth0."""
    found = {each["name"]: each for each in mixed.node.json("cluster", "status")["interfaces"]}
    assert {name: each["xdp_mode"] for name, each in found.items()} == {"eth0": "generic", "eth1": "generic"}
    assert "eth0 (driver macvlan) is in generic mode" in found["eth1"]["reason"]
    tally = mixed.rig.client.run(repeat(lambda: tcp_connect(VIPS[family], PORTS["tcp"]), 50, Tally()))
    assert tally.failures == []


@pytest.fixture(scope="module")
def mixed() -> Iterator[Serving]:
    with serving(Layout(plain_driver=True, xdp_mode="auto", interfaces=2)) as site:
        for family in (4, 6):
            site.add_farm("tcp", family)
        yield site


def test_a_driver_with_native_xdp_is_served_natively_by_itself() -> None:
    with serving(Layout(xdp_mode="auto", interfaces=2)) as site:
        assert {interface["xdp_mode"] for interface in site.node.json("cluster", "status")["interfaces"]} == {"native"}


def test_native_mode_on_a_driver_without_it_is_refused_with_the_remedy() -> None:
    with Rig(Layout(backends=1, plain_driver=True, xdp_mode="native")) as rig:
        code, log = rig.node.start_refused()
        assert code == 1
        assert "eth0" in log
        assert "generic" in log
        assert not rig.node.bpf_dir.exists(), "pins made for a start that failed"


def xdp_mode_of(rig: Rig) -> xdp.AttachMode:
    index = rig.node.namespace.interface_index("eth0")
    return rig.node.namespace.call(lambda: xdp.query(index)).mode


def test_stopping_detaches_nothing_unless_asked() -> None:
    with serving() as site:
        site.add_farm("tcp")
        assert site.node.stop() == 0
        assert xdp_mode_of(site.rig) is xdp.AttachMode.NATIVE
        assert site.tcp().error == ""
        site.node.start("--detach")
        assert site.node.stop() == 0
        assert xdp_mode_of(site.rig) is xdp.AttachMode.NONE
        assert VIPS[4] not in site.node.namespace.run("ip", "addr", "show", "dev", "eth0").stdout


@both_families
def test_the_node_itself_does_not_speak_as_the_vip(site: Serving, family: int) -> None:
    """Answers to the node's own requests would look like packets of a farm, and the guard would drop them."""

    def source() -> str:
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as one:
            one.connect((site.rig.backends[0].address4 if family == 4 else site.rig.backends[0].address6, 9))
            return str(one.getsockname()[0])

    assert site.node.namespace.call(source) == ("10.77.0.1" if family == 4 else "fd77::1")


@both_families
def test_backends_see_the_address_the_farm_names(site: Serving, family: int) -> None:
    """Another VIP, which no farm listens on. The backend asks for it by ARP or NDP, and the node answers."""
    seen, length = ("10.77.0.101", 24) if family == 4 else ("fd77::101", 64)
    site.node.xlbctl("vip", "add", f"{seen}/{length}", "--dev", "eth0")
    site.add_farm("http", family, name="hidden", snat_address=seen)
    for backend in site.rig.backends:
        backend.namespace.run("ip", "neigh", "flush", "dev", "eth0")
    tally, peers = Tally(), set()

    async def ask() -> Answer:
        answer = await http_get(VIPS[family], PORTS["http"])
        peers.add(answer.peer.split(" ")[0])
        return answer

    before = site.counters()
    site.rig.client.run(repeat(ask, 60, tally))
    assert tally.failures == []
    assert set(tally.by_backend) == {"b1", "b2", "b3"}
    assert peers == {seen}
    assert site.counters()["pass_neighbour"] > before["pass_neighbour"], "no neighbour asked for the address"
    refused = site.node.xlbctl("vip", "delete", seen, expect=1)
    assert "hidden" in refused.stderr
    site.node.call("farm.delete", name="hidden")
    site.node.xlbctl("vip", "delete", seen)
