"""What the sender of a dropped packet gets: a TCP reset or an ICMP error, compared byte by byte; and who gets nothing."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from scapy.layers.inet import ICMP, TCP, IPOption_RR
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6TimeExceeded, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.clock import CLOCK_MONOTONIC_COARSE
from bpf.constants import LEASE_HANDED_OVER_NS, MAX_ERRORS_PER_TICK, TICK_SHIFT, FarmFlag, Protocol, Scheduler, VipFlag
from bpf.dataplane import PutFarm
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, TX, UNRESOLVED, V4, V6, Bed, Family, Outcome
from tests.bpf.packets import PAYLOAD, from_client, network
from tests.wait import wait_until

OWN_ADDRESS = {"v4": "10.1.0.1", "v6": "fd01::1"}
"""The node's address towards the clients; before Linux 6.7 the program does not know it."""


def reset_to_client(family: Family, flags: str, seq: int, ack: int) -> bytes:
    fields: dict[str, Any] = {"flags": "DF", "id": 0} if family is V4 else {}
    segment = TCP(sport=80, dport=40000, flags=flags, seq=seq, ack=ack, window=0)
    return bytes(Ether(src=NODE_IN_MAC, dst=GATEWAY_MAC) / network(family, family.vip, family.client, **fields) / segment)


def error_to_client(family: Family, sent: Packet, kind: str, source: str = "", quoted: int = 0) -> bytes:
    """The ICMP error about `sent`. quoted: bytes, by default the header and 8 bytes."""
    errors: dict[str, tuple[Packet, Packet]] = {
        "port": (ICMP(type=3, code=3), ICMPv6DestUnreach(code=4)),
        "route": (ICMP(type=3, code=1), ICMPv6DestUnreach(code=0)),
        "time": (ICMP(type=11, code=0), ICMPv6TimeExceeded(code=0)),
    }
    error = errors[kind][family is V6]
    inner = bytes(sent.payload)[: quoted or family.header_bytes + 8]
    fields: dict[str, Any] = {"id": 0} if family is V4 else {}
    outer = network(family, source or family.vip, family.client, **fields)
    return bytes(Ether(src=NODE_IN_MAC, dst=GATEWAY_MAC) / outer / error / Raw(inner))


def answered(out: Outcome, verdict: str, event: str, frame: bytes) -> None:
    assert (out.verdict, out.action) == (verdict, TX)
    assert out.moved == {verdict: 1, event: 1}
    assert out.frame == frame


def silent(out: Outcome, verdict: str, frame: bytes) -> None:
    assert (out.moved, out.frame) == ({verdict: 1}, frame)


# --- TCP resets ----------------------------------------------------------------------------------------------


@pytest.mark.vlans
@pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA"])
def test_a_segment_without_a_flow_is_reset_at_the_number_it_acknowledges(bed: Bed, family: Family, flags: str) -> None:
    """RFC 9293 3.10.7.1: <SEQ=SEG.ACK><CTL=RST>. The test frames have SEG.SEQ 7 and SEG.ACK 9."""
    bed.farm(family.vip, (family.far(11), 8080), scheduler=Scheduler.ROUNDROBIN)
    out = bed.send(bytes(from_client(family, flags=flags)))
    answered(out, "drop_no_flow", "event_reset_sent", reset_to_client(family, "R", 9, 0))


@pytest.mark.parametrize(("flags", "length"), [("P", 0), ("F", 1), ("", 0)])
def test_a_segment_that_acknowledges_nothing_is_acknowledged(bed: Bed, family: Family, flags: str, length: int) -> None:
    """RFC 9293 3.10.7.1: <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>."""
    bed.farm(family.vip, (family.far(11), 8080), scheduler=Scheduler.ROUNDROBIN)
    out = bed.send(bytes(from_client(family, flags=flags)))
    answered(out, "drop_no_flow", "event_reset_sent", reset_to_client(family, "RA", 0, 7 + len(PAYLOAD) + length))


@pytest.mark.vlans
def test_a_new_connection_without_any_backend_is_refused(bed: Bed, family: Family) -> None:
    bed.farm(family.vip)
    out = bed.send(bytes(from_client(family, payload=b"")))
    answered(out, "drop_no_backend", "event_reset_sent", reset_to_client(family, "RA", 0, 8))
    assert bed.plane.farm_traffic()[1]["drops"] == 1


