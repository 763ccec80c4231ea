"""Which flows must leave their backend, because the configuration or the health of the backend does not allow them there.

Compares flows with the configuration in force; so it does not matter which packets, changes and crashes came in which order.
Decides from columns and a given time. Must not know maps or the schedule.

* A backend or farm that the configuration does not have any more: every flow ends. The maps may be ahead of the configuration
  for a moment, therefore only after GONE_AFTER_S.
* A backend that is down while another may be selected: UDP flows end at once, and the client's next datagram selects another.
  TCP connections stay: TCP finds out by itself, and an established connection may survive a failed check.
* A backend that is up but may not be selected (draining, of weight 0, or of a reserve tier): UDP flows end after
  UDP_MOVES_AFTER_S, because UDP has no end of its own and constant traffic would stay for ever. TCP connections stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from bpf.constants import MAX_BACKENDS
from bpf.constants import Protocol as Number
from bpf.dataplane import Array
from ctl.config.model import Config
from ctl.dataplane.planner import eligible_backends, unavailable_backends

GONE_AFTER_S = 3.0
UDP_MOVES_AFTER_S = 30.0

Mask = NDArray[np.bool_]

_NO_FARM = 0
"""No farm has this id."""


class Placement:
    """Remembers since when a backend has been gone or not selectable. Call `follow` before each sweep."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._down: AbstractSet[int] = frozenset()
        self._farms = np.full(MAX_BACKENDS, _NO_FARM, np.uint16)  # by backend id
        self._dead = np.zeros(MAX_BACKENDS, np.bool_)
        self._not_selectable: frozenset[int] = frozenset()
        self._since: dict[int, float] = {}  # not selectable
        self._gone_since: dict[tuple[int, int], float] = {}  # (farm, backend) of flows that the configuration does not have
        self._seen_gone: set[tuple[int, int]] = set()
        self._now_s = 0.0

    def follow(self, config: Config, down: AbstractSet[int], now_s: float) -> None:
        """A sweep begins, with this configuration and these ids of backends whose check failed."""
        self._now_s = now_s
        # What no flow of the last sweep named is forgotten, so that its id may get a new meaning.
        self._gone_since = {pair: since for pair, since in self._gone_since.items() if pair in self._seen_gone}
        self._seen_gone.clear()
        if config is not self._config or down != self._down:
            self._config, self._down = config, down
            self._read(config, down)
        self._since = {number: self._since.get(number, now_s) for number in self._not_selectable}
        self._moves = _flags(number for number, since in self._since.items() if now_s - since >= UDP_MOVES_AFTER_S)

    def _read(self, config: Config, down: AbstractSet[int]) -> None:
        self._farms.fill(_NO_FARM)
        dead: set[int] = set()
        waiting: set[int] = set()
        for farm in config.farms.values():
            ids = [backend.id for backend in farm.backends]
            self._farms[ids] = farm.id
            unavailable = unavailable_backends(farm, down)
            eligible = {backend.id for backend in eligible_backends(farm, down)}
            dead |= unavailable
            if eligible:  # there must be another one to move to
                waiting |= set(ids) - eligible - unavailable
        self._dead, self._not_selectable = _flags(dead), frozenset(waiting)

    def misplaced(self, keys: Array, values: Array) -> Mask:
        """Entries to delete, with the entries of their opposite directions."""
        backend = np.minimum(values["backend"], MAX_BACKENDS - 1)
        gone = self._farms[backend] != values["farm"]
        if gone.any():
            gone &= self._gone_long_enough(values, gone)
        leaves = self._dead[backend] | self._moves[backend]
        return np.asarray(gone | (leaves & (keys["protocol"] == int(Number.UDP))), np.bool_)

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
