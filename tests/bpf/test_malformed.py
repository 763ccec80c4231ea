"""Truncated and inconsistent packets: at every length the right verdict, no map entry and no packet changed."""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.constants import Protocol
from tests.bpf.bed import FAMILIES, NODE_IN_MAC, V4, V6, Bed, Family, Outcome
from tests.bpf.packets import PAYLOAD, arp, echo_request, from_client, solicitation, transport

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
MIN_FRAME = 14  # the kernel refuses a test run on less than an Ethernet header


def untouched(bed: Bed, frame: bytes) -> Outcome:
    """Send a frame that must change nothing."""
    before = [bed.map_state(family) for family in FAMILIES]
    outcome = bed.send(frame)
    assert [bed.map_state(family) for family in FAMILIES] == before
    assert outcome.frame == frame
    return outcome


def serve(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)


@PROTOCOLS
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
def test_truncation_at_every_length(bed: Bed, family: Family, protocol: Protocol, known: bool) -> None:
    serve(bed, family, protocol)
    whole = bytes(from_client(family, protocol))
    if known:
        bed.send(whole)
    for length in range(MIN_FRAME, len(whole)):
        verdict = untouched(bed, whole[:length]).verdict
        readable = length >= MIN_FRAME + family.header_bytes
        assert verdict == ("drop_malformed" if readable else "pass_not_ours"), length
    assert bed.send(whole).verdict == "forward_redirect"


@pytest.mark.parametrize("length", range(MIN_FRAME))
def test_less_than_an_ethernet_header_never_gets_this_far(bed: Bed, length: int) -> None:
    """The kernel itself refuses such a test run; drivers drop such frames."""
    with pytest.raises(OSError) as caught:
        bed.send(bytes(length))
    assert caught.value.errno == errno.EINVAL


def test_truncated_neighbour_messages_and_pings(bed: Bed) -> None:
    for family in FAMILIES:
        serve(bed, family, Protocol.TCP)
    question = arp(V4.vip)
    for length in range(MIN_FRAME, 14 + 28):
        assert untouched(bed, question[:length]).verdict == "pass_not_ip"
    for frame in (solicitation(V6.vip), echo_request(V4, V4.vip), echo_request(V6, V6.vip)):
        for length in range(MIN_FRAME, len(frame)):
            assert untouched(bed, frame[:length]).verdict in ("pass_not_ours", "drop_malformed")


def test_truncated_extensions(bed: Bed) -> None:
    serve(bed, V6, Protocol.TCP)
    ip = IPv6(src=V6.client, dst=V6.vip) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
    whole = bytes(Ether(dst=NODE_IN_MAC) / ip / IPv6ExtHdrDestOpt() / transport(6, 40000, 80, "S") / Raw(PAYLOAD))
    for length in range(14 + 40, len(whole)):
        assert untouched(bed, whole[:length]).verdict == "drop_malformed"
    assert bed.send(whole).verdict == "forward_redirect"


def test_the_last_allowed_extension_is_followed(bed: Bed) -> None:
    """Four are allowed, five are not; the packet comes out with its extensions and a right checksum."""
    serve(bed, V6, Protocol.TCP)
    ip = IPv6(src=V6.client, dst=V6.vip, hlim=9) / IPv6ExtHdrHopByHop()
    for _ in range(3):
        ip /= IPv6ExtHdrDestOpt()
    out = Ether(bed.send(bytes(Ether(dst=NODE_IN_MAC) / ip / transport(6, 40000, 80, "S") / Raw(PAYLOAD))).frame)
    assert (out[IPv6].dst, out[TCP].dport, out[IPv6].hlim) == (V6.far(11), 8080, 8)
    written = out[TCP].chksum
    del out[TCP].chksum
    assert Ether(bytes(out))[TCP].chksum == written


