"""Rates of farms, backends and counters between two samples of a node's counts. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctl.config.model import format_endpoint

_FIELDS = ("packets", "bytes", "new_connections", "drops")


@dataclass(frozen=True, slots=True)
class Load:
    """Counts since the counters were created, or, in rates, per second; both directions together."""

    packets: float = 0
    bytes: float = 0
    new_connections: float = 0
    drops: float = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Counts, or rates, taken at `at_s` of a monotonic clock."""

    at_s: float
    counters: Mapping[str, float]
    farms: Mapping[str, Load]
    backends: Mapping[tuple[str, str], Load]  # by farm and ADDR:PORT

    @property
    def total(self) -> Load:
        """All farms together."""
        return Load(*(sum(getattr(load, name) for load in self.farms.values()) for name in _FIELDS))


def sample(at_s: float, counters: Sequence[Mapping[str, Any]], farms: Sequence[Mapping[str, Any]]) -> Sample:
    """Collect the counts in the daemon's answers to `stats` (its counters) and `farm.list`."""
    return Sample(
        at_s,
        {counter["name"]: counter["packets"] for counter in counters},
        {farm["name"]: _load(farm) for farm in farms},
        {
            (farm["name"], format_endpoint(backend["address"], backend["port"])): _load(backend)
            for farm in farms
            for backend in farm["backends"]
        },
    )


def rates(before: Sample, after: Sample) -> Sample:
    """Return everything per second between two samples. New and reset counters count from zero."""
    seconds = max(after.at_s - before.at_s, 1e-3)

    def per_second(old: float, new: float) -> float:
        return (new - old if new >= old else new) / seconds

    def load(old: Load, new: Load) -> Load:
        return Load(*(per_second(getattr(old, name), getattr(new, name)) for name in _FIELDS))

    return Sample(
        after.at_s,
        {name: per_second(before.counters.get(name, 0), value) for name, value in after.counters.items()},
        {name: load(before.farms.get(name, Load()), value) for name, value in after.farms.items()},
        {key: load(before.backends.get(key, Load()), value) for key, value in after.backends.items()},
    )


def _load(counts: Mapping[str, Any]) -> Load:
    return Load(*(counts.get(name, 0) for name in _FIELDS))
