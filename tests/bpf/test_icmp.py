"""ICMP errors: those about flows, translated byte for byte, and the "too big" that xlb originates."""

from __future__ import annotations

import os

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from bpf.constants import MAX_ERRORS_PER_TICK, Mode, Protocol
from tests.bpf.bed import (
    GATEWAY_MAC,
    NODE_IN_MAC,
    NODE_OUT_MAC,
    SMALL,
    SMALL_MTU,
    TX,
    V4,
    V6,
    Bed,
    Family,
    Outcome,
    backend_mac,
)
from tests.bpf.connections import establish
from tests.bpf.packets import NAT_MODES, from_backend, from_client, network, rewritten, transport
from tests.wait import wait_until

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
MODES = pytest.mark.parametrize("mode", NAT_MODES, ids=lambda mode: mode.name.lower())
PAYLOAD = bytes(range(200))

ERRORS: dict[str, list[Packet]] = {
    "v4": [
        ICMP(type=3, code=3),
        ICMP(type=3, code=4, nexthopmtu=1111),
        ICMP(type=11, code=0),
        ICMP(type=12, code=0, ptr=9),
    ],
    "v6": [ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1300), ICMPv6TimeExceeded(), ICMPv6ParamProblem(ptr=6)],
}
QUOTES = {"8 bytes": 8, "20 bytes": 20, "everything": 10_000}


def router(family: Family) -> str:
    return "203.0.113.1" if family is V4 else "2001:db8:77::1"


def checks_out(frame: bytes, family: Family) -> bool:
    """Do the IPv4 header's and the ICMP checksum equal what they are computed to from scratch?"""
    ip, icmp = frame[14 : 14 + family.header_bytes], frame[14 + family.header_bytes :]
    if family is V4:
        return checksum(ip) == 0 and checksum(icmp) == 0
    pseudo_header = ip[8:40] + len(icmp).to_bytes(4, "big") + bytes([0, 0, 0, 58])
    return checksum(pseudo_header + icmp) == 0


def quoted_ends(frame: bytes, family: Family) -> tuple[tuple[str, str, int, int], tuple[str, str]]:
    """What the error quotes, source first, and its own addresses."""
    packet = Ether(frame)
    outer = packet[IP] if family is V4 else packet[IPv6]
    raw = bytes(outer)[family.header_bytes + 8 :]
    inner = IP(raw) if family is V4 else IPv6(raw)
    at = family.header_bytes
    ports = int.from_bytes(raw[at : at + 2], "big"), int.from_bytes(raw[at + 2 : at + 4], "big")
    return (inner.src, inner.dst, *ports), (outer.src, outer.dst)


def error_about(
    family: Family, quoted: Packet, error: Packet, length: int, macs: tuple[str, str], ttl: int = 64, source: str = ""
) -> bytes:
    """From a router, or from `source`, to the quoted packet's sender, quoting `length` bytes behind the quoted IP header."""
    inner = bytes(quoted)[: family.header_bytes + length]
    layer = quoted[IP] if family is V4 else quoted[IPv6]
    return bytes(
        Ether(src=macs[0], dst=macs[1]) / network(family, source or router(family), layer.src, ttl) / error / Raw(inner)
    )


def inner_header_is_right(frame: bytes, family: Family, original: Packet) -> None:
    """The quoted packet is, but for the hop it lost, what its sender had sent: checksums too, as far as they are quoted."""
    packet = Ether(frame)
    outer = packet[IP] if family is V4 else packet[IPv6]
    raw = bytes(outer)[family.header_bytes + 8 :]
    sent = bytes(original)[: len(raw)]
    assert raw == sent


