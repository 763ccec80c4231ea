"""The command `metrics`: everything that is measured, as columns of numbers; `ctl.metrics` makes metrics of them.

I/O and everything that grows with farms and backends in a thread, in slices; the loop is held for microseconds. Names are
made once per configuration. Columns travel as bytes of little-endian numbers, so that packing them costs nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpf.constants import COUNTERS
from bpf.dataplane import Array, DataPlane
from ctl.api.commands.dispatcher import Arguments, Dispatcher, ReadConfig, Result
from ctl.api.commands.status import Reconciling, resident_bytes
from ctl.cluster.membership import Membership
from ctl.config.model import CheckKind, Config, Mode, format_endpoint
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.xdp_interfaces import DataInterfaces
from ctl.health.check_machine import HealthChecks
from ctl.network.network import Network
from ctl.runtime.event_hub import EventHub
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.startup import Startup
from ctl.version import package_version

SLICE = 200
"""Farms whose names are made before other threads get a turn."""


class Lease(Protocol):
    """How much is left of it, as `cluster.status` has it."""

    def __call__(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class _Names:
    """Of one configuration: names as one string, a line each; ids as columns."""

    farms: str
    farm_ids: Array
    farm_states: Array  # 1: takes new connections
    snat: Array  # 1: the farm's mode is snat
    backends: str
    backend_ids: Array
    backend_farms: Array  # position of the farm in `farms`
    draining: Array
    checked: Array


@dataclass(slots=True)
class MetricsCommand:
    """What it uses of the node. cluster: the answer of `cluster.status`."""

    config: ReadConfig
    cluster: Callable[[], dict[str, Any]]
    plane: DataPlane
    network: Network
    interfaces: DataInterfaces
    sweeper: Sweeper
    health: HealthChecks
    membership: Membership
    reconciler: Reconciling
    lag: LoopLag
    hub: EventHub
    startup: Startup
    max_flows: int
    _of: Config | None = None
    _names: _Names | None = None

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("metrics", self.metrics)

    async def metrics(self, _: Arguments) -> Result:
        """What `xlbctl metrics` and xlb-web show."""
        config, member, tally = self.config(), self.membership.member, self.hub.tally
        cluster, sweep = self.cluster(), self.sweeper.result
        measured = await asyncio.to_thread(self._measure, config)
        lateness = member.pair.lateness.view() if member is not None else None
        return {
            "node": cluster["node"],
            "version": package_version(),
            "cluster": cluster,
            "uptime_s": round(self.startup.uptime_s, 3),
            "memory_bytes": resident_bytes(),
            "loop_lag_ms": self.lag.view()["worst_minute"],
            "counts": {
                "role_changes": tally.role_changes,
                "leases_lost": tally.leases_lost,
                "extensions_discarded": tally.extensions_discarded,
                "resyncs": (cluster["sync"] or {}).get("resyncs", 0),
                "expired": self.sweeper.expired,
            },
            "events": dict(tally.events),
            "takeover_ms": tally.takeovers.view(),
            "lateness_ms": lateness,
            "reconcile": self.reconciler.status(),
            "flows": {"max": 2 * self.max_flows, **sweep.entries},
            **measured,
        }

    def _measure(self, config: Config) -> dict[str, Any]:
        names = self._names_of(config)
        farms, backends = self.plane.farm_traffic(), self.plane.backend_traffic()
        counters, sweep = self.plane.counters(), self.sweeper.result
        ids, farm_ids = names.backend_ids, names.farm_ids
        unusable = np.fromiter(self.health.unusable(config), dtype=np.int64)
        down = np.isin(ids, unusable)
        usable = ~down & (names.draining == 0)
        results, failures = self.health.counted(ids.tolist())
        per_farm = np.bincount(names.backend_farms, minlength=len(farm_ids))
        up = np.bincount(names.backend_farms[usable], minlength=len(farm_ids))
        connections = _column(sweep.farms, farm_ids)
        links = self.network.interfaces()
        return {
            "interfaces": {name: each.mode for name, each in self.interfaces.attachments(links).items()},
            "counters": [
                {"name": each.name, "kind": each.kind.value, "packets": packets, "bytes": size}
                for each in COUNTERS
                for packets, size in (counters.get(each.name, (0, 0)),)
            ],
            "snat_ports": int(connections[names.snat == 1].sum()),
            "farms": _traffic(farms, farm_ids)
            | {
                "names": names.farms,
                "drops": _packed(farms["drops"][farm_ids]),
                "connections": _packed(connections),
                "enabled": _packed(names.farm_states),
                "backends": _packed(per_farm),
                "backends_up": _packed(up),
            },
            "backends": _traffic(backends, ids)
            | {
                "names": names.backends,
                "farm": _packed(names.backend_farms),
                "connections": _packed(_column(sweep.connections, ids)),
                "up": _packed(~down),
                "draining": _packed(names.draining),
                "checks": _packed(np.array(results, dtype=np.int64)),
                "checks_failed": _packed(np.array(failures, dtype=np.int64)),
            },
        }

    def _names_of(self, config: Config) -> _Names:
        if self._names is None or self._of is None or self._of.farms is not config.farms:
            self._names = _names(config)
            self._of = config
        return self._names


def _names(config: Config) -> _Names:
    backends: list[str] = []
    rows: list[tuple[int, int, bool, bool]] = []
    farms = list(config.farms.values())
    for position, farm in enumerate(farms):
        if position % SLICE == SLICE - 1:
            time.sleep(0)  # to give other threads a turn
        checked = farm.health.kind is not CheckKind.NONE
        backends.extend(format_endpoint(each.address, each.port) for each in farm.backends)
        rows.extend((each.id, position, each.draining, checked) for each in farm.backends)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return _Names(
        "\n".join(farm.name for farm in farms),
        np.array([farm.id for farm in farms], dtype=np.int64),
        np.array([farm.enabled for farm in farms], dtype=np.int64),
        np.array([farm.mode is Mode.SNAT for farm in farms], dtype=np.int64),
        "\n".join(backends),
        *columns,
    )


def _traffic(table: Array, ids: Array) -> dict[str, bytes]:
    """Both directions together, as `farm show` has it."""
    rows = table[ids]
    return {
        "packets": _packed(rows["packets_in"] + rows["packets_out"]),
        "bytes": _packed(rows["bytes_in"] + rows["bytes_out"]),
        "new_connections": _packed(rows["connections"]),
    }


def _column(counted: Any, ids: Array) -> Array:
    most = int(ids.max(initial=0)) + 1
    dense = np.zeros(most, dtype=np.int64)
    for number, count in counted.items():
        if number < most:
            dense[number] = count
    return dense[ids]


def _packed(column: Array) -> bytes:
    return column.astype("<i8").tobytes()
