"""The client's address as a TCP option. docs/DATAPLANE.md, *The client's address behind mode snat*."""

from __future__ import annotations

from bpf.constants import TOA_KIND
from tests.model.bits import FORWARD, REPLICATED, TOA_DONE
from tests.model.connections import find
from tests.model.forwarding import next_hop
from tests.model.packet import ACK, IP, RST, SYN, Packet, Verdict, change_checksum, segment_bytes
from tests.model.state import Flow, Key, State


def handle(state: State, packet: Packet, key: Key, flow: Flow) -> None:
    """A packet of a connection whose backend is to know the client's address."""
    if flow.flags & FORWARD:
        from_client(state, packet, key, flow)
    elif pending(flow) and packet.flags & ACK:
        from_server(state, packet, key, flow)


def pending(flow: Flow) -> bool:
    """Of what the peer opened, nobody knows here which data was first: no answer is waited for."""
    return not flow.state & (TOA_DONE if flow.flags & FORWARD else TOA_DONE | REPLICATED)


def signed(number: int) -> int:
    return (number & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def sequence(packet: Packet, at: int) -> int:
    return int.from_bytes(packet.frame[packet.transport + at : packet.transport + at + 4])


def from_client(state: State, packet: Packet, key: Key, flow: Flow) -> None:
    if packet.is_syn:  # of the tuple's next connection
        flow.state &= ~TOA_DONE
        if reply := find(state, flow.opposite(key.protocol)):
            reply.state &= ~TOA_DONE
        state.toa.pop(key, None)
        return
    if not pending(flow) or packet.is_fragment or packet.flags & (SYN | RST) or not segment_bytes(packet):
        return
    number = sequence(packet, 4)
    first = state.toa.setdefault(key, number)
    if signed(number - first) < 0:
        first = state.toa[key] = number
    if number != first:
        return
    inserted = fits(state, packet, flow) and insert(packet, key)
    state.count("event_toa_inserted" if inserted else "event_toa_skipped", packet.size)
    if flow.state & REPLICATED:
        finish(state, key, flow)


def from_server(state: State, packet: Packet, key: Key, flow: Flow) -> None:
    """Has the server acknowledged the first data?"""
    client_key = flow.opposite(key.protocol)
    first = state.toa.get(client_key)
    if first is None or signed(sequence(packet, 8) - first) <= 0:
        return
    flow.state |= TOA_DONE
    if forward := find(state, client_key):
        finish(state, client_key, forward)


def finish(state: State, key: Key, forward: Flow) -> None:
    forward.state |= TOA_DONE
    state.toa.pop(key, None)


def option_bytes(packet: Packet) -> int:
    return 8 if packet.is_v4 else 20


def fits(state: State, packet: Packet, flow: Flow) -> bool:
    """Towards the backend."""
    packet.ip_bytes += option_bytes(packet)
    try:
        return next_hop(state, packet, flow) == "" and packet.hop_limit > 1
    except Verdict:
        return False
    finally:
        packet.ip_bytes -= option_bytes(packet)


def insert(packet: Packet, key: Key) -> bool:
    """In front of the other options. False: there is no space, or the headers have an unusual length."""
    more, at, frame = option_bytes(packet), packet.transport, packet.frame
    words = (frame[at + 12] >> 4) + more // 4
    if at != IP + (20 if packet.is_v4 else 40) or words > 15:
        return False
    option = bytes((TOA_KIND, more)) + key.source_port.to_bytes(2) + key.source
    frame[at + 12] += more // 4 << 4
    delta = sum(int.from_bytes(option[n : n + 2]) for n in range(0, more, 2)) + (more // 4 << 12) + more
    change_checksum(frame, at + 16, delta)
    frame[at + 20 : at + 20] = option
    packet.ip_bytes += more
    where = IP + (2 if packet.is_v4 else 4)
    frame[where : where + 2] = (packet.word(where) + more).to_bytes(2)
    if packet.is_v4:
        change_checksum(frame, IP + 10, more)
    return True
