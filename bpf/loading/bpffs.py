"""Checks that the pins are on a bpffs, and mounts one if needed. Knows paths; must not know what is pinned."""

from __future__ import annotations

import ctypes as ct
import os
from pathlib import Path

from bpf.dataplane import PlaneError

USUAL_MOUNT = Path("/sys/fs/bpf")
_MAGIC = 0xCAFE4A11


def is_bpffs(path: Path) -> bool:
    """Whether `path` exists on a bpffs."""
    buffer = (ct.c_long * 64)()  # struct statfs, whose first member is the magic number
    return _libc().statfs(os.fsencode(path), buffer) == 0 and buffer[0] & 0xFFFFFFFF == _MAGIC


def ensure(bpf_dir: Path) -> None:
    """Make sure bpf_dir's parent is on a bpffs; mounts one on /sys/fs/bpf if bpf_dir is under it.

    Raises PlaneError naming the command to run if that is not possible.
    """
    parent = bpf_dir.parent
    if is_bpffs(parent):
        return
    remedy = f"mount -t bpf bpf {USUAL_MOUNT}"
    if not parent.is_relative_to(USUAL_MOUNT):
        raise PlaneError(
            f"{parent}, the parent of bpf_dir {bpf_dir}, is not a bpffs: choose a bpf_dir under {USUAL_MOUNT}, "
            f"or run: mkdir -p {parent} && mount -t bpf bpf {parent}"
        )
    if not is_bpffs(USUAL_MOUNT) and _libc().mount(b"bpf", os.fsencode(USUAL_MOUNT), b"bpf", ct.c_ulong(0), None) != 0:
        reason = os.strerror(ct.get_errno())
        raise PlaneError(f"no bpffs on {USUAL_MOUNT}, and mounting one failed ({reason}): run as root: {remedy}")
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _libc() -> ct.CDLL:
    return ct.CDLL(None, use_errno=True)
