"""Looks again and again whether the state directory can be written, and makes a fault of it where it cannot.

Decides how often, and that one look is not enough: while a pair ends, its file is gone for a moment. What a fault leads to is
decided in `sync.failover`: in a pair, a healthy peer gets the VIPs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ctl.cluster.membership import Membership
from ctl.state import storage

PERIOD_S = 1.0
FAULT = "storage"


class StateWatch:
    """Runs as one task."""

    def __init__(self, state_dir: Path, membership: Membership) -> None:
        self._state_dir, self._membership = state_dir, membership
        self._seen: storage.Problem | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> None:
        """One look. A problem counts once two looks have seen it."""
        before = self._seen
        self._seen = await asyncio.to_thread(storage.problem, self._state_dir, self._membership.member is not None)
        if self._seen is None:
            self._membership.fault_changed(FAULT, "")
        elif self._seen == before:
            self._membership.fault_changed(FAULT, self._seen.message)
