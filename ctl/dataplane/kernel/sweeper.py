"""Periodically deletes idle and misplaced flows and counts the others, in one thread and in batches, never on the loop.

`ctl.dataplane.expiry` decides which entries are idle, `ctl.dataplane.placement` which have a backend that they must leave; this
module decides when to sweep and deletes the entries. A sweep of a large map takes longer, so the pause grows with it: sweeping
takes at most a fifth of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeVar

import numpy as np

from bpf.constants import MAX_BACKENDS, MAX_FARMS
from bpf.dataplane import Array, DataPlane, PlaneError
from ctl.config.model import Config
from ctl.dataplane import expiry
from ctl.dataplane.flow_selection import FlowSelection
from ctl.dataplane.kernel import flow_maps
from ctl.dataplane.loads import corrected_bases
from ctl.dataplane.placement import Drain, Placement
from ctl.events.catalogue import DRAIN_ENDED, Event
from ctl.runtime.event_hub import Report, log_only
from ctl.runtime.realtime_scheduling import worker_threads

MIN_PAUSE_S = 1.0
MAX_PAUSE_S = 5.0
REST_PER_WORK = 4.0
LOAD_KINDS = ("farm", "backend")
NOTIFY_S = 12.0
"""Interval at which replication is notified of connections with a silent forward entry: well below the additional timeout of
replicated entries in `ctl.dataplane.expiry`."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Result of the last full sweep. `connections` counts by backend id; `entries` by map name, e.g. "flows_v4"."""

    connections: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    entries: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    expired: int = 0
    misplaced: int = 0
    unreplicated: int = 0  # connections that have lasted and are embryonic
    took_ms: float = 0.0
    farms: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))  # connections by farm id


class Follower(Protocol):
    """Observer of changes to established connections that no packet causes: flow replication. Called in the sweep's thread."""

    def removed(self, family: str, keys: Array) -> None:
        """These forward entries were deleted by the daemon."""

    def still_alive(self, family: str, keys: Array, values: Array) -> None:
        """Forward entries that are silent while their connection is busy; last_seen is the connection's."""


