"""libbpf.so.1, which comes with python3-bpfcc: opened, its results as errors; pins, and what the kernel says of them.

With `bpf.maps.elements` and `bpf.xdp`, which call the library too, the only ctypes on it. Decides nothing and keeps no
state: it must not know our tables, pins' names or structs. Every failure is an OSError with the kernel's errno and what was
tried. The library is a plain CDLL, so the GIL is released during each call, long batches included.
"""

from __future__ import annotations

import ctypes as ct
import enum
import errno
import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class MapType(enum.IntEnum):
    """The kinds of map that are read differently from the others (enum bpf_map_type)."""

    PERCPU_ARRAY = 6
    RINGBUF = 27


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map. `type` as in enum bpf_map_type."""

    type: int
    key_size: int
    value_size: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program."""

    id: int
    name: str


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


POINTER = ct.c_void_p
Signatures = Mapping[str, tuple[Any, ...]]
"""The library's functions by name, each with the types of its arguments. All return an int, below 0 a negative errno."""

_SIGNATURES: Signatures = {
    "bpf_obj_get": (ct.c_char_p,),
    "bpf_obj_pin": (ct.c_int, ct.c_char_p),
    "bpf_obj_get_info_by_fd": (ct.c_int, POINTER, POINTER),
    "bpf_prog_get_fd_by_id": (ct.c_uint32,),
    "libbpf_num_possible_cpus": (),
}


# --- the library ---------------------------------------------------------------------------------------------

_Print = ct.CFUNCTYPE(ct.c_int, ct.c_int, ct.c_char_p, ct.c_void_p)
_said = threading.local()


def _hear(level: int, text: bytes, arguments: int) -> int:
    """Keep what libbpf would print: only there does the kernel's own sentence about a refused attachment appear."""
    line = ct.create_string_buffer(512)
    ct.CDLL(None).vsnprintf(line, ct.c_size_t(512), text, ct.c_void_p(arguments))
    _said.line = line.value.decode(errors="replace").strip()
    return 0


_HEAR = _Print(_hear)


def opened(signatures: Signatures) -> ct.CDLL:
    """The library with these functions declared. Raises OSError saying what to install."""
    try:
        library = ct.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise OSError(errno.ENOENT, "libbpf.so.1 is missing: apt install python3-bpfcc") from error
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ct.c_int
    library.libbpf_set_print(_HEAR)
    return library


@functools.cache
def _library() -> ct.CDLL:
    """Opened on first use, so that importing this file needs nothing installed."""
    return opened(_SIGNATURES)


def last_message() -> str:
    """The last line libbpf wrote for people in this thread since it was asked for before; "" if it wrote none."""
    line: str = getattr(_said, "line", "")
    _said.line = ""
    return line


def failure(code: int, what: str) -> OSError:
    """An OSError for a negative result; libbpf 1.x returns -errno."""
    return OSError(-code, f"{what}: {os.strerror(-code)}")


def checked(code: int, what: str) -> int:
    """The result, if it is none of an error. Raises OSError saying what was tried."""
    if code < 0:
        raise failure(code, what)
    return code


def library_version() -> str | None:
    """libbpf's version, e.g. "1.1"; None where it is not installed."""
    try:
        function = _library().libbpf_version_string
    except OSError:
        return None
    function.argtypes, function.restype = (), ct.c_char_p
    text: bytes = function()
    return text.decode().removeprefix("v")


def possible_cpus() -> int:
    """How many CPUs the kernel may ever have: the number of values in a per-CPU map's element."""
    return checked(_library().libbpf_num_possible_cpus(), "count the possible CPUs")


# --- pins and what they are ----------------------------------------------------------------------------------


def obj_get(path: str | os.PathLike[str]) -> int:
    """A file descriptor for the object pinned at `path`; the caller closes it."""
    return checked(_library().bpf_obj_get(os.fsencode(path)), f"open the pin {os.fspath(path)}")


def obj_pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin the object behind `fd`; raises FileExistsError if something is there."""
    checked(_library().bpf_obj_pin(fd, os.fsencode(path)), f"pin an object as {os.fspath(path)}")


def _info(fd: int, info: ct.Structure, what: str) -> None:
    length = ct.c_uint32(ct.sizeof(info))
    checked(_library().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(length)), what)


def map_info(fd: int) -> MapInfo:
    """Type and sizes of a map."""
    info = _MapInfo()
    _info(fd, info, "ask about a map")
    return MapInfo(info.type, info.key_size, info.value_size, info.max_entries)


def program_info(fd: int) -> ProgramInfo:
    """Id and name of a program."""
    info = _ProgramInfo()
    _info(fd, info, "ask about a program")
    return ProgramInfo(info.id, info.name.decode())


def program_by_id(program_id: int) -> int:
    """A file descriptor for a loaded program; the caller closes it."""
    return checked(_library().bpf_prog_get_fd_by_id(program_id), f"open program {program_id}")
