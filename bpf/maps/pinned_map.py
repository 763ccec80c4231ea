"""One pinned map as columns: opened, checked against its layout, read and written in bulk.

Knows which map types the kernel can access in batches; must not know the purpose of any map.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bpf import libbpf
from bpf.dataplane import Array, PlaneError
from bpf.maps import elements
from bpf.maps.elements import BatchError
from bpf.maps.layout import MapLayout

SLICE_GROWTHS = 10
"""How often a slice may double because one hash bucket has more entries than fit."""

_ENOTSUPP = 524
_NO_BATCH = frozenset({_ENOTSUPP, errno.EOPNOTSUPP, errno.EINVAL})


class PinnedMap:
    """One pinned map, opened and checked against its layout."""

    def __init__(self, directory: Path, name: str, layout: MapLayout) -> None:
        """Raises PlaneError if the pin is missing or does not match `layout`."""
        self.name, self.path = name, directory / name
        self.key, self.value = layout.key_dtype, layout.value_dtype
        try:
            self.fd = libbpf.obj_get(self.path)
        except OSError as error:
            raise PlaneError(f"map {self.path} cannot be opened: {os.strerror(error.errno or 0)}") from error
        info = libbpf.map_info(self.fd)
        found = (info.type, info.key_size, info.value_size, info.max_entries)
        expected = (layout.type, layout.key_size, layout.value_size, layout.max_entries)
        per_ring_record = layout.type == libbpf.MapType.RINGBUF
        if found != expected or (not per_ring_record and (self.key.itemsize, self.value.itemsize) != expected[1:3]):
            self.close()
            raise PlaneError(f"map {self.path} does not match layout.json ({found}, not {expected}): remove layout.json")
        self.max_entries = info.max_entries
        self.per_cpu = info.type == libbpf.MapType.PERCPU_ARRAY
        if self.per_cpu:
            padding = -self.value.itemsize % 8
            self.value = np.dtype((np.dtype([("v", self.value), ("pad", f"V{padding}")]), (libbpf.possible_cpus(),)))

    def put(self, keys: Array, values: Array) -> None:
        """Write all rows, in one call if the kernel supports it. Raises BatchError."""
        try:
            elements.update_batch(self.fd, keys, values)
        except BatchError as error:
            if error.errno not in _NO_BATCH or error.done:
                raise
            self._put_each(keys, values)

    def _put_each(self, keys: Array, values: Array) -> None:
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            try:
                elements.update(self.fd, key.tobytes(), value.tobytes())
            except OSError as error:
                stopped = BatchError(error.errno, error.strerror)
                stopped.done = number
                raise stopped from error

    def remove(self, keys: Array) -> int:
        """Delete the keys that exist; returns their number."""
        try:
            return elements.delete_batch(self.fd, keys)
        except OSError as error:
            if error.errno not in _NO_BATCH:
                raise
            return sum(elements.delete(self.fd, key.tobytes()) for key in keys)

    def all_values(self) -> Array:
        """Every element of an array, in order. Per-CPU: one row per element, one column per CPU."""
        keys = np.empty(self.max_entries, dtype=np.uint32)
        if not self.per_cpu:
            values = np.empty(self.max_entries, dtype=self.value)
            elements.lookup_batch(self.fd, None, keys, values)
            return values
        item = self.value.subdtype[0] if self.value.subdtype else self.value
        per_cpu = np.empty((self.max_entries, self.value.shape[0]), dtype=item)
        elements.lookup_batch(self.fd, None, keys, per_cpu.view(f"V{self.value.itemsize}").reshape(-1))
        return per_cpu["v"]

    def slices(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Keys and values of a hash map, `size` at a time, more if one bucket has more."""
        cursor: bytes | None = None
        growths = 0
        while True:
            keys, values = np.empty(size, dtype=self.key), np.empty(size, dtype=self.value)
            try:
                batch = elements.lookup_batch(self.fd, cursor, keys, values)
            except OSError as error:
                if error.errno != errno.ENOSPC or growths == SLICE_GROWTHS:
                    raise
                size, growths = size * 2, growths + 1
                continue
            if batch.count:
                yield keys[: batch.count], values[: batch.count]
            if batch.cursor is None:
                return
            cursor = batch.cursor

    def close(self) -> None:
        os.close(self.fd)


def sum_over_cpus(values: Array) -> Array:
    """Rows of 64-bit counters, one column per CPU, added up."""
    fields = len(values.dtype.names or ())
    numbers = np.ascontiguousarray(values).view(np.uint64).reshape(*values.shape, fields)
    return np.ascontiguousarray(numbers.sum(axis=1, dtype=np.uint64)).view(values.dtype).reshape(-1)
