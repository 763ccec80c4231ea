"""Finds what xlb left in the kernel, for its removal without a node file: programs on interfaces, and pins.

Decides which pins belong to this machine's interfaces: those whose program is attached to one of them. Pins of a daemon in
another network namespace are none of its business. Acts in the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from bpf import xdp
from bpf.kernel import attach
from bpf.loading.loader import program_path, run_dir_of

DEPTH = 3  # of a bpf_dir below its bpffs
MAX_DIRECTORIES = 1000


def programs() -> frozenset[int]:
    """Ids of xlb's programs on the interfaces."""
    found = set()
    for index, _ in socket.if_nameindex():
        with contextlib.suppress(OSError):
            program = xdp.query(index).program_id
            if program and attach.is_ours(program, own_id=0):
                found.add(program)
    return frozenset(found)


def pins(of: Collection[int]) -> dict[Path, Path | None]:
    """The bpf_dirs that have one of these programs, and the run_dir of each if it is known."""
    found: dict[Path, Path | None] = {}
    for directory in _directories():
        if program_path(directory).exists() and attach.own_program(directory) in of:
            found[directory] = run_dir_of(directory)
    return found


def _directories() -> Iterator[Path]:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    waiting = [(Path(fields[1]), DEPTH) for fields in mounts if fields[2] == "bpf"]
    for _ in range(MAX_DIRECTORIES):
        if not waiting:
            return
        directory, depth = waiting.pop(0)
        yield directory
        with contextlib.suppress(OSError):
            waiting += [(each, depth - 1) for each in sorted(directory.iterdir()) if depth and each.is_dir()]
