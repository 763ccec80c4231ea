"""Executes steps on the model and on the program, and compares after each: verdict, frame, counters, entries, events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from bpf.columns import address_bytes
from bpf.constants import COUNTERS, EventType
from ctl.config.model import Config
from ctl.dataplane import planner
from ctl.dataplane.kernel import sweeper
from ctl.dataplane.kernel.sweeper import Sweeper
from tests.bpf.bed import SEED
from tests.model import daemon, datapath
from tests.model.encoding import row_of
from tests.model.kernel import BACKENDS, FARMS, Kernel
from tests.model.state import Key, State, Table
from tests.model.steps import ChangeNextHops, Configure, Insert, Lease, Send, Step, Sweep, TakeOver, TunnelSources, Wait
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
        self.state = State(routes_of(kernel.bed.in0, kernel.bed.out0), 2 * kernel.bed.max_flows, start_ns, seed=SEED)
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
        }

    def close(self) -> None:
        self._sweeper.close()

    def execute(self, step: Step) -> None:
        """One step on both, then compare."""
        self.state.touched.clear()
        self.state.events.clear()
        self._actions[type(step)](step)
        self._compare_touched()
        self._executed += 1
        if not isinstance(step, Send) or self._executed % COMPARE_ALL_EVERY == 0:
            self.compare_all()

    # --- steps -----------------------------------------------------------------------------------------------

    def _send(self, step: Send) -> None:
        bed = self.kernel.bed
        ingress = bed.in0 if step.side == "in0" else bed.out0
        action, frame = self.kernel.run(step.frame, ingress)
        expected = datapath.handle(self.state, step.frame, ingress)
        self._compare_counters(expected.verdict)
        if (action, frame) != (expected.action, expected.frame):
            raise Mismatch(
                f"{expected.verdict}: action {action}, not {expected.action}; frame\n{frame.hex()}\nnot\n{expected.frame.hex()}"
            )
        self._compare_events()

    def _wait(self, step: Wait) -> None:
        self.state.now_ns += step.ns
        self.kernel.set_clock(self.state.now_ns)

    def _lease(self, step: Lease) -> None:
        deadline = self.state.now_ns + step.deadline_ns if step.relative else step.deadline_ns
        self.state.deadline_ns = deadline
        self.kernel.plane.set_lease(deadline, 1)

    def _configure(self, step: Configure) -> None:
        self.config, self.down = step.config, step.down
        complete = False
        while not complete:
            plan = planner.plan(self._planned, self.config, self.down)
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
            if not any(key in each.entries for each in tables) and table.put(key, flow):
                self.kernel.insert(table.name, key, flow)

    # --- comparisons -----------------------------------------------------------------------------------------

    def _compare_counters(self, verdict: str) -> None:
        found = self.kernel.counters()
        expected = self._counters
        for name, (packets, size) in self.state.counters.items():
            number = _NUMBERS[name]
            expected[number] += packets
            expected[number + 1] += size
            self.counted[name] += packets
        self.state.counters.clear()
        if found != expected:
            more = {name: found[n] - expected[n] for name, n in _NUMBERS.items() if found[n] != expected[n]}
            raise Mismatch(f"the model's verdict is {verdict}; the program counted {more or 'other bytes'} more")

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
                _compare(f"{kind} loads", self.kernel.loads(kind, count), {n: max(0, loads.get(n, 0)) for n in range(count)})
        _compare("toa", self.kernel.first_data(), self.state.toa)
        farms, backends = self.kernel.traffic()
        for what, found_rows, traffic, count in (
            ("farm", farms, self.state.farm_traffic, FARMS),
            ("backend", backends, self.state.backend_traffic, BACKENDS),
        ):
            for number in range(1, count):
                row = tuple(found_rows[6 * number : 6 * number + 6])
                if row != tuple(traffic[number]):
                    raise Mismatch(f"traffic of {what} {number}: {row}, not {traffic[number]}")


def _compare(what: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    if found != expected:
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        raise Mismatch(f"{what}: " + ", ".join(f"{key}: {found.get(key)}, not {expected.get(key)}" for key in keys[:3]))


def _named(events: list[tuple[int, Key, tuple[object, ...]]]) -> list[tuple[str, object, object]]:
    return [(EventType(kind).name, key, row) for kind, key, row in events]
