"""Takes the events of a node in, and passes each on: to the log, to the history, to readers that wait, to listeners.

Decides the order of these and that no reader can hold up the one who reports: a reader is woken, and asks for what is new in
its own turn. Must not know what an event means.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ctl.events.catalogue import Event, Severity
from ctl.events.history import Batch, Entry, History
from ctl.events.tally import Tally

Report = Callable[[logging.Logger, Event], None]
"""Takes an event in; the logger gets its line."""

COALESCE_S = 0.01
"""Time after an event when readers are woken: a burst is one answer."""
RATES_WANTED_S = 3.0

_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}


def log_only(log: logging.Logger, event: Event) -> None:
    """Report to the log alone: its line, and the event for `ctl.runtime.logs`."""
    log.log(_LEVELS[event.severity], "%s", event.message, extra={"event": event})


def view(entry: Entry, node: str) -> dict[str, Any]:
    """An event as programs read it: `xlbctl watch -o json`, the command of `[notify]`. One that is not kept has no number."""
    event = entry.event
    return {
        "number": None if event.type.transient else entry.number,
        "time": datetime.fromtimestamp(entry.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "node": node,
        "event": event.name,
        "severity": event.severity.value,
        "message": event.message,
        "fields": dict(event.fields),
    }


class EventHub:
    """Create on a running loop. `report` in any thread, everything else on the loop."""

    def __init__(self, node: str, now_s: Callable[[], float] = time.time) -> None:
        self.node = node
        self.incarnation = secrets.token_hex(8)
        self._now_s = now_s
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.tally = Tally()
        self._history = History()
        self._rates: Entry | None = None
        self._rates_asked_s = float("-inf")
        self._news = asyncio.Event()
        self._waking: asyncio.TimerHandle | None = None
        self._listeners: list[Callable[[dict[str, Any]], None]] = []

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Have it called with each event from here on, as programs read it."""
        self._listeners.append(listener)

    def report(self, log: logging.Logger, event: Event) -> None:
        """An event happened."""
        if not event.type.transient:
            log_only(log, event)
        if threading.get_ident() == self._thread:
            self._take(event)
        else:
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        if event.type.transient:
            self._rates = Entry((self._rates.number if self._rates else 0) + 1, self._now_s(), event)
        else:
            self.tally.take(event)
            entry = self._history.add(event, self._now_s())
            for listener in self._listeners:
                listener(view(entry, self.node))
        if self._waking is None:
            self._waking = self._loop.call_later(COALESCE_S, self.wake)

    def wake(self) -> None:
        """Have the readers that wait look for news now."""
        self._waking = None
        self._news.set()
        self._news.clear()

    @property
    def rates_wanted(self) -> bool:
        """Whether a reader has asked for rates lately."""
        return self._loop.time() - self._rates_asked_s < RATES_WANTED_S

    def newest(self, count: int) -> dict[str, Any]:
        """The newest events, for a reader that begins."""
        return self._answer(self._history.newest(count))

    async def after(self, number: int, rates_after: int | None, wait_s: float) -> dict[str, Any]:
        """What is new after the event `number` and the rates `rates_after` (None: no rates), or nothing after `wait_s`."""
        if rates_after is not None:
            self._rates_asked_s = self._loop.time()
        deadline_s = self._loop.time() + wait_s
        while True:
            batch = self._history.after(number)
            rates = self._rates if rates_after is not None else None
            if rates is not None and rates_after is not None and rates.number == rates_after:
                rates = None
            left_s = deadline_s - self._loop.time()
            if batch.entries or batch.lost or rates is not None or left_s <= 0:
                return self._answer(batch, rates)
            try:
                async with asyncio.timeout(left_s):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _answer(self, batch: Batch, rates: Entry | None = None) -> dict[str, Any]:
        return {
            "incarnation": self.incarnation,
            "node": self.node,
            "events": [view(each, self.node) for each in batch.entries],
            "lost": batch.lost,
            "last": batch.last,
            "rates": view(rates, self.node) if rates is not None else None,
            "rates_last": self._rates.number if self._rates is not None else 0,
        }
