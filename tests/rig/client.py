"""The rig's client: checked traffic from inside its namespace, counted by what really arrived.

An asyncio loop in a thread that lives in the client's namespace. Its coroutines report plain counts; what a count should be is
the test's business. Every wait has a timeout; no request is repeated implicitly.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from tests.rig.namespaces import Namespace
from tests.rig.payload import count_wrong, payload

T = TypeVar("T")

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Client:
    """Runs coroutines in the client's namespace; usable from any thread."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"rig {namespace.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.namespace.enter()
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        """Start `work` and return its concurrent.futures.Future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], deadline_s: float = 60) -> T:
        """Run `work` to its end; raises TimeoutError, and cancels it, after `deadline_s`."""

        async def bounded() -> T:
            return await asyncio.wait_for(work, deadline_s)

        result: T = self.start(bounded()).result(deadline_s + 10)
        return result

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)


# --- one request, one answer --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one request or connection. Times in seconds of time.monotonic()."""

    started: float
    took_s: float
    backend: str = ""  # empty: it failed
    error: str = ""
    peer: str = ""  # client address and port as the backend saw them
    body: bytes = b""
    status: int = 0


def _answer(started: float, greeting: bytes, body: bytes = b"", status: int = 0) -> Answer:
    name, _, peer = greeting.decode(errors="replace").partition(" ")
    return Answer(started, time.monotonic() - started, name, peer=peer, body=body, status=status)


def _failure(started: float, error: BaseException) -> Answer:
    return Answer(
        started, time.monotonic() - started, error=type(error).__name__ if isinstance(error, TimeoutError) else str(error)
    )


async def http_get(address: str, port: int, path: str = "/", timeout_s: float = 5) -> Answer:
    """One GET on a connection of its own; an answer that is cut short or not HTTP counts as failed."""
    started = time.monotonic()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) != int(fields[b"Content-Length"]):
            raise ConnectionError(f"{len(body)} of {fields[b'Content-Length'].decode()} bytes arrived")
        first_line, _, rest = body.partition(b"\n")
        return _answer(started, first_line, rest, int(head.split(b" ", 2)[1]))
    except (OSError, TimeoutError, KeyError, ValueError) as error:
        return _failure(started, error)
    finally:
        if writer is not None:
            writer.close()


class _Greeted(asyncio.Protocol):
    """A connection that is over, by reset so that no port stays in TIME_WAIT, once the backend has named itself."""

    def __init__(self) -> None:
        self.greeting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if b"\n" in self.received and not self.greeting.done():
            self.greeting.set_result(self.received.partition(b"\n")[0])

    def connection_lost(self, error: Exception | None) -> None:
        if not self.greeting.done():
            self.greeting.set_exception(error or ConnectionError("closed before a greeting"))


async def tcp_connect(address: str, port: int, timeout_s: float = 5, source: str = "") -> Answer:
    """Connect to a TCP echo, read which backend answers, reset."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    transport: asyncio.Transport | None = None
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if source:
            one.bind((source, 0))
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(one, (address, port))
            transport, greeted = await loop.create_connection(_Greeted, sock=one)
            return _answer(started, await greeted.greeting)
    except (OSError, TimeoutError) as error:
        return _failure(started, error)
    finally:
        if transport is not None:
            transport.abort()
        one.close() if transport is None else None


async def udp_exchange(address: str, port: int, data: bytes = b"?", timeout_s: float = 2, source_port: int = 0) -> Answer:
    """Send one datagram from a socket of its own and wait for the echo."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as one:
        try:
            if source_port:
                one.bind(("", source_port))
            one.connect((address, port))
            async with asyncio.timeout(timeout_s):
                await loop.sock_sendall(one, data)
                greeting, _, body = (await loop.sock_recv(one, 65536)).partition(b"\n")
            if body != data:
                raise ConnectionError(f"echo of {len(body)} bytes differs from the {len(data)} sent")
            return _answer(started, greeting, body)
        except (OSError, TimeoutError) as error:
            return _failure(started, error)


@dataclass(slots=True)
class Tally:
    """The outcome of many requests. `answers` keeps each failure and, if asked for, every answer."""

    by_backend: Counter[str] = field(default_factory=Counter)
    failures: list[Answer] = field(default_factory=list)
    done: int = 0
    stopped: bool = False

    def add(self, answer: Answer) -> None:
        self.done += 1
        if answer.error or not answer.backend:
            self.failures.append(answer)
        else:
            self.by_backend[answer.backend] += 1

    def stop(self) -> None:
        """Make the `repeat` that counts here start no more requests."""
        self.stopped = True

    def shares(self) -> dict[str, float]:
        total = sum(self.by_backend.values())
        return {name: count / total for name, count in sorted(self.by_backend.items())}


async def repeat(
    ask: Callable[[], Coroutine[Any, Any, Answer]], count: int | None, tally: Tally, concurrency: int = 32, pause_s: float = 0
) -> Tally:
    """Call `ask` `count` times (None: until `tally.stop()`), `concurrency` at once, each worker pausing between two."""
    left = count if count is not None else 1 << 62

    async def worker() -> None:
        nonlocal left
        while left > 0 and not tally.stopped:
            left -= 1
            tally.add(await ask())
            if pause_s:
                await asyncio.sleep(pause_s)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return tally


# --- connections that are held -------------------------------------------------------------------------------


