"""First-fit allocator of ranges in the kernel's slot map.

Decides offsets only. Ranges are (first chunk, number of chunks); chunks and slots differ by SLOTS_PER_CHUNK.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from bpf.constants import MAX_SLOT_CHUNKS, SLOTS_PER_CHUNK

Run = tuple[int, int]


def run_of(slot_offset: int, slot_count: int) -> Run | None:
    """The range of a service's slots; None for a service without slots."""
    return (slot_offset // SLOTS_PER_CHUNK, -(-slot_count // SLOTS_PER_CHUNK)) if slot_count else None


class SlotSpace:
    """Free ranges, sorted and merged."""

    def __init__(self, free: Iterable[Run] = ((0, MAX_SLOT_CHUNKS),)) -> None:
        self._free = list(free)

    @property
    def free(self) -> tuple[Run, ...]:
        """The free ranges in order."""
        return tuple(self._free)

    def allocate(self, slots: int) -> int | None:
        """Allocate `slots` slots and return their offset; None if no free range is long enough."""
        chunks = -(-slots // SLOTS_PER_CHUNK)
        for index, (first, length) in enumerate(self._free):
            if length >= chunks:
                if length == chunks:
                    del self._free[index]
                else:
                    self._free[index] = (first + chunks, length - chunks)
                return first * SLOTS_PER_CHUNK
        return None

    def release(self, run: Run) -> None:
        """Free a range. Raises ValueError if part of it is already free."""
        first, length = run
        index = bisect.bisect(self._free, run)
        if index < len(self._free) and self._free[index][0] < first + length:
            raise ValueError(f"slot run {run} overlaps the free {self._free[index]}")
        if index and sum(self._free[index - 1]) > first:
            raise ValueError(f"slot run {run} overlaps the free {self._free[index - 1]}")
        if index < len(self._free) and self._free[index][0] == first + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == first:
            before = self._free.pop(index - 1)
            first, length = before[0], before[1] + length
        bisect.insort(self._free, (first, length))

    def is_free(self, run: Run) -> bool:
        """Whether the whole range is free."""
        return any(start <= run[0] and run[0] + run[1] <= start + length for start, length in self._free)

    def reserve(self, run: Run) -> None:
        """Mark a range as used; parts that are already used are ignored."""
        first, stop = run[0], run[0] + run[1]
        kept: list[Run] = []
        for start, length in self._free:
            end = start + length
            if end <= first or stop <= start:
                kept.append((start, length))
                continue
            if start < first:
                kept.append((start, first - start))
            if stop < end:
                kept.append((stop, end - stop))
        self._free = kept
