"""The process that runs commands of the operator: without privileges, each command bounded and killed with all it started.

Reads one JSON object per line from standard input: {"id", "command", "environment", "timeout_ms", "input"}, or {"id"} alone to
kill that command; answers {"id", "error"}, empty for success. Ends, and kills what runs, when its input closes. Process trees:
a command is a session; what leaves the session becomes a child of this process (PR_SET_CHILD_SUBREAPER, prctl(2)) when its
parent ends, and a child that is not a command is killed.

Usage: python -m ctl.runtime.command_helper USER SETTING, the key of the node file that names the user
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import pwd
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_OUTPUT = 65536
MAX_INPUT = 65536
"""Bytes that a command gets on standard input: they fit in a pipe, so that nothing waits for the command to read them."""
MAX_PROCESSES = 512
"""Of the user, all commands together (RLIMIT_NPROC)."""
MAX_FILES = 256
MAX_MESSAGE = 120
SWEEPS = 200
SWEEP_S = 0.01

_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C"}


class Helper:
    """problem: why no command can run; empty: they can."""

    def __init__(self, problem: str) -> None:
        self._problem = problem
        self._commands: dict[int, asyncio.Task[None]] = {}
        self._sessions: set[int] = set()  # process ids of running commands, which are their session ids

    async def serve(self) -> None:
        """Until the input closes."""
        reader = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            request = json.loads(line)
            number = request["id"]
            if "command" in request:
                task = self._commands[number] = loop.create_task(self._answer(number, request))
                task.add_done_callback(lambda _, number=number: self._commands.pop(number, None))  # type: ignore[misc]
            elif number in self._commands:
                self._commands[number].cancel()
        running = list(self._commands.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _answer(self, number: int, request: Mapping[str, Any]) -> None:
        error = self._problem or await self._run(
            request["command"], request["environment"], request["timeout_ms"], request["input"]
        )
        os.write(1, json.dumps({"id": number, "error": error}).encode() + b"\n")

    async def _run(self, command: list[str], environment: Mapping[str, str], timeout_ms: int, given: str) -> str:
        """Why it failed; empty: it did not."""
        reading_end, writing_end = os.pipe()
        stdin = _filled_pipe(given.encode()[:MAX_INPUT])
        try:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=writing_end,
                stderr=writing_end,
                env=_ENVIRONMENT | dict(environment),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(reading_end)
            return f"cannot start {command[0]}: {(error.strerror or str(error)).lower()}"
        finally:
            os.close(writing_end)
            os.close(stdin)
        self._sessions.add(process.pid)
        output = bytearray()
        loop = asyncio.get_running_loop()
        reading, exiting = loop.create_task(_read(reading_end, output)), loop.create_task(_exit(process.pid))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await asyncio.wait((reading, exiting), return_when=asyncio.FIRST_COMPLETED)
                if len(output) <= MAX_OUTPUT:
                    await exiting
        except TimeoutError:
            return f"{command[0]} did not end within {timeout_ms} ms{_first_line(output)}"
        finally:
            ended_itself = exiting.done()
            exiting.cancel()
            await asyncio.shield(self._end(process, reading))
        if not ended_itself or len(output) > MAX_OUTPUT:
            return f"{command[0]} wrote more than {MAX_OUTPUT} bytes"
        code = process.returncode
        if code < 0:
            return f"{command[0]} was killed by signal {-code}{_first_line(output)}"
        return f"{command[0]} exited with {code}{_first_line(output)}" if code else ""

    async def _end(self, process: subprocess.Popen[bytes], reading: asyncio.Task[None]) -> None:
        """Kill what is left of a command, and read the rest of its output."""
        for _ in range(SWEEPS):
            left = self._left(process.pid)
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                if pid != process.pid:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
            if process.poll() is not None and not left:
                break
            await asyncio.sleep(SWEEP_S)
        self._sessions.discard(process.pid)
        await asyncio.wait((reading,), timeout=SWEEP_S * 10)
        reading.cancel()

    def _left(self, session: int) -> list[int]:
        """Processes of a command's session, and children of this process that no command is."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            pid, state, parent, of = int(entry.name), fields[0], int(fields[1]), int(fields[3])
            orphan = parent == os.getpid() and pid not in self._sessions
            if orphan or (of == session and state != "Z"):
                found.append(pid)
        return found


def _filled_pipe(data: bytes) -> int:
    """A descriptor from which these bytes can be read, then the end."""
    reading_end, writing_end = os.pipe()
    os.set_blocking(writing_end, False)
    with contextlib.suppress(BlockingIOError):  # a user with very many pipes gets small ones
        os.write(writing_end, data)
    os.close(writing_end)
    return reading_end


async def _exit(pid: int) -> None:
    """Until this process ends; it is not reaped."""
    descriptor = os.pidfd_open(pid)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _read(descriptor: int, output: bytearray) -> None:
    """Until the end, or more than MAX_OUTPUT."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        while len(output) <= MAX_OUTPUT and (data := await reader.read(4096)):
            output += data
    finally:
        transport.close()


def _first_line(output: bytearray) -> str:
    line = bytes(output[:4096]).decode(errors="replace").strip().partition("\n")[0][:MAX_MESSAGE]
    return ": " + "".join(each if each.isprintable() else "?" for each in line) if line else ""


def prepare(user: str, setting: str) -> str:
    """Give up every privilege; return why that is not possible, or empty."""
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_NPROC, MAX_PROCESSES),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_RTPRIO, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        account = pwd.getpwnam(user)
        if account.pw_uid == 0:
            return f"commands do not run as {user}; set {setting} to an account without privileges"
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
            os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    except KeyError:
        return f"there is no user {user}; create it, or set {setting} in the node file"
    except OSError as error:
        return f"cannot become user {user}: {(error.strerror or '').lower()}"
    return ""


if __name__ == "__main__":
    asyncio.run(Helper(prepare(*sys.argv[1:])).serve())
