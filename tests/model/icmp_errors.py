"""ICMP errors about a flow: translated, and sent to the end whose packet they quote (RFC 5508, RFC 792, RFC 4443)."""

from __future__ import annotations

from collections.abc import Callable

from bpf.constants import MAX_IPV6_EXTENSIONS
from tests.model.connections import HASHES, check_client, find, is_martian, is_one_way, listener, make_flow, select
from tests.model.forwarding import forward_whole, leave, next_hop
from tests.model.packet import EXTENSIONS, FRAGMENT, IP, TCP, UDP, Packet, change_checksum, difference
from tests.model.state import Flow, Key, State


def is_error(packet: Packet, kind: int) -> bool:
    return kind in (3, 11, 12) if packet.is_v4 else 1 <= kind <= 4


def translate(state: State, packet: Packet, fence: Callable[[State, bytes], None]) -> str:
    """The verdict; "" for an error that is about no flow of ours. packet.key becomes that of the quoted packet's answers."""
    quoted, end, frame = packet.transport + 8, min(IP + packet.ip_bytes, packet.size), packet.frame
    found = read_quoted(packet, quoted, end)
    if found is None or found[0].destination != packet.destination:
        packet.key = packet.key._replace(source_port=0, destination_port=0)
        return ""
    key, ports_at = found
    packet.key = key
    flow = find(state, key)
    kind, code = frame[packet.transport], frame[packet.transport + 1]
    is_computed = not flow and ((kind, code) == (3, 4) if packet.is_v4 else kind == 2)
    if is_computed:
        flow = computed(state, packet, key)
    if not flow:
        return ""
    packet.farm = flow.farm
    fence(state, packet.destination)
    if is_computed:
        check_client(state, packet, key, serves=True)
    if packet.source != key.source and is_martian(state, packet.source):
        return "drop_martian"
    if is_one_way(flow):
        verdict = forward_whole(state, packet, flow)
        return verdict if verdict.startswith("drop_") else "forward_icmp_error"
    if packet.hop_limit <= 1:
        return "drop_ttl_expired"
    verdict = next_hop(state, packet, flow)
    if verdict == "pass_too_big":
        return "drop_too_big"  # no ICMP error about an ICMP error (RFC 1122)
    before = bytes(frame[packet.transport :])
    restore_quoted(packet, flow, key, quoted, ports_at, end)
    delta = difference_of(before, bytes(frame[packet.transport :]))
    source = flow.source if packet.source == key.source else packet.source  # a router's error keeps its address
    at = IP + (12 if packet.is_v4 else 8)
    old, new = bytes(frame[at : at + 2 * len(source)]), source + flow.destination
    frame[at : at + len(new)] = new
    if packet.is_v4:
        change_checksum(frame, IP + 10, difference(old, new))
    else:
        delta += difference(old, new)
    change_checksum(frame, packet.transport + 2, delta)
    if verdict:
        return verdict
    leave(packet, flow)
    return "forward_icmp_error"


def difference_of(before: bytes, after: bytes) -> int:
    odd = len(before) & 1
    return difference(before + bytes(odd), after + bytes(odd))


def read_quoted(packet: Packet, at: int, end: int) -> tuple[Key, int] | None:
    """The key of the answers to the quoted packet, and the offset of its ports; None: there are no ports to be found."""
    frame = packet.frame
    if packet.is_v4:
        if not packet.within(at + 20) or frame[at] >> 4 != 4 or frame[at] & 15 < 5 or packet.word(at + 6) & 0x1FFF:
            return None
        source, destination, protocol = bytes(frame[at + 12 : at + 16]), bytes(frame[at + 16 : at + 20]), frame[at + 9]
        ports_at = at + (frame[at] & 15) * 4
    else:
        if not packet.within(at + 40) or frame[at] >> 4 != 6:
            return None
        source, destination, protocol = bytes(frame[at + 8 : at + 24]), bytes(frame[at + 24 : at + 40]), frame[at + 6]
        ports_at = at + 40
        for _ in range(MAX_IPV6_EXTENSIONS + 1):
            if protocol not in EXTENSIONS:
                break
            if not packet.within(ports_at + 8):
                return None
            length = frame[ports_at + 1]
            if protocol == FRAGMENT and (packet.word(ports_at + 2) & 0xFFF8 or length):
                return None
            protocol, ports_at = frame[ports_at], ports_at + 8 + 8 * length
        else:
            return None
    if protocol not in (TCP, UDP) or ports_at + 8 > end:
        return None
    return Key(destination, source, packet.word(ports_at + 2), packet.word(ports_at), protocol), ports_at


def computed(state: State, packet: Packet, key: Key) -> Flow | None:
    """The flow that a connection with this key would have now: path MTU discovery of one that continues here must not fail."""
    service = listener(state, key) if key.destination in state.vips else None
    if not service or not service.slot_count or service.scheduler not in HASHES or service.mode not in state.modes:
        return None
    number = select(state, key, service)
    if not number or number not in state.backends:
        return None
    return make_flow(state, packet, key, service, number)[0]


def restore_quoted(packet: Packet, flow: Flow, key: Key, at: int, ports_at: int, end: int) -> None:
    """The quoted packet as its sender sent it."""
    frame, addresses = packet.frame, flow.destination + flow.source
    addresses_at = at + (12 if packet.is_v4 else 8)
    delta = difference(frame[addresses_at : addresses_at + len(addresses)], addresses)
    frame[addresses_at : addresses_at + len(addresses)] = addresses
    if packet.is_v4:
        change_checksum(frame, at + 10, delta)
    ports = flow.destination_port.to_bytes(2) + flow.source_port.to_bytes(2)
    delta += difference(frame[ports_at : ports_at + 4], ports)
    frame[ports_at : ports_at + 4] = ports
    udp = key.protocol == UDP
    check_at = ports_at + (6 if udp else 16)
    if check_at + 2 <= end:  # an error may quote 8 bytes, without the checksum of TCP
        change_checksum(frame, check_at, delta, udp)
