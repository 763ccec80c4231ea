"""Short TCP connections per second of one core: both ends are XDP programs (conversation.c), so that they cost next to nothing.

As with UDP, both ends and a balancer in the kernel run on the core of the client. Must not know which balancer is measured.
"""

from __future__ import annotations

import ctypes
import ipaddress
import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.compiling import compiled, import_bcc
from bench.wire.balancers import REQUEST_PORT, Balancer
from bench.wire.generator import ksoftirqd, ran_s
from bench.wire.packets import FIRST_SOURCE
from bpf import xdp
from tests.rig.namespaces import Namespace
from tests.wait import wait_until

PROGRAMS = Path(__file__).with_name("conversation.c")
DATA_BYTES = 10
"""Of a request and of a response. Frames have 64 bytes: the kernel gives a frame of a test run no space to grow."""
LOST = 0.001
"""The share of connections that may not come to their end."""
_STARTED, _ANSWERED, _CLOSED, _RESET = range(4)
_FRAME_BYTES = 14 + 20 + 20 + DATA_BYTES


class Short:
    """See `short_connections`."""

    def __init__(self, module: Any, core: int) -> None:
        self._core, self._module = core, module
        kind = import_bcc().BPF.XDP
        self._programs = {name: module.load_func(name.encode(), kind).fd for name in ("open", "ask", "reply")}
        self._ksoftirqd = [ksoftirqd(each) for each in sorted(os.sched_getaffinity(0) | {core})]
        self._unused = itertools.count(1 << 20, len(os.sched_getaffinity(0)) << 20)

    def attach(self, balancer: Balancer) -> None:
        """From now on the ends of the balancer's site hold such conversations."""
        site = balancer.site
        site.offloads(large=False, merge=not balancer.native)
        self._put("ask", site.client)
        self._put("reply", site.server)

    def _put(self, program: str, namespace: Namespace) -> None:
        fd = self._programs[program]
        namespace.call(lambda: xdp.attach(socket.if_nametoindex("eth0"), fd, xdp.XDP_FLAGS_DRV_MODE))

    def per_core_s(self, balancer: Balancer, count: int, concurrency: int) -> float:
        """Connections per second of processor time. Raises AssertionError if more than LOST of them did not end well."""
        balancer.forget()
        balancer.prepare()
        site = balancer.site
        plans, counters = self._module[b"plans"], self._module[b"counters"]
        vip = int(ipaddress.IPv4Address(balancer.vips[4]))
        macs = (ctypes.c_uint8 * 12)(*site.macs_to_balancer())
        first = next(self._unused)
        plans[0] = plans.Leaf(first, count, vip, macs)
        for number in range(4):
            counters[ctypes.c_int(number)] = counters.Leaf()

        def counted(number: int) -> int:
            return int(sum(counters[ctypes.c_int(number)]))

        processes = [*balancer.processes, *self._ksoftirqd]
        before = sum(map(ran_s, processes))

        def start() -> float:
            os.sched_setaffinity(0, {self._core})
            used = time.thread_time()
            xdp.send(self._programs["open"], bytes(_FRAME_BYTES), socket.if_nametoindex("eth0"), concurrency)
            return time.thread_time() - used

        cpu_s = site.client.call(start)
        wait_until(lambda: counted(_CLOSED) + concurrency >= count, f"{site.name} closes {count} connections", every_s=0.001)
        cpu_s += sum(map(ran_s, processes)) - before
        answered, resets = counted(_ANSWERED), counted(_RESET)
        plans[0] = plans.Leaf(first, 0, vip, macs)
        assert answered + concurrency >= (1 - LOST) * count and resets <= LOST * count, (
            f"{site.name}: {answered}, {resets} reset"
        )
        return answered / cpu_s


@contextmanager
def short_connections(core: int) -> Iterator[Short]:
    definitions = {"DATA_BYTES": DATA_BYTES, "FIRST_SOURCE": f"{FIRST_SOURCE}U", "SERVICE_PORT": REQUEST_PORT}
    with compiled(PROGRAMS.read_text(), [f"-D{name}={value}" for name, value in definitions.items()]) as module:
        yield Short(module, core)
