"""The programs of programs.c, loaded: send packets of a plan from an interface, and count them where they arrive.

Must not know what is between both ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compiling import compiled, import_bcc
from bench.wire.packets import MOST_FLOWS, Family, Template, definitions
from bpf import xdp
from tests.rig.namespaces import Namespace

PROGRAMS = Path(__file__).with_name("programs.c")
_NAMES = ("generate", "receive", "answer", "redirect")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of the generator did. cpu_s: processor time of its thread and the core's ksoftirqd, which do all the work."""

    sent: int
    at_server: int
    at_client: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Packets per second of one core."""
        return self.at_server / self.cpu_s

    @property
    def ns(self) -> float:
        """Nanoseconds of the core per packet."""
        return self.cpu_s * 1e9 / self.at_server


class Generator:
    """`core` runs the generator and, as frames over a veth are received on the core that sent them, all that follows."""

    def __init__(self, module: Any, family: Family, core: int) -> None:
        self.family, self.core = family, core
        self._module = module
        bcc = import_bcc()
        self.programs = {name: module.load_func(name.encode(), bcc.BPF.XDP).fd for name in _NAMES}
        self._ksoftirqd = ksoftirqd(core)

    def attach(self, namespace: Namespace, device: str, program: str) -> None:
        """Put one of the programs natively on an interface, in place of any other."""
        fd = self.programs[program]
        namespace.call(lambda: xdp.attach(socket.if_nametoindex(device), fd, xdp.XDP_FLAGS_DRV_MODE))

    def redirect(self, came_in_by: int, leaves_by: int, macs: bytes) -> None:
        """What the program `redirect` does with frames of an interface, by index; leaves_by 0: they leave by the same one."""
        hops = self._module[b"hops"]
        hops[came_in_by] = hops.Leaf(leaves_by, (ctypes.c_uint8 * 12)(*macs))

    def plan(self, template: Template, first: int, flows: int) -> None:
        """What the next runs send: flows `first` to `first + flows - 1` in turn."""
        if not 0 < flows <= MOST_FLOWS - first:
            raise ValueError(f"flows {first} to {first + flows - 1} are not in 0 to {MOST_FLOWS - 1}")
        plans = self._module[b"plans"]
        frame = (ctypes.c_uint8 * len(template.frame))(*template.frame)
        plans[0] = plans.Leaf(first, flows, template.network_sum, template.transport_sum, frame)

    def run(self, namespace: Namespace, device: str, count: int) -> Run:
        """Send `count` packets from an interface."""
        before = self._counts()

        def send() -> tuple[float, float]:
            os.sched_setaffinity(0, {self.core})
            index = socket.if_nametoindex(device)
            wall, cpu, other = time.monotonic(), time.thread_time(), ran_s(self._ksoftirqd)
            xdp.send(self.programs["generate"], self._frame, index, count)
            return time.monotonic() - wall, time.thread_time() - cpu + ran_s(self._ksoftirqd) - other

        wall_s, cpu_s = namespace.call(send)
        after = self._counts()
        sent, at_server, at_client = (new - old for new, old in zip(after, before, strict=True))
        return Run(sent, at_server, at_client, wall_s, cpu_s)

    @property
    def _frame(self) -> bytes:
        return bytes(self.family.frame_bytes)

    def _counts(self) -> list[int]:
        counters = self._module[b"counters"]
        return [sum(counters[ctypes.c_int(number)]) for number in range(3)]


@contextmanager
def generator(family: Family, core: int) -> Iterator[Generator]:
    with compiled(PROGRAMS.read_text(), definitions(family)) as module:
        yield Generator(module, family, core)


def ksoftirqd(core: int) -> int:
    """Its process id."""
    name = f"(ksoftirqd/{core})"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if name in (process / "stat").read_text():
                return int(process.name)
        except OSError:
            continue
    raise RuntimeError(f"no process {name}")


def ran_s(process: int) -> float:
    """Processor time of a process's threads in seconds, to the nanosecond, with the interrupts that they were charged for."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{process}/task").glob("*/schedstat")) / 1e9
