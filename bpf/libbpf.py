"""The kernel's BPF objects through libbpf.so.1, which comes with python3-bpfcc: file descriptors, bytes and addresses.

The only ctypes on that library. Decides nothing and keeps no state: it must not know our tables, pins' names or structs.
Every failure is an OSError with the kernel's errno and what was tried. The library is a plain CDLL, so the GIL is
released during each call, long batches included.
"""

from __future__ import annotations

import ctypes as ct
import enum
import errno
import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UPDATE_ANY = 0
UPDATE_NOEXIST = 1
UPDATE_EXIST = 2

XDP_FLAGS_UPDATE_IF_NOEXIST = 1 << 0
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
XDP_FLAGS_REPLACE = 1 << 4

PACKET_ROOM = 4096
"""Bytes a test run may return: a packet may grow."""


class MapType(enum.IntEnum):
    """The kinds of map xlb uses (enum bpf_map_type)."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    RINGBUF = 27


class AttachMode(enum.IntEnum):
    """How an XDP program sits on an interface (enum XDP_ATTACHED_*)."""

    NONE = 0
    NATIVE = 1
    GENERIC = 2
    OFFLOADED = 3
    SEVERAL = 4


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map. `type` is a MapType value, or a number this file does not name."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program: `tag` is the hash of its instructions, `map_ids` the maps it uses."""

    type: int
    id: int
    tag: str
    name: str
    map_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class XdpState:
    """The XDP program on an interface; program_id is 0 when there is none."""

    mode: AttachMode
    program_id: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """Outcome of BPF_PROG_TEST_RUN: XDP verdict, the packet as it left, mean time per run in ns."""

    __test__ = False

    action: int
    packet: bytes
    duration_ns: int


class BatchError(OSError):
    """A batch that stopped on the way: `done` elements were written."""

    done = 0


class _MapInfo(ct.Structure):
    _fields_ = (
        *((name, ct.c_uint32) for name in ("type", "id", "key_size", "value_size", "max_entries", "map_flags")),
        ("name", ct.c_char * 16),
        ("rest", ct.c_uint64 * 16),
    )


class _ProgramInfo(ct.Structure):
    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("tag", ct.c_uint8 * 8),
        ("jited_prog_len", ct.c_uint32),
        ("xlated_prog_len", ct.c_uint32),
        ("jited_prog_insns", ct.c_uint64),
        ("xlated_prog_insns", ct.c_uint64),
        ("load_time", ct.c_uint64),
        ("created_by_uid", ct.c_uint32),
        ("nr_map_ids", ct.c_uint32),
        ("map_ids", ct.c_uint64),
        ("name", ct.c_char * 16),
        ("rest", ct.c_uint64 * 32),
    )


