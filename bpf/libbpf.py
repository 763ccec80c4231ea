"""libbpf.so.1, which python3-bpfcc installs: loaded, with errors as exceptions; pins, and information about maps and programs.

With `bpf.maps.elements` and `bpf.xdp` the only callers of the library. Decides nothing and keeps no state: it must not know
the names of maps and pins, nor structs. Every failure is an OSError with the kernel's errno and the operation. The library is a
plain CDLL, so that the GIL is released during each call, including long batches.
"""

from __future__ import annotations

import ctypes as ct
import enum
import errno
import functools
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class MapType(enum.IntEnum):
    """The map types that are read differently from the others (enum bpf_map_type)."""

    PERCPU_ARRAY = 6
    RINGBUF = 27


@dataclass(frozen=True, slots=True)
class MapInfo:
    """The kernel's information about a map. `type` as in enum bpf_map_type."""

    type: int
    key_size: int
    value_size: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """The kernel's information about a program: its instructions, and those that the verifier followed (0: unknown).

    native_bytes: of its machine code; 0: the kernel interprets it.
    type_id: of its function in its BTF; 0: it has none, and no tracing program can attach to it.
    """

    id: int
    name: str
    instructions: int
    verified: int
    type_id: int
    native_bytes: int


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
        ("ifindex_and_namespace", ct.c_uint64 * 3),
        ("jited", ct.c_uint64 * 3),
        ("btf_id", ct.c_uint32),
        ("func_info_rec_size", ct.c_uint32),
        ("func_info", ct.c_uint64),
        ("nr_func_info", ct.c_uint32),
        ("nr_line_info", ct.c_uint32),
        ("others", ct.c_uint64 * 8),
        ("verified_insns", ct.c_uint32),
        ("rest", ct.c_uint32 * 29),
    )


