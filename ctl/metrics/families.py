"""The metrics of a node: one table of names and meanings, the collector of what is few, the text of what is many.

Farms and backends are columns of numbers: their lines are written directly, because an object for each of a hundred thousand
samples takes longer than a scrape may. Everything else is a collector of prometheus_client. xlbd must not import this package.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

ROLES = ("active", "backup", "single", "fault", "maintenance", "left")
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
MS = 1000.0


@dataclass(frozen=True, slots=True)
class Column:
    """A metric of each farm or backend. name: without "_total", which a counter has in its samples."""

    name: str
    counter: bool
    column: str
    meaning: str


FARM_COLUMNS = (
    Column("xlb_farm_packets", True, "packets", "Packets of a farm in both directions."),
    Column("xlb_farm_bytes", True, "bytes", "Bytes of a farm in both directions."),
    Column("xlb_farm_new_connections", True, "new_connections", "Connections opened to a farm."),
    Column("xlb_farm_drops", True, "drops", "Packets to a farm that were dropped."),
    Column("xlb_farm_connections", False, "connections", "Connections of a farm that are open, at the last sweep."),
    Column("xlb_farm_enabled", False, "enabled", "1 while the farm takes new connections."),
    Column("xlb_farm_backends", False, "backends", "Backends of a farm."),
    Column("xlb_farm_backends_up", False, "backends_up", "Backends of a farm that take new connections."),
)
BACKEND_COLUMNS = (
    Column("xlb_backend_packets", True, "packets", "Packets of a backend in both directions."),
    Column("xlb_backend_bytes", True, "bytes", "Bytes of a backend in both directions."),
    Column("xlb_backend_new_connections", True, "new_connections", "Connections opened to a backend."),
    Column("xlb_backend_connections", False, "connections", "Connections of a backend that are open, at the last sweep."),
    Column("xlb_backend_up", False, "up", "1 unless the backend is down by its check."),
    Column("xlb_backend_draining", False, "draining", "1 while the backend is drained."),
    Column("xlb_backend_checks", True, "checks", "Health checks of a backend that this node made."),
    Column("xlb_backend_checks_failed", True, "checks_failed", "Health checks of a backend that failed."),
)


class NodeCollector(Collector):
    """A collector of prometheus_client on one answer of `metrics`."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self._answer = answer

    def collect(self) -> Iterator[Metric]:
        """What there is once per node."""
        answer = self._answer
        yield InfoMetricFamily("xlb_build", "Version of xlb.", value={"version": str(answer["version"])})
        yield _gauge("xlb_up_seconds", "How long xlbd has run.", answer["uptime_s"])
        yield _gauge("xlb_memory_bytes", "Resident memory of xlbd.", answer["memory_bytes"])
        yield _gauge("xlb_loop_lag_seconds", "Longest delay of xlbd's event loop in a minute.", answer["loop_lag_ms"] / MS)
        yield from self._role()
        yield from self._counts()
        yield from self._pair()
        yield from self._dataplane()

    def _role(self) -> Iterator[Metric]:
        cluster = self._answer["cluster"]
        role = {each: each == cluster["role"] for each in ROLES}
        yield StateSetMetricFamily("xlb_role", "Role of this node.", value=role)
        yield _gauge("xlb_epoch", "Highest epoch that this node knows.", cluster["epoch"])
        yield _gauge("xlb_config_generation", "Generation of the configuration that is in force.", cluster["generation"])
        left = cluster["lease_ms_left"]
        yield _gauge(
            "xlb_lease_left_seconds", "Rest of the lease; +Inf on a single node.", math.inf if left is None else left / MS
        )
        yield _gauge("xlb_faults", "Faults of this node.", len(cluster["faults"]))

    def _counts(self) -> Iterator[Metric]:
        counts = self._answer["counts"]
        for name, key, meaning in (
            ("xlb_role_changes", "role_changes", "Changes of this node's role."),
            ("xlb_leases_lost", "leases_lost", "Leases that expired under this node while it was active."),
            ("xlb_lease_extensions_discarded", "extensions_discarded", "Extensions of the lease that came too late."),
            ("xlb_resyncs", "resyncs", "Snapshots of the flow maps that were sent again, because changes were lost."),
            ("xlb_flows_expired", "expired", "Flow entries that were removed because they were idle."),
        ):
            yield CounterMetricFamily(name, meaning, value=counts[key])
        events = CounterMetricFamily("xlb_events", "Events of this node by name; see xlbctl watch.", labels=["event"])
        for name, count in sorted(self._answer["events"].items()):
            events.add_metric([name], count)
        yield events
        yield _histogram("xlb_takeover_seconds", "Duration of takeovers.", self._answer["takeover_ms"])
        if self._answer["lateness_ms"] is not None:
            text = "How late heartbeats were sent, and silence was judged, after they were due."
            yield _histogram("xlb_heartbeat_lateness_seconds", text, self._answer["lateness_ms"])
        repairs = CounterMetricFamily("xlb_reconcile_repairs", "What xlbd restored in the kernel, by kind.", labels=["kind"])
        for kind, count in self._answer["reconcile"]["by_kind"].items():
            repairs.add_metric([kind], count)
        yield repairs
        yield CounterMetricFamily(
            "xlb_netlink_overruns", "Times the kernel dropped notifications.", value=self._answer["reconcile"]["overruns"]
        )

    def _pair(self) -> Iterator[Metric]:
        cluster = self._answer["cluster"]
        peer, sync = cluster["peer"], cluster["sync"]
        yield _gauge("xlb_paired", "1 if this node is one of a pair.", peer is not None)
        if peer is None or sync is None:
            return
        yield _gauge("xlb_peer_up", "1 while the peer is heard on any heartbeat path.", peer["alive"])
        paths = GaugeMetricFamily("xlb_peer_path_up", "1 while the heartbeat path brings signs of life.", labels=["path"])
        for name, alive in cluster["paths"].items():
            paths.add_metric([name], float(alive))
        yield paths
        if peer["generation"] is not None:
            yield _gauge("xlb_peer_config_generation", "Generation that the peer has.", peer["generation"])
        yield _gauge(
            "xlb_sync_in_step", "1 while the peer has every flow: a failover would lose no connection.", sync["in_step"]
        )
        yield _gauge("xlb_sync_protected_ratio", "Share of this node's connections that the peer has.", sync["protected"])
        lag = "Age of the oldest flow change that the peer has not applied."
        yield _gauge("xlb_sync_lag_seconds", lag, sync["lag_ms"] / MS)

    def _dataplane(self) -> Iterator[Metric]:
        packets = CounterMetricFamily("xlb_packets", "Packets by verdict.", labels=["verdict", "kind"])
        size = CounterMetricFamily("xlb_packet_bytes", "Bytes of packets by verdict.", labels=["verdict", "kind"])
        for each in self._answer["counters"]:
            packets.add_metric([each["name"], each["kind"]], each["packets"])
            size.add_metric([each["name"], each["kind"]], each["bytes"])
        yield packets
        yield size
        flows = self._answer["flows"]
        entries = GaugeMetricFamily("xlb_flow_entries", "Entries of the flow maps, two for a connection.", labels=["map"])
        for name in sorted(flows.keys() - {"max"}):
            entries.add_metric([name], flows[name])
        yield entries
        yield _gauge("xlb_flow_entries_limit", "Entries that a map of established connections can hold.", flows["max"])
        fullest = max(flows.get("flows_v4", 0), flows.get("flows_v6", 0))
        yield _gauge("xlb_flow_map_fill_ratio", "Fill of the fuller map of established connections.", fullest / flows["max"])
        yield _gauge(
            "xlb_snat_ports_in_use", "Source ports of mode snat in use, one for a connection.", self._answer["snat_ports"]
        )
        native = GaugeMetricFamily("xlb_interface_xdp_native", "1 if XDP is in native mode.", labels=["interface"])
        for name, mode in sorted(self._answer["interfaces"].items()):
            native.add_metric([name], float(mode == "native"))
        yield native


