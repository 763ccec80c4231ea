"""A login by SSH to a daemon of this process: its xlbctl is the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from ctl.creation import ssh
from ctl.creation.secret import Secret
from ctl.errors import Code, XlbError
from ctl.version import package_version
from tests.fakes.pair import Site
from tests.wait import wait_until

NOUNS = ("vip", "farm", "user", "token")
COMMANDS = {"cluster status": "cluster.status", **{f"{noun} list": f"{noun}.list" for noun in NOUNS}}


class FakeLogin:
    """Takes the place of `ctl.creation.ssh`. before_join, after_join: called in a thread, around the daemon's own join."""

    def __init__(self, site: Site, fingerprint: str) -> None:
        self._site, self._fingerprint = site, fingerprint
        self.passwords: list[str] = []
        self.version: str | None = package_version()
        self.right_password = ""  # empty: every one
        self.before_join: Callable[[], None] = lambda: None
        self.after_join: Callable[[], None] = lambda: None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ssh, "require_server", self._require_server)
        monkeypatch.setattr(ssh, "host_key", self._host_key)
        monkeypatch.setattr(ssh, "logged_in", self._logged_in)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, "the test's condition")

    async def _require_server(self, _: ssh.Target) -> None:
        await asyncio.sleep(0)

    async def _host_key(self, target: ssh.Target, _: ssh.Files, believe: Callable[[str], Awaitable[bool]]) -> str:
        if not await believe(self._fingerprint):
            raise XlbError(f"the host key of {target.host} is unknown", Code.HOST_KEY_UNKNOWN)
        return self._fingerprint

    @contextlib.asynccontextmanager
    async def _logged_in(self, target: ssh.Target, _: ssh.Files, key: str, secret: Secret) -> AsyncIterator[Any]:
        assert key == self._fingerprint
        self.passwords.append(secret.take())
        if self.right_password and self.passwords[-1] != self.right_password:
            raise XlbError("the password is wrong", Code.SSH_LOGIN_REFUSED)
        yield _Peer(self, self._site, target)


class _Peer:
    def __init__(self, login: FakeLogin, site: Site, target: ssh.Target) -> None:
        self._login, self._site, self.target = login, site, target

    async def run(self, command: str, stdin: str = "", progress: Callable[[str], None] | None = None) -> ssh.Done:
        words = command.removeprefix("xlbctl -o json ")
        return await asyncio.to_thread(self._run, words, stdin)

    def _run(self, words: str, stdin: str) -> ssh.Done:
        if words == "version":
            return ssh.Done(0, json.dumps({"xlbd": self._login.version}), "")
        joins = words.startswith("cluster join")
        if joins:
            self._login.before_join()
        done = answered(self._site, words, stdin)
        if joins and not done.status:
            self._login.after_join()
        return done


def answered(site: Site, words: str, stdin: str) -> ssh.Done:
    """What `xlbctl -o json WORDS` does on a node."""
    if words == "version":
        return ssh.Done(0, json.dumps({"xlbd": package_version()}), "")
    if words in COMMANDS:
        return ssh.Done(0, json.dumps(site.call(COMMANDS[words])), "")
    assert words == f"cluster join --local {site.address} --yes --no-check -", words
    try:
        joined = site.call("cluster.join", local=site.address, token=stdin.strip())
    except XlbError as error:
        return ssh.Done(error.exit_code, "", f"xlbctl: {error}\n")
    return ssh.Done(0, json.dumps(joined), "")
