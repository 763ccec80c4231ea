"""What both ends of the control socket must agree on; docs/CONTROL.md describes the protocol."""

from __future__ import annotations

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 8 << 20
