"""Fragments follow the flow of their datagram in both directions; what belongs to the kernel reaches it whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.constants import FRAGMENT_TICKS, MAX_FRAGMENTED, Mode, Protocol, Scheduler, VipFlag
from tests.bpf.bed import (
    GATEWAY_MAC,
    NODE_IN_MAC,
    NODE_OUT_MAC,
    SMALL,
    SMALL_MTU,
    TX,
    UNRESOLVED,
    V4,
    V6,
    Bed,
    Family,
    backend_mac,
)
from tests.bpf.connections import establish
from tests.bpf.packets import NAT_MODES, cut, from_backend, from_client, network

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
MODES = pytest.mark.parametrize("mode", NAT_MODES, ids=lambda mode: mode.name.lower())
DATA = bytes(range(256)) * 12


def joined(frames: Sequence[bytes]) -> Packet:
    """The datagram that a host puts together, as a frame like the first."""
    parts = [Ether(frame) for frame in frames]
    first = parts[0]
    if IP in first:
        assert [part[IP].frag * 8 for part in parts] == [sum(len(p[IP].payload) for p in parts[:n]) for n in range(len(parts))]
        data = b"".join(bytes(part[IP].payload) for part in parts)
        ip: Packet = IP(src=first[IP].src, dst=first[IP].dst, ttl=first[IP].ttl, proto=first[IP].proto)
    else:
        data = b"".join(bytes(part[IPv6ExtHdrFragment].payload) for part in parts)
        ip = IPv6(src=first[IPv6].src, dst=first[IPv6].dst, hlim=first[IPv6].hlim, nh=first[IPv6ExtHdrFragment].nh)
    return Ether(bytes(Ether(src=first.src, dst=first.dst) / ip / Raw(data)))


def ends(packet: Packet) -> tuple[str, str, int, int]:
    layer = packet[TCP] if TCP in packet else packet[UDP]
    ip = packet[IP] if IP in packet else packet[IPv6]
    return ip.src, ip.dst, layer.sport, layer.dport


def checksum_is_right(packet: Packet) -> bool:
    """Of the whole datagram, computed from scratch."""
    kind = TCP if TCP in packet else UDP
    written, copy = packet[kind].chksum, packet.copy()
    del copy[kind].chksum
    return bool(Ether(bytes(copy))[kind].chksum == written)


@pytest.mark.vlans
@PROTOCOLS
@MODES
def test_fragments_follow_their_flow_in_both_directions(bed: Bed, family: Family, protocol: Protocol, mode: Mode) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode)
    outs = [bed.send(frame) for frame in cut(from_client(family, protocol, payload=DATA, ttl=9))]
    assert [out.verdict for out in outs] == ["forward_redirect"] * 4
    seen = family.vip if mode is Mode.SNAT else family.client
    whole = joined([out.frame for out in outs])
    assert ends(whole) == (seen, family.far(11), 40000, 8080)
    assert bytes(whole[TCP if protocol is Protocol.TCP else UDP].payload) == DATA
    assert checksum_is_right(whole)
    for out in outs:
        part = Ether(out.frame)
        assert (part.src, part.dst) == (NODE_OUT_MAC, backend_mac(11))
        assert (part[IP].ttl if family is V4 else part[IPv6].hlim) == 8
        if family is V4:
            written = part[IP].chksum
            del part[IP].chksum
            assert Ether(bytes(part))[IP].chksum == written
    replies = [
        bed.send(frame, "out0") for frame in cut(from_backend(family, family.far(11), seen, 40000, protocol, payload=DATA))
    ]
    assert [out.verdict for out in replies] == ["forward_redirect"] * 4
    whole = joined([out.frame for out in replies])
    assert ends(whole) == (family.vip, family.client, 80, 40000)
    assert checksum_is_right(whole)


def test_of_an_established_connection_too(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    outs = [bed.send(frame) for frame in cut(from_client(family, flags="A", payload=DATA))]
    assert [out.verdict for out in outs] == ["forward_redirect"] * 4
    assert checksum_is_right(joined([out.frame for out in outs]))
    traffic = bed.plane.farm_traffic()[1]
    assert traffic["packets_in"] == 2 + 4


def test_two_datagrams_at_a_time_are_kept_apart(bed: Bed, family: Family) -> None:
    """Of two clients behind one address, to two backends."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP)
    bed.farm(family.vip, (family.far(12), 8080), port=81, protocol=Protocol.UDP, farm=2)
    one = cut(from_client(family, Protocol.UDP, payload=DATA))
    two = cut(from_client(family, Protocol.UDP, payload=DATA, port=81))
    if family is V4:
        changed = [Ether(frame) for frame in two]
        for part in changed:
            part[IP].id += 1
            del part[IP].chksum
    else:
        changed = [Ether(frame) for frame in two]
        for part in changed:
            part[IPv6ExtHdrFragment].id += 1
    two = [bytes(part) for part in changed]
    outs = [bed.send(frame).frame for pair in zip(one, two, strict=True) for frame in pair]
    destinations = [(Ether(frame)[IP] if family is V4 else Ether(frame)[IPv6]).dst for frame in outs]
    assert destinations == [family.far(11), family.far(12)] * 4


