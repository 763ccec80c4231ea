"""Reads records of any length from a BPF ring buffer (include/uapi/linux/bpf.h, kernel/bpf/ringbuf.c).

Knows the format of the ring, not the meaning of a record. `event_ring` reads many records of one size at once.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

_BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT: reserved, not yet submitted
_DISCARDED = 1 << 30  # BPF_RINGBUF_DISCARD_BIT
_LENGTH = _DISCARDED - 1
_HEADER_BYTES = 8


class ByteRing:
    """The only reader of a ring."""

    def __init__(self, fd: int, size: int) -> None:
        """fd: of the ring; size: of its data, in bytes, a power of two."""
        page = mmap.PAGESIZE
        self._mask = size - 1
        self._consumer_map = mmap.mmap(fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._consumed = np.frombuffer(self._consumer_map, dtype=np.uint64, count=1)
        self._produced = np.frombuffer(self._producer_map, dtype=np.uint64, count=1)

    def read(self, limit: int) -> Iterator[bytes]:
        """Up to `limit` records, each consumed when the next is asked for; stops before one that is not yet submitted."""
        for _ in range(limit):
            consumed = int(self._consumed[0])
            if consumed == int(self._produced[0]):
                return
            at = mmap.PAGESIZE + (consumed & self._mask)
            header = int.from_bytes(self._producer_map[at : at + 4], "little")
            if header & _BUSY:
                return
            length = header & _LENGTH
            if not header & _DISCARDED:
                yield self._producer_map[at + _HEADER_BYTES : at + _HEADER_BYTES + length]
            self._consumed[0] = consumed + (_HEADER_BYTES + length + 7) // 8 * 8

    def skip(self) -> None:
        """Consume everything."""
        self._consumed[0] = self._produced[0]

    def close(self) -> None:
        """Unmap the ring."""
        del self._consumed, self._produced, self._consumer_map, self._producer_map
