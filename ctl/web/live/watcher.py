"""Follows the events of xlbd: one request that waits, repeated, for all pages together; also across restarts of xlbd."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ctl.api.async_client import AsyncClient
from ctl.errors import XlbError
from ctl.web.live.feed import Feed, Item
from ctl.web.serving.json_text import dump

log = logging.getLogger(__name__)

WAIT_MS = 10_000
AGAIN_S = 1.0
FIRST = 100


class Watcher:
    """seen: called with each event, as `xlbctl watch -o json` has it. connected: called when xlbd answers (again)."""

    def __init__(
        self, client: AsyncClient, feed: Feed, seen: Callable[[dict[str, Any]], None], connected: Callable[[], None]
    ) -> None:
        self._client, self._feed, self._seen, self._connected = client, feed, seen, connected
        self._incarnation = ""
        self._last: int | None = None
        self._reached: bool | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                answer = await self._ask()
            except XlbError as error:
                if self._reached is not False:
                    log.warning("xlbd is not reached: %s", error)
                self._reached = False
                await asyncio.sleep(AGAIN_S)
                continue
            if not self._reached:
                log.info("xlbd is reached: node %s", answer["node"])
                self._reached = True
                self._connected()
            self._pass_on(answer)

    async def _ask(self) -> dict[str, Any]:
        if self._last is None:
            arguments: dict[str, Any] = {"last": FIRST}
        else:
            arguments = {"incarnation": self._incarnation, "after": self._last, "wait_ms": WAIT_MS}
        answer: dict[str, Any] = (await self._client.call("watch", arguments, waits=self._last is not None)).result
        return answer

    def _pass_on(self, answer: dict[str, Any]) -> None:
        self._incarnation, self._last = answer["incarnation"], answer["last"]
        if answer["lost"]:
            self._feed.publish(Item("lost", f'{{"lost":{answer["lost"]}}}'))
        for event in answer["events"]:
            self._feed.publish(Item("event", dump(event).decode(), f"{self._incarnation}-{event['number']}"))
            self._seen(event)
