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
from ctl.health.probes.http_answer import HttpAnswer, NotAnswered

READ_BYTES = 4096

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
    """GET with HTTP/1.1; only the status of the final response counts."""
    answer = HttpAnswer(check.path, check.host or format_endpoint(address, port), _USER_AGENT)
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(address, port, limit=READ_BYTES, local_addr=local)
    try:
        writer.write(answer.request)
        status = None
        while status is None:
            status = answer.feed(await reader.read(READ_BYTES))
    except NotAnswered as error:
        raise ProbeFailed(str(error)) from None
    finally:
        writer.transport.abort()  # the rest of the response is not needed; leaves no TIME-WAIT socket
    low, high = status_range(check.status)
    if not low <= status <= high:
        raise ProbeFailed(f"GET {check.path} answered {status}, expected {check.status}")


def status_range(text: str) -> tuple[int, int]:
    """First and last accepted status of "200" or "200-399"."""
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _reason(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "connection refused"
    return os.strerror(error.errno).lower() if error.errno else str(error)


_LINGER_ABORT = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {l_onoff=1, l_linger=0}
