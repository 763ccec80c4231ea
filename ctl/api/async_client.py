"""Asks the daemon from an event loop: many requests at once over one connection, which is made again when xlbd restarts.

As `ctl.api.client`, which has the framing and the errors. Decides how many requests are in progress and what becomes of those
that xlbd can no longer answer. Must not know what commands exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from ctl.api.client import (
    DEFAULT_TIMEOUT_MS,
    KNOCK_EVERY_MS,
    error_of,
    pack_request,
    require_listener,
    silent,
    step_of,
    unpack_answer,
)
from ctl.api.protocol import MAX_MESSAGE_BYTES, PROGRESS_COMMAND, PROTOCOL_VERSION
from ctl.errors import Code, XlbError

MAX_IN_PROGRESS = 16
"""Half of what xlbd runs at once: others can always ask it."""
MAX_WAITING = 64
CONNECT_S = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """note: what an operator should know in addition to the result."""

    result: Any
    note: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """A list as it is unpacked, item by item, and what else its result has: complete when the items have been read."""

    items: Iterator[Any]
    rest: dict[str, Any]


class AsyncClient:
    """A connection to the daemon that listens on `socket_path`, or will. Create and use it on one running loop."""

    def __init__(self, socket_path: Path, timeout_ms: int = DEFAULT_TIMEOUT_MS) -> None:
        self.socket_path = socket_path
        self.timeout_ms = timeout_ms
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._places = asyncio.Semaphore(MAX_IN_PROGRESS)
        self._waiting = 0
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            (zmq.IMMEDIATE, 1),  # a request that could not be sent is not sent to a later daemon
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 500),
        ):
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(f"ipc://{socket_path}")
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._read()), loop.create_task(self._watch_connection())]

    async def close(self) -> None:
        """Disconnect; answers that have not arrived are lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(XlbError("the connection to xlbd was closed", Code.DAEMON_SILENT))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()

    async def call(
        self, command: str, args: Mapping[str, Any] | None = None, on_behalf: str = "", waits: bool = False
    ) -> Answer:
        """The daemon's answer to `command`; see `ctl.api.client.Client.call` for the errors.

        on_behalf: the user of xlb-web who asks. waits: the answer comes with an event, so the request takes no place of others.
        """
        answer = unpack_answer(await self._ask(command, args, on_behalf, waits), self.socket_path)
        if not answer.get("ok"):
            raise error_of(answer.get("error"))
        return Answer(answer.get("result"), str(answer.get("note") or ""))

    async def listed(self, command: str, args: Mapping[str, Any] | None = None, key: str = "") -> Listed:
        """The result of a command that returns a list, or a map with one as `key`: it is never in memory as objects."""
        data = await self._ask(command, args, "", False)
        answer = msgpack.Unpacker(None, max_buffer_size=MAX_MESSAGE_BYTES)
        answer.feed(data)
        for _ in range(answer.read_map_header()):
            name = answer.unpack()
            kind = data[answer.tell()]
            if name == "result" and not key and (kind & 0xF0 == 0x90 or kind in (0xDC, 0xDD)):
                return Listed((answer.unpack() for _ in range(answer.read_array_header())), {})
            if name == "result" and key and (kind & 0xF0 == 0x80 or kind in (0xDE, 0xDF)):
                rest: dict[str, Any] = {}
                return Listed(_items_of(answer, key, rest), rest)
            value = answer.unpack()
            if name == "error":
                raise error_of(value)
        raise XlbError(f"what listens on {self.socket_path} does not speak xlbd's protocol: {command} gave no list")

    async def _ask(self, command: str, args: Mapping[str, Any] | None, on_behalf: str, waits: bool) -> bytes:
        number = next(self._numbers)
        request: dict[str, Any] = {"v": PROTOCOL_VERSION, "id": number, "cmd": command, "args": dict(args or {})}
        packed = pack_request(request | ({"on_behalf": on_behalf} if on_behalf else {}))
        require_listener(self.socket_path)
        async with contextlib.nullcontext() if waits else self._place():
            return await self._sent(number, packed, command)

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise XlbError(f"{MAX_WAITING} requests to xlbd wait already; try again", Code.BUSY)
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def _sent(self, number: int, packed: bytes, command: str) -> bytes:
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(packed)
            return await self._answer_to(number, future, command)
        finally:
            self._pending.pop(number, None)

    async def _send(self, packed: bytes) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._socket.send(packed)
        except TimeoutError:
            raise XlbError(
                f"xlbd does not accept requests on {self.socket_path}: it is starting or stopping; try again then",
                Code.DAEMON_NOT_RUNNING,
            ) from None

    async def _answer_to(self, number: int, future: asyncio.Future[bytes], command: str) -> bytes:
        """Wait for the answer; a daemon that is at a long step of the request is not silent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_ms / 1000
        while not future.done():
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise silent(self.socket_path, command, self.timeout_ms)
            await asyncio.wait((future,), timeout=min(left_s, KNOCK_EVERY_MS / 1000))
            if not future.done() and await self._at_a_step(number):
                deadline = loop.time() + self.timeout_ms / 1000
        return future.result()

    async def _at_a_step(self, number: int) -> bool:
        """Whether xlbd is at a long step of the request; unknown is false."""
        asked = next(self._numbers)
        future = self._pending[asked] = asyncio.get_running_loop().create_future()
        try:
            await self._send(
                pack_request({"v": PROTOCOL_VERSION, "id": asked, "cmd": PROGRESS_COMMAND, "args": {"id": number}})
            )
            async with asyncio.timeout(KNOCK_EVERY_MS / 1000):
                return bool(step_of(unpack_answer(await future, self.socket_path)))
        except (TimeoutError, XlbError):
            return False
        finally:
            self._pending.pop(asked, None)

    async def _read(self) -> None:
        while True:
            data = await self._socket.recv()
            future = self._pending.get(_number_of(data))
            if future is not None and not future.done():
                future.set_result(data)

    async def _watch_connection(self) -> None:
        while True:
            await self._monitor.recv_multipart()
            self._fail(
                XlbError(
                    "xlbd stopped before it answered, so whether the request was carried out is unknown; see"
                    " 'journalctl -u xlbd'",
                    Code.DAEMON_SILENT,
                )
            )

    def _fail(self, error: XlbError) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # the waiting request gets it; without one it is no news


def _items_of(answer: Any, key: str, rest: dict[str, Any]) -> Iterator[Any]:
    """The items of a map's list; the other values of the map get into `rest`."""
    for _ in range(answer.read_map_header()):
        name = answer.unpack()
        if name == key:
            yield from (answer.unpack() for _ in range(answer.read_array_header()))
        else:
            rest[name] = answer.unpack()


def _number_of(data: bytes) -> int:
    """The id of an answer, which is its first key; -1: none."""
    answer = msgpack.Unpacker(None, max_buffer_size=MAX_MESSAGE_BYTES)
    answer.feed(data)
    try:
        if answer.read_map_header() and answer.unpack() == "id":
            number = answer.unpack()
            return number if isinstance(number, int) else -1
    except (ValueError, msgpack.exceptions.UnpackException):
        pass
    return -1
