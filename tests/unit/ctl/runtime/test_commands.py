"""Commands of the operator in their real helper process: result, bounds, and that nothing they start is left."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ctl.config.model import CheckKind, HealthCheck
from ctl.health.check_machine import Probe
from ctl.health.probes.probe import ProbeFailed
from ctl.health.probes.runner import own_probe
from ctl.runtime.commands import CommandFailed, Commands
from tests.wait import wait_until_async

USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
ENVIRONMENT = {"XLB_FARM": "web; rm -rf /", "XLB_ADDRESS": "2001:db8::1", "XLB_PORT": "80"}


@asynccontextmanager
async def helper(user: str = USER) -> AsyncIterator[Commands]:
    commands = Commands(user)
    try:
        yield commands
    finally:
        await commands.close()


async def failure_of(commands: Commands, *command: str, timeout_ms: int = 20_000) -> str:
    try:
        await commands.run(command, ENVIRONMENT, timeout_ms)
    except CommandFailed as failure:
        return str(failure)
    return ""


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def is_running(mark: str) -> bool:
    """Whether any process has `mark` in its command line."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in entry.read_bytes():
                return True
        except OSError:
            continue
    return False


def test_results() -> None:
    """All in one helper: starting it takes longer than they do."""
    cases = (
        (("/bin/true",), ""),
        (("/bin/false",), "/bin/false exited with 1"),
        (shell("echo; echo LDAP is down; echo more; exit 2"), "/bin/sh exited with 2: LDAP is down"),
        (shell("printf 'a\\033[31mb' >&2; exit 3"), "/bin/sh exited with 3: a?[31mb"),
        (shell("kill -9 $$"), "/bin/sh was killed by signal 9"),
        (("/no/such/program",), "cannot start /no/such/program: no such file or directory"),
        (("/etc/passwd",), "cannot start /etc/passwd: permission denied"),
        (shell("exec head -c 200000 /dev/zero"), "/bin/sh wrote more than 65536 bytes"),
        (shell('test "$XLB_FARM $XLB_ADDRESS $XLB_PORT" = "web; rm -rf / 2001:db8::1 80"'), ""),
        (("/usr/bin/test", "$XLB_PORT", "=", "$XLB_PORT"), ""),  # no shell: nothing is expanded
        (shell(f'test "$(id -un)" = {USER}'), ""),
        (shell("test $(ulimit -c) = 0 && test $(ulimit -n) = 256"), ""),
        (shell('test "$(env | cut -d= -f1 | sort | tr "\\n" " ")" = "LANG PATH PWD XLB_ADDRESS XLB_FARM XLB_PORT "'), ""),
        (shell("read line"), "/bin/sh exited with 1"),
    )

    async def run() -> list[str]:
        async with helper() as commands:
            return await asyncio.gather(*(failure_of(commands, *command) for command, _ in cases))

    assert asyncio.run(run()) == [expected for _, expected in cases]


@pytest.mark.parametrize(
    "script",
    [
        "sleep {0}",
        "sleep {0} & wait",
        "setsid sleep {0} & sleep {0}",
        "setsid sh -c 'sleep {0} & sleep {0}' & exit 0",
        "(setsid sh -c '(sleep {0} &)' &) ; sleep {0}",
        "trap '' TERM HUP INT; sleep {0} & sleep {0}",
    ],
)
def test_a_command_leaves_nothing_behind(script: str) -> None:
    """Children, also those that left its session or whose parent has ended, are killed at its end or timeout."""
    mark = f"{100_000 + os.getpid()}"

    async def run() -> None:
        async with helper() as commands:
            assert await failure_of(commands, "/bin/true") == ""
            failure = await failure_of(commands, *shell(script.format(mark)), timeout_ms=300)
            assert failure == ("" if "exit 0" in script else "/bin/sh did not end within 300 ms")
            assert not is_running(mark)

    asyncio.run(run())


def test_hanging_commands_do_not_delay_others() -> None:
    async def run() -> None:
        async with helper() as commands:
            hanging = [asyncio.create_task(failure_of(commands, "/bin/sleep", "60", timeout_ms=60_000)) for _ in range(20)]
            assert await failure_of(commands, "/bin/true") == ""
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)

    asyncio.run(run())


def test_the_commands_end_with_the_daemon_and_with_a_cancelled_check() -> None:
    mark = f"{200_000 + os.getpid()}"

    async def run() -> None:
        async with helper() as commands:
            for _ in range(2):  # the second helper replaces one that was closed
                check = asyncio.create_task(failure_of(commands, "/bin/sleep", mark, timeout_ms=60_000))
                await wait_until_async(lambda: is_running(mark), "the command runs")
                check.cancel()
                await wait_until_async(lambda: not is_running(mark), "the cancelled command is killed")
            check = asyncio.create_task(failure_of(commands, "/bin/sleep", mark, timeout_ms=60_000))
            await wait_until_async(lambda: is_running(mark), "the command runs")
            await commands.close()
            await wait_until_async(lambda: not is_running(mark), "the command is killed with its helper")
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)

    asyncio.run(run())


def test_a_helper_that_ends_says_nothing_about_the_backend() -> None:
    async def run() -> None:
        async with helper() as commands:
            check = asyncio.create_task(failure_of(commands, "/bin/sleep", "1.5"))
            assert await failure_of(commands, "/bin/true") == ""
            assert commands._helper is not None
            os.kill(commands._helper._process.pid, signal.SIGKILL)
            assert await check == ""

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize(
    ("user", "message"), [("no-such-user", "there is no user no-such-user; create it"), ("root", "commands do not run as root")]
)
def test_the_user_must_exist_and_not_be_root(user: str, message: str) -> None:
    async def run() -> str:
        async with helper(user) as commands:
            return await failure_of(commands, "/bin/true")

    assert asyncio.run(run()).startswith(message)


def test_a_check_passes_the_backend_in_the_environment_only() -> None:
    check = HealthCheck(CheckKind.COMMAND, command=shell('echo "$# $XLB_FARM $XLB_ADDRESS $XLB_PORT"; exit 1'))

    async def run() -> str:
        async with helper() as commands:
            try:
                await own_probe(None, commands)(Probe(1, 1, "web", "192.0.2.1", 80, check))  # type: ignore[arg-type]
            except ProbeFailed as failure:
                return str(failure)
            return ""

    assert asyncio.run(run()) == "/bin/sh exited with 1: 0 web 192.0.2.1 80"
