"""Reads the traffic counters and joins them with health and sweep results for `ctl.api.commands.views`.

I/O in a thread, at most once per FRESH_S however many ask: reading every farm's and backend's counters takes a
millisecond or two.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bpf.dataplane import Array, DataPlane
from ctl.api.commands.views import Readings, Traffic
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.health.check_machine import HealthChecks
from ctl.health.probes.runner import now_ms

FRESH_S = 0.05


@dataclass(frozen=True, slots=True)
class _Counted:
    at_s: float
    farms: Array
    backends: Array


class Gauges:
    """The measured side of one node."""

    def __init__(self, plane: DataPlane, sweeper: Sweeper, health: HealthChecks) -> None:
        self._plane, self._sweeper, self._health = plane, sweeper, health
        self._last: _Counted | None = None
        self._lock = asyncio.Lock()

    async def take(self) -> Readings:
        """Everything measured, no older than FRESH_S; connection counts are those of the last sweep."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._last.at_s > FRESH_S:
                self._last = await asyncio.to_thread(self._read)
        counted = self._last
        return Readings(
            now_ms=now_ms(),
            farm_traffic=lambda number: _traffic(counted.farms, number),
            backend_traffic=lambda number: _traffic(counted.backends, number),
            backend_connections=self._sweeper.result.connections,
            health=self._health.status,
        )

    def _read(self) -> _Counted:
        return _Counted(time.monotonic(), self._plane.farm_traffic(), self._plane.backend_traffic())


def _traffic(table: Array, number: int) -> Traffic:
    return Traffic(*(int(value) for value in table[number].item()[:6]))
