"""Waits for conditions: the only module of tests and benches that polls. `tests/unit/test_waiting.py` enforces it.

A test never lets a fixed time pass and hopes. It names the condition it needs; when the condition does not come true in time,
the failure names what was awaited and the last value seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 20.0
"""Bounds a test that hangs; no measure of speed. Time in which the machine did not let the test run does not count."""


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S, every_s: float = 0.02) -> T:
    """Return the first truthy value of `condition`, called every `every_s`: for conditions in other threads or processes.

    Raises AssertionError naming `what` and the last value after `timeout_s`; what `condition` raises passes through.
    """
    limit = _Limit(timeout_s)
    for value in _values(condition, what, limit):
        if value:
            return value
        with limit.pause(every_s):
            time.sleep(every_s)
    raise AssertionError("unreachable: _values ends by raising")


async def wait_until_async(condition: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S, every_s: float = 0.002) -> T:
    """As `wait_until`, while the event loop runs. With every_s=0 the condition is checked on every turn of the loop."""
    limit = _Limit(timeout_s)
    for value in _values(condition, what, limit):
        if value:
            return value
        await asyncio.sleep(every_s)
    raise AssertionError("unreachable: _values ends by raising")


class _Limit:
    """When a wait has taken too long."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline_s = time.monotonic() + timeout_s

    @contextlib.contextmanager
    def pause(self, wanted_s: float) -> Iterator[None]:
        """Around a pause of `wanted_s`: what it takes longer, because others have the processors, is added to the limit."""
        began_s = time.monotonic()
        yield
        self.deadline_s += max(0.0, time.monotonic() - began_s - wanted_s)


def _values(condition: Callable[[], T], what: str, limit: _Limit) -> Iterator[T]:
    """The condition's values, at least one, until the limit; then AssertionError."""
    while True:
        value = condition()
        yield value
        if time.monotonic() >= limit.deadline_s:
            raise AssertionError(f"{what}: not within {limit.timeout_s:g} s; last value: {value!r}")


def processor_share(measure_s: float = 0.4) -> float:
    """The share of a processor that the machine gives a process that wants it all: a measure of how slow or busy it is."""
    began_s, used_s = time.monotonic(), time.process_time()
    while time.monotonic() < began_s + measure_s:
        pass
    return (time.process_time() - used_s) / (time.monotonic() - began_s)
