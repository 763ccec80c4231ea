"""Writes the peer's flows into this node's maps, and removes the flows that the peer does not have.

Decides nothing about streams: the engine passes what to write. No Python per flow.

How the end of a snapshot finds stale entries without a list of a million keys: every entry written here carries the mark
of the stream in `interface`. That field means nothing to the program while `next_hop_generation` is 0, as it is in every
entry from the peer; the first packet fills both in. Marks are no interface's number, so what has not the
mark was not named since the stream began.

What the program cannot read is held back (`ctl.cluster.flows.held`). Nothing of the same connection stays in the maps then: the
program would go by it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bpf.constants import TICK_SHIFT
from bpf.dataplane import Array
from ctl.cluster.flows.held import HeldFlows
from ctl.cluster.flows.source import FAMILIES, ReplicatedPlane
from sync.flows.codec import FlowCodec, Flows

SWEEP_ENTRIES = 4096
_FIRST_MARK = 1 << 31
"""Interfaces are numbered by positive 32-bit integers."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ReplicaCounts:
    """What was done to the maps since the start."""

    applied_records: int = 0
    unwritten_records: int = 0
    swept_entries: int = 0


class ReplicaMaps:
    """One per plane; used by one thread.

    unreadable: flags of entries that the program would misread at this moment (`ctl.dataplane.features`).
    """

    def __init__(self, plane: ReplicatedPlane, codec: FlowCodec, unreadable: Callable[[], int] = lambda: 0) -> None:
        self._plane, self._codec, self._unreadable = plane, codec, unreadable
        self.held = HeldFlows()
        # The marks of an earlier incarnation must not pass for ours.
        self._mark = _FIRST_MARK + secrets.randbelow(_FIRST_MARK)
        self.counts = ReplicaCounts()

    def begin_mark(self) -> None:
        """A snapshot begins: what is written from now on is named."""
        self._mark = _FIRST_MARK + (self._mark + 1) % _FIRST_MARK

    def apply(self, family: str, count: int, payload: bytes, offset_ns: int) -> None:
        """Write all records in order. offset_ns: what to add to the peer's clock to get ours."""
        for removal, flows in self._codec.decode(family, count, payload):
            if removal:
                self.held.remove(family, flows.keys, flows.forward)
                self._remove(family, flows)
            else:
                self._write(family, self._localised(flows, offset_ns))
        self.counts.applied_records += count

    def apply_absent(self, family: str, count: int, payload: bytes, offset_ns: int) -> list[tuple[Array, Array]]:
        """Write only connections the maps do not have; returns their forward entries."""
        added = []
        for removal, flows in self._codec.decode(family, count, payload):
            if removal:
                continue
            found, _ = self._plane.lookup_flows("flows", family, flows.keys)
            absent = self._write(family, self._localised(flows.chosen(np.flatnonzero(~found)), offset_ns))
            if len(absent.keys):
                added.append((absent.keys, absent.forward))
                self.counts.applied_records += len(absent.keys)
        return added

    def release(self) -> list[tuple[str, Array, Array]]:
        """Write what was held back and the program can read now; returns the forward entries, by family.

        A connection that has an entry by now keeps it.
        """
        if not self.held.count:
            return []
        lost, added = self.held.lost, []
        for family, keys, values in self.held.take(self._unreadable()):
            for at in range(0, len(keys), SWEEP_ENTRIES):
                part = slice(at, at + SWEEP_ENTRIES)
                found, _ = self._plane.lookup_flows("flows", family, keys[part])
                written = keys[part][~found], values[part][~found]
                self.counts.unwritten_records += len(written[0]) - self._put(family, *written)
                added.append((family, *written))
        if added:
            count = sum(len(keys) for _, keys, _ in added)
            log.info("flows that were held back are in the maps: %d; %d more were too many", count, lost)
        return added

    def sweep(self) -> Iterator[None]:
        """Delete what has not been named since `begin_mark`; one step per slice."""
        self.held.keep_named(self._mark)
        for family in FAMILIES:
            for keys, values in self._plane.flow_batches("flows", family, SWEEP_ENTRIES):
                unnamed = values["interface"] != self._mark
                if unnamed.any():
                    self.counts.swept_entries += self._plane.delete_flows("flows", family, keys[unnamed])
                yield

    def _localised(self, flows: Flows, offset_ns: int) -> Flows:
        """With our clock's ticks and the mark."""
        shift = np.uint32((offset_ns >> TICK_SHIFT) & 0xFFFFFFFF)
        for values in (flows.forward, flows.reply):
            values["last_seen"] += shift
            values["interface"] = self._mark
        return flows

    def _write(self, family: str, flows: Flows) -> Flows:
        """The entries of each connection; when the map is full, none of a new one. Returns what was not held back."""
        if (foreign := (flows.forward["flags"] & self._unreadable()) != 0).any():
            self._hold(family, flows.chosen(foreign))
            flows = flows.chosen(~foreign)
        self._write_readable(family, flows)
        return flows

    def _hold(self, family: str, flows: Flows) -> None:
        if not self.held.count:
            log.warning("flows are held back until the program is compiled for their mode: %d at first", len(flows.keys))
        self._remove(family, flows)
        self.held.put(family, flows.keys, flows.forward)

    def _write_readable(self, family: str, flows: Flows) -> None:
        if flows.one_way.any():
            alone, flows = flows.chosen(flows.one_way), flows.chosen(~flows.one_way)
            self.counts.unwritten_records += len(alone.keys) - self._put(family, alone.keys, alone.forward)
        count = len(flows.keys)
        replies = self._put(family, flows.reply_keys, flows.reply)
        forward = self._put(family, flows.keys, flows.forward)
        written = min(replies, forward)
        if written < count:
            self._remove_halves(family, flows.chosen(np.arange(written, count)))
            self.counts.unwritten_records += count - written

    def _put(self, family: str, keys: Array, values: Array) -> int:
        """How many rows were written. The kernel's memory for entries may run out for a moment: only two refusals mean full."""
        written = refusals = 0
        while written < len(keys) and refusals < 2:
            more = self._plane.update_flows(family, keys[written:], values[written:])
            written += more
            refusals = 0 if more else refusals + 1
        return written

    def _remove_halves(self, family: str, flows: Flows) -> None:
        plane = self._plane
        has_forward, _ = plane.lookup_flows("flows", family, flows.keys)
        has_reply, _ = plane.lookup_flows("flows", family, flows.reply_keys)
        for keys in (flows.keys[has_forward & ~has_reply], flows.reply_keys[has_reply & ~has_forward]):
            if len(keys):
                plane.delete_flows("flows", family, keys)

    def _remove(self, family: str, flows: Flows) -> None:
        found, values = self._plane.lookup_flows("flows", family, flows.keys)
        keys = flows.keys[found]
        if len(keys):
            self._plane.delete_flows("flows", family, keys)
            reply_keys = self._codec.reply_keys(keys, values[found])
            if len(reply_keys):
                self._plane.delete_flows("flows", family, reply_keys)
