"""Every kind of check against real sockets on loopback: what succeeds, and the message of what fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import h2.config
import h2.connection
import h2.events
import pytest

from ctl.config.model import CheckKind, HealthCheck, QueryType, ResponseCode
from ctl.health.probes import datagrams
from ctl.health.probes.http_answer import MAX_BYTES
from ctl.health.probes.stream import server_name
from tests.unit.ctl.health.probes.servers import HTTP, answering, failure_of, probe_against, silent
from tests.wait import wait_until_async

HTTPS = HealthCheck(kind=CheckKind.HTTPS, timeout_ms=2000, status="200")
UDP = HealthCheck(kind=CheckKind.UDP, timeout_ms=1000, payload="ping", answer="pong")
DNS = HealthCheck(kind=CheckKind.DNS, timeout_ms=1000, query="www.example.org")
GRPC = HealthCheck(kind=CheckKind.GRPC, timeout_ms=2000)
BOTH = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


def check_of(base: HealthCheck, **changes: object) -> HealthCheck:
    return HealthCheck(**{name: getattr(base, name) for name in HealthCheck.__slots__} | changes)


# --- text of a body -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nall is well", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is well", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nis w\r\n3\r\nell\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n\r\nis well", True),
        (b"HTTP/1.1 200 OK\r\nX: is well\r\n\r\nall is lost", False),
        (b"HTTP/1.1 200 OK\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * MAX_BYTES + b"is well", False),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_BYTES - 7) + b"is well", True),
    ],
)
def test_a_text_is_expected_in_the_body(answer: bytes, found: bool) -> None:
    result = probe_against(check_of(HTTP, text="is well"), answering(answer))
    assert result == ("" if found else 'GET /health answered without the text "is well"')


def test_a_body_that_does_not_end_is_awaited_until_the_timeout_only() -> None:
    check = check_of(HTTP, text="well", timeout_ms=50)
    assert probe_against(check, answering(b"HTTP/1.1 200 OK\r\n\r\nall is", close=False)).endswith("within 50 ms")


def test_a_cut_body_fails() -> None:
    cut = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nall is")
    assert probe_against(check_of(HTTP, text="well"), cut).startswith("answer is not valid HTTP/1.1")


# --- https ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of web.example.org and 127.0.0.1, with its key."""
    path = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:web.example.org,IP:127.0.0.1"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{path}/key.pem")
    subject = ("-subj", "/CN=test", "-addext", names, "-days", "2", "-out", f"{path}/cert.pem")
    subprocess.run(("openssl", "req", "-x509", *key, *subject), check=True, capture_output=True)
    return path


