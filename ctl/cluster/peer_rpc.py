"""Messages between the daemons other than heartbeats and flows: configurations, forwarded commands, questions.

Runs on a channel of its own, so that a document of megabytes never delays a heartbeat. Decides what is a
well-formed message and which answer belongs to which question; must not know what any of them means. The channel is
authenticated, yet a malformed message is counted and dropped: the peer may have a bug.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from ctl.api.protocol import MAX_MESSAGE_BYTES
from ctl.errors import Code, InternalError, InvalidInput, XlbError, reported
from sync.config.config_sync import MAX_HISTORY, Document, Version
from sync.transport import ChannelBounds

MAX_DOCUMENT_BYTES = 16 << 20
"""Three times the size of the largest configuration that the maps can hold."""

BOUNDS = ChannelBounds(queued_messages=16, message_bytes=MAX_DOCUMENT_BYTES + 65536)
MAX_QUESTIONS_IN_FLIGHT = 32
MAX_COMMAND_LENGTH = 64
ANSWER_TIMEOUT_S = 10.0
CONNECT_S = 1.0
"""How long a question or an answer waits for a connection, or for space in the queue."""
CONNECT_POLL_S = 0.02
MAX_NUMBER = 2**63

log = logging.getLogger(__name__)

Send = Callable[[bytes], bool]
AnswerQuestion = Callable[[str, dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class VersionTold:
    """The peer has this version on its disk."""

    version: Version


@dataclass(frozen=True, slots=True)
class DocumentOffered:
    """The peer gives its configuration."""

    document: Document


@dataclass(frozen=True, slots=True)
class Question:
    """The peer wants a command carried out here. `id` is echoed."""

    id: int
    command: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as it travels."""

    kind: str
    message: str
    key: str = ""
    code: str = Code.UNCODED

    @staticmethod
    def of(error: XlbError) -> Refusal:
        return Refusal(error.kind, str(error), error.key, str(error.code))


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a question: a result, or the error that refused it."""

    id: int
    result: Any = None
    error: Refusal | None = None


Message = VersionTold | DocumentOffered | Question | Answer


class MalformedMessage(Exception):
    """Bytes that are no message of this protocol."""


def encode(message: Message) -> bytes:
    """A message as msgpack; `decode` of it is the message."""
    match message:
        case VersionTold(version):
            fields: list[Any] = ["version", version]
        case DocumentOffered(document):
            fields = ["offer", document.version, document.history, document.body]
        case Question(number, command, arguments):
            fields = ["ask", number, command, arguments]
        case Answer(number, result, None):
            fields = ["answer", number, result, None]
        case Answer(number, _, Refusal() as refusal):
            # Version 0.1.0 takes an error of exactly three strings and ignores its result field, so the code travels there.
            fields = ["answer", number, {"code": refusal.code}, [refusal.kind, refusal.message, refusal.key]]
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def decode(data: bytes) -> Message:
    """Raises MalformedMessage for anything else than `encode` makes."""
    try:
        fields = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0, use_list=True)
        kind, *rest = fields
        return _READERS[kind](*rest)
    except MalformedMessage:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessage(f"no message of this protocol ({type(error).__name__})") from None


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise MalformedMessage(what)


def _number(value: Any) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER, "expected a number")
    return int(value)


def _version(value: Any) -> Version:
    _require(isinstance(value, list) and len(value) == 2, "expected a version")
    return _number(value[0]), _number(value[1])


def _read_offer(version: Any, history: Any, body: Any) -> Message:
    _require(isinstance(body, bytes) and len(body) <= MAX_DOCUMENT_BYTES, "expected a document")
    _require(isinstance(history, list) and len(history) <= MAX_HISTORY, "expected a history")
    return DocumentOffered(Document(_version(version), tuple(map(_version, history)), body))


def _read_question(number: Any, command: Any, arguments: Any) -> Message:
    _require(isinstance(command, str) and 0 < len(command) <= MAX_COMMAND_LENGTH, "expected a command")
    _require(isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments), "expected arguments")
    return Question(_number(number), command, arguments)


def _read_answer(number: Any, result: Any, error: Any) -> Message:
    if error is None:
        return Answer(_number(number), result)
    _require(isinstance(error, list) and len(error) == 3 and all(isinstance(each, str) for each in error), "expected an error")
    code = result.get("code") if isinstance(result, dict) else None  # None: the peer is of version 0.1.0
    return Answer(_number(number), None, Refusal(error[0], error[1], error[2], code if isinstance(code, str) else Code.UNCODED))


_READERS: dict[str, Callable[..., Message]] = {
    "version": lambda version: VersionTold(_version(version)),
    "offer": _read_offer,
    "ask": _read_question,
    "answer": _read_answer,
}


class PeerLink:
    """Questions and answers over one channel, and the configuration's messages handed on.

    `send` is the channel's. `answer_question` runs what the peer asks; `heard` gets every VersionTold and DocumentOffered.
    """

    def __init__(
        self, peer: str, send: Send, answer_question: AnswerQuestion, heard: Callable[[VersionTold | DocumentOffered], None]
    ) -> None:
        self.peer = peer
        self.malformed = 0
        self._send = send
        self._answer_question = answer_question
        self._heard = heard
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def received(self, data: bytes) -> None:
        """Take in one message of the channel."""
        try:
            message = decode(data)
        except MalformedMessage as error:
            self.malformed += 1
            log.debug("a message of %s was dropped: %s", self.peer, error)
            return
        match message:
            case Question():
                self._start_answer(message)
            case Answer():
                waiting = self._asked.get(message.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case _:
                self._heard(message)

    def tell(self, message: VersionTold | DocumentOffered) -> bool:
        """Send without waiting; False when the peer is not connected or the queue is full."""
        return self._send(encode(message))

    async def ask(self, command: str, arguments: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The peer's result of `command`. Raises the InvalidInput or XlbError it raised there, XlbError when unanswered."""
        if len(self._asked) >= MAX_QUESTIONS_IN_FLIGHT:
            raise XlbError(f"{len(self._asked)} requests to {self.peer} are pending already; try again in a moment", Code.BUSY)
        number = secrets.randbelow(MAX_NUMBER)
        data = encode(Question(number, command, arguments))
        if len(data) > MAX_MESSAGE_BYTES + 4096:
            raise InvalidInput(
                f"{len(data)} bytes are more than {self.peer} reads at once; split it", code=Code.REQUEST_TOO_LONG
            )
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            if not await self._send_soon(data):
                raise XlbError(f"{self.peer} is not connected", Code.PEER_UNREACHABLE)
            answer = await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            unknown = f"{self.peer} did not answer {command} within {timeout_s:g} s"
            raise XlbError(f"{unknown}, so whether it was carried out is unknown", Code.PEER_SILENT) from None
        finally:
            del self._asked[number]
        return _result(answer)

    async def close(self) -> None:
        """Stop. Pending questions end with PEER_SILENT."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for future in self._asked.values():
            if not future.done():
                closed = XlbError(f"the connection to {self.peer} was closed", Code.PEER_SILENT)
                future.set_result(Answer(0, None, Refusal.of(closed)))

    async def _send_soon(self, data: bytes) -> bool:
        """Send, within CONNECT_S."""
        for _ in range(round(CONNECT_S / CONNECT_POLL_S)):
            if self._send(data):
                return True
            await asyncio.sleep(CONNECT_POLL_S)
        return False

    def _start_answer(self, question: Question) -> None:
        if len(self._tasks) >= MAX_QUESTIONS_IN_FLIGHT:
            busy = XlbError("too many requests at once; try again", Code.BUSY)
            self._send(encode(Answer(question.id, None, Refusal.of(busy))))
            return
        task = asyncio.get_running_loop().create_task(self._answer(question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, question: Question) -> None:
        try:
            answer = Answer(question.id, await self._answer_question(question.command, question.arguments))
            data = encode(answer)
        except XlbError as error:
            data = encode(Answer(question.id, None, Refusal.of(error)))
        except Exception as error:  # a bug in one command must not take the node down
            log.exception("%s, asked by %s, failed", question.command, self.peer)
            data = encode(Answer(question.id, None, Refusal.of(InternalError(question.command, error))))
        if len(data) > BOUNDS.message_bytes:
            too_long = XlbError(f"the answer would take {len(data)} bytes", Code.ANSWER_TOO_LONG)
            data = encode(Answer(question.id, None, Refusal.of(too_long)))
        if not await self._send_soon(data):
            log.warning("the answer to %s's %s could not be sent", self.peer, question.command)


def _result(answer: Answer) -> Any:
    if answer.error is None:
        return answer.result
    refusal = answer.error
    raise reported(refusal.kind, refusal.message, refusal.key, refusal.code)
