"""Drops that point to a problem, judged by their recent rate: totals since the counters were created say nothing. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from bpf.constants import COUNTERS, Kind
from ctl.diagnosis.finding import Finding, Severity, ok

NOTABLE = ("drop_internal", "drop_snat_exhausted", "drop_no_backend", "drop_no_route", "drop_fenced")
DROPS = tuple(counter.name for counter in COUNTERS if counter.kind is Kind.DROP)
WINDOW_S = 60.0
INTERVAL_S = 5.0
_READINGS = round(WINDOW_S / INTERVAL_S) + 1

_REASONS = {counter.name: counter.reason for counter in COUNTERS}


class RecentCounters:
    """Readings of the counters within the last minute: packets by name. Bounded."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=_READINGS)

    def note(self, at_s: float, packets: Mapping[str, int]) -> None:
        """Remember a reading. One that is lower than the last comes from new counters: the earlier ones are forgotten."""
        if self._readings and any(packets.get(name, 0) < count for name, count in self._readings[-1][1].items()):
            self._readings.clear()
        self._readings.append((at_s, packets))

    def since(self, at_s: float, packets: Mapping[str, int]) -> tuple[float, Mapping[str, int]]:
        """Seconds and packets between the oldest reading of the window and this one."""
        recent = [reading for reading in self._readings if at_s - reading[0] <= WINDOW_S + INTERVAL_S]
        began_s, before = recent[0] if recent else (at_s, packets)
        if any(packets.get(name, 0) < count for name, count in before.items()):
            began_s, before = at_s, {}
        return at_s - began_s, {name: count - before.get(name, 0) for name, count in packets.items()}


def examine(seconds: float, packets: Mapping[str, int], names: Iterable[str] = NOTABLE) -> Iterator[Finding]:
    """Judge the packets of `seconds`."""
    dropped = {name: packets.get(name, 0) for name in names if packets.get(name, 0) > 0}
    for name, count in dropped.items():
        rate = f" ({count / seconds:.3g}/s)" if seconds >= 1 else ""
        message = f"{count} packets in the last {seconds:.0f} s{rate}: {_REASONS[name]}"
        yield Finding(name, Severity.FAIL, message, "xlbctl stats --watch shows whether it continues")
    if not dropped:
        yield ok("drops", f"none in the last {seconds:.0f} s that point to a problem")
