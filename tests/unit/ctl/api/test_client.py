"""The control client against daemons that are absent or silent, send garbage, or die."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from ctl.api.client import Client
from ctl.api.protocol import MAX_MESSAGE_BYTES, PROGRESS_COMMAND
from ctl.daemon import locked_run_dir
from ctl.errors import Code, InvalidInput, XlbError
from tests.refusals import invalid, refused

PATIENCE_MS = 10_000


@contextmanager
def answering(path: Path, answers: Callable[[dict[str, Any]], list[bytes]]) -> Iterator[None]:
    """A daemon that answers each request with `answers(request)` until it receives "stop"."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.bind(f"ipc://{path}")
    stop = context.socket(zmq.PAIR)
    stop.bind("inproc://stop")
    wake = context.socket(zmq.PAIR)
    wake.connect("inproc://stop")

    def serve() -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(wake, zmq.POLLIN)
        while wake not in dict(poller.poll()):
            peer, payload = router.recv_multipart()
            for answer in answers(msgpack.unpackb(payload)):
                router.send_multipart([peer, answer])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.send(b"")
        thread.join(5)
        context.destroy(linger=0)


def pack(request: dict[str, Any], **fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"id": request["id"], **fields})
    return packed


def test_a_result_is_returned_and_the_request_follows_the_protocol(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def answers(request: dict[str, Any]) -> list[bytes]:
        seen.append(request)
        return [pack(request, ok=True, result=["a"])]

    with answering(tmp_path / "s", answers), Client(tmp_path / "s", PATIENCE_MS) as client:
        assert client.call("farm.list", {"x": 1}) == ["a"]
        assert client.call("farm.list") == ["a"]
    assert seen == [
        {"v": 1, "id": 1, "cmd": "farm.list", "args": {"x": 1}},
        {"v": 1, "id": 2, "cmd": "farm.list", "args": {}},
    ]


@pytest.mark.parametrize("code", [None, Code.MALFORMED_REQUEST])
def test_a_daemon_that_refuses_the_claim_gets_the_request_without_it(tmp_path: Path, code: Code | None) -> None:
    seen: list[dict[str, Any]] = []

    def answers(request: dict[str, Any]) -> list[bytes]:
        seen.append(request)
        error = {"kind": "invalid", "message": "unknown key 'sudo_user'", "key": ""} | ({"code": code.value} if code else {})
        return [pack(request, ok=False, error=error) if "sudo_user" in request else pack(request, ok=True, result=1)]

    with answering(tmp_path / "s", answers), Client(tmp_path / "s", PATIENCE_MS, "alice") as client:
        assert (client.call("farm.list"), client.call("vip.list")) == (1, 1)
    asked = [(each["cmd"], each.get("sudo_user")) for each in seen]
    assert asked == [("farm.list", "alice"), ("farm.list", None), ("vip.list", None)]


@pytest.mark.parametrize("works", [True, False], ids=["works", "hangs"])
def test_a_daemon_that_works_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr("ctl.api.client.KNOCK_EVERY_MS", 50)
    first, asked, steps = dict[str, Any](), list[dict[str, Any]](), list[str]()

    def answers(request: dict[str, Any]) -> list[bytes]:
        if request["cmd"] != PROGRESS_COMMAND:
            first.update(request)
            return []
        asked.append(request)
        if len(asked) == 20:  # after a second: later than a silent daemon is given up
            return [pack(first, ok=True, result="done")]
        return [pack(request, ok=True, result={"doing": "compiles" if works else ""})]

    with answering(tmp_path / "s", answers), Client(tmp_path / "s", 500 if works else 120) as client:
        client.progress = steps.append
        if works:
            assert client.call("cluster.join") == "done" and steps == ["compiles"]
            assert asked[0]["args"] == {"id": first["id"]}
        else:
            with refused(Code.DAEMON_SILENT):
                client.call("cluster.join")


def test_a_daemon_that_knows_no_progress_is_given_up_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.api.client.KNOCK_EVERY_MS", 50)
    seen = list[str]()

    def answers(request: dict[str, Any]) -> list[bytes]:
        seen.append(request["cmd"])
        error = {"kind": "invalid", "message": "unknown command", "key": ""}
        return [pack(request, ok=False, error=error)] if request["cmd"] == PROGRESS_COMMAND else []

    with answering(tmp_path / "s", answers), Client(tmp_path / "s", 300) as client, refused(Code.DAEMON_SILENT):
        client.call("cluster.join")
    assert seen == ["cluster.join", PROGRESS_COMMAND]


def test_a_daemon_that_is_starting_is_not_called_stopped(tmp_path: Path) -> None:
    with locked_run_dir(tmp_path), refused(Code.DAEMON_NOT_RUNNING) as caught:
        Client(tmp_path / "control.sock")
    assert "it is starting" in str(caught.value)
    with refused(Code.DAEMON_NOT_RUNNING) as caught:
        Client(tmp_path / "control.sock")
    assert "systemctl start xlbd" in str(caught.value)


def test_answers_to_other_requests_are_skipped(tmp_path: Path) -> None:
    def answers(request: dict[str, Any]) -> list[bytes]:
        return [msgpack.packb({"id": 77, "ok": True, "result": "old"}), pack(request, ok=True, result="mine")]

    with answering(tmp_path / "s", answers), Client(tmp_path / "s", PATIENCE_MS) as client:
        assert client.call("x") == "mine"


@pytest.mark.parametrize(
    ("error", "kind", "text", "exit_code", "code"),
    [
        (
            {"kind": "invalid", "message": "farm.port: expected 1 to 65535", "key": "farm.port", "code": "invalid_value"},
            InvalidInput,
            "farm.port: exp",
            2,
            Code.INVALID_VALUE,
        ),
        ({"kind": "refused", "message": "the VIP is in use", "code": "vip_in_use"}, XlbError, "in use", 1, Code.VIP_IN_USE),
        ({"kind": "refused", "message": "the VIP is in use", "code": "later"}, XlbError, "the VIP is in use", 1, "later"),
        ({"kind": "refused", "message": "of version 0.1.0"}, XlbError, "of version 0.1.0", 1, Code.UNCODED),
        ({"kind": "internal", "message": "KeyError", "code": "internal"}, XlbError, "KeyError; see", 1, Code.INTERNAL),
        (None, XlbError, "without a message", 1, Code.UNCODED),
    ],
)
def test_errors_keep_their_kind_and_key(
    tmp_path: Path, error: Any, kind: type[XlbError], text: str, exit_code: int, code: str
) -> None:
    with (
        answering(tmp_path / "s", lambda request: [pack(request, ok=False, error=error)]),
        Client(tmp_path / "s", PATIENCE_MS) as client,
        pytest.raises(kind) as caught,
    ):
        client.call("x")
    assert str(caught.value).startswith(text) or text in str(caught.value)
    assert str(caught.value).count("farm.port") == (kind is InvalidInput)
    assert caught.value.code == code
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"hello", msgpack.packb([1, 2]), b"\x81"])
def test_an_invalid_answer_is_an_error_that_names_the_socket(tmp_path: Path, garbage: bytes) -> None:
    with (
        answering(tmp_path / "s", lambda request: [garbage]),
        Client(tmp_path / "s", PATIENCE_MS) as client,
        pytest.raises(XlbError, match=f"{tmp_path}/s does not speak"),
    ):
        client.call("x")