def render(answer: Mapping[str, Any], openmetrics: bool = True) -> str:
    """Every metric of an answer in OpenMetrics, or in Prometheus' text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(answer))
    few: bytes = (exposition.generate_latest if openmetrics else generate_latest)(registry)
    lines = [few.decode().removesuffix("# EOF\n").rstrip("\n")]
    farms, backends = answer["farms"], answer["backends"]
    names = farms["names"].split("\n") if farms["names"] else []
    lines += _columns(FARM_COLUMNS, farms, [f'{{farm="{name}"}} ' for name in names], openmetrics)
    if backends["names"]:
        of = [names[position] for position in _numbers(backends["farm"])]
        labels = [f'{{farm="{farm}",backend="{each}"}} ' for farm, each in zip(of, backends["names"].split("\n"), strict=True)]
        lines += _columns(BACKEND_COLUMNS, backends, labels, openmetrics)
    return "\n".join([*lines, "# EOF\n"] if openmetrics else [*lines, ""])


def _columns(table: tuple[Column, ...], columns: Mapping[str, Any], labels: list[str], openmetrics: bool) -> Iterator[str]:
    """Names of farms and backends have no character that a label would have to escape."""
    if not labels:
        return
    for each in table:
        sample = f"{each.name}_total" if each.counter else each.name
        family = each.name if openmetrics else sample
        yield f"# HELP {family} {each.meaning}"
        yield f"# TYPE {family} {'counter' if each.counter else 'gauge'}"
        yield "\n".join(
            [f"{sample}{label}{value}" for label, value in zip(labels, _numbers(columns[each.column]), strict=True)]
        )


def _numbers(column: bytes) -> list[int]:
    numbers = array("q")
    numbers.frombytes(column)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=float(value))


def _histogram(name: str, meaning: str, view: Mapping[str, Any]) -> Metric:
    """Buckets count what is at most their bound. The view's values are milliseconds."""
    buckets, below = [], 0
    for bound, count in zip([*view["bounds"], math.inf], view["counts"], strict=True):
        below += count
        buckets.append(("+Inf" if math.isinf(bound) else repr(bound / MS), below))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=view["sum"] / MS)


def names() -> set[str]:
    """Every name that a sample may have; for tests of what refers to them."""
    return {f"{each.name}_total" if each.counter else each.name for each in (*FARM_COLUMNS, *BACKEND_COLUMNS)}