class _LoadOptions(ct.Structure):
    _fields_ = (
        ("sz", ct.c_size_t),
        ("attempts", ct.c_int),
        ("expected_attach_type", ct.c_uint32),
        ("prog_btf_fd", ct.c_uint32),
        ("prog_flags", ct.c_uint32),
        ("prog_ifindex", ct.c_uint32),
        ("kern_version", ct.c_uint32),
        ("attach_btf_id", ct.c_uint32),
        ("attach_prog_fd", ct.c_uint32),
        ("attach_btf_obj_fd", ct.c_uint32),
        ("fd_array", ct.c_void_p),
        ("func_info", ct.c_char_p),
        ("func_info_cnt", ct.c_uint32),
        ("func_info_rec_size", ct.c_uint32),
        ("line_info", ct.c_void_p),
        ("line_info_cnt", ct.c_uint32),
        ("line_info_rec_size", ct.c_uint32),
        ("log_level", ct.c_uint32),
        ("log_size", ct.c_uint32),
        ("log_buf", ct.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Function:
    """The function of a program in a BTF object: `btf` is its descriptor."""

    btf: int
    type_id: int


_INSTRUCTION_BYTES = 8
_XDP, _TRACING, _AT_ENTRY = 6, 26, 24  # BPF_PROG_TYPE_XDP, BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY
_RETURN_0 = bytes((0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))
POINTER = ct.c_void_p
Signatures = Mapping[str, tuple[Any, ...]]
"""Functions of the library by name, with their argument types. All return an int; below 0 it is a negative errno."""

_SIGNATURES: Signatures = {
    "bpf_obj_get": (ct.c_char_p,),
    "bpf_obj_pin": (ct.c_int, ct.c_char_p),
    "bpf_obj_get_info_by_fd": (ct.c_int, POINTER, POINTER),
    "bpf_prog_get_fd_by_id": (ct.c_uint32,),
    "bpf_btf_load": (ct.c_char_p, ct.c_size_t, POINTER),
    "bpf_prog_load": (ct.c_int, ct.c_char_p, ct.c_char_p, ct.c_char_p, ct.c_size_t, POINTER),
    "libbpf_num_possible_cpus": (),
}


# --- the library ---------------------------------------------------------------------------------------------

_Print = ct.CFUNCTYPE(ct.c_int, ct.c_int, ct.c_char_p, ct.c_void_p)
_messages = threading.local()


def _capture(level: int, text: bytes, arguments: int) -> int:
    """Keep the line that libbpf would print: only it has the kernel's message about a refused attachment."""
    line = ct.create_string_buffer(512)
    ct.CDLL(None).vsnprintf(line, ct.c_size_t(512), text, ct.c_void_p(arguments))
    _messages.line = line.value.decode(errors="replace").strip()
    return 0


_CAPTURE = _Print(_capture)


def opened(signatures: Signatures) -> ct.CDLL:
    """The library with these functions declared. Raises OSError naming the package to install."""
    try:
        library = ct.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise OSError(errno.ENOENT, "libbpf.so.1 is missing: apt install python3-bpfcc") from error
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ct.c_int
    library.libbpf_set_print(_CAPTURE)
    return library


@functools.cache
def _library() -> ct.CDLL:
    """Loaded on first use, so that importing this module needs nothing installed."""
    return opened(_SIGNATURES)


def last_message() -> str:
    """The last message of libbpf in this thread since the previous call; "" if there was none."""
    line: str = getattr(_messages, "line", "")
    _messages.line = ""
    return line


def failure(code: int, what: str) -> OSError:
    """An OSError for a negative result; libbpf 1.x returns -errno."""
    return OSError(-code, f"{what}: {os.strerror(-code)}")


def checked(code: int, what: str) -> int:
    """The result, unless it is an error. Raises OSError naming the operation."""
    if code < 0:
        raise failure(code, what)
    return code


def library_version() -> str | None:
    """libbpf's version, e.g. "1.1"; None if it is not installed."""
    try:
        function = _library().libbpf_version_string
    except OSError:
        return None
    function.argtypes, function.restype = (), ct.c_char_p
    version: bytes = function()
    return version.decode().removeprefix("v")


def possible_cpus() -> int:
    """The number of possible CPUs, which is the number of values in an element of a per-CPU map."""
    return checked(_library().libbpf_num_possible_cpus(), "count the possible CPUs")


# --- pins and their objects -----------------------------------------------------------------------------------


def obj_get(path: str | os.PathLike[str]) -> int:
    """A file descriptor for the object pinned at `path`; the caller closes it."""
    return checked(_library().bpf_obj_get(os.fsencode(path)), f"open the pin {os.fspath(path)}")


def obj_pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin the object of `fd`; raises FileExistsError if the path exists."""
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
    """What the kernel knows of a program."""
    info, function = _ProgramInfo(), (ct.c_uint32 * 2)()  # struct bpf_func_info: offset, type
    info.nr_func_info, info.func_info_rec_size, info.func_info = 1, ct.sizeof(function), ct.addressof(function)
    _info(fd, info, "ask about a program")
    type_id = function[1] if info.btf_id else 0
    instructions = info.xlated_prog_len // _INSTRUCTION_BYTES
    return ProgramInfo(info.id, info.name.decode(), instructions, info.verified_insns, type_id, info.jited_prog_len)


def program_by_id(program_id: int) -> int:
    """A file descriptor for a loaded program; the caller closes it."""
    return checked(_library().bpf_prog_get_fd_by_id(program_id), f"open program {program_id}")


# --- programs ---------------------------------------------------------------------------------------------------


def btf_load(content: bytes) -> int:
    """A file descriptor for type information; the caller closes it. Raises OSError, EINVAL if the kernel has no BTF."""
    return checked(_library().bpf_btf_load(content, len(content), None), "load type information")


def xdp_load(name: str, instructions: bytes, function: Function | None) -> int:
    """Verify and load an XDP program under the licence GPL; returns its file descriptor. function: its type."""
    options = _LoadOptions(sz=ct.sizeof(_LoadOptions))
    if function:
        info = (0).to_bytes(4, sys.byteorder) + function.type_id.to_bytes(4, sys.byteorder)  # struct bpf_func_info
        options.prog_btf_fd, options.func_info, options.func_info_cnt = function.btf, info, 1
        options.func_info_rec_size = len(info)
    count = len(instructions) // _INSTRUCTION_BYTES
    arguments = (_XDP, name.encode(), b"GPL", instructions, count, ct.byref(options))
    return checked(_library().bpf_prog_load(*arguments), f"load the program {name}")


def trace_refusal(program: int) -> str:
    """Why the kernel lets no tracing program attach to a program with a type; empty: it does. Attaches nothing."""
    options = _LoadOptions(sz=ct.sizeof(_LoadOptions), expected_attach_type=_AT_ENTRY)
    options.attach_prog_fd, options.attach_btf_id = program, program_info(program).type_id
    count = len(_RETURN_0) // _INSTRUCTION_BYTES
    code = _library().bpf_prog_load(_TRACING, b"probe", b"GPL", _RETURN_0, count, ct.byref(options))
    if code < 0:
        return os.strerror(-code)
    os.close(code)
    return ""
