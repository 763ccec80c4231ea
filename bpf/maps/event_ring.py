"""Reads flow events from a pinned BPF ring buffer in bulk: all committed records become one numpy array.

No Python per record: the ring is mapped into memory, the bytes between consumer and producer position are viewed as records of
one size, and copied at once. The kernel maps the data twice in a row, so that records that wrap are contiguous. Knows the
format of the ring (include/uapi/linux/bpf.h, kernel/bpf/ringbuf.c), not the meaning of an event.
"""

from __future__ import annotations

import mmap
from types import TracebackType
from typing import Any

import numpy as np

from bpf.dataplane import Array

_BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT: reserved, not yet submitted
_DISCARDED = 1 << 30  # BPF_RINGBUF_DISCARD_BIT
_LENGTH = _DISCARDED - 1


class FlowEvents:
    """The only reader of one ring. The kernel keeps its position: after a restart, reading continues there."""

    def __init__(self, fd: int, record: np.dtype[Any], size: int) -> None:
        """fd: of the ring, may be closed afterwards; record: the type of every record; size: of the data, in bytes."""
        page = mmap.PAGESIZE
        padding = -record.itemsize % 8
        self._slot = np.dtype([("length", "u4"), ("page", "u4"), ("record", record), ("padding", f"V{padding}")])
        self._record_size, self._size = record.itemsize, size
        self._consumer_map = mmap.mmap(fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._consumed = np.frombuffer(self._consumer_map, dtype=np.uint64, count=1)
        self._produced = np.frombuffer(self._producer_map, dtype=np.uint64, count=1)
        self._data = np.frombuffer(self._producer_map, dtype=np.uint8, offset=page)

    def backlog(self) -> int:
        """Number of records to read, including those not yet submitted."""
        return (int(self._produced[0]) - int(self._consumed[0])) // self._slot.itemsize

    def read(self, limit: int) -> Array:
        """Consume up to `limit` records, stopping before the first that is not yet submitted. Skips discarded ones.

        Raises ValueError for a record of another size: the ring does not match the layout.
        """
        consumed = int(self._consumed[0])
        count = min(limit, self.backlog())
        at = consumed & (self._size - 1)
        slots = self._data[at : at + count * self._slot.itemsize].view(self._slot)
        lengths = slots["length"].copy()
        busy = np.flatnonzero(lengths & _BUSY)
        if len(busy):
            slots, lengths = slots[: busy[0]], lengths[: busy[0]]
        if ((lengths & _LENGTH) != self._record_size).any():
            raise ValueError(f"the ring holds records of {set((lengths & _LENGTH).tolist())} bytes, not {self._record_size}")
        records: Array = (
            slots["record"].copy() if not (lengths & _DISCARDED).any() else slots["record"][lengths & _DISCARDED == 0]
        )
        self._consumed[0] = consumed + len(slots) * self._slot.itemsize
        return records

    def close(self) -> None:
        """Release the memory mappings; they are unmapped with the last array that refers to them."""
        del self._consumed, self._produced, self._data, self._consumer_map, self._producer_map

    def __enter__(self) -> FlowEvents:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
