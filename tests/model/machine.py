"""Executes steps on the model and on the program, and compares after each: verdict, frame, counters, entries, events.

After a packet only what the model used is compared; all maps follow every COMPARE_ALL_EVERY steps, around sweeps and takeovers,
and at the end of a history. So a difference elsewhere is found some steps later, and cutting the history down finds its step.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from bpf import libbpf
from bpf.columns import address_bytes
from bpf.constants import COUNTERS, EventType, Mode
from bpf.loading.compile import recent_sizes
from ctl.config.model import Config
from ctl.dataplane import planner
from ctl.dataplane.kernel import sweeper
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.slow_start import SlowStart
from tests.bpf.bed import SEED
from tests.bpf.tagged_bed import TaggedBed
from tests.model import daemon, datapath
from tests.model.copies import Copies
from tests.model.encoding import row_of
from tests.model.kernel import BACKENDS, FARMS, Kernel
from tests.model.state import Flow, Key, State, Table, Traffic
from tests.model.steps import (
    ChangeNextHops,
    Configure,
    Insert,
    Lease,
    MoveToCpu,
    Plug,
    Send,
    StallReader,
    Step,
    Sweep,
    TakeOver,
    TunnelSources,
    Wait,
)
from tests.model.vlans import Device, Vlans
from tests.model.wiring import routes_of

START_NS = 1 << 50  # thirteen days of uptime
COMPARE_ALL_EVERY = 64
_NUMBERS = {counter.name: 2 * number for number, counter in enumerate(COUNTERS)}


class Mismatch(AssertionError):
    """The program and the model differ."""


@dataclass(slots=True)
class Clock:
    """The plane as the sweeper sees it: with the time of the test."""

    plane: Any
    state: State

    def now_tick(self) -> int:
        return self.state.tick

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plane, name)


class Machine:
    """A node twice. `execute` raises Mismatch."""

    def __init__(self, kernel: Kernel, start_ns: int = START_NS) -> None:
        """Starts without configuration, with an open lease."""
        self.kernel = kernel
        kernel.enter()
        kernel.reset()
        bed = kernel.bed
        routes = routes_of(bed.in0, bed.out0)
        copies = Copies(*recent_sizes(bed.max_flows, libbpf.possible_cpus()))
        self.state = State(routes, copies, 2 * bed.max_flows, start_ns, seed=SEED, max_embryonic=bed.max_embryonic)
        self.state.cpu = kernel.move_to_cpu(0)
        self.state.modes -= {mode for name, mode in (("dsr", Mode.DSR), ("ipip", Mode.IPIP)) if not kernel.has(name)}
        if isinstance(bed, TaggedBed):
            self.state.vlans = Vlans()
        self.state.generation = int(kernel.plane._read_one("globals")["next_hop_generation"])
        kernel.set_clock(start_ns)
        self.config, self.down = Config(), frozenset[int]()
        self._planned = planner.PlannerState()
        self._daemon = daemon.Daemon()
        self._sweeper = Sweeper(
            Clock(kernel.plane, self.state),
            lambda: self.config,
            lambda: self.down if self._serving else None,
            kernel.bed.max_flows,
        )
        self._serving = True
        self._slow_start = SlowStart()
        self._counters, self._executed = kernel.counters(), 0
        self.counted: Counter[str] = Counter()
        """Packets by verdict, and events."""
        self._tables = {
            table.name: table
            for tables in (self.state.flows, self.state.embryonic, self.state.fragments, self.state.direct)
            for table in tables.values()
        }
        self._actions: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            Wait: self._wait,
            Lease: self._lease,
            Configure: self._configure,
            ChangeNextHops: self._change_next_hops,
            Sweep: self._sweep,
            TakeOver: self._take_over,
            Insert: self._insert,
            TunnelSources: self._tunnel_sources,
            MoveToCpu: self._move_to_cpu,
            StallReader: self._stall_reader,
            Plug: self._plug,
        }
        self.over = False
        self._survivors: dict[str, dict[Key, tuple[object, ...]]] = {}
        self._evicting = tuple(self.state.embryonic.values()) if bed.evicts else ()
        for table in self._evicting:
            table.missing = functools.partial(self._missing, table.name)

    def close(self) -> None:
        self._sweeper.close()

    def execute(self, step: Step) -> None:
        """One step on both, then compare. Nothing any more once the model could not predict a step (`Table.doubt`)."""
        if self.over:
            return
        self.state.touched.clear()
        self.state.events.clear()
        self._survivors.clear()
        corrects = isinstance(step, Sweep | TakeOver)  # what differed before would be made equal
        if corrects:
            self.compare_all()
        for table in self._evicting:
            table.begin()
        self._actions[type(step)](step)
        if self.over:
            return
        self._compare_touched()
        self._executed += 1
        if corrects or self._executed % COMPARE_ALL_EVERY == 0:
            self.compare_all()

    # --- steps -----------------------------------------------------------------------------------------------

    def _send(self, step: Send) -> None:
        ingress = self.kernel.interface(step.side)
        action, frame = self.kernel.run(step.frame, ingress)
        expected = datapath.handle(self.state, step.frame, ingress)
        self.over = any(table.doubt for table in self._evicting)
        if self.over:
            return
        self._compare_counters(expected.verdict)
        if (action, frame) != (expected.action, expected.frame):
            raise Mismatch(
                f"{expected.verdict}: action {action}, not {expected.action}; frame\n{frame.hex()}\nnot\n{expected.frame.hex()}"
            )
        self._compare_events()

    def _wait(self, step: Wait) -> None:
        self.state.now_ns += step.ns
        self.kernel.set_clock(self.state.now_ns)
        if self._slow_start.next_s is not None and self._now_s() >= self._slow_start.next_s:
            self._plan()

    def _lease(self, step: Lease) -> None:
        deadline = self.state.now_ns + step.deadline_ns if step.relative else step.deadline_ns
        self.state.deadline_ns = deadline
        self.kernel.plane.set_lease(deadline, 1)

    def _configure(self, step: Configure) -> None:
        self.config, self.down = step.config, step.down
        self._plan()

    def _plan(self) -> None:
        """Bring the configuration into the maps, as the daemon does; its operations are what the model knows of it."""
        shares, complete = self._slow_start.follow(self.config, self.down, self._now_s()), False
        while not complete:
            plan = planner.plan(self._planned, self.config, self.down, shares)
            self.kernel.plane.apply(plan.operations)
            for operation in plan.operations:
                self.state.apply(operation)
            self._planned, complete = plan.state, plan.complete

    def _change_next_hops(self, _: ChangeNextHops) -> None:
        self.kernel.plane.bump_next_hops()
        self._change_next_hops_of_model()

    def _change_next_hops_of_model(self) -> None:
        self.state.generation = self.state.generation % 0xFFFFFFFF + 1

    def _tunnel_sources(self, step: TunnelSources) -> None:
        self.kernel.plane.set_tunnel_sources(step.v4, step.v6)
        sources = [address_bytes(each) for each in (step.v4, step.v6) if each]
        self.state.tunnel_sources = {len(each): each for each in sources}
        self._change_next_hops_of_model()

    def _sweep(self, step: Sweep) -> None:
        self._serving = step.serving
        setattr(sweeper, "time", SimpleNamespace(monotonic=self._now_s, time=self._now_s))  # noqa: B010
        self._sweeper.result = self._sweeper._sweep()
        self._daemon.sweep(self.state, self.config, self.down, step.serving)

    def _now_s(self) -> float:
        return self.state.now_ns / 1e9

    def _take_over(self, _: TakeOver) -> None:
        self.kernel.take_over()
        daemon.take_over(self.state)

    def _insert(self, step: Insert) -> None:
        for key, flow in step.entries:
            tables = (self.state.flows[len(key.source)], self.state.embryonic[len(key.source)])
            table = tables[step.table == "embryonic"]
            if any(key in each.entries for each in tables) or len(table.entries) >= table.capacity:
                continue
            self.kernel.insert(table.name, key, flow)
            self._survivors.clear()
            table.put(key, flow)

    def _move_to_cpu(self, step: MoveToCpu) -> None:
        self.state.cpu = self.kernel.move_to_cpu(step.number)

    def _plug(self, step: Plug) -> None:
        known, index = self.state.vlans, self.kernel.interface
        assert known is not None and isinstance(self.kernel.bed, TaggedBed)
        self.kernel.bed.plug(step.in0, step.out0)
        ports = {index(name): port for name, port in (("in0", step.in0), ("out0", step.out0))}
        known.devices = {n: Device(index(port.lower), port.number, port.protocol) for n, port in ports.items() if port.number}
        known.tagged_only |= {each.lower for each in known.devices.values()}
        known.tagged_only -= {number for number, port in ports.items() if not port.number}
        self._change_next_hops_of_model()

    def _stall_reader(self, step: StallReader) -> None:
        self.kernel.stall_reader(step.space)
        self.state.ring_space = {} if step.space is None else {4: step.space, 16: step.space}

    def _missing(self, name: str, entries: dict[Key, Flow], written: Key | None) -> set[Key]:
        """Another connection may have the key of an entry that is gone; so may the same one, if it wrote the entry: then the
        next hop and the time are others."""
        if name not in self._survivors:
            self._survivors[name] = self.kernel.table(name)
        found = self._survivors[name]
        gone = {key for key, flow in entries.items() if key not in found or found[key][:4] != row_of(flow)[:4]}
        if written in entries and written in found and found[written][4:9] != row_of(entries[written])[4:9]:
            gone.add(written)
        return gone

    # --- comparisons -----------------------------------------------------------------------------------------

    def _compare_counters(self, verdict: str) -> None:
        """Those that the model counted; compare_all compares the others."""
        expected, same = self._counters, True
        for name, (packets, size) in self.state.counters.items():
            number = _NUMBERS[name]
            expected[number] += packets
            expected[number + 1] += size
            self.counted[name] += packets
            same = same and self.kernel.counter(number // 2) == (expected[number], expected[number + 1])
        self.state.counters.clear()
        if not same:
            self._compare_all_counters(f"the model's verdict is {verdict}; ")

    def _compare_all_counters(self, known: str = "") -> None:
        found, expected = self.kernel.counters(), self._counters
        if found != expected:
            more = {name: found[n] - expected[n] for name, n in _NUMBERS.items() if found[n] != expected[n]}
            raise Mismatch(f"{known}the program counted {more or 'other bytes'} more")

    def _compare_touched(self) -> None:
        for name, key in self.state.touched:
            found, expected = self.kernel.flow(name, key), self._row(self._tables[name], key)
            if found != expected:
                raise Mismatch(f"entry of {name} {key}:\n{found}\nnot\n{expected}")

    @staticmethod
    def _row(table: Table, key: Key) -> tuple[object, ...] | None:
        flow = table.entries.get(key)
        if flow is None:
            return None
        return () if table.name.startswith("direct") else row_of(flow)

    def _compare_events(self) -> None:
        found = self.kernel.events()
        expected = [(kind, key, row_of(flow)) for kind, key, flow in self.state.events]
        if found != expected:
            raise Mismatch(f"events {_named(found)}\nnot\n{_named(expected)}")

    def compare_all(self) -> None:
        """Everything that packets can change."""
        if self.over:
            return
        self._compare_all_counters()
        for name, table in self._tables.items():
            found = self.kernel.table(name)
            expected = {key: self._row(table, key) for key in table.entries}
            if found != expected:
                more, fewer = found.keys() - expected.keys(), expected.keys() - found.keys()
                other = [key for key in found.keys() & expected.keys() if found[key] != expected[key]]
                raise Mismatch(f"{name}: more {list(more)[:2]}, fewer {list(fewer)[:2]}, other {other[:2]}")
        clients = {key: (each.home, each.backend, each.last_used) for key, each in self.state.persistent.items()}
        _compare("persistent", self.kernel.persistent(), clients)
        windows = {client: (each.window, each.opened) for client, each in self.state.half_open.items()}
        _compare("half-open", self.kernel.half_open(), windows)
        pressure = {size: (each.opened, each.window, each.until) for size, each in self.state.pressure.items()}
        _compare("pressure", self.kernel.pressure(), pressure)
        _compare("rates", self.kernel.rates(), self.state.rates)
        for kind, loads, count in (("farm", self.state.farm_loads, FARMS), ("backend", self.state.backend_loads, BACKENDS)):
            if self.kernel.has("loads"):
                rows = _rows({n: (max(0, load),) for n, load in loads.items()}, count, 1)
                _compare_rows(f"{kind} loads", self.kernel.loads(kind, count), rows, 1)
        _compare("toa", self.kernel.first_data(), self.state.toa)
        farms, backends = self.kernel.traffic()
        for what, found_rows, traffic, count in (
            ("farm", farms, self.state.farm_traffic, FARMS),
            ("backend", backends, self.state.backend_traffic, BACKENDS),
        ):
            fields = len(Traffic._fields)
            _compare_rows(f"traffic of {what}", found_rows, _rows(traffic, count, fields), fields)


def _compare(what: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    if found != expected:
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        raise Mismatch(f"{what}: " + ", ".join(f"{key}: {found.get(key)}, not {expected.get(key)}" for key in keys[:3]))


def _rows(numbers: Mapping[int, tuple[int, ...]], count: int, fields: int) -> list[int]:
    """Of ids below count, one after the other, as arrays have them."""
    rows = [0] * (count * fields)
    for number, row in numbers.items():
        rows[number * fields : (number + 1) * fields] = row
    return rows


def _compare_rows(what: str, found: list[int], expected: list[int], fields: int) -> None:
    if found[fields:] != expected[fields:]:  # no farm or backend has id 0
        by_id = [dict(enumerate(zip(*[iter(each)] * fields, strict=True))) for each in (found, expected)]
        _compare(what, *by_id)


def _named(events: list[tuple[int, Key, tuple[object, ...]]]) -> list[tuple[str, object, object]]:
    return [(EventType(kind).name, key, row) for kind, key, row in events]
