"""An array map in mapped memory: read and written without system calls, next to XDP, which changes other fields of its values.

Must not know the purpose of any map.
"""

from __future__ import annotations

import mmap

import numpy as np

from bpf.dataplane import Array
from bpf.maps.pinned_map import PinnedMap


class MappedArray:
    """The values of a map with BPF_F_MMAPABLE, whose value size is a multiple of 8."""

    def __init__(self, bpf_map: PinnedMap) -> None:
        size = bpf_map.max_entries * bpf_map.value.itemsize
        memory = mmap.mmap(bpf_map.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._values = np.frombuffer(memory, dtype=bpf_map.value, count=bpf_map.max_entries)

    def read(self) -> Array:
        """A copy of all values."""
        return self._values.copy()

    def write(self, field: str, values: Array) -> None:
        """Set a field of 8 bytes where it differs; each is one store, and no other field is written."""
        column = self._values[field]
        changed = np.flatnonzero(column != values)
        column[changed] = values[changed]

    def increment(self, field: str, rows: Array) -> None:
        """Add one to a field of these rows, once for each time that a row is named. Not atomic: for one writer at a time."""
        np.add.at(self._values[field], rows, 1)

    def clear(self) -> None:
        """Set all values to zero."""
        self._values.view(np.uint8)[:] = 0
