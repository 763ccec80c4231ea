"""Sources that no client of a VIP has: dropped and counted. What has a flow is never checked."""

from __future__ import annotations

import pytest

from bpf.constants import Mode, Protocol, VipFlag
from tests.bpf.bed import V4, Bed, Family
from tests.bpf.connections import establish
from tests.bpf.packets import NAT_MODES, from_backend, from_client, icmp_error, network, transport

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
SOURCES = {
    "v4": ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255"),
    "v6": ("::", "::1", "::10.0.0.1", "::ffff:10.0.0.1", "ff02::1", "ff0e::1:2"),
}


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


def test_an_icmp_error_from_no_host_is_not_translated(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    quoted = network(family, family.vip, family.client) / transport(6, 80, 40000)
    for source in SOURCES[family.name]:
        assert bed.send(icmp_error(family, family.vip, quoted, source)).moved == {"drop_martian": 1}


def test_a_fenced_node_only_drops(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    bed.plane.set_lease(0, 7)
    frame = bytes(from_client(family, source=SOURCES[family.name][0]))
    assert bed.send(frame).moved == {"drop_fenced": 1}
