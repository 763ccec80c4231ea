"""Checksums after the rewrite equal checksums computed from scratch, whatever the payload, the ports and the addresses."""

from __future__ import annotations

import ipaddress
import itertools
import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from bpf.columns import address_bytes
from bpf.constants import Protocol
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC, V4, Bed, Family, backend_mac
from tests.bpf.packets import NAT_MODES, from_backend, from_client, rewritten

PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PORTS = st.integers(1, 65535)


def client_addresses(family: Family) -> st.SearchStrategy[str]:
    """Routed by the default route: public IPv4, and IPv6 below 2000::/3."""
    if family is V4:
        return st.integers(0x0B000001, 0x7EFFFFFE).map(lambda number: str(ipaddress.IPv4Address(number)))
    return st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(lambda number: str(ipaddress.IPv6Address(number)))


@PROPERTY
@given(data=st.data())
def test_both_directions(bed: Bed, family: Family, data: st.DataObject) -> None:
    protocol = data.draw(st.sampled_from(list(Protocol)))
    mode = data.draw(st.sampled_from(NAT_MODES))
    client = (data.draw(client_addresses(family)), data.draw(PORTS))
    port, backend_port = data.draw(PORTS), data.draw(PORTS)
    payload = data.draw(st.binary(max_size=80))
    bed.reset()
    bed.farm(family.vip, (family.far(11), backend_port), port=port, protocol=protocol, mode=mode, snat=family.snat)
    ends = {"source": client[0], "source_port": client[1], "port": port}

    first = from_client(family, protocol, payload=payload, **ends)  # type: ignore[arg-type]
    out = bed.send(bytes(first))
    assert out.verdict == "forward_redirect"
    (forward,) = [entry for entry in bed.flows("embryonic", family).values() if entry.forward]
    seen = (forward.leaves.source, forward.leaves.source_port)
    assert out.frame == rewritten(first, seen, (family.far(11), backend_port), (NODE_OUT_MAC, backend_mac(11)))

    answer = from_backend(family, family.far(11), *seen, protocol, port=backend_port, payload=payload[::-1])
    back = bed.send(bytes(answer), "out0")
    assert back.frame == rewritten(answer, (family.vip, port), client, (NODE_IN_MAC, GATEWAY_MAC))


def checksum(packet_bytes: bytes, family: Family, protocol: int) -> int:
    at = 14 + family.header_bytes + (6 if protocol == Protocol.UDP else 16)
    return int.from_bytes(packet_bytes[at : at + 2], "big")


def test_udp_without_a_checksum_stays_without(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP)
    packet = from_client(family, Protocol.UDP)
    packet[UDP].chksum = 0
    out = bed.send(bytes(packet))
    assert checksum(out.frame, family, Protocol.UDP) == 0
    assert out.frame == rewritten(packet, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))


def test_every_checksum_value_once(bed: Bed, family: Family) -> None:
    """A payload word takes the checksum through the values around both zeros, on both protocols."""
    for protocol in Protocol:
        bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, farm=int(protocol))
        layer = UDP if protocol == Protocol.UDP else TCP
        zero_out = checksum(out_for(bed, family, protocol, 0)[1], family, protocol)
        zero_in = checksum(bytes(from_client(family, protocol, payload=bytes(2))), family, protocol)
        for word in itertools.chain.from_iterable(range(value - 2, value + 3) for value in (zero_in, zero_out)):
            packet, out = out_for(bed, family, protocol, word % 65536)
            expected = rewritten(packet, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
            assert out == expected, f"{layer.__name__} payload word {word:#x}"


def out_for(bed: Bed, family: Family, protocol: Protocol, word: int) -> tuple[Packet, bytes]:
    packet = from_client(family, protocol, payload=word.to_bytes(2, "big"))
    return packet, bed.send(bytes(packet)).frame


def test_the_computed_zero_is_written_as_ones(bed: Bed, family: Family) -> None:
    """The payload that makes the outgoing UDP sum zero: 0xffff, since 0 would mean "none" (RFC 768)."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP)
    word = checksum(out_for(bed, family, Protocol.UDP, 0)[1], family, Protocol.UDP)
    assert checksum(out_for(bed, family, Protocol.UDP, word)[1], family, Protocol.UDP) == 0xFFFF


def test_a_wrong_checksum_stays_wrong(bed: Bed, family: Family) -> None:
    """The balancer does not vouch for what it did not check: the error must reach the receiver."""
    bed.farm(family.vip, (family.far(11), 8080))
    good = from_client(family)
    bad = bytearray(bytes(good))
    bad[-1] ^= 1
    out = bytearray(bed.send(bytes(bad)).frame)
    out[-1] ^= 1
    assert bytes(out) == rewritten(good, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))


def sum_in_memory(*addresses: str) -> int:
    """16-bit words summed as they lie in memory, the carries not yet added."""
    packed = b"".join(address_bytes(address) for address in addresses)
    return sum(struct.unpack(f"<{len(packed) // 2}H", packed))


def test_a_carry_that_carries_again(bed: Bed, family: Family) -> None:
    """Client addresses whose sum, its carries added once, overflows 16 bits a second time."""
    bed.farm(family.vip, (family.far(11), 8080))
    prefix = "198.255." if family is V4 else "2001:db8:ffff:ffff:ffff:ffff:ffff:"
    texts = (f"{prefix}{n >> 8}.{n & 255}" if family is V4 else f"{prefix}{n:x}" for n in range(1, 65535))
    totals = ((text, sum_in_memory(text, family.vip)) for text in texts)
    clients = [text for text, total in totals if (total & 0xFFFF) + (total >> 16) > 0xFFFF]
    assert clients
    for client in clients[:5]:
        packet = from_client(family, source=client)
        expected = rewritten(packet, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
        bed.clear("embryonic", family)
        assert bed.send(bytes(packet)).frame == expected
