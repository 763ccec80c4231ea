"""The answer to the sender of a dropped packet: a TCP reset (RFC 9293 3.5.2) or an ICMP error (RFC 1812, RFC 4443)."""

from __future__ import annotations

import struct

from bpf.constants import MAX_ERRORS_PER_TICK
from tests.model.bits import FARM_SILENT
from tests.model.connections import is_impossible
from tests.model.packet import ACK, FIN, ICMPV6, IP, RST, SYN, TCP, UDP, Packet, checksum, segment_bytes
from tests.model.state import State

RESET, NO_PORT, NO_ROUTE, TOO_BIG, TIME_EXCEEDED = "reset", "no port", "no route", "too big", "time exceeded"
EVENTS = {RESET: "reset_sent", NO_PORT: "unreachable_sent", NO_ROUTE: "unreachable_sent", TIME_EXCEEDED: "time_exceeded_sent"}
V4_ERRORS = {NO_PORT: (3, 3), NO_ROUTE: (3, 1), TOO_BIG: (3, 4), TIME_EXCEEDED: (11, 0)}
V6_ERRORS = {NO_PORT: (1, 4), NO_ROUTE: (1, 0), TOO_BIG: (2, 0), TIME_EXCEEDED: (3, 0)}


def answer(state: State, packet: Packet, verdict: str) -> str:
    """The verdict to count. Turns packet.frame into the answer, if there is one."""
    kind = choose(state, packet, verdict)
    if not kind or packet.frame[0] & 1 or is_impossible(packet.source) or not state.is_open:
        return verdict
    if not within_budget(state, "resets" if kind == RESET else "errors"):
        return verdict
    if kind == RESET:
        send_reset(packet)
    else:
        send_error(state, packet, kind)
    packet.egress = packet.ingress
    if kind == TOO_BIG:
        return "forward_too_big"
    state.count("event_" + EVENTS[kind], packet.size)
    return verdict


def choose(state: State, packet: Packet, verdict: str) -> str:
    """What the sender gets; "" for nothing."""
    if packet.protocol not in (TCP, UDP) or packet.is_later:
        return ""
    can_reset = packet.protocol == TCP and not packet.flags & RST and (packet.flags & ACK or not packet.is_fragment)
    reset = RESET if can_reset else ""
    match verdict:
        case "drop_ttl_expired":
            return TIME_EXCEEDED
        case "drop_too_big":
            return TOO_BIG
        case "drop_no_route" | "drop_no_tunnel_source":
            return NO_ROUTE
        case "drop_no_flow" | "drop_vip_guard":
            return reset if packet.is_midstream else ""
        case "drop_no_backend" | "drop_farm_full" | "drop_backend_full" | "drop_snat_exhausted" | "drop_reverse_conflict":
            if packet.is_midstream:
                return reset
            settings = state.farms.get(packet.farm)
            if settings and settings.flags & FARM_SILENT:
                return ""
            return reset if packet.protocol == TCP else NO_PORT
    return ""


def within_budget(state: State, kind: str) -> bool:
    tick, sent = state.sent.get((state.cpu, kind), (0, 0))
    if tick != state.tick:
        sent = 0
    state.sent[state.cpu, kind] = state.tick, min(sent + 1, MAX_ERRORS_PER_TICK)
    return sent < MAX_ERRORS_PER_TICK


def send_reset(packet: Packet) -> None:
    tcp = packet.frame[packet.transport : packet.transport + 20]
    sequence, acknowledged = struct.unpack(">II", tcp[4:12])
    if packet.flags & ACK:
        fields = (acknowledged, 0, RST)
    else:
        length = segment_bytes(packet) + bool(packet.flags & SYN) + bool(packet.flags & FIN)
        fields = (0, sequence + length & 0xFFFFFFFF, RST | ACK)
    segment = struct.pack(">HHIIBBHHH", packet.ports[1], packet.ports[0], fields[0], fields[1], 0x50, fields[2], 0, 0, 0)
    pseudo = packet.destination + packet.source + struct.pack(">II", len(segment), TCP)
    segment = segment[:16] + checksum(pseudo + segment).to_bytes(2) + segment[18:]
    send(packet, packet.destination, TCP, segment)


def send_error(state: State, packet: Packet, kind: str) -> None:
    source = packet.destination
    hop = state.routes.lookup(packet.source)
    if kind in (TIME_EXCEEDED, NO_ROUTE) and hop:  # a router's error has its own address (RFC 1812 4.3.2.4)
        source = hop.interface.addresses[len(source)]
    quote = (68 if packet.ip_bytes >= 68 else 28) if packet.is_v4 else 504 if packet.ip_bytes >= 504 else 48
    quoted = bytes(packet.frame[IP : IP + quote])
    number, code = (V4_ERRORS if packet.is_v4 else V6_ERRORS)[kind]
    header = struct.pack(">BBHI", number, code, 0, packet.mtu if kind == TOO_BIG else 0)
    pseudo = b"" if packet.is_v4 else source + packet.source + struct.pack(">II", len(header + quoted), ICMPV6)
    header = header[:2] + checksum(pseudo + header + quoted).to_bytes(2) + header[4:]
    send(packet, source, packet.icmp_protocol, header + quoted)


def send(packet: Packet, source: bytes, protocol: int, payload: bytes) -> None:
    """To the sender, by the interface and from the MAC address that the packet came to."""
    if packet.is_v4:
        flags = 0x4000 if protocol == TCP else 0
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, flags, 64, protocol, 0) + source + packet.source
        ip = ip[:10] + checksum(ip).to_bytes(2) + ip[12:]
    else:
        ip = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + source + packet.source
    packet.frame = packet.frame[6:12] + packet.frame[:6] + packet.frame[12:14] + ip + payload
