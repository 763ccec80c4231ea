"""Replies of backends whose flow is gone: reset, or dropped and counted; what else comes from a backend passes untouched."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.constants import Mode, Protocol
from tests.bpf.bed import NODE_OUT_MAC, TX, V4, V6, Bed, Family, backend_mac
from tests.bpf.connections import establish
from tests.bpf.packets import NAT_MODES, PAYLOAD, from_backend, from_client, icmp_error, network, transport

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())


def untouched(bed: Bed, packet: Packet | bytes, side: str = "out0") -> None:
    out = bed.send(bytes(packet), side)
    assert (out.moved, out.frame) == ({"pass_not_ours": 1}, bytes(packet))


def reset_to_backend(family: Family, seen: str, flags: str, seq: int, ack: int) -> bytes:
    """As if the address that the backend sees as its client had sent it."""
    ip = IP(src=seen, dst=family.far(11), flags="DF", id=0) if family is V4 else IPv6(src=seen, dst=family.far(11))
    segment = TCP(sport=40000, dport=8080, flags=flags, seq=seq, ack=ack, window=0)
    return bytes(Ether(src=NODE_OUT_MAC, dst=backend_mac(11)) / ip / segment)


@pytest.mark.parametrize("mode", NAT_MODES, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("flags", ["SA", "A", "PA", "FA"])
def test_a_segment_of_a_backend_without_a_flow_is_reset(bed: Bed, family: Family, mode: Mode, flags: str) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=mode)
    seen = family.vip if mode is Mode.SNAT else family.client
    out = bed.send(bytes(from_backend(family, family.far(11), seen, 40000, flags=flags)), "out0")
    assert (out.action, out.moved) == (TX, {"drop_no_flow": 1, "event_reset_sent": 1})
    assert out.frame == reset_to_backend(family, seen, "R", 9, 0)


def test_a_snat_port_that_a_farm_serves_opens_no_connection(bed: Bed, family: Family) -> None:
    """The backend's late segment goes to a port of the VIP on which another farm listens."""
    bed.farm(family.vip, (family.far(11), 8080))
    bed.farm(family.vip, (family.far(12), 8080), port=40000, farm=2)
    out = bed.send(bytes(from_backend(family, family.far(11), family.vip, 40000, flags="A")), "out0")
    assert (out.action, out.moved) == (TX, {"drop_no_flow": 1, "event_reset_sent": 1})


def test_a_datagram_of_a_dnat_backend_without_a_flow_does_not_leak(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT, protocol=Protocol.UDP)
    frame = bytes(from_backend(family, family.far(11), family.client, 40000, Protocol.UDP))
    out = bed.send(frame, "out0")
    assert (out.moved, out.frame) == ({"drop_no_flow": 1}, frame)


def test_a_reset_of_a_backend_does_not_leak_and_is_not_answered(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT)
    assert bed.send(bytes(from_backend(family, family.far(11), family.client, 40000, flags="R")), "out0").moved == {
        "drop_no_flow": 1
    }


@PROTOCOLS
def test_other_traffic_of_a_dnat_backend_passes(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT, protocol=protocol)
    other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
    for packet in (
        from_backend(family, family.far(11), family.client, 40000, protocol, port=22),  # another service
        from_backend(family, family.far(11), family.client, 443, protocol, "S", port=50000),  # its own connections
        from_backend(family, family.far(11), family.client, 40000, other),
        from_backend(family, family.far(12), family.client, 40000, protocol),  # another host
    ):
        untouched(bed, packet)


@PROTOCOLS
def test_answers_to_the_node_itself_pass(bed: Bed, family: Family, protocol: Protocol) -> None:
    """Health checks: from a backend's service to an address of the node."""
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT, protocol=protocol)
    own = "10.2.0.1" if family is V4 else "fd02::1"
    untouched(bed, from_backend(family, family.far(11), own, 40000, protocol))