def https_against(check: HealthCheck, certificate: Path, answer: bytes) -> tuple[str, list[str | None]]:
    """The failure, and the server names that handshakes asked for."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    async def run() -> str:
        server = await asyncio.start_server(answering(answer), "127.0.0.1", 0, ssl=context)
        async with server:
            return await failure_of(check, "127.0.0.1", server.sockets[0].getsockname()[1])

    return asyncio.run(run()), names


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell"


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, None),
        ({"text": "well"}, None),
        ({"host": "web.example.org:8443"}, "web.example.org"),
        ({"host": "web.example.org", "sni": "other.example.org"}, "other.example.org"),
        ({"host": "[2001:db8::1]:443"}, None),
        ({"verify": True, "sni": "web.example.org", "ca_file": "cert.pem"}, "web.example.org"),
        ({"verify": True, "ca_file": "cert.pem"}, None),
    ],
)
def test_https_succeeds_and_asks_for_the_name(certificate: Path, changes: dict[str, object], asked: str | None) -> None:
    if "ca_file" in changes:
        changes = changes | {"ca_file": str(certificate / "cert.pem")}
    failure, names = https_against(check_of(HTTPS, **changes), certificate, OK)
    assert failure == ""
    assert names == [asked]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "201"}, "GET / answered 200, expected 201"),
        ({"text": "bad"}, 'GET / answered without the text "bad"'),
        ({"verify": True}, "certificate is not valid: self-signed certificate"),
        ({"verify": True, "ca_file": "cert.pem", "host": "other.example.org"}, "certificate is not valid: Hostname mismatch"),
        ({"verify": True, "ca_file": "none.pem"}, "cannot read "),
        ({"verify": True, "ca_file": "key.pem"}, "key.pem has no certificates"),
    ],
)
def test_https_fails(certificate: Path, changes: dict[str, object], message: str) -> None:
    if "ca_file" in changes:
        changes = changes | {"ca_file": str(certificate / str(changes["ca_file"]))}
    assert message in https_against(check_of(HTTPS, **changes), certificate, OK)[0]


def test_a_server_without_tls_fails_an_https_check() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(OK)
        writer.close()

    assert probe_against(HTTPS, plain) == "TLS handshake failed: wrong version number"


def test_silent_handshakes_occupy_no_thread(certificate: Path) -> None:
    """A hundred backends that accept and say nothing do not delay the handshake with another one."""

    async def run() -> str:
        mute = await asyncio.start_server(silent, "127.0.0.1", 0)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        good = await asyncio.start_server(answering(OK), "127.0.0.1", 0, ssl=context)
        async with mute, good:
            port = mute.sockets[0].getsockname()[1]
            hanging = [
                asyncio.create_task(failure_of(check_of(HTTPS, timeout_ms=60_000), "127.0.0.1", port)) for _ in range(100)
            ]
            await asyncio.sleep(0)
            result = await failure_of(HTTPS, "127.0.0.1", good.sockets[0].getsockname()[1])
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)
            return result

    assert asyncio.run(run()) == ""


@pytest.mark.parametrize(
    ("sni", "host", "name"),
    [("a.b", "c.d", "a.b"), ("", "c.d:443", "c.d"), ("", "", "::1"), ("", "[::2]", "::2"), ("", "10.0.0.1:80", "10.0.0.1")],
)
def test_the_server_name(sni: str, host: str, name: str) -> None:
    assert server_name(sni, host, "::1") == name


# --- icmp -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need CAP_NET_RAW")
@BOTH
def test_an_echo_is_answered(host: str) -> None:
    """Many at once: each probe takes its own answer."""
    check = HealthCheck(kind=CheckKind.ICMP, timeout_ms=2000)

    async def run() -> list[str]:
        return await asyncio.gather(*(failure_of(check, host, 0) for _ in range(20)))

    assert asyncio.run(run()) == [""] * 20


def test_an_echo_of_another_probe_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer must have the probe's own token."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)

    @contextlib.contextmanager
    def connected(*_: object) -> Iterator[socket.socket]:
        yield ours

    monkeypatch.setattr(datagrams, "_socket", lambda *_: ours)
    monkeypatch.setattr(datagrams, "_connected", connected)
    monkeypatch.setattr(datagrams, "_only", lambda *_: None)

    async def run() -> str:
        asking = asyncio.create_task(failure_of(HealthCheck(kind=CheckKind.ICMP, timeout_ms=5000), "::1", 0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        request = theirs.recv(100)
        assert request[0] == 128
        theirs.send(b"\x81" + request[1:-1] + bytes([request[-1] ^ 1]))
        theirs.send(request)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not asking.done()
        theirs.send(b"\x81" + request[1:])
        return await asking

    with ours, theirs:
        assert asyncio.run(run()) == ""


def test_without_the_privilege_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(datagrams, "_socket", refused)
    result = asyncio.run(failure_of(HealthCheck(kind=CheckKind.ICMP), "127.0.0.1", 0))
    assert result.endswith("needs CAP_NET_RAW, or the group of xlbd in net.ipv4.ping_group_range")


# --- udp ------------------------------------------------------------------------------------------------------


class Datagrams(asyncio.DatagramProtocol):
    """A UDP server: `answer` makes the answer of each datagram, or None."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        answer = self.answer(data)
        if answer is not None:
            self.transport.sendto(answer, source)


