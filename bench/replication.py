"""Flow replication between two processes: real pinned maps, real rings, CURVE over loopback TCP.

    sudo .venv/bin/python -m bench.replication [--json] [--flows 1000000] [--seconds 10] [--runs 3]

Three processes share the machine: the active node's replicator, the backup's, and this one, which acts as the data plane: a
small BPF program writes flow events into the active's ring at a set rate. What is measured: the time until a joining peer
has every flow (with an empty map, and again with a full one); changes applied per second and lag at two rates, where lag is
from before a record is written until after it is in the peer's map; how late each event loop wakes every 10 ms meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.dataplane import compiled, import_bcc
from bpf import xdp
from bpf.constants import EventType, FlowFlag, FlowState, Protocol
from bpf.dataplane import Array
from bpf.kernel.plane import KernelPlane
from bpf.loading import compile, flatten, loader
from bpf.maps import elements
from bpf.maps.layout import Layouts
from ctl.cluster.flows.service import BULK_BOUNDS, Replicator
from ctl.daemon import THREAD_SWITCH_S
from ctl.runtime import realtime_scheduling
from sync.transport import Keys, Link
from tests.wait import wait_until

DEADLINE_S = 60.0
ADDRESSES = {"active": "127.0.0.1", "backup": "127.0.0.2"}
BOOTS = {"active": 1, "backup": 2}
TICK_S = 0.01
BATCH_S = 0.001
CHUNK = 65536


# --- a node --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """What a node's process records about itself."""

    in_step_s: float = 0.0
    late_ms: list[float] = field(default_factory=list)
    applied: list[tuple[float, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def step_changed(self, in_step: bool, why: str) -> None:
        self.in_step_s = time.monotonic() if in_step else 0.0
        self.reasons.append(why)


def run_node(role: str, pins: Path, layouts: Layouts, keys: Keys, peer_public: str, port: int, control: Connection) -> None:
    sys.setswitchinterval(THREAD_SWITCH_S)
    asyncio.run(_node(role, pins, layouts, keys, peer_public, port, control))


async def _node(role: str, pins: Path, layouts: Layouts, keys: Keys, peer_public: str, port: int, control: Connection) -> None:
    realtime_scheduling.run_in_time()
    loop, watch, plane, link = asyncio.get_running_loop(), Watch(), KernelPlane(pins, layouts), Link(keys, peer_public)
    peer = "backup" if role == "active" else "active"
    channel = link.open(ADDRESSES[role], ADDRESSES[peer], port, BULK_BOUNDS, lambda message: replicator.message(message))
    connections = [0]
    replicator = Replicator(plane, channel.send, BOOTS[role], lambda: 0, lambda: connections[0], watch.step_changed)
    _log_applied(replicator, watch)
    if role == "active":
        replicator.serve(1)
    orders: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    loop.add_reader(control.fileno(), lambda: orders.put_nowait(control.recv()))
    heartbeat = loop.create_task(_heartbeat(watch))
    gc.freeze()
    while True:
        order, argument = await orders.get()
        if order == "stop":
            break
        if order == "present":
            watch.in_step_s = 0.0
            replicator.peer_present(argument, BOOTS[peer] if argument else 0)
            control.send(time.monotonic())
        elif order == "watch":
            watch.late_ms.clear()
            watch.applied.clear()
            control.send(time.process_time())
        elif order == "report":
            control.send((watch, replicator.status(), time.process_time()))
    loop.remove_reader(control.fileno())
    heartbeat.cancel()
    replicator.close()
    await link.close()
    plane.close()


def _log_applied(replicator: Replicator, watch: Watch) -> None:
    table = replicator._engine.maps
    apply = table.apply

    def logged(family: str, count: int, payload: bytes, offset_ns: int) -> None:
        apply(family, count, payload, offset_ns)
        watch.applied.append((time.monotonic(), table.counts.applied_records))

    table.apply = logged  # type: ignore[method-assign]


async def _heartbeat(watch: Watch) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + TICK_S, loop.time())
        await asyncio.sleep(due - loop.time())
        watch.late_ms.append((loop.time() - due) * 1000)


# --- the bench -----------------------------------------------------------------------------------------------------


class Bench:
    """Two nodes' pins and processes, and the generator on the active's ring."""

    def __init__(self, stack: ExitStack, flows: int) -> None:
        self.flows = flows
        self.pins: dict[str, Path] = {}
        self.controls: dict[str, Connection] = {}
        keys = {role: Keys.generate() for role in ADDRESSES}
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        for role, peer in (("active", "backup"), ("backup", "active")):
            pins = Path("/sys/fs/bpf") / f"xlb-bench-{role}-{secrets.token_hex(4)}"
            run_dir = Path(tempfile.mkdtemp(prefix="xlb-bench-"))
            stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
            stack.callback(loader.remove_pins, pins)
            loaded = loader.ensure(loader.Build(pins, run_dir, flows + flows // 8, {"replication": True}))
            self.pins[role], self.layouts = pins, loaded.layouts
            here, there = context.Pipe()
            arguments = (role, pins, loaded.layouts, keys[role], keys[peer].public, port, there)
            process = context.Process(target=run_node, args=arguments, daemon=True)
            process.start()
            self.controls[role] = here
            stack.callback(process.join)
            stack.callback(here.send, ("stop", None))
        self.plane = KernelPlane(self.pins["active"], self.layouts)
        stack.callback(self.plane.close)
        self.generate, self.written = stack.enter_context(_generator(self.pins["active"], self.plane, flows))

    def ask(self, role: str, order: str, argument: Any = None) -> Any:
        self.controls[role].send((order, argument))
        if not self.controls[role].poll(DEADLINE_S):
            raise SystemExit(f"the {role} node does not answer")
        return self.controls[role].recv()

    def fill(self) -> None:
        """Write `flows` connections into the active's map."""
        key, flow = _pattern(self.plane)
        for first in range(0, self.flows, CHUNK):
            clients = np.arange(first, min(first + CHUNK, self.flows), dtype=np.uint32) + 0x0A000000
            raw = clients.astype(">u4").view("V4")
            keys, values = np.repeat(key, len(raw)), np.repeat(flow, len(raw))
            keys["source"] = values["source"] = raw
            reply_keys, reply = keys.copy(), values.copy()
            for name, other in (("source", "destination"), ("destination", "source")):
                reply_keys[name], reply_keys[name + "_port"] = values[other], values[other + "_port"]
                reply[name], reply[name + "_port"] = keys[other], keys[other + "_port"]
            reply["flags"] = 0
            for each in ((reply_keys, reply), (keys, values)):
                if self.plane.update_flows("v4", *each) != len(raw):
                    raise SystemExit("the active's map is too small")

    def join(self) -> dict[str, Any]:
        """Connect the peer; measures until the active node knows that the peer has every flow."""
        cpu = {role: self.ask(role, "watch") for role in ADDRESSES}
        self.ask("backup", "present", True)
        started = self.ask("active", "present", True)
        wait_until(lambda: self.ask("active", "report")[0].in_step_s, "the peer in step", DEADLINE_S)
        reports = {role: self.ask(role, "report") for role in ADDRESSES}
        return {
            "seconds": reports["active"][0].in_step_s - started,
            "loop_late_ms": {role: max(report[0].late_ms) for role, report in reports.items()},
            "cpu_s": {role: report[2] - cpu[role] for role, report in reports.items()},
            "resyncs": reports["active"][1].resyncs,
        }

    def part(self) -> None:
        for role in ADDRESSES:
            self.ask(role, "present", False)

    def stream(self, per_second: int, seconds: float) -> dict[str, Any]:
        """Write changes at a rate; measures when the peer had applied them."""
        cpu = {role: self.ask(role, "watch") for role in ADDRESSES}
        before = self.ask("backup", "report")[1].applied_records
        resyncs = self.ask("active", "report")[1].resyncs
        batches: list[tuple[float, int]] = []
        done, began = 0, time.monotonic()
        first = self.written()
        while (now := time.monotonic()) < began + seconds:
            due = int((now - began) * per_second) - done
            if due > 0:
                batches.append((now, done))
                self.generate(due)
                done += due
            time.sleep(BATCH_S)
        took = time.monotonic() - began
        lost = done - (self.written() - first)
        with contextlib.suppress(AssertionError):  # a resync replaces changes by fewer entries of a snapshot
            wait_until(lambda: self.ask("backup", "report")[1].applied_records - before >= done - lost, "all", DEADLINE_S)
        reports = {role: self.ask(role, "report") for role in ADDRESSES}
        applied = reports["backup"][0].applied
        ends, counts = (np.array(column) for column in zip(*applied, strict=True))
        starts, firsts = (np.array(column) for column in zip(*batches, strict=True))
        records = np.arange(0, done, max(1, done // 200_000))
        written_at = starts[np.searchsorted(firsts, records, side="right") - 1]
        at = np.searchsorted(counts - before, records, side="right")
        lag_ms = (ends[np.minimum(at, len(ends) - 1)] - written_at) * 1000
        in_time = int((counts[ends <= began + took + 0.05] - before).max(initial=0))
        return {
            "asked_per_s": per_second,
            "written_per_s": done / took,
            "applied_per_s": in_time / took,
            "lost": lost,
            "resyncs": reports["active"][1].resyncs - resyncs,
            "lag_ms": {name: float(np.percentile(lag_ms, share)) for name, share in (("p50", 50), ("p99", 99), ("max", 100))},
            "blocks": len(applied),
            "loop_late_ms": {role: max(report[0].late_ms) for role, report in reports.items()},
            "loop_late_p99_ms": {role: float(np.percentile(report[0].late_ms, 99)) for role, report in reports.items()},
            "cpu_share": {role: (report[2] - cpu[role]) / took for role, report in reports.items()},
        }


def _pattern(plane: KernelPlane) -> tuple[Array, Array]:
    key_type, flow_type = plane.flow_dtypes("v4")
    key, flow = np.zeros(1, key_type), np.zeros(1, flow_type)
    key["destination"], flow["destination"] = (
        np.frombuffer(socket.inet_aton(each), "V4") for each in ("192.0.2.1", "10.200.0.1")
    )
    key["source_port"] = flow["source_port"] = 40000
    key["destination_port"], flow["destination_port"], key["protocol"] = 80, 8080, Protocol.TCP
    flow["flags"], flow["state"], flow["farm"], flow["backend"] = FlowFlag.FORWARD, FlowState.SEEN, 1, 1
    flow["last_seen"], flow["next_hop_generation"] = plane.now_tick(), 1
    return key, flow


@contextmanager
def _generator(pins: Path, plane: KernelPlane, flows: int) -> Iterator[tuple[Any, Any]]:
    """A function that writes a number of events, and one that returns how many were written."""
    source = flatten.flatten(Path(__file__).parent / "flow_events.c")
    sizes = compile.c_sizes(
        flows + flows // 8, loader.Build(pins, pins, flows + flows // 8).max_embryonic, {"replication": True}
    )
    flags = [*compile.c_constants(), *sizes, f'-DPINS="{pins}"', f"-DFLOWS={flows}ULL"]
    with compiled(source, flags) as module:
        program = module.load_func("generate", import_bcc().BPF.SCHED_CLS).fd
        key, flow = _pattern(plane)
        event = np.zeros(1, plane._maps["events_v4"].value)
        event["key"], event["flow"], event["type"] = key, flow, EventType.ESTABLISHED
        elements.update(module["pattern"].map_fd, bytes(4), event.tobytes())

        def written() -> int:
            return int.from_bytes(elements.lookup(module["written"].map_fd, bytes(4), 8) or b"", sys.byteorder)

        yield lambda count: xdp.test_run(program, bytes(64), 0, count), written


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESSES["active"], 0))
        return int(probe.getsockname()[1])


def measure(flows: int, seconds: float, runs: int) -> dict[str, Any]:
    result: dict[str, Any] = {"flows": flows, "join": [], "rejoin": []}
    for run in range(runs):
        with ExitStack() as stack:
            bench = Bench(stack, flows)
            bench.fill()
            result["join"].append(bench.join())
            bench.part()
            result["rejoin"].append(bench.join())
            if run == runs - 1:
                result["lag_at_50k"] = bench.stream(50_000, seconds)
                result["sustained_200k"] = bench.stream(200_000, seconds)
    return result


def rows(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, measured, target, kept)."""
    join = [each["seconds"] for each in result["join"]]
    rejoin = [each["seconds"] for each in result["rejoin"]]
    lag, many = result["lag_at_50k"], result["sustained_200k"]
    late = [value for each in (*result["join"], *result["rejoin"], lag, many) for value in each["loop_late_ms"].values()]

    def seconds(values: list[float]) -> str:
        return f"median {statistics.median(values):.2f} s, worst {max(values):.2f} s"

    def stream(each: dict[str, Any]) -> str:
        of = each["lag_ms"]
        return f"p50 {of['p50']:.1f}, p99 {of['p99']:.1f}, max {of['max']:.1f} ms"

    return [
        (f"{result['flows']:,} flows to a joining peer", seconds(join), "<= 3 s", statistics.median(join) <= 3),
        ("the same to a peer that has them already", seconds(rejoin), "", True),
        (
            "changes applied per second, 200,000 written",
            f"{many['applied_per_s']:,.0f}",
            ">= 200,000",
            many["applied_per_s"] >= 196_000,
        ),
        ("lag at 200,000 changes/s", stream(many), "", True),
        ("lag at 50,000 changes/s", stream(lag), "p99 <= 50 ms", lag["lag_ms"]["p99"] <= 50),
        ("new snapshots while streaming", str(lag["resyncs"] + many["resyncs"]), "0", lag["resyncs"] + many["resyncs"] == 0),
        ("loop wakes late, worst of both nodes", f"{max(late):.1f} ms", "", True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--flows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each stream of changes")
    parser.add_argument("--runs", type=int, default=3, help="joins to measure")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: loads XDP programs and pins maps")
    result = measure(options.flows, options.seconds, options.runs)
    lines = rows(result)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        table = Table("what", "measured", "target", "kept")
        for what, measured, target, kept in lines:
            table.add_row(what, measured, target, "" if not target else "yes" if kept else "NO")
        Console().print(table)
    sys.exit(0 if all(kept for *_, kept in lines) else 1)


if __name__ == "__main__":
    main()
