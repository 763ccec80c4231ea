"""Ends the copies that the program has of flows, when the daemon changes or deletes these: see bpf/program/recent.family.h.

Decides nothing. Must not know why a flow changes.
"""

from __future__ import annotations

import threading

import numpy as np

from bpf.constants import CHANGE_NUMBERS
from bpf.dataplane import Array
from bpf.maps.mapped_array import MappedArray
from bpf.maps.pinned_map import PinnedMap

PLACE_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


class Copies:
    """The map `changes`, in mapped memory. Any thread may use it."""

    def __init__(self, changes: PinnedMap) -> None:
        self._numbers = MappedArray(changes)
        self._lock = threading.Lock()

    def end(self, keys: Array) -> None:
        """The flows with these keys have changed; call it after the change."""
        with self._lock:
            self._numbers.increment("by_daemon", (place_hashes(keys) >> _HALF).astype(np.intp) & CHANGE_NUMBERS - 1)


def place_hashes(keys: Array) -> Array:
    """place_hash_FAM of the program, row by row."""
    words = np.ascontiguousarray(keys).view(np.uint32).reshape(len(keys), -1).astype(np.uint64)
    size = (words.shape[1] - 2) // 2
    source, destination, ports = words[:, :size], words[:, size : 2 * size], words[:, -2]
    hashes = source[:, -1] << _HALF | ports
    for number in range(size):
        other = source[:, number] << _HALF if number + 1 < size else np.uint64(0)
        hashes = (hashes ^ (other | destination[:, number])) * PLACE_FACTOR
        hashes ^= hashes >> _HALF
    hashes *= PLACE_FACTOR
    return hashes
