"""Floods xlb-web with connections of clients that mean ill, from many source addresses: a program of its own.

`python -m tests.net.web_flood HOST PORT NETWORK COUNT SECONDS`: opens COUNT connections from addresses of NETWORK, of every
kind of KINDS and TLS_KINDS in turn, keeps open what the server leaves open, and closes all after SECONDS. Prints JSON.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import random
import resource
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

HELLO_S = 2.0
TICK_S = 0.2
WORKERS = 4
IP_FREEBIND = 15
KINDS = ("silent", "silent", "half hello", "half hello", "slow hello", "plain HTTP", "garbage", "reset")
TLS_KINDS = ("idle", "slow head", "slow body", "slow reader", "pipelined", "HTTP/1.0", "garbage inside")
SHARE_OF_TLS = 8  # one of so many connections finishes its handshake
SLOW = {
    "slow head": b"GET /healthz HTTP/1.1\r\nX-A: ",
    "slow body": b"POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
}
FILE = b"GET /lib/chart.js/chart.esm.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
QUICK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def client_hello() -> bytes:
    """A real one."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def context() -> ssl.SSLContext:
    """Takes every certificate."""
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


class Flood:
    """One run."""

    def __init__(self, host: str, port: int, network: str, count: int, seconds: float) -> None:
        self._target, self._count, self._seconds = (host, port), count, seconds
        hosts = ipaddress.ip_network(network)
        self._sources = itertools.cycle([str(hosts[number]) for number in range(1, min(hosts.num_addresses - 1, 2000))])
        self._hello, self._context = client_hello(), context()
        self._lock = threading.Lock()
        self._open: list[tuple[str, socket.socket]] = []
        self._counts: Counter[str] = Counter()
        self._tls_left = iter(range(count // SHARE_OF_TLS))

    def run(self) -> dict[str, int]:
        """Returns how many connections of each kind were opened, and the most that were open at once."""
        ends = time.monotonic() + self._seconds
        workers = [threading.Thread(target=self._handshakes, args=(ends,), daemon=True) for _ in range(WORKERS)]
        for each in workers:
            each.start()
        self._tcp(ends)
        while time.monotonic() < ends:
            self._tick()
            time.sleep(TICK_S)
        for each in workers:
            each.join(2 * HELLO_S)
        with self._lock:
            for _, made in self._open:
                made.close()
        return dict(self._counts)

    def _tcp(self, ends: float) -> None:
        count = self._count - self._count // SHARE_OF_TLS
        ticked = time.monotonic()
        for kind in itertools.islice(itertools.cycle(KINDS), count):
            made = self._socket()
            made.setblocking(False)
            made.connect_ex(self._target)
            self._counts[kind] += 1
            with self._lock:
                self._open.append((kind, made))
            if time.monotonic() > ticked + TICK_S:
                self._tick()
                ticked = time.monotonic()
            if ticked > ends:
                return

    def _tick(self) -> None:
        """Send what is due, and forget what the server has closed."""
        with self._lock:
            present, self._open = self._open, []
        left = [(kind, each) for kind, each in present if self._goes_on(kind, each)]
        with self._lock:
            self._open += left
            self._counts["most at once"] = max(self._counts["most at once"], len(self._open))

    def _goes_on(self, kind: str, each: socket.socket) -> bool:
        try:
            if isinstance(each, ssl.SSLSocket):
                if kind in SLOW:
                    each.send(b"x")
            elif kind == "reset":
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.close()
                return False
            else:
                self._say(kind, each)
            return kind in ("slow reader", "pipelined") or not self._is_closed(each)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError as error:
            if error.errno == 107:  # not connected yet
                return True
            self._counts["closed by the server"] += 1
            each.close()
            return False

    def _say(self, kind: str, each: socket.socket) -> None:
        if kind == "half hello":
            each.send(self._hello[: random.randrange(1, len(self._hello))])
        elif kind == "slow hello":
            each.send(self._hello[:1])
        elif kind == "plain HTTP":
            each.send(QUICK)
        elif kind == "garbage":
            each.send(os.urandom(4096))

    def _is_closed(self, each: socket.socket) -> bool:
        raw = each if not isinstance(each, ssl.SSLSocket) else socket.socket(fileno=os.dup(each.fileno()))
        try:
            ended = raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            ended = False
        finally:
            if raw is not each:
                raw.close()
        if ended:
            self._counts["closed by the server"] += 1
            each.close()
        return ended

    def _socket(self) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        with self._lock:
            source = next(self._sources)
        made.bind((source, 0))
        return made

    def _handshakes(self, ends: float) -> None:
        for kind in self._kinds():
            if time.monotonic() > ends:
                return
            made = self._socket()
            if kind == "slow reader":
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            made.settimeout(HELLO_S)
            try:
                made.connect(self._target)
                secured = self._context.wrap_socket(made)
            except OSError:
                self._counts["no handshake"] += 1
                made.close()
                continue
            self._counts[kind] += 1
            with contextlib.suppress(OSError):
                secured.sendall(self._first(kind))
            secured.setblocking(False)
            with self._lock:
                self._open.append((kind, secured))

    def _kinds(self) -> Iterator[str]:
        while True:
            with self._lock:
                number = next(self._tls_left, None)
            if number is None:
                return
            yield TLS_KINDS[number % len(TLS_KINDS)]

    @staticmethod
    def _first(kind: str) -> bytes:
        if kind == "slow reader":
            return FILE * 20
        if kind == "pipelined":
            return QUICK * 200
        if kind == "HTTP/1.0":
            return b"GET /healthz HTTP/1.0\r\n\r\n"
        if kind == "garbage inside":
            return os.urandom(2000)
        return SLOW.get(kind, b"")


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    host, port, network, count, seconds = sys.argv[1:]
    print(json.dumps(Flood(host, int(port), network, int(count), float(seconds)).run()))
