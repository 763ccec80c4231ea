"""Which backend a client keeps: by its address, or by the connection id of a QUIC packet (RFC 8999).

docs/DATAPLANE.md, *Clients that keep their backend*.
"""

from __future__ import annotations

import struct

from bpf.constants import MAX_QUIC_ID_BYTES, PERSISTENCE_SLACK_SHIFT, Mode, Quic
from bpf.dataplane import PutAffinity, ServiceValue
from tests.model.bits import PERSISTENCE_RETURNS
from tests.model.hashing import avalanche, mix
from tests.model.packet import UDP, Packet
from tests.model.state import Key, Persistent, State


def affine_backend(state: State, packet: Packet, key: Key, service: ServiceValue) -> int:
    """The id of the backend that a new connection must have; 0: the scheduler chooses."""
    settings = state.affinity.get(service.farm)
    if settings is None:
        return 0
    named = quic_backend(state, packet, service, settings)
    return named if reaches(state, key, service, named) else persistent_backend(state, key, service, settings)


def reaches(state: State, key: Key, service: ServiceValue, number: int) -> bool:
    """Only mode ipip crosses address families; a farm may have backends of both."""
    backend = state.backends.get(number)
    return backend is not None and (service.mode == Mode.IPIP or len(backend.address) == len(key.source))


def is_open(state: State, farm: int, backend: int) -> bool:
    """May it take new connections of this farm?"""
    return state.backend_affinity.get(backend) == (farm, True)


# --- persistence ---------------------------------------------------------------------------------------------


def client(key: Key, settings: PutAffinity) -> tuple[bytes, int]:
    """The prefix and the farm."""
    size = len(key.source)
    unused = 8 * size - (settings.prefix_v4 if size == 4 else settings.prefix_v6)
    return (int.from_bytes(key.source) >> unused << unused).to_bytes(size), settings.id


def live(state: State, key: Key, settings: PutAffinity) -> Persistent | None:
    """The client's entry, unless its time has passed."""
    entry = state.persistent.get(client(key, settings))
    if entry is None:
        return None
    age = state.tick - entry.last_used & 0xFFFFFFFF
    limit = settings.persistence_ticks + (settings.persistence_ticks >> PERSISTENCE_SLACK_SHIFT)
    return entry if age <= limit or age >> 31 else None


def persistent_backend(state: State, key: Key, service: ServiceValue, settings: PutAffinity) -> int:
    entry = live(state, key, settings) if settings.persistence_ticks else None
    if entry is None:
        return 0
    usable = (each for each in (entry.home, entry.backend) if is_open(state, settings.id, each))
    return next((each for each in usable if reaches(state, key, service, each)), 0)


def refresh(state: State, entry: Persistent, settings: PutAffinity) -> None:
    """Written when a sixteenth of the time has passed."""
    age = state.tick - entry.last_used & 0xFFFFFFFF
    if age >> 31 or age > settings.persistence_ticks >> PERSISTENCE_SLACK_SHIFT:
        entry.last_used = state.tick


def remember(state: State, key: Key, farm: int, backend: int) -> None:
    """The client has a new connection with this backend."""
    settings = state.affinity.get(farm)
    if settings is None or not settings.persistence_ticks:
        return
    entry = live(state, key, settings)
    if entry is None:
        state.persistent[client(key, settings)] = Persistent(backend, backend, state.tick)
        return
    returns = settings.flags & PERSISTENCE_RETURNS and state.backend_affinity.get(entry.home, (0, False))[0] == farm
    if not returns:
        entry.home = backend
    if entry.backend != backend:
        entry.last_used = state.tick
    entry.backend = backend
    refresh(state, entry, settings)


def use(state: State, key: Key, farm: int, backend: int) -> None:
    """A connection of the client lives. An entry that was lost is made again."""
    settings = state.affinity.get(farm)
    if settings is None or not settings.persistence_ticks:
        return
    entry = live(state, key, settings)
    if entry:
        refresh(state, entry, settings)
    elif is_open(state, farm, backend):
        state.persistent[client(key, settings)] = Persistent(backend, backend, state.tick)


# --- QUIC ----------------------------------------------------------------------------------------------------


def quic_backend(state: State, packet: Packet, service: ServiceValue, settings: PutAffinity) -> int:
    scheme, offset, length = settings.quic
    found = connection_id(packet, offset, length) if packet.protocol == UDP and scheme else None
    if found is None:
        return 0
    if scheme == Quic.SERVER_ID:
        named = state.quic_servers.get((settings.id, found), 0)
        return named if named and not state.unavailable(named) else 0
    value = state.seed
    for word in struct.unpack(f"<{MAX_QUIC_ID_BYTES // 4}I", found.ljust(MAX_QUIC_ID_BYTES, b"\0")):
        value = mix(value, word)
    return state.slots.get(service.slot_offset + avalanche(value) % service.slot_count, 0) if service.slot_count else 0


def connection_id(packet: Packet, offset: int, length: int) -> bytes | None:
    """These bytes of the destination connection id. A short header does not say how long it is."""
    at = packet.transport + 8
    end = min(packet.transport + packet.word(packet.transport + 4), packet.size)
    datagram = bytes(packet.frame[at:end])
    if len(datagram) < 6:
        return None
    if datagram[0] & 0x80:
        if datagram[5] < offset + length or datagram[1:5] == bytes(4):  # version 0: a negotiation, which clients do not send
            return None
        offset += 6
    else:
        offset += 1
    found = datagram[offset : offset + length]
    return found if len(found) == length else None
