"""Ctrl-C as an event to wait for, for commands that repeat until they are told to stop.

A KeyboardInterrupt can rise in a destructor, where Python prints and drops it; then the command would go on. Decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptible(keys: int | None = None, quit_keys: tuple[bytes, ...] = ()) -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits so many seconds and returns True as soon as Ctrl-C was pressed, now or before.

    keys: descriptor of a terminal that passes on single keys; one of `quit_keys` counts like Ctrl-C.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def note(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # full of earlier ones
            os.write(writer, b"x")

    def told_to_stop_within(seconds: float) -> bool:
        watched = [reader] if keys is None else [reader, keys]
        deadline = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
            if reader in ready or (ready and os.read(ready[0], 1) in quit_keys):
                return True
            if not ready:
                return False

    before = signal.signal(signal.SIGINT, note)
    try:
        yield told_to_stop_within
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(reader)
        os.close(writer)
