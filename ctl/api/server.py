"""The control socket: a ZeroMQ ROUTER whose messages are msgpack maps; see docs/CONTROL.md.

Decides what is a well-formed request and what is too much. Must not know what any command does: a dispatcher given by
the node turns (command, arguments) into a result or raises XlbError.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from ctl.api.caller import CALLER, Caller, claimed, from_peer_address, on_behalf_of
from ctl.api.protocol import MAX_MESSAGE_BYTES, PROGRESS_COMMAND, PROTOCOL_VERSION
from ctl.api.turns import InTurns, Turns
from ctl.errors import Code, InternalError, InvalidInput, XlbError
from ctl.runtime.progress import PROGRESS, Progress

MAX_QUEUED_MESSAGES = 128
MAX_REQUESTS_IN_FLIGHT = 32
MAX_WAITING = 64
"""Requests that wait for something to happen, besides those."""
LAST_ANSWERS_S = 0.05
MAX_COMMAND_LENGTH = 64
MAX_ELEMENTS = 1_000_000
BIG_MESSAGE_BYTES = 256 * 1024
SMALL_MESSAGE_BYTES = 32 * 1024  # unpacked at once: well under 1 ms
GROUP = "xlb"

_PACK_SLICE = 32  # list elements packed before the loop gets a turn: with farms of ten backends each, half a millisecond
_PIECEWISE_DEPTH = 6  # of a big request, maps and lists down to a backend are read in pieces
_COMPLAINT_INTERVAL_S = 10.0

Dispatch = Callable[[str, dict[str, Any]], Awaitable[Any]]

log = logging.getLogger(__name__)


_UNPACKING: dict[str, Any] = {
    "raw": False,
    "strict_map_key": True,
    "max_str_len": MAX_MESSAGE_BYTES,
    "max_bin_len": 0,
    "max_array_len": MAX_ELEMENTS,
    "max_map_len": MAX_ELEMENTS,
    "max_ext_len": 0,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One command of a client. `id` is echoed, so that a client can match answers. claim, on_behalf: see `ctl.api.caller`."""

    id: int
    command: str
    arguments: dict[str, Any]
    claim: str = ""
    on_behalf: str = ""


@dataclass(slots=True)
class ApiCounts:
    """What the control socket has seen since the daemon started."""

    answered: int = 0
    failed: int = 0
    malformed: int = 0
    unsendable: int = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """A result, and a note for the operator; empty: none."""

    result: Any
    note: str


@dataclass(frozen=True, slots=True)
class Later:
    """A result that waits for something to happen, for a time that its command bounds: no request in progress meanwhile."""

    result: Coroutine[Any, Any, Any]


class MalformedRequest(Exception):
    """The message is no request; `id` is the client's number where it could be read, else None."""

    def __init__(self, message: str, request_id: int | None = None) -> None:
        super().__init__(message)
        self.id = request_id


def decode_request(payload: bytes) -> Request:
    """Read one request; a big one in pieces, so that in a thread it does not hold up the loop.

    Raises MalformedRequest with a message for anything that is not exactly {"v", "id", "cmd", "args"} and maybe "sudo_user" and
    "on_behalf".
    """
    try:
        document = _unpack(payload) if len(payload) > SMALL_MESSAGE_BYTES else msgpack.unpackb(payload, **_UNPACKING)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MalformedRequest(f"the message is not msgpack as xlbd speaks it ({type(error).__name__}: {error})") from None
    if not isinstance(document, dict):
        raise MalformedRequest("the message is not a map with the keys v, id, cmd, args")
    number = document.get("id")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
        raise MalformedRequest("id: expected an integer from 0 to 2^63-1")
    if document.get("v") != PROTOCOL_VERSION:
        raise MalformedRequest(
            f"v: this daemon speaks protocol version {PROTOCOL_VERSION}, got {document.get('v')!r:.40}", number
        )
    command, arguments = document.get("cmd"), document.get("args", {})
    if not isinstance(command, str) or not 0 < len(command) <= MAX_COMMAND_LENGTH:
        raise MalformedRequest(f"cmd: expected a string of 1 to {MAX_COMMAND_LENGTH} characters", number)
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise MalformedRequest("args: expected a map with string keys", number)
    unknown = document.keys() - {"v", "id", "cmd", "args", "sudo_user", "on_behalf"}
    if unknown:
        raise MalformedRequest(f"unknown key {min(map(str, unknown))!r:.80}; a request has v, id, cmd, args", number)
    on_behalf = on_behalf_of(document.get("on_behalf"))
    if on_behalf is None:
        raise MalformedRequest("on_behalf: expected the name of a user of xlb-web", number)
    return Request(number, command, arguments, claimed(document.get("sudo_user")), on_behalf)


