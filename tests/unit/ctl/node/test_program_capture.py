"""Whose capture runs, and how it ends; on an attacher that attaches nothing. tests/net has real ones."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from bpf.dataplane import PlaneError
from ctl.dataplane.kernel.program_capture import ProgramCapture
from ctl.dataplane.kernel.program_features import ProgramFeatures
from ctl.errors import Code, XlbError
from tests.fakes.daemon import FakeAttacher
from tests.fakes.network import FakeNetwork
from tests.refusals import refused
from tests.wait import wait_until_async

Check = Callable[[ProgramCapture, FakeAttacher, int], Awaitable[None]]


@pytest.fixture
def client() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def run(check: Check, pid: int) -> None:
    async def running() -> None:
        attacher = FakeAttacher(FakeNetwork())
        capture = ProgramCapture(ProgramFeatures("lb1", attacher), attacher)
        await check(capture, attacher, pid)
        await capture.stop()
        assert attacher.captures == 0

    asyncio.run(running())


def test_the_end_of_the_client_ends_the_capture(client: subprocess.Popen[bytes]) -> None:
    async def check(capture: ProgramCapture, attacher: FakeAttacher, pid: int) -> None:
        assert await capture.start(pid, "root") == Path("/sys/fs/bpf/xlb-capture")
        client.kill()
        await wait_until_async(lambda: attacher.captures == 0, "the end of the capture")

    run(check, client.pid)


def test_a_second_client_is_refused_and_cannot_end_the_first(client: subprocess.Popen[bytes]) -> None:
    async def check(capture: ProgramCapture, attacher: FakeAttacher, pid: int) -> None:
        await capture.start(pid, "root")
        with refused(Code.CAPTURE_RUNS) as caught:
            await capture.start(pid, "alice")
        assert f"process {pid}" in str(caught.value)
        await capture.end(pid + 1)
        assert attacher.captures == 1
        await capture.end(pid)
        assert attacher.captures == 0
        await capture.start(pid, "alice")

    run(check, client.pid)


def test_what_does_not_compile_leaves_the_place_free(client: subprocess.Popen[bytes]) -> None:
    async def check(capture: ProgramCapture, attacher: FakeAttacher, pid: int) -> None:
        attacher.compiler_fails = "out of memory"
        with refused(Code.KERNEL_REFUSED):
            await capture.start(pid, "root")
        attacher.compiler_fails = ""
        await capture.start(pid, "root")

    run(check, client.pid)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_capture_that_is_not_wanted_any_more_when_it_begins(client: subprocess.Popen[bytes], cancelled: bool) -> None:
    """xlbd stops, or the request is cancelled, while the program is compiled."""

    async def check(capture: ProgramCapture, attacher: FakeAttacher, pid: int) -> None:
        may_end, start = threading.Event(), attacher.start_capture

        def slow() -> Path:
            may_end.wait(20)
            return start()

        attacher.start_capture = slow  # type: ignore[method-assign]
        starting = asyncio.create_task(capture.start(pid, "root"))
        await asyncio.sleep(0)
        if cancelled:
            starting.cancel()
            stopping = asyncio.create_task(asyncio.sleep(0))
        else:
            stopping = asyncio.create_task(capture.stop())
        await asyncio.sleep(0)
        may_end.set()
        await stopping
        with pytest.raises(asyncio.CancelledError if cancelled else XlbError):
            await starting
        assert attacher.captures == 0

    run(check, client.pid)


def test_a_client_that_cannot_be_watched_is_refused() -> None:
    async def check(capture: ProgramCapture, _: FakeAttacher, pid: int) -> None:
        with refused(Code.REFUSED):
            await capture.start(pid, "root")

    run(check, 0)


def test_a_program_that_cannot_be_put_back_is_logged(
    client: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(capture: ProgramCapture, attacher: FakeAttacher, pid: int) -> None:
        await capture.start(pid, "root")

        def fails() -> bool:
            attacher.captures = 0
            raise PlaneError("interface eth0 does not exist")

        monkeypatch.setattr(attacher, "end_capture", fails)
        await capture.end(pid)
        assert "the usual program could not be put back" in caplog.text

    run(check, client.pid)
