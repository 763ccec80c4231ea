"""A connection until its TLS handshake is finished.

The client's whole hello is waited for in the kernel's buffer: a client that sends nothing, or half of it, costs a descriptor
and no TLS. One that speaks HTTP without TLS gets an answer with the reason. Decides nothing about how many there may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import Callable

HEADER_BYTES = 5
HANDSHAKE = 22
MAX_RECORD_BYTES = HEADER_BYTES + (1 << 14)
TLS_SHUTDOWN_S = 3.0
WRITE_BUFFER_BYTES = 16384
PLAIN = b"this port speaks HTTPS only: put https:// in front of the address\n"
_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
    len(PLAIN),
    PLAIN,
)
_DRAINED = 1 << 16


class NotTls(Exception):
    """What the client sends is no hello."""


def hello_bytes(head: bytes) -> int:
    """How many bytes must have arrived before the first record of a client is complete (RFC 8446, 5.1). Raises NotTls."""
    if head[:1] != bytes([HANDSHAKE]) or head[1:2] not in (b"", b"\x03"):
        raise NotTls
    if len(head) < HEADER_BYTES:
        return HEADER_BYTES
    length = HEADER_BYTES + int.from_bytes(head[3:HEADER_BYTES], "big")
    if not HEADER_BYTES < length <= MAX_RECORD_BYTES:
        raise NotTls
    return length


class Opening:
    """Owns an accepted socket from its creation on, which is on a running loop.

    greeted: called when the hello is complete. made: makes the protocol that gets the TLS transport. ended: called once, when
    the handshake is finished or the connection is closed before.
    """

    def __init__(
        self,
        accepted: socket.socket,
        context: ssl.SSLContext,
        limit_s: float,
        greeted: Callable[[], None],
        made: Callable[[], asyncio.Protocol],
        ended: Callable[[], None],
    ) -> None:
        self._socket, self._context, self._limit_s = accepted, context, limit_s
        self._greeted, self._made, self._ended = greeted, made, ended
        self._loop = asyncio.get_running_loop()
        self._ends_s = self._loop.time() + limit_s
        self._wanted = HEADER_BYTES
        self._raw: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._timer = self._loop.call_at(self._ends_s, self.abort)
        accepted.setblocking(False)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, HEADER_BYTES)
        self._loop.add_reader(accepted.fileno(), self._arrived)

    def abort(self) -> None:
        """Close it now, wherever it is; a finished handshake stays."""
        if self._over:
            return
        self._end()
        if self._task is None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        elif self._raw is not None:
            self._raw.abort()  # the handshake ends with it

    def _end(self) -> None:
        self._over = True
        self._timer.cancel()
        self._ended()

    def _arrived(self) -> None:
        """SO_RCVLOWAT is reached, or the client has closed its side."""
        try:
            head = self._socket.recv(HEADER_BYTES, socket.MSG_PEEK)
            queued = _queued(self._socket)
            wanted = hello_bytes(head)
        except BlockingIOError:
            return
        except NotTls:
            self._explain(head)
            return
        except OSError:
            self.abort()
            return
        if queued >= wanted:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._task = self._loop.create_task(self._shake())
            self._greeted()
        elif queued < self._wanted:  # woken without enough: nothing more will come
            self.abort()
        else:
            self._wanted = wanted
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    def _explain(self, head: bytes) -> None:
        if head[:1].isalpha():
            with contextlib.suppress(OSError):
                self._socket.recv(_DRAINED)  # what is unread would have the answer discarded
                self._socket.send(_ANSWER)
                self._socket.shutdown(socket.SHUT_WR)
        self.abort()

    async def _shake(self) -> None:
        try:
            self._raw, _ = await self._loop.connect_accepted_socket(_Held, self._socket)
            if self._over:
                self._raw.abort()
                return
            self._raw.set_write_buffer_limits(WRITE_BUFFER_BYTES)
            early = _Early()
            secured = await self._loop.start_tls(
                self._raw,
                early,
                self._context,
                server_side=True,
                ssl_handshake_timeout=max(0.1, self._ends_s - self._loop.time()),
                ssl_shutdown_timeout=TLS_SHUTDOWN_S,
            )
        except (OSError, ssl.SSLError):  # the client gave up, or cannot agree
            self.abort()
            return
        if self._over or secured is None or early.lost or self._raw.is_closing():
            self.abort()
            return
        secured.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        early.hand_over(secured, self._made())
        self._end()


class _Held(asyncio.Protocol):
    """Leaves the hello to TLS."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.pause_reading()


class _Early(asyncio.Protocol):
    """Keeps what arrives with the end of the handshake, until the protocol is there."""

    def __init__(self) -> None:
        self.lost = False
        self._data: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._data.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def hand_over(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._data:
            protocol.data_received(b"".join(self._data))


def _queued(accepted: socket.socket) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(accepted.fileno(), termios.FIONREAD, b"\0\0\0\0"))[0]
    return count