@PROTOCOLS
@MODES
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("length", QUOTES.values(), ids=QUOTES)
def test_about_a_clients_packet(bed: Bed, family: Family, protocol: Protocol, mode: Mode, number: int, length: int) -> None:
    """A router between node and backend complains; the client must understand it as about what it had sent."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode, snat=family.snat)
    sent = from_client(family, protocol, payload=PAYLOAD)
    forwarded = Ether(bed.send(bytes(sent)).frame)
    error = error_about(family, forwarded.payload, ERRORS[family.name][number], length, (backend_mac(12), NODE_OUT_MAC))
    out = bed.send(error, "out0")
    assert out.verdict == "forward_icmp_error"
    quoted, outer = quoted_ends(out.frame, family)
    assert quoted == (family.client, family.vip, 40000, 80)
    assert outer == (router(family), family.client), "traceroute shows the router"
    assert checks_out(out.frame, family)
    if family is V4:
        sent[IP].ttl -= 1
        del sent[IP].chksum
    else:
        sent[IPv6].hlim -= 1
    inner_header_is_right(out.frame, family, sent.payload)
    assert (Ether(out.frame).dst, Ether(out.frame).src) == (GATEWAY_MAC, NODE_IN_MAC)
    assert len(out.frame) == len(error)


@pytest.mark.vlans
@PROTOCOLS
@MODES
@pytest.mark.parametrize("length", QUOTES.values(), ids=QUOTES)
def test_about_a_backends_packet(bed: Bed, family: Family, protocol: Protocol, mode: Mode, length: int) -> None:
    """A router between node and client complains to the VIP; the backend must learn, for its path MTU."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode, snat=family.snat)
    bed.send(bytes(from_client(family, protocol)))
    seen = (family.snat if mode is Mode.SNAT else family.client, 40000)
    reply = from_backend(family, family.far(11), *seen, protocol, payload=PAYLOAD)
    forwarded = Ether(bed.send(bytes(reply), "out0").frame)
    out = bed.send(error_about(family, forwarded.payload, ERRORS[family.name][1], length, (GATEWAY_MAC, NODE_IN_MAC)))
    assert out.verdict == "forward_icmp_error"
    quoted, outer = quoted_ends(out.frame, family)
    assert quoted == (family.far(11), seen[0], 8080, 40000)
    assert outer == (router(family), family.far(11))
    assert checks_out(out.frame, family)
    assert (Ether(out.frame).dst, Ether(out.frame).src) == (backend_mac(11), NODE_OUT_MAC)


@MODES
def test_an_error_of_an_endpoint_comes_from_the_address_that_the_other_end_knows(bed: Bed, family: Family, mode: Mode) -> None:
    """A backend has no such port, or reassembly failed at the client: its own address is not the one it is known by."""
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP, mode=mode, snat=family.snat)
    forwarded = Ether(bed.send(bytes(from_client(family, Protocol.UDP))).frame)
    out = bed.send(
        error_about(
            family, forwarded.payload, ERRORS[family.name][0], 8, (backend_mac(11), NODE_OUT_MAC), source=family.far(11)
        ),
        "out0",
    )
    assert out.verdict == "forward_icmp_error"
    assert quoted_ends(out.frame, family)[1] == (family.vip, family.client)
    assert checks_out(out.frame, family)
    seen = (family.snat if mode is Mode.SNAT else family.client, 40000)
    reply = from_backend(family, family.far(11), *seen, Protocol.UDP, payload=PAYLOAD)
    forwarded = Ether(bed.send(bytes(reply), "out0").frame)
    out = bed.send(
        error_about(family, forwarded.payload, ERRORS[family.name][2], 8, (GATEWAY_MAC, NODE_IN_MAC), source=family.client)
    )
    assert out.verdict == "forward_icmp_error"
    assert quoted_ends(out.frame, family)[1] == (seen[0], family.far(11))
    assert checks_out(out.frame, family)


