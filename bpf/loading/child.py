"""Runs the compile child for as long as it works, however slow the machine is.

Decides when a child hangs: it has used no processor time for SILENCE_S, or more than a compilation on any machine needs. Must
not know what the child does.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bpf.loading.spawn import Process

SILENCE_S = 60.0
MAX_PROCESSOR_S = 900.0
LOOK_EVERY_S = 1.0


class Hangs(Exception):
    """The child was stopped; the message is the cause."""


@dataclass(slots=True)
class Work:
    """What is known of a child's work. Times in seconds: `began_s` and `now_s` on one clock, `used_s` of the processor."""

    began_s: float
    _used_s: float = 0.0

    def judge(self, now_s: float, used_s: float) -> str:
        """Why the child is to be stopped; empty while it works."""
        if used_s > self._used_s:
            self.began_s, self._used_s = now_s, used_s
        if used_s > MAX_PROCESSOR_S:
            return f"it used {used_s:.0f} s of processor time without an end"
        if now_s - self.began_s >= SILENCE_S:
            return f"it has done nothing for {SILENCE_S:g} s"
        return ""


def run(
    command: Sequence[str], document: bytes, environment: Mapping[str, str], working: Callable[[], None]
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end with `document` on stdin. working: called every second meanwhile. Raises Hangs."""
    with _memory() as stdin, _memory() as output, _memory() as errors:  # pipes would have to be emptied meanwhile
        stdin.write(document)
        stdin.seek(0)
        child = Process(command, environment, stdin.fileno(), output.fileno(), errors.fileno())
        work = Work(time.monotonic())
        try:
            while not child.wait(LOOK_EVERY_S):
                if cause := work.judge(time.monotonic(), _used_s(child.pid)):
                    raise Hangs(cause)
                working()
        finally:
            child.end()
        assert child.exit_status is not None
        return subprocess.CompletedProcess(command, child.exit_status, _content(output), _content(errors))


def _memory() -> IO[bytes]:
    return os.fdopen(os.memfd_create("xlb-compile"), "w+b", buffering=0)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _used_s(pid: int) -> float:
    """Processor time of a process, in seconds (proc(5)); 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
