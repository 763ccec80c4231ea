"""Logging of this process as it was, after a test that sets it up as the daemon does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ctl.runtime.logs import OURS


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Put back handlers and levels at the end."""
    root = logging.getLogger()
    before = (root.level, root.handlers[:], {name: logging.getLogger(name).level for name in OURS})
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        for name, level in before[2].items():
            logging.getLogger(name).setLevel(level)
