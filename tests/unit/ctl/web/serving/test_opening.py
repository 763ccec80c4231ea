"""Connections to xlb-web that are not, or not yet, TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterator

import pytest

from ctl.web.serving.opening import NotTls, hello_bytes
from tests.fakes.daemon import running_daemon
from tests.fakes.web import RunningWeb, insecure, running_web
from tests.net.web_flood import client_hello


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWeb]:
    with running_daemon(tmp_path_factory.mktemp("node")) as daemon, running_web(daemon.config) as running:
        yield running


def connected(web: RunningWeb, first: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", web.port), timeout=10)
    made.sendall(first)
    return made


def assert_closed_soon(client: socket.socket) -> None:
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""
    assert time.monotonic() - began < 2


def test_the_first_record_is_waited_for() -> None:
    hello = client_hello()
    assert hello_bytes(hello) == len(hello) == hello_bytes(hello[:5])
    assert hello_bytes(hello[:1]) == hello_bytes(hello[:4]) == 5
    for wrong in (b"GET /", b"\x16\x02\x00\x00\x01", b"\x15\x03\x01\x00\x02", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\xff\xff"):
        with pytest.raises(NotTls):
            hello_bytes(wrong)


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /api/v1/session HTTP/1.0\r\n\r\n" + b"x" * 9000]
)
def test_http_without_tls_is_explained(web: RunningWeb, request_: bytes) -> None:
    with connected(web, request_) as plain:
        answer = b"".join(iter(lambda: plain.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"HTTPS" in answer


@pytest.mark.parametrize("nonsense", [b"\x00" * 5, b"\x80\x2e\x01\x03\x01", b"\x16\x03\x01\x00\x00"])
def test_nonsense_is_closed_at_once(web: RunningWeb, nonsense: bytes) -> None:
    with connected(web, nonsense) as client:
        assert_closed_soon(client)


def test_a_client_that_ends_in_the_middle_of_its_hello_is_closed_at_once(web: RunningWeb) -> None:
    with connected(web, client_hello()[:100]) as client:
        client.shutdown(socket.SHUT_WR)
        assert_closed_soon(client)


def test_a_hello_that_arrives_byte_by_byte_is_served(web: RunningWeb) -> None:
    """And what the client sends together with the end of the handshake."""
    client = socket.create_connection(("127.0.0.1", web.port), timeout=10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    context = insecure()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secured = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def step() -> bool:
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    assert not step()
    for byte in outgoing.read():
        client.send(bytes([byte]))
    while not step():
        incoming.write(client.recv(65536))
    secured.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    client.sendall(outgoing.read())
    while not outgoing.pending:
        incoming.write(client.recv(65536))
        try:
            answer = secured.read(65536)
            break
        except ssl.SSLWantReadError:
            continue
    assert answer.startswith(b"HTTP/1.1 200")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
