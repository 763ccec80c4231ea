"""Notifies systemd (sd_notify(3)): ready, status line, watchdog, stopping.

Does I/O only. Has no effect without NOTIFY_SOCKET in the environment.
"""

from __future__ import annotations

import contextlib
import os
import socket

COMPILING_S = 60
"""The service manager waits so much longer after each notification that the compiler works."""


class Notifier:
    """A datagram socket to the service manager; errors are ignored, as sd_notify(3) advises."""

    def __init__(self, address: str | None = None) -> None:
        name = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._socket: socket.socket | None = None
        if name:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            with contextlib.suppress(OSError):
                self._socket.connect("\0" + name[1:] if name.startswith("@") else name)

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def compiling(self) -> None:
        """The start takes longer than its limit, and continues."""
        self._send(f"EXTEND_TIMEOUT_USEC={COMPILING_S}000000\nSTATUS=compiling the data plane")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(text.encode())


def watchdog_interval_s() -> float | None:
    """Interval of WATCHDOG=1: a third of the service manager's limit; None without a watchdog."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    wanted_pid = os.environ.get("WATCHDOG_PID", "")
    if not allowed_us.isdigit() or int(allowed_us) == 0 or wanted_pid not in ("", str(os.getpid())):
        return None
    return int(allowed_us) / 3_000_000
