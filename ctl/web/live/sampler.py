"""Reads `metrics` regularly: every two seconds while somebody looks, else once per step of the series. One reader for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import Any

from ctl.api.async_client import AsyncClient
from ctl.errors import Code, XlbError
from ctl.runtime import memory
from ctl.web.live import samples
from ctl.web.live.feed import Feed, Item
from ctl.web.live.samples import STEP_S, Sample, Series
from ctl.web.serving.json_text import dump

LOOKED_S = 2.0
WANTED_S = 10.0
SCRAPE_S = 1.0
"""Scrapes within this time share one answer."""


class Sampler:
    """Create and use it on one running loop."""

    def __init__(self, client: AsyncClient, feed: Feed, looked_at: Callable[[], bool]) -> None:
        """looked_at: whether a page is open."""
        self._client, self._feed, self._looked_at = client, feed, looked_at
        self.series = Series()
        self._old: Sample | None = None
        self._new: Sample | None = None
        self._problem: XlbError | None = None
        self._asked_s = float("-inf")
        self._wake = asyncio.Event()
        self._reading = asyncio.Lock()
        self._scraped: tuple[float, dict[str, Any]] | None = None

    async def run(self) -> None:
        """Read until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            looked = self._looked_at() or loop.time() - self._asked_s < WANTED_S
            if looked or self._new is None or self.series.due(loop.time()):
                await self._read()
            due_s = STEP_S - loop.time() % STEP_S + 0.01
            try:
                async with asyncio.timeout(min(LOOKED_S, due_s) if looked else due_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = (await self._client.call("metrics")).result
        except XlbError as error:
            self._problem = error
            return
        self._problem = None
        self._old, self._new = self._new, samples.read(answer, loop.time(), time())
        if self.series.due(self._new.at_s):
            self.series.add(self._new)
            await asyncio.to_thread(memory.give_back)
        if self._feed.streams and self._old is not None:
            self._feed.publish(Item("rates", dump(self._rates()).decode()))

    def _rates(self) -> dict[str, Any]:
        old, new = self._old, self._new
        assert new is not None
        seconds = new.at_s - old.at_s if old is not None else 0.0
        return {
            "at_s": round(new.wall_s, 3),
            "node": samples.node_rates(old, new),
            "farms": samples.table_rates(old.farms if old is not None else None, new.farms, seconds),
        }

    async def rates(self, farm: str = "") -> dict[str, Any]:
        """Per second, since the reading before the last. Raises XlbError while xlbd does not answer."""
        loop = asyncio.get_running_loop()
        asleep = loop.time() - self._asked_s >= WANTED_S and not self._looked_at()
        self._asked_s = loop.time()
        if asleep:
            self._wake.set()
        if self._new is None:
            await self._read()
        if self._problem is not None or self._new is None:
            raise self._problem or XlbError("xlbd has not been asked yet", Code.DAEMON_NOT_RUNNING)
        view = self._rates()
        if farm:
            backends = samples.backend_rates(self._old, self._new, farm)
            if backends is None:
                raise XlbError(f'there is no farm "{farm[:64]}"', Code.UNKNOWN_FARM)
            view["backends"] = backends
        return view

    def last_hour(self, farm: str = "") -> dict[str, Any]:
        """The series. Raises XlbError for a farm that there is not."""
        found = self.series.view(farm)
        if found is None:
            raise XlbError(f'there is no series of a farm "{farm[:64]}" yet', Code.UNKNOWN_FARM)
        return {"step_s": STEP_S, "end_s": round(self.series.end_s, 3), "series": found}

    async def scrape(self) -> dict[str, Any]:
        """An answer of `metrics`, at most SCRAPE_S old. Raises XlbError."""
        loop = asyncio.get_running_loop()
        async with self._reading:
            if self._scraped is None or loop.time() - self._scraped[0] > SCRAPE_S:
                self._scraped = loop.time(), (await self._client.call("metrics")).result
            return self._scraped[1]
