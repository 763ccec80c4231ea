"""Flows as the bytes of a block, and both map entries of a connection from the one that is replicated.

Decides what of a flow is replicated: everything but what only its own node can know (MACs, egress interface, MTU). Must not
know sockets, maps or clocks; the caller, which knows the kernel's layouts, passes the columns and the meaning of the bits. A
block holds the forward entry of each connection; the entry of the other direction follows from it, as in
`bpf/program/flow.family.h`. A connection that is one way has none.

Columns are numpy structured arrays. No Python per flow.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sync.errors import WireError

Array = NDArray[Any]

VERSION = 1
PRESENT, REMOVED = 0, 255
"""Record types: an entry as it is in the map; one that was removed on purpose. The kernel's event types have values between
them and mean the same as PRESENT: the record is the entry after the event."""

LOCAL_FIELDS = frozenset({"destination_mac", "source_mac", "interface", "next_hop_generation", "mtu", "zero"})
_ONE_HOP = int.from_bytes(b"\x01\x00", sys.byteorder)  # the hop limit is the high byte of its 16-bit word
_HOP_DELTA = {"v4": ~_ONE_HOP & 0xFFFF, "v6": None}


@dataclass(frozen=True, slots=True)
class FlowBits:
    """What the kernel's numbers mean: a flag and the state bits."""

    forward_flag: int
    seen: int
    fin_here: int
    fin_there: int
    reset: int
    replicated: int


@dataclass(frozen=True, slots=True, eq=False)
class Flows:
    """Connections as table rows: both entries of each. one_way: rows of which `reply_keys` and `reply` mean nothing."""

    keys: Array
    forward: Array
    reply_keys: Array
    reply: Array
    one_way: Array

    def chosen(self, rows: Array) -> Flows:
        """Only these rows."""
        return Flows(self.keys[rows], self.forward[rows], self.reply_keys[rows], self.reply[rows], self.one_way[rows])


@dataclass(frozen=True, slots=True)
class _Columns:
    key: np.dtype[Any]
    flow: np.dtype[Any]
    record: np.dtype[Any]
    key_names: tuple[str, ...]
    flow_names: tuple[str, ...]

    @staticmethod
    def of(key: np.dtype[Any], flow: np.dtype[Any]) -> _Columns:
        key_names = tuple(name for name in key.names or () if name not in LOCAL_FIELDS)
        flow_names = tuple(name for name in flow.names or () if name not in LOCAL_FIELDS)
        fields: list[Any] = [("key_" + name, key[name]) for name in key_names]
        fields += [(name, flow[name]) for name in flow_names]
        return _Columns(key, flow, np.dtype([*fields, ("type", "u1")]), key_names, flow_names)


