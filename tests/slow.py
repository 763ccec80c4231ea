"""Runs a command on a slow machine: in a control group that has a share of the processors. `make test-slow` uses it.

Usage: python -m tests.slow SHARE COMMAND…; SHARE of all processors, e.g. 0.25. Needs root and a cgroup file system with the cpu
controller, version 2 (cpu.max) or 1 (cpu.cfs_quota_us); exits with 77 and the reason without one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

PERIOD_US = 100_000
SKIPPED = 77


def group_for(share: float, name: str) -> Path:
    """A new control group with this share of the processors. Raises OSError with the reason."""
    quota_us = round(share * (os.cpu_count() or 1) * PERIOD_US)
    for root, version in _roots():
        group = root / name
        if version == 2:
            with contextlib.suppress(OSError):
                (root / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
        limits = {"cpu.max": f"{quota_us} {PERIOD_US}"}
        if version == 1:
            limits = {"cpu.cfs_period_us": f"{PERIOD_US}", "cpu.cfs_quota_us": f"{quota_us}"}
        try:
            for file, value in limits.items():
                (group / file).write_text(value)
        except OSError:
            group.rmdir()
            raise
        return group
    raise OSError("no cgroup file system with the cpu controller is mounted")


def _roots() -> list[tuple[Path, int]]:
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        root = Path(place)
        if kind == "cgroup" and "cpu" in options.split(","):
            found.append((root, 1))
        if kind == "cgroup2" and "cpu" in (root / "cgroup.controllers").read_text().split():
            found.append((root, 2))
    return found


def main(share: float, command: list[str]) -> int:
    try:
        group = group_for(share, f"xlb-slow-{os.getpid()}")
    except OSError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return SKIPPED

    def enter() -> None:
        (group / "cgroup.procs").write_text(f"{os.getpid()}")

    try:
        print(f"{share:.0%} of {os.cpu_count()} processors: {' '.join(command)}", file=sys.stderr)
        return subprocess.run(command, preexec_fn=enter, check=False).returncode
    finally:
        with contextlib.suppress(OSError):  # a process that was left behind keeps it
            group.rmdir()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
