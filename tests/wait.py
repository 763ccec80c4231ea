"""Waits for conditions: the only module of tests and benches that polls. `tests/unit/test_waiting.py` enforces it.

A test never lets a fixed time pass and hopes. It names the condition it needs; when the condition does not come true in time,
the failure names what was awaited and the last value seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 20.0  # bounds a test that hangs; no measure of speed


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S, every_s: float = 0.02) -> T:
    """Return the first truthy value of `condition`, called every `every_s`: for conditions in other threads or processes.

    Raises AssertionError naming `what` and the last value after `timeout_s`; what `condition` raises passes through.
    """
    for value in _values(condition, what, timeout_s):
        if value:
            return value
        time.sleep(every_s)
    raise AssertionError("unreachable: _values ends by raising")


async def wait_until_async(condition: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S, every_s: float = 0.002) -> T:
    """As `wait_until`, while the event loop runs. With every_s=0 the condition is checked on every turn of the loop."""
    for value in _values(condition, what, timeout_s):
        if value:
            return value
        await asyncio.sleep(every_s)
    raise AssertionError("unreachable: _values ends by raising")


def _values(condition: Callable[[], T], what: str, timeout_s: float) -> Iterator[T]:
    """The condition's values, at least one, until `timeout_s` has passed; then AssertionError."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        yield value
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"{what}: not within {timeout_s:g} s; last value: {value!r}")
