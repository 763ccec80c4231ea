"""Results of checks as they travel from the active node to its backup, and the order in which they are complete.

A stream is a snapshot of all backends followed by what changes, in numbered messages; each is sent when the one before it is
acknowledged. A receiver that misses one, or has just started, asks for a new stream. An empty message every SAY_MS shows that
the sender still checks. Times travel as ages in ms, because the nodes' clocks differ. Pure: no I/O, no clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BATCH = 256
"""Results per message."""
SAY_MS = 1000
FOLLOW_MS = 5000
"""Without a message for this time, a backup asks the backends itself."""
MAX_ERROR = 200
"""Maximum length of an error, in characters."""
MAX_AGE_MS = 1 << 53


class State(enum.Enum):
    """What the checks have found."""

    NEW = "new"  # nothing yet
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of a backend. Address and port: an id that another server had before is a new one's."""

    backend_id: int
    address: str
    port: int
    state: State
    changed_ms: int | None  # when it last went up or down
    last_error: str
    last_error_ms: int | None


def packed(result: Result, now_ms: int) -> list[Any]:
    """A result as plain values; `unpacked` of it is the result, with times on the receiver's clock."""
    ages = [None if then is None else max(0, now_ms - then) for then in (result.changed_ms, result.last_error_ms)]
    return [result.backend_id, result.address, result.port, result.state.value, ages[0], result.last_error, ages[1]]


def unpacked(values: object, now_ms: int) -> Result:
    """Raises ValueError for anything else than `packed` makes."""
    if not isinstance(values, list) or len(values) < 7:
        raise ValueError("expected a result")
    backend_id, address, port, state, changed, error, error_age = values[:7]  # a later version may append
    if not (isinstance(backend_id, int) and isinstance(address, str) and isinstance(port, int) and isinstance(error, str)):
        raise ValueError("expected a result")
    times = [None if age is None else now_ms - _age(age) for age in (changed, error_age)]
    return Result(backend_id, address, port, State(state), times[0], error[:MAX_ERROR], times[1])


def _age(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_AGE_MS:
        raise ValueError("expected an age in ms")
    return value


class Outbox:
    """What the active node sends. token: names the next stream, differently each time."""

    def __init__(self) -> None:
        self._stream = ""
        self._number = 0
        self._snapshot: list[int] = []  # ids still to send
        self._said_ms = 0

    @property
    def is_open(self) -> bool:
        """Whether a stream has begun."""
        return bool(self._stream)

    def begin(self, token: str, all_ids: Iterable[int]) -> None:
        """Start a stream with a snapshot of these backends."""
        self._stream, self._number, self._snapshot = token, 0, list(all_ids)

    def restart(self) -> None:
        """The receiver lacks something: the next message begins another stream."""
        self._stream = ""

    def is_due(self, has_news: bool, now_ms: int) -> bool:
        """Whether to send now."""
        return bool(self._snapshot) or has_news or not self._number or now_ms >= self._said_ms + SAY_MS

    def take(self, news: Iterable[int]) -> list[int]:
        """The ids of the next message; `news` are what changed, at most BATCH."""
        batch, self._snapshot = self._snapshot[:BATCH], self._snapshot[BATCH:]
        return batch or list(news)

    def message(self, results: Iterable[Result], now_ms: int) -> dict[str, Any]:
        """The next message."""
        self._number, self._said_ms = self._number + 1, now_ms
        return {
            "stream": self._stream,
            "number": self._number,
            "complete": not self._snapshot,
            "results": [packed(each, now_ms) for each in results],
        }

    @property
    def sends_snapshot(self) -> bool:
        """Whether the next message continues the snapshot."""
        return bool(self._snapshot)


class Inbox:
    """What the backup has received."""

    def __init__(self) -> None:
        self._stream, self._number = "", 0
        self._complete = False
        self._heard_ms = 0

    def receive(self, message: Mapping[str, Any], now_ms: int) -> list[Result] | None:
        """The results of the next message; None: one is missing, ask for another stream. Raises ValueError."""
        stream, number, results = message.get("stream"), message.get("number"), message.get("results")
        if not isinstance(stream, str) or not stream or not isinstance(number, int) or not isinstance(results, list):
            raise ValueError("expected results of checks")
        if number != 1 and (stream, number) != (self._stream, self._number + 1):
            self.forget()
            return None
        found = [unpacked(each, now_ms) for each in results]
        if number == 1:
            self._complete = False
        self._stream, self._number, self._heard_ms = stream, number, now_ms
        self._complete = self._complete or message.get("complete") is True
        return found

    def forget(self) -> None:
        """This node has results of its own now."""
        self._stream, self._number, self._complete = "", 0, False

    def is_current(self, now_ms: int) -> bool:
        """Whether the active node's results are complete here, and still arrive."""
        return self._complete and now_ms < self._heard_ms + FOLLOW_MS