def test_padding_and_options_do_not_count_as_data(bed: Bed) -> None:
    bed.farm(V4.vip)
    packet = from_client(V4, payload=b"", options=[IPOption_RR(length=11, routers=["0.0.0.0"] * 2)])
    packet[TCP].options = [("MSS", 1460), ("SAckOK", b""), ("NOP", None), ("WScale", 7)]
    out = bed.send(bytes(packet) + bytes(17))
    answered(out, "drop_no_backend", "event_reset_sent", reset_to_client(V4, "RA", 0, 8))


def test_extension_headers_do_not_count_as_data(bed: Bed) -> None:
    bed.farm(V6.vip)
    packet = from_client(V6, payload=PAYLOAD)
    ip = IPv6(src=V6.client, dst=V6.vip) / IPv6ExtHdrDestOpt() / packet[TCP]
    out = bed.send(bytes(Ether(src=GATEWAY_MAC, dst=NODE_IN_MAC) / ip))
    answered(out, "drop_no_backend", "event_reset_sent", reset_to_client(V6, "RA", 0, 8 + len(PAYLOAD)))


@pytest.mark.parametrize("flags", ["R", "RA", "RS"])
def test_a_reset_is_never_answered(bed: Bed, family: Family, flags: str) -> None:
    bed.farm(family.vip, scheduler=Scheduler.ROUNDROBIN)
    frame = bytes(from_client(family, flags=flags))
    silent(bed.send(frame), "drop_no_backend", frame)


def test_a_connection_of_a_deleted_farm_is_reset_and_a_port_scan_gets_nothing(bed: Bed, family: Family) -> None:
    """The guard keeps silent about new connections: the port may belong to a private listener of the node."""
    bed.farm(family.vip, (family.far(11), 8080), port=81)
    answered(
        bed.send(bytes(from_client(family, flags="A"))),
        "drop_vip_guard",
        "event_reset_sent",
        reset_to_client(family, "R", 9, 0),
    )
    syn = bytes(from_client(family))
    silent(bed.send(syn), "drop_vip_guard", syn)
    datagram = bytes(from_client(family, Protocol.UDP))
    silent(bed.send(datagram), "drop_vip_guard", datagram)


# --- refused datagrams, and what a farm says when it is told to be silent ------------------------------------


def test_a_datagram_without_any_backend_gets_port_unreachable(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, protocol=Protocol.UDP)
    sent = from_client(family, Protocol.UDP)
    out = bed.send(bytes(sent))
    answered(out, "drop_no_backend", "event_unreachable_sent", error_to_client(family, sent, "port"))


def test_an_error_quotes_more_of_a_longer_packet(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, protocol=Protocol.UDP)
    sent = from_client(family, Protocol.UDP, payload=bytes(range(256)) * 4)
    expected = error_to_client(family, sent, "port", quoted=68 if family is V4 else 504)
    answered(bed.send(bytes(sent)), "drop_no_backend", "event_unreachable_sent", expected)


def test_an_empty_datagram_is_answered_too(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, protocol=Protocol.UDP)
    sent = from_client(family, Protocol.UDP, payload=b"")
    expected = error_to_client(family, sent, "port")
    answered(bed.send(bytes(sent)), "drop_no_backend", "event_unreachable_sent", expected)


@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
def test_a_silent_farm_drops_new_connections(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, protocol=protocol)
    bed.plane.apply([PutFarm(1, FarmFlag.SILENT)])
    frame = bytes(from_client(family, protocol))
    silent(bed.send(frame), "drop_no_backend", frame)
    if protocol is Protocol.TCP:
        assert bed.send(bytes(from_client(family, flags="A"))).action == TX, "it had a connection, which is over"


