"""The operator's program for each event, in the real helper process: order, bounds, and that its failures harm nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ctl.events.catalogue import FARM_DOWN, Event
from ctl.node import notify
from ctl.node.notify import Notify
from ctl.runtime.commands import Commands
from ctl.runtime.event_hub import EventHub
from tests.wait import wait_until_async

USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
log = logging.getLogger("ctl.test")


class Bed:
    def __init__(self, script: str, directory: Path) -> None:
        self.hub = EventHub("lb1")
        self.commands = Commands(USER, "notify.user")
        self.notify = Notify(("/bin/sh", "-c", script, "sh", str(directory)), self.commands, self.hub.report)
        self.hub.listen(self.notify.put)

    def happen(self, *farms: str) -> None:
        for farm in farms:
            self.hub.report(log, FARM_DOWN(f"farm {farm} down; $(id) `id` 'ü'", farm=farm))

    @property
    def reported(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.hub.newest(100)["events"]
        return [event for event in events if event["event"].startswith("notify.")]


@asynccontextmanager
async def bed(script: str, directory: Path) -> AsyncIterator[Bed]:
    made = Bed(script, directory)
    task = asyncio.create_task(made.notify.run())
    try:
        yield made
    finally:
        await made.notify.finish()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that the program's user may write, although the test's own is closed to it."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory.name.startswith(("pytest", "test", "popen")):
            directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
    made = tmp_path / "shared"
    made.mkdir()
    made.chmod(0o777)
    return made


def test_each_event_is_one_document_in_order_as_that_user(shared: Path) -> None:
    script = 'cat >> "$1/events"; echo "$XLB_EVENT $XLB_SEVERITY $XLB_NODE $(id -un)" >> "$1/environment"'

    async def run() -> None:
        async with bed(script, shared) as made:
            made.happen("a", "b", "c")
        assert made.reported == []

    asyncio.run(run())
    events = [json.loads(line) for line in (shared / "events").read_text().splitlines()]
    assert [(each["number"], each["fields"], each["lost"]) for each in events] == [
        (number, {"farm": farm}, 0) for number, farm in enumerate("abc", 1)
    ]
    assert events[0]["message"] == "farm a down; $(id) `id` 'ü'", "no shell has seen it"
    assert (shared / "environment").read_text() == f"farm.down error lb1 {USER}\n" * 3


def test_a_failing_program_is_reported_once_and_its_recovery_once(shared: Path) -> None:
    async def run() -> None:
        async with bed('test -e "$1/works" || { echo no pager; exit 3; }', shared) as made:
            made.happen("a", "b", "c")
            await wait_until_async(lambda: made.notify._idle.is_set(), "three failures")
            assert [event["fields"]["why"] for event in made.reported] == ["/bin/sh exited with 3: no pager"]
            (shared / "works").touch()
            made.happen("d", "e")
            await wait_until_async(lambda: made.notify._idle.is_set(), "two successes")
            assert [event["event"] for event in made.reported] == ["notify.failed", "notify.works"]

    asyncio.run(run())


def test_a_hanging_program_is_killed_and_delays_nothing_else(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_MS", 200)
    monkeypatch.setattr(notify, "QUEUED", 3)
    script = 'case "$(cat)" in *\\"farm\\":\\ \\"a\\"*) sleep 60 & sleep 60;; *) cat /dev/null;; esac; touch "$1/done"'

    async def run() -> None:
        async with bed(script, shared) as made:
            began_s = asyncio.get_running_loop().time()
            made.happen("a")
            await wait_until_async(lambda: not made.notify._waiting, "the first one is started")
            made.happen("b", "c", "d", "e", "f")
            assert asyncio.get_running_loop().time() - began_s < 5
            assert "too slow" in made.reported[0]["fields"]["why"]
            await wait_until_async(lambda: made.notify._idle.is_set(), "the queue is empty")
            works = made.reported[-1]
            assert (works["event"], works["fields"]["lost"]) == ("notify.works", 2)

    asyncio.run(run())


def test_the_rate_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[float] = []

    class Instant:
        async def run(self, *_: Any) -> None:
            started.append(asyncio.get_running_loop().time())

        async def close(self) -> None:
            pass

    async def run() -> None:
        hub = EventHub("lb1")
        made = Notify(("/bin/true",), Instant(), hub.report)  # type: ignore[arg-type]
        hub.listen(made.put)
        task = asyncio.create_task(made.run())
        for _ in range(notify.BURST + 4):
            hub.report(log, event())
        await wait_until_async(lambda: len(started) == notify.BURST + 4, "all")
        task.cancel()

    asyncio.run(run())
    assert started[-1] - started[0] >= 3 / notify.RATE


def event() -> Event:
    return FARM_DOWN("down", farm="web")