class Sweeper:
    """Runs as one task. Also executes requests about flows in the same thread, so that they cannot race with a sweep."""

    def __init__(
        self,
        plane: DataPlane,
        config: Callable[[], Config],
        down: Callable[[], frozenset[int] | None] = lambda: None,
        max_flows: int = 0,
        report: Report = log_only,
    ) -> None:
        """down: ids of backends whose check failed, or None while this node does not serve: then no flow has to leave its
        backend, because the active node decides it. max_flows: connections the map of established flows holds; 0: unknown.
        """
        self._plane, self._report = plane, report
        self._config, self._down, self._max_flows = config, down, max_flows
        self._placement: Placement | None = None  # while this node serves
        self._thread = worker_threads(1, "xlb-sweep")
        self.result = SweepResult()
        self.sweeps = 0
        self.expired = 0
        self._follower: Follower | None = None
        self._notified_s = 0.0
        self._wanted = asyncio.Event()

    def follow_with(self, follower: Follower) -> None:
        """Inform a follower from here on."""
        self._follower = follower

    def unfollow(self) -> None:
        """Inform no follower any more."""
        self._follower = None

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            started = time.monotonic()
            try:
                self.result = await self._in_thread(self._sweep)
            except (PlaneError, OSError) as error:
                log.error("cannot remove idle connections: %s", error)
            else:
                self.sweeps += 1
                self.expired += self.result.expired
            pause_s = min(MAX_PAUSE_S, max(MIN_PAUSE_S, REST_PER_WORK * (time.monotonic() - started)))
            deadline_s = self._placement.next_s if self._placement is not None else None
            if deadline_s is not None:
                pause_s = min(pause_s, max(0.0, deadline_s - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause_s)
            self._wanted.clear()

    def soon(self) -> None:
        """Sweep without a pause: flows have to leave their backend, or are not counted yet. Call it on the loop."""
        self._wanted.set()

    async def ask(self, question: Callable[[], T]) -> T:
        """Run a function that reads flows in the sweep's thread."""
        return await self._in_thread(question)

    async def flush(self, selection: FlowSelection) -> int:
        """Delete the selected flows now; returns the number of entries."""
        return await self._in_thread(lambda: self._remove(selection))

    async def count(self, selection: FlowSelection, current: bool = False) -> int:
        """As `flow_maps.count`, at this moment."""
        return await self._in_thread(lambda: flow_maps.count(self._plane, selection, current))

    def close(self) -> None:
        """Wait for the running work."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _remove(self, selection: FlowSelection) -> int:
        follower = self._follower
        return (
            flow_maps.remove(self._plane, selection, follower.removed) if follower else flow_maps.remove(self._plane, selection)
        )

    def _sweep(self) -> SweepResult:
        started = time.monotonic()
        follower = self._follower if started - self._notified_s >= NOTIFY_S else None
        if follower:
            self._notified_s = started
        config, down = self._config(), self._down()
        placement, ended = None, []
        if down is not None:
            placement = self._placement or Placement()
            ended = placement.follow(config, down, started, time.time())
        self._placement = placement
        timeouts = expiry.timeout_ticks(config)
        counts, of_farms = np.zeros(MAX_BACKENDS, dtype=np.intp), np.zeros(MAX_FARMS, dtype=np.intp)
        loads = {kind: self._plane.loads(kind) for kind in LOAD_KINDS}
        entries = {f"{table}_{family}": 0 for table in flow_maps.TABLES for family in flow_maps.FAMILIES}
        removed = moved = unreplicated = 0
        for table, family, keys, values in flow_maps.slices(self._plane):
            entries[f"{table}_{family}"] += len(keys)
            if placement is not None and (chosen := placement.misplaced(keys, values)).any():
                moved += self._remove_misplaced(table, family, keys[chosen], values[chosen])
                keys, values = keys[~chosen], values[~chosen]
            found_backends, found_farms = expiry.count_connections(values)
            counts += found_backends
            of_farms += found_farms
            if table == "embryonic" and self._follower is not None:
                unreplicated += self._count_lasting(family, keys, values)
            limits = timeouts.under_pressure(self._fill(family)) if table == "flows" else timeouts
            expired = self._expire(table, family, keys, values, limits, follower if table == "flows" else None)
            removed += expired
            flow_maps.rest_after(expired)
        for kind, counted in zip(LOAD_KINDS, (of_farms, counts), strict=True):
            self._correct(kind, loads[kind], counted)
        for drain in ended:
            self._report(log, _drain_ended(drain, self.result.connections.get(drain.id, 0)))
        for drain in placement.emptied(counts) if placement is not None else ():
            self._report(log, _drain_complete(drain))
        if moved:
            log.info("flows to removed, failed or unused backends ended: %d entries", moved)
        return SweepResult(
            _by_id(counts),
            entries,
            removed,
            moved,
            unreplicated,
            (time.monotonic() - started) * 1000,
            _by_id(of_farms),
        )

    def _correct(self, kind: str, before: Array | None, counted: Array) -> None:
        """Correct the loads that XDP has counted; the program may have been replaced during the sweep."""
        after = self._plane.loads(kind)
        if before is not None and after is not None:
            self._plane.set_load_bases(kind, corrected_bases(before, after, counted))

    def _count_lasting(self, family: str, keys: Array, values: Array) -> int:
        forward = flow_maps.is_forward(values)
        keys, values = keys[forward], values[forward]
        if not len(keys):
            return 0
        found, opposite = self._plane.lookup_flows("embryonic", family, expiry.opposite_keys(keys, values))
        return int(np.count_nonzero(expiry.lasting(values, found, opposite)))

    def _fill(self, family: str) -> float:
        """How full the map of established flows was at the last sweep, 0 to 1."""
        return self.result.entries.get(f"flows_{family}", 0) / (2 * self._max_flows) if self._max_flows else 0.0

    def _remove_misplaced(self, table: str, family: str, keys: Array, values: Array) -> int:
        """Delete these entries of a map and those of their opposite directions; returns how many were deleted."""
        removed = self._plane.delete_flows(table, family, keys)
        opposite_keys = expiry.opposite_keys(keys, values)
        for where in flow_maps.TABLES:
            found, opposite = self._plane.lookup_flows(where, family, opposite_keys)
            ours = found & expiry.is_opposite(keys, opposite)
            if ours.any():
                removed += self._plane.delete_flows(where, family, opposite_keys[ours])
        forward = flow_maps.is_forward(values)
        if self._follower is not None and table == "flows" and forward.any():
            self._follower.removed(family, keys[forward])
        flow_maps.rest_after(removed)
        return removed

    def _expire(
        self, table: str, family: str, keys: Array, values: Array, timeouts: expiry.Timeouts, follower: Follower | None
    ) -> int:
        """Delete the idle connections of a batch, both directions; returns the number of entries.

        follower: notified of connections that only their reply entry keeps alive.
        """
        now_tick = self._plane.now_tick()
        embryonic = table == "embryonic"
        checked = values if follower is None else expiry.without_slack(values)
        idle = expiry.candidates(checked, now_tick, timeouts, embryonic)
        if not idle.any():
            return 0
        keys, values = keys[idle], values[idle]
        opposite_keys = expiry.opposite_keys(keys, values)
        found, opposite = self._plane.lookup_flows(table, family, opposite_keys)
        if (
            not found.all()
        ):  # while a connection moves to the map of established flows, its two entries may be in different maps
            other = flow_maps.TABLES[1 - flow_maps.TABLES.index(table)]
            missing = np.flatnonzero(~found)
            found[missing], opposite[missing] = self._plane.lookup_flows(other, family, opposite_keys[missing])
        gone, opposite_gone = expiry.expired(keys, values, found, opposite, now_tick, timeouts, embryonic)
        if follower is not None:
            busy = ~gone & found & expiry.only_reply_is_busy(values, opposite, now_tick)
            if busy.any():
                values["last_seen"][busy] = opposite["last_seen"][busy]
                follower.still_alive(family, keys[busy], values[busy])
        removed = 0
        for where in flow_maps.TABLES:
            # Two calls, not one with the keys joined: numpy would turn the joined ports into the host's byte order.
            for chosen in (keys[gone], opposite_keys[opposite_gone]) if where == table else (opposite_keys[opposite_gone],):
                if len(chosen):
                    removed += self._plane.delete_flows(where, family, chosen)
        return removed

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _by_id(counts: Array) -> dict[int, int]:
    used = np.flatnonzero(counts)
    return dict(zip(used.tolist(), counts[used].tolist(), strict=True))


def _drain_ended(drain: Drain, left: int) -> Event:
    end = "connections ended" if drain.cut else "connections continue"
    message = f"drain of backend {drain.backend} of farm {drain.farm} reached its deadline: {left} {end}"
    return DRAIN_ENDED(message, farm=drain.farm, backend=drain.backend, cause="deadline", connections=left, cut=drain.cut)


def _drain_complete(drain: Drain) -> Event:
    message = f"drain of backend {drain.backend} of farm {drain.farm} is complete: it has no connections"
    return DRAIN_ENDED(message, farm=drain.farm, backend=drain.backend, cause="empty", connections=0, cut=False)
