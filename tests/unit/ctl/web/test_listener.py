"""Time limits of connections, on real sockets with TLS: who is slow, silent or talks nonsense loses his connection only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ctl.web.serving import certificate
from ctl.web.serving.admission import Admission
from ctl.web.serving.answers import Answering
from ctl.web.serving.certificate import Certificate
from ctl.web.serving.connection import Limits
from ctl.web.serving.listener import Listener, bind
from tests.fakes.web import insecure
from tests.wait import wait_until_async

SHORT = Limits(head=0.3, body=0.3, write=0.3, idle=1, linger=0.1)
Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """/big sends more than buffers hold; everything else reads the body and answers with its length."""
    answering = Answering(send, scope["method"])
    if scope["path"] == "/big":
        await answering.whole(200, bytes(64 << 20), "text/plain")
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await answering.whole(200, str(size).encode(), "text/plain")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate.self_signed(tmp_path_factory.mktemp("tls"), ["localhost", "127.0.0.1"])


@contextlib.asynccontextmanager
async def listening(
    made: Certificate, limits: Limits = SHORT, admission: Admission | None = None, handshake_s: float = 0.3
) -> AsyncIterator[tuple[Listener, int]]:
    sockets = bind([("127.0.0.1", 0)])
    listener = Listener(app, sockets, made.context(), Admission() if admission is None else admission, limits, handshake_s)
    port = sockets[0].getsockname()[1]
    listener.start()
    try:
        yield listener, port
    finally:
        await listener.stop(0.1)
        assert len(listener.admission) == 0


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=insecure())


async def ended(reader: asyncio.StreamReader) -> None:
    """Read until the end of the connection, however it ends."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while await asyncio.wait_for(reader.read(1 << 20), 10):
            pass


async def served(port: int) -> bool:
    reader, writer = await connect(port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"],
    ids=["nothing", "half a head", "half a body"],
)
def test_who_sends_too_little_is_cut_off(made: Certificate, sent: bytes) -> None:
    async def run() -> None:
        async with listening(made) as (listener, port):
            reader, writer = await connect(port)
            writer.write(sent)
            await ended(reader)
            assert await served(port)
            writer.close()
            await wait_until_async(lambda: len(listener.admission) == 0, "every place is free again")

    asyncio.run(run())


def test_a_head_in_drips_has_one_limit_in_all(made: Certificate) -> None:
    async def run() -> None:
        async with listening(made) as (_, port):
            reader, writer = await connect(port)

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    for byte in b"GET / HTTP/1.1\r\nX: " + bytes(97) * 500:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.wait((closed,), timeout=0.05)

            closed = asyncio.ensure_future(ended(reader))
            dripping = asyncio.ensure_future(drip())
            await asyncio.wait_for(closed, 5)
            dripping.cancel()
            writer.close()

    asyncio.run(run())


def test_who_does_not_read_is_cut_off(made: Certificate) -> None:
    async def run() -> None:
        async with listening(made) as (listener, port):
            reader, writer = await connect(port)
            writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readexactly(10)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await wait_until_async(lambda: len(listener.admission) == 0, "the connection is ended")
            assert await served(port)
            writer.close()

    asyncio.run(run())


def test_a_handshake_that_does_not_come_is_given_up(made: Certificate) -> None:
    async def run() -> None:
        async with listening(made) as (listener, port):
            pending = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            await wait_until_async(lambda: len(listener.admission) == 5, "they are accepted")
            assert await served(port)
            for reader, _ in pending:
                await ended(reader)
            assert await served(port)
            for _, writer in pending:
                writer.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent", [b"\x00\x01\x02\r\n\r\n", b"GET / HTTQ/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"a" * 70000]
)
def test_nonsense_gets_400_or_nothing(made: Certificate, sent: bytes) -> None:
    async def run() -> None:
        async with listening(made) as (_, port):
            reader, writer = await connect(port)
            writer.write(sent)
            answer = b""
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                answer = await asyncio.wait_for(reader.read(), 10)
            assert not answer or answer.startswith(b"HTTP/1.1 400")
            assert await served(port)
            writer.close()

    asyncio.run(run())


def test_the_answer_to_nonsense_arrives_whatever_follows(made: Certificate) -> None:
    async def run() -> None:
        async with listening(made) as (listener, port):
            reader, writer = await connect(port)
            writer.write(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(200_000))
            await writer.drain()
            assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 400")
            await ended(reader)
            await wait_until_async(lambda: len(listener.admission) == 0, "the connection is ended")
            writer.close()

    asyncio.run(run())


def test_a_connection_serves_several_requests_and_ends_when_it_is_idle(made: Certificate) -> None:
    async def run() -> None:
        async with listening(made) as (_, port):
            reader, writer = await connect(port)
            for _ in range(3):
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
                assert b"200" in await reader.readline()
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(1) == b"3"
            await ended(reader)
            writer.close()

    asyncio.run(run())


def test_the_certificate_is_kept_and_made_again_when_due(tmp_path: Path) -> None:
    first = certificate.self_signed(tmp_path, ["lb1", "10.0.0.1"])
    assert first.made and first.names == {"lb1", "10.0.0.1"} and first.certificate.stat().st_mode & 0o777 == 0o600
    assert certificate.self_signed(tmp_path, ["lb1"]).fingerprint == first.fingerprint
    second = certificate.self_signed(tmp_path, ["lb1", "lb2"])
    assert second.made and second.fingerprint != first.fingerprint
    second.certificate.write_text("damaged")
    assert certificate.self_signed(tmp_path, ["lb1"]).made
    assert certificate.given(second.certificate, second.key).names == {"lb1"}


def test_when_a_certificate_is_due() -> None:
    day = 86400.0
    assert not certificate.is_due(["a", "b"], 0, 100 * day, ["a"], day)
    assert certificate.is_due(["a"], 0, 100 * day, ["a", "b"], day)
    assert certificate.is_due(["a"], 0, 100 * day, ["a"], 80 * day)
    assert certificate.is_due(["a"], 10 * day, 100 * day, ["a"], day)


def blocking(made: socket.socket) -> socket.socket:
    made.setblocking(True)
    return made


def test_answers_are_not_held_back_for_an_acknowledgement() -> None:
    """asyncio turns Nagle's algorithm off for sockets that name their protocol; without, an answer takes 40 ms."""
    for listening_socket in bind([("127.0.0.1", 0), ("::1", 0)]):
        with socket.create_connection(listening_socket.getsockname()[:2]), blocking(listening_socket).accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP
        listening_socket.close()
