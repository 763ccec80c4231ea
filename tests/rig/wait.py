"""Waiting for a condition with a deadline: the only way a test lets time pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE = threading.Event()  # never set


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = 10, every_s: float = 0.02) -> T:
    """Return the first truthy value of `condition`; raises AssertionError naming `what` after `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    while True:
        if value := condition():
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {deadline_s} s")
        _PAUSE.wait(every_s)
