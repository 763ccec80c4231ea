"""Questions about the kernel's flow tables: which entries belong to a selection, and reading, counting or removing those.

The control plane's flow codec: with `ctl.dataplane.expiry` the only file of `ctl` that touches table columns. Everything here
blocks for as long as the tables are big and belongs into a thread; slices keep each hold of the interpreter short.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from bpf import constants
from bpf.columns import decode_flows, family_of
from bpf.dataplane import Array, DataPlane, FlowEntry, FlowTuple
from ctl.dataplane.flow_selection import FlowSelection

FAMILIES = ("v4", "v6")
TABLES = ("flows", "embryonic")
SLICE_ENTRIES = 4096
MANY_DELETED = 1024
REST_PER_DELETED_S = 1e-6


def remove(plane: DataPlane, selection: FlowSelection, told: Callable[[str, Array], None] = lambda family, keys: None) -> int:
    """Delete both directions of every selected connection; returns how many entries that were.

    told(family, keys): called with the forward keys of the lasting ones among them, once they are deleted.
    """
    removed = 0
    for table, family, keys, values in slices(plane):
        chosen = selection.matches(keys, values)
        if chosen.any():
            deleted = plane.delete_flows(table, family, keys[chosen])
            removed += deleted
            rest_after(deleted)
            if table == "flows" and (forward := chosen & _forward(values)).any():
                told(family, keys[forward])
    return removed


def rest_after(deleted: int) -> None:
    """Call between slices. The kernel frees all that was deleted some 20 ms later at once, and runs nothing else on that
    processor meanwhile: a million in a row held up a real-time thread for 70 ms, with these rests for 20.
    """
    if deleted >= MANY_DELETED:
        time.sleep(REST_PER_DELETED_S * deleted)


def count(plane: DataPlane, selection: FlowSelection) -> int:
    """Connections, i.e. forward entries."""
    return sum(
        int(np.count_nonzero(_forward(values) & selection.matches(keys, values))) for _, _, keys, values in slices(plane)
    )


def collect(plane: DataPlane, selection: FlowSelection, limit: int) -> tuple[list[FlowEntry], int]:
    """At most `limit` connections, and how many there are."""
    entries: list[FlowEntry] = []
    total = 0
    for table, _, keys, values in slices(plane):
        rows = np.flatnonzero(_forward(values) & selection.matches(keys, values))
        total += len(rows)
        wanted = rows[: limit - len(entries)]
        if len(wanted):
            entries += decode_flows(table, keys[wanted], values[wanted])
    return entries, total


def find(plane: DataPlane, arriving: FlowTuple) -> FlowEntry | None:
    """The entry a packet with this tuple would hit."""
    family = family_of(arriving.source)
    for table in TABLES:
        keys = plane.encode_flow_keys(family, [arriving])
        found, values = plane.lookup_flows(table, family, keys)
        if found[0]:
            return decode_flows(table, keys, values)[0]
    return None


def _forward(values: Array) -> Array:
    chosen: Array = (values["flags"] & int(constants.FlowFlag.FORWARD)) != 0
    return chosen


def slices(plane: DataPlane) -> Iterator[tuple[str, str, Array, Array]]:
    """(table, family, keys, values) of every flow table, in slices."""
    for table in TABLES:
        for family in FAMILIES:
            for keys, values in plane.flow_slices(table, family, SLICE_ENTRIES):
                yield table, family, keys, values
