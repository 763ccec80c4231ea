"""Traffic per second from two readings of `metrics`, and the last hour of it. Pure; times are arguments.

Counters are columns, one number per farm or backend. A counter that shrank, or a farm that is new, gives no rate (None): zero
would be a claim. The hour is kept in 4 bytes per value, for at most MAX_FARMS farms.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STEP_S = 10
POINTS = 360
MAX_FARMS = 1000

COUNTERS = ("packets", "bytes", "new_connections", "drops")
GAUGE = "connections"
MEASURES = (*COUNTERS, GAUGE)
OF_NODE = (*MEASURES, "lag_ms")

Rates = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by name, and their columns of numbers."""

    names: Sequence[str]
    columns: Mapping[str, array[int]]

    @property
    def places(self) -> dict[str, int]:
        """Row of each name."""
        return {name: at for at, name in enumerate(self.names)}


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading. at_s: of a clock that never goes back. backends: names are "farm endpoint"."""

    at_s: float
    wall_s: float
    node: Mapping[str, int]
    lag_ms: float | None
    farms: Table
    backends: Table
    backend_farms: array[int]  # row in `farms` of each backend
    endpoints: Sequence[str]


def read(answer: Mapping[str, Any], at_s: float, wall_s: float) -> Sample:
    """Of an answer of `metrics`."""
    farms, backends = answer["farms"], answer["backends"]
    farm_table = _table(farms, MEASURES)
    of = _column(backends["farm"])
    endpoints = _lines(backends["names"])
    names = [f"{farm_table.names[row]} {endpoint}" for row, endpoint in zip(of, endpoints, strict=True)]
    counters = answer["counters"]
    node = {
        "packets": sum(each["packets"] for each in counters),
        "bytes": sum(each["bytes"] for each in counters),
        "drops": sum(each["packets"] for each in counters if each["kind"] == "drop"),
        "new_connections": sum(farm_table.columns["new_connections"]),
        "connections": sum(farm_table.columns["connections"]),
    }
    sync = answer["cluster"]["sync"]
    backend_columns = {name: _column(backends[name]) for name in MEASURES if name in backends}
    return Sample(
        at_s, wall_s, node, sync["lag_ms"] if sync else None, farm_table, Table(names, backend_columns), of, endpoints
    )


def _lines(text: str) -> list[str]:
    return text.split("\n") if text else []


def _table(columns: Mapping[str, Any], measures: Sequence[str]) -> Table:
    return Table(_lines(columns["names"]), {name: _column(columns[name]) for name in measures})


def _column(packed: bytes) -> array[int]:
    column = array("q")
    column.frombytes(packed)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def node_rates(old: Sample | None, new: Sample) -> Rates:
    """Of the node."""
    before = old.node if old is not None else {}
    seconds = new.at_s - old.at_s if old is not None else 0.0
    rates: Rates = {name: _rate(before.get(name), new.node[name], seconds) for name in COUNTERS}
    return rates | {GAUGE: new.node[GAUGE]}


def table_rates(old: Table | None, new: Table, seconds: float) -> dict[str, Rates]:
    """Of each row of a table. Most configurations stay as they are, so rows are mostly in the same place."""
    same = old is not None and old.names == new.names
    places = {} if old is None or same else old.places
    made = {}
    for row, name in enumerate(new.names):
        before = row if same else places.get(name)
        rates: Rates = {
            measure: _rate(None if before is None or old is None else old.columns[measure][before], column[row], seconds)
            for measure, column in new.columns.items()
            if measure != GAUGE
        }
        made[name] = rates | {GAUGE: new.columns[GAUGE][row]}
    return made


def _rate(before: int | None, now: int, seconds: float) -> float | None:
    if before is None or now < before or seconds <= 0:
        return None
    return round((now - before) / seconds, 1)


def backend_rates(old: Sample | None, new: Sample, farm: str) -> dict[str, Rates] | None:
    """Of the backends of a farm, by endpoint; None: there is no such farm."""
    if farm not in new.farms.names:
        return None
    rows = _rows_of(new, farm)
    was = {old.endpoints[row]: row for row in _rows_of(old, farm)} if old is not None else {}
    before = None if old is None else Table(list(was), _picked(old.backends, list(was.values())))
    now = Table([new.endpoints[row] for row in rows], _picked(new.backends, rows))
    return table_rates(before, now, new.at_s - old.at_s if old is not None else 0.0)


def _rows_of(sample: Sample, farm: str) -> list[int]:
    place = sample.farms.places.get(farm, -1)
    return [row for row, of in enumerate(sample.backend_farms) if of == place]


def _picked(table: Table, rows: Sequence[int]) -> dict[str, array[int]]:
    return {name: array("q", [column[row] for row in rows]) for name, column in table.columns.items()}


@dataclass(slots=True)
class Series:
    """The last hour in steps of STEP_S: of the node, and of each farm. A step without a reading has no value."""

    _step: int = -1
    _node: dict[str, array[float]] = field(default_factory=dict)
    _farms: dict[str, dict[str, array[float]]] = field(default_factory=dict)
    _mark: Sample | None = None

    def due(self, at_s: float) -> bool:
        """Whether a reading at `at_s` begins a new step."""
        return int(at_s // STEP_S) != self._step

    def add(self, sample: Sample) -> None:
        """A reading at the begin of a step: the rates since the one before belong to the step that ends."""
        step = int(sample.at_s // STEP_S)
        old, self._mark = self._mark, sample
        for each in range(max(self._step + 1, step - POINTS + 1), step + 1):
            self._clear(each % POINTS)
        self._step = step
        seconds = sample.at_s - old.at_s if old is not None else 0.0
        self._put(self._node, OF_NODE, node_rates(old, sample) | {"lag_ms": sample.lag_ms})
        rates = table_rates(old.farms if old is not None else None, sample.farms, seconds)
        for name in self._farms.keys() - rates.keys():
            del self._farms[name]
        for name, values in rates.items():
            if name in self._farms or len(self._farms) < MAX_FARMS:
                self._put(self._farms.setdefault(name, {}), MEASURES, values)

    def _put(self, columns: dict[str, array[float]], measures: Sequence[str], values: Rates) -> None:
        for name in measures:
            if name not in columns:
                columns[name] = array("f", [math.nan]) * POINTS
            value = values[name]
            columns[name][self._step % POINTS] = math.nan if value is None else value

    def _clear(self, place: int) -> None:
        for columns in (self._node, *self._farms.values()):
            for each in columns.values():
                each[place] = math.nan

    def view(self, farm: str = "") -> dict[str, list[float | None]] | None:
        """The values of each measure, oldest first; None: there is no such farm."""
        columns = self._farms.get(farm) if farm else self._node
        if columns is None:
            return None
        begin = (self._step + 1) % POINTS
        return {name: [_shown(value) for value in each[begin:] + each[:begin]] for name, each in columns.items()}

    @property
    def end_s(self) -> float:
        """Time of day of the last reading; 0: none."""
        return self._mark.wall_s if self._mark is not None else 0.0


def _shown(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
