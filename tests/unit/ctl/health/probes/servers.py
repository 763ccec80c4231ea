"""TCP servers on loopback for probes, and what a probe finds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from ctl.config.model import CheckKind, HealthCheck
from ctl.health.probes.probe import ProbeFailed, probe

TCP = HealthCheck(kind=CheckKind.TCP, timeout_ms=2000)
HTTP = HealthCheck(kind=CheckKind.HTTP, timeout_ms=2000, path="/health", status="200-299")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def probe_against(check: HealthCheck, serve: Serve | None, host: str = "127.0.0.1") -> str:
    """The failure that a probe reports for a server with handler `serve`; "" when it passes. None: a closed port."""

    async def run() -> str:
        if serve is None:
            with socket.socket() as unused:
                unused.bind((host, 0))
                port = unused.getsockname()[1]
                return await failure_of(check, host, port)
        server = await asyncio.start_server(serve, host, 0)
        async with server:
            return await failure_of(check, host, server.sockets[0].getsockname()[1])

    return asyncio.run(run())


async def failure_of(check: HealthCheck, host: str, port: int) -> str:
    try:
        await probe(check, host, port)
    except ProbeFailed as failure:
        return str(failure)
    return ""


def answering(data: bytes, close: bool = True) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        if close:
            writer.close()

    return serve


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
