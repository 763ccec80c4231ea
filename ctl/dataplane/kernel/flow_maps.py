"""Reads, counts and deletes entries of the kernel's flow maps that match a selection.

Only this module and `ctl.dataplane.expiry` access the columns of flow maps in `ctl`. All functions block for a time that grows
with the maps: call them in a thread. They read in batches, so that they hold the interpreter lock only for short times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from bpf import constants
from bpf.columns import decode_flows, family_of
from bpf.dataplane import Array, DataPlane, FlowEntry, FlowTuple
from ctl.dataplane.expiry import is_current
from ctl.dataplane.flow_selection import FlowSelection

FAMILIES = ("v4", "v6")
TABLES = ("flows", "embryonic")
SLICE_ENTRIES = 4096
MANY_DELETED = 1024
REST_PER_DELETED_S = 1e-6


def remove(plane: DataPlane, selection: FlowSelection, report: Callable[[str, Array], None] = lambda family, keys: None) -> int:
    """Delete both directions of every selected connection; returns the number of entries.

    report(family, keys): called with the forward keys of the deleted established connections.
    """
    removed = 0
    for table, family, keys, values in slices(plane):
        chosen = selection.matches(keys, values)
        if chosen.any():
            deleted = plane.delete_flows(table, family, keys[chosen])
            removed += deleted
            rest_after(deleted)
            if table == "flows" and (forward := chosen & is_forward(values)).any():
                report(family, keys[forward])
    return removed


def rest_after(deleted: int) -> None:
    """Sleep between batches. The kernel frees deleted entries together some 20 ms later, and runs nothing else on that
    processor in that time: a million deletions delayed a real-time thread by 70 ms, with these pauses by 20 ms.
    """
    if deleted >= MANY_DELETED:
        time.sleep(REST_PER_DELETED_S * deleted)


def count(plane: DataPlane, selection: FlowSelection, current: bool = False) -> int:
    """Connections, i.e. forward entries. current: without those that have ended."""
    chosen = is_current if current else is_forward
    return sum(int(np.count_nonzero(chosen(values) & selection.matches(keys, values))) for _, _, keys, values in slices(plane))


def count_by_backend(plane: DataPlane) -> dict[tuple[int, int], int]:
    """Connections by farm and backend id."""
    found: dict[tuple[int, int], int] = {}
    for _, _, _, values in slices(plane):
        forward = values[is_forward(values)]
        codes, counts = np.unique(forward["farm"].astype(np.uint64) << 32 | forward["backend"], return_counts=True)
        for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
            key = (code >> 32, code & 0xFFFFFFFF)
            found[key] = found.get(key, 0) + number
    return found


def collect(plane: DataPlane, selection: FlowSelection, limit: int) -> tuple[list[FlowEntry], int]:
    """At most `limit` connections, and their total number."""
    entries: list[FlowEntry] = []
    total = 0
    for table, _, keys, values in slices(plane):
        rows = np.flatnonzero(is_forward(values) & selection.matches(keys, values))
        total += len(rows)
        wanted = rows[: limit - len(entries)]
        if len(wanted):
            entries += decode_flows(table, keys[wanted], values[wanted])
    return entries, total


def find(plane: DataPlane, arriving: FlowTuple) -> FlowEntry | None:
    """The entry that matches a packet with this tuple."""
    family = family_of(arriving.source)
    for table in TABLES:
        keys = plane.encode_flow_keys(family, [arriving])
        found, values = plane.lookup_flows(table, family, keys)
        if found[0]:
            return decode_flows(table, keys, values)[0]
    return None


def is_forward(values: Array) -> Array:
    """Entries of the direction from client to backend."""
    chosen: Array = (values["flags"] & int(constants.FlowFlag.FORWARD)) != 0
    return chosen


def slices(plane: DataPlane) -> Iterator[tuple[str, str, Array, Array]]:
    """(map name, family, keys, values) of every flow map, in batches."""
    for table in TABLES:
        for family in FAMILIES:
            for keys, values in plane.flow_batches(table, family, SLICE_ENTRIES):
                yield table, family, keys, values
