"""Probes against real sockets on loopback: every failure of a backend gets its message, and every socket is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.config.model import Backend, CheckKind, Config, Farm, HealthCheck
from ctl.health.check_machine import MAX_PROBES, HealthChecks, Probe, Transition
from ctl.health.probes.http_answer import MAX_BYTES, HttpAnswer, NotAnswered
from ctl.health.probes.probe import ProbeFailed
from ctl.health.probes.runner import CheckRunner, load_down
from tests.unit.ctl.health.probes.servers import HTTP, TCP, answering, probe_against, silent
from tests.wait import wait_until_async


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(host: str) -> None:
    assert probe_against(TCP, silent, host) == ""


@pytest.mark.parametrize("check", [TCP, HTTP])
def test_a_closed_port_is_refused(check: HealthCheck) -> None:
    assert probe_against(check, None).endswith(": connection refused")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 204\r\n\r\n", ""),
        (b"HTTP/1.1 299 Whatever\r\nA: b\r\n\r\nbody", ""),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "GET /health answered 503, expected 200-299"),
        (b"HTTP/1.1 300 Elsewhere\r\n\r\n", "GET /health answered 300, expected 200-299"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 199 Later\r\n\r\n" + b"HTTP/1.1 204 Empty\r\n\r\n", ""),
        (b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 503 Busy\r\n\r\n", "GET /health answered 503, expected 200-299"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "GET /health answered 101, expected 200-299"),
        (b"HTTP/1.1 103 Early\r\n\r\n", "closed the connection without an answer"),
        (b"HTTP/1.0 200 OK\nServer: old\n\nbody", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\ncut", ""),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: %s\r\n" % (b"y" * 7000) * 8 + b"\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "answer is not valid HTTP/1.1: illegal header line"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP: answered b'SSH-2.0-OpenSSH_9.2\\r\\n'"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "does not speak HTTP: answered b'HTTP/2.0 200 OK"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "answer is not valid HTTP/1.1"),
        (b"HTTP/1.1 abc\r\n\r\n", "answer is not valid HTTP/1.1"),
        (b"HTTP/1.1 20", "closed the connection before a complete HTTP answer: b'HTTP/1.1 20'"),
        (b"", "closed the connection without an answer"),
    ],
)
def test_http_answers(answer: bytes, expected: str) -> None:
    result = probe_against(HTTP, answering(answer))
    assert result == expected or (expected and result.startswith(expected))


def test_http_request_names_path_and_host() -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    check = HealthCheck(kind=CheckKind.HTTP, path="/up?x=1", host="www.example.org")
    assert probe_against(check, serve) == ""
    assert seen[0].startswith(b"GET /up?x=1 HTTP/1.1\r\nHost: www.example.org\r\n")


def test_a_server_that_is_silent_times_out() -> None:
    check = HealthCheck(kind=CheckKind.HTTP, timeout_ms=50)
    assert probe_against(check, silent).endswith("within 50 ms")


@pytest.mark.parametrize(
    "endless", [b"x" * MAX_BYTES, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * MAX_BYTES, b"HTTP/1.1 102 X\r\n\r\n" * MAX_BYTES]
)
def test_an_endless_answer_is_limited(endless: bytes) -> None:
    assert probe_against(HTTP, answering(endless, close=False)).startswith(
        ("sent more than", "does not speak", "answer is not")
    )


def test_every_byte_may_come_by_itself() -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in b"HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()

    assert probe_against(HTTP, slowly) == ""


def test_interim_responses_do_not_extend_the_timeout() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early\r\n\r\n")
        await reader.read()

    check = HealthCheck(kind=CheckKind.HTTP, timeout_ms=50)
    assert probe_against(check, endless).endswith("within 50 ms")


@pytest.mark.parametrize(("status", "passes"), [("101", True), ("100-399", True), ("100", False), ("200-399", False)])
def test_101_is_an_answer(status: str, passes: bool) -> None:
    check = HealthCheck(kind=CheckKind.HTTP, timeout_ms=2000, status=status)
    assert (probe_against(check, answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")) == "") is passes


@given(st.binary(max_size=60), st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n\r\n"]))
def test_random_responses_only_fail_the_probe(garbage: bytes, start: bytes) -> None:
    answer = HttpAnswer("/", "host", "xlbd")
    with contextlib.suppress(NotAnswered):
        for data in (start, garbage, b""):
            if data and answer.feed(data) is not None:
                return
        answer.feed(b"")


# --- the runner ----------------------------------------------------------------------------------------------


def config_of(backends: int, interval_ms: int = 10) -> Config:
    check = HealthCheck(kind=CheckKind.TCP, interval_ms=interval_ms, timeout_ms=1000, rise=2, fall=2)
    servers = tuple(Backend(id=number, address="10.0.0.1", port=number) for number in range(1, backends + 1))
    farm = Farm(id=1, name="web", vip="10.0.0.100", port=80, port_last=80, health=check, backends=servers)
    return Config(farms={"web": farm})


class Servers:
    """Results of the fake probes: ports in `dead` refuse."""

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.running = self.most = self.probes = 0

    async def probe(self, due: Probe) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.probes += 1
        await asyncio.sleep(0)
        self.running -= 1
        if due.port in self.dead:
            raise ProbeFailed("connection refused")


def run_checks(
    tmp_path: Path, servers: Servers, config: Config, until: Callable[[CheckRunner, list[Transition]], bool]
) -> CheckRunner:
    async def scenario() -> CheckRunner:
        transitions: list[Transition] = []
        runner = CheckRunner(HealthChecks(load_down(tmp_path)), tmp_path, transitions.append, servers.probe)
        runner.configure(config)
        task = asyncio.ensure_future(runner.run())
        await wait_until_async(lambda: task.done() or until(runner, transitions), "the end of the scenario", every_s=0)
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return runner

    return asyncio.run(scenario())


def test_a_backend_goes_down_and_up_again(tmp_path: Path) -> None:
    servers = Servers()
    servers.dead = {2}

    def until(_runner: CheckRunner, transitions: list[Transition]) -> bool:
        if transitions:
            servers.dead = set()
        return len(transitions) == 2

    runner = run_checks(tmp_path, servers, config_of(3), until)
    status = runner.checks.status(2)
    assert status is not None and status.up and status.last_error == "connection refused"


def test_one_loop_checks_thousands_of_backends(tmp_path: Path) -> None:
    servers = Servers()
    servers.dead = set(range(1, 6))
    runner = run_checks(tmp_path, servers, config_of(5000, 1000), lambda runner, _: servers.probes >= 5000)
    assert runner.checks.down <= {1, 2, 3, 4, 5}


def test_probes_in_flight_are_bounded(tmp_path: Path) -> None:
    servers = Servers()
    turns = 0

    async def hang(_due: Probe) -> None:
        servers.running += 1
        servers.most = max(servers.most, servers.running)
        await asyncio.Event().wait()

    def until(_runner: CheckRunner, _transitions: list[Transition]) -> bool:
        nonlocal turns
        turns += servers.running >= MAX_PROBES // 2  # what one farm may have
        return turns > 2000  # of the event loop, in which more probes could have been started

    servers.probe = hang  # type: ignore[method-assign, assignment]
    run_checks(tmp_path, servers, config_of(2 * MAX_PROBES, 10), until)
    assert servers.most == MAX_PROBES // 2


def test_a_down_backend_stays_down_after_a_restart(tmp_path: Path) -> None:
    servers = Servers()
    servers.dead = {2}
    run_checks(tmp_path, servers, config_of(3), lambda runner, _: runner.checks.down == {2}).save_down()
    runner = CheckRunner(HealthChecks(load_down(tmp_path)), tmp_path, lambda _: None, servers.probe)

    async def configure() -> None:
        runner.configure(config_of(3))

    asyncio.run(configure())
    assert runner.checks.down == {2}


@pytest.mark.parametrize("content", ["", "{", "[1, null]", '{"a": 1}', "[1,2"])
def test_a_damaged_health_file_means_unknown_health(tmp_path: Path, content: str) -> None:
    (tmp_path / "health.json").write_text(content)
    assert load_down(tmp_path) == frozenset()


def test_an_exception_in_a_probe_is_a_failed_probe(tmp_path: Path) -> None:
    async def broken(_due: Probe) -> None:
        raise RuntimeError("an accident")

    servers = Servers()
    servers.probe = broken  # type: ignore[method-assign, assignment]
    runner = run_checks(tmp_path, servers, config_of(1), lambda runner, _: bool(runner.checks.down))
    status = runner.checks.status(1)
    assert status is not None and "internal error of the check" in status.last_error
