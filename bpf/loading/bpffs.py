"""The file system that holds the pins: is it there, and if not, mount it. Knows paths, not what is pinned."""

from __future__ import annotations

import ctypes as ct
import os
from pathlib import Path

from bpf.dataplane import PlaneError

USUAL_PLACE = Path("/sys/fs/bpf")
_MAGIC = 0xCAFE4A11


def is_bpffs(path: Path) -> bool:
    """Whether `path` exists and lies on a bpffs."""
    buffer = (ct.c_long * 64)()  # struct statfs, whose first member is the magic number
    return _libc().statfs(os.fsencode(path), buffer) == 0 and buffer[0] & 0xFFFFFFFF == _MAGIC


def ensure(bpf_dir: Path) -> None:
    """Make sure bpf_dir's parent is on a bpffs; mounts one on /sys/fs/bpf when bpf_dir lies beneath it.

    Raises PlaneError with the command to run when that is not possible.
    """
    parent = bpf_dir.parent
    if is_bpffs(parent):
        return
    remedy = f"mount -t bpf bpf {USUAL_PLACE}"
    if not parent.is_relative_to(USUAL_PLACE):
        raise PlaneError(
            f"{parent}, where bpf_dir {bpf_dir} shall be made, is not a bpffs: choose a bpf_dir under {USUAL_PLACE}, "
            f"or run: mkdir -p {parent} && mount -t bpf bpf {parent}"
        )
    if not is_bpffs(USUAL_PLACE) and _libc().mount(b"bpf", os.fsencode(USUAL_PLACE), b"bpf", ct.c_ulong(0), None) != 0:
        reason = os.strerror(ct.get_errno())
        raise PlaneError(f"no bpffs on {USUAL_PLACE}, and mounting one failed ({reason}): run as root: {remedy}")
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _libc() -> ct.CDLL:
    return ct.CDLL(None, use_errno=True)