def test_a_later_fragment_before_the_first_is_dropped(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP)
    frames = cut(from_client(family, Protocol.UDP, payload=DATA))
    assert bed.send(frames[1]).moved == {"drop_fragment": 1}
    assert bed.send(frames[0]).verdict == "forward_redirect"
    assert bed.send(frames[1]).verdict == "forward_redirect"


def test_a_first_fragment_is_not_forgotten_before_its_time_and_then_it_is(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP)
    frames = cut(from_client(family, Protocol.UDP, payload=DATA))
    bed.send(frames[0])
    ((key, value),) = bed.raw("fragments", family)
    for age, verdict in ((FRAGMENT_TICKS - 2, "forward_redirect"), (FRAGMENT_TICKS + 2, "drop_fragment")):
        value["last_seen"] = bed.plane.now_tick() - age
        bed.write("fragments", family, key, value)
        assert bed.send(frames[1]).verdict == verdict


def test_the_map_of_fragments_is_bounded(bed: Bed) -> None:
    bed.farm(V4.vip, (V4.far(11), 8080), protocol=Protocol.UDP)
    frame = bytearray(cut(from_client(V4, Protocol.UDP, payload=DATA))[0])

    def numbered(number: int) -> bytes:
        packet = Ether(bytes(frame))
        packet[IP].id = number
        del packet[IP].chksum
        return bytes(packet)

    for number in range(64):
        assert bed.send(numbered(number)).verdict == "forward_redirect"
    assert len(bed.raw("fragments", V4)) == 64 < MAX_FRAGMENTED


@pytest.mark.parametrize("flags", [0, VipFlag.OPEN], ids=["guarded", "open"])
def test_fragments_of_a_ping_reach_the_kernel(bed: Bed, family: Family, flags: int) -> None:
    bed.farm(family.vip, (family.far(11), 8080), flags=flags)
    ping = ICMP(type=8, id=1, seq=1) if family is V4 else ICMPv6EchoRequest(id=1, seq=1)
    packet = Ether(src=GATEWAY_MAC, dst=NODE_IN_MAC) / network(family, family.client, family.vip) / ping / Raw(DATA)
    for frame in cut(packet):
        out = bed.send(frame)
        assert (out.moved, out.frame) == ({"pass_vip_icmp": 1}, frame)
    bed.plane.set_lease(0, 7)
    assert [bed.send(frame).verdict for frame in cut(packet)] == ["drop_fenced"] * 4


@PROTOCOLS
def test_fragments_for_an_open_vip_reach_the_kernel(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), flags=VipFlag.OPEN)
    for frame in cut(from_client(family, protocol, port=22, payload=DATA)):
        out = bed.send(frame)
        assert (out.moved, out.frame) == ({"pass_vip_open": 1}, frame)


