"""Modes dsr and ipip: the client's packet reaches its backend unchanged, and the connection lives without replies."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from bpf.constants import EventType, FlowFlag, FlowState, Protocol, Scheduler
from bpf.dataplane import FlowTuple, PutBackend
from ctl.cluster.flows.replica import ReplicaMaps
from ctl.cluster.flows.source import make_codec
from ctl.dataplane.flow_hash import client_hash
from sync.flows.codec import PRESENT, REMOVED
from tests.bpf.bed import (
    GATEWAY_MAC,
    NODE_IN_MAC,
    NODE_OUT_MAC,
    REDIRECT,
    SMALL,
    SMALL_MTU,
    TX,
    UNRESOLVED,
    V4,
    V6,
    Bed,
    Family,
    backend_mac,
    near_mac,
)
from tests.bpf.beds import TUNNEL_SOURCES
from tests.bpf.one_way import KINDS, PROTOCOLS, behind, farm
from tests.bpf.packets import PAYLOAD, cut, from_client, icmp_error, network, transport
from tests.bpf.rings import kinds, ring

OUTER_BYTES = {"v4": 20, "v6": 40}
TUNNELS = pytest.mark.parametrize("kind", ["ipip", "ipip to the other family"])


@pytest.fixture
def bed(one_way_bed: Bed) -> Bed:
    return one_way_bed


def outer_header(inner: bytes, source: str, destination: str) -> bytes:
    """The header before `inner`, byte by byte: RFC 2003, RFC 2473, RFC 4213; DSCP and ECN as RFC 2983 and RFC 6040."""
    is_v6 = inner[0] >> 4 == 6
    traffic_class = (inner[0] << 4 | inner[1] >> 4) & 0xFF if is_v6 else inner[1]
    if ":" in destination:
        label = int.from_bytes(inner[1:4], "big") & 0xFFFFF if is_v6 else 0
        client = Ether(b"\0" * 12 + (b"\x86\xdd" if is_v6 else b"\x08\x00") + inner).payload.src
        first = 6 << 28 | traffic_class << 20 | (label or client_hash(client, 0) & 0xFFFFF)
        head = struct.pack("!IHBB", first, len(inner), 41 if is_v6 else 4, 64)
        return head + bytes(IPv6(src=source, dst=destination))[8:40]
    fragment = 0x4000 if is_v6 else int.from_bytes(inner[6:8], "big") & 0x4000
    words = int.from_bytes(inner[4:6], "little") + sum(struct.unpack("<2H", inner[12:16]))
    words = (words & 0xFFFF) + (words >> 16)
    words = (words & 0xFFFF) + (words >> 16)
    identification = b"\0\0" if fragment else words.to_bytes(2, "little")
    addresses = bytes(IP(src=source, dst=destination))[12:20]
    head = struct.pack("!BBH2sHBB", 0x45, traffic_class, 20 + len(inner), identification, fragment, 64, 41 if is_v6 else 4)
    return head + struct.pack("!H", checksum(head + b"\0\0" + addresses)) + addresses


def expected(packet: Packet, family: Family, kind: str, number: int = 11, near: bool = False) -> bytes:
    """The frame that the backend gets for a client's frame."""
    of = behind(family, kind)
    macs = (near_mac(number), NODE_IN_MAC) if near else (backend_mac(number), NODE_OUT_MAC)
    inner = bytes(packet)[14:]
    ethernet = Ether(dst=macs[0], src=macs[1], type=0x800 if of is V4 else 0x86DD)
    if kind == "dsr":
        return bytes(ethernet) + inner
    return bytes(ethernet) + outer_header(inner, TUNNEL_SOURCES[of.name], (of.near if near else of.far)(number)) + inner


def state(bed: Bed, family: Family, flow_map: str) -> FlowState:
    ((_, value),) = bed.raw(flow_map, family)
    return FlowState(int(value[0]["state"]))


