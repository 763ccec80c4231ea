"""Requirements of docs/CONFORMANCE.md that no other test shows."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.constants import Mode, Protocol
from bpf.dataplane import PutMembers
from tests.bpf.bed import NODE_IN_MAC, V4, Bed, Family, near_mac
from tests.bpf.connections import establish
from tests.bpf.packets import from_backend, from_client, icmp_error, network

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())


def unreachable(family: Family) -> Packet:
    return ICMP(type=3, code=3) if family is V4 else ICMPv6DestUnreach(code=4)


@PROTOCOLS
def test_only_the_backend_of_a_mapping_reaches_the_client(bed: Bed, family: Family, protocol: Protocol) -> None:
    """RFC 4787 REQ-8, RFC 5382 REQ-3: neither another host, nor another port of the backend."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    establish(bed, family, protocol=protocol)
    for source, port in ((family.far(12), 8080), (family.far(11), 8081)):
        packet = from_backend(family, source, family.vip, 40000, protocol, "S", port=port)
        assert bed.send(bytes(packet), "out0").moved == {"drop_vip_guard": 1}
    packet = from_backend(family, family.far(11), family.vip, 40000, protocol, "A")
    assert bed.send(bytes(packet), "out0").verdict == "forward_redirect"


def test_an_unsolicited_syn_is_not_answered(bed: Bed, family: Family) -> None:
    """RFC 5382 REQ-4: dropped, with no reset and no ICMP error, whether a mapping has the port or not."""
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    for port in (40000, 40001):
        assert bed.send(bytes(from_client(family, port=port, source_port=50000))).moved == {"drop_vip_guard": 1}


@PROTOCOLS
@pytest.mark.parametrize("of", ["client", "backend"])
def test_an_icmp_error_neither_refreshes_nor_ends_a_mapping(bed: Bed, family: Family, protocol: Protocol, of: str) -> None:
    """RFC 4787 REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6: of either end, about packets of either end."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    establish(bed, family, protocol=protocol)
    for flow_map in ("flows", "embryonic"):
        bed.age(flow_map, family, 100)
    sent = from_client(family, protocol, flags="A")
    if of == "client":
        about, frame_from = from_backend(family, family.vip, family.client, 40000, protocol, port=80), family.client
        error = network(family, frame_from, family.vip) / unreachable(family) / about.payload
        side = "in0"
    else:
        about = Ether(bed.send(bytes(sent)).frame)
        for flow_map in ("flows", "embryonic"):
            bed.age(flow_map, family, 100)
        error = network(family, family.far(11), family.vip) / unreachable(family) / about.payload
        side = "out0"
    macs = {"in0": NODE_IN_MAC, "out0": "02:00:00:00:02:01"}
    before = bed.map_state(family)
    out = bed.send(bytes(Ether(src="02:00:00:00:02:0b", dst=macs[side]) / error), side)
    assert out.moved == {"forward_icmp_error": 1}
    assert bed.map_state(family) == before
    assert bed.send(bytes(sent)).verdict == "forward_redirect"


def test_a_wrong_icmp_checksum_stays_wrong(bed: Bed, family: Family) -> None:
    """RFC 5508 REQ-3: the receiver drops it."""
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    about = from_backend(family, family.vip, family.client, 40000, flags="A", port=80)
    right = icmp_error(family, family.vip, about.payload)
    wrong = bytearray(right)
    at = 14 + family.header_bytes + 2
    wrong[at] ^= 0x5A
    sent = [bed.send(bytes(frame)) for frame in (right, wrong)]
    assert [out.moved for out in sent] == [{"forward_icmp_error": 1}] * 2
    good, bad = (int.from_bytes(out.frame[at : at + 2], "big") for out in sent)
    assert good != bad
    packet = Ether(sent[0].frame)
    layer = packet[ICMP] if family is V4 else packet[ICMPv6PacketTooBig]
    name = "chksum" if family is V4 else "cksum"
    delattr(layer, name)
    assert getattr(Ether(bytes(packet))[type(layer)], name) == good


def test_an_error_about_a_hairpinned_packet_reaches_the_client(bed: Bed, family: Family) -> None:
    """RFC 5508 REQ-7: backend 11 is a client of the farm that it serves, in mode dnat; backend 12 reports an error."""
    bed.farm(family.vip, (family.near(12), 8080), mode=Mode.DNAT)
    bed.plane.apply([PutMembers(1, frozenset({family.near(11), family.near(12)}))])
    seen = Ether(bed.send(bytes(from_client(family, source=family.near(11)))).frame)
    error = network(family, family.near(12), family.vip) / unreachable(family) / seen.payload
    out = bed.send(bytes(Ether(src=near_mac(12), dst=NODE_IN_MAC) / error))
    assert out.moved == {"forward_icmp_error": 1}
    frame = Ether(out.frame)
    assert (frame.src, frame.dst) == (NODE_IN_MAC, near_mac(11))
    assert (frame.payload.src, frame.payload.dst) == (family.vip, family.near(11))
