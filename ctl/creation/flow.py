"""Creates a pair of this node and a peer, step by step.

Decides the order of the steps: all checks and questions come before the first change on either node. A creation that fails or
is cancelled revokes its join token, so that both nodes are as they were; where the peer has joined by then, they are a pair.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any

from ctl.creation import ssh
from ctl.creation.remote_node import Found, RemoteNode
from ctl.creation.secret import Secret
from ctl.creation.settling import until_in_step
from ctl.creation.steps import Control, Kind, Observer, Question, State, Step, removal
from ctl.errors import Code, XlbError

CANCELLED_JOIN_S = 30.0  # a joiner gives up after 20 s without the creator


@dataclass(frozen=True, slots=True)
class Wanted:
    """The pair to create. local, peer: addresses on the cluster link. command: runs xlbctl on the peer. files: for SSH."""

    local: str
    peer: str
    files: ssh.Files
    ssh_port: int = 22
    command: str = "xlbctl"


class Creation:
    """One creation; `run` it once."""

    def __init__(self, wanted: Wanted, control: Control, observer: Observer) -> None:
        self._wanted, self._control, self._observer = wanted, control, observer

    async def run(self, password: Secret) -> dict[str, Any]:
        """Returns node, peer, kept (where the peer saved its farms, or null) and checks.

        Raises XlbError, and asyncio.CancelledError after the nodes are as they were.
        """
        wanted = self._wanted
        own = await self._control.call("cluster.preview", {"local": wanted.local, "peer": wanted.peer})
        target = ssh.Target(wanted.peer, wanted.ssh_port, wanted.local)
        async with contextlib.AsyncExitStack() as stack:
            with self._step(Step.SSH, f"logging in to {wanted.peer}"):
                await ssh.require_server(target)
            with self._step(Step.HOST_KEY):
                key = await ssh.host_key(target, wanted.files, self._believe)
                peer = await stack.enter_async_context(ssh.logged_in(target, wanted.files, key, password))
            remote = RemoteNode(peer, wanted.command)
            with self._step(Step.PREVIEW):
                has = await remote.look(own["version"])
                await self._confirm(has)
            joined = await self._pair(remote, has)
        with self._step(Step.SETTLE):
            in_step = await until_in_step(self._control)
        self._observer.step(Step.SETTLE, State.DONE, "" if in_step else "not in step yet")
        with self._step(Step.CHECKS):
            checks = await self._control.call("cluster.check")
        return {"node": own["node"], "peer": has.node, "kept": joined.get("kept"), "checks": checks}

    async def _believe(self, fingerprint: str) -> bool:
        text = f"The host key of {self._wanted.peer} is unknown: {fingerprint}. Is that its key?"
        return await self._observer.ask(Question(Kind.HOST_KEY, text, fingerprint))

    async def _confirm(self, has: Found) -> None:
        removed = removal(has.node, has.farms, has.vips, has.accounts)
        text = f"{has.node} has xlb {has.version}"
        if not removed:
            self._observer.step(Step.PREVIEW, State.RUNNING, f"{text}, no farms and no VIPs")
            return
        question = Question(Kind.REPLACE, f"{removed}. Continue?", farms=has.farms, vips=has.vips, accounts=has.accounts)
        if not await self._observer.ask(question):
            raise XlbError(f"not confirmed: {removed}; nothing was changed", Code.CANCELLED)
        self._observer.step(Step.PREVIEW, State.RUNNING, f"{text}; {removed}")

    async def _pair(self, remote: RemoteNode, has: Found) -> dict[str, Any]:
        try:
            with self._step(Step.KEYS):
                addresses = {"local": self._wanted.local, "peer": self._wanted.peer}
                made = await _to_its_end(self._control.call("cluster.create", addresses))
            with self._step(Step.JOIN, f"{has.node} is joining the pair"):
                return await self._join(remote, has.node, made["token"])
        finally:
            await _to_its_end(self._revoke())

    async def _join(self, remote: RemoteNode, name: str, token: str) -> dict[str, Any]:
        def progress(line: str) -> None:
            self._observer.step(Step.JOIN, State.RUNNING, f"{name}: {line}")

        joining = asyncio.ensure_future(remote.join(token, progress))
        try:
            return await asyncio.shield(joining)
        except (asyncio.CancelledError, XlbError) as error:
            # The peer may join all the same until the token is void; then its outcome is awaited.
            await _to_its_end(self._revoke())
            await asyncio.wait((joining,), timeout=CANCELLED_JOIN_S)
            joining.cancel()
            outcome: object = (await asyncio.gather(joining, return_exceptions=True))[0]
            if isinstance(outcome, dict):
                joined: dict[str, Any] = outcome
            elif await self._is_paired() and _lost(outcome):
                joined = {}
            elif isinstance(error, asyncio.CancelledError) and isinstance(outcome, XlbError) and await self._is_paired():
                raise outcome from None  # this node has the pair, and the peer did not hear so: the message has the remedy
            else:
                raise
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            task.uncancel()
            self._observer.note("too late to cancel: the nodes are a pair; xlbctl cluster destroy ends it")
        return joined

    async def _is_paired(self) -> bool:
        status = await self._control.call("cluster.status")
        return bool(status["peer"])

    async def _revoke(self) -> None:
        """No effect after the peer has joined."""
        try:
            await self._control.call("cluster.cancel")
        except XlbError as error:
            self._observer.note(f"cannot revoke the join token, which expires by itself: {error}")

    @contextlib.contextmanager
    def _step(self, step: Step, text: str = "") -> Iterator[None]:
        self._observer.step(step, State.RUNNING, text)
        try:
            yield
        except XlbError as error:
            self._observer.step(step, State.FAILED, str(error))
            raise
        except BaseException:
            self._observer.step(step, State.FAILED, "")
            raise
        self._observer.step(step, State.DONE, "")


async def _to_its_end(work: Awaitable[Any]) -> Any:
    """Its result; a cancel is raised once it has ended, so that a later request does not overtake it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


def _lost(outcome: object) -> bool:
    """Whether only the login was lost, or given up, during a join."""
    return isinstance(outcome, asyncio.CancelledError) or (isinstance(outcome, XlbError) and outcome.code == Code.SSH_FAILED)
