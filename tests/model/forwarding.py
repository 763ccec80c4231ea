"""A packet leaves: hop limit, next hop, size, rewrite. docs/DATAPLANE.md, steps 6 to 8."""

from __future__ import annotations

import struct

from tests.model.bits import FORWARD, IPIP
from tests.model.connections import is_one_way
from tests.model.hashing import flow_hash
from tests.model.packet import IP, UDP, Packet, Verdict, change_checksum, checksum, difference, folded, word_sum
from tests.model.state import Flow, Key, State


def forward(state: State, packet: Packet, flow: Flow) -> str:
    """Hop limit, next hop, size, rewrite."""
    if is_one_way(flow):
        return forward_whole(state, packet, flow)
    if packet.hop_limit <= 1:
        return "drop_ttl_expired"
    verdict = next_hop(state, packet, flow)
    may_be_fragmented = packet.is_v4 and not packet.word(IP + 6) & 0x4000
    if verdict == "pass_too_big" and not may_be_fragmented:
        return "drop_too_big"
    rewrite(packet, flow)
    count_traffic(state, packet, flow)
    return verdict or leave(packet, flow)


def count_traffic(state: State, packet: Packet, flow: Flow) -> None:
    for traffic, number in ((state.farm_traffic, flow.farm), (state.backend_traffic, flow.backend)):
        now = traffic[number]
        if flow.flags & FORWARD:
            traffic[number] = now._replace(packets_in=now.packets_in + 1, bytes_in=now.bytes_in + packet.size)
        else:
            traffic[number] = now._replace(packets_out=now.packets_out + 1, bytes_out=now.bytes_out + packet.size)


def forward_whole(state: State, packet: Packet, flow: Flow) -> str:
    """dsr changes the MAC addresses alone, ipip puts a header before the packet. The node is no router for these packets: the
    hop limit stays. The kernel cannot forward them: it would take what is for a VIP."""
    if not packet.hop_limit:
        return "drop_ttl_expired"
    verdict = next_hop(state, packet, flow)
    if verdict:
        return "drop_too_big" if verdict == "pass_too_big" else "drop_unresolved"
    if flow.flags & IPIP:
        wrap(state, packet, flow.destination)
    count_traffic(state, packet, flow)
    packet.frame[:12] = flow.destination_mac + flow.source_mac
    packet.egress = flow.interface
    return "forward_tx" if packet.egress == packet.ingress else "forward_redirect"


def wrap(state: State, packet: Packet, backend: bytes) -> None:
    """RFC 2003, RFC 2473, RFC 4213. DSCP and ECN are copied (RFC 2983, RFC 6040), and so is DF."""
    source = state.tunnel_sources.get(len(backend))
    if not source:
        raise Verdict("drop_no_tunnel_source")
    frame, length = packet.frame, packet.ip_bytes
    first = int.from_bytes(frame[IP : IP + 4])
    if packet.is_v4:
        protocol, traffic_class, label = 4, frame[IP + 1], 0
        whole = bool(packet.word(IP + 6) & 0x4000)
        identification = 0 if whole else folded(packet.word(IP + 4) + word_sum(packet.source))
    else:
        protocol, traffic_class, label, whole, identification = 41, first >> 20 & 0xFF, first & 0xFFFFF, True, 0
    if len(backend) == 4:
        outer = struct.pack(">BBHHHBBH", 0x45, traffic_class, 20 + length, identification, whole << 14, 64, protocol, 0)
        outer += source + backend
        outer = outer[:10] + checksum(outer).to_bytes(2) + outer[12:]
    else:  # one flow label for all packets of a client, if it has none itself (RFC 6438)
        label = label or flow_hash(Key(packet.source, b"", 0, 0, 0), 0, client_only=True) & 0xFFFFF
        outer = struct.pack(">IHBB", 6 << 28 | traffic_class << 20 | label, length, protocol, 64) + source + backend
    frame[12:IP] = (0x0800 if len(backend) == 4 else 0x86DD).to_bytes(2) + outer


def next_hop(state: State, packet: Packet, flow: Flow) -> str:
    """Fills the flow's MACs; "" if they are known. Raises drop_no_route."""
    if flow.generation == state.generation and packet.ip_bytes <= flow.mtu:
        return ""
    outer = 0
    if flow.flags & IPIP:
        if len(flow.destination) not in state.tunnel_sources:
            raise Verdict("drop_no_tunnel_source")
        outer = 20 if len(flow.destination) == 4 else 40
    hop = state.routes.lookup(flow.destination)
    if hop is None:
        raise Verdict("drop_no_route")
    if packet.ip_bytes + outer > hop.mtu:
        least = 68 if packet.is_v4 else 1280  # RFC 791, RFC 8200
        packet.mtu = max(hop.mtu - outer, least) if outer else hop.mtu
        return "pass_too_big"
    if hop.mac is None:
        return "pass_unresolved"
    flow.destination_mac, flow.source_mac = hop.mac, hop.interface.mac
    flow.interface, flow.mtu, flow.generation = hop.interface.number, hop.mtu - outer, state.generation
    return ""


def leave(packet: Packet, flow: Flow) -> str:
    """The frame goes to the next hop, one hop older."""
    packet.frame[:12] = flow.destination_mac + flow.source_mac
    packet.egress = flow.interface
    older(packet)
    return "forward_tx" if packet.egress == packet.ingress else "forward_redirect"


def older(packet: Packet) -> None:
    at = IP + (8 if packet.is_v4 else 7)
    before = bytes(packet.frame[at : at + 2])
    packet.frame[at] -= 1
    if packet.is_v4:
        change_checksum(packet.frame, IP + 10, difference(before, packet.frame[at : at + 2]))


def rewrite(packet: Packet, flow: Flow) -> None:
    """Addresses and ports, with their checksums; of a later fragment addresses only."""
    frame, new, ports_at = packet.frame, flow.source + flow.destination, packet.transport
    at = IP + (12 if packet.is_v4 else 8)
    delta = difference(frame[at : at + len(new)], new)
    frame[at : at + len(new)] = new
    if packet.is_v4:
        change_checksum(frame, IP + 10, delta)
    if packet.is_later:
        return
    ports = flow.source_port.to_bytes(2) + flow.destination_port.to_bytes(2)
    delta += difference(frame[ports_at : ports_at + 4], ports)
    frame[ports_at : ports_at + 4] = ports
    udp = packet.protocol == UDP
    change_checksum(frame, ports_at + (6 if udp else 16), delta, udp)