class _TestRunOptions(ct.Structure):
    _fields_ = (
        ("sz", ct.c_size_t),
        ("data_in", ct.c_void_p),
        ("data_out", ct.c_void_p),
        ("data_size_in", ct.c_uint32),
        ("data_size_out", ct.c_uint32),
        ("ctx_in", ct.c_void_p),
        ("ctx_out", ct.c_void_p),
        ("ctx_size_in", ct.c_uint32),
        ("ctx_size_out", ct.c_uint32),
        ("retval", ct.c_uint32),
        ("repeat", ct.c_int),
        ("duration", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("cpu", ct.c_uint32),
        ("batch_size", ct.c_uint32),
    )


class _XdpContext(ct.Structure):
    _fields_ = tuple(
        (name, ct.c_uint32) for name in ("data", "data_end", "data_meta", "ingress_ifindex", "rx_queue_index", "egress_ifindex")
    )


class _BatchOptions(ct.Structure):
    _fields_ = (("sz", ct.c_size_t), ("elem_flags", ct.c_uint64), ("flags", ct.c_uint64))


class _AttachOptions(ct.Structure):
    _fields_ = (("sz", ct.c_size_t), ("old_prog_fd", ct.c_int), ("pad", ct.c_int))


class _QueryOptions(ct.Structure):
    _fields_ = (
        ("sz", ct.c_size_t),
        ("prog_id", ct.c_uint32),
        ("drv_prog_id", ct.c_uint32),
        ("hw_prog_id", ct.c_uint32),
        ("skb_prog_id", ct.c_uint32),
        ("attach_mode", ct.c_uint8),
        ("pad", ct.c_uint8 * 7),
    )


_POINTER = ct.c_void_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "bpf_obj_get": (ct.c_char_p,),
    "bpf_obj_pin": (ct.c_int, ct.c_char_p),
    "bpf_obj_get_info_by_fd": (ct.c_int, _POINTER, _POINTER),
    "bpf_prog_get_fd_by_id": (ct.c_uint32,),
    "bpf_map_lookup_elem": (ct.c_int, _POINTER, _POINTER),
    "bpf_map_update_elem": (ct.c_int, _POINTER, _POINTER, ct.c_uint64),
    "bpf_map_delete_elem": (ct.c_int, _POINTER),
    "bpf_map_lookup_batch": (ct.c_int, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "bpf_map_lookup_and_delete_batch": (ct.c_int, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "bpf_map_update_batch": (ct.c_int, _POINTER, _POINTER, _POINTER, _POINTER),
    "bpf_map_delete_batch": (ct.c_int, _POINTER, _POINTER, _POINTER),
    "bpf_prog_test_run_opts": (ct.c_int, _POINTER),
    "bpf_xdp_attach": (ct.c_int, ct.c_int, ct.c_uint32, _POINTER),
    "bpf_xdp_query": (ct.c_int, ct.c_int, _POINTER),
    "libbpf_num_possible_cpus": (),
}


_Print = ct.CFUNCTYPE(ct.c_int, ct.c_int, ct.c_char_p, ct.c_void_p)
_said = threading.local()


def _hear(level: int, text: bytes, arguments: int) -> int:
    """Keep what libbpf would print: only there does the kernel's own sentence about a refused attachment appear."""
    line = ct.create_string_buffer(512)
    ct.CDLL(None).vsnprintf(line, ct.c_size_t(512), text, ct.c_void_p(arguments))
    _said.line = line.value.decode(errors="replace").strip()
    return 0


_HEAR = _Print(_hear)


@functools.cache
def _library() -> ct.CDLL:
    """libbpf, opened on first use so that importing this file needs nothing installed."""
    try:
        library = ct.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise OSError(errno.ENOENT, "libbpf.so.1 is missing: apt install python3-bpfcc") from error
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ct.c_int
    library.libbpf_set_print(_HEAR)
    return library


def library_version() -> str | None:
    """libbpf's version, e.g. "1.1"; None where it is not installed."""
    try:
        function = _library().libbpf_version_string
    except OSError:
        return None
    function.argtypes, function.restype = (), ct.c_char_p
    text: bytes = function()
    return text.decode().removeprefix("v")


def _error(code: int, what: str) -> OSError:
    """An OSError for a negative libbpf result; libbpf 1.x returns -errno."""
    return OSError(-code, f"{what}: {os.strerror(-code)}")


def _checked(code: int, what: str) -> int:
    if code < 0:
        raise _error(code, what)
    return code


def possible_cpus() -> int:
    """How many CPUs the kernel may ever have: the number of values in a per-CPU map's element."""
    return _checked(_library().libbpf_num_possible_cpus(), "count the possible CPUs")


# --- pins and what they are ----------------------------------------------------------------------------------


def obj_get(path: str | os.PathLike[str]) -> int:
    """A file descriptor for the object pinned at `path`; the caller closes it."""
    return _checked(_library().bpf_obj_get(os.fsencode(path)), f"open the pin {os.fspath(path)}")


def obj_pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin the object behind `fd`; raises FileExistsError if something is there."""
    _checked(_library().bpf_obj_pin(fd, os.fsencode(path)), f"pin an object as {os.fspath(path)}")


def _info(fd: int, info: ct.Structure, what: str) -> None:
    length = ct.c_uint32(ct.sizeof(info))
    _checked(_library().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(length)), what)


def map_info(fd: int) -> MapInfo:
    """Type, sizes and name of a map."""
    info = _MapInfo()
    _info(fd, info, "ask about a map")
    numbers = (info.type, info.id, info.key_size, info.value_size, info.max_entries, info.map_flags)
    return MapInfo(*numbers, name=info.name.decode())


def program_info(fd: int) -> ProgramInfo:
    """Id, tag, name and maps of a program."""
    count = 64
    ids = (ct.c_uint32 * count)()
    info = _ProgramInfo(nr_map_ids=count, map_ids=ct.addressof(ids))
    _info(fd, info, "ask about a program")
    used = tuple(ids[: min(info.nr_map_ids, count)])
    return ProgramInfo(info.type, info.id, bytes(info.tag).hex(), info.name.decode(), used)


def program_by_id(program_id: int) -> int:
    """A file descriptor for a loaded program; the caller closes it."""
    return _checked(_library().bpf_prog_get_fd_by_id(program_id), f"open program {program_id}")


# --- single elements -----------------------------------------------------------------------------------------


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of `key`, None if absent. value_size in bytes; of per-CPU maps the sum over CPUs, each rounded up to 8."""
    value = ct.create_string_buffer(value_size)
    code = _library().bpf_map_lookup_elem(fd, key, value)
    if code == -errno.ENOENT:
        return None
    _checked(code, "look up a map element")
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = UPDATE_ANY) -> None:
    """Write one element. Raises OSError: E2BIG full, EEXIST or ENOENT by `flags`."""
    _checked(_library().bpf_map_update_elem(fd, key, value, flags), "write a map element")


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one element; False if it was not there."""
    code = _library().bpf_map_delete_elem(fd, key)
    if code == -errno.ENOENT:
        return False
    _checked(code, "delete a map element")
    return True


# --- many elements -------------------------------------------------------------------------------------------
#
# Keys and values are C-contiguous numpy arrays of one item per element.

Items = NDArray[Any]


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


def update_batch(fd: int, keys: Items, values: Items, flags: int = UPDATE_ANY) -> int:
    """Write all elements in one call; returns how many. Raises BatchError."""
    count, options = ct.c_uint32(len(keys)), _BatchOptions(ct.sizeof(_BatchOptions), flags, 0)
    if len(keys) == 0:
        return 0
    code = _library().bpf_map_update_batch(fd, _address(keys), _address(values), ct.byref(count), ct.byref(options))
    if code < 0:
        failure = BatchError(-code, f"write {len(keys)} map elements: {os.strerror(-code)}")
        failure.done = count.value if count.value < len(keys) else 0
        raise failure
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
            raise _error(code, f"delete {len(keys)} map elements")
        deleted += count.value
        at += count.value + 1
        misses += 1
    return deleted


@dataclass(frozen=True, slots=True)
class Batch:
    """One slice of a map: how many elements were filled in, and the cursor for the next slice, None at the end."""

    count: int
    cursor: bytes | None


def lookup_batch(fd: int, cursor: bytes | None, keys: Items, values: Items, *, delete: bool = False) -> Batch:
    """Fill `keys` and `values` from `cursor` (None: the beginning) on, and delete what was read if asked.

    Raises OSError(ENOSPC) if not even one hash bucket fits: call again with larger arrays and the same cursor.
    """
    library = _library()
    call = library.bpf_map_lookup_and_delete_batch if delete else library.bpf_map_lookup_batch
    size = max(keys.dtype.itemsize, 4)
    following, count = ct.create_string_buffer(size), ct.c_uint32(len(keys))
    code = call(fd, cursor, following, _address(keys), _address(values), ct.byref(count), None)
    if code == -errno.ENOENT:
        return Batch(count.value, None)
    _checked(code, f"read {len(keys)} map elements")
    return Batch(count.value, following.raw)


# --- programs ------------------------------------------------------------------------------------------------


def test_run(fd: int, packet: bytes, ifindex: int = 0, repeat: int = 1) -> TestRun:
    """Run an XDP program on `packet` without a network (BPF_PROG_TEST_RUN).

    ifindex: the interface it seems to have come in by, in the caller's network namespace; 0: the kernel's choice.
    repeat: runs in a row on the same packet, which is not restored between them.
    """
    output = ct.create_string_buffer(PACKET_ROOM)
    options = _TestRunOptions(sz=ct.sizeof(_TestRunOptions), repeat=repeat)
    source = ct.create_string_buffer(packet, max(len(packet), 1))
    options.data_in, options.data_size_in = ct.addressof(source), len(packet)
    options.data_out, options.data_size_out = ct.addressof(output), PACKET_ROOM
    context = _XdpContext(data_end=len(packet), ingress_ifindex=ifindex)
    if ifindex:
        options.ctx_in, options.ctx_size_in = ct.addressof(context), ct.sizeof(context)
    _checked(_library().bpf_prog_test_run_opts(fd, ct.byref(options)), f"test-run a program on {len(packet)} bytes")
    return TestRun(options.retval, output.raw[: options.data_size_out], options.duration)


def xdp_attach(ifindex: int, fd: int, flags: int, old_fd: int | None = None) -> None:
    """Put program `fd` on an interface, -1 to remove. flags: XDP_FLAGS_*.

    old_fd: the program that must be there, so that nobody else's is replaced (EEXIST).
    Raises OSError with the kernel's own sentence where it gave one, e.g. "Peer MTU is too large to set XDP".
    """
    options = _AttachOptions(ct.sizeof(_AttachOptions), 0 if old_fd is None else old_fd, 0)
    if old_fd is not None:
        flags |= XDP_FLAGS_REPLACE
    pointer = None if old_fd is None else ct.byref(options)
    _said.line = ""
    code = _library().bpf_xdp_attach(ifindex, fd, flags, pointer)
    if code < 0:
        reason = _said.line.rpartition("Kernel error message: ")[2]
        raise OSError(-code, reason or os.strerror(-code))


def xdp_query(ifindex: int) -> XdpState:
    """Which XDP program is on an interface, and how."""
    options = _QueryOptions(sz=ct.sizeof(_QueryOptions))
    _checked(_library().bpf_xdp_query(ifindex, 0, ct.byref(options)), f"ask about XDP on interface {ifindex}")
    mode = AttachMode(options.attach_mode)
    several = options.drv_prog_id or options.skb_prog_id or options.hw_prog_id
    return XdpState(mode, options.prog_id or (several if mode is AttachMode.SEVERAL else 0))
