"""A packet leaves: hop limit, next hop, size, rewrite. docs/DATAPLANE.md, steps 6 to 8."""

from __future__ import annotations

from tests.model.connections import FORWARD
from tests.model.packet import IP, UDP, Packet, Verdict, change_checksum, difference
from tests.model.state import Flow, State


def forward(state: State, packet: Packet, flow: Flow) -> str:
    """Hop limit, next hop, size, rewrite."""
    if packet.hop_limit <= 1:
        return "drop_ttl_expired"
    verdict = next_hop(state, packet, flow)
    may_be_fragmented = packet.is_v4 and not packet.word(IP + 6) & 0x4000
    if verdict == "pass_too_big" and not may_be_fragmented:
        return "drop_too_big"
    rewrite(packet, flow)
    traffic_in = bool(flow.flags & FORWARD)
    for traffic, number in ((state.farm_traffic, flow.farm), (state.backend_traffic, flow.backend)):
        now = traffic[number]
        if traffic_in:
            traffic[number] = now._replace(packets_in=now.packets_in + 1, bytes_in=now.bytes_in + packet.size)
        else:
            traffic[number] = now._replace(packets_out=now.packets_out + 1, bytes_out=now.bytes_out + packet.size)
    return verdict or leave(packet, flow)


def next_hop(state: State, packet: Packet, flow: Flow) -> str:
    """Fills the flow's MACs; "" if they are known. Raises drop_no_route."""
    if flow.generation == state.generation and packet.ip_bytes <= flow.mtu:
        return ""
    hop = state.routes.lookup(flow.destination)
    if hop is None:
        raise Verdict("drop_no_route")
    if packet.ip_bytes > hop.mtu:
        packet.mtu = hop.mtu
        return "pass_too_big"
    if hop.mac is None:
        return "pass_unresolved"
    flow.destination_mac, flow.source_mac = hop.mac, hop.interface.mac
    flow.interface, flow.mtu, flow.generation = hop.interface.number, hop.mtu, state.generation
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
