"""Whether the state directory can keep what a change would write: present, writable, with space left.

Looks without writing, so that looking every second wears nothing out. Blocks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ctl.state import cluster_file

FULL_BYTES = 64 << 10
LOW_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a state directory, and the remedy."""

    message: str
    remedy: str


def problem(state_dir: Path, paired: bool) -> Problem | None:
    """None: nothing is wrong."""
    if not state_dir.is_dir():
        return Problem(f"state_dir {state_dir} is gone", "restore it: a restart would lose farms and pair")
    if paired and not (state_dir / cluster_file.FILE).exists():
        path = state_dir / cluster_file.FILE
        return Problem(f"{path} is gone", "restore it: after a restart this node would refuse to serve")
    try:
        found = os.statvfs(state_dir)
    except OSError as error:
        return Problem(f"state_dir {state_dir} cannot be read: {error.strerror}", "look at the file system")
    if found.f_flag & os.ST_RDONLY:
        return Problem(f"state_dir {state_dir} is on a read-only file system, so changes are refused", "remount it")
    if found.f_bfree * found.f_frsize < FULL_BYTES or (found.f_files and not found.f_ffree):
        return Problem(f"state_dir {state_dir} is on a full disk, so changes are refused", "free some space")
    return None


def low_space(state_dir: Path) -> str:
    """A warning while there is still some space; empty if there is enough."""
    try:
        found = os.statvfs(state_dir)
    except OSError:
        return ""
    free = found.f_bfree * found.f_frsize
    return f"only {free >> 10} KiB are free" if free < LOW_BYTES else ""
