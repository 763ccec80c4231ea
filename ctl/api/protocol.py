"""What both ends of the control socket must agree on; docs/CONTROL.md describes the protocol."""

from __future__ import annotations

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 8 << 20
PROGRESS_COMMAND = "progress"
"""Asks what another request of the same client is doing: {"id": its number}. The server itself answers {"doing": "…"}; empty:
no long step, or no such request."""
LOCK_NAME = "xlbd.lock"  # in run_dir, held by the daemon from its start on
