"""What the daemon does to the connections: idle and misplaced ones end, a takeover keeps what was replicated.

docs/DATAPLANE.md, *Timeouts* and *What the daemon does*; RFC 5382 REQ-5, RFC 4787 REQ-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bpf.constants import RECENT_TICKS, REFRESH_SHIFT, TICK_SHIFT
from ctl.config.model import AllDown, Backend, Config, DrainThen, Farm, Mode, OnBackend, Protocol
from tests.model.bits import FORWARD, REPLICATED, RESET, SEEN
from tests.model.connections import is_closed, is_one_way, mirrored
from tests.model.packet import UDP
from tests.model.state import Flow, Key, State, Table

NO_FARM_S, FLOOR_S, GONE_AFTER_S, UDP_MOVES_AFTER_S = 120, 60, 3, 30


def ticks(seconds: int) -> int:
    """Rounded up: nothing ends early."""
    return -(-seconds * 1_000_000_000 >> TICK_SHIFT)


def age(state: State, flow: Flow) -> int:
    """0 for what is newer than now."""
    found = state.age(flow)
    return found if found < 1 << 31 else 0


# --- which connections end -----------------------------------------------------------------------------------


def selectable(farm: Farm, down: frozenset[int]) -> list[list[Backend]]:
    """Backends that get new connections, of each family by itself unless mode ipip reaches both."""
    four = [each for each in farm.backends if ":" not in each.address]
    six = [each for each in farm.backends if ":" in each.address]
    return [selectable_of(farm, group, down) for group in ([farm.backends] if farm.mode is Mode.IPIP else [four, six])]


def selectable_of(farm: Farm, backends: Sequence[Backend], down: frozenset[int]) -> list[Backend]:
    willing = [each for each in backends if each.weight and not each.draining]
    up = [each for each in willing if each.id not in down]
    if not up:
        return willing if farm.all_down is AllDown.ALL else []
    tiers = sorted(each.priority for each in up)
    last = tiers[min(farm.tier_minimum, len(tiers)) - 1]  # of the tiers that together have the minimum
    return [each for each in up if each.priority <= last]


def is_cut(backend: Backend, now_s: float) -> bool:
    """Its drain is over, and ends its connections."""
    return backend.draining and 0 < backend.drain_until <= now_s and backend.drain_then is DrainThen.CUT


@dataclass(slots=True)
class Daemon:
    """Remembers how full `flows` was, and since when a backend may not be used."""

    entries: dict[int, int] = field(default_factory=dict)  # of `flows`, at the last sweep
    unselectable: dict[int, float] = field(default_factory=dict)  # since when
    gone: dict[tuple[int, int], float] = field(default_factory=dict)  # farm and backend of flows: since when
    serving: bool = False
    farms: dict[int, int] = field(default_factory=dict)  # connections, as the last sweep counted them
    backends: dict[int, int] = field(default_factory=dict)

    def sweep(self, state: State, config: Config, down: frozenset[int], serving: bool) -> None:
        """serving: this node is active, so flows must leave backends that they may not have."""
        now_s = state.now_ns / 1e9
        if not serving or not self.serving:
            self.unselectable, self.gone = {}, {}
        self.serving = serving
        leaving = self._leaving(config, down, now_s) if serving else Leaving()
        seen: set[tuple[int, int]] = set()
        counts = {}
        self.farms, self.backends = {}, {}
        for tables in (state.flows, state.embryonic):
            for size in (4, 16):
                counts[tables[size].name] = len(tables[size].entries)
                self._sweep_table(state, config, tables[size], leaving, seen, now_s)
        state.farm_loads, state.backend_loads = self.farms, self.backends  # what was counted is the truth
        self.gone = {pair: since for pair, since in self.gone.items() if pair in seen}
        self.entries = {size: counts[state.flows[size].name] for size in (4, 16)}

    def _leaving(self, config: Config, down: frozenset[int], now_s: float) -> Leaving:
        owners, dead, lost, idle = dict[int, int](), set[int](), set[int](), set[int]()
        keeping = {farm.id for farm in config.farms.values() if farm.removed_policy is OnBackend.KEEP}
        for farm in config.farms.values():
            chosen = {each.id for group in selectable(farm, down) for each in group}
            failed = {each.id for each in farm.backends if each.id in down} - chosen
            owners |= {each.id: farm.id for each in farm.backends}
            if farm.on_backend_down is OnBackend.DEFAULT:
                dead |= failed
            elif farm.on_backend_down is not OnBackend.KEEP:
                lost |= failed
            lost |= {each.id for each in farm.backends if is_cut(each, now_s)}
            idle |= {each.id for each in farm.backends} - chosen - failed if chosen else set()
        self.unselectable = {number: self.unselectable.get(number, now_s) for number in idle}
        moves = {number for number, since in self.unselectable.items() if now_s - since >= UDP_MOVES_AFTER_S}
        return Leaving(True, owners, dead | moves, lost, keeping)

    def _sweep_table(
        self, state: State, config: Config, table: Table, leaving: Leaving, seen: set[tuple[int, int]], now_s: float
    ) -> None:
        entries = {key: flow.copy() for key, flow in table.entries.items()}
        misplaced = []
        for key, flow in entries.items():
            if leaving.active and leaving.owners.get(flow.backend) != flow.farm and flow.farm not in leaving.keeping:
                pair = flow.farm, flow.backend
                seen.add(pair)
                if now_s - self.gone.setdefault(pair, now_s) >= GONE_AFTER_S:
                    misplaced.append(key)
                    continue
            if flow.backend in leaving.all or (key.protocol == UDP and flow.backend in leaving.udp):
                misplaced.append(key)
        for key in misplaced:
            table.delete(key)
        for key in misplaced:
            end_opposite(state, key, entries[key])
        fill = self._fill(state, table)
        ended = []
        for key, flow in entries.items():
            if key in misplaced:
                continue
            if flow.flags & FORWARD and not is_closed(flow.state):
                self.farms[flow.farm] = self.farms.get(flow.farm, 0) + 1
                self.backends[flow.backend] = self.backends.get(flow.backend, 0) + 1
            other = opposite_of(state, table, key, flow)
            if is_idle(state, config, table, key, flow, other, fill):
                ended.append((key, flow.opposite(key.protocol) if other else None))
        for key, opposite in ended:
            table.delete(key)
            if opposite:
                state.flows[len(key.source)].delete(opposite)
                state.embryonic[len(key.source)].delete(opposite)

    def _fill(self, state: State, table: Table) -> float:
        """The share of `flows` that is in use; the embryonic map has no pressure, because it evicts."""
        for size in (4, 16):
            if table is state.flows[size]:
                return self.entries.get(size, 0) / table.capacity
        return 0.0


@dataclass(frozen=True, slots=True)
class Leaving:
    """owners: farm ids of backends. udp, all: backends whose UDP flows end, or all. keeping: farms whose removed backends keep
    theirs."""

    active: bool = False
    owners: dict[int, int] = field(default_factory=dict)
    udp: set[int] = field(default_factory=set)
    all: set[int] = field(default_factory=set)
    keeping: set[int] = field(default_factory=set)


def end_opposite(state: State, key: Key, flow: Flow) -> None:
    if is_one_way(flow):
        return
    opposite = flow.opposite(key.protocol)
    for table in (state.flows[len(key.source)], state.embryonic[len(key.source)]):
        other = table.get(opposite)
        if other and other.answers(key):
            table.delete(opposite)


def opposite_of(state: State, table: Table, key: Key, flow: Flow) -> Flow | None:
    """The entry of the other direction, if it is of the same connection; first in the same table."""
    if is_one_way(flow):
        return None
    size, opposite = len(key.source), flow.opposite(key.protocol)
    second = state.embryonic[size] if table is state.flows[size] else state.flows[size]
    other = table.get(opposite) or second.get(opposite)
    return other if other and other.answers(key) else None


def is_idle(state: State, config: Config, table: Table, key: Key, flow: Flow, other: Flow | None, fill: float) -> bool:
    """Both directions are silent for longer than the connection's state allows."""
    embryonic = table is state.embryonic[len(key.source)]
    if age(state, flow) < timeout(config, flow, flow.state, embryonic, fill):
        return False
    bits = flow.state
    if other:
        bits |= other.state & REPLICATED | mirrored(other.state)
    if not is_one_way(flow) and (not other or not flow.state & other.state & SEEN):
        bits &= ~SEEN
    silent = min(age(state, flow), age(state, other)) if other else age(state, flow)
    return silent >= timeout(config, flow, bits, embryonic, fill)


