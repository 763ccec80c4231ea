"""One connection: uvicorn's HTTP/1.1 on h11, with a limit for the time that a head, a body and each write may take.

Must not know what is asked. The scope of a request has its connection as "xlb.connection".
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_STATE: dict[str, Any] = {"app_state": {}} if "app_state" in inspect.signature(H11Protocol.__init__).parameters else {}

NONSENSE = "nonsense"
_MESSAGE = b'{"error":{"kind":"refused","code":"malformed_request","message":"the request is not HTTP/1.1","key":""}}'
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
    b"Cache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. body: and so much more as its length needs at `body_rate` bytes per second, up to `longest_body`."""

    head: float = 10.0
    body: float = 20.0
    body_rate: int = 65536
    longest_body: float = 150.0
    write: float = 20.0
    idle: int = 30
    linger: float = 1.0


class Connection(H11Protocol):
    """limits: see there. lost: called once, when the connection has ended. prove: its client has proven who it is."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        limits: Limits,
        made: Callable[[Connection], None],
        lost: Callable[[], None],
        prove: Callable[[], None],
    ) -> None:
        super().__init__(config=config, server_state=state, _loop=asyncio.get_running_loop(), **_STATE)
        self.prove = prove
        self._limits = limits
        self._made, self._lost = made, lost
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._phase = ""
        app = self.app

        async def within(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {"xlb.connection": self}, receive, send)

        self.app = within

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made(self)
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("")
        self.resume_writing()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._lost()

    def data_received(self, data: bytes) -> None:
        if self._phase == NONSENSE:
            return
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reading(idle=True)

    def pause_writing(self) -> None:
        """The client does not read: it has so many seconds to take what is buffered."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self._limits.write, self.abort)

    def resume_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def send_400_response(self, msg: str, *_: Any) -> None:
        """What is no HTTP gets a short answer, and the end of the connection a moment later: what the client still sends is
        thrown away until then, because a connection that is closed with unread data takes the answer with it.
        """
        if self.transport.is_closing() or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        self.transport.write(_BAD_REQUEST)
        self._enter(NONSENSE, self._limits.linger)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def _watch_reading(self, idle: bool = False) -> None:
        """Limit the time of what the client sends now: a head, unless it is idle after an answer; a body; nothing."""
        if self._phase == NONSENSE:
            return
        theirs = self.conn.their_state
        if theirs is h11.IDLE:
            if not idle:
                self._enter("head", self._limits.head)
        elif theirs is h11.SEND_BODY:
            self._enter("body", self._body_s())
        else:
            self._enter("")

    def _enter(self, phase: str, seconds: float = 0.0) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_later(seconds, self.abort) if phase else None

    def _body_s(self) -> float:
        length = next((value for name, value in self.headers or () if name == b"content-length"), b"0")
        size = int(length[:12]) if length.isdigit() else 0
        return min(self._limits.longest_body, self._limits.body + size / self._limits.body_rate)
