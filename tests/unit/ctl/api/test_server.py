"""The control socket: valid requests, limits, and input that must not harm the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from ctl.api.client import Client
from ctl.api.protocol import MAX_MESSAGE_BYTES, PROGRESS_COMMAND
from ctl.api.server import (
    MAX_QUEUED_MESSAGES,
    MAX_REQUESTS_IN_FLIGHT,
    SMALL_MESSAGE_BYTES,
    ApiServer,
    MalformedRequest,
    Request,
    decode_request,
    result_answer,
)
from ctl.errors import Code, XlbError
from ctl.runtime.progress import working
from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.refusals import refused

DEADLINE_MS = 10_000
GOOD = {"v": 1, "id": 7, "cmd": "status", "args": {}}


def test_a_good_request_is_read() -> None:
    assert decode_request(msgpack.packb(GOOD)) == Request(7, "status", {})
    assert decode_request(msgpack.packb(GOOD | {"sudo_user": "alice"})) == Request(7, "status", {}, "alice")


@pytest.mark.parametrize("claim", [None, 7, "", "a\nb", "x" * 65, ["alice"], {}])
def test_a_claim_that_is_no_name_is_ignored(claim: object) -> None:
    assert decode_request(msgpack.packb(GOOD | {"sudo_user": claim})) == Request(7, "status", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "protocol version 1"),
        ({"id": -1}, "id: expected"),
        ({"id": True}, "id: expected"),
        ({"id": "7"}, "id: expected"),
        ({"cmd": ""}, "cmd: expected"),
        ({"cmd": "x" * 65}, "cmd: expected"),
        ({"cmd": 5}, "cmd: expected"),
        ({"args": []}, "args: expected"),
        ({"args": {"a": 1}, "more": 1}, "unknown key 'more'"),
    ],
)
def test_a_wrong_request_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedRequest, match=message):
        decode_request(msgpack.packb(GOOD | change))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        msgpack.packb([GOOD]),
        msgpack.packb(GOOD) + b"x",
        msgpack.packb(GOOD)[:-1],
        b"\x91" * 100_000,  # nested arrays, deeper than any stack
        b"\xdd\xff\xff\xff\xff",  # an array header that claims 4 billion elements
        msgpack.packb({1: 2}, strict_types=True),
        msgpack.packb(msgpack.ExtType(5, b"x")),
    ],
)
def test_what_is_no_request_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedRequest):
        decode_request(payload)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(payload: bytes) -> None:
    with contextlib.suppress(MalformedRequest):
        assert isinstance(decode_request(payload), Request)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["v", "id", "cmd", "args", "x"]), JSON))
def test_random_maps_are_refused(document: dict[str, Any]) -> None:
    try:
        request = decode_request(msgpack.packb(document))
    except MalformedRequest:
        return
    assert request.command == document["cmd"]
    assert request.arguments == document.get("args", {})


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.data())
def test_a_large_request_is_parsed_like_a_small_one(arguments: dict[str, Any], data: st.DataObject) -> None:
    payload = msgpack.packb(GOOD | {"args": {**arguments, "filling": "x" * SMALL_MESSAGE_BYTES}})
    assert decode_request(payload).arguments == msgpack.unpackb(payload)["args"]
    length = data.draw(st.integers(SMALL_MESSAGE_BYTES + 1, len(payload) - 1) | st.just(len(payload) + 1))
    with pytest.raises(MalformedRequest):
        decode_request((payload + b"\0")[:length])


def test_a_large_request_has_string_keys_only() -> None:
    with pytest.raises(MalformedRequest, match="int is not allowed"):
        decode_request(msgpack.packb(GOOD | {"args": {1: "x" * SMALL_MESSAGE_BYTES}}))


@given(JSON | st.lists(st.integers(0, 9), min_size=250, max_size=700))
def test_an_answer_packed_in_slices_is_the_same(result: Any) -> None:
    for value in (result, {"rows": result, "n": 1}):
        packed = asyncio.run(result_answer(3, copy.deepcopy(value)))  # which consumes long lists
        assert msgpack.unpackb(packed) == {"id": 3, "ok": True, "result": value}


# --- a real socket -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def dealer(daemon: RunningDaemon) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as connection:
        connection.setsockopt(zmq.LINGER, 0)
        connection.connect(f"ipc://{daemon.socket_path}")
        yield connection


def receive(connection: zmq.Socket[bytes]) -> dict[str, Any]:
    assert connection.poll(DEADLINE_MS), "no answer"
    answer: dict[str, Any] = msgpack.unpackb(connection.recv_multipart()[-1])
    return answer


def ask(connection: zmq.Socket[bytes], **fields: Any) -> dict[str, Any]:
    connection.send(msgpack.packb(GOOD | fields))
    return receive(connection)


def test_only_owner_and_group_may_use_the_socket(daemon: RunningDaemon) -> None:
    mode = stat.S_IMODE(daemon.socket_path.stat().st_mode)
    assert mode == 0o660


def test_malformed_messages_are_answered_and_counted(daemon: RunningDaemon, dealer: zmq.Socket[bytes]) -> None:
    before = daemon.node.parts.api.counts.malformed
    dealer.send(b"\xc1 this is not msgpack")
    answer = receive(dealer)
    assert (answer["ok"], answer["id"], answer["error"]["kind"]) == (False, None, "invalid")
    assert "not msgpack" in answer["error"]["message"]
    dealer.send_multipart([b"one", b"two", b"three", b"four"])
    dealer.send_multipart([b"no delimiter", msgpack.packb(GOOD)])
    assert ask(dealer)["ok"], "the daemon lives on"
    assert daemon.node.parts.api.counts.malformed == before + 3


def test_req_sockets_are_understood(daemon: RunningDaemon) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as connection:
        connection.setsockopt(zmq.LINGER, 0)
        connection.connect(f"ipc://{daemon.socket_path}")
        assert ask(connection)["result"]["node"] == "lb1"


def test_a_message_that_is_too_long_is_not_read(daemon: RunningDaemon, dealer: zmq.Socket[bytes]) -> None:
    before = daemon.node.parts.api.counts.malformed
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.send(bytes(100_000_000), copy=False)
    assert monitor.poll(DEADLINE_MS), "the daemon closes the connection"
    with zmq.Context() as context, context.socket(zmq.DEALER) as other:
        other.setsockopt(zmq.LINGER, 0)
        other.connect(f"ipc://{daemon.socket_path}")
        assert ask(other)["ok"], "others are answered"
    assert daemon.node.parts.api.counts.malformed == before, "it was not even read"
    dealer.disable_monitor()


def test_xlbctl_reports_a_message_that_is_too_long_without_sending_it(daemon: RunningDaemon) -> None:
    with Client(daemon.socket_path) as client, refused(Code.REQUEST_TOO_LONG):
        client.call("config.apply", {"document": {"x": "y" * MAX_MESSAGE_BYTES}})


@pytest.mark.parametrize(
    ("command", "arguments", "key", "code"),
    [
        ("farm.fly", {}, "", Code.UNKNOWN_COMMAND),
        ("farm.show", {"name": "web", "colour": "red"}, "colour", Code.UNKNOWN_ARGUMENT),
        ("farm.show", {}, "name", Code.INVALID_VALUE),
        ("farm.show", {"name": "nowhere"}, "farm", Code.UNKNOWN_FARM),
        ("farm.add", {"name": "web", "vip": "10.0.0.1", "port": 70000}, "farm.web.port", Code.INVALID_VALUE),
        ("vip.list", {"x": 1}, "x", Code.UNKNOWN_ARGUMENT),
        ("conn.list", {"limit": 0}, "limit", Code.INVALID_VALUE),
        ("conn.list", {"limit": 10**9}, "limit", Code.INVALID_VALUE),
        ("conn.show", {"source": "10.0.0.1"}, "destination", Code.MISSING_ARGUMENT),
        ("conn.flush", {"backend": "10.0.0.1:80"}, "", Code.UNKNOWN_BACKEND),
        ("config.apply", {"document": {}, "dry_run": 1}, "dry_run", Code.INVALID_VALUE),
        ("config.diff", {"document": []}, "document", Code.INVALID_VALUE),
        ("vip.add", {"address": "10.0.0.1/24", "device": "eth9"}, "vip.10.0.0.1.device", Code.UNKNOWN_INTERFACE),
    ],
)
def test_wrong_commands_get_a_one_line_message(
    dealer: zmq.Socket[bytes], command: str, arguments: dict[str, Any], key: str, code: Code
) -> None:
    error = ask(dealer, cmd=command, args=arguments)["error"]
    assert (error["key"], error["code"]) == (key, code)
    assert error["kind"] == ("refused" if code is Code.UNKNOWN_BACKEND and not key else "invalid")
    assert "\n" not in error["message"]


@given(st.sampled_from(["vip.add", "farm.add", "backend.add", "conn.show", "conn.list", "config.apply"]), JSON)
def test_no_argument_is_an_internal_error(daemon: RunningDaemon, command: str, arguments: Any) -> None:
    with Client(daemon.socket_path) as client:
        try:
            client.call(command, arguments if isinstance(arguments, dict) else {"name": arguments, "address": arguments})
        except XlbError as error:
            assert error.code != Code.INTERNAL


def test_a_bug_in_a_command_is_answered_and_does_not_stop_the_server(tmp_path: Path) -> None:
    async def dispatch(command: str, arguments: dict[str, Any]) -> Any:
        if command == "bug":
            raise RuntimeError("an accident")
        return bytes(MAX_MESSAGE_BYTES) if command == "big" else "fine"

    async def scenario() -> list[dict[str, Any]]:
        server = ApiServer(tmp_path / "sock", dispatch)
        server.start()
        try:
            return [
                await asyncio.to_thread(one_request, tmp_path / "sock", GOOD | {"cmd": command})
                for command in ("bug", "big", "ok")
            ]
        finally:
            await server.close()

    bug, big, fine = asyncio.run(scenario())
    assert (bug["error"]["kind"], big["error"]["kind"], fine["result"]) == ("internal", "refused", "fine")
    assert (bug["error"]["code"], big["error"]["code"]) == (Code.INTERNAL, Code.ANSWER_TOO_LONG)
    assert "--limit" in big["error"]["message"]
    assert not (tmp_path / "sock").exists()


def test_a_client_learns_what_its_long_request_is_doing(tmp_path: Path) -> None:
    async def scene() -> None:
        may_end = asyncio.Event()

        async def dispatch(_command: str, _arguments: dict[str, Any]) -> str:
            with working("compiles"):
                await may_end.wait()
            return "done"

        server = ApiServer(tmp_path / "s", dispatch)
        server.start()
        context = zmq.asyncio.Context()
        mine, other = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
        for each in (mine, other):
            each.connect(f"ipc://{tmp_path / 's'}")

        async def answer(of: zmq.asyncio.Socket, **fields: Any) -> Any:
            await of.send(msgpack.packb(GOOD | fields))
            return msgpack.unpackb(await asyncio.wait_for(of.recv(), DEADLINE_MS / 1000))["result"]

        try:
            await mine.send(msgpack.packb(GOOD))
            for number, wanted in ((7, "compiles"), (8, ""), ([7], "")):
                assert await answer(mine, id=9, cmd=PROGRESS_COMMAND, args={"id": number}) == {"doing": wanted}
            assert await answer(other, id=9, cmd=PROGRESS_COMMAND, args={"id": 7}) == {"doing": ""}, "another client's request"
            may_end.set()
            assert msgpack.unpackb(await asyncio.wait_for(mine.recv(), DEADLINE_MS / 1000))["result"] == "done"
            assert await answer(mine, id=9, cmd=PROGRESS_COMMAND, args={"id": 7}) == {"doing": ""}
        finally:
            context.destroy(linger=0)
            await server.close()

    asyncio.run(scene())


def one_request(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as connection:
        connection.setsockopt(zmq.LINGER, 0)
        connection.connect(f"ipc://{path}")
        connection.send(msgpack.packb(document))
        return receive(connection)


def test_requests_in_flight_are_bounded(tmp_path: Path) -> None:
    running = most = 0

    async def dispatch(_command: str, _arguments: dict[str, Any]) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return running

    async def scenario() -> None:
        server = ApiServer(tmp_path / "sock", dispatch)
        server.start()
        try:
            await asyncio.to_thread(many_requests, tmp_path / "sock", 300)
        finally:
            await server.close()

    asyncio.run(scenario())
    assert 1 < most <= MAX_REQUESTS_IN_FLIGHT


def test_whatever_else_is_ready_runs_between_two_steps_of_requests(tmp_path: Path) -> None:
    seen: list[str] = []

    async def dispatch(_command: str, _arguments: dict[str, Any]) -> int:
        for _ in range(3):
            seen.append("s")
            await asyncio.sleep(0)
        return 0

    async def scenario() -> None:
        loop, server = asyncio.get_running_loop(), ApiServer(tmp_path / "sock", dispatch)

        def turn() -> None:
            seen.append("t")
            loop.call_soon(turn)

        server.start()
        try:
            loop.call_soon(turn)
            await asyncio.to_thread(many_requests, tmp_path / "sock", 300)
        finally:
            await server.close()

    asyncio.run(scenario())
    assert seen.count("s") == 900
    assert "ss" not in "".join(seen)


def many_requests(path: Path, number: int) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as connection:
        connection.setsockopt(zmq.LINGER, 0)
        connection.setsockopt(zmq.SNDHWM, 0)
        connection.setsockopt(zmq.RCVHWM, 0)
        connection.connect(f"ipc://{path}")
        answered = []
        for each in range(number):
            connection.send(msgpack.packb(GOOD | {"id": each}))
            if each >= MAX_QUEUED_MESSAGES // 2:  # with more, answers may be dropped when this process is not scheduled
                answered.append(receive(connection)["id"])
        answered += [receive(connection)["id"] for _ in range(number - len(answered))]
        assert sorted(answered) == list(range(number))


def test_a_path_that_cannot_be_bound_gives_a_one_line_message(tmp_path: Path) -> None:
    async def dispatch(_command: str, _arguments: dict[str, Any]) -> None: ...

    async def scenario() -> None:
        server = ApiServer(tmp_path / ("x" * 120), dispatch)
        try:
            server.start()
        finally:
            await server.close()

    before = os.umask(0o027)
    try:
        with pytest.raises(XlbError, match="choose another run_dir"):
            asyncio.run(scenario())
    finally:
        after = os.umask(before)
    assert after == 0o027, "the mask is put back on every path"