@pytest.mark.vlans
@KINDS
@PROTOCOLS
@pytest.mark.parametrize("near", [False, True], ids=["far", "near"])
def test_the_backend_gets_the_clients_packet(bed: Bed, family: Family, protocol: Protocol, kind: str, near: bool) -> None:
    farm(bed, family, kind, protocol=protocol, near=near)
    for flags, payload in (("S", b""), ("A", PAYLOAD), ("PA", PAYLOAD * 3)):
        packet = from_client(family, protocol, flags, payload=payload)
        out = bed.send(bytes(packet))
        assert out.frame == expected(packet, family, kind, near=near)
        assert (out.verdict, out.action) == (("forward_tx", TX) if near else ("forward_redirect", REDIRECT))


@TUNNELS
@pytest.mark.parametrize("traffic_class", [0x00, 0x01, 0xB8, 0xBB, 0xFF])
def test_dscp_and_ecn_are_in_both_headers(bed: Bed, family: Family, kind: str, traffic_class: int) -> None:
    farm(bed, family, kind)
    field: dict[str, Any] = {"tos" if family is V4 else "tc": traffic_class}
    packet = from_client(family, **field)
    assert bed.send(bytes(packet)).frame == expected(packet, family, kind)


@pytest.mark.parametrize("label", [0, 1, 0xFFFFF])
@TUNNELS
def test_the_flow_label_is_the_inner_one_or_made_from_the_client(bed: Bed, kind: str, label: int) -> None:
    farm(bed, V6, kind)
    packet = from_client(V6, fl=label)
    assert bed.send(bytes(packet)).frame == expected(packet, V6, kind)


@TUNNELS
@pytest.mark.parametrize("flags", ["", "DF"])
def test_the_path_may_fragment_what_the_client_allows(bed: Bed, kind: str, flags: str) -> None:
    farm(bed, V4, kind)
    for identification in (1, 0xFFFF):
        packet = from_client(V4)
        packet[IP].flags, packet[IP].id = flags, identification
        out = bed.send(bytes(packet))
        assert out.frame == expected(packet, V4, kind)


