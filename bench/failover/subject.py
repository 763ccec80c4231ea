"""What the judge needs of a pair: namespaces, MAC addresses, VIPs, and something that starts it and breaks it.

Decides which faults there are. Must not know which pairs there are.
"""

from __future__ import annotations

import enum
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tests.rig import VIP4, VIP6, Layout, Rig
from tests.rig.probes import PROBE_PORT
from tests.wait import wait_until

LAYOUT = Layout(nodes=2, backends=2)
VIPS = {4: VIP4, 6: VIP6}
HELD_PORT = 7000
"""Of the echo of held connections; new connections go to PROBE_PORT, where a backend accepts and closes them."""
PORTS = (HELD_PORT, PROBE_PORT)
BUSY = 4


class Fault(enum.StrEnum):
    """What happens to the node that serves."""

    CUT = "cut"  # both cables lose their carrier
    SILENT_CUT = "silent cut"  # the carriers stay, frames do not arrive
    KILL = "kill -9"
    STOP = "stop"  # SIGTERM
    FREEZE = "SIGSTOP"
    SWITCHOVER = "switchover"


CUTS = {Fault.CUT: False, Fault.SILENT_CUT: True}
"""Fault to whether it is silent: these are the rig's, the same for every pair."""


class Subject(Protocol):
    """A pair of nodes lb1 and lb2 in `rig`, which both forward PORTS of both VIPs to all backends, with the VIP as source."""

    name: str
    rig: Rig

    def start(self, heartbeat_ms: int) -> None:
        """Both nodes run, and one serves; the other one could take over with every connection."""

    def stop(self) -> None:
        """Neither runs, neither has a VIP."""

    def serving(self) -> list[str]:
        """The nodes that have the VIPs, as far as they know."""

    def is_settled(self) -> bool:
        """Whether one node serves and the other one could take over with every connection."""

    def strike(self, fault: Fault, node: str) -> None:
        """Let it happen to a node; returns when it has."""

    def heal(self, fault: Fault, node: str) -> None:
        """Undo it, as an operator would; the node comes back as the backup."""

    def power_on(self, apart_s: float) -> None:
        """Start both stopped nodes, the second one `apart_s` later; returns when both were started."""


@contextmanager
def starved(count: int = BUSY) -> Iterator[None]:
    """With `count` busy processes of ordinary priority on this machine."""
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-S", "-c", "while True: pass"]
    busy = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def cut(rig: Rig, fault: Fault, node: str) -> None:
    rig.cut_off(node, silently=CUTS[fault])


def let_pass(seconds: float) -> None:
    """A time that is part of what is measured."""
    until_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until_s, "a time to pass", 2 * seconds + 60, every_s=min(0.1, seconds / 20))
