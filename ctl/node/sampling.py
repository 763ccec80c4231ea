"""Each second: values compared with their limits, and rates while somebody watches.

I/O in a thread. Decides what is measured; which crossing is an event is decided in `ctl.events.thresholds`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bpf.constants import COUNTERS, Kind
from bpf.dataplane import DataPlane, PlaneError
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.events.catalogue import RATES, Event
from ctl.events.thresholds import Thresholds
from ctl.runtime.event_hub import EventHub
from ctl.runtime.loop_lag import LoopLag

PERIOD_S = 1.0

_DROPS = tuple(each.name for each in COUNTERS if each.kind is Kind.DROP)

log = logging.getLogger(__name__)


class Member(Protocol):
    """What it uses of `ctl.cluster.member.PairMember`."""

    @property
    def lag_ms(self) -> float: ...


@dataclass(frozen=True, slots=True)
class _Counts:
    at_s: float
    packets: int
    bytes: int
    connections: int
    drops: int


class Sampling:
    """Runs as one task."""

    def __init__(
        self,
        hub: EventHub,
        plane: DataPlane,
        sweeper: Sweeper,
        max_flows: int,
        lag: LoopLag,
        member: Callable[[], Member | None],
    ) -> None:
        self._hub, self._plane, self._sweeper, self._lag, self._member = hub, plane, sweeper, lag, member
        self._max_entries = 2 * max_flows  # each connection has two
        self._thresholds = Thresholds()
        self._before: _Counts | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            for event in self._thresholds.judge(self._values()):
                self._hub.report(log, event)
            if self._hub.rates_wanted:
                await self._sample()
            else:
                self._before = None

    def _values(self) -> dict[str, float]:
        entries, member = self._sweeper.result.entries, self._member()
        most = max(entries.get(f"flows_{family}", 0) for family in ("v4", "v6"))
        values = {"flow_map_fill": 100 * most / self._max_entries, "loop_lag": self._lag.worst_ms_of(PERIOD_S)}
        return values | {"replication_lag": member.lag_ms} if member is not None else values

    async def _sample(self) -> None:
        at_s = asyncio.get_running_loop().time()
        try:
            counts = await asyncio.to_thread(self._read, at_s)
        except (PlaneError, OSError) as error:  # e.g. while the program is replaced
            log.debug("no rates of this second: %s", error)
            self._before = None
            return
        if self._before is not None:
            self._hub.report(log, rates(self._before, counts, sum(self._sweeper.result.connections.values())))
        self._before = counts

    def _read(self, at_s: float) -> _Counts:
        farms, counters = self._plane.farm_traffic(), self._plane.counters()

        def total(*columns: str) -> int:
            return sum(int(farms[each].sum()) for each in columns)

        return _Counts(
            at_s,
            total("packets_in", "packets_out"),
            total("bytes_in", "bytes_out"),
            total("connections"),
            sum(counters.get(name, (0, 0))[0] for name in _DROPS),
        )


def rates(before: _Counts, after: _Counts, connections: int) -> Event:
    """Per second between two readings; a counter that was reset counts from zero."""
    seconds = max(after.at_s - before.at_s, 1e-3)

    def per_second(old: int, new: int) -> float:
        return round((new - old if new >= old else new) / seconds, 1)

    packets, bits = per_second(before.packets, after.packets), 8 * per_second(before.bytes, after.bytes)
    opened, drops = per_second(before.connections, after.connections), per_second(before.drops, after.drops)
    text = (
        f"{packets:,.0f} packets/s, {bits / 1e6:,.2f} Mbit/s, {opened:,.0f} new connections/s, {drops:,.0f} drops/s, "
        f"{connections:,} connections"
    )
    return RATES(
        text, packets_per_s=packets, bits_per_s=bits, new_connections_per_s=opened, drops_per_s=drops, connections=connections
    )