@PROTOCOLS
@MODES
def test_too_big_about_an_unknown_connection_goes_where_the_hash_leads(
    bed: Bed, family: Family, protocol: Protocol, mode: Mode
) -> None:
    """Path MTU discovery must not fail because this node has lost the flow, or never had it."""
    backends = tuple((family.far(number), 8080) for number in range(11, 19))
    bed.farm(family.vip, *backends, protocol=protocol, mode=mode, snat=family.snat)
    bed.send(bytes(from_client(family, protocol)))
    ((_, entry),) = ((key, entry) for key, entry in bed.flows("embryonic", family).items() if entry.forward)
    bed.clear("embryonic", family)
    reply = network(family, family.vip, family.client) / transport(protocol, 80, 40000) / Raw(PAYLOAD)
    error = error_about(family, reply, ERRORS[family.name][1], 20, (GATEWAY_MAC, NODE_IN_MAC))
    out = bed.send(error)
    assert out.verdict == "forward_icmp_error"
    quoted, outer = quoted_ends(out.frame, family)
    there = entry.leaves
    assert quoted == (there.destination, there.source, there.destination_port, there.source_port)
    assert outer == (router(family), there.destination)
    assert checks_out(out.frame, family)
    assert bed.flows("embryonic", family) == {}, "an ICMP error opens no connection"
    other = error_about(family, reply, ERRORS[family.name][0], 20, (GATEWAY_MAC, NODE_IN_MAC))
    assert bed.send(other).verdict == "pass_vip_icmp", "only too big"


@pytest.mark.parametrize("mode", [Mode.DSR, Mode.IPIP], ids=["dsr", "ipip"])
def test_too_big_is_not_translated_for_a_mode_that_the_program_does_not_have(bed: Bed, family: Family, mode: Mode) -> None:
    """It would reach the backend with other addresses than the connection has there."""
    bed.farm(family.vip, (family.far(11), 8080), mode=mode)
    reply = network(family, family.vip, family.client) / transport(Protocol.TCP, 80, 40000) / Raw(PAYLOAD)
    error = error_about(family, reply, ERRORS[family.name][1], 20, (GATEWAY_MAC, NODE_IN_MAC))
    assert bed.send(error).verdict == "pass_vip_icmp"


@pytest.mark.parametrize("extensions", ["hop-by-hop", "destination options", "first fragment", "all"])
def test_a_quote_with_extension_headers_is_understood(bed: Bed, extensions: str) -> None:
    bed.farm(V6.vip, (V6.far(11), 8080), snat=V6.snat)
    sent = from_client(V6, payload=PAYLOAD)
    forwarded = Ether(bed.send(bytes(sent)).frame)
    chains: dict[str, list[Packet]] = {
        "hop-by-hop": [IPv6ExtHdrHopByHop()],
        "destination options": [IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt()],
        "first fragment": [IPv6ExtHdrFragment(m=1, id=7)],
        "all": [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1, id=7), IPv6ExtHdrDestOpt()],
    }

    def extended(packet: Packet) -> Packet:
        ip: Packet = IPv6(src=packet[IPv6].src, dst=packet[IPv6].dst, hlim=packet[IPv6].hlim)
        for each in [*chains[extensions], packet[TCP]]:
            ip = ip / each.copy()
        return ip

    inner = extended(forwarded)
    macs = (backend_mac(12), NODE_OUT_MAC)
    outer = Ether(src=macs[0], dst=macs[1]) / network(V6, router(V6), V6.snat)
    out = bed.send(bytes(outer / ICMPv6TimeExceeded() / Raw(bytes(inner))), "out0")
    assert out.verdict == "forward_icmp_error"
    assert checks_out(out.frame, V6)
    sent[IPv6].hlim -= 1
    assert out.frame[14 + 48 :] == bytes(extended(Ether(bytes(sent))))


def test_a_quote_of_a_later_fragment_belongs_to_no_flow(bed: Bed) -> None:
    bed.farm(V6.vip, (V6.far(11), 8080))
    forwarded = Ether(bed.send(bytes(from_client(V6))).frame)
    inner = IPv6(src=V6.vip, dst=V6.far(11)) / IPv6ExtHdrFragment(offset=100, id=7, nh=6) / Raw(bytes(forwarded[TCP]))
    outer = Ether(src=backend_mac(12), dst=NODE_OUT_MAC) / network(V6, router(V6), V6.vip)
    assert bed.send(bytes(outer / ICMPv6TimeExceeded() / inner), "out0").verdict == "pass_vip_icmp"


