"""Ctrl-C as an event, for commands that repeat until the user stops them.

Python drops a KeyboardInterrupt that is raised in a destructor, and the command would continue. Decides nothing.
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
    """Yield a function that waits some seconds and returns True once Ctrl-C is or was pressed.

    keys: descriptor of a terminal in cbreak mode; one of `quit_keys` counts as Ctrl-C.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def note(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier signals
            os.write(writer, b"x")

    def stopped_within(seconds: float) -> bool:
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
        yield stopped_within
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(reader)
        os.close(writer)
