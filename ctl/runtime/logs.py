"""Format of the log lines of xlbd and xlb-web: `LEVEL message` on a terminal, entries with fields for the journal.

Where the journal does not take an entry, the line goes to stderr as `<priority>message`. Decides the format only. Must not know
what is logged. sd-daemon(3) names the priority prefixes, systemd.exec(5) the JOURNAL_STREAM test.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

from ctl.runtime import journal

LEVELS = ("debug", "info", "warning", "error")
OURS = ("ctl", "bpf", "sync")

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class _JournalFormatter(logging.Formatter):
    """One journal entry per record; the journal adds time and unit itself."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(f"<{_priority(record)}>{line}" for line in super().format(record).splitlines())


class _JournalHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """To the journal with fields, else to the stream."""

    def __init__(self, connection: journal.Journal) -> None:
        super().__init__(sys.stderr)
        self._journal = connection
        self._message = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        if not self._journal.send(record, self._message.format(record), _priority(record)):
            super().emit(record)

    def close(self) -> None:
        self._journal.close()
        super().close()


def _priority(record: logging.LogRecord) -> int:
    return next((number for level, number in _PRIORITIES if record.levelno >= level), 7)


def set_up_logging(level: str, journal_socket: Path = journal.SOCKET, identifier: str = "xlbd") -> None:
    """Log to stderr: xlb's loggers from `level` (one of LEVELS) on, libraries from warning on."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if stderr_is_journal():
        with contextlib.suppress(OSError):
            handler = _JournalHandler(journal.Journal(journal_socket, identifier))
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries: their debug messages would hide xlb's
    for package in OURS:
        logging.getLogger(package).setLevel(level.upper())


def stderr_is_journal() -> bool:
    """Whether stderr is the stream systemd connected to the journal (JOURNAL_STREAM is "device:inode")."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdigit() and inode.isdigit()):
        return False
    status = os.fstat(2)
    return (status.st_dev, status.st_ino) == (int(device), int(inode))