def test_about_an_established_connection(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    forwarded = Ether(bed.send(bytes(from_client(family, flags="A"))).frame)
    error = error_about(family, forwarded.payload, ERRORS[family.name][0], 8, (backend_mac(12), NODE_OUT_MAC))
    assert bed.send(error, "out0").verdict == "forward_icmp_error"


def test_udp_without_checksum_is_quoted_without(bed: Bed) -> None:
    bed.farm(V4.vip, (V4.far(11), 8080), protocol=Protocol.UDP)
    sent = from_client(V4, Protocol.UDP)
    sent[UDP].chksum = 0
    forwarded = Ether(bed.send(bytes(sent)).frame)
    error = error_about(V4, forwarded.payload, ERRORS["v4"][0], 8, (backend_mac(12), NODE_OUT_MAC))
    out = bed.send(error, "out0").frame
    assert out[14 + 28 + 26 : 14 + 28 + 28] == bytes(2)
    assert checks_out(out, V4)


def test_bytes_after_the_packet_are_no_checksum(bed: Bed, family: Family) -> None:
    """The frame continues where the checksum of the quoted TCP header would be: trailer bytes, which must not change."""
    bed.farm(family.vip, (family.far(11), 8080))
    forwarded = Ether(bed.send(bytes(from_client(family))).frame)
    error = error_about(family, forwarded.payload, ERRORS[family.name][0], 8, (backend_mac(12), NODE_OUT_MAC))
    trailer = bytes(range(1, 21))
    out = bed.send(error + trailer, "out0")
    assert out.verdict == "forward_icmp_error"
    assert out.frame[len(error) :] == trailer
    assert checks_out(out.frame[: len(error)], family)


def test_options_in_the_quoted_header(bed: Bed) -> None:
    bed.farm(V4.vip, (V4.far(11), 8080))
    sent = from_client(V4, options=[IPOption_RR(length=11, routers=["0.0.0.0"] * 2)])
    forwarded = Ether(bed.send(bytes(sent)).frame)
    inner = bytes(forwarded.payload)[: 32 + 8]
    error = Ether(src=backend_mac(12), dst=NODE_OUT_MAC) / IP(src=router(V4), dst=V4.vip) / ICMP(type=3, code=1) / Raw(inner)
    out = bed.send(bytes(error), "out0")
    assert out.verdict == "forward_icmp_error"
    assert checks_out(out.frame, V4)
    assert IP(out.frame[14 + 28 :]).src == V4.client


def not_translated(family: Family, bed: Bed) -> dict[str, bytes]:
    """Errors that are about no flow, each for a reason of its own."""
    macs = (backend_mac(12), NODE_OUT_MAC)
    error = ERRORS[family.name][0]
    flow = network(family, family.vip, family.far(11)) / transport(6, 40000, 8080) / Raw(PAYLOAD)
    whole = error_about(family, flow, error, 8, macs)
    other_port = network(family, family.vip, family.far(11)) / transport(6, 40001, 8080)
    echo = ICMP() if family is V4 else ICMPv6EchoRequest()
    cases = {
        "another port": error_about(family, other_port, error, 8, macs),
        "quoted ICMP": error_about(family, network(family, family.vip, family.far(11)) / echo, error, 8, macs),
        "four bytes of the quoted header": whole[: 14 + family.header_bytes + 8 + 4],
        "quote ends before the ports": error_about(family, flow, error, 7, macs),
    }
    readdressed = Ether(whole)
    layer = readdressed[IP] if family is V4 else readdressed[IPv6]
    layer.dst = family.snat
    if family is V4:
        del layer.chksum
    cases["not sent to the quoted sender"] = bytes(readdressed)
    return cases


@pytest.mark.parametrize(
    "name",
    [
        "another port",
        "quoted ICMP",
        "four bytes of the quoted header",
        "quote ends before the ports",
        "not sent to the quoted sender",
    ],
)
def test_errors_about_no_flow_go_to_the_kernel(bed: Bed, family: Family, name: str) -> None:
    bed.farm(family.snat, (family.far(11), 8080), port=99, farm=2)
    bed.farm(family.vip, (family.far(11), 8080))
    bed.send(bytes(from_client(family)))
    frame = not_translated(family, bed)[name]
    outcome = bed.send(frame, "out0")
    # the frame that is cut short contradicts its own length
    assert outcome.verdict == ("drop_malformed" if name.startswith("four") else "pass_vip_icmp")
    assert outcome.frame == frame


def test_an_error_has_hops_as_well(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    forwarded = Ether(bed.send(bytes(from_client(family))).frame)
    macs = (backend_mac(12), NODE_OUT_MAC)
    error = error_about(family, forwarded.payload, ERRORS[family.name][0], 8, macs, ttl=1)
    assert bed.send(error, "out0").verdict == "drop_ttl_expired"


# --- originated errors --------------------------------------------------------------------------------------


def too_long(family: Family, protocol: Protocol, total: int) -> Packet:
    header = 20 if protocol is Protocol.TCP else 8
    packet = from_client(family, protocol, payload=bytes(range(256)) * 6)
    packet[TCP if protocol is Protocol.TCP else UDP].payload = Raw(
        (bytes(range(256)) * 6)[: total - family.header_bytes - header]
    )
    if family is V4:
        packet[IP].flags = "DF"
    return packet


def assert_reports_to_the_sender(out: Outcome, family: Family, packet: Packet) -> None:
    assert (out.verdict, out.action) == ("forward_too_big", TX)
    assert checks_out(out.frame, family)
    answer = Ether(out.frame)
    assert (answer.src, answer.dst) == (packet.dst, packet.src)
    _, outer = quoted_ends(out.frame, family)
    assert outer == (family.vip, family.client)
    raw = bytes(answer[IP if family is V4 else IPv6])[family.header_bytes + 8 :]
    assert raw == bytes(packet.payload)[: len(raw)]
    if family is V4:
        assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, SMALL_MTU)
        assert answer[IP].len == len(out.frame) - 14
    else:
        assert answer[ICMPv6PacketTooBig].mtu == SMALL_MTU
        assert answer[IPv6].plen == len(out.frame) - 54


@pytest.mark.vlans
@PROTOCOLS
def test_too_long_at_first_and_when_the_next_hop_is_cached(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(SMALL), 8080), protocol=protocol)
    long, fits = too_long(family, protocol, SMALL_MTU + 1), too_long(family, protocol, SMALL_MTU)
    assert_reports_to_the_sender(bed.send(bytes(long)), family, long)
    assert bed.send(bytes(fits)).verdict == "forward_redirect"
    assert_reports_to_the_sender(bed.send(bytes(long)), family, long)
    assert bed.send(bytes(fits)).verdict == "forward_redirect"


