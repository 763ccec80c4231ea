"""The life of a connection: found, opened, promoted, ended. docs/DATAPLANE.md, steps 2 to 5 and *What ends a connection*."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bpf.columns import address_bytes, address_text
from bpf.constants import (
    EMBRYONIC_REST_TICKS,
    FIRST_SNAT_PORT,
    FIXED_SNAT_CANDIDATES,
    HIGH_PORTS_ATTEMPT,
    MAX_SNAT_CANDIDATES,
    OTHER_PARITY_ATTEMPT,
    PERSISTENCE_USE_SHIFT,
    PORT_REST_TICKS,
    PRIVILEGED_SNAT_PORTS,
    REFRESH_SHIFT,
    EventType,
    Mode,
    Scheduler,
)
from bpf.dataplane import ServerKey, ServiceValue
from tests.model import affinity, limits
from tests.model.bits import (
    COUNTED,
    DERIVED,
    DSR,
    ENDS,
    FARM_TOA,
    FIN_HERE,
    FIN_THERE,
    FORWARD,
    IPIP,
    OTHER_FAMILY,
    RESET,
    SEEN,
    TOA,
    VIP_OPEN,
    VIP_RANGES,
)
from tests.model.hashing import GOLDEN_RATIO, MASK, avalanche, flow_hash, mix
from tests.model.packet import ACK, FIN, RST, SYN, TCP, UDP, Packet, Verdict, segment_bytes
from tests.model.state import Client, Flow, Key, State

HASHES = (Scheduler.MAGLEV, Scheduler.SOURCE)
"""Schedulers that select the same backend for the same packet."""
SYN_RETRY_TICKS = 8  # half a second: a SYN after it is a retransmission, not a duplicate
ONE_WAY = {Mode.DSR: DSR, Mode.IPIP: IPIP}
"""Modes in which the backend gets the client's packet unchanged and answers past the node: there is no reply entry."""


def is_closed(state: int) -> bool:
    return bool(state & RESET) or state & ENDS == ENDS


def is_one_way(flow: Flow) -> bool:
    return bool(flow.flags & (DSR | IPIP))


def other_direction(state: State, flow: Flow, protocol: int) -> Flow | None:
    """Whatever has the key of the answers."""
    return None if is_one_way(flow) else find(state, flow.opposite(protocol))


def find(state: State, key: Key) -> Flow | None:
    size = len(key.source)
    return state.flows[size].get(key) or state.embryonic[size].get(key)


def delete(state: State, key: Key) -> None:
    state.flows[len(key.source)].delete(key)
    state.embryonic[len(key.source)].delete(key)


def report(state: State, packet: Packet, kind: EventType, key: Key, flow: Flow) -> None:
    """To the peer, unless its ring is full."""
    space = state.ring_space.get(len(key.source))
    if space == 0:
        state.count("event_ring_full", packet.size)
        return
    if space:
        state.ring_space[len(key.source)] = space - 1
    state.events.append((int(kind), key, flow.copy()))


def count_connection(state: State, farm: int, backend: int) -> None:
    for traffic, number in ((state.farm_traffic, farm), (state.backend_traffic, backend)):
        traffic[number] = traffic[number]._replace(connections=traffic[number].connections + 1)


# --- what the packet is for ----------------------------------------------------------------------------------


def listener(state: State, key: Key) -> ServiceValue | None:
    found = state.listeners.get((key.destination, key.destination_port, key.protocol))
    if found or not state.vips[key.destination] & VIP_RANGES:
        return found
    address = address_text(key.destination)
    for where, value in state.ranges.items():
        if (where.address, where.protocol) == (address, key.protocol) and where.port <= key.destination_port <= where.port_last:
            return value
    return None


def server(state: State, address: bytes, port: int, protocol: int) -> tuple[int, int]:
    """ServerFlag bits of a backend's service, and of all services of its host."""
    if not state.servers:
        return 0, 0
    text = address_text(address)
    host = state.servers.get(ServerKey(text, protocol, 0), 0)
    if not host or not port:
        return 0, host
    for bits in range(16, -1, -1):
        shift = 16 - bits
        if found := state.servers.get(ServerKey(text, protocol, port >> shift << shift, bits)):
            return found, host
    return 0, host


def is_impossible(address: bytes) -> bool:
    """No single host has it: RFC 1812 5.3.7, RFC 4291."""
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] >= 224
    return address[0] == 0xFF or (address[:8] == bytes(8) and address[8:12] in (bytes(4), b"\0\0\xff\xff"))


