"""Reads what `ctl.diagnosis.machine` judges. Blocks for a moment; changes nothing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from bpf.loading import bpffs, loader
from ctl.diagnosis.machine import Machine
from ctl.runtime.clock_check import clock_is_synchronised

_HEADERS = Path("/usr/include/linux/bpf.h")
_DEBIAN_BCC = Path("/usr/lib/python3/dist-packages/bcc")


def observe(bpf_dir: Path) -> Machine:
    """The machine as this process sees it."""
    synchronised, why = False, ""
    try:
        synchronised = clock_is_synchronised()
    except OSError as error:
        why = error.strerror or str(error)
    return Machine(
        capabilities=effective_capabilities(),
        release=os.uname().release,
        bpf_dir=str(bpf_dir),
        on_bpffs=bpffs.is_bpffs(_existing(bpf_dir)),
        bcc=importlib.util.find_spec("bcc") is not None or _DEBIAN_BCC.is_dir(),
        headers=_HEADERS.exists(),
        clock_synchronised=synchronised,
        clock=why,
        untraceable=loader.why_untraceable(bpf_dir),
    )


def _existing(path: Path) -> Path:
    """The path, or of one that does not exist yet the nearest directory above it that does."""
    return next((each for each in (path, *path.parents) if each.exists()), path)


def effective_capabilities() -> int:
    """CapEff of proc(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)