@pytest.mark.vlans
def test_a_packet_that_may_be_fragmented_goes_to_the_kernel_rewritten(bed: Bed) -> None:
    """With its hop: the kernel takes that when it forwards."""
    bed.farm(V4.vip, (V4.far(SMALL), 8080), protocol=Protocol.UDP)
    packet = too_long(V4, Protocol.UDP, SMALL_MTU + 1)
    packet[IP].flags = ""
    out = bed.send(bytes(packet))
    assert out.verdict == "pass_too_big"
    assert out.frame == rewritten(packet, (V4.vip, 40000), (V4.far(SMALL), 8080), None, hops=0)


def test_a_flood_of_packets_that_are_too_long_is_answered_up_to_a_limit(bed: Bed, family: Family) -> None:
    """A tick's share is answered, then nothing until the next tick. Pinned, because each CPU has a share of its own."""
    bed.farm(family.vip, (family.far(SMALL), 8080), protocol=Protocol.UDP)
    frame = bytes(too_long(family, Protocol.UDP, SMALL_MTU + 1))

    def answered() -> bool:
        verdict = bed.send(frame).verdict
        assert verdict in ("forward_too_big", "drop_too_big")
        return verdict == "forward_too_big"

    def burst() -> int:
        sent = 0
        while answered():
            sent += 1
            assert sent < 100 * MAX_ERRORS_PER_TICK, "no limit"
        return sent

    def wait_for_the_next_tick() -> None:
        wait_until(answered, "errors to be sent again", 5, every_s=0)

    here = os.sched_getaffinity(0)
    bed.inside(lambda: os.sched_setaffinity(0, {min(here)}))
    try:
        burst()
        wait_for_the_next_tick()
        assert 1 + burst() >= MAX_ERRORS_PER_TICK
        wait_for_the_next_tick()
    finally:
        bed.inside(lambda: os.sched_setaffinity(0, here))
