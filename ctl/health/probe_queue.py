"""Which farm's probe starts next: a fair queue with a bounded number of probes in flight.

Each farm has a queue of its own, and the farms that have a due probe take turns. A farm may start another probe while it has
fewer in flight than there are free slots (the dynamic threshold of Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches", 1998): a farm whose backends are all silent takes half of the slots at most, and any other farm
finds free ones at once. Must not know backends, checks or results.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A probe in the queue; the owner decides by id and serial whether it is still wanted."""

    farm: str
    backend_id: int
    serial: int


IsWanted = Callable[[int, int], bool]


class ProbeQueue:
    """Create with the number of probes that may be in flight at once."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._queues: dict[str, list[tuple[int, int, int]]] = {}  # (due_ms, backend id, serial), a heap per farm
        self._turns: list[tuple[int, int, str]] = []  # (from when, number, farm), a heap; one whose number is old is skipped
        self._turn_of: dict[str, tuple[int, int]] = {}  # the valid turn of each farm that waits for one
        self._in_flight: dict[str, int] = {}
        self._total = 0
        self._blocked: set[str] = set()  # farms at their share: the end of one of their probes gives them a turn
        self._number = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, place: Place, due_ms: int) -> None:
        """Add a probe."""
        queue = self._queues.setdefault(place.farm, [])
        heapq.heappush(queue, (due_ms, place.backend_id, place.serial))
        self._size += 1
        if place.farm in self._blocked:
            return
        turn = self._turn_of.get(place.farm)
        if turn is None or due_ms < turn[0]:
            self._give_turn(place.farm, due_ms)

    def take(self, now_ms: int, limit: int, is_wanted: IsWanted) -> list[Place]:
        """At most `limit` due probes, one farm after the other; each is in flight until `ended`."""
        taken: list[Place] = []
        while self._turns and len(taken) < limit and self._total < self._slots and self._turns[0][0] <= now_ms:
            from_ms, number, farm = heapq.heappop(self._turns)
            if self._turn_of.get(farm) != (from_ms, number):
                continue
            del self._turn_of[farm]
            queue = self._queues[farm]
            while queue and not is_wanted(queue[0][1], queue[0][2]):
                heapq.heappop(queue)
                self._size -= 1
            if not queue:
                del self._queues[farm]
            elif queue[0][0] > now_ms:
                self._give_turn(farm, queue[0][0])
            elif self._in_flight.get(farm, 0) >= max(1, self._slots - self._total):
                self._blocked.add(farm)
            else:
                _, backend_id, serial = heapq.heappop(queue)
                self._size -= 1
                self._total += 1
                self._in_flight[farm] = self._in_flight.get(farm, 0) + 1
                taken.append(Place(farm, backend_id, serial))
                if queue:
                    self._give_turn(farm, max(queue[0][0], now_ms))
                else:
                    del self._queues[farm]
        return taken

    def ended(self, farm: str, now_ms: int) -> None:
        """A probe of this farm has ended."""
        self._total -= 1
        self._in_flight[farm] -= 1
        if not self._in_flight[farm]:
            del self._in_flight[farm]
        if farm in self._blocked:
            self._blocked.remove(farm)
            self._give_turn(farm, max(self._queues[farm][0][0], now_ms))

    def next_due_ms(self) -> int | None:
        """When `take` next returns a probe; None: only after `put` or `ended`. The time may be that of an unwanted probe."""
        return self._turns[0][0] if self._turns and self._total < self._slots else None

    def forget_unwanted(self, is_wanted: IsWanted) -> None:
        """Remove the probes that are not wanted any more, from the whole queue."""
        self._turns.clear()
        self._turn_of.clear()
        queues, self._queues, self._size = self._queues, {}, 0
        for farm, queue in queues.items():
            kept = [each for each in queue if is_wanted(each[1], each[2])]
            if not kept:
                self._blocked.discard(farm)
                continue
            heapq.heapify(kept)
            self._queues[farm] = kept
            self._size += len(kept)
            if farm not in self._blocked:
                self._give_turn(farm, kept[0][0])

    def _give_turn(self, farm: str, from_ms: int) -> None:
        self._number += 1
        self._turn_of[farm] = from_ms, self._number
        heapq.heappush(self._turns, (from_ms, self._number, farm))
