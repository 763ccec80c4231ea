"""The last events of a node, numbered, for readers that come back for more. Pure: the time is an argument.

Decides what a reader gets and how many events it lost: the history is every reader's queue, so none can hold up the node or
another reader. A reader names the number of the last event it has; numbers begin again with each incarnation of the daemon.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from ctl.events.catalogue import Event

KEPT = 512
"""At most 2 MB with the longest messages, 200 KB with usual ones."""
MAX_BATCH = 128


@dataclass(frozen=True, slots=True)
class Entry:
    """An event, its number, and when it happened (seconds since 1970)."""

    number: int
    at_s: float
    event: Event


@dataclass(frozen=True, slots=True)
class Batch:
    """Events for one reader, the oldest first; `lost`: not kept any more; `last`: the number to ask with next."""

    entries: tuple[Entry, ...]
    lost: int
    last: int


class History:
    """Holds the newest `kept` events."""

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[Entry] = deque(maxlen=kept)
        self.last = 0

    def add(self, event: Event, at_s: float) -> Entry:
        """Number an event and keep it."""
        self.last += 1
        entry = Entry(self.last, at_s, event)
        self._entries.append(entry)
        return entry

    def newest(self, count: int) -> Batch:
        """The newest `count` events, at most MAX_BATCH; what came before is not lost, it was not asked for."""
        count = min(count, len(self._entries), MAX_BATCH)
        return Batch(tuple(islice(self._entries, len(self._entries) - count, None)), 0, self.last)

    def after(self, number: int) -> Batch:
        """The events after `number`, at most MAX_BATCH. A number that was never given counts as the last one."""
        first = self.last - len(self._entries) + 1
        number = min(number, self.last)
        lost = max(0, first - number - 1)
        start = max(number + 1, first) - first
        entries = tuple(islice(self._entries, start, start + MAX_BATCH))
        return Batch(entries, lost, entries[-1].number if entries else number + lost)
