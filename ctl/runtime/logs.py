"""Format of the daemon's log lines: `LEVEL message` on a terminal, `<priority>message` for the journal.

Decides the format only. Must not know what is logged. sd-daemon(3) names the priority prefixes, systemd.exec(5) the
JOURNAL_STREAM test.
"""

from __future__ import annotations

import logging
import os
import sys

LEVELS = ("debug", "info", "warning", "error")
OURS = ("ctl", "bpf", "sync")

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class _JournalFormatter(logging.Formatter):
    """One journal entry per record; the journal adds time and unit itself."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def set_up_logging(level: str) -> None:
    """Log to stderr: xlb's loggers from `level` (one of LEVELS) on, libraries from warning on."""
    handler = logging.StreamHandler(sys.stderr)
    if stderr_is_journal():
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
