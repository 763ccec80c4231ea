"""Accepts connections on the addresses of the node file, as many as `ctl.web.serving.admission` lets in.

uvicorn's own server accepts without a limit, and hands a connection to TLS for as long as the client likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from ctl.errors import Code, XlbError
from ctl.web.serving.admission import Admission
from ctl.web.serving.connection import Connection, Limits
from ctl.web.serving.opening import Opening

log = logging.getLogger(__name__)

BACKLOG = 1024
HANDSHAKE_S = 5.0
AT_ONCE = 16
PAUSE_S = 0.2
"""After the system had no descriptor for a connection."""
TLS_BUFFER_BYTES = 16384

_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

if hasattr(sslproto.SSLProtocol, "max_size"):  # asyncio reserves, and writes to, 256 KiB for each connection
    sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


def bind(addresses: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Sockets that listen. Raises XlbError naming the address."""
    made: list[socket.socket] = []
    for address, port in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        each = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        made.append(each)
        try:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind((address, port))
            each.listen(BACKLOG)
        except OSError as error:
            for other in made:
                other.close()
            raise XlbError(
                f"cannot listen on {address} port {port}: {error.strerror}; change web.listen, or stop what listens there",
                Code.REFUSED,
            ) from None
    return made


class Listener:
    """Serves an ASGI application on sockets that listen, with TLS always."""

    def __init__(
        self,
        app: Callable[..., Any],
        sockets: Sequence[socket.socket],
        context: ssl.SSLContext,
        admission: Admission,
        limits: Limits | None = None,
        handshake_s: float = HANDSHAKE_S,
    ) -> None:
        self.admission = admission
        self._sockets, self._context, self._handshake_s = sockets, context, handshake_s
        self._limits = limits or Limits()
        self._config = Config(
            app,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=self._limits.idle,
        )
        self._config.load()
        self._state = ServerState()
        self._open: dict[int, Connection] = {}
        self._opening: dict[int, Opening] = {}

    def start(self) -> None:
        """Accept connections from now on."""
        for each in self._sockets:
            self._accept_from(each)

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let answers that are under way end for `grace_s`, then end every connection."""
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            loop.remove_reader(each.fileno())
            each.close()
        for opening in list(self._opening.values()):
            opening.abort()
        for connection in list(self._open.values()):
            with contextlib.suppress(Exception):  # h11 refuses where the client broke the protocol
                connection.shutdown()
        deadline = loop.time() + grace_s
        while self._open and loop.time() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self._open.values()):
            connection.abort()
        await asyncio.sleep(0)

    def _accept_from(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """At most AT_ONCE: requests get their turn between."""
        for _ in range(AT_ONCE):
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    log.warning("no connection can be accepted: %s", error.strerror)
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(listening.fileno())
                    loop.call_later(PAUSE_S, self._accept_from, listening)
                    return
                continue  # that client has gone
            verdict = self.admission.arrive(address[0])
            self._close(verdict.evict)
            if verdict.number is None:
                accepted.close()
            else:
                self._opening[verdict.number] = self._opened(accepted, verdict.number)

    def _opened(self, accepted: socket.socket, number: int) -> Opening:
        def ended() -> None:
            self._opening.pop(number, None)
            if number in self._open:
                self.admission.shaken(number)
            else:
                self.admission.leave(number)

        return Opening(
            accepted,
            self._context,
            self._handshake_s,
            greeted=lambda: self._close(self.admission.greet(number)),
            made=lambda: self._connection(number),
            ended=ended,
        )

    def _close(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (opening := self._opening.get(number)) is not None:
                opening.abort()
            if (connection := self._open.get(number)) is not None:
                connection.abort()

    def _connection(self, number: int) -> Connection:
        def made(connection: Connection) -> None:
            self._open[number] = connection

        def lost() -> None:
            self._open.pop(number, None)
            self.admission.leave(number)

        return Connection(self._config, self._state, self._limits, made, lost, prove=lambda: self.admission.prove(number))
