"""Which flows must leave their backend, because the configuration or the health of the backend does not allow them there.

Compares flows with the configuration in force; so it does not matter which packets, changes and crashes came in which order.
Decides from columns and a given time. Must not know maps or the schedule.

* A backend or farm that the configuration does not have any more: every flow ends, but for a farm that keeps connections of
  removed backends (`Farm.removed_policy`). The maps may be ahead of the configuration for a moment, therefore only after
  GONE_AFTER_S.
* A backend that is down while another may be selected, or that is down for good (all_down is not "all"), as the farm has it
  (`farm.on_backend_down`). By default UDP flows end at once, and the client's next datagram selects another, and
  TCP connections stay: TCP finds out by itself, and an established connection may survive a failed check.
* A drain has reached its deadline and cuts: every flow ends. A deadline is a time of day, so that it survives a restart and a
  takeover; from when a node first sees it on it counts by the monotonic clock, so that a clock that is set cuts nothing.
* A backend that is up but may not be selected (draining, of weight 0, or of a reserve tier): UDP flows end after
  UDP_MOVES_AFTER_S, because UDP has no end of its own and constant traffic would stay for ever. TCP connections stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpf.constants import MAX_BACKENDS, MAX_FARMS
from bpf.constants import Protocol as Number
from bpf.dataplane import Array
from ctl.config.model import Config, DrainThen, OnBackend
from ctl.dataplane.planner import eligible_backends, unavailable_backends

GONE_AFTER_S = 3.0
UDP_MOVES_AFTER_S = 30.0
REPORTED_LATE_S = 60.0
"""A node that takes over reports the end of a drain that was not longer ago."""

Mask = NDArray[np.bool_]

_NO_FARM = 0
"""No farm has this id."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A backend's drain. until: its deadline in seconds since 1970, 0: none. cut: its connections end then."""

    farm: str
    backend: str
    id: int
    until: int
    cut: bool


