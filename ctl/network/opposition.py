"""Notices when something that xlb repairs is undone again and again: then another program wants it otherwise.

Decides from times only. A setting restored within milliseconds costs little each time; an operator must know, and in a pair the
other node may be without such a program.
"""

from __future__ import annotations

from collections import deque

TIMES, WINDOW_S = 4, 60.0
MAX_REMEMBERED = 1024


class Opposition:
    """Remembers the last repairs of each key."""

    def __init__(self) -> None:
        self._repaired: dict[object, deque[float]] = {}

    def repaired(self, key: object, now_s: float) -> bool:
        """Note one repair; returns whether it was the TIMES-th within WINDOW_S."""
        if key not in self._repaired and len(self._repaired) >= MAX_REMEMBERED:
            del self._repaired[next(iter(self._repaired))]
        times = self._repaired.setdefault(key, deque(maxlen=TIMES))
        times.append(now_s)
        return len(times) == TIMES and now_s - times[0] <= WINDOW_S

    def ended(self, key: object, now_s: float) -> bool:
        """Whether nothing had to be repaired for WINDOW_S."""
        times = self._repaired.get(key)
        if times and now_s - times[-1] <= WINDOW_S:
            return False
        self._repaired.pop(key, None)
        return True
