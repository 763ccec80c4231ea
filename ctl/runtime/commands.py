"""Runs commands of the operator through one helper process, `ctl.runtime.command_helper`, which is not privileged.

The daemon starts the helper when the first command is due and again when it has ended. It never forks for a command itself,
and never signals one: the helper ends, with all commands, when its input closes. Does I/O only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

GRACE_S = 2.0
"""How long after its timeout a command may take to be killed."""
MAX_LINE = 65536

log = logging.getLogger(__name__)


class CommandFailed(Exception):
    """The command did not succeed; the message is short."""


class Commands:
    """user: the account that runs commands. Create on any thread, use on the loop; `close` once."""

    def __init__(self, user: str, setting: str = "checks.command_user") -> None:
        """setting: the key of the node file that names the user, for messages."""
        self._user, self._setting = user, setting
        self._helper: _Helper | None = None
        self._starting = asyncio.Lock()

    async def run(self, command: tuple[str, ...], environment: Mapping[str, str], timeout_ms: int, given: str = "") -> None:
        """Run to the end. Raises CommandFailed. Cancelled: the command is killed.

        given: what it reads from its standard input, at most MAX_INPUT bytes.
        """
        request = {"command": command, "environment": dict(environment), "timeout_ms": timeout_ms, "input": given}
        for last in (False, True):
            try:
                error = await (await self._running()).ask(request, timeout_ms / 1000 + GRACE_S)
            except ConnectionError:
                if last:
                    raise CommandFailed("the helper process for commands has ended twice") from None
                continue  # what ended the helper is no result for the backend
            if error:
                raise CommandFailed(error)
            return

    async def close(self) -> None:
        """End the helper and the commands that run."""
        if self._helper is not None:
            await self._helper.close()

    async def _running(self) -> _Helper:
        async with self._starting:
            if self._helper is None or self._helper.ended:
                if self._helper is not None:
                    await self._helper.close()
                self._helper = await _Helper.start(self._user, self._setting)
            return self._helper


class _Helper:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._numbers = itertools.count(1)
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="command helper")

    @staticmethod
    async def start(user: str, setting: str) -> _Helper:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ctl.runtime.command_helper", user, setting),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_LINE,
                start_new_session=True,  # signals of a terminal are for the daemon
            )
        except OSError as error:
            raise CommandFailed(f"cannot start the helper process for commands: {error.strerror}") from None
        return _Helper(process)

    @property
    def ended(self) -> bool:
        return self._reading.done()

    async def ask(self, request: Mapping[str, Any], within_s: float) -> str:
        """Why the command failed; empty: it did not. Raises ConnectionError when the helper has ended."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, **request})
            async with asyncio.timeout(within_s):
                error: str = await future
                return error
        except TimeoutError:
            self._send({"id": number})
            return "the helper process for commands did not answer"
        except asyncio.CancelledError:
            self._send({"id": number})  # kill it
            raise
        finally:
            del self._asked[number]

    def _send(self, message: Mapping[str, Any]) -> None:
        stdin = self._process.stdin
        if self.ended or stdin is None or stdin.is_closing():
            raise ConnectionResetError
        stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                answer = json.loads(line)
                waiting = self._asked.get(answer["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(str(answer["error"]))
        except (ValueError, KeyError, TypeError):
            log.error("the helper process for commands sent an unreadable answer; it is started again")
        finally:
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError())

    async def close(self) -> None:
        """Its input is closed, so it kills what runs and ends."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
