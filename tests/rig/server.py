"""A backend's servers, all in one process: HTTP, TCP echo and UDP echo. Run as a script inside the backend's namespace.

    server.py NAME HTTP_PORT TCP_PORT UDP_PORT

Every answer begins with a line `NAME PEER_ADDRESS PEER_PORT`, so that a client learns which backend answered and
which source address it saw. Prints `ready` on stdout when it listens. Lines on stdin set the health answer: `sick` or `well`.
GET /health answers 200 or, when sick, 503; GET /bytes/N answers N bytes; anything else the first line alone.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
from pathlib import Path
from typing import cast

sys.path[0] = str(Path(__file__).resolve().parents[2])
from tests.rig.payload import payload  # noqa: E402  (the tree is not on the path of a script)

healthy = True


class Http(asyncio.Protocol):
    """One request, one answer, close: each request is a new connection to the balancer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if b"\r\n\r\n" not in self.buffer:
            return
        path = self.buffer.split(b" ", 2)[1].decode()
        status = "503 Service Unavailable" if path == "/health" and not healthy else "200 OK"
        body = greeting(self.name, self.transport.get_extra_info("peername"))
        if path.startswith("/bytes/"):
            body += payload(0, 0, int(path.removeprefix("/bytes/")))
        self.transport.write(
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nX-Backend: {self.name}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        self.transport.close()


class TcpEcho(asyncio.Protocol):
    """Greets, then sends back every byte; stops reading while the client does not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(greeting(self.name, transport.get_extra_info("peername")))

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class UdpEcho(asyncio.DatagramProtocol):
    """Answers each datagram with the greeting and the datagram."""

    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.transport.sendto(greeting(self.name, address) + data, address)


def greeting(name: str, peer: tuple[str, int]) -> bytes:
    return f"{name} {peer[0].removeprefix('::ffff:')} {peer[1]}\n".encode()


def obey(line: str) -> None:
    global healthy
    healthy = line.strip() != "sick"


async def main(name: str, http_port: int, tcp_port: int, udp_port: int) -> None:
    loop = asyncio.get_running_loop()
    servers: tuple[tuple[type[Http] | type[TcpEcho], int], ...] = ((Http, http_port), (TcpEcho, tcp_port))
    for kind, port in servers:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", port))
        await loop.create_server(functools.partial(kind, name), sock=listener, backlog=4096)
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        datagram = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            datagram.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        datagram.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        datagram.bind((address, udp_port))
        datagram.setblocking(False)
        await loop.create_datagram_endpoint(lambda: UdpEcho(name), sock=datagram)
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        obey(line)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(int(port) for port in sys.argv[2:5])))