def test_a_silent_daemon_times_out_and_the_outcome_of_a_change_is_unknown(tmp_path: Path) -> None:
    with (
        answering(tmp_path / "s", lambda request: []),
        Client(tmp_path / "s", timeout_ms=30) as client,
        refused(Code.DAEMON_SILENT),
    ):
        client.call("farm.add")


def test_a_daemon_that_dies_while_answering_is_detected_before_the_deadline(tmp_path: Path) -> None:
    """It accepts the connection and exits without an answer."""
    path = tmp_path / "s"
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.fspath(path))
    server.listen()
    with Client(path, timeout_ms=20_000) as client:
        server.close()
        with refused(Code.DAEMON_NOT_RUNNING):
            client.call("x")


def test_no_daemon_is_named_with_its_socket_and_the_remedy(tmp_path: Path) -> None:
    with refused(Code.DAEMON_NOT_RUNNING):
        Client(tmp_path / "s")


def test_a_socket_left_by_a_dead_daemon_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(tmp_path / "s"))
    with pytest.raises(XlbError, match="xlbd is not running"):
        Client(tmp_path / "s")


def test_a_path_no_socket_can_have(tmp_path: Path) -> None:
    with invalid(Code.INVALID_VALUE, "node.run_dir"):
        Client(tmp_path / ("x" * 120))


@pytest.mark.parametrize("value", ["\udcff", 2**70, object()])
def test_a_value_msgpack_cannot_hold_is_invalid_input(tmp_path: Path, value: object) -> None:
    with (
        answering(tmp_path / "s", lambda request: []),
        Client(tmp_path / "s", PATIENCE_MS) as client,
        refused(Code.INVALID_VALUE),
    ):
        client.call("x", {"value": value})


def test_a_request_over_the_daemons_limit_is_not_sent(tmp_path: Path) -> None:
    with (
        answering(tmp_path / "s", lambda request: []),
        Client(tmp_path / "s", PATIENCE_MS) as client,
        refused(Code.REQUEST_TOO_LONG),
    ):
        client.call("x", {"value": "x" * MAX_MESSAGE_BYTES})


def test_permission_denied_names_the_required_group(tmp_path: Path) -> None:
    """As an unprivileged user in a child process: the tests may run as root."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()
        path.chmod(0o660)
        tmp_path.chmod(0o711)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(read)
                os.chdir(tmp_path)  # the parent directories are not readable by every user
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                else:
                    path.chmod(0)
                Client(Path(path.name))
            except XlbError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            message = pipe.read().decode()
        os.waitpid(child, 0)
    assert message.startswith("not allowed to use s: be root")
    assert "group xlb" in message
