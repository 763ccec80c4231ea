"""`xlbctl watch`: the events of a node as they happen.

Decides what is shown of them, and that a daemon that cannot be reached is asked again. Which events there are is in
`ctl.events.catalogue`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.output import colour_refused, printable
from ctl.cli.terminal.interrupt import interruptible
from ctl.errors import Code, XlbError
from ctl.events.catalogue import WATCH_INTERRUPTED, WATCH_LOST, WATCH_RESUMED, Event
from ctl.events.history import MAX_BATCH, Entry
from ctl.runtime.event_hub import view

WAIT_MS = 400
"""How long the daemon waits for an event before it answers that there is none: Ctrl-C takes effect within it."""
SILENT_MS = 3000
RETRY_S = 0.5
GONE = (Code.DAEMON_NOT_RUNNING, Code.DAEMON_SILENT)

_COLOURS = {"warning": "yellow", "error": "red"}


@click.command(
    "watch", cls=XlbCommand, examples=["xlbctl watch", "xlbctl watch --last 100 --no-rates", "xlbctl watch -o json | jq ."]
)
@click.option(
    "--last", type=click.IntRange(0, MAX_BATCH), default=10, metavar="N", help="Begin with so many of the events before."
)
@click.option("--rates/--no-rates", default=True, help="Show each second what passes.")
@pass_session
def watch(session: Session, last: int, rates: bool) -> None:
    """Show the node's events as they happen: roles and their reasons, the peer, backends, configuration, faults, rates.

    With -o json each event is one line. The events of this node: in a pair also those of the peer that this node knows of, its
    role, its configuration changes and its results of health checks. A restart of xlbd is shown, and its events follow. Ctrl-C
    ends it.
    """
    session.timeout_ms = SILENT_MS
    show = _JsonLines() if session.json else _Lines()
    reader = Reader(session, last, rates)
    pause_s = 0.0
    try:
        with interruptible() as wait:
            while wait(pause_s) is None:
                for event in reader.next():
                    show.event(event)
                pause_s = RETRY_S if reader.interrupted else 0.0
        show.end()
    except BrokenPipeError:  # the reader of the pipe has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(slots=True)
class Reader:
    """Asks for events and remembers the last one. interrupted: the daemon could not be reached."""

    session: Session
    last: int
    rates: bool
    interrupted: bool = False
    _incarnation: str = ""
    _after: int = 0
    _rates_after: int = 0
    _node: str = field(default="")

    def next(self) -> Iterator[dict[str, Any]]:
        """The next events, none after WAIT_MS. Raises XlbError before the first answer, and what no waiting mends."""
        try:
            answer = self._ask()
        except XlbError as error:
            if not self._incarnation or error.code not in GONE:
                raise
            self.session.close()
            if not self.interrupted:
                self.interrupted = True
                yield self._own(WATCH_INTERRUPTED(f"watch interrupted, waiting for xlbd: {error}", why=str(error)))
            return
        restarted = bool(self._incarnation) and answer["incarnation"] != self._incarnation
        self._incarnation, self._after, self._node = answer["incarnation"], answer["last"], answer["node"]
        if self.interrupted or restarted:
            self.interrupted = False
            text = "xlbd has been restarted; its events from the start on follow" if restarted else "xlbd answers again"
            yield self._own(WATCH_RESUMED(text, restarted=restarted))
        if answer["lost"]:
            lost = answer["lost"]
            yield self._own(WATCH_LOST(f"{lost} events are missing here: they came faster than they were read", lost=lost))
        yield from answer["events"]
        if answer["rates"]:
            self._rates_after = answer["rates_last"]
            yield answer["rates"]

    def _ask(self) -> dict[str, Any]:
        call = self.session.call
        if not self._incarnation:
            return dict(call("watch", last=self.last))
        rates_after = self._rates_after if self.rates else None
        asked = {"incarnation": self._incarnation, "after": self._after, "wait_ms": WAIT_MS, "rates_after": rates_after}
        return dict(call("watch", **asked))

    def _own(self, event: Event) -> dict[str, Any]:
        return view(Entry(0, time.time(), event), self._node)


class _JsonLines:
    """One document per line."""

    def event(self, event: dict[str, Any]) -> None:
        click.echo(json.dumps(event, ensure_ascii=False))

    def end(self) -> None:
        """Nothing is left to write."""


class _Lines:
    """One line per event, with the local time of day; on a terminal the rates stay in the last line."""

    def __init__(self) -> None:
        self._fixed = sys.stdout.isatty()
        self._has_rates = False

    def event(self, event: dict[str, Any]) -> None:
        rates = event["event"] == "rates"
        line = f"{_time_of_day(event['time'])}  {event['severity']:<7}  {event['event']:<20}  {printable(event['message'])}"
        if self._fixed and not colour_refused():
            line = click.style(line, fg=_COLOURS.get(event["severity"]))
        start = "\r\x1b[K" if self._has_rates else ""
        self._has_rates = self._fixed and rates
        click.echo(start + line, nl=not self._has_rates)

    def end(self) -> None:
        if self._has_rates:
            click.echo()


def _time_of_day(text: str) -> str:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S.%f")[:-3]
    return text
