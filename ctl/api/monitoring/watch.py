"""The command `watch`: the events of this node after the last one that the client has, or the newest for one that begins.

Decides what a client may ask for. A request waits on the server's side for an event, and is no request in progress meanwhile.
"""

from __future__ import annotations

from typing import Any

from ctl.api.commands.dispatcher import Arguments, Dispatcher, Result
from ctl.api.server import Later
from ctl.errors import InvalidInput
from ctl.events.history import MAX_BATCH
from ctl.runtime.event_hub import EventHub

MAX_WAIT_MS = 10_000
_MAX_NUMBER = 2**53


class WatchCommand:
    """incarnation: of the last answer; another one's numbers mean nothing here, and every event that is kept is new."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub

    def register(self, dispatcher: Dispatcher) -> None:
        dispatcher.register("watch", self.watch, ("incarnation", "after", "rates_after", "last", "wait_ms"), at_once=True)

    async def watch(self, arguments: Arguments) -> Result:
        """With `after` what is new, or nothing after `wait_ms`; without it the `last` events, at once."""
        last = _number(arguments, "last", MAX_BATCH, default=10)
        wait_ms = _number(arguments, "wait_ms", MAX_WAIT_MS, default=0)
        after = _number(arguments, "after", _MAX_NUMBER, default=-1)
        rates_after = _number(arguments, "rates_after", _MAX_NUMBER, default=-1)
        incarnation = arguments.get("incarnation", self._hub.incarnation)
        if not isinstance(incarnation, str):
            raise InvalidInput("expected a string, as in the last answer", "incarnation")
        if after < 0:
            return self._hub.newest(last)
        if incarnation != self._hub.incarnation:
            after = 0
        return Later(self._hub.after(after, None if rates_after < 0 else rates_after, wait_ms / 1000))


def _number(arguments: dict[str, Any], name: str, most: int, default: int) -> int:
    if name not in arguments:
        return default
    value = arguments[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidInput(f"expected an integer from 0 to {most}, got {str(value)[:40]!r}", name)
    return value