class Placement:
    """Remembers since when a backend has been gone or not selectable. Call `follow` before each sweep."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._down: AbstractSet[int] = frozenset()
        self._farms = np.full(MAX_BACKENDS, _NO_FARM, np.uint16)  # by backend id
        self._dead = np.zeros(MAX_BACKENDS, np.bool_)
        self._lost = np.zeros(MAX_BACKENDS, np.bool_)
        self._not_selectable: frozenset[int] = frozenset()
        self._since: dict[int, float] = {}  # not selectable
        self._keeping = np.zeros(MAX_FARMS, np.bool_)  # by farm id: connections of removed backends
        self._drains: dict[tuple[int, int], Drain] = {}  # by backend id and deadline
        self._ended: set[tuple[int, int]] = set()  # of those, which had their end
        self._counted = False
        self._ends: dict[tuple[int, int], float] = {}  # monotonic times of the deadlines
        self._cut = np.zeros(MAX_BACKENDS, np.bool_)
        self._gone_since: dict[tuple[int, int], float] = {}  # (farm, backend) of flows that the configuration does not have
        self._seen_gone: set[tuple[int, int]] = set()
        self._now_s = 0.0

    def follow(self, config: Config, down: AbstractSet[int], now_s: float, time_of_day_s: float = 0.0) -> list[Drain]:
        """A sweep begins, with this configuration and these ids of backends whose check failed.

        Returns the drains whose deadline has passed since the last one, and that were not empty before.
        """
        earlier_s, self._now_s = self._now_s, now_s
        # What no flow of the last sweep named is forgotten, so that its id may get a new meaning.
        self._gone_since = {pair: since for pair, since in self._gone_since.items() if pair in self._seen_gone}
        self._seen_gone.clear()
        if config is not self._config or down != self._down:
            self._config, self._down = config, down
            self._read(config, down)
        self._since = {number: self._since.get(number, now_s) for number in self._not_selectable}
        self._moves = _flags(number for number, since in self._since.items() if now_s - since >= UDP_MOVES_AFTER_S)
        return self._end_drains(earlier_s, time_of_day_s)

    @property
    def next_s(self) -> float | None:
        """When the next deadline of a drain is, on the clock of `follow`; None: there is none."""
        return min((end for end in self._ends.values() if end > self._now_s), default=None)

    def emptied(self, connections: Array) -> list[Drain]:
        """The drains of backends without connections, each once. connections: by backend id, after a sweep.

        Those that are empty at the first sweep had their end before this node served.
        """
        empty = {key for key in self._drains if not connections[key[0]]} - self._ended
        self._ended |= empty
        first, self._counted = not self._counted, True
        return [] if first else [self._drains[key] for key in sorted(empty)]

    def _end_drains(self, earlier_s: float, time_of_day_s: float) -> list[Drain]:
        known, self._ends = self._ends, {}
        for key, drain in ((key, drain) for key, drain in self._drains.items() if drain.until):
            self._ends[key] = known.get(key, self._now_s + drain.until - time_of_day_s)
        over = [key for key, end in self._ends.items() if end <= self._now_s]
        self._cut = _flags(key[0] for key in over if self._drains[key].cut)
        since = {key: earlier_s if key in known else self._now_s - REPORTED_LATE_S for key in over}
        late = [self._drains[key] for key in over if self._ends[key] > since[key] and key not in self._ended]
        self._ended.update(over)
        return late

    def _read(self, config: Config, down: AbstractSet[int]) -> None:
        self._farms.fill(_NO_FARM)
        dead: set[int] = set()  # udp flows leave it
        lost: set[int] = set()  # all flows do
        waiting: set[int] = set()
        self._keeping.fill(False)
        self._drains = {}
        for farm in config.farms.values():
            ids = [backend.id for backend in farm.backends]
            self._farms[ids] = farm.id
            unavailable = unavailable_backends(farm, down)
            eligible = {backend.id for backend in eligible_backends(farm, down)}
            if farm.on_backend_down is OnBackend.DEFAULT:
                dead |= unavailable
            elif farm.on_backend_down is not OnBackend.KEEP:
                lost |= unavailable
            self._keeping[farm.id] = farm.removed_policy is OnBackend.KEEP
            for each in farm.backends:
                if each.draining:
                    drain = Drain(farm.name, each.endpoint, each.id, each.drain_until, each.drain_then is DrainThen.CUT)
                    self._drains[each.id, each.drain_until] = drain
            if eligible:  # there must be another one to move to
                waiting |= set(ids) - eligible - unavailable
        self._ended &= self._drains.keys()
        self._dead, self._lost, self._not_selectable = _flags(dead), _flags(lost), frozenset(waiting)

    def misplaced(self, keys: Array, values: Array) -> Mask:
        """Entries to delete, with the entries of their opposite directions."""
        backend = np.minimum(values["backend"], MAX_BACKENDS - 1)
        gone = (self._farms[backend] != values["farm"]) & ~self._keeping[np.minimum(values["farm"], MAX_FARMS - 1)]
        if gone.any():
            gone &= self._gone_long_enough(values, gone)
        moves = (self._dead[backend] | self._moves[backend]) & (keys["protocol"] == int(Number.UDP))
        return np.asarray(gone | self._lost[backend] | self._cut[backend] | moves, np.bool_)

    def _gone_long_enough(self, values: Array, gone: Mask) -> Mask:
        """Of the entries whose backend is not the farm's."""
        code = values["farm"].astype(np.uint32) << 16 | values["backend"]
        pairs = {(int(each) >> 16, int(each) & 0xFFFF) for each in np.unique(code[gone])}
        self._seen_gone |= pairs
        for pair in pairs:
            self._gone_since.setdefault(pair, self._now_s)
        due = [pair for pair in pairs if self._now_s - self._gone_since[pair] >= GONE_AFTER_S]
        return np.isin(code, np.array([farm << 16 | number for farm, number in due], np.uint32))


def _flags(ids: Iterable[int]) -> Mask:
    flags = np.zeros(MAX_BACKENDS, np.bool_)
    flags[list(ids)] = True
    return flags
