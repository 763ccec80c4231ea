"""The real xlb-web on a free port of the loopback, for a daemon that runs: in a thread, or as a process; and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctl.accounts import passwords
from ctl.state import node_file
from ctl.state.node_file import NodeSettings
from ctl.web import process
from tests.fakes.daemon import DEADLINE_S, RunningDaemon
from tests.tree import TREE
from tests.wait import wait_until

PASSWORD = "correct horse battery"
ACCOUNTS = {"olga": "operator", "vera": "viewer"}
"""Names and roles; the password of each is PASSWORD."""


@dataclass
class Response:
    """An answer of xlb-web."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def result(self) -> Any:
        assert self.status == 200, (self.status, self.body[:500])
        return self.json["result"]

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.json["error"]["code"])


@dataclass
class WebClient:
    """A client with the cookie and CSRF token of its login, if any. Each request is a connection of its own."""

    port: int
    host: str = "127.0.0.1"
    headers: dict[str, str] = field(default_factory=dict)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Response:
        """body: bytes, or a document that is sent as JSON. Paths without a leading "/api" or "/" are below /api/v1/."""
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=DEADLINE_S, context=insecure())
        given = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None and not isinstance(body, bytes):
            given.setdefault("Content-Type", "application/json")
            body = json.dumps(body).encode()
        try:
            connection.request(method, path if path.startswith("/") else f"/api/v1/{path}", body, given)
            answer = connection.getresponse()
            return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Response:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Response:
        return self.request("POST", path, body, **headers)

    def login(self, name: str = "olga", password: str = PASSWORD) -> Response:
        """Log in, and send cookie and CSRF token from now on."""
        answer = self.post("session", {"name": name, "password": password})
        if answer.status == 200:
            self.headers["Cookie"] = answer.headers["set-cookie"].partition(";")[0]
            self.headers["X-CSRF-Token"] = answer.result["csrf"]
        return answer


@functools.cache
def insecure() -> ssl.SSLContext:
    """Of a client that takes every certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@dataclass
class RunningWeb:
    """xlb-web. pid: 0 if it runs in this process."""

    port: int
    settings: NodeSettings
    pid: int = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def client(self, name: str = "") -> WebClient:
        """A new client, logged in as `name` if that is given."""
        made = WebClient(self.port)
        if name:
            assert made.login(name).status == 200
        return made


def add_web_section(config: Path, **settings: object) -> NodeSettings:
    """Give a node file a [web] section, if it has none: a free port of the loopback, state beside the file."""
    if "[web]" not in config.read_text():
        given = {"listen": "127.0.0.1:0", "state_dir": str(config.parent / "web"), **settings}
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())
        config.write_text(f"{config.read_text()}\n[web]\n{lines}")
    return node_file.load(config)


@functools.cache
def _hash() -> str:
    return passwords.hash_password(PASSWORD)


def give_accounts(daemon: RunningDaemon, accounts: Mapping[str, str] = ACCOUNTS) -> None:
    """Make accounts (name to role) with PASSWORD, those that there are not yet."""
    password_hash = _hash()
    there = {each["name"] for each in daemon.call("user.list")}
    for name in accounts.keys() - there:
        daemon.call("user.add", name=name, role=accounts[name], password_hash=password_hash)


@contextlib.contextmanager
def running_web(config: Path, **settings: object) -> Iterator[RunningWeb]:
    """xlb-web of this node file in a thread; settings: keys of [web]. The daemon need not run."""
    loaded = add_web_section(config, **settings)
    started: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        try:
            async with process.running(loaded) as sockets:
                started.set_result((sockets[0].getsockname()[1], asyncio.get_running_loop(), stop))
                await stop.wait()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="xlb-web", daemon=True)
    thread.start()
    port, loop, stop = started.result(DEADLINE_S)
    try:
        yield RunningWeb(port, loaded)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "xlb-web did not stop"


@contextlib.contextmanager
def web_process(config: Path, **settings: object) -> Iterator[RunningWeb]:
    """xlb-web of this node file as a process; its log is web.log beside the file."""
    loaded, log = add_web_section(config, **settings), config.parent / "web.log"
    with log.open("ab") as output:
        began = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "ctl.web.main", "--config", str(config)], stderr=output, cwd=TREE, env=dict(os.environ)
        )
    try:

        def listens() -> re.Match[str] | None:
            assert child.poll() is None, log.read_text()[-2000:]
            return re.search(r"listening on https://\S+:(\d+),", log.read_bytes()[began:].decode())

        found = wait_until(listens, "xlb-web listens")
        assert found is not None
        yield RunningWeb(int(found[1]), loaded, child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(DEADLINE_S)
