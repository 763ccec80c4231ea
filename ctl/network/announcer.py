"""Announces the VIPs slowly for as long as this node serves them, and at once when something changed.

Decides when. A switch or a neighbour that missed the announcements of a takeover sends to a dead node until its cache entry
expires, and only this node can repair it; RFC 9568 lets a router announce again at any time. The rate is bounded: BATCH
addresses (`ctl.network.vip_addresses`) per SPACING_S, however many VIPs there are.
"""

from __future__ import annotations

import asyncio
import logging

from ctl.network.vip_addresses import VipAddresses

SPACING_S = 0.1

log = logging.getLogger(__name__)


class Announcer:
    """Create on a running loop; `run` as a task. rounds: how often the VIPs were announced."""

    def __init__(self, addresses: VipAddresses, interval_s: float) -> None:
        """interval_s: between two rounds; 0: only at the start and when asked."""
        self._addresses, self._interval_s = addresses, interval_s
        self._wake = asyncio.Event()
        self._refused = False
        self.rounds = 0

    def soon(self) -> None:
        """Announce now."""
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._wake.clear()
            if self._addresses.serving:
                await self._round()
            try:
                async with asyncio.timeout(self._interval_s or None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> None:
        messages: list[str] = []
        for refused in self._addresses.announce():
            messages += refused[:1]
            await asyncio.sleep(SPACING_S)
            if not self._addresses.serving:
                return
        self.rounds += 1
        if messages and not self._refused:
            log.warning("%s", messages[0])
        self._refused = bool(messages)
