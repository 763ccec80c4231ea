"""The data plane's hashes and SNAT port sequence in Python, for `conn show`; equal to bpf/program/select.h and select.family.h.

Decides numbers only. Must not know the maps. A test compares it with the kernel program. The words of an address are hashed
in memory order, therefore the little-endian reads (xlb supports little-endian machines only, see bpf/loading/headers.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from bpf.columns import address_bytes
from bpf.constants import FIRST_SNAT_PORT, FIXED_SNAT_CANDIDATES, MAX_QUIC_ID_BYTES, PRIVILEGED_SNAT_PORTS
from bpf.dataplane import FlowTuple

_MASK = 0xFFFFFFFF
_GOLDEN_RATIO = 0x9E3779B9


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK


def _mix(value: int, word: int) -> int:
    word = _rotate(word * 0xCC9E2D51 & _MASK, 15)
    value = _rotate(value ^ word * 0x1B873593 & _MASK, 13)
    return (value * 5 + 0xE6546B64) & _MASK


def _finish(value: int) -> int:
    value ^= value >> 16
    value = value * 0x85EBCA6B & _MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & _MASK
    return value ^ value >> 16


def _mix_address(value: int, address: str) -> int:
    packed = address_bytes(address)
    for word in struct.unpack(f"<{len(packed) // 4}I", packed):
        value = _mix(value, word)
    return value


def flow_hash(flow: FlowTuple, seed: int) -> int:
    """32 bits from the tuple a client's packet arrives with. Slot of a `maglev` farm: this modulo the slot count."""
    value = _mix_address(_mix_address(seed, flow.source), flow.destination)
    value = _mix(value, flow.source_port << 16 | flow.destination_port)
    return _finish(_mix(value, flow.protocol))


def client_hash(address: str, seed: int) -> int:
    """32 bits from the client's address alone. Slot of a `source` farm: this modulo the slot count."""
    return _finish(_mix_address(seed, address))


def quic_hash(prefix: bytes, seed: int) -> int:
    """32 bits from the first bytes of a QUIC connection id. Slot with quic_cid "prefix:N": this modulo the slot count."""
    value = seed
    for word in struct.unpack(f"<{MAX_QUIC_ID_BYTES // 4}I", prefix.ljust(MAX_QUIC_ID_BYTES, b"\0")):
        value = _mix(value, word)
    return _finish(value)


def snat_sources(client_port: int, hash_of_flow: int, addresses: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Source addresses and ports towards the backend in the order the data plane tries them: the first free one wins.

    The client's own port, then ports of its parity, privileged ones if its own is (RFC 4787 REQ-3a, REQ-4). The data plane
    tries more, which depend on the time: MAX_SNAT_CANDIDATES in all, and for a privileged port every privileged one.
    """
    if client_port:
        yield _spread_address(hash_of_flow, addresses), client_port
    for attempt in range(1, FIXED_SNAT_CANDIDATES):
        spread = _finish(hash_of_flow + attempt * _GOLDEN_RATIO & _MASK)
        yield _spread_address(spread, addresses), _attempt_port(client_port, hash_of_flow, spread, attempt)


def _attempt_port(client_port: int, hash_of_flow: int, spread: int, attempt: int) -> int:
    """The port of one of the first attempts, which keep parity and range."""
    half = (65536 - FIRST_SNAT_PORT) // 2
    if 0 < client_port < FIRST_SNAT_PORT:
        index = (hash_of_flow + attempt & _MASK) % (PRIVILEGED_SNAT_PORTS // 2)
        return FIRST_SNAT_PORT - PRIVILEGED_SNAT_PORTS + 2 * index + client_port % 2
    return FIRST_SNAT_PORT + 2 * (spread * half >> 32) + client_port % 2


def _spread_address(spread: int, addresses: Sequence[str]) -> str:
    return addresses[(spread << 16 & _MASK) * len(addresses) >> 32]


def snat_candidates(client_port: int, hash_of_flow: int) -> Iterator[int]:
    """The ports of `snat_sources`, of a farm with one address."""
    return (port for _, port in snat_sources(client_port, hash_of_flow, ("",)))