@PROTOCOLS
def test_fragments_for_an_unserved_port_are_dropped(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    verdicts = [bed.send(frame).verdict for frame in cut(from_client(family, protocol, port=22, payload=DATA))]
    assert verdicts == ["drop_vip_guard", "drop_fragment", "drop_fragment", "drop_fragment"]


def test_fragments_for_others_pass(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    for frame in cut(from_client(family, Protocol.UDP, destination=family.near(1), payload=DATA)):
        out = bed.send(frame)
        assert (out.moved, out.frame) == ({"pass_not_ours": 1}, frame)


def test_fragments_stop_at_the_fence(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP)
    frames = cut(from_client(family, Protocol.UDP, payload=DATA))
    bed.send(frames[0])
    bed.plane.set_lease(0, 7)
    assert [bed.send(frame).verdict for frame in frames] == ["drop_fenced"] * 4


def test_an_unresolved_next_hop_is_left_to_the_kernel(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(UNRESOLVED), 8080), protocol=Protocol.UDP)
    outs = [bed.send(frame) for frame in cut(from_client(family, Protocol.UDP, payload=DATA))]
    assert [out.verdict for out in outs] == ["pass_unresolved"] * 4
    whole = joined([out.frame for out in outs])
    assert ends(whole) == (family.vip, family.far(UNRESOLVED), 40000, 8080)
    assert checksum_is_right(whole)


def test_only_the_first_fragment_that_is_too_big_is_reported(bed: Bed, family: Family) -> None:
    """RFC 1812 4.3.2.7: no error about another fragment."""
    bed.farm(family.vip, (family.far(SMALL), 8080), protocol=Protocol.UDP)
    packet = from_client(family, Protocol.UDP, payload=DATA)
    if family is V4:
        packet[IP].flags = "DF"
    frames = cut(packet, size=1400)
    if family is V4:
        frames = [with_df(frame) for frame in frames]
    assert len(frames[0]) > 14 + SMALL_MTU
    first, later = bed.send(frames[0]), bed.send(frames[1])
    assert (first.verdict, first.action) == ("forward_too_big", TX)
    assert later.moved == {"drop_too_big": 1}


def with_df(frame: bytes) -> bytes:
    packet = Ether(frame)
    packet[IP].flags = int(packet[IP].flags) | 2
    del packet[IP].chksum
    return bytes(packet)


def test_a_segment_in_fragments_is_reset_only_if_it_acknowledges(bed: Bed, family: Family) -> None:
    """Otherwise the length of the segment would be needed (RFC 9293 3.10.7.1)."""
    bed.farm(family.vip, (family.far(11), 8080), scheduler=Scheduler.ROUNDROBIN)
    assert bed.send(cut(from_client(family, flags="A", payload=DATA))[0]).action == TX
    assert bed.send(cut(from_client(family, flags="P", payload=DATA))[0]).moved == {"drop_no_flow": 1}


def test_ports_must_be_in_the_first_fragment(bed: Bed, family: Family) -> None:
    """RFC 1858: a tiny first fragment."""
    bed.farm(family.vip, (family.far(11), 8080))
    frames = cut(from_client(family, payload=DATA), size=8)
    assert bed.send(frames[0]).verdict == "drop_malformed"
    assert bed.send(frames[1]).verdict == "drop_fragment"


def test_an_atomic_fragment_is_a_whole_packet(bed: Bed) -> None:
    """RFC 6946; also behind and in front of other extension headers."""
    bed.farm(V6.vip, (V6.far(11), 8080), protocol=Protocol.UDP)
    plain = from_client(V6, Protocol.UDP)
    for headers in (
        IPv6ExtHdrFragment(id=5),
        IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=5),
        IPv6ExtHdrFragment(id=5) / IPv6ExtHdrDestOpt(),
    ):
        packet = Ether(src=plain.src, dst=plain.dst) / IPv6(src=V6.client, dst=V6.vip) / headers / plain[UDP].copy()
        out = bed.send(bytes(packet))
        assert out.verdict == "forward_redirect"
        whole = Ether(out.frame)
        assert ends(whole) == (V6.vip, V6.far(11), 40000, 8080)
        assert checksum_is_right(whole)
        assert IPv6ExtHdrFragment in whole
    assert len(bed.raw("fragments", V6)) == 0


def test_extension_headers_in_the_first_fragment(bed: Bed) -> None:
    """Behind the fragment header they belong to the fragmented part, and later fragments name them."""
    bed.farm(V6.vip, (V6.far(11), 8080), protocol=Protocol.UDP)
    inner = bytes(IPv6ExtHdrDestOpt(nh=17) / Raw(bytes(from_client(V6, Protocol.UDP, payload=DATA)[UDP])))

    def part(start: int, end: int) -> bytes:
        header = IPv6ExtHdrFragment(nh=60, offset=start // 8, m=int(end < len(inner)), id=9)
        return bytes(
            Ether(src=GATEWAY_MAC, dst=NODE_IN_MAC)
            / IPv6(src=V6.client, dst=V6.vip, nh=44)
            / Raw(bytes(header) + inner[start:end])
        )

    assert bed.send(part(0, 1000)).verdict == "forward_redirect"
    out = bed.send(part(1000, 2000))
    assert (out.verdict, Ether(out.frame)[IPv6].dst) == ("forward_redirect", V6.far(11))
