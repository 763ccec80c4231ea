"""Probes by datagrams: ICMP echo (RFC 792, RFC 4443) and UDP.

Each probe has a socket of its own, connected to the backend: only its datagrams arrive, and ICMP errors are reported on it
(IP_RECVERR). Does I/O only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import struct
from collections.abc import Iterator

from ctl.health.probes.http_answer import NotAnswered

MAX_DATAGRAM = 65536
_SHOWN_BYTES = 40
_TOKEN_BYTES = 16

_IP_RECVERR, _IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_FAMILIES = {  # protocol, types of request and reply
    socket.AF_INET: (socket.IPPROTO_ICMP, 8, 0),
    socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128, 129),
}
_numbers = itertools.count(secrets.randbelow(65536))


async def ping(address: str, source: str) -> None:
    """Return when an echo request is answered. Raises OSError.

    A raw socket, or where that is not permitted a ping socket (net.ipv4.ping_group_range, icmp(7)).
    """
    family = _family(address)
    protocol, request, reply = _FAMILIES[family]
    try:
        unconnected = _socket(family, socket.SOCK_RAW, protocol)
        raw = True
    except PermissionError:
        unconnected = _socket(family, socket.SOCK_DGRAM, protocol)
        raw = False
    with _connected(unconnected, address, 0, source) as connection:
        if raw:
            _only(connection, family, reply)
        token = secrets.token_bytes(_TOKEN_BYTES)
        connection.send(_echo(request, next(_numbers) & 0xFFFF, token))
        while True:
            data = await asyncio.get_running_loop().sock_recv(connection, 4096)
            if raw and family == socket.AF_INET:
                data = data[(data[0] & 15) * 4 :]
            if data[:1] == bytes([reply]) and data[8:] == token:
                return


async def ask_udp(address: str, port: int, source: str, payload: bytes, expected: bytes) -> None:
    """Send a datagram and return when the answer contains `expected`. Raises NotAnswered, OSError."""
    with udp_socket(address, port, source) as connection:
        connection.send(payload)
        answer = await asyncio.get_running_loop().sock_recv(connection, MAX_DATAGRAM)
    if expected not in answer:
        raise NotAnswered(f"answered {answer[:_SHOWN_BYTES]!r}, which does not contain {expected[:_SHOWN_BYTES]!r}")


def udp_socket(address: str, port: int, source: str) -> contextlib.AbstractContextManager[socket.socket]:
    """A socket from a new port, connected to a server. Raises OSError."""
    family = _family(address)
    return _connected(_socket(family, socket.SOCK_DGRAM), address, port, source)


def octets(text: str) -> bytes:
    """The bytes of a setting: text, or "hex:" and digits."""
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


@contextlib.contextmanager
def _connected(unconnected: socket.socket, address: str, port: int, source: str) -> Iterator[socket.socket]:
    with unconnected as connection:
        if connection.family == socket.AF_INET6:
            connection.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            connection.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        if source:
            connection.bind((source, 0))
        connection.connect((address, port))
        yield connection


def _only(connection: socket.socket, family: int, reply: int) -> None:
    """Have the kernel drop other ICMP types: a raw socket gets a copy of each packet."""
    if family == socket.AF_INET6:
        blocked = bytearray(b"\xff" * 32)
        struct.pack_into("=I", blocked, reply // 32 * 4, 0xFFFFFFFF & ~(1 << reply % 32))
        connection.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
    else:
        connection.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF & ~(1 << reply)))


def _echo(kind: int, number: int, token: bytes) -> bytes:
    """An echo request. The kernel computes the checksum of ICMPv6 and of ping sockets."""
    header = struct.pack("!BBHHH", kind, 0, 0, number, number)
    words = struct.unpack(f"!{(8 + len(token)) // 2}H", header + token)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", kind, 0, ~total & 0xFFFF, number, number) + token