# --- errors of a router --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
def test_an_expired_hop_limit_is_reported(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    sent = from_client(family, protocol, ttl=1)
    out = bed.send(bytes(sent))
    answered(
        out, "drop_ttl_expired", "event_time_exceeded_sent", error_to_client(family, sent, "time", OWN_ADDRESS[family.name])
    )


@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
def test_a_missing_route_is_reported(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.unroutable, 8080), protocol=protocol)
    sent = from_client(family, protocol)
    expected = error_to_client(family, sent, "route", OWN_ADDRESS[family.name])
    answered(bed.send(bytes(sent)), "drop_no_route", "event_unreachable_sent", expected)


def test_the_node_reports_with_its_own_address_to_a_sender_whose_mac_it_does_not_know(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    out = Ether(bed.send(bytes(from_client(family, source=family.near(UNRESOLVED), ttl=1))).frame)
    assert (out.payload.src, out.payload.dst) == (OWN_ADDRESS[family.name], family.near(UNRESOLVED))


# --- nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0, LEASE_HANDED_OVER_NS], ids=["expired", "handed over"])
def test_a_fenced_node_sends_nothing(bed: Bed, family: Family, deadline: int) -> None:
    bed.farm(family.vip)
    bed.plane.set_lease(deadline, 7)
    for frame in (bytes(from_client(family)), bytes(from_client(family, flags="A")), bytes(from_client(family, ttl=1))):
        out = bed.send(frame)
        assert out.verdict == ("pass_handed_over" if deadline else "drop_fenced")
        assert len(out.moved) == 1 and out.frame == frame


def test_a_broadcast_frame_is_not_answered(bed: Bed, family: Family) -> None:
    bed.farm(family.vip)
    packet = from_client(family)
    packet.dst = "ff:ff:ff:ff:ff:ff" if family is V4 else "33:33:00:00:00:01"
    silent(bed.send(bytes(packet)), "drop_no_backend", bytes(packet))


def test_an_open_vip_leaves_answers_to_the_kernel(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, port=81, flags=VipFlag.OPEN)
    assert bed.send(bytes(from_client(family, flags="A"))).verdict == "pass_vip_open"


def begin_a_tick() -> None:
    """Wait until the answers of other tests no longer count against the limit."""
    tick = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) >> TICK_SHIFT
    wait_until(lambda: time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) >> TICK_SHIFT > tick, "a tick to begin", 5, every_s=0)


def test_resets_and_errors_have_a_limit_each(bed: Bed, family: Family) -> None:
    """A flood of one does not silence the other. Pinned, because each CPU has limits of its own."""
    bed.farm(family.vip)
    bed.farm(family.vip, protocol=Protocol.UDP, farm=2)
    segment, datagram = bytes(from_client(family)), bytes(from_client(family, Protocol.UDP))

    def flood() -> tuple[int, int]:
        """Answers to more segments than allowed, and to one datagram after them, within one tick of the coarse clock."""
        begin_a_tick()
        runs = [bed.plane.test_run(segment, bed.in0).action for _ in range(MAX_ERRORS_PER_TICK + 10)]
        return runs.count(TX), bed.plane.test_run(datagram, bed.in0).action

    here = os.sched_getaffinity(0)
    bed.inside(lambda: os.sched_setaffinity(0, {min(here)}))
    try:
        results: list[tuple[int, int]] = []

        def limited() -> bool:
            results.append(bed.inside(flood))
            return results[-1] == (MAX_ERRORS_PER_TICK, TX)

        wait_until(limited, "a flood within one tick", 10, every_s=0)
        assert all(resets >= MAX_ERRORS_PER_TICK for resets, _ in results)
    finally:
        bed.inside(lambda: os.sched_setaffinity(0, here))


def test_segments_that_deserve_no_reset_do_not_use_up_the_limit(bed: Bed, family: Family) -> None:
    bed.farm(family.vip)
    here = os.sched_getaffinity(0)
    bed.inside(lambda: os.sched_setaffinity(0, {min(here)}))
    try:
        reset, segment = bytes(from_client(family, flags="R")), bytes(from_client(family, flags="A"))
        begin_a_tick()
        for _ in range(MAX_ERRORS_PER_TICK + 10):
            bed.inside(lambda: bed.plane.test_run(reset, bed.in0))
        assert bed.inside(lambda: bed.plane.test_run(segment, bed.in0)).action == TX
    finally:
        bed.inside(lambda: os.sched_setaffinity(0, here))
