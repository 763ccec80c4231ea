"""How much of its weight a backend has that came up a short time ago, in farms with `slow_start_s`.

The share grows in steps; a step rebuilds the farm's table with other weights, and so moves clients to this backend only.
Decides from configuration, health and a given time. Must not know clocks or tables.

A backend comes up when it becomes usable: its check succeeds, it is added, its drain ends, or it gets a weight. What is usable
when a farm is seen for the first time (the daemon starts, the farm is new, or slow start is switched on) has its full weight.
Each node of a pair observes this by itself, so that their steps differ by the time that a check's result needs to the peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from ctl.config.model import Backend, Config, Farm

WHOLE = 1000
"""A full weight."""
MAX_STEPS = 10
MIN_STEPS = 2


class SlowStart:
    """Call `follow` before each plan of the maps, and again at `next_s`."""

    def __init__(self) -> None:
        self._usable: dict[int, frozenset[int]] = {}  # backend ids by farm id
        self._since: dict[int, float] = {}  # by backend id: those that have not their full weight
        self._shares: Mapping[int, int] = {}
        self.next_s: float | None = None
        """When the next step is due; None: none is."""

    @property
    def shares(self) -> Mapping[int, int]:
        """Of the last `follow`."""
        return self._shares

    def follow(self, config: Config, down: AbstractSet[int], now_s: float) -> Mapping[int, int]:
        """By backend id the share of its weight that it has now, of WHOLE; those with all of it are left out.

        down: ids of backends that must not get connections.
        """
        usable: dict[int, frozenset[int]] = {}
        since: dict[int, float] = {}
        shares: dict[int, int] = {}
        due: list[float] = []
        for farm in config.farms.values():
            if not farm.slow_start_s:
                continue
            usable[farm.id] = _usable(farm, down)
            known = self._usable.get(farm.id, usable[farm.id])
            for number in usable[farm.id]:
                began = self._since.get(number) if number in known else now_s
                if began is None:
                    continue
                share, next_s = _step(farm.slow_start_s, began, now_s)
                if share < WHOLE:
                    since[number], shares[number] = began, share
                    due.append(next_s)
        self._usable, self._since, self._shares = usable, since, shares
        self.next_s = min(due, default=None)
        return shares


def weighted(backends: Sequence[Backend], shares: Mapping[int, int]) -> tuple[Backend, ...]:
    """The backends with the weights that they have now, relative to each other."""
    if not any(each.id in shares for each in backends):
        return tuple(backends)
    return tuple(replace(each, weight=each.weight * shares.get(each.id, WHOLE)) for each in backends)


def _usable(farm: Farm, down: AbstractSet[int]) -> frozenset[int]:
    return frozenset(
        each.id for each in farm.backends if farm.enabled and each.weight and not each.draining and each.id not in down
    )


def _step(slow_start_s: int, began_s: float, now_s: float) -> tuple[int, float]:
    """The share at this time, and when it grows next."""
    steps = max(MIN_STEPS, min(MAX_STEPS, slow_start_s))
    each_s = slow_start_s / steps
    step = max(1, int((now_s - began_s) / each_s + 1e-9) + 1)  # the first step is there at once
    return min(WHOLE, WHOLE * step // steps), began_s + step * each_s
