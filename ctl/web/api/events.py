"""The stream of events of one page (server-sent events)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ctl.errors import Code
from ctl.web.access.gate import Gate
from ctl.web.api.request import Request
from ctl.web.live.feed import MAX_STREAMS, Feed, Stream
from ctl.web.serving.answers import Answering
from ctl.web.serving.problems import HttpError

QUIET_S = 15.0
CHECK_S = 5.0


class EventStreams:
    """Every page has one."""

    def __init__(self, feed: Feed, gate: Gate) -> None:
        self._feed, self._gate = feed, gate

    async def serve(self, request: Request, answering: Answering) -> None:
        """Send events until the page or the session ends."""
        if self._feed.full:
            raise HttpError(503, f"{MAX_STREAMS} pages watch this node already", Code.BUSY, retry_after="10")
        stream = self._feed.open(request.who.key or request.who.token, request.headers.get("last-event-id", "")[:64])
        gone = asyncio.ensure_future(_disconnected(request.receive))
        try:
            await answering.pieces(200, self._pieces(request, stream, gone), "text/event-stream; charset=utf-8")
        finally:
            gone.cancel()
            self._feed.close(stream)

    async def _pieces(self, request: Request, stream: Stream, gone: asyncio.Future[None]) -> AsyncIterator[bytes]:
        yield b"retry: 2000\n\n"
        loop = asyncio.get_running_loop()
        silent_s = loop.time()
        while not gone.done():
            items = await stream.take(CHECK_S)
            if items:
                silent_s = loop.time()
                yield b"".join(each.encoded() for each in items)
            elif loop.time() - silent_s >= QUIET_S - 0.1:
                silent_s = loop.time()
                yield b": quiet\n\n"
            if stream.ended:
                return
            if not self._gate.still(request.who):
                stream.end("session")


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] == "http.request":
        pass