CONTRADICTIONS = {
    "version": lambda ip: bytes([0x55]) + ip[1:],
    "header shorter than 20": lambda ip: bytes([0x44]) + ip[1:],
    "header longer than the packet": lambda ip: bytes([0x4F]) + ip[1:28],
    "total length below the header": lambda ip: ip[:2] + (19).to_bytes(2, "big") + ip[4:],
    "total length beyond the frame": lambda ip: ip[:2] + (len(ip) + 1).to_bytes(2, "big") + ip[4:],
    "total length cuts the TCP header": lambda ip: ip[:2] + (39).to_bytes(2, "big") + ip[4:],
    "TCP header below 20": lambda ip: ip[:32] + bytes([0x40]) + ip[33:],
    "TCP header beyond the packet": lambda ip: ip[:32] + bytes([0xF0]) + ip[33:],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_in_ipv4(bed: Bed, name: str) -> None:
    serve(bed, V4, Protocol.TCP)
    frame = bytes(from_client(V4))
    assert untouched(bed, frame[:14] + CONTRADICTIONS[name](frame[14:])).verdict == "drop_malformed"


def test_contradictions_in_ipv6(bed: Bed) -> None:
    serve(bed, V6, Protocol.TCP)
    ip = bytes(from_client(V6))[14:]
    frame = bytes(from_client(V6))[:14]
    wrong = [bytes([0x45]) + ip[1:], ip[:4] + (len(ip) - 39).to_bytes(2, "big") + ip[6:], ip[:4] + bytes([0, 19]) + ip[6:]]
    for packet in wrong:
        assert untouched(bed, frame + packet).verdict == "drop_malformed"


@pytest.mark.parametrize("length", [1, 7])
def test_the_padding_of_a_frame_is_no_udp_header(bed: Bed, family: Family, length: int) -> None:
    """The first fragment ends within the header, and bytes of the frame follow."""
    serve(bed, family, Protocol.UDP)
    whole = bytes(from_client(family, Protocol.UDP))[14 + family.header_bytes :]
    packet: Packet
    if family is V4:
        packet = IP(src=V4.client, dst=V4.vip, proto=17, flags="MF", len=20 + length) / Raw(whole)
    else:
        fragment = IPv6ExtHdrFragment(nh=17, m=1, id=1)
        packet = IPv6(src=V6.client, dst=V6.vip, plen=8 + length) / fragment / Raw(whole)
    assert untouched(bed, bytes(Ether(dst=NODE_IN_MAC) / packet)).verdict == "drop_malformed"


@pytest.mark.parametrize("length", [0, 7])
def test_udp_length_below_its_header(bed: Bed, family: Family, length: int) -> None:
    serve(bed, family, Protocol.UDP)
    frame = bytearray(bytes(from_client(family, Protocol.UDP)))
    frame[14 + family.header_bytes + 4 : 14 + family.header_bytes + 6] = length.to_bytes(2, "big")
    assert untouched(bed, bytes(frame)).verdict == "drop_malformed"


def test_padding_behind_the_packet_is_kept(bed: Bed) -> None:
    """A short packet in a frame of the least size."""
    serve(bed, V4, Protocol.UDP)
    frame = bytes(from_client(V4, Protocol.UDP, payload=b"x"))
    padded = frame + bytes(60 - len(frame))
    out = bed.send(padded).frame
    assert len(out) == 60
    assert Ether(out)[IP].len == 29


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_behind_an_ethernet_header(bed: Bed, data: st.DataObject) -> None:
    """No verdict is promised, only that there is one, and that a drop or pass of a stranger's packet changes nothing."""
    ethertype = data.draw(st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x88\xcc"]))
    body = data.draw(st.binary(max_size=200))
    bed.send(bytes(12) + ethertype + body)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bytes_of_a_good_packet(bed: Bed, data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    protocol = data.draw(st.sampled_from(list(Protocol)))
    serve(bed, family, protocol)
    frame = bytearray(bytes(from_client(family, protocol)))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(14, len(frame) - 1))] = data.draw(st.integers(0, 255))
    bed.send(bytes(frame[: data.draw(st.integers(MIN_FRAME, len(frame)))]))