@contextlib.asynccontextmanager
async def udp_server(host: str, answer: Callable[[bytes], bytes | None]) -> AsyncIterator[int]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Datagrams(answer), (host, 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


def udp_against(check: HealthCheck, answer: Callable[[bytes], bytes | None] | None, host: str = "127.0.0.1") -> str:
    async def run() -> str:
        async with udp_server(host, answer or (lambda _: None)) as port:
            if answer is not None:
                return await failure_of(check, host, port)
        await asyncio.sleep(0)  # closed
        return await failure_of(check, host, port)

    return asyncio.run(run())


@BOTH
@pytest.mark.parametrize(
    ("changes", "answer", "expected"),
    [
        ({}, b"a pong", ""),
        ({}, b"a gong", "answered b'a gong', which does not contain b'pong'"),
        ({"answer": "hex:00ff"}, b"\x01\x00\xff", ""),
        ({"answer": "hex:00ff"}, b"\xff\x00", "answered b'\\xff\\x00', which does not contain b'\\x00\\xff'"),
        ({"answer": ""}, b"anything", ""),
        ({"timeout_ms": 30}, None, " within 30 ms"),
        ({"answer": "", "timeout_ms": 30}, None, ""),
    ],
)
def test_udp(host: str, changes: dict[str, object], answer: bytes | None, expected: str) -> None:
    result = udp_against(check_of(UDP, **changes), lambda _: answer, host)
    assert result == expected or (expected and result.endswith(expected))


@BOTH
@pytest.mark.parametrize("answer", ["", "pong"])
def test_an_unreachable_udp_port_fails_at_once(host: str, answer: str) -> None:
    assert udp_against(check_of(UDP, answer=answer, timeout_ms=60_000), None, host).endswith(": port unreachable")


@pytest.mark.parametrize(("payload", "sent"), [("", b""), ("é", "é".encode()), ("hex:00FF0a", b"\x00\xff\n")])
def test_the_payload_is_sent(payload: str, sent: bytes) -> None:
    seen: list[bytes] = []
    assert udp_against(check_of(UDP, payload=payload), lambda data: seen.append(data) or b"pong") == ""  # type: ignore[func-returns-value]
    assert seen == [sent]


# --- dns ------------------------------------------------------------------------------------------------------


def dns_answer(
    *records: str, rcode: str = "NOERROR", change: Callable[[bytes], bytes] = lambda wire: wire
) -> Callable[[bytes], bytes]:
    """A server's answer with these records ("AAAA ::1") of the name that is asked for."""

    def answer(data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.from_text(rcode))
        for record in records:
            kind, _, value = record.partition(" ")
            response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", kind, value))
        return change(response.to_wire())

    return answer


@BOTH
@pytest.mark.parametrize(
    ("changes", "answer", "expected"),
    [
        ({}, dns_answer(), ""),
        ({"query_type": QueryType.SOA}, dns_answer(), ""),
        ({"answer": "192.0.2.7"}, dns_answer("A 192.0.2.1", "A 192.0.2.7"), ""),
        ({"answer": "192.0.2.7"}, dns_answer("A 192.0.2.1"), "www.example.org A answered 192.0.2.1, expected 192.0.2.7"),
        ({"answer": "192.0.2.7"}, dns_answer(), "www.example.org A answered no such record, expected 192.0.2.7"),
        ({"query_type": QueryType.AAAA, "answer": "2001:DB8:0::7"}, dns_answer("AAAA 2001:db8::7"), ""),
        ({"query_type": QueryType.CNAME, "answer": "Web.Example.org"}, dns_answer("CNAME web.example.org."), ""),
        ({"query_type": QueryType.TXT, "answer": "all well"}, dns_answer('TXT "all well"'), ""),
        ({"rcode": ResponseCode.NXDOMAIN}, dns_answer(rcode="NXDOMAIN"), ""),
        ({}, dns_answer(rcode="SERVFAIL"), "www.example.org A answered SERVFAIL, expected NOERROR"),
        ({}, lambda data: b"garbage", "answer is not valid DNS: "),
        ({"timeout_ms": 30}, dns_answer(change=lambda wire: bytes([wire[0] ^ 1]) + wire[1:]), " within 30 ms"),
    ],
)
def test_dns(host: str, changes: dict[str, object], answer: Callable[[bytes], bytes], expected: str) -> None:
    result = udp_against(check_of(DNS, **changes), answer, host)
    assert result == expected or (expected and (expected in result))


def test_a_closed_dns_port_fails_at_once() -> None:
    assert udp_against(check_of(DNS, timeout_ms=60_000), None).endswith(": port unreachable")


# --- grpc -----------------------------------------------------------------------------------------------------

Respond = Callable[[h2.connection.H2Connection, bytes], None]


def grpc_against(check: HealthCheck, respond: Respond) -> str:
    """A server that calls `respond` with the message of the request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        body = b""
        while data := await reader.read(4096):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers = {str(name): str(value) for name, value in event.headers or ()}
                    assert headers[":path"] == "/grpc.health.v1.Health/Check"
                    assert headers["content-type"] == "application/grpc"
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    respond(connection, body[5:])
            writer.write(connection.data_to_send())
        writer.close()

    return probe_against(check, serve)


def states(message: bytes, **trailers: str) -> Respond:
    def respond(connection: h2.connection.H2Connection, _request: bytes) -> None:
        connection.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
        connection.send_data(1, bytes([0, 0, 0, 0, len(message)]) + message)
        status = {"grpc-status": "0"} | {name.replace("_", "-"): value for name, value in trailers.items()}
        connection.send_headers(1, list(status.items()), end_stream=True)

    return respond


def fails(status: str) -> Respond:
    return lambda connection, _: connection.send_headers(1, [(":status", "200"), ("grpc-status", status)], end_stream=True)


@pytest.mark.parametrize(
    ("respond", "expected"),
    [
        (states(b"\x08\x01"), ""),
        (states(b"\x10\x05\x08\x01"), ""),
        (states(b"\x08\x02"), "the server is NOT_SERVING"),
        (states(b""), "the server is UNKNOWN"),
        (states(b"\x08"), "answer is not a HealthCheckResponse"),
        (states(b"\x0a\x01x"), "answer is not a HealthCheckResponse"),
        (states(b"\x08\x01", grpc_status="14", grpc_message="busy"), "answered gRPC status 14: busy"),
        (fails("5"), "answered gRPC status 5: the server does not know this service"),
        (fails("12"), "answered gRPC status 12: the server has no health service"),
        (
            lambda connection, _: connection.send_headers(1, [(":status", "404")], end_stream=True),
            "does not speak gRPC: answered 404",
        ),
        (lambda connection, _: connection.reset_stream(1, 7), "refused the call: HTTP/2 error"),
        (lambda connection, _: connection.close_connection(2), "refused the call: HTTP/2 error"),
    ],
)
def test_grpc(respond: Respond, expected: str) -> None:
    result = grpc_against(GRPC, respond)
    assert result.startswith(expected) if expected else result == ""


def test_the_service_is_sent() -> None:
    seen: list[bytes] = []

    def respond(connection: h2.connection.H2Connection, request: bytes) -> None:
        seen.append(request)
        states(b"\x08\x03")(connection, request)

    assert grpc_against(check_of(GRPC, service="shop.Cart"), respond) == "service shop.Cart is SERVICE_UNKNOWN"
    assert seen == [b"\x0a\x09shop.Cart"]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 70000])
def test_a_server_that_does_not_speak_grpc(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        await reader.read()
        writer.close()

    assert probe_against(GRPC, serve).startswith(("does not speak gRPC", "sent more than"))


@pytest.mark.parametrize(
    "kind", [kind for kind in CheckKind if kind not in (CheckKind.NONE, CheckKind.COMMAND, CheckKind.ICMP)]
)
def test_every_kind_ends_at_its_timeout_and_closes_its_socket(kind: CheckKind) -> None:
    check = HealthCheck(kind=kind, timeout_ms=30, query="a", answer="192.0.2.1" if kind is CheckKind.DNS else "x")

    async def run() -> None:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        udp = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Datagrams(lambda _: None), ("127.0.0.1", 0))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            by_datagram = kind in (CheckKind.UDP, CheckKind.DNS)
            port = udp[0].get_extra_info("sockname")[1] if by_datagram else listener.getsockname()[1]
            if kind is not CheckKind.TCP:
                assert (await failure_of(check, "127.0.0.1", port)).endswith(f"no answer from 127.0.0.1:{port} within 30 ms")
        udp[0].close()
        await wait_until_async(lambda: len(os.listdir("/proc/self/fd")) <= before, "the sockets are closed")  # noqa: PTH208

    asyncio.run(run())
