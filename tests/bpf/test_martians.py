"""Sources that no client of a VIP has: dropped and counted. What has a flow is never checked."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.constants import Mode, Protocol, VipFlag
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, V4, Bed, Family
from tests.bpf.connections import establish
from tests.bpf.packets import NAT_MODES, from_backend, from_client, icmp_error, network, transport

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
ALL_MODES = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name.lower())
SOURCES = {
    "v4": ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255"),
    "v6": ("::", "::1", "::10.0.0.1", "::ffff:10.0.0.1", "ff02::1", "ff0e::1:2"),
}


@pytest.fixture
def any_bed(one_way_bed: Bed) -> Bed:
    """The program with all modes."""
    return one_way_bed


@PROTOCOLS
def test_a_source_that_is_no_single_host_is_dropped(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    for source in SOURCES[family.name]:
        frame = bytes(from_client(family, protocol, source=source))
        out = bed.send(frame)
        assert (source, out.moved, out.frame) == (source, {"drop_martian": 1}, frame)
        assert bed.send(bytes(from_client(family, protocol, source=source, port=81))).moved == {"drop_martian": 1}
    assert bed.flows("embryonic", family) == {}


@PROTOCOLS
def test_neighbours_of_the_ranges_are_clients(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    good = (
        ("1.0.0.1", "126.0.0.1", "128.0.0.1", "223.255.255.254") if family is V4 else ("::1:0:0:1", "64:ff9b::a00:1", "fe80::1")
    )
    for source in good:
        assert bed.send(bytes(from_client(family, protocol, source=source))).verdict == "forward_redirect", source


@PROTOCOLS
def test_a_vip_is_nobodys_source(bed: Bed, family: Family, protocol: Protocol) -> None:
    """Its own (a land attack), or another one."""
    bed.farm(family.other_vip, port=1, farm=2)
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    for source in (family.vip, family.other_vip):
        assert bed.send(bytes(from_client(family, protocol, source=source, source_port=80))).moved == {"drop_martian": 1}


@pytest.mark.parametrize("mode", NAT_MODES, ids=lambda mode: mode.name.lower())
def test_a_datagram_from_the_service_of_a_backend_would_loop(bed: Bed, family: Family, mode: Mode) -> None:
    """Forged, it would make two servers answer each other for ever."""
    bed.farm(family.vip, (family.far(11), 8080), (family.far(12), 8080), protocol=Protocol.UDP, mode=mode)
    for number in (11, 12):
        packet = from_client(family, Protocol.UDP, source=family.far(number), source_port=8080)
        assert bed.send(bytes(packet), "out0").moved == {"drop_martian": 1}
    assert bed.flows("embryonic", family) == {}


def test_of_a_range_of_ports_too(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 9000), port=5000, port_last=5010, protocol=Protocol.UDP)
    inside = from_client(family, Protocol.UDP, source=family.far(11), source_port=9010, port=5001)
    assert bed.send(bytes(inside), "out0").moved == {"drop_martian": 1}
    outside = from_client(family, Protocol.UDP, source=family.far(11), source_port=9011, port=5001)
    assert bed.send(bytes(outside), "out0").verdict == "forward_tx"


@PROTOCOLS
def test_a_backend_may_be_a_client(bed: Bed, family: Family, protocol: Protocol) -> None:
    """From a port of its own choice; and a TCP server may even open connections from the port of its service."""
    bed.farm(family.vip, (family.far(12), 8080), protocol=protocol)
    bed.farm(family.other_vip, (family.far(11), 8080), protocol=protocol, farm=2)
    ports = (40000, 8080) if protocol is Protocol.TCP else (40000,)
    for port in ports:
        packet = from_client(family, protocol, source=family.far(11), source_port=port)
        assert bed.send(bytes(packet), "out0").verdict == "forward_tx"


def test_a_late_datagram_of_a_backend_is_no_martian(bed: Bed, family: Family) -> None:
    """To a port of the SNAT address that no farm serves."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP)
    late = from_backend(family, family.far(11), family.vip, 40000, Protocol.UDP)
    assert bed.send(bytes(late), "out0").moved == {"drop_no_flow": 1}