class FlowCodec:
    """Knows the columns of both families."""

    def __init__(
        self, dtypes: Mapping[str, tuple[np.dtype[Any], np.dtype[Any]]], bits: FlowBits, abi: int, one_way_flags: int = 0
    ) -> None:
        """dtypes: of keys and values of the flow table, by "v4" and "v6"; abi: version of what the values mean.

        one_way_flags: those of connections that have a forward entry only. They do not change the layout, so that a peer that
        does not know them has the others.
        """
        self._bits = bits
        self._one_way_flags = one_way_flags
        self._columns = {family: _Columns.of(key, flow) for family, (key, flow) in dtypes.items()}
        parts = [VERSION, abi, sys.byteorder, bits, [each.record.descr for each in self._columns.values()]]
        self.layout = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")

    def encode(self, family: str, keys: Array, flows: Array, types: Array | int) -> bytes:
        """Forward entries as a payload. types: PRESENT, REMOVED or the kernel's event type."""
        columns = self._columns[family]
        records = np.empty(len(keys), columns.record)
        for name in columns.key_names:
            records["key_" + name] = keys[name]
        for name in columns.flow_names:
            records[name] = flows[name]
        records["type"] = types
        return records.tobytes()

    def check(self, family: str, count: int, payload: bytes) -> None:
        """Raises WireError unless the payload has the length of `count` records of a known family."""
        columns = self._columns.get(family)
        if columns is None:
            raise WireError(f"a block of an unknown family {family!r}")
        if count * columns.record.itemsize != len(payload):
            raise WireError(f"a block of {count} {family} flows has {len(payload)} bytes")

    def decode(self, family: str, count: int, payload: bytes) -> Iterator[tuple[bool, Flows]]:
        """Runs of rows that are all to be written (False) or all to be removed (True), in order. Raises WireError."""
        self.check(family, count, payload)
        columns = self._columns[family]
        records = np.frombuffer(payload, columns.record)
        removed = records["type"] == REMOVED
        borders = np.flatnonzero(removed[1:] != removed[:-1]) + 1
        for run in np.split(np.arange(count), borders) if len(borders) else [slice(None)]:
            part = records[run]
            if len(part):
                yield bool(part["type"][0] == REMOVED), self._flows(family, columns, part)

    def reply_keys(self, keys: Array, flows: Array) -> Array:
        """The keys under which the other direction of these forward entries stands, of those that have one."""
        two_way = ~self._is_one_way(flows)
        return self._reply_keys(keys[two_way], flows[two_way])

    def _reply_keys(self, keys: Array, flows: Array) -> Array:
        return _turned(np.zeros_like(keys), keys["protocol"], flows)

    def _is_one_way(self, flows: Array) -> Array:
        return np.asarray((flows["flags"] & self._one_way_flags) != 0)

    def _flows(self, family: str, columns: _Columns, records: Array) -> Flows:
        bits = self._bits
        keys, forward = np.zeros(len(records), columns.key), np.zeros(len(records), columns.flow)
        for name in columns.key_names:
            keys[name] = records["key_" + name]
        for name in columns.flow_names:
            forward[name] = records[name]
        forward["flags"] |= np.uint8(bits.forward_flag)
        forward["state"] |= np.uint8(bits.replicated)
        reply = self._reply(family, keys, forward)
        return Flows(keys, forward, self._reply_keys(keys, forward), reply, self._is_one_way(forward))

    def _reply(self, family: str, keys: Array, forward: Array) -> Array:
        bits = self._bits
        reply = forward.copy()
        _turned(reply, None, keys)
        reply["flags"] &= ~bits.forward_flag & 0xFF
        state = forward["state"]
        reply["state"] = (
            (state & (bits.seen | bits.reset | bits.replicated))
            | np.where(state & bits.fin_here, bits.fin_there, 0)
            | np.where(state & bits.fin_there, bits.fin_here, 0)
        )
        reply["l4_delta"] = ~forward["l4_delta"]
        reply["l3_delta"] = _reply_l3_delta(family, keys, forward)
        return reply


def _turned(into: Array, protocol: Array | None, of: Array) -> Array:
    """Write addresses and ports of `of` into `into` with the two ends exchanged."""
    for name, other in (("source", "destination"), ("destination", "source")):
        into[name] = of[other]
        into[name + "_port"] = of[other + "_port"]
    if protocol is not None:
        into["protocol"] = protocol
    return into


def _reply_l3_delta(family: str, keys: Array, forward: Array) -> Array:
    """What `fill_pair_FAM` writes: the addresses' change undone, one hop taken (RFC 1624, equation 3)."""
    hop_delta = _HOP_DELTA[family]
    if hop_delta is None:
        return np.zeros(len(keys), np.uint16)
    before = _folded(_word_sums(keys["source"]) + _word_sums(keys["destination"]))
    after = _folded(_word_sums(forward["source"]) + _word_sums(forward["destination"]))
    addresses = _folded((~before & 0xFFFF) + after)
    return _folded((~addresses & 0xFFFF) + np.uint32(hop_delta)).astype(np.uint16)


def _word_sums(addresses: Array) -> NDArray[np.uint32]:
    words = np.ascontiguousarray(addresses).view(np.uint16).reshape(len(addresses), -1)
    return np.asarray(words.sum(axis=1, dtype=np.uint32))


def _folded(sums: NDArray[Any]) -> NDArray[np.uint32]:
    sums = (sums & 0xFFFF) + (sums >> 16)
    return np.asarray((sums & 0xFFFF) + (sums >> 16), np.uint32)