def _unpack(payload: bytes) -> Any:
    """As msgpack.unpackb, which would keep the interpreter for 15 ms per MB."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE_BYTES, **_UNPACKING)
    unpacker.feed(payload)
    document = _unpack_piece(unpacker, payload, _PIECEWISE_DEPTH)
    if unpacker.tell() != len(payload):
        raise ValueError("something follows the message")
    return document


def _unpack_piece(unpacker: Any, payload: bytes, depth: int) -> Any:
    kind = payload[unpacker.tell()] if unpacker.tell() < len(payload) else 0
    if depth and (0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF)):
        count = unpacker.read_map_header()
        return {_key(unpacker.unpack()): _unpack_piece(unpacker, payload, depth - 1) for _ in range(count)}
    if depth and (0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD)):
        count = unpacker.read_array_header()
        return [_unpack_piece(unpacker, payload, depth - 1) for _ in range(count)]
    return unpacker.unpack()


def _key(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} is not allowed for map key")
    return sys.intern(value)


def error_answer(request_id: int | None, error: XlbError) -> bytes:
    """Pack an error."""
    fields = {"kind": error.kind, "message": str(error), "key": error.key, "code": str(error.code)}
    return _pack({"id": request_id, "ok": False, "error": fields})


async def result_answer(request_id: int, result: Any) -> bytes:
    """Pack a result; long lists in slices, so that a big answer does not hold the loop. They are used up."""
    parts = [_pack_map_header(3), _pack("id"), _pack(request_id), _pack("ok"), _pack(True)]
    if isinstance(result, Noted):
        if result.note:
            parts = [_pack_map_header(4), *parts[1:], _pack("note"), _pack(result.note)]
        result = result.result
    parts.append(_pack("result"))
    if isinstance(result, dict):
        parts.append(_pack_map_header(len(result)))
        for key, value in result.items():
            parts.append(_pack(key))
            await _pack_value(value, parts)
    else:
        await _pack_value(result, parts)
    return b"".join(parts)


async def _pack_value(value: Any, parts: list[bytes]) -> None:
    if not isinstance(value, list | tuple) or len(value) <= _PACK_SLICE:
        parts.append(_pack(value))
        return
    parts.append(msgpack.Packer().pack_array_header(len(value)))
    for start in range(0, len(value), _PACK_SLICE):
        for number in range(start, min(start + _PACK_SLICE, len(value))):
            parts.append(_pack(value[number]))
            if isinstance(value, list):
                value[number] = None  # to free a thousand farms all at once takes milliseconds
        await asyncio.sleep(0)


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _pack_map_header(length: int) -> bytes:
    header: bytes = msgpack.Packer().pack_map_header(length)
    return header


def _caller(frame: zmq.Frame) -> Caller:
    try:
        return from_peer_address(frame.get("Peer-Address"))
    except zmq.ZMQError:  # a libzmq without it
        return from_peer_address("")


class ApiServer:
    """Answers one control socket until closed. Requests run concurrently, at most MAX_REQUESTS_IN_FLIGHT at a time."""

    def __init__(self, path: Path, dispatch: Dispatch, big_message: Callable[[], None] = lambda: None) -> None:
        """`big_message` is called after a request or an answer of more than BIG_MESSAGE_BYTES."""
        self.path = path
        self.counts = ApiCounts()
        self._dispatch = dispatch
        self._big_message = big_message
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket: zmq.asyncio.Socket | None = None
        self._slots = asyncio.Semaphore(MAX_REQUESTS_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[Any]] = set()  # those of them that wait for something to happen
        self._running: dict[tuple[bytes, int], Progress] = {}  # by client and number of the request
        self._reader: asyncio.Task[None] | None = None
        self._next_complaint = 0.0

    def start(self) -> None:
        """Bind the socket, readable and writable by root and the group only.

        Raises XlbError when the path cannot be bound.
        """
        server = self._context.socket(zmq.ROUTER)
        server.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        server.setsockopt(zmq.RCVHWM, MAX_QUEUED_MESSAGES)
        server.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        server.setsockopt(zmq.LINGER, 200)
        previous = os.umask(0o117)  # the file must never exist with a wider mode
        try:
            server.bind(f"ipc://{self.path}")
        except zmq.ZMQError as error:
            server.close(linger=0)
            raise XlbError(f"cannot bind the control socket {self.path}: {error.strerror}; choose another run_dir") from None
        finally:
            os.umask(previous)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(self.path, -1, grp.getgrnam(GROUP).gr_gid)
        self._socket = server
        self._reader = asyncio.get_running_loop().create_task(self._read(server))

    async def close(self) -> None:
        """Stop reading, give pending requests a moment to finish, and remove the socket."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._waiting:  # for the last events, not for more
            await asyncio.wait(self._waiting, timeout=LAST_ANSWERS_S)
        for task in self._waiting:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._context.term()
        self.path.unlink(missing_ok=True)

    async def _read(self, server: zmq.asyncio.Socket) -> None:
        turns = Turns()
        while True:
            await self._slots.acquire()
            try:
                await turns.next()
                received = await server.recv_multipart(copy=False)
            except zmq.ZMQError:
                self._slots.release()
                log.exception("the control socket failed; xlbctl cannot reach this daemon until it is restarted")
                return
            except asyncio.CancelledError:
                self._slots.release()
                raise
            frames = [frame.bytes for frame in received]
            task = asyncio.get_running_loop().create_task(
                self._in_turns(self._answer(server, frames, _caller(received[-1])), turns)
            )
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    async def _in_turns(self, work: Coroutine[Any, Any, None], turns: Turns) -> None:
        await InTurns(work, turns)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task in self._waiting:
            self._waiting.discard(task)
        else:
            self._slots.release()

    async def _answer(self, server: zmq.asyncio.Socket, frames: list[bytes], caller: Caller) -> None:
        CALLER.set(caller)  # of this task and those it starts
        # DEALER sends [payload], REQ [empty, payload]; ZeroMQ puts the sender's identity in front of either.
        if len(frames) not in (2, 3) or (len(frames) == 3 and frames[1]):
            self._complain("a message of an unexpected number of frames was dropped")
            return
        envelope, payload = frames[:-1], frames[-1]
        try:
            big = len(payload) > SMALL_MESSAGE_BYTES
            request = await asyncio.to_thread(decode_request, payload) if big else decode_request(payload)
        except MalformedRequest as error:
            self._complain(str(error))
            answer = error_answer(error.id, InvalidInput(str(error), code=Code.MALFORMED_REQUEST))
        else:
            if request.claim or request.on_behalf:
                CALLER.set(replace(caller, claim=request.claim, on_behalf=request.on_behalf))
            answer = await self._run(request, frames[0])
        if max(len(payload), len(answer)) > BIG_MESSAGE_BYTES:
            self._big_message()
        try:
            await server.send_multipart([*envelope, answer], flags=zmq.NOBLOCK)
        except zmq.ZMQError:
            self.counts.unsendable += 1

    async def _run(self, request: Request, client: bytes) -> bytes:
        if request.command == PROGRESS_COMMAND:
            number = request.arguments.get("id")
            running = self._running.get((client, number)) if isinstance(number, int) else None
            return await result_answer(request.id, {"doing": running.doing if running is not None else ""})
        self._running[client, request.id] = progress = Progress()
        PROGRESS.set(progress)  # of this task and those it starts
        try:
            return await self._dispatched(request)
        finally:
            self._running.pop((client, request.id), None)

    async def _dispatched(self, request: Request) -> bytes:
        try:
            result = await self._dispatch(request.command, request.arguments)
            if isinstance(result, Later):
                result = await self._later(result)
            answer = await result_answer(request.id, result)
        except XlbError as error:
            self.counts.failed += 1
            return error_answer(request.id, error)
        except Exception as error:  # a bug in one command must not take the node down
            self.counts.failed += 1
            log.exception("%s failed", request.command)
            return error_answer(request.id, InternalError(request.command, error))
        if len(answer) > MAX_MESSAGE_BYTES:
            self.counts.failed += 1
            too_long = f"the answer would take {len(answer)} bytes; ask for less with --limit"
            return error_answer(request.id, XlbError(too_long, Code.ANSWER_TOO_LONG))
        self.counts.answered += 1
        return answer

    async def _later(self, later: Later) -> Any:
        """Wait for a result; another request may have the place of this one. Raises XlbError."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._waiting) >= MAX_WAITING:
            later.result.close()
            raise XlbError(f"{MAX_WAITING} clients watch this node already; stop one of them", Code.BUSY)
        self._waiting.add(task)
        self._slots.release()
        return await later.result

    def _complain(self, message: str) -> None:
        """Count a malformed message and log one per interval, so that a faulty client cannot fill the disk."""
        self.counts.malformed += 1
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + _COMPLAINT_INTERVAL_S
            log.warning("control socket: %s (%d malformed so far)", message, self.counts.malformed)