@KINDS
def test_the_hop_limit_is_kept(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    for hops in (255, 1):
        packet = from_client(family, ttl=hops)
        assert bed.send(bytes(packet)).frame == expected(packet, family, kind)
    assert bed.send(bytes(from_client(family, ttl=0))).verdict == "drop_ttl_expired"


@KINDS
def test_a_priority_tag_is_removed(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    packet = from_client(family)
    tagged = Ether(src=packet.src, dst=packet.dst) / Dot1Q(prio=5, vlan=0) / packet.payload
    assert bed.send(bytes(tagged), tags=1).frame == expected(packet, family, kind)


@pytest.mark.vlans
@KINDS
@PROTOCOLS
def test_a_packet_of_the_inner_mtu_passes_and_a_longer_one_is_reported(
    bed: Bed, family: Family, protocol: Protocol, kind: str
) -> None:
    of = behind(family, kind)
    mtu = SMALL_MTU - (0 if kind == "dsr" else OUTER_BYTES[of.name])
    farm(bed, family, kind, SMALL, protocol=protocol)
    for flags in ("", "DF"):  # with the next hop looked up, and cached
        fits = from_client(family, protocol, payload=b"")
        fits /= Raw(bytes(mtu - len(fits) + 14))
        longer = fits / Raw(b"x")
        for packet in (fits, longer):
            if family is V4:
                packet[IP].flags = flags
        assert bed.send(bytes(fits)).frame == expected(fits, family, kind, SMALL)
        out = bed.send(bytes(longer))
        assert (out.verdict, out.action) == ("forward_too_big", TX)
        answer = Ether(out.frame)
        assert (answer.dst, answer.src, answer.payload.src, answer.payload.dst) == (
            GATEWAY_MAC,
            NODE_IN_MAC,
            family.vip,
            family.client,
        )
        told = answer[ICMP].nexthopmtu if family is V4 else answer[ICMPv6PacketTooBig].mtu
        assert told == (mtu if family is V4 else max(mtu, 1280))
        quoted = bytes(answer.payload)[family.header_bytes + 8 :]
        assert bytes(longer)[14:].startswith(quoted)


@KINDS
def test_the_kernel_gets_no_packet_for_an_unresolved_backend(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind, UNRESOLVED)
    packet = bytes(from_client(family))
    out = bed.send(packet)
    assert (out.verdict, out.frame) == ("drop_unresolved", packet)


@TUNNELS
def test_without_an_outer_source_the_client_is_refused(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    bed.plane.set_tunnel_sources("", "")
    out = bed.send(bytes(from_client(family)))
    assert out.verdict == "drop_no_tunnel_source" and "event_unreachable_sent" in out.moved
    bed.plane.set_tunnel_sources(*TUNNEL_SOURCES.values())
    packet = from_client(family)
    assert bed.send(bytes(packet)).frame == expected(packet, family, kind)


@TUNNELS
def test_another_outer_source_counts_at_once(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    for flags in "SAA":
        bed.send(bytes(from_client(family, flags=flags)))
    bed.plane.set_tunnel_sources("10.2.0.9", "fd02::9")
    frame = bed.send(bytes(from_client(family, flags="A"))).frame
    assert Ether(frame).payload.src == ("10.2.0.9" if behind(family, kind) is V4 else "fd02::9")


@KINDS
@PROTOCOLS
@pytest.mark.parametrize("known", [True, False])
def test_an_error_about_the_backends_packet_reaches_the_backend(
    bed: Bed, family: Family, protocol: Protocol, kind: str, known: bool
) -> None:
    """Quotes VIP to client, which the client or a router got from the backend directly."""
    farm(bed, family, kind, protocol=protocol)
    if known:
        bed.send(bytes(from_client(family, protocol)))
    quoted = network(family, family.vip, family.client) / transport(protocol, 80, 40000) / Raw(bytes(64))
    for source in ("", "203.0.113.9" if family is V4 else "2001:db8:d::9"):
        error = icmp_error(family, family.vip, quoted, source)
        out = bed.send(error)
        assert out.verdict == "forward_icmp_error"
        assert out.frame == expected(Ether(error), family, kind)
    assert all(entry.forward for flow_map in ("flows", "embryonic") for entry in bed.flows(flow_map, family).values())


@pytest.mark.vlans
@KINDS
@PROTOCOLS
def test_fragments_follow_their_datagram(bed: Bed, family: Family, protocol: Protocol, kind: str) -> None:
    farm(bed, family, kind, protocol=protocol)
    for frame in cut(from_client(family, protocol, "A", payload=bytes(range(256)) * 8)):
        assert bed.send(frame).frame == expected(Ether(frame), family, kind)


@KINDS
def test_later_fragments_alone_are_dropped(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    assert bed.send(cut(from_client(family, payload=bytes(2048)))[1]).verdict == "drop_fragment"


# --- the life of a connection ----------------------------------------------------------------------------------


@KINDS
def test_a_segment_after_the_syn_establishes(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    arrives = FlowTuple(family.client, family.vip, 40000, 80, Protocol.TCP)
    with ring(bed, family) as take:
        for _ in range(2):
            bed.send(bytes(from_client(family)))
        bed.send(bytes(from_client(family, flags="R", source_port=40001)))
        bed.send(bytes(from_client(family, flags="R", source_port=40001)))
        assert set(bed.flows("embryonic", family)) == {arrives, replace(arrives, source_port=40001)}
        assert not bed.flows("flows", family) and not len(take())
        assert bed.send(bytes(from_client(family, flags="A"))).moved.get("event_promoted") == 1
        assert set(bed.flows("flows", family)) == {arrives}
        assert set(bed.flows("embryonic", family)) == {replace(arrives, source_port=40001)}
        assert kinds(take()) == [EventType.ESTABLISHED]
        assert "event_promoted" not in bed.send(bytes(from_client(family, flags="A"))).moved
    entry = bed.flows("flows", family)[arrives]
    assert entry.leaves == replace(arrives, destination=behind(family, kind).far(11))
    assert entry.mode == kind.split()[0]


@KINDS
def test_a_second_datagram_of_a_later_time_establishes(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind, protocol=Protocol.UDP)
    packet = bytes(from_client(family, Protocol.UDP))
    bed.send(packet)
    assert not bed.flows("flows", family)
    bed.age("embryonic", family, 0.1)
    bed.send(packet)
    assert len(bed.flows("flows", family)) == 1 and not bed.flows("embryonic", family)


@KINDS
def test_what_a_client_never_sends_does_not_open_the_far_end(bed: Bed, family: Family, kind: str) -> None:
    """Its own FIN could not close the connection any more."""
    farm(bed, family, kind)
    for flags in ("S", "SAF"):
        bed.send(bytes(from_client(family, flags=flags)))
    assert FlowState.FIN_THERE in state(bed, family, "embryonic")


@KINDS
def test_the_clients_fin_closes_and_its_syn_opens_again(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    with ring(bed, family) as take:
        for flags in ("S", "A", "FA"):
            bed.send(bytes(from_client(family, flags=flags, payload=b"")))
        assert FlowState.FIN_HERE | FlowState.FIN_THERE in state(bed, family, "flows")
        bed.send(bytes(from_client(family, flags="A")))  # payload: the FIN was not the client's
        assert FlowState.FIN_HERE not in state(bed, family, "flows")
        bed.send(bytes(from_client(family, flags="FA", payload=b"")))
        bed.send(bytes(from_client(family, flags="S")))
        assert not bed.flows("flows", family)
        assert FlowState.FIN_HERE not in state(bed, family, "embryonic")
        established, closed, removed = EventType.ESTABLISHED, EventType.CLOSED, EventType.REMOVED
        assert kinds(take()) == [established, closed, established, closed, removed]
        bed.send(bytes(from_client(family, flags="A")))
        assert kinds(take()) == [established]


@KINDS
def test_a_reset_closes(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    for flags in ("S", "A", "R"):
        bed.send(bytes(from_client(family, flags=flags, payload=b"")))
    assert FlowState.RST in state(bed, family, "flows")


@KINDS
def test_a_full_map_leaves_connections_embryonic(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    bed.fill_flows(family)
    bed.send(bytes(from_client(family)))
    packet = from_client(family, flags="A")
    out = bed.send(bytes(packet))
    assert out.frame == expected(packet, family, kind)
    assert out.moved.get("event_flow_table_full") == 1 and "event_promoted" not in out.moved


@KINDS
def test_a_repeated_syn_stays_with_its_backend(bed: Bed, family: Family, kind: str) -> None:
    """Its answers are not seen, so that none is missed."""
    farm(bed, family, kind, 11, 12, 13, scheduler=Scheduler.ROUNDROBIN)
    packet = bytes(from_client(family))
    first = bed.send(packet).frame
    for _ in range(3):
        bed.age("embryonic", family, 3)
        assert bed.send(packet).frame == first


@KINDS
@pytest.mark.parametrize("established", [False, True])
def test_a_syn_leaves_a_backend_that_is_down(bed: Bed, family: Family, kind: str, established: bool) -> None:
    farm(bed, family, kind, 11, 12)
    for flags in "SA" if established else "S":
        before = bed.send(bytes(from_client(family, flags=flags))).frame
    number = int(before[5])  # last byte of the MAC
    of = behind(family, kind)
    bed.plane.apply([PutBackend(8 + number - 11, of.far(number), 80, 1)])
    other = 23 - number
    farm(bed, family, kind, other, first_backend=8 + other - 11)
    packet = from_client(family)
    assert bed.send(bytes(packet)).frame == expected(packet, family, kind, other)


@KINDS
def test_a_midstream_segment_is_derived_where_the_scheduler_is_a_hash(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    packet = from_client(family, flags="A")
    assert bed.send(bytes(packet)).frame == expected(packet, family, kind)
    assert bed.send(bytes(packet)).moved.get("event_promoted") == 1
    farm(bed, family, kind, scheduler=Scheduler.ROUNDROBIN)
    out = bed.send(bytes(from_client(family, flags="A", source_port=40001)))
    assert out.verdict == "drop_no_flow" and "event_reset_sent" in out.moved


@KINDS
def test_the_fence_the_guard_and_the_martians_hold(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind, protocol=Protocol.UDP)
    packet = bytes(from_client(family, Protocol.UDP))
    bed.send(packet)
    assert bed.send(bytes(from_client(family, Protocol.UDP, port=81))).verdict == "drop_vip_guard"
    assert bed.send(bytes(from_client(family, Protocol.UDP, source=family.vip))).verdict == "drop_martian"
    if behind(family, kind) is family:
        forged = from_client(family, Protocol.UDP, source=family.far(11), source_port=80)
        assert bed.send(bytes(forged)).verdict == "drop_martian"
    bed.plane.set_lease(0, 2)
    assert bed.send(packet).verdict == "drop_fenced"


@KINDS
def test_there_is_one_entry_and_both_counters_count(bed: Bed, family: Family, kind: str) -> None:
    farm(bed, family, kind)
    packets = [bytes(from_client(family, flags=flags)) for flags in "SA"]
    for packet in packets:
        bed.send(packet)
    assert len(bed.flows("flows", family)) == 1 and not bed.flows("embryonic", family)
    for row in (bed.plane.farm_traffic()[1], bed.plane.backend_traffic()[8]):
        assert (row["packets_in"], row["bytes_in"]) == (2, sum(len(packet) for packet in packets))
        assert (row["packets_out"], row["connections"]) == (0, 1)
    ((_, value),) = bed.raw("flows", family)
    wanted = FlowFlag.FORWARD | (FlowFlag.DSR if kind == "dsr" else FlowFlag.IPIP)
    assert FlowFlag(int(value[0]["flags"])) & ~FlowFlag.OTHER_FAMILY == wanted
    assert bool(value[0]["flags"] & FlowFlag.OTHER_FAMILY) == kind.endswith("family")


@KINDS
@PROTOCOLS
def test_the_peer_gets_the_connection(bed: Bed, family: Family, protocol: Protocol, kind: str) -> None:
    """Its entry, from the ring or from a snapshot, forwards there as it did here; and it is removed alone."""
    codec = make_codec(bed.plane)
    maps = ReplicaMaps(bed.plane, codec)
    farm(bed, family, kind, 11, 12, 13, protocol=protocol, scheduler=Scheduler.ROUNDROBIN)
    packet = bytes(from_client(family, protocol))
    with ring(bed, family) as take:
        bed.send(packet)
        bed.age("embryonic", family, 1)
        packet = bytes(from_client(family, protocol, "A"))
        frame = bed.send(packet).frame
        events = take()
        ring_payload = codec.encode(family.name, events["key"], events["flow"], events["type"])
    ((key, value),) = bed.raw("flows", family)
    snapshot = codec.encode(family.name, key, value, PRESENT)
    removal = codec.encode(family.name, key, value, REMOVED)
    for payload in (ring_payload, snapshot):
        maps.apply(family.name, 1, removal, 0)
        assert not bed.flows("flows", family)
        maps.apply(family.name, 1, payload, 0)
        assert len(bed.flows("flows", family)) == 1
        out = bed.send(packet)
        assert out.frame == frame and "event_promoted" not in out.moved
    assert maps.counts.unwritten_records == 0
