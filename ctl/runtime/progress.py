"""What a request is doing while it takes long: its client waits as long as work continues, and shows what it is.

Decides nothing. A handler writes `with working("compiling the program"):` around a step that may take longer than a client
waits; the step must have a bound of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Of one request. `doing`: the long step it is at, for people; empty: none."""

    doing: str = ""


PROGRESS: ContextVar[Progress | None] = ContextVar("progress", default=None)
"""Of the request whose task this is; None outside of a request."""


@contextlib.contextmanager
def working(doing: str) -> Iterator[None]:
    """Show `doing` to the request's client until the end of the block."""
    progress = PROGRESS.get()
    if progress is None:
        yield
        return
    before, progress.doing = progress.doing, doing
    try:
        yield
    finally:
        progress.doing = before
