"""Elements of a BPF map behind a file descriptor, one by one and in batches: bytes and numpy arrays in and out.

Decides only how a batch goes on behind a key that is missing. Must not know which tables there are or what lies in them, nor
what to do with a kind of map that has no batches. Every failure is an OSError with the kernel's errno and what was tried.
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

_UPDATE_ANY = 0  # BPF_ANY: whether the key is there or not
_SIGNATURES: libbpf.Signatures = {
    "bpf_map_lookup_elem": (ct.c_int, POINTER, POINTER),
    "bpf_map_update_elem": (ct.c_int, POINTER, POINTER, ct.c_uint64),
    "bpf_map_delete_elem": (ct.c_int, POINTER),
    "bpf_map_lookup_batch": (ct.c_int, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER),
    "bpf_map_update_batch": (ct.c_int, POINTER, POINTER, POINTER, POINTER),
    "bpf_map_delete_batch": (ct.c_int, POINTER, POINTER, POINTER),
}


class BatchError(OSError):
    """A batch that stopped on the way: `done` elements were written."""

    done = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One slice of a map: how many elements were filled in, and the cursor for the next slice, None at the end."""

    count: int
    cursor: bytes | None


@functools.cache
def _library() -> ct.CDLL:
    return libbpf.opened(_SIGNATURES)


# --- one element ---------------------------------------------------------------------------------------------


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of `key`, None if absent. value_size in bytes; of per-CPU maps the sum over CPUs, each rounded up to 8."""
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
    """Delete one element; False if it was not there."""
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
    """Look up each key by a call of its own; fills `values` where the answer is True."""
    lookup: Callable[[int, int, int], int] = _library().bpf_map_lookup_elem
    found = np.zeros(len(keys), dtype=np.bool_)
    key, value, key_step, value_step = _address(keys), _address(values), keys.dtype.itemsize, values.dtype.itemsize
    for number in range(len(keys)):
        if lookup(fd, key + number * key_step, value + number * value_step) == 0:
            found[number] = True
    return found


def update_batch(fd: int, keys: Items, values: Items) -> int:
    """Write all elements in one call; returns how many. Raises BatchError."""
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
    """Delete those of `keys` that exist; returns how many did.

    The kernel stops at the first key that is missing: the rest is tried again behind it, and where many are missing
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
    """Fill `keys` and `values` from `cursor` (None: the beginning) on.

    Raises OSError(ENOSPC) if not even one hash bucket fits: call again with larger arrays and the same cursor.
    """
    following, count = ct.create_string_buffer(max(keys.dtype.itemsize, 4)), ct.c_uint32(len(keys))
    code = _library().bpf_map_lookup_batch(fd, cursor, following, _address(keys), _address(values), ct.byref(count), None)
    if code == -errno.ENOENT:
        return Batch(count.value, None)
    checked(code, f"read {len(keys)} map elements")
    return Batch(count.value, following.raw)
