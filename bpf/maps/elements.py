"""Elements of a BPF map behind a file descriptor, one by one and in batches: bytes and numpy arrays in and out.

Decides only how a batch continues after a missing key. Must not know which maps exist or what they contain, nor what to do with
a map type that has no batches. Every failure is an OSError with the kernel's errno and the operation.
"""

from __future__ import annotations

import ctypes as ct
import errno
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf import libbpf
from bpf.libbpf import POINTER, checked

Items = NDArray[Any]
"""Keys or values of a batch: C-contiguous, one item per element."""

_UPDATE_ANY = 0  # BPF_ANY: insert or overwrite
_SIGNATURES: libbpf.Signatures = {
    "bpf_map_lookup_elem": (ct.c_int, POINTER, POINTER),
    "bpf_map_update_elem": (ct.c_int, POINTER, POINTER, ct.c_uint64),
    "bpf_map_delete_elem": (ct.c_int, POINTER),
    "bpf_map_lookup_batch": (ct.c_int, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER),
    "bpf_map_update_batch": (ct.c_int, POINTER, POINTER, POINTER, POINTER),
    "bpf_map_delete_batch": (ct.c_int, POINTER, POINTER, POINTER),
}


class BatchError(OSError):
    """A batch that stopped early: `done` elements were written."""

    done = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One slice of a map: the number of elements filled in, and the cursor of the next slice, None at the end."""

    count: int
    cursor: bytes | None


@functools.cache
def _library() -> ct.CDLL:
    return libbpf.opened(_SIGNATURES)


# --- one element ---------------------------------------------------------------------------------------------


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of `key`, None if absent. value_size in bytes; for per-CPU maps the sum over CPUs, each rounded up to 8."""
    value = ct.create_string_buffer(value_size)
    code = _library().bpf_map_lookup_elem(fd, key, value)
    if code == -errno.ENOENT:
        return None
    checked(code, "look up a map element")
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Write one element, new or not. Raises OSError, E2BIG when the map is full."""
    checked(_library().bpf_map_update_elem(fd, key, value, _UPDATE_ANY), "write a map element")


def delete(fd: int, key: bytes) -> bool:
    """Delete one element; False if it did not exist."""
    code = _library().bpf_map_delete_elem(fd, key)
    if code == -errno.ENOENT:
        return False
    checked(code, "delete a map element")
    return True


# --- many elements -------------------------------------------------------------------------------------------


def _address(items: Items) -> int:
    if not items.flags.c_contiguous:
        raise ValueError("a batch must be contiguous in memory")
    return items.ctypes.data


def lookup_each(fd: int, keys: Items, values: Items) -> NDArray[np.bool_]:
    """Look up each key by a separate call; fills `values` where the result is True."""
    lookup: Callable[[int, int, int], int] = _library().bpf_map_lookup_elem
    found = np.zeros(len(keys), dtype=np.bool_)
    key, value, key_step, value_step = _address(keys), _address(values), keys.dtype.itemsize, values.dtype.itemsize
    for number in range(len(keys)):
        if lookup(fd, key + number * key_step, value + number * value_step) == 0:
            found[number] = True
    return found


def update_batch(fd: int, keys: Items, values: Items) -> int:
    """Write all elements in one call; returns their number. Raises BatchError."""
    if len(keys) == 0:
        return 0
    count = ct.c_uint32(len(keys))
    code = _library().bpf_map_update_batch(fd, _address(keys), _address(values), ct.byref(count), None)
    if code < 0:
        stopped = BatchError(-code, f"write {len(keys)} map elements: {os.strerror(-code)}")
        stopped.done = count.value if count.value < len(keys) else 0
        raise stopped
    return count.value


def delete_batch(fd: int, keys: Items) -> int:
    """Delete the keys that exist; returns their number.

    The kernel stops at the first missing key: the next call starts after it. If many are missing, the rest is deleted
    key by key.
    """
    library, step, base = _library(), keys.dtype.itemsize, _address(keys)
    deleted, at, misses = 0, 0, 0
    while at < len(keys):
        if misses > 16 and misses * 8 > at:
            delete: Callable[[int, int], int] = library.bpf_map_delete_elem
            return deleted + sum(delete(fd, base + n * step) == 0 for n in range(at, len(keys)))
        count = ct.c_uint32(len(keys) - at)
        code = library.bpf_map_delete_batch(fd, base + at * step, ct.byref(count), None)
        if code == 0:
            return deleted + count.value
        if code != -errno.ENOENT:
            raise libbpf.failure(code, f"delete {len(keys)} map elements")
        deleted += count.value
        at += count.value + 1
        misses += 1
    return deleted


def lookup_batch(fd: int, cursor: bytes | None, keys: Items, values: Items) -> Batch:
    """Fill `keys` and `values`, starting at `cursor` (None: at the first element).

    Raises OSError(ENOSPC) if not even one hash bucket fits: call again with larger arrays and the same cursor.
    """
    following, count = ct.create_string_buffer(max(keys.dtype.itemsize, 4)), ct.c_uint32(len(keys))
    code = _library().bpf_map_lookup_batch(fd, cursor, following, _address(keys), _address(values), ct.byref(count), None)
    if code == -errno.ENOENT:
        return Batch(count.value, None)
    checked(code, f"read {len(keys)} map elements")
    return Batch(count.value, following.raw)
