"""Keys and flows of the model as the bytes of the maps (bpf/program/abi.family.h), and back."""

from __future__ import annotations

import struct
from typing import Any

from tests.model.bits import OTHER_FAMILY
from tests.model.packet import difference, folded
from tests.model.state import Flow, Key

KEYS = {4: struct.Struct(">4s4sHHB3x"), 16: struct.Struct(">16s16sHHB3x")}
FLOWS = {4: struct.Struct("<4s4s2s2sHH6s6sIIIHBBHH"), 16: struct.Struct("<16s16s2s2sHH6s6sIIIHBBHH")}


def encode_key(key: Key) -> bytes:
    return KEYS[len(key.source)].pack(*key)


def decode_key(raw: bytes) -> Key:
    return Key(*KEYS[4 if len(raw) == 16 else 16].unpack(raw))


def row_of(flow: Flow) -> tuple[object, ...]:
    """What of a flow entry is compared: all but the checksum deltas, which show in the frames."""
    size = len(flow.source)
    front = flow.source + flow.destination + flow.source_port.to_bytes(2) + flow.destination_port.to_bytes(2)
    if flow.flags & OTHER_FAMILY:  # an IPv6 address takes the place of all that, and of the deltas
        front = flow.destination[:12] if size == 4 else flow.source + flow.destination + bytes(12) + front[20:]
    return (
        *(front[:size], front[size : 2 * size], front[2 * size : 2 * size + 2], front[2 * size + 2 :]),
        *(flow.destination_mac, flow.source_mac, flow.interface, flow.generation, flow.last_seen),
        *(flow.farm, flow.flags, flow.state, flow.backend, flow.mtu),
    )


def decode_row(raw: bytes) -> tuple[Any, ...]:
    fields = FLOWS[4 if len(raw) == 48 else 16].unpack(raw)
    return fields[:4] + fields[6:]


def encode_flow(key: Key, flow: Flow) -> bytes:
    """With its checksum deltas: one's complement sums in the machine's byte order."""
    addresses = difference(key.source + key.destination, flow.source + flow.destination)
    ports_before, ports_after = (each.source_port.to_bytes(2) + each.destination_port.to_bytes(2) for each in (key, flow))
    of_transport = folded(addresses + difference(ports_before, ports_after))
    of_header = folded(addresses + 0xFEFF) if len(key.source) == 4 else 0
    deltas = (of_header.to_bytes(2), of_transport.to_bytes(2))
    row = row_of(flow)
    numbers = (int.from_bytes(each, "little") for each in deltas)
    return FLOWS[len(key.source)].pack(*row[:4], *numbers, *row[4:])
