"""Connections as XDP writes them into the flow maps and the event rings of a fake plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bpf.constants import EventType, FlowFlag
from bpf.dataplane import Array
from tests.fakes.plane import FakePlane, event_dtype, flow_dtype, key_dtype

WIDTH = {"v4": 4, "v6": 16}


def address(family: str, number: int) -> np.void:
    return np.void(number.to_bytes(WIDTH[family], "big"))


def connections(family: str, numbers: list[int], last_seen: int = 900_000, state: int = 1) -> tuple[Array, Array, Array, Array]:
    """Both entries of SNAT connections, as XDP writes them on the active node: with MAC addresses and egress interface."""
    keys, replies = np.zeros(len(numbers), key_dtype(family)), np.zeros(len(numbers), key_dtype(family))
    forward, reply = np.zeros(len(numbers), flow_dtype(family)), np.zeros(len(numbers), flow_dtype(family))
    for row, number in enumerate(numbers):
        client, vip, backend, port = 0x0A000000 + number, 0xC0000201, 0x0B000000 + number % 7, 1024 + number % 60000
        ends = (client, vip, port, 80), (vip, backend, port, 8080)
        for table, (source, destination, source_port, destination_port) in zip((keys, forward), ends, strict=True):
            table[row]["source"], table[row]["destination"] = address(family, source), address(family, destination)
            table[row]["source_port"], table[row]["destination_port"] = source_port, destination_port
        for table, other in ((replies, forward), (reply, keys)):
            table[row]["source"], table[row]["destination"] = other[row]["destination"], other[row]["source"]
            table[row]["source_port"] = other[row]["destination_port"]
            table[row]["destination_port"] = other[row]["source_port"]
    for table in (keys, replies):
        table["protocol"] = 6
    for table in (forward, reply):
        table["last_seen"], table["state"], table["farm"], table["backend"] = last_seen, state, 3, 5
        table["interface"], table["next_hop_generation"], table["mtu"] = 7, 9, 1500
    forward["flags"] = FlowFlag.FORWARD
    return keys, forward, replies, reply


def put(plane: FakePlane, family: str, event: EventType | None, rows: tuple[Array, Array, Array, Array]) -> None:
    """Write the flows as XDP does and, unless the event is None, a record to the ring."""
    keys, forward, reply_keys, reply = rows
    plane.update_flows(family, reply_keys, reply)
    plane.update_flows(family, keys, forward)
    if event is not None:
        records = np.zeros(len(keys), event_dtype(family))
        records["key"], records["flow"], records["type"] = keys, forward, event
        plane.rings[family].put(records)


def fill(plane: FakePlane, family: str, numbers: Sequence[int]) -> None:
    """Connections that exist already."""
    put(plane, family, None, connections(family, list(numbers)))


def report_established(plane: FakePlane, family: str, numbers: Sequence[int]) -> None:
    """Connections that are established now: the ring reports them."""
    put(plane, family, EventType.ESTABLISHED, connections(family, list(numbers)))
