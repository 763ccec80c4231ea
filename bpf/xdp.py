"""XDP programs by file descriptor: attach one to an interface, query an interface, run a program on a packet.

Decides nothing: `bpf.kernel.attach` decides the mode, and which programs are xlb's. Must not know pins or maps. Every failure
is an OSError with the kernel's errno and the operation.
"""

from __future__ import annotations

import ctypes as ct
import enum
import functools
import os
from dataclasses import dataclass

from bpf import libbpf
from bpf.libbpf import POINTER, checked

XDP_FLAGS_UPDATE_IF_NOEXIST = 1 << 0
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
XDP_FLAGS_REPLACE = 1 << 4
_LIVE_FRAMES = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES

MAX_OUTPUT_BYTES = 4096
"""The longest packet that a test run may return: a packet may grow."""


_SIGNATURES: libbpf.Signatures = {
    "bpf_xdp_attach": (ct.c_int, ct.c_int, ct.c_uint32, POINTER),
    "bpf_xdp_query": (ct.c_int, ct.c_int, POINTER),
    "bpf_prog_test_run_opts": (ct.c_int, POINTER),
}


class AttachMode(enum.IntEnum):
    """How an XDP program is attached to an interface (enum XDP_ATTACHED_*)."""

    NONE = 0
    NATIVE = 1
    GENERIC = 2
    OFFLOADED = 3
    SEVERAL = 4


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


@functools.cache
def _library() -> ct.CDLL:
    return libbpf.opened(_SIGNATURES)


def attach(ifindex: int, fd: int, flags: int, old_fd: int | None = None) -> None:
    """Attach program `fd` to an interface, -1 to detach. flags: XDP_FLAGS_*.

    old_fd: the program that must be attached now, so that no other is replaced (EEXIST).
    Raises OSError with the kernel's message if it gave one, e.g. "Peer MTU is too large to set XDP".
    """
    options = _AttachOptions(ct.sizeof(_AttachOptions), 0 if old_fd is None else old_fd, 0)
    if old_fd is not None:
        flags |= XDP_FLAGS_REPLACE
    pointer = None if old_fd is None else ct.byref(options)
    libbpf.last_message()  # discard that of an earlier call
    code = _library().bpf_xdp_attach(ifindex, fd, flags, pointer)
    if code < 0:
        reason = libbpf.last_message().rpartition("Kernel error message: ")[2]
        raise OSError(-code, reason or os.strerror(-code))


def query(ifindex: int) -> XdpState:
    """The XDP program attached to an interface, and its mode."""
    options = _QueryOptions(sz=ct.sizeof(_QueryOptions))
    checked(_library().bpf_xdp_query(ifindex, 0, ct.byref(options)), f"ask about XDP on interface {ifindex}")
    mode = AttachMode(options.attach_mode)
    several = options.drv_prog_id or options.skb_prog_id or options.hw_prog_id
    return XdpState(mode, options.prog_id or (several if mode is AttachMode.SEVERAL else 0))


def test_run(fd: int, packet: bytes, ifindex: int = 0, repeat: int = 1) -> TestRun:
    """Run an XDP program on `packet` without a network (BPF_PROG_TEST_RUN).

    ifindex: the ingress interface, in the caller's network namespace; 0: the kernel's choice.
    repeat: number of runs on the same packet, which is not restored between them.
    """
    output = ct.create_string_buffer(MAX_OUTPUT_BYTES)
    options = _TestRunOptions(sz=ct.sizeof(_TestRunOptions), repeat=repeat)
    source = ct.create_string_buffer(packet, max(len(packet), 1))
    options.data_in, options.data_size_in = ct.addressof(source), len(packet)
    options.data_out, options.data_size_out = ct.addressof(output), MAX_OUTPUT_BYTES
    context = _XdpContext(data_end=len(packet), ingress_ifindex=ifindex)
    if ifindex:
        options.ctx_in, options.ctx_size_in = ct.addressof(context), ct.sizeof(context)
    checked(_library().bpf_prog_test_run_opts(fd, ct.byref(options)), f"test-run a program on {len(packet)} bytes")
    return TestRun(options.retval, output.raw[: options.data_size_out], options.duration)


def send(fd: int, frame: bytes, ifindex: int, count: int) -> None:
    """Run an XDP program on `count` frames that are sent, redirected or received as its verdicts want them to be.

    The frames begin as `frame`, came in by interface `ifindex` of the caller's network namespace, and are recycled: a program
    that needs the bytes of `frame` writes them.
    """
    context = _XdpContext(data_end=len(frame), ingress_ifindex=ifindex)
    source = ct.create_string_buffer(frame, len(frame))
    options = _TestRunOptions(sz=ct.sizeof(_TestRunOptions), repeat=count, flags=_LIVE_FRAMES)
    options.data_in, options.data_size_in = ct.addressof(source), len(frame)
    options.ctx_in, options.ctx_size_in = ct.addressof(context), ct.sizeof(context)
    checked(_library().bpf_prog_test_run_opts(fd, ct.byref(options)), f"send {count} frames")
