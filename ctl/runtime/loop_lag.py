"""Measures how late the event loop wakes up, which shows whether something blocks it."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice

INTERVAL_S = 0.05
WINDOW = 1200  # one minute


class LoopLag:
    """Runs as one task; lag is in milliseconds."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=WINDOW)
        self.worst_ms = 0.0

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            lag_ms = max(0.0, (loop.time() - due) * 1000)
            self._lags.append(lag_ms)
            self.worst_ms = max(self.worst_ms, lag_ms)

    def worst_ms_of(self, seconds: float) -> float:
        """The worst of the last seconds."""
        return max(islice(reversed(self._lags), round(seconds / INTERVAL_S)), default=0.0)

    def view(self) -> dict[str, float]:
        """The last minute's median and worst, and the worst since the start."""
        lags = sorted(self._lags) or [0.0]
        values = {"median": lags[len(lags) // 2], "worst_minute": lags[-1], "worst": self.worst_ms}
        return {name: round(value, 3) for name, value in values.items()}
