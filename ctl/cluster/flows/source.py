"""What this node replicates: changes from the kernel's ring buffers, and the flow maps part by part.

The rings' only reader. Must not know streams, acknowledgements or when to look. No Python per flow; every call returns
within a few milliseconds, except `discard` and `read_everything` after a long silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpf.constants import ABI_VERSION, FlowFlag, FlowState
from bpf.dataplane import Array, DataPlane
from sync.flows.codec import PRESENT, REMOVED, FlowBits, FlowCodec

FAMILIES = ("v4", "v6")
BLOCK_RECORDS = 4096
"""Most records of one block."""

_RING_FULL = "event_ring_full"


class EventReader(Protocol):
    """One ring: `bpf.maps.event_ring.FlowEvents`, or the tests' fake."""

    def backlog(self) -> int: ...
    def read(self, limit: int) -> Array: ...
    def close(self) -> None: ...


class ReplicatedPlane(DataPlane, Protocol):
    """A data plane whose program reports flow changes."""

    def flow_events(self, family: str) -> EventReader | None: ...
    def flow_dtypes(self, family: str) -> tuple[np.dtype[Any], np.dtype[Any]]: ...


def make_codec(plane: ReplicatedPlane) -> FlowCodec:
    """The codec for the layouts of this plane's maps."""
    bits = FlowBits(
        forward_flag=int(FlowFlag.FORWARD),
        seen=int(FlowState.SEEN),
        fin_here=int(FlowState.FIN_HERE),
        fin_there=int(FlowState.FIN_THERE),
        reset=int(FlowState.RST),
        replicated=int(FlowState.REPLICATED),
    )
    dtypes = {family: plane.flow_dtypes(family) for family in FAMILIES}
    return FlowCodec(dtypes, bits, ABI_VERSION, int(FlowFlag.DSR | FlowFlag.IPIP))


@dataclass(frozen=True, slots=True)
class Records:
    """Encoded records of one family."""

    family: str
    count: int
    payload: bytes


class FlowSource:
    """Make one per plane; `close` ends the rings' mappings."""

    def __init__(self, plane: ReplicatedPlane, codec: FlowCodec) -> None:
        self._plane, self._codec = plane, codec
        rings = {family: plane.flow_events(family) for family in FAMILIES}
        self._rings = {family: ring for family, ring in rings.items() if ring is not None}
        self._lost_before = 0
        self._slices: Iterator[tuple[str, Array, Array]] | None = None

    def close(self) -> None:
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()

    # --- changes ---------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Forget what waits in the rings: a snapshot that is read from now on has it all."""
        for ring in self._rings.values():
            for _ in range(0, ring.backlog(), BLOCK_RECORDS):
                ring.read(BLOCK_RECORDS)
        self._lost_before = self._lost_count()

    def backlog(self) -> int:
        """Records that wait."""
        return sum(ring.backlog() for ring in self._rings.values())

    def read(self) -> list[Records]:
        """Up to one block per family."""
        found = []
        for family, ring in self._rings.items():
            if ring.backlog():
                events = ring.read(BLOCK_RECORDS)
                if len(events):
                    payload = self._codec.encode(family, events["key"], events["flow"], events["type"])
                    found.append(Records(family, len(events), payload))
        return found

    def read_everything(self) -> Iterator[Records]:
        """What waits now, however much it is."""
        for _ in range(0, self.backlog() + 1, BLOCK_RECORDS):
            yield from self.read()

    def lost(self) -> int:
        """Changes the kernel could not report since `discard` or the last call."""
        count = self._lost_count()
        lost, self._lost_before = count - self._lost_before, count
        return lost

    def _lost_count(self) -> int:
        return self._plane.counters()[_RING_FULL][0]

    # --- what is in the maps --------------------------------------------------------------------------------

    def read_part(self, first: bool) -> tuple[Records, bool]:
        """The next part of the maps, and whether it was the last. `first`: restart."""
        if first or self._slices is None:
            self._slices = self._forward_parts()
        found = next(self._slices, None)
        if found is None:
            self._slices = None
            return Records(FAMILIES[0], 0, b""), True
        family, keys, values = found
        return self.entries(family, keys, values), False

    def _forward_parts(self) -> Iterator[tuple[str, Array, Array]]:
        for family in FAMILIES:
            for keys, values in self._plane.flow_batches("flows", family, BLOCK_RECORDS):
                forward = (values["flags"] & int(FlowFlag.FORWARD)) != 0
                yield family, keys[forward], values[forward]

    def entries(self, family: str, keys: Array, values: Array) -> Records:
        """Forward entries as they are in the map."""
        return Records(family, len(keys), self._codec.encode(family, keys, values, PRESENT))

    def removals(self, family: str, keys: Array) -> Records | None:
        """Forward entries that were deleted on purpose; those that came back since are left out."""
        found, values = self._plane.lookup_flows("flows", family, keys)
        gone = keys[~found]
        if not len(gone):
            return None
        return Records(family, len(gone), self._codec.encode(family, gone, values[~found], REMOVED))
