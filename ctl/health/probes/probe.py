"""One health probe: connects to a backend, or sends an HTTP request, and reports the failure.

Does I/O only; `ctl.health.check_machine` decides when to probe and what a result means. Every read is bounded, and every probe
ends at its timeout.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from ctl.config.model import CheckKind, HealthCheck, format_endpoint

MAX_STATUS_LINE_BYTES = 4096

_USER_AGENT = "xlbd"


class ProbeFailed(Exception):
    """The probe failed; the message is short, for `farm show` and the log."""


async def probe(check: HealthCheck, address: str, port: int, source: str = "") -> None:
    """Run one probe of `check` against address:port, from address `source`; empty: the kernel selects it.

    Raises ProbeFailed with the reason.
    """
    try:
        async with asyncio.timeout(check.timeout_ms / 1000):
            if check.kind is CheckKind.TCP:
                await _probe_tcp(address, port, source)
            elif check.kind is CheckKind.HTTP:
                await _probe_http(check, address, port, source)
    except TimeoutError:
        raise ProbeFailed(f"no answer from {format_endpoint(address, port)} within {check.timeout_ms} ms") from None
    except OSError as error:
        raise ProbeFailed(f"{format_endpoint(address, port)}: {_reason(error)}") from None


async def _probe_tcp(address: str, port: int, source: str) -> None:
    """RFC 9293 handshake, then an abortive close: thousands of checks must not fill the node with TIME-WAIT ports."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ABORT)
        if source:
            connection.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(connection, (address, port))


async def _probe_http(check: HealthCheck, address: str, port: int, source: str) -> None:
    """GET with HTTP/1.1 (RFC 9112); only the status line is read."""
    host = check.host or format_endpoint(address, port)
    request = (
        f"GET {check.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {_USER_AGENT}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(address, port, limit=MAX_STATUS_LINE_BYTES, local_addr=local)
    try:
        writer.write(request.encode("latin-1", "replace"))
        line = await _status_line(reader)
        status = parse_status_line(line)
        low, high = status_range(check.status)
        if not low <= status <= high:
            raise ProbeFailed(f"GET {check.path} answered {status}, expected {check.status}")
    finally:
        writer.transport.abort()  # the rest of the response is not needed; leaves no TIME-WAIT socket


async def _status_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        raise ProbeFailed(
            "closed the connection before a complete HTTP status line"
            if error.partial
            else "closed the connection without an answer"
        ) from None
    except asyncio.LimitOverrunError:
        raise ProbeFailed(f"sent more than {MAX_STATUS_LINE_BYTES} bytes without an HTTP status line") from None


def parse_status_line(line: bytes) -> int:
    """The status code of an HTTP/1.x status line (RFC 9112 section 4).

    Raises ProbeFailed when the line is not one.
    """
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    if not version.startswith(b"HTTP/1.") or not code.isdigit() or len(code) != 3 or rest[3:4] not in (b" ", b"\r", b"\n", b""):
        raise ProbeFailed(f"does not speak HTTP: answered {line[:40]!r}")
    return int(code)


def status_range(text: str) -> tuple[int, int]:
    """First and last accepted status of "200" or "200-399"."""
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _reason(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "connection refused"
    return os.strerror(error.errno).lower() if error.errno else str(error)


_LINGER_ABORT = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {l_onoff=1, l_linger=0}