# --- finding -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Match:
    """flow: the packet's entry. ended: that of an established connection whose tuple this SYN uses again."""

    flow: Flow | None = None
    ended: Flow | None = None


def match(state: State, packet: Packet, key: Key) -> Match:
    """Raises pass_not_ours if the packet has no flow and is not for a VIP."""
    size = len(key.source)
    flow = state.flows[size].get(key)
    new = packet.is_syn
    if flow and not (new and flow.flags & FORWARD and (is_closed(flow.state) or state.unavailable(flow.backend))):
        packet.established, packet.farm = True, flow.farm
        return Match(flow)
    embryonic = state.embryonic[size].get(key)
    if embryonic and new and embryonic.flags & FORWARD and is_closed(embryonic.state):
        embryonic = None
    found = Match(embryonic, flow)
    entry = flow or embryonic
    if entry:
        packet.farm = entry.farm
    elif key.destination not in state.vips:
        raise Verdict("pass_not_ours")
    return found


# --- the steps of a packet whose connection is not established -----------------------------------------------


def advance(state: State, packet: Packet, key: Key, found: Match) -> Flow:
    """Promote the connection, repair it, or open one. Returns the packet's entry."""
    flow, retry = found.flow, found.ended is not None
    complete = found.ended is not None and not is_one_way(found.ended)  # one way, no answer to the SYN would begin it again
    if flow and not found.ended:
        complete, answered = check_other(state, packet, key, flow)
        if packet.established:
            return state.flows[len(key.source)].entries[key]
        if flow.flags & FORWARD and not packet.is_midstream:
            retry = (packet.is_syn and not answered) or state.unavailable(flow.backend)
        if complete and not retry:
            return flow
    return accept(state, packet, key, found, retry, complete)


def check_other(state: State, packet: Packet, key: Key, flow: Flow) -> tuple[bool, bool]:
    """Promote the connection if both ends have spoken, or a UDP server twice.

    Returns whether the entry of the other direction is there, and whether it has seen a packet.
    """
    size, forward = len(key.source), bool(flow.flags & FORWARD)
    if is_one_way(flow):
        if continues(state, packet, flow):
            promote(state, packet, key, flow, None, None)
        return True, True
    if not forward and not (packet.protocol == UDP and flow.state & SEEN):
        return True, True
    other_key = flow.opposite(key.protocol)
    other = state.embryonic[size].get(other_key) or state.flows[size].get(other_key)
    if other is None or not other.answers(key):
        return not forward, True
    answered = bool(other.state & SEEN)
    if answered and not packet.is_syn and not packet.flags & RST and not other.state & RESET:
        if forward:
            promote(state, packet, key, flow, other_key, other)
        else:
            promote(state, packet, other_key, other, key, flow)
    return True, answered


def continues(state: State, packet: Packet, flow: Flow) -> bool:
    """A client of a one-way connection that goes on after its first packet has got an answer."""
    if not flow.state & SEEN or flow.state & RESET:
        return False
    return not packet.flags & (SYN | RST) if packet.protocol == TCP else state.age(flow) > 0


def promote(state: State, packet: Packet, key: Key, forward: Flow, reply_key: Key | None, reply: Flow | None) -> None:
    """Both entries, or neither."""
    flows, embryonic = state.flows[len(key.source)], state.embryonic[len(key.source)]
    had_reply = reply_key in flows.entries
    limits.leave_half_open(state, key.source, forward)
    if reply_key:
        state.copies.changed(reply_key)
    if (reply_key and reply and not flows.put(reply_key, reply)) or not flows.put(key, forward):
        if reply_key and not had_reply:
            flows.delete(reply_key)
        state.count("event_flow_table_full", packet.size)
        return
    state.count("event_promoted", packet.size)
    limits.relieve_pressure(state, len(key.source))
    report(state, packet, EventType.ESTABLISHED, key, forward)
    if reply_key:
        embryonic.delete(reply_key)
    embryonic.delete(key)
    packet.established = True


