"""Ctrl-C and single keys as events, for commands that repeat until the user stops them.

Python drops a KeyboardInterrupt that is raised in a destructor, and the command would continue. Decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

INTERRUPT = b"\x03"
"""What waiting returns once Ctrl-C is or was pressed, or the terminal is closed."""
_MOST_BYTES = 256

Wait = Callable[[float], bytes | None]
"""Waits some seconds; returns the bytes of keys pressed, INTERRUPT, or None when the time is over."""


@contextlib.contextmanager
def interruptible(keys: int | None = None) -> Iterator[Wait]:
    """Yield a function that waits. keys: descriptor of a terminal in cbreak mode whose keys end the waiting."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def note(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier signals
            os.write(writer, b"x")

    def wait(seconds: float) -> bytes | None:
        watched = [reader] if keys is None else [reader, keys]
        deadline = time.monotonic() + seconds
        ready, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
        if reader in ready:
            return INTERRUPT
        return (os.read(ready[0], _MOST_BYTES) or INTERRUPT) if ready else None

    before = signal.signal(signal.SIGINT, note)
    try:
        yield wait
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def keyboard() -> Iterator[Wait]:
    """As `interruptible`, with the keys of the terminal on standard input, which is as before at the end."""
    descriptor = sys.stdin.fileno()
    settings = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        with interruptible(descriptor) as wait:
            yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
