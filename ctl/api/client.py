"""Asks the daemon: one request, one answer, over its control socket, with a limit for its silence.

Decides how a request is framed and which error each kind of missing answer is. Must not know what commands exist.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import msgpack
import zmq

from ctl.api.protocol import LOCK_NAME, MAX_MESSAGE_BYTES, PROGRESS_COMMAND, PROTOCOL_VERSION
from ctl.errors import Code, InternalError, InvalidInput, XlbError, reported

DEFAULT_TIMEOUT_MS = 30_000
KNOCK_EVERY_MS = 1000  # while waiting: notice a daemon that died, and ask one that works for its progress
_MAX_UNIX_PATH_BYTES = 107  # sun_path of sockaddr_un, less its terminator (unix(7))


class Client:
    """A connection to the daemon that listens on `socket_path`. Not for use by several threads."""

    def __init__(self, socket_path: Path, timeout_ms: int = DEFAULT_TIMEOUT_MS, sudo_user: str = "") -> None:
        """Connect; raises XlbError if no daemon listens there or this user may not ask it. sudo_user: the user before sudo."""
        self.socket_path = socket_path
        self.timeout_ms = timeout_ms
        self.note = ""  # what an operator should know in addition to the last result
        self.progress: Callable[[str], None] = lambda _: None  # gets each long step of a request, as the daemon names it
        self._ids = itertools.count(1)
        self._claim = {"sudo_user": sudo_user} if sudo_user else {}
        require_listener(socket_path)
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.connect(f"ipc://{socket_path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an answer that has not arrived is lost."""
        self._socket.close(0)
        self._context.term()

    def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        """Return the daemon's result of `command`.

        Raises InvalidInput where the daemon calls the request invalid, XlbError where it refuses, fails or is silent
        for `timeout_ms`; a daemon that is at a long step of the request is not silent.
        """
        request_id, request = self._request(command, dict(args or {}))
        self._socket.send(request)
        answer = self._answer_to(request_id, command)
        self.note = str(answer.get("note") or "")
        if answer.get("ok"):
            return answer.get("result")
        error = error_of(answer.get("error"))
        if self._claim and error.code in (Code.MALFORMED_REQUEST, Code.UNCODED):  # an earlier daemon refuses the key
            self._claim = {}
            return self.call(command, args)
        raise error

    def _request(self, command: str, args: dict[str, Any]) -> tuple[int, bytes]:
        number = next(self._ids)
        return number, pack_request({"v": PROTOCOL_VERSION, "id": number, "cmd": command, "args": args} | self._claim)

    def _answer_to(self, request_id: int, command: str) -> dict[str, Any]:
        """Wait for the answer with this id; answers to requests that timed out earlier are skipped."""
        deadline = monotonic() + self.timeout_ms / 1000
        asked, doing = 0, ""
        while True:
            left_ms = max(0, round((deadline - monotonic()) * 1000))
            if not self._socket.poll(min(left_ms, KNOCK_EVERY_MS)):
                if left_ms <= KNOCK_EVERY_MS:
                    raise silent(self.socket_path, command, self.timeout_ms)
                require_listener(self.socket_path)
                if not asked:
                    asked, question = self._request(PROGRESS_COMMAND, {"id": request_id})
                    self._socket.send(question)
                continue
            answer = unpack_answer(self._socket.recv(), self.socket_path)
            if answer.get("id") == request_id:
                return answer
            if asked and answer.get("id") == asked and answer.get("ok"):  # a daemon of version 0.1.0 gives an error
                asked, step = 0, step_of(answer)
                if step:
                    deadline = monotonic() + self.timeout_ms / 1000
                if step and step != doing:
                    doing = step
                    self.progress(step)


def silent(socket_path: Path, command: str, timeout_ms: int) -> XlbError:
    """The error of a request without an answer."""
    return XlbError(
        f"xlbd at {socket_path} did not answer {command} within {timeout_ms / 1000:g} s, so whether it was carried out is"
        " unknown; see 'journalctl -u xlbd'",
        Code.DAEMON_SILENT,
    )


def pack_request(request: dict[str, Any]) -> bytes:
    """The bytes of a request. Raises InvalidInput for a value that has none, and for more than a daemon reads at once."""
    try:
        packed: bytes = msgpack.packb(request)
    except (TypeError, ValueError, OverflowError) as error:  # a TOML date, bytes that are no UTF-8, a number over 64 bits
        raise InvalidInput(f"a value cannot be sent to xlbd: {error}", code=Code.INVALID_VALUE) from error
    if len(packed) > MAX_MESSAGE_BYTES:
        raise InvalidInput(
            f"{len(packed)} bytes are more than the {MAX_MESSAGE_BYTES} the daemon reads at once; split it",
            code=Code.REQUEST_TOO_LONG,
        )
    return packed


def error_of(error: Any) -> XlbError:
    """Turn the daemon's error map into the exception it was; its message already names the key."""
    fields = error if isinstance(error, dict) else {}
    message, key = str(fields.get("message") or "xlbd reported an error without a message"), str(fields.get("key") or "")
    kind, code = str(fields.get("kind")), str(fields.get("code") or Code.UNCODED)
    if kind == InternalError.kind:
        return XlbError(f"internal error in xlbd: {message}; see 'journalctl -u xlbd' and please report it", code)
    return reported(kind, message, key, code)


def step_of(answer: dict[str, Any]) -> str:
    """The long step that an answer to a question for the progress names; empty: none."""
    result = answer.get("result")
    return str(result.get("doing") or "") if isinstance(result, dict) else ""


def unpack_answer(data: bytes, socket_path: Path) -> dict[str, Any]:
    """Raises XlbError for what is no answer of xlbd."""
    try:
        answer = msgpack.unpackb(data)
    except ValueError as error:
        raise XlbError(f"what listens on {socket_path} does not speak xlbd's protocol: {error}") from error
    if not isinstance(answer, dict):
        raise XlbError(f"what listens on {socket_path} does not speak xlbd's protocol: its answer is no map")
    return answer


def require_listener(socket_path: Path) -> None:
    """Try a plain connect first: ZeroMQ would retry without a message where the kernel reports the cause at once."""
    if len(os.fsencode(socket_path)) > _MAX_UNIX_PATH_BYTES:
        raise InvalidInput(
            f"{socket_path} is longer than the {_MAX_UNIX_PATH_BYTES} bytes a socket's path may have", "node.run_dir"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as knock:
        code = knock.connect_ex(os.fspath(socket_path))
    if code in (0, errno.EAGAIN):  # EAGAIN: a daemon listens, and its queue is full
        return
    if code in (errno.EACCES, errno.EPERM):
        raise XlbError(
            f"not allowed to use {socket_path}: be root (sudo xlbctl …) or join group xlb (usermod -aG xlb USER)",
            Code.NOT_PERMITTED,
        )
    if code in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        if _is_locked(socket_path.parent):
            raise XlbError(
                f"xlbd runs, but does not listen on {socket_path}: it is starting, which takes a minute on a slow machine, or"
                " stopping; try again then",
                Code.DAEMON_NOT_RUNNING,
            )
        raise XlbError(
            f"xlbd is not running: nothing listens on {socket_path}; start it with 'systemctl start xlbd'",
            Code.DAEMON_NOT_RUNNING,
        )
    raise XlbError(f"cannot reach xlbd at {socket_path}: {os.strerror(code)}")


def _is_locked(run_dir: Path) -> bool:
    """Whether a daemon holds the lock on run_dir (see `ctl.daemon`); False if this user may not know."""
    try:
        descriptor = os.open(run_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
