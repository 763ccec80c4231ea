"""The copies that the program has of established flows: a packet that finds a usable one changes nothing in its flow.

Only when the flow is written, and reported, depends on them. See bpf/program/recent.family.h.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from bpf.constants import CHANGE_NUMBERS, RECENT_TICKS
from tests.model.bits import FIN_HERE, RESET, SEEN, TOA
from tests.model.packet import FIN, RST, Packet
from tests.model.state import Flow, Key, State

FACTOR = 0x9E3779B97F4A7C15
MASK = 0xFFFFFFFFFFFFFFFF


class Copy(NamedTuple):
    """Of a flow: its key, the number of changes of flows with its hash, and what decides whether it may be used."""

    key: Key
    number: int
    last_seen: int
    generation: int
    mtu: int


@dataclass(slots=True)
class Copies:
    """parts: one for each CPU. shift: of the copies in a part, the binary logarithm."""

    parts: int = 1
    shift: int = 6
    copies: dict[tuple[int, int, int], Copy] = field(default_factory=dict)
    changes: Counter[int] = field(default_factory=Counter)

    def changed(self, key: Key) -> None:
        """The flow with this key."""
        self.changes[place_hash(key) >> 32 & CHANGE_NUMBERS - 1] += 1

    def number(self, key: Key) -> int:
        return self.changes[place_hash(key) >> 32 & CHANGE_NUMBERS - 1]

    def is_usable(self, state: State, packet: Packet) -> bool:
        """Does the packet use a copy?"""
        found = self.copies.get(self._place(state, packet.key))
        return (
            found is not None
            and (found.key, found.number, found.generation) == (packet.key, self.number(packet.key), state.generation)
            and state.age(found) < RECENT_TICKS
            and packet.ip_bytes <= found.mtu
            and not packet.flags & (FIN | RST)
        )

    def keep(self, state: State, key: Key, number: int, flow: Flow) -> None:
        """A packet of the flow was forwarded."""
        place = self._place(state, key)
        other = self.copies.get(place)
        if other and (other.key[0], other.key[2:4]) != (key[0], key[2:4]) and state.age(other) < RECENT_TICKS:
            return
        if flow.state & (SEEN | RESET | FIN_HERE) == SEEN and not flow.flags & TOA:
            self.copies[place] = Copy(key, number, flow.last_seen, flow.generation, flow.mtu)

    def _place(self, state: State, key: Key) -> tuple[int, int, int]:
        return len(key.source), state.cpu & self.parts - 1, place_hash(key) >> 64 - self.shift


def place_hash(key: Key) -> int:
    source, destination = (struct.unpack(f"<{len(each) // 4}I", each) for each in (key.source, key.destination))
    ports = int.from_bytes(struct.pack(">HH", key.source_port, key.destination_port), "little")
    value: int = source[-1] << 32 | ports
    for other, word in zip((*source[:-1], 0), destination, strict=True):
        value = (value ^ (other << 32 | word)) * FACTOR & MASK
        value ^= value >> 32
    return value * FACTOR & MASK
