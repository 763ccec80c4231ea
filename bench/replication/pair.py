"""A pair of real daemons in the rig, whose connections are written where the program writes them: into the active node's flow
map and ring of changes.

The packets of so many connections would cost these two processors more than their replication. Everything after the ring is the
daemons': reading, sending, receiving and writing both entries of each connection into the peer's map.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from bench.compiling import compiled, import_bcc
from bench.replication.subject import link_bytes, processor_s
from bpf import xdp
from bpf.constants import EventType, FlowState
from bpf.dataplane import Array
from bpf.kernel.plane import KernelPlane
from bpf.loading import compile, flatten, loader
from bpf.maps import elements, layout
from ctl.dataplane.kernel.flow_maps import SLICE_ENTRIES, rest_after
from tests.net.many_flows import model
from tests.net.paired import DEFAULT_TIMING, PairSite, write_pair
from tests.rig import Layout, Node, Rig
from tests.wait import wait_until

FIRST_CLIENT, FIRST_BACKEND = 0x0A800000, 0x0B800000  # 10.128.0.0, 11.128.0.0 and following
MAX_FLOWS = 1_250_000
CLOSED = int(FlowState.FIN_HERE | FlowState.FIN_THERE)
DEADLINE_S = 60.0
IDLE_S, CLOSING_S = 86400, 120
"""As conntrack keeps entries that are established and in TIME_WAIT."""


class Pair:
    """A subject. Use as a context manager. processors: of the active node and of its peer."""

    name = "xlb"
    window = 30_000
    poll_s = 0.0005

    def __init__(self, processors: tuple[int, int]) -> None:
        self._stack = ExitStack()
        self._first = self._used = self._chunk = 0
        self._prepared = 0
        self._has = self._closed = 0
        with ExitStack() as stack:
            rig = stack.enter_context(Rig(Layout(nodes=2, backends=1, max_flows=MAX_FLOWS)))
            write_pair(rig, DEFAULT_TIMING)
            for node, processor in zip(rig.nodes, processors, strict=True):
                node.processor = processor
                node.start()
            self.site = PairSite(rig)
            self.active, self.peer = self.site.node, self.site.other
            self.site.add_farm("tcp", idle_timeout_s=IDLE_S, closing_timeout_s=CLOSING_S)
            self.planes = [stack.enter_context(_plane(node)) for node in (self.active, self.peer)]
            with self.site.holding(1):
                key, flow = model(self.planes[0])
            self._key = key
            self._generate = stack.enter_context(_generator(self.active, self.planes[0], key, flow))
            self.forget()
            self._stack = stack.pop_all()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, count: int, chunk: int) -> None:
        """New connections besides those that there are."""
        self._first, self._prepared, self._chunk = self._used, count, chunk
        self._used += count
        self._has = self._closed = 0

    def open(self, first: int, count: int) -> None:
        self._generate(self._first + first, EventType.ESTABLISHED, count)

    def close(self, first: int, count: int) -> None:
        self._generate(self._first + first, EventType.CLOSED, count)

    def progress(self) -> tuple[int, int]:
        """A ring keeps the order, so that a chunk is on the peer when its last connection is."""
        while self._has < self._prepared and self._state(self._has + self._chunk - 1) is not None:
            self._has += self._chunk
        while self._closed < self._has and (self._state(self._closed + self._chunk - 1) or 0) & CLOSED == CLOSED:
            self._closed += self._chunk
        return min(self._has, self._prepared), min(self._closed, self._prepared)

    def _state(self, number: int) -> int | None:
        key = self._key.copy()
        client = (FIRST_CLIENT + self._first + min(number, self._prepared - 1)).to_bytes(4, "big")
        key["source"] = np.frombuffer(client, key["source"].dtype)
        found, values = self.planes[1].lookup_flows("flows", "v4", key)
        return int(values["state"][0]) if found[0] else None

    def held(self) -> int:
        """Connections in the peer's map."""
        return entries(self.planes[1]) // 2

    def missing(self) -> int:
        return self._used - self.held()

    def fill(self, count: int) -> None:
        """Have `count` connections in both maps."""
        missing = count - self._used
        for at in range(0, missing, self.window):
            part = min(self.window, missing - at)
            self.prepare(part, part)
            self.open(0, part)
            wait_until(lambda: self.progress()[0] >= part, "the peer to have more connections", DEADLINE_S)  # noqa: B023

    def forget(self) -> None:
        """End all connections on both nodes."""
        for node in (self.active, self.peer):
            node.call("conn.flush")
        wait_until(lambda: self.held() == 0, "an empty map of the peer", DEADLINE_S)
        self.site.settle()
        self._used = 0

    def join_s(self, *, empty: bool) -> dict[str, float]:
        """Start the peer again; seconds until it is ready, and from there until it has every connection.

        empty: as a node that has been off; otherwise with what it had.
        """
        self.peer.stop()
        if empty:
            clear(self.planes[1])
        self.peer.start()
        ready_s = time.monotonic()
        wait_until(lambda: self.active.call("cluster.status")["sync"]["in_step"], "the peer in step", DEADLINE_S, every_s=0.005)
        return {"start": self.peer.started_in_s, "join": time.monotonic() - ready_s}

    def cpu_s(self) -> tuple[float, float]:
        return _used_s(self.active), _used_s(self.peer)

    def wire_bytes(self) -> int:
        return link_bytes(self.active.namespace)


def _used_s(node: Node) -> float:
    assert node.process is not None
    return processor_s([node.process.pid])


def entries(plane: KernelPlane) -> int:
    return sum(len(keys) for keys, _ in plane.flow_batches("flows", "v4", 1 << 16))


def clear(plane: KernelPlane) -> None:
    """Delete every connection of a node whose daemon does not run."""
    for keys in [keys for keys, _ in plane.flow_batches("flows", "v4", SLICE_ENTRIES)]:
        rest_after(plane.delete_flows("flows", "v4", keys))


@contextmanager
def _plane(node: Node) -> Iterator[KernelPlane]:
    layouts = layout.load(node.run_dir)
    assert layouts is not None
    plane = KernelPlane(node.bpf_dir, layouts)
    try:
        yield plane
    finally:
        plane.close()


@contextmanager
def _generator(node: Node, plane: KernelPlane, key: Array, flow: Array) -> Iterator[Callable[[int, EventType, int], None]]:
    """A function that writes changes of connections: first, type, count."""
    source = flatten.flatten(Path(__file__).parent / "flow_events.c")
    build = loader.Build(node.bpf_dir, node.run_dir, MAX_FLOWS)
    flags = [
        *compile.c_constants(),
        *compile.c_sizes(MAX_FLOWS, build.max_embryonic, {"replication": True}),
        f'-DPINS="{node.bpf_dir}"',
        f"-DFIRST_CLIENT={FIRST_CLIENT}u",
        f"-DFIRST_BACKEND={FIRST_BACKEND}u",
    ]
    with compiled(source, flags) as module:
        program = module.load_func(b"generate", import_bcc().BPF.SCHED_CLS).fd
        event = np.zeros(1, plane._maps["events_v4"].value)
        event["key"], event["flow"] = key, flow
        elements.update(module[b"pattern"].map_fd, bytes(4), event.tobytes())
        orders = module[b"orders"].map_fd

        def generate(first: int, kind: EventType, count: int) -> None:
            order = first.to_bytes(8, sys.byteorder) + int(kind).to_bytes(8, sys.byteorder)
            elements.update(orders, bytes(4), order)
            xdp.test_run(program, bytes(64), 0, count)

        yield generate