def accept(state: State, packet: Packet, key: Key, found: Match, retry: bool, complete: bool) -> Flow:
    """Open a connection on the listener that the packet is for, or keep the one there is."""
    old = found.ended or found.flow
    if key.destination not in state.vips:
        raise Verdict("pass_not_ours")
    service = listener(state, key)
    if not service and state.vips[key.destination] & VIP_OPEN:
        raise Verdict("pass_vip_open")
    if service and service.mode not in state.modes:
        raise Verdict("drop_not_compiled")
    if not old:
        check_client(state, packet, key, service is not None)
    if not service:
        raise Verdict("drop_vip_guard")
    packet.farm = service.farm
    is_new = not old or retry
    opening = limits.admit(state, key, service) if old is None or is_closed(old.state) else None
    if is_new and not service.slot_count:
        raise Verdict("drop_no_backend")
    pressed = limits.is_pressed(state, len(key.source))
    if is_new and packet.is_midstream and service.scheduler not in HASHES and not pressed:
        raise Verdict("drop_no_flow")
    number = choose(state, packet, key, service, old, retry)
    if old and retry:
        if complete and (old.backend, old.farm) == (number, service.farm):
            packet.established = found.ended is not None
            return old
        end(state, packet, key, old, found.ended is not None)
    if number not in state.backends or not number:
        raise Verdict("drop_internal")
    counted = old.state & COUNTED if old else 0
    return open_connection(state, packet, key, service, number, is_new, counted, opening)


def is_martian(state: State, source: bytes) -> bool:
    return is_impossible(source) or source in state.vips


def check_client(state: State, packet: Packet, key: Key, serves: bool) -> None:
    """No client has an impossible address, a VIP, or the port of a backend's service."""
    if is_martian(state, key.source):
        raise Verdict("drop_martian")
    if not packet.is_syn and server(state, key.source, key.source_port, key.protocol)[0]:
        raise Verdict("drop_martian" if serves and key.protocol == UDP else "drop_no_flow")


def choose(state: State, packet: Packet, key: Key, service: ServiceValue, old: Flow | None, retry: bool) -> int:
    if old and not retry:
        return old.backend
    affine = affinity.affine_backend(state, packet, key, service)
    in_turn = service.scheduler not in HASHES and not affine
    recent = old is not None and (is_closed(old.state) or state.age(old) < SYN_RETRY_TICKS)
    if old and in_turn and recent and not state.unavailable(old.backend):
        return old.backend
    kept = old if old and not is_closed(old.state) else None
    start = flow_hash(key, state.seed)

    pressed = service.scheduler not in HASHES and limits.is_pressed(state, len(key.source))

    def selected() -> int:
        return affine or select(state, key, service, pressed)

    return limits.with_capacity(state, key, service, start, bool(affine) or pressed, selected, kept)


def select(state: State, key: Key, service: ServiceValue, pressed: bool = False) -> int:
    """pressed: what depends on turns or loads is selected by hash."""
    if service.scheduler == Scheduler.ROUNDROBIN and not pressed:
        turn = state.turns[service.farm]
        state.turns[service.farm] += 1
    else:
        turn = flow_hash(key, state.seed, service.scheduler == Scheduler.SOURCE)
    return state.slots.get(service.slot_offset + (turn & MASK) % service.slot_count, 0)


def end(state: State, packet: Packet, key: Key, forward: Flow, established: bool) -> None:
    """Delete both entries, but not a reply entry that is another connection's."""
    reply_key = forward.opposite(key.protocol)
    reply = other_direction(state, forward, key.protocol)
    if not is_closed(forward.state):
        limits.change_load(state, forward, -1)
    if established:
        report(state, packet, EventType.REMOVED, key, forward)
    if reply and reply.answers(key):
        delete(state, reply_key)
    delete(state, key)


# --- opening -------------------------------------------------------------------------------------------------