def test_a_guard_that_is_off_leaves_unserved_ports_to_the_kernel(bed: Bed, family: Family) -> None:
    """Which knows martians by itself, and may itself be a client of the backend."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP, flags=VipFlag.OPEN)
    late = from_backend(family, family.far(11), family.vip, 40000, Protocol.UDP)
    assert bed.send(bytes(late), "out0").moved == {"pass_vip_open": 1}


def test_packets_with_a_flow_are_not_checked(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    bed.farm(family.client, port=1, farm=2)  # the client's address becomes a VIP
    assert bed.send(bytes(from_client(family, flags="A"))).verdict == "forward_redirect"


def errors(family: Family, destination: str, quoted: Packet, source: str) -> dict[str, bytes]:
    """An ICMP error of each type that is translated, by its name; from `source`, that quotes `quoted`."""
    kinds = (
        (ICMP(type=3, code=3), ICMP(type=3, code=4, nexthopmtu=1000), ICMP(type=11), ICMP(type=12))
        if family is V4
        else (ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded(), ICMPv6ParamProblem())
    )
    front = Ether(src=GATEWAY_MAC, dst=NODE_IN_MAC) / network(family, source, destination)
    names = ("unreachable", "too big", "time exceeded", "parameter problem")
    return {name: bytes(front / kind / quoted) for name, kind in zip(names, kinds, strict=True)}


@PROTOCOLS
@ALL_MODES
def test_an_icmp_error_from_no_host_is_not_translated(any_bed: Bed, family: Family, protocol: Protocol, mode: Mode) -> None:
    """Whether its flow is known or not; what is about no connection at all belongs to the kernel."""
    any_bed.farm(family.other_vip, port=1, farm=2)
    any_bed.farm(family.vip, (family.far(11), 80), protocol=protocol, mode=mode, snat=family.snat)
    quoted = network(family, family.vip, family.client) / transport(protocol, 80, 40000)
    for is_known in (False, True):
        if is_known:
            any_bed.send(bytes(from_client(family, protocol)))
        for source in (*SOURCES[family.name], family.vip, family.other_vip):
            for name, error in errors(family, family.vip, quoted, source).items():
                expected = "drop_martian" if is_known or name == "too big" else "pass_vip_icmp"
                assert any_bed.send(error).moved == {expected: 1}, (source, name, is_known)
        good = errors(family, family.vip, quoted, "203.0.113.1" if family is V4 else "2001:db8:77::1")
        assert any_bed.send(good["too big"]).verdict == "forward_icmp_error"


@PROTOCOLS
@ALL_MODES
def test_too_big_about_a_client_that_no_connection_has(any_bed: Bed, family: Family, protocol: Protocol, mode: Mode) -> None:
    """The connection that the quoted packet would belong to cannot have been opened."""
    any_bed.farm(family.other_vip, port=1, farm=2)
    any_bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode, snat=family.snat)
    router = "203.0.113.1" if family is V4 else "2001:db8:77::1"
    impossible = dict.fromkeys((*SOURCES[family.name], family.vip, family.other_vip), "drop_martian")
    no_client = "drop_martian" if protocol is Protocol.UDP else "drop_no_flow"
    for client, expected in {**impossible, family.far(11): no_client}.items():
        quoted = network(family, family.vip, client) / transport(protocol, 80, 8080)
        for name, error in errors(family, family.vip, quoted, router).items():
            assert any_bed.send(error).moved == {expected if name == "too big" else "pass_vip_icmp": 1}, (client, name)
    assert any_bed.flows("embryonic", family) == {}


def test_an_error_of_a_client_whose_address_became_a_vip(bed: Bed, family: Family) -> None:
    """Its flow has been checked."""
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    bed.farm(family.client, port=1, farm=2)
    quoted = network(family, family.vip, family.client) / transport(6, 80, 40000)
    assert bed.send(icmp_error(family, family.vip, quoted, family.client)).verdict == "forward_icmp_error"


def test_a_fenced_node_only_drops(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    bed.plane.set_lease(0, 7)
    frame = bytes(from_client(family, source=SOURCES[family.name][0]))
    assert bed.send(frame).moved == {"drop_fenced": 1}
