"""The peer's xlbctl over SSH: what the peer is and has, and its part of the pair.

Decides which peer can join a pair, and what each failure there means.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctl.creation.ssh import Done, Peer
from ctl.errors import Code, XlbError


@dataclass(frozen=True, slots=True)
class Found:
    """The peer before it joins."""

    node: str
    version: str
    farms: tuple[str, ...]
    vips: tuple[str, ...]
    accounts: tuple[str, ...]  # users and tokens of xlb-web


class RemoteNode:
    """command: runs xlbctl there."""

    def __init__(self, peer: Peer, command: str) -> None:
        self._peer, self._command = peer, command
        self._name = peer.target.host

    async def look(self, version: str) -> Found:
        """Changes nothing. Raises XlbError if it cannot be in a pair with a node of this version."""
        host = self._name
        done = await self._run("version")
        if done.status in (126, 127):
            raise XlbError(
                f"xlb is not installed on {host}: install the same package there, version {version}", Code.SSH_FAILED
            )
        versions = self._json_of(done)
        its = versions.get("xlbd")
        if its is None:
            raise XlbError(
                f"xlbd is not running on {host}: run systemctl start xlbd there; {last_sentence(done)}", Code.DAEMON_NOT_RUNNING
            )
        if its != version:
            raise XlbError(f"{host} has xlb {its} and this node {version}; install the same version on both", Code.NODES_DIFFER)
        status = self._json_of(await self._run("cluster status"))
        if status.get("peer"):
            name = status["peer"]["name"]
            raise XlbError(
                f"{status['node']} is already in a pair with {name}; run xlbctl cluster destroy there first", Code.PAIR_EXISTS
            )
        farms, vips = await self._listed("farm", "name"), await self._listed("vip", "address")
        accounts = await self._listed("user", "name") + await self._listed("token", "name")
        self._name = status["node"]
        return Found(self._name, its, farms, vips, accounts)

    async def join(self, token: str, progress: Callable[[str], None]) -> dict[str, Any]:
        """What joining did. progress: gets each step of it. Raises XlbError."""
        address = shlex.quote(self._peer.target.host)
        done = await self._peer.run(
            f"{self._command} -o json cluster join --local {address} --yes --no-check -",
            f"{token}\n",
            lambda line: progress(_bare(line)),
        )
        if done.status:
            raise XlbError(f"{self._name} could not join: {last_sentence(done)}", Code.PAIR_UNCONFIRMED)
        joined: dict[str, Any] = self._json_of(done)
        return joined

    async def _listed(self, noun: str, key: str) -> tuple[str, ...]:
        return tuple(each[key] for each in self._json_of(await self._run(f"{noun} list")))

    async def _run(self, words: str) -> Done:
        return await self._peer.run(f"{self._command} -o json {words}")

    def _json_of(self, done: Done) -> Any:
        try:
            return json.loads(done.output)
        except ValueError:
            raise XlbError(f"xlbctl on {self._name} failed: {last_sentence(done)}", Code.SSH_FAILED) from None


def last_sentence(done: Done) -> str:
    """The error that a command there ended with."""
    lines = [line for line in done.errors.splitlines() if line.strip()]
    return _bare(lines[-1]) if lines else f"it exited with {done.status} and printed no error"


def _bare(line: str) -> str:
    return line.removeprefix("xlbctl: ")
