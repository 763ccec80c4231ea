"""The errors of `sync`: each names the thing and the remedy. `ctl` turns them into answers for people."""

from __future__ import annotations


class SyncError(Exception):
    """Something between the two nodes is refused."""


class TimingError(SyncError):
    """The heartbeat, lease and takeover times do not fit together.

    `key` is the node file's key at fault, `detail` the message without it.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"cluster.{key}: {message}")
        self.key = f"cluster.{key}"
        self.detail = message


class WireError(SyncError):
    """Bytes from the network that are no message of ours. Counted and dropped; never changes any state."""
