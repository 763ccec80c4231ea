"""TOA: the TCP option with the client's address, byte for byte; on which segments it is, and when it is left out."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.constants import TOA_KIND, FarmFlag, FlowFlag, FlowState
from bpf.dataplane import FlowEntry, PutFarm
from tests.bpf.bed import NODE_OUT_MAC, SMALL, SMALL_MTU, Bed, Family, Outcome, backend_mac
from tests.bpf.connections import arriving, reply_tuple
from tests.bpf.packets import PAYLOAD, from_backend, from_client, rewritten

MACS = (NODE_OUT_MAC, backend_mac(11))
TIMESTAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (7, 9))]


@pytest.fixture
def toa_bed(client_bed: Bed, family: Family) -> Bed:
    """A farm with the setting, whose client has answered the SYN-ACK."""
    start(client_bed, family)
    return client_bed


def start(bed: Bed, family: Family, number: int = 11, flags: int = FarmFlag.TOA) -> None:
    bed.farm(family.vip, (family.far(number), 8080))
    bed.plane.apply([PutFarm(1, int(flags))])
    for frame, side in (
        (from_client(family, payload=b""), "in0"),
        (from_backend(family, family.far(number), family.vip, 40000, payload=b""), "out0"),
        (from_client(family, flags="A", payload=b""), "in0"),
    ):
        out = bed.send(bytes(frame), side)
        assert out.verdict == "forward_redirect" and not any("toa" in name for name in out.moved)


def segment(family: Family, seq: int, payload: bytes = PAYLOAD, flags: str = "PA", **fields: Any) -> Packet:
    packet = from_client(family, flags=flags, payload=payload)
    packet[TCP].seq = seq
    for name, value in fields.items():
        setattr(packet[TCP], name, value)
    return packet


def expected(family: Family, packet: Packet, number: int = 11) -> bytes:
    """The segment as the backend gets it: with the option in front of the others."""
    packet = Ether(bytes(packet))
    tcp = packet[TCP]
    option = tcp.sport.to_bytes(2, "big") + ipaddress.ip_address(family.client).packed
    tcp.options = [(TOA_KIND, option), *tcp.options]
    del tcp.dataofs, tcp.chksum
    if IP in packet:
        del packet[IP].len, packet[IP].chksum
    else:
        del packet[IPv6].plen
    return rewritten(packet, (family.vip, tcp.sport), (family.far(number), 8080), (NODE_OUT_MAC, backend_mac(number)))


def plain(family: Family, packet: Packet) -> bytes:
    return rewritten(packet, (family.vip, 40000), (family.far(11), 8080), MACS)


def send(bed: Bed, packet: Packet) -> Outcome:
    out = bed.send(bytes(packet))
    assert out.verdict == "forward_redirect"
    return out


def acknowledge(bed: Bed, family: Family, number: int) -> None:
    packet = from_backend(family, family.far(11), family.vip, 40000, flags="A", payload=b"")
    packet[TCP].ack = number
    assert bed.send(bytes(packet), "out0").verdict == "forward_redirect"


def entries(bed: Bed, family: Family) -> tuple[FlowEntry, FlowEntry]:
    flows = bed.flows("flows", family)
    return flows[arriving(family)], flows[reply_tuple(family)]


@pytest.mark.vlans
@pytest.mark.parametrize("options", [[], TIMESTAMPS], ids=["no options", "timestamps"])
@pytest.mark.parametrize("payload", [b"x", PAYLOAD, bytes(1200)], ids=len)
def test_the_first_data_has_the_clients_address(toa_bed: Bed, family: Family, options: list[Any], payload: bytes) -> None:
    packet = segment(family, 8, payload, options=options)
    out = send(toa_bed, packet)
    assert out.frame == expected(family, packet)
    assert out.moved == {"forward_redirect": 1, "event_toa_inserted": 1}


def test_the_option_is_as_the_kernel_modules_read_it(toa_bed: Bed, family: Family) -> None:
    """Kind, length, port and address in network byte order, directly behind the fixed header."""
    frame = send(toa_bed, segment(family, 8)).frame
    at = 14 + family.header_bytes + 20
    address = ipaddress.ip_address(family.client).packed
    size = 4 + len(address)
    assert frame[at : at + size] == bytes([254, size]) + (40000).to_bytes(2, "big") + address
    assert frame[at + size :] == PAYLOAD and size in (8, 20)


def test_its_retransmissions_have_it_until_it_is_acknowledged(toa_bed: Bed, family: Family) -> None:
    first, second = segment(family, 8), segment(family, 8 + len(PAYLOAD))
    assert send(toa_bed, first).frame == expected(family, first)
    assert send(toa_bed, second).frame == plain(family, second)
    acknowledge(toa_bed, family, 8)  # the handshake's alone
    longer = segment(family, 8, PAYLOAD * 2)
    for again in (first, longer):
        assert send(toa_bed, again).frame == expected(family, again)
    acknowledge(toa_bed, family, 9)
    assert all(each.state & FlowState.TOA_DONE for each in entries(toa_bed, family))
    out = send(toa_bed, first)
    assert out.frame == plain(family, first) and out.moved == {"forward_redirect": 1}


def test_sequence_numbers_wrap(toa_bed: Bed, family: Family) -> None:
    first = segment(family, 0xFFFFFFFF)
    assert send(toa_bed, first).frame == expected(family, first)
    later = segment(family, (0xFFFFFFFF + len(PAYLOAD)) & 0xFFFFFFFF)
    assert send(toa_bed, later).frame == plain(family, later)
    acknowledge(toa_bed, family, 5)
    assert send(toa_bed, first).frame == plain(family, first)


def test_an_earlier_segment_that_comes_later_has_it_too(toa_bed: Bed, family: Family) -> None:
    second, first = segment(family, 100), segment(family, 8)
    for packet in (second, first):
        assert send(toa_bed, packet).frame == expected(family, packet)
    assert send(toa_bed, second).frame == plain(family, second)


@pytest.mark.parametrize("flags", ["A", "FA", "RA"])
def test_segments_without_data_have_it_not(toa_bed: Bed, family: Family, flags: str) -> None:
    packet = segment(family, 8, b"", flags)
    out = send(toa_bed, packet)
    assert out.frame == plain(family, packet) and out.moved == {"forward_redirect": 1}


def test_a_new_connection_on_the_same_tuple_has_it_again(toa_bed: Bed, family: Family) -> None:
    first = segment(family, 8)
    send(toa_bed, first)
    acknowledge(toa_bed, family, 9)
    for packet, side in (
        (from_client(family, flags="FA", payload=b""), "in0"),
        (from_backend(family, family.far(11), family.vip, 40000, flags="FA", payload=b""), "out0"),
    ):
        toa_bed.send(bytes(packet), side)
    start(toa_bed, family)
    again = segment(family, 5)
    assert send(toa_bed, again).frame == expected(family, again)


def test_the_first_data_may_complete_the_handshake(toa_bed: Bed, family: Family) -> None:
    """The acknowledgement of the SYN-ACK was lost."""
    toa_bed.clear("flows", family)
    toa_bed.send(bytes(from_client(family, payload=b"")))
    toa_bed.send(bytes(from_backend(family, family.far(11), family.vip, 40000, payload=b"")), "out0")
    packet = segment(family, 8)
    out = send(toa_bed, packet)
    assert out.frame == expected(family, packet)
    assert out.moved == {"forward_redirect": 1, "event_promoted": 1, "event_toa_inserted": 1}


# --- left out ------------------------------------------------------------------------------------------------


def skipped(bed: Bed, packet: Packet) -> bytes:
    out = send(bed, packet)
    assert out.moved == {"forward_redirect": 1, "event_toa_skipped": 1}
    return out.frame


def test_without_space_in_the_header_it_is_left_out(toa_bed: Bed, family: Family) -> None:
    size = 8 if family.bits == 32 else 20
    packet = segment(family, 8, options=[(253, bytes(40 - size - 2))])
    assert send(toa_bed, packet).frame == expected(family, packet)
    packet = segment(family, 8, options=[(253, bytes(40 - size - 2 + 4))])
    assert skipped(toa_bed, packet) == plain(family, packet)


@pytest.mark.parametrize("beyond", [0, 1])
def test_beyond_the_mtu_it_is_left_out(toa_bed: Bed, family: Family, beyond: int) -> None:
    toa_bed.reset()
    start(toa_bed, family, SMALL)
    size = 8 if family.bits == 32 else 20
    packet = segment(family, 8, bytes(SMALL_MTU - family.header_bytes - 20 - size + beyond))
    if beyond:
        skipped(toa_bed, packet)
    else:
        assert send(toa_bed, packet).frame == expected(family, packet, SMALL)


def test_with_ip_options_or_extension_headers_it_is_left_out(toa_bed: Bed, family: Family) -> None:
    packet = segment(family, 8)
    if family.bits == 32:
        packet[IP].options = b"\x01\x01\x01\x01"
    else:
        packet = packet[Ether].copy()
        packet[IPv6].payload = IPv6ExtHdrDestOpt() / packet[TCP]
    frame = skipped(toa_bed, packet)
    assert len(frame) == len(bytes(packet))


def test_of_a_fragment_it_is_left_out(toa_bed: Bed, family: Family) -> None:
    packet = segment(family, 8)
    if family.bits == 32:
        packet[IP].flags = "MF"
    else:
        packet[IPv6].payload = IPv6ExtHdrFragment(m=1) / packet[TCP]
    out = send(toa_bed, packet)
    assert out.moved == {"forward_redirect": 1} and len(out.frame) == len(bytes(packet))


def test_after_a_takeover_one_segment_has_it(toa_bed: Bed, family: Family) -> None:
    """The peer may have sent it before, or not."""
    for key, value in toa_bed.raw("flows", family):
        value["state"] |= np.uint8(FlowState.REPLICATED)
        toa_bed.write("flows", family, key, value)
    acknowledge(toa_bed, family, 9)
    first, second = segment(family, 800), segment(family, 900)
    assert send(toa_bed, first).frame == expected(family, first)
    for packet in (second, first):
        assert send(toa_bed, packet).frame == plain(family, packet)


def test_a_farm_without_the_setting_in_the_same_program_has_none(toa_bed: Bed, family: Family) -> None:
    toa_bed.reset()
    start(toa_bed, family, flags=FarmFlag(0))
    packet = segment(family, 8)
    assert send(toa_bed, packet).frame == plain(family, packet)
    assert not any(toa_bed.raw("flows", family)[n][1]["flags"][0] & FlowFlag.TOA for n in (0, 1))


def test_padding_behind_the_segment_stays_outside(toa_bed: Bed, family: Family) -> None:
    packet = segment(family, 8, b"x")
    frame = bytes(packet) + bytes(9)
    out = toa_bed.send(frame)
    assert out.frame == expected(family, packet) + bytes(9)
