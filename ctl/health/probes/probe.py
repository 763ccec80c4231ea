"""One health probe: asks a backend as its check says, and reports the failure.

Does I/O only; `ctl.health.check_machine` decides when to probe and what a result means. Every read is bounded, and every probe
ends at its timeout. Commands are run by `ctl.runtime.commands`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from types import ModuleType

from ctl.config.model import CheckKind, HealthCheck, format_endpoint
from ctl.health.probes.datagrams import ask_udp, octets, ping, udp_socket
from ctl.health.probes.http_answer import HttpAnswer, NotAnswered
from ctl.health.probes.stream import Connection, TlsFailed, connect, server_name
from ctl.health.probes.vip_connect import Path, connect_through
from ctl.runtime import footprint

_USER_AGENT = "xlbd"


class ProbeFailed(Exception):
    """The probe failed; the message is short, for `farm show` and the log."""


async def probe(check: HealthCheck, address: str, port: int, source: str = "", path: Path | None = None) -> None:
    """Run one probe of `check` against address:port, from address `source`; empty: the kernel selects it.

    path: how to reach a VIP on the backend, in place of the backend's own address.

    Raises ProbeFailed with the reason.
    """
    where = address if check.kind is CheckKind.ICMP else format_endpoint(address, port)
    try:
        async with asyncio.timeout(check.timeout_ms / 1000):
            if path is not None:
                await connect_through(path, address, port, source)
            else:
                await _PROBES[check.kind](check, address, port, source)
    except TimeoutError:
        if check.kind is CheckKind.UDP and not check.answer:
            return  # nothing contradicts
        raise ProbeFailed(f"no answer from {where} within {check.timeout_ms} ms") from None
    except (NotAnswered, TlsFailed) as failure:
        raise ProbeFailed(str(failure)) from None
    except OSError as error:
        raise ProbeFailed(f"{where}: {_reason(error, check.kind)}") from None


async def _probe_tcp(_check: HealthCheck, address: str, port: int, source: str) -> None:
    """RFC 9293 handshake."""
    (await connect(address, port, source)).close()


def _openssl() -> ModuleType:
    """`ctl.health.probes.tls`, loaded by the first check by https. Blocks."""
    footprint.allow("ssl")
    from ctl.health.probes import tls

    return tls


async def _probe_http(check: HealthCheck, address: str, port: int, source: str) -> None:
    """GET with HTTP/1.1, with TLS where the check is https."""
    answer = HttpAnswer(check.path, check.host or format_endpoint(address, port), _USER_AGENT)
    if check.kind is CheckKind.HTTPS:
        openssl = await asyncio.to_thread(_openssl)
        context = await openssl.tls_context(check.verify, check.ca_file)
    plain = await connect(address, port, source)
    try:
        stream: Connection = plain
        if check.kind is CheckKind.HTTPS:
            stream = tls = openssl.TlsStream(plain, context, server_name(check.sni, check.host, address))
            await tls.handshake()
        await stream.send(answer.request)
        status = None
        while status is None:
            status = answer.feed(await stream.receive())
        low, high = status_range(check.status)
        if not low <= status <= high:
            raise NotAnswered(f"GET {check.path} answered {status}, expected {check.status}")
        if check.text:
            await _search(answer, check, stream)
    finally:
        plain.close()  # the rest of the response is not needed


async def _search(answer: HttpAnswer, check: HealthCheck, stream: Connection) -> None:
    text = check.text.encode()
    found = answer.search(text)
    while found is None:
        found = answer.search(text, await stream.receive())
    if not found:
        raise NotAnswered(f'GET {check.path} answered without the text "{check.text[:80]}"')


async def _probe_icmp(_check: HealthCheck, address: str, _port: int, source: str) -> None:
    await ping(address, source)


async def _probe_udp(check: HealthCheck, address: str, port: int, source: str) -> None:
    await ask_udp(address, port, source, octets(check.payload), octets(check.answer))


async def _probe_dns(check: HealthCheck, address: str, port: int, source: str) -> None:
    dns_query = await asyncio.to_thread(_load_dns)
    query = dns_query.DnsQuery(check)
    with udp_socket(address, port, source) as connection:
        connection.send(query.request)
        while not query.is_answered(await asyncio.get_running_loop().sock_recv(connection, dns_query.MAX_BYTES)):
            pass


async def _probe_grpc(check: HealthCheck, address: str, port: int, source: str) -> None:
    grpc_health = await asyncio.to_thread(_load_grpc)
    call = grpc_health.GrpcHealth(check.service, check.host or format_endpoint(address, port), _USER_AGENT)
    stream = await connect(address, port, source)
    try:
        await stream.send(call.outgoing)
        while not call.feed(await stream.receive()):
            await stream.send(call.outgoing)
    finally:
        stream.close()


def _load_dns():  # type: ignore[no-untyped-def]
    """Its modules are loaded in a thread, and only where they are used."""
    from ctl.health.probes import dns_query

    return dns_query


def _load_grpc():  # type: ignore[no-untyped-def]
    """The same."""
    from ctl.health.probes import grpc_health

    return grpc_health


_PROBES: dict[CheckKind, Callable[[HealthCheck, str, int, str], Awaitable[None]]] = {
    CheckKind.TCP: _probe_tcp,
    CheckKind.HTTP: _probe_http,
    CheckKind.HTTPS: _probe_http,
    CheckKind.ICMP: _probe_icmp,
    CheckKind.UDP: _probe_udp,
    CheckKind.DNS: _probe_dns,
    CheckKind.GRPC: _probe_grpc,
}


def status_range(text: str) -> tuple[int, int]:
    """First and last accepted status of "200" or "200-399"."""
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _reason(error: OSError, kind: CheckKind) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "port unreachable" if kind in (CheckKind.UDP, CheckKind.DNS) else "connection refused"
    if kind is CheckKind.ICMP and error.errno in (errno.EPERM, errno.EACCES):
        return "an ICMP check needs CAP_NET_RAW, or the group of xlbd in net.ipv4.ping_group_range"
    return os.strerror(error.errno).lower() if error.errno else str(error)
