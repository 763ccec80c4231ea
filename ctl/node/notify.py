"""Runs the command of `[notify]` for each event: the event as JSON on its standard input, as the user of the node file.

Decides order, rate and bounds: one after the other in the order of the events, each for TIMEOUT_MS at most, RATE a second with
a burst; what comes while QUEUED events wait is dropped and counted in the next one ("lost"). How a command is run, bounded and
killed with all it started is that of checks (`ctl.runtime.commands`). A command that fails harms nothing and is reported once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from typing import Any

from ctl.events.catalogue import NOTIFY_FAILED, NOTIFY_WORKS
from ctl.runtime.commands import CommandFailed, Commands
from ctl.runtime.event_hub import Report

QUEUED = 200
TIMEOUT_MS = 5000
RATE, BURST = 10, 20
"""Commands per second, and how many more at once after a pause."""
LAST_S = 2.0
"""How long a daemon that stops waits for the events that are left."""
OWN = ("notify.failed", "notify.works")

log = logging.getLogger(__name__)


class Notify:
    """`put` on the loop; `run` as a task; `finish` once, before the task is cancelled."""

    def __init__(self, command: tuple[str, ...], commands: Commands, report: Report) -> None:
        self._command, self._commands, self._report = command, commands, report
        self._waiting: deque[dict[str, Any]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._lost = 0  # since the last event that the command got
        self._lost_in_failure = 0
        self._failing = False
        self._start_s = 0.0  # when the next command may start, at a rate without a burst

    def put(self, event: dict[str, Any]) -> None:
        """An event happened."""
        if event["event"] in OWN:
            return
        if len(self._waiting) >= QUEUED:
            self._lost += 1
            self._lost_in_failure += 1
            self._fail(f"it is too slow: {QUEUED} events wait, and more are dropped")
            return
        self._waiting.append(event)
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            while self._waiting:
                await self._pause()
                lost, self._lost = self._lost, 0
                await self._notify(self._waiting.popleft() | {"lost": lost})
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def finish(self) -> None:
        """Wait for a moment until the command has got the last events; then no other is started."""
        try:
            async with asyncio.timeout(LAST_S):
                await self._idle.wait()
        except TimeoutError:
            self._fail(f"{len(self._waiting)} events were not passed on before xlbd stopped")
        await self._commands.close()

    async def _pause(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._start_s = max(self._start_s, now_s - BURST / RATE) + 1 / RATE
        if self._start_s > now_s:
            await asyncio.sleep(self._start_s - now_s)

    async def _notify(self, event: dict[str, Any]) -> None:
        environment = {"XLB_EVENT": str(event["event"]), "XLB_SEVERITY": str(event["severity"]), "XLB_NODE": str(event["node"])}
        try:
            await self._commands.run(self._command, environment, TIMEOUT_MS, json.dumps(event, ensure_ascii=False) + "\n")
        except CommandFailed as failure:
            self._fail(str(failure))
            return
        if self._failing and not self._lost:
            lost, self._lost_in_failure, self._failing = self._lost_in_failure, 0, False
            self._report(log, NOTIFY_WORKS(f"notify.command works again; {lost} events were not passed to it", lost=lost))

    def _fail(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            self._report(log, NOTIFY_FAILED(f"notify.command failed, further failures are not logged: {why}", why=why))