def sources(state: State, key: Key, addresses: tuple[bytes, ...], keeps_zero: bool) -> Iterator[tuple[bytes, int]]:
    """Addresses and ports to try: the client's own port, then a walk in which the client's parity and privilege come first."""
    value = flow_hash(key, state.seed)

    def address(spread: int) -> bytes:
        return addresses[(spread << 16 & MASK) * len(addresses) >> 32]

    def attempt(number: int, salt: int) -> tuple[bytes, int]:
        spread = avalanche(value + salt + number * GOLDEN_RATIO & MASK)
        privileged = 0 < key.source_port < FIRST_SNAT_PORT
        parity = key.source_port & 1 ^ (number >= OTHER_PARITY_ATTEMPT)
        if privileged and number < HIGH_PORTS_ATTEMPT:
            pairs = PRIVILEGED_SNAT_PORTS // 2
            return address(spread), FIRST_SNAT_PORT - PRIVILEGED_SNAT_PORTS + 2 * ((value + number & MASK) % pairs) + parity
        if privileged:
            parity = key.source_port & 1
        return address(spread), FIRST_SNAT_PORT + 2 * (spread * ((65536 - FIRST_SNAT_PORT) // 2) >> 32) + parity

    yield attempt(1, 0) if not key.source_port and not keeps_zero else (address(value), key.source_port)
    salt = mix(state.tick, GOLDEN_RATIO)
    for number in range(1, MAX_SNAT_CANDIDATES):
        yield attempt(number, 0 if number < FIXED_SNAT_CANDIDATES else salt)


def keeps_address(state: State, key: Key, service: ServiceValue) -> bool:
    """In mode dnat, unless the client is itself a backend of its farm, whose answer would come past this node."""
    return service.mode == Mode.DNAT and key.source not in state.members.get(service.farm, ())


def make_flow(
    state: State, packet: Packet, key: Key, service: ServiceValue, number: int
) -> tuple[Flow, Iterator[tuple[bytes, int]]]:
    """The forward entry with the first source, and the other sources to try."""
    backend, keeps, farm = state.backends[number], keeps_address(state, key, service), state.farms.get(service.farm)
    own = key.source if keeps else address_bytes(service.snat_address)
    several = () if keeps or farm is None else tuple(map(address_bytes, farm.snat))
    several = tuple(each for each in several if len(each) == len(key.source))
    candidates = sources(state, key, several if len(several) > 1 else (own,), keeps)
    source, source_port = next(candidates)
    flow = Flow(
        source=source,
        destination=backend.address,
        source_port=source_port,
        destination_port=backend.port + key.destination_port - service.port_first & 0xFFFF,
        last_seen=state.tick,
        farm=service.farm,
        flags=FORWARD | (DERIVED if packet.is_midstream else 0),
        backend=number,
    )
    hides = service.mode == Mode.SNAT or (service.mode == Mode.DNAT and not keeps)
    if farm and farm.flags & FARM_TOA and key.protocol == TCP and hides:
        flow.flags |= TOA
    if one_way := ONE_WAY.get(Mode(service.mode), 0):
        flow.source, flow.source_port, flow.destination_port = key.source, key.source_port, key.destination_port
        flow.flags |= one_way | (OTHER_FAMILY if len(backend.address) != len(key.source) else 0)
        flow.state = FIN_THERE  # the server's FIN is not seen, so the client's ends the connection
    return flow, candidates


def open_connection(
    state: State,
    packet: Packet,
    key: Key,
    service: ServiceValue,
    number: int,
    is_new: bool,
    counted: int,
    opening: Client | None,
) -> Flow:
    """counted: the bit of the entry before. opening: the client whose half-open connections will include this one."""
    flow, candidates = make_flow(state, packet, key, service, number)
    if not is_one_way(flow) and not claim(state, key, flow):
        best, rank = search(state, key, flow, candidates)
        if rank == 0:
            raise Verdict("drop_reverse_conflict" if keeps_address(state, key, service) else "drop_snat_exhausted")
        flow.source, flow.source_port = best
        if rank < 3:
            evict(state, packet, flow.opposite(key.protocol))
        claim(state, key, flow)
    flow.state |= counted
    if is_new:
        limits.count_half_open(state, opening, flow)
        limits.change_load(state, flow, 1)
    embryonic = state.embryonic[len(key.source)]
    embryonic.put(key, flow)
    if is_new:
        count_connection(state, flow.farm, flow.backend)
        affinity.remember(state, key, flow.farm, flow.backend)
        limits.add_pressure(state, len(key.source))
    return embryonic.entries[key]


def claim(state: State, key: Key, forward: Flow) -> bool:
    """Make the reply entry. False: another connection has its key."""
    size, reply_key = len(key.source), forward.opposite(key.protocol)
    state.embryonic[size].evict(reply_key)  # the program tries to insert it
    found = find(state, reply_key)
    if not found:
        reply = Flow(key.destination, key.source, key.destination_port, key.source_port)
        reply.last_seen, reply.farm, reply.backend = state.tick, forward.farm, forward.backend
        reply.flags = forward.flags & ~FORWARD
        state.embryonic[size].put(reply_key, reply)
        return True
    if not found.answers(key):
        return False
    if is_closed(found.state):
        found.state = 0
    found.farm, found.backend = forward.farm, forward.backend
    state.copies.changed(reply_key)
    return True


def search(state: State, key: Key, flow: Flow, candidates: Iterator[tuple[bytes, int]]) -> tuple[tuple[bytes, int], int]:
    """The best source: a free one (3), one of a connection that has closed long ago (2), one that may end in need (1)."""
    best, best_rank = (b"", 0), 0
    size = len(key.source)
    for candidate in candidates:
        reply_key = Key(flow.destination, candidate[0], flow.destination_port, candidate[1], key.protocol)
        if holder := state.flows[size].get(reply_key):
            finished = holder.state & ENDS == ENDS
            rested = state.age(holder) >= PORT_REST_TICKS
            rank = 2 if finished and rested else 1 if is_closed(holder.state) else 0
        elif holder := state.embryonic[size].get(reply_key):
            rank = 1 if state.age(holder) >= EMBRYONIC_REST_TICKS else 0
        else:
            rank = 3
        if rank > best_rank:
            best, best_rank = candidate, rank
        if rank >= 2:
            break
    return best, best_rank


def evict(state: State, packet: Packet, reply_key: Key) -> None:
    """The connection that has this reply key ends."""
    reply = find(state, reply_key)
    if reply is None:
        return
    key = reply.opposite(reply_key.protocol)
    forward = find(state, key)
    if forward and forward.answers(reply_key):
        if not is_closed(forward.state):
            limits.change_load(state, forward, -1)
        if state.flows[len(key.source)].get(key):
            report(state, packet, EventType.REMOVED, key, forward)
        delete(state, key)
    delete(state, reply_key)


# --- what a packet says about its connection -----------------------------------------------------------------


def touch(state: State, packet: Packet, key: Key, flow: Flow) -> None:
    """last_seen, and the state bits of both entries."""
    before, tick = flow.last_seen, state.tick
    swapped = (key.source_port & 0xFF) << 8 | key.source_port >> 8
    phase = swapped >> 16 - REFRESH_SHIFT  # spreads the reports over time
    flow.last_seen = tick
    due = (before + phase & MASK) >> REFRESH_SHIFT != (tick + phase & MASK) >> REFRESH_SHIFT
    if packet.established and flow.flags & FORWARD and due:
        report(state, packet, EventType.REFRESH, key, flow)
    used = (before + phase & MASK) >> PERSISTENCE_USE_SHIFT != (tick + phase & MASK) >> PERSISTENCE_USE_SHIFT
    if packet.established and flow.flags & FORWARD and used:
        affinity.use(state, key, flow.farm, flow.backend)
    old, new = flow.state, next_state(packet, flow.state)
    flow.state = new
    answer = packet.protocol == UDP and not flow.flags & FORWARD
    if old == new or ((old ^ new) & ~SEEN == 0 and not answer):
        return
    other_key = flow.opposite(key.protocol)
    other = other_direction(state, flow, key.protocol)
    if other:
        other.state = other.state & ~(ENDS | RESET) | mirrored(new)
        state.copies.changed(other_key)
    state.copies.changed(key)
    if flow.flags & FORWARD:
        count_change(state, key.source, flow, old, new, answer)
    else:
        count_change(state, other_key.source, other, old, new, answer)
    if is_closed(old) == is_closed(new):
        return
    if packet.flags & SYN:
        count_connection(state, flow.farm, flow.backend)  # over the entries of a closed one
    kind = EventType.CLOSED if is_closed(new) else EventType.ESTABLISHED
    if packet.established and flow.flags & FORWARD:
        report(state, packet, kind, key, flow)
    elif packet.established and other:
        report(state, packet, kind, other_key, other)


def count_change(state: State, client: bytes, forward: Flow | None, old: int, new: int, is_answer: bool) -> None:
    """A connection has ended, goes on, or (UDP) has an answer: loads and half-open connections follow."""
    ends = is_closed(old) != is_closed(new)
    if forward is None or not (ends or is_answer):
        return
    if ends:
        limits.change_load(state, forward, -1 if is_closed(new) else 1)
    if is_closed(new) or is_answer:
        limits.leave_half_open(state, client, forward)


def next_state(packet: Packet, before: int) -> int:
    """FIN and RST are hints (RFC 5961): whoever sends on has not sent, or not accepted, them."""
    state = before | SEEN
    if packet.protocol != TCP:
        return state
    if packet.flags & RST:
        return state | RESET
    if packet.flags & SYN:
        half_closed = before & (SEEN | RESET | FIN_HERE) == SEEN  # by the other end at most: an old duplicate
        return state & ~(ENDS | RESET) if packet.flags & ACK and not half_closed else state
    state &= ~RESET
    if packet.flags & FIN:
        return state | FIN_HERE
    return state & ~FIN_HERE if segment_bytes(packet) else state


def mirrored(state: int) -> int:
    """The bits of the other direction's entry."""
    here = FIN_THERE if state & FIN_HERE else 0
    there = FIN_HERE if state & FIN_THERE else 0
    return state & RESET | here | there