@PROTOCOLS
def test_a_connection_past_the_vip_passes(bed: Bed, family: Family, protocol: Protocol) -> None:
    """The node is the backend's router: it has seen what the client sent to the backend's own address."""
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT, protocol=protocol)
    reply = from_backend(family, family.far(11), family.client, 40000, protocol)
    untouched(bed, from_client(family, protocol, destination=family.far(11), port=8080), "in0")
    untouched(bed, reply)
    other = from_backend(family, family.far(11), family.client, 40001, protocol)
    assert bed.send(bytes(other), "out0").verdict == "drop_no_flow"


def test_a_port_range_has_no_other_ports(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 9000), port=5000, port_last=5010, mode=Mode.DNAT)
    for port, verdict in ((8999, "pass_not_ours"), (9000, "drop_no_flow"), (9010, "drop_no_flow"), (9011, "pass_not_ours")):
        packet = from_backend(family, family.far(11), family.client, 40000, flags="A", port=port)
        assert bed.send(bytes(packet), "out0").verdict == verdict, port


def test_a_fenced_node_sends_no_reset_and_leaks_nothing(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT)
    bed.plane.set_lease(0, 7)
    frame = bytes(from_backend(family, family.far(11), family.client, 40000, flags="A"))
    out = bed.send(frame, "out0")
    assert (out.moved, out.frame) == ({"drop_fenced": 1}, frame)
    untouched(bed, from_backend(family, family.far(11), family.client, 40000, port=22))


@PROTOCOLS
def test_an_icmp_error_of_a_backend_about_no_flow_does_not_leak(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT, protocol=protocol)
    macs = (backend_mac(11), NODE_OUT_MAC)
    quoted = network(family, family.client, family.far(11)) / transport(protocol, 40000, 8080)
    out = bed.send(icmp_error(family, family.client, quoted, family.far(11), macs), "out0")
    assert out.moved == {"drop_no_flow": 1}
    other = network(family, family.client, family.far(11)) / transport(protocol, 40000, 22)
    untouched(bed, icmp_error(family, family.client, other, family.far(11), macs))


def fragment(family: Family, offset: int, more: int, inner: bytes, identification: int = 7) -> bytes:
    """Of a backend's datagram to the client."""
    ethernet = Ether(src=backend_mac(11), dst=NODE_OUT_MAC)
    if family is V4:
        packet: Packet = IP(src=V4.far(11), dst=V4.client, proto=17, flags=more, frag=offset, id=identification)
    else:
        packet = IPv6(src=V6.far(11), dst=V6.client) / IPv6ExtHdrFragment(nh=17, offset=offset, m=more, id=identification)
    return bytes(ethernet / packet / Raw(inner))


def test_fragments_of_a_dnat_backend_without_a_flow_do_not_leak(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT, protocol=Protocol.UDP)
    first = bytes(transport(Protocol.UDP, 8080, 40000, len=1008) / Raw(PAYLOAD))
    assert bed.send(fragment(family, 0, 1, first), "out0").moved == {"drop_no_flow": 1}
    assert bed.send(fragment(family, 4, 0, PAYLOAD), "out0").moved == {"drop_fragment": 1}


def test_other_fragments_of_a_dnat_backend_pass(bed: Bed, family: Family) -> None:
    """Their first one shows whose they are."""
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT, protocol=Protocol.UDP)
    first = bytes(transport(Protocol.UDP, 53, 40000, len=1008) / Raw(PAYLOAD))
    untouched(bed, fragment(family, 0, 1, first))
    untouched(bed, fragment(family, 4, 0, PAYLOAD))
    assert bed.send(fragment(family, 4, 0, PAYLOAD, identification=8), "out0").moved == {"drop_fragment": 1}


def test_a_known_flow_is_not_affected(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    reply = bytes(from_backend(family, family.far(11), family.vip, 40000, flags="A"))
    assert bed.send(reply, "out0").verdict == "forward_redirect"
