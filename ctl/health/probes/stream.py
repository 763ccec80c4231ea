"""A connection to a backend for probes: bounded reads, and an abortive close. TLS over it is in `ctl.health.probes.tls`.

Must not know what is sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Protocol

READ_BYTES = 4096

_LINGER_ABORT = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {l_onoff=1, l_linger=0}


class Connection(Protocol):
    """A stream, with or without TLS."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes:
        """At most READ_BYTES; empty: the peer has closed."""


class TlsFailed(Exception):
    """The handshake failed; the message is short."""


class Stream:
    """A TCP connection. `close` it: with a RST, so that thousands of checks do not fill the node with TIME-WAIT ports."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def receive(self) -> bytes:
        """At most READ_BYTES; empty: the peer has closed."""
        return await asyncio.get_running_loop().sock_recv(self._connection, READ_BYTES)

    def close(self) -> None:
        self._connection.close()


async def connect(address: str, port: int, source: str) -> Stream:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ABORT)
        if source:
            connection.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return Stream(connection)


def server_name(sni: str, host: str, address: str) -> str:
    """The name to ask for and to find in the certificate: `sni`, or the name in a Host header, or the address."""
    if sni:
        return sni
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.strip("[]")
    try:
        return str(ipaddress.ip_address(name)) if name else address
    except ValueError:
        return name
