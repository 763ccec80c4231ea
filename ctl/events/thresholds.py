"""Values that are watched against limits: which crossing is an event. Pure.

Decides with a distance between the two limits, so that a value that stays near one makes no stream of events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ctl.events.catalogue import THRESHOLD_ENDED, THRESHOLD_EXCEEDED, Event


@dataclass(frozen=True, slots=True)
class Threshold:
    """A value, above which limit it is an event, and below which that has ended."""

    value: str
    limit: float
    ended: float
    unit: str
    meaning: str
    remedy: str


THRESHOLDS = (
    Threshold(
        "flow_map_fill",
        90,
        80,
        "%",
        "entries of the fuller of the flow maps of established connections",
        "raise data.max_flows; see xlbctl conn count",
    ),
    Threshold(
        "loop_lag",
        250,
        100,
        "ms",
        "longest delay of xlbd's event loop in a second",
        "look for other real-time programs and an overloaded machine; see xlbctl stats",
    ),
    Threshold(
        "replication_lag",
        1000,
        250,
        "ms",
        "age of the oldest flow change that the peer has not applied",
        "look at the cluster link and the peer's load; see xlbctl cluster status",
    ),
)


class Thresholds:
    """Which limits are exceeded now."""

    def __init__(self) -> None:
        self._exceeded: set[str] = set()

    def judge(self, values: Mapping[str, float]) -> Iterator[Event]:
        """The crossings; a value that is not given any more is within its limit."""
        for each in THRESHOLDS:
            measured = values.get(each.value, 0.0)
            name = each.value.replace("_", " ")
            if each.value not in self._exceeded and measured >= each.limit:
                self._exceeded.add(each.value)
                text = f"{name} is {measured:.0f} {each.unit}, beyond {each.limit:g} {each.unit}: {each.remedy}"
                yield THRESHOLD_EXCEEDED(text, value=each.value, measured=round(measured, 1), limit=each.limit)
            elif each.value in self._exceeded and measured < each.ended:
                self._exceeded.discard(each.value)
                text = f"{name} is {measured:.0f} {each.unit} again, below {each.ended:g} {each.unit}"
                yield THRESHOLD_ENDED(text, value=each.value, measured=round(measured, 1))
