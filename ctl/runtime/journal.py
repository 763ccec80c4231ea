"""Log records as entries of systemd's journal, with the fields of their event: the native protocol, one datagram per entry.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. Decides the names of the fields only. The journal adds time, unit and process
itself. A datagram that the journal does not take at once is not waited for: the event loop logs.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ctl.events.catalogue import Event

SOCKET = Path("/run/systemd/journal/socket")


class Journal:
    """A connection to the journal, for the program `identifier`. Raises OSError where there is none."""

    def __init__(self, path: Path = SOCKET, identifier: str = "xlbd") -> None:
        self._identifier = identifier
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def send(self, record: logging.LogRecord, message: str, priority: int) -> bool:
        """False where the journal did not take it."""
        try:
            self._socket.send(b"".join(_fields(self._identifier, record, message, priority)))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def _fields(identifier: str, record: logging.LogRecord, message: str, priority: int) -> Iterator[bytes]:
    yield _field("MESSAGE", message)
    yield _field("PRIORITY", str(priority))
    yield _field("SYSLOG_IDENTIFIER", identifier)
    yield _field("LOGGER", record.name)
    event = getattr(record, "event", None)
    if isinstance(event, Event):
        yield _field("XLB_EVENT", event.name)
        for name, value in event.fields.items():
            yield _field(f"XLB_{name.upper()}", str(value).lower() if isinstance(value, bool) else str(value))


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
