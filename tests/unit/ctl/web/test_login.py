"""Logins, roles and sessions through HTTP, and xlb-web while xlbd is not there."""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.web.access.attempts import FREE
from ctl.web.api.table import ROUTES
from tests.fakes.daemon import RunningDaemon, running_daemon, write_node_file
from tests.fakes.web import PASSWORD, RunningWeb, WebClient, give_accounts, insecure, running_web
from tests.wait import wait_until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("node")) as running:
        give_accounts(running)
        yield running


@pytest.fixture
def web(daemon: RunningDaemon) -> Iterator[RunningWeb]:
    with running_web(daemon.config) as running:
        yield running


def stream(web: RunningWeb, client: WebClient) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
    """An open stream of events."""
    connection = http.client.HTTPSConnection("127.0.0.1", web.port, timeout=20, context=insecure())
    connection.request("GET", "/api/v1/events", headers=client.headers)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline() == b"retry: 2000\n"
    return connection, answer


def test_a_viewer_can_change_nothing(web: RunningWeb) -> None:
    client = web.client("vera")
    own = {("DELETE", "/session"), ("PUT", "/session/password"), ("POST", "/session")}
    for route in ROUTES:
        if route.method == "GET" or (route.method, route.path) in own:
            continue
        path = "/".join("web" if each.startswith("{") else each for each in route.path.split("/"))
        answer = client.request(route.method, f"/api/v1{path}", {})
        assert (answer.status, answer.code) == (403, "not_permitted"), (route.method, path, answer.body)
    assert client.get("users").status == 403 and client.get("tokens").status == 403


@pytest.mark.parametrize(
    "change",
    [{"X-CSRF-Token": ""}, {"X-CSRF-Token": "wrong"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_another_page_can_change_nothing(web: RunningWeb, change: dict[str, str]) -> None:
    client = web.client("olga")
    client.headers |= change
    assert client.post("farms/web/stop").status == 403


def test_wrong_passwords_are_delayed_logged_and_never_shown(web: RunningWeb, caplog: pytest.LogCaptureFixture) -> None:
    client = web.client()
    with caplog.at_level(logging.INFO, "ctl.web"):
        first = client.login("olga", "wrong password")
        assert (first.status, first.code) == (401, "login_refused")
        unknown = client.login("nobody\nelse", "wrong password")
        assert unknown.json == first.json
        for _ in range(FREE):
            last = client.login("olga", "wrong password")
        assert (last.status, last.code) == (429, "too_many_logins") and int(last.headers["retry-after"]) >= 1
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "login refused: olga from 127.0.0.1" in text and "nobody?else" in text and "wrong password\n" not in text
    assert PASSWORD not in text


def test_logins_and_logouts_are_logged(web: RunningWeb, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ctl.web"):
        client = web.client("vera")
        client.request("DELETE", "session")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "login: vera (viewer) from 127.0.0.1" in text and "logout: vera from 127.0.0.1" in text
    assert client.headers["Cookie"].partition("=")[2] not in text


def test_a_restart_logs_nobody_out_and_keeps_the_certificate(daemon: RunningDaemon) -> None:
    with running_web(daemon.config) as web:
        client = web.client("vera")
        stored = (web.settings.web.state_dir / "sessions.json").read_text()
        assert client.headers["Cookie"].partition("=")[2] not in stored
    with running_web(daemon.config) as web:
        again = WebClient(web.port, headers=client.headers)
        assert again.get("session").result["name"] == "vera"
        assert again.request("DELETE", "session").status == 200


def test_a_stream_ends_with_its_session_and_a_stop_takes_no_longer(daemon: RunningDaemon) -> None:
    with running_web(daemon.config) as web:
        client, other = web.client("vera"), web.client("vera")
        first, second = stream(web, client), stream(web, other)
        client.request("DELETE", "session")
        assert b"event: bye" in wait_lines(first[1], b"event: bye")
        began_s = time.monotonic()
    took_s = time.monotonic() - began_s
    assert b'{"why":"stopping"}' in wait_lines(second[1], b"data: ")
    assert took_s < 2.0, took_s
    for connection, _ in (first, second):
        connection.close()


def wait_lines(answer: http.client.HTTPResponse, wanted: bytes) -> bytes:
    """The lines of a stream up to one that begins with `wanted` and is no event of xlbd."""
    while True:
        line = answer.readline()
        assert line, f"the stream ended without {wanted!r}"
        if line.startswith(wanted) and b'"number"' not in line and b'"at_s"' not in line:
            return line


def test_without_xlbd_the_page_is_served_and_the_api_says_what_to_do(tmp_path: Path) -> None:
    write_node_file(tmp_path)
    with running_web(tmp_path / "node.toml") as web:
        client = web.client()
        assert client.get("/").status == 200 and client.get("/healthz").status == 200
        answer = client.login()
        assert (answer.status, answer.code) == (503, "daemon_not_running") and "systemctl start xlbd" in answer.json["error"][
            "message"
        ]
        with running_daemon(tmp_path) as daemon:
            give_accounts(daemon)
            wait_until(lambda: client.login().status == 200, "xlb-web finds xlbd")
            assert client.get("status").status == 200
        lost = client.get("status")
        assert (lost.status, lost.code) == (503, "daemon_not_running") and lost.headers["retry-after"]
        assert client.get("session").result["name"] == "olga"
        with running_daemon(tmp_path) as daemon:
            give_accounts(daemon)
            wait_until(lambda: client.get("status").status == 200, "xlb-web finds the new xlbd")


def test_a_stream_continues_where_it_was(daemon: RunningDaemon, web: RunningWeb) -> None:
    client = web.client("vera")
    connection, answer = stream(web, client)
    daemon.call("vip.add", address="10.77.0.201/24", device="eth0")
    number = wait_lines(answer, b"id: ").strip().partition(b": ")[2].decode()
    connection.close()
    daemon.call("vip.delete", address="10.77.0.201")
    client.headers["Last-Event-ID"] = number
    connection, answer = stream(web, client)
    lines = b""
    while b"vip.delete" not in lines and b"10.77.0.201" not in lines:
        lines = answer.readline()
        assert lines
    connection.close()
    client.headers["Last-Event-ID"] = "another-17"
    connection, answer = stream(web, client)
    assert wait_lines(answer, b"event: lost")
    connection.close()