class Holding(asyncio.Protocol):
    """One connection that sends its own payload and checks every echoed byte."""

    def __init__(self, owner: HeldConnections, number: int) -> None:
        self.owner, self.number = owner, number
        self.backend = ""
        self.greeting = b""
        self.sent = self.received = self.rounds = 0
        self.born_s = self.sent_s = 0.0
        self.lost = ""  # why the connection ended, empty while it lives
        self.closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.born_s = transport, time.monotonic()

    def send(self) -> None:
        if not self.lost and not self.closing:
            self.transport.write(payload(self.number, self.sent, self.owner.size))
            self.sent += self.owner.size
            self.sent_s = time.monotonic()

    def data_received(self, data: bytes) -> None:
        if not self.backend:
            self.greeting += data
            name, newline, data = self.greeting.partition(b"\n")
            if not newline:
                return
            self.backend = name.split(b" ")[0].decode()
            self.owner.greeted(self)
        if data:
            self.owner.wrong_bytes += count_wrong(self.number, self.received, data)
            self.received += len(data)
            if self.received == self.sent:
                self.rounds += 1
                self.owner.slowest_s = max(self.owner.slowest_s, time.monotonic() - self.sent_s)
                self.owner.round_done()
                asyncio.get_running_loop().call_later(self.owner.pause_s, self.send)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closing:
            self.lost = str(error) if error else "closed by the other side"
            self.owner.round_done()


class HeldConnections:
    """Many TCP connections to an echo that keep exchanging payload which is checked byte by byte.

    size: bytes per round trip; pause_s: between an echo that is complete and the next send.
    """

    def __init__(self, address: str, port: int, count: int, size: int = 256, pause_s: float = 0.2) -> None:
        self.address, self.port, self.count, self.size, self.pause_s = address, port, count, size, pause_s
        self.connections: list[Holding] = []
        self.wrong_bytes = 0
        self.slowest_s = 0.0  # the longest round trip; set it to 0 where a new measurement starts
        self._greeted = 0
        self._changed = asyncio.Event()

    async def open(self, concurrency: int = 100) -> HeldConnections:
        """Connect all and wait until every backend has named itself. Raises OSError if one fails."""
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(concurrency)

        async def one(number: int) -> None:
            async with places:
                _, held = await loop.create_connection(lambda: Holding(self, number), self.address, self.port)
            self.connections.append(held)

        await asyncio.gather(*(one(number) for number in range(self.count)))
        await self.until(lambda: self._greeted + len(self.broken) >= self.count)
        return self

    def greeted(self, held: Holding) -> None:
        self._greeted += 1
        held.send()
        self._changed.set()

    def round_done(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the end of a round trip, or of a connection, may make true."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def confirm(self, deadline_s: float = 15) -> int:
        """Wait for two more complete round trips on every connection; returns on how many connections they did not complete.

        The second one began after the call.
        """
        goals = {held: held.rounds + 2 for held in self.connections if not held.lost}

        def behind() -> int:
            return sum(held.rounds < goal for held, goal in goals.items())

        try:
            async with asyncio.timeout(deadline_s):
                await self.until(lambda: all(held.lost or held.rounds >= goal for held, goal in goals.items()))
        except TimeoutError:
            return behind() + len(self.connections) - len(goals)
        return behind() + len(self.connections) - len(goals)

    @property
    def broken(self) -> list[str]:
        """Why each connection that ended did."""
        return [held.lost for held in self.connections if held.lost]

    @property
    def round_trips(self) -> int:
        return sum(held.rounds for held in self.connections)

    @property
    def by_backend(self) -> Counter[str]:
        return Counter(held.backend for held in self.connections)

    def on_backend(self, name: str) -> list[Holding]:
        return [held for held in self.connections if held.backend == name]

    async def close(self) -> None:
        for held in self.connections:
            held.closing = True
            held.transport.abort()


async def transfer(address: str, port: int, length: int, number: int = 0) -> tuple[int, int]:
    """Send `length` bytes over one connection while reading the echo; returns (bytes received, bytes wrong)."""
    reader, writer = await asyncio.open_connection(address, port)
    await reader.readline()
    chunk = 1 << 18

    async def send() -> None:
        for offset in range(0, length, chunk):
            writer.write(payload(number, offset, min(chunk, length - offset)))
            await writer.drain()
        writer.write_eof()

    sending = asyncio.ensure_future(send())
    received = wrong = 0
    try:
        while data := await reader.read(chunk):
            wrong += count_wrong(number, received, data)
            received += len(data)
        await sending
    finally:
        sending.cancel()
        writer.close()
    return received, wrong


class Prober:
    """Opens a new connection at a fixed pace, whether or not earlier ones succeeded, to measure an outage."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, Answer]], interval_s: float = 0.005) -> None:
        self.ask, self.interval_s = ask, interval_s
        self.samples: list[Answer] = []
        self._stopped = asyncio.Event()

    async def run(self) -> list[Answer]:
        """Probe until `stop`; returns the samples in the order they began."""
        loop = asyncio.get_running_loop()
        running: set[asyncio.Task[Answer]] = set()
        due = loop.time()
        while not self._stopped.is_set():
            task = loop.create_task(self.ask())
            running.add(task)
            task.add_done_callback(running.discard)
            task.add_done_callback(lambda done: self.samples.append(done.result()))
            due = max(due + self.interval_s, loop.time())
            try:
                async with asyncio.timeout_at(due):
                    await self._stopped.wait()
            except TimeoutError:
                pass
        await asyncio.gather(*running)
        self.samples.sort(key=lambda sample: sample.started)
        return self.samples

    async def stop(self) -> None:
        self._stopped.set()

    def outage_s(self, quick_s: float = 0.5) -> float:
        """The longest time between two probes that began one after the other and were both answered within `quick_s`."""
        good = [sample.started for sample in self.samples if not sample.error and sample.took_s < quick_s]
        return max((later - earlier for earlier, later in pairwise(good)), default=float("inf"))
