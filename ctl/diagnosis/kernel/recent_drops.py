"""Reads the data plane's counters every few seconds, so that `doctor` can judge recent drops. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
import time

from bpf.dataplane import DataPlane, PlaneError
from ctl.diagnosis.drops import DROPS, INTERVAL_S, RecentCounters

log = logging.getLogger(__name__)


class DropSampler:
    """Runs as one task."""

    def __init__(self, plane: DataPlane) -> None:
        self.recent = RecentCounters()
        self._plane = plane

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                self.recent.note(time.monotonic(), await asyncio.to_thread(packets, self._plane))
            except (PlaneError, OSError) as error:
                log.debug("the counters cannot be read: %s", error)
            await asyncio.sleep(INTERVAL_S)


def packets(plane: DataPlane) -> dict[str, int]:
    """Packets of each kind of drop since the counters were created."""
    counters = plane.counters()
    return {name: counters.get(name, (0, 0))[0] for name in DROPS}