def timeout(config: Config, flow: Flow, bits: int, embryonic: bool, fill: float) -> int:
    """In ticks."""
    farm = next((each for each in config.farms.values() if each.id == flow.farm), None)
    idle, opening, closing = (NO_FARM_S,) * 3
    if farm:
        udp = farm.protocol is Protocol.UDP
        idle = farm.idle_timeout_s or (300 if udp else 7440)
        opening = min(farm.opening_timeout_s or (120 if udp else 240), idle)
        closing = min(farm.closing_timeout_s or 240, idle)
    handshake = is_one_way(flow) or (farm is not None and farm.protocol is Protocol.TCP)
    opens = not bits & (SEEN | REPLICATED) or (embryonic and handshake)
    chosen = ticks(closing if is_closed(bits) else opening if opens else idle)
    if fill > 0.6:  # adaptive, as in pf
        lowest = min(chosen, ticks(FLOOR_S))
        exact = lowest + (chosen - lowest) * min(1.0, max(0.0, (1 - fill) / 0.4))
        chosen = int(exact) + (exact > int(exact))
    chosen += 1 << REFRESH_SHIFT if bits & REPLICATED else 0
    return chosen if embryonic else chosen + RECENT_TICKS


# --- takeover ------------------------------------------------------------------------------------------------


def take_over(state: State) -> None:
    """The peer's tables: of each established connection the forward entry, and the reply entry made from it."""
    for size in (4, 16):
        flows = state.flows[size]
        kept = [(key, flow) for key, flow in flows.entries.items() if flow.flags & FORWARD]
        for tables in (state.flows, state.embryonic, state.fragments, state.direct):
            for key in list(tables[size].entries):
                tables[size].delete(key)
        for key, flow in kept:
            forward = Flow(flow.source, flow.destination, flow.source_port, flow.destination_port)
            reply = Flow(key.destination, key.source, key.destination_port, key.source_port)
            for entry in (forward, reply):
                entry.last_seen, entry.farm, entry.backend = flow.last_seen, flow.farm, flow.backend
            forward.flags, reply.flags = flow.flags, flow.flags & ~FORWARD
            forward.state = flow.state | REPLICATED
            reply.state = forward.state & (SEEN | RESET | REPLICATED) | mirrored(forward.state)
            flows.put(key, forward)
            flows.changed(key)
            if not is_one_way(flow):
                flows.put(flow.opposite(key.protocol), reply)
                flows.changed(flow.opposite(key.protocol))
