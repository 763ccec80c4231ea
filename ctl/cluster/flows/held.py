"""The peer's flows that the program of this node cannot read yet, kept out of its maps until it is compiled for them.

A program without a mode would take the entries of that mode for those of mode snat. Decides what is kept, within a limit, and
what of it is written once the program has the mode; also after a takeover, when the peer cannot send it again. Must not know
the maps, nor when a program is compiled. No Python per flow: changes are kept in their order, and put together seldom.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bpf.dataplane import Array

HELD_CONNECTIONS = 1 << 18
"""Of both families together; 17 MB of IPv4 flows. More are not kept; the peer sends them again, if it lives."""
_COMPACT_SHARE = 8
"""What is full is put together again once an eighth of it is new."""


class HeldFlows:
    """Used by one thread; `count` and `lost` may be read in any."""

    def __init__(self, limit: int = HELD_CONNECTIONS) -> None:
        self._limit = limit
        self._parts: dict[str, list[tuple[Array, Array]]] = {}  # by family, oldest first; an entry without flags is a removal
        self.count = 0
        """Changes that are held; at least as many as connections."""
        self._new = 0  # of them, since they were put together
        self.lost = 0
        """Connections beyond the limit since nothing was held."""

    def put(self, family: str, keys: Array, values: Array) -> None:
        """Hold forward entries, in place of what was held of these connections."""
        self._make_space(len(keys))
        kept = min(len(keys), max(0, self._limit - self.count))
        self.lost += len(keys) - kept
        self._append(family, keys[:kept], values[:kept])

    def remove(self, family: str, keys: Array, values: Array) -> None:
        """The peer has deleted these. values: of their type, without a meaning."""
        if not self._parts.get(family):
            return
        self._make_space(len(keys))
        if self.count + len(keys) <= self._limit + self._limit // _COMPACT_SHARE:
            self._append(family, keys, np.zeros_like(values))

    def keep_named(self, mark: int) -> None:
        """Forget what a snapshot has not named: what does not have its mark."""
        for family, keys, values in self._latest():
            named = values["interface"] == mark
            self._parts[family] = [(keys[named], values[named])]
        self._recount()

    def take(self, unreadable: int) -> list[tuple[str, Array, Array]]:
        """What a program can read that takes no entry with the flags `unreadable`; it is held no more."""
        taken = []
        for family, keys, values in self._latest():
            held = (values["flags"] & unreadable) != 0
            self._parts[family] = [(keys[held], values[held])]
            taken.append((family, keys[~held], values[~held]))
        self._recount()
        return taken

    def _append(self, family: str, keys: Array, values: Array) -> None:
        if not len(keys):
            return
        self._parts.setdefault(family, []).append((keys.copy(), values.copy()))
        self.count += len(keys)
        self._new += len(keys)

    def _make_space(self, rows: int) -> None:
        if self.count + rows <= self._limit or self._new <= self._limit // _COMPACT_SHARE:
            return
        for family, keys, values in self._latest():
            self._parts[family] = [(keys, values)]
        self._recount()

    def _recount(self) -> None:
        self._parts = {family: parts for family, parts in self._parts.items() if sum(len(keys) for keys, _ in parts)}
        self.count = sum(len(keys) for parts in self._parts.values() for keys, _ in parts)
        self._new = 0
        if not self.count:
            self.lost = 0

    def _latest(self) -> Iterator[tuple[str, Array, Array]]:
        """Of each family the connections that were not removed, with the last entry of each."""
        for family, parts in list(self._parts.items()):
            keys, values = _joined([keys for keys, _ in parts]), _joined([values for _, values in parts])
            last = _last_of_each(keys)
            last = last[values["flags"][last] != 0]
            yield family, keys[last], values[last]


def _last_of_each(keys: Array) -> Array:
    """The row of the last occurrence of each key. Sorted in a way that lets other threads run."""
    words = keys.view(np.uint64).reshape(len(keys), -1)
    order = np.lexsort(words.T)  # stable
    differs = (words[order][1:] != words[order][:-1]).any(axis=1)
    last: Array = order[np.append(differs, True)]
    return last


def _bytes_of(rows: Array) -> Array:
    return rows.view(f"V{rows.dtype.itemsize}")


def _joined(parts: list[Array]) -> Array:
    """As bytes: numpy would turn joined ports into the host's byte order."""
    return np.concatenate([_bytes_of(part) for part in parts]).view(parts[0].dtype)
