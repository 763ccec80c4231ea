"""Blocks of a pcapng file (draft-ietf-opsawg-pcapng): bytes from values, in the byte order of this machine.

Decides the format alone; must not know what a packet went through, nor files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_UNKNOWN_LENGTH = -1
_ETHERNET = 1
_END, _COMMENT = 0, 1
_HARDWARE, _SYSTEM, _APPLICATION = 2, 3, 4
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9
_FLAGS, _PACKET_ID = 2, 5
_START, _STOP, _RECEIVED, _OS_DROPPED, _DELIVERED = 2, 3, 4, 7, 8
INBOUND, OUTBOUND = 1, 2
"""The direction in epb_flags."""
MAX_OPTION_BYTES = 0xFFFF


def section(application: str, system: str) -> bytes:
    """The first block of a file."""
    body = struct.pack("=IHHq", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION, body, [(_SYSTEM, _text(system)), (_APPLICATION, _text(application))])


def interface(name: str, description: str, snap_bytes: int) -> bytes:
    """An Ethernet interface, whose packets have times in ns. They refer to it by its number, counted from 0."""
    options = [(_NAME, _text(name)), (_DESCRIPTION, _text(description)), (_RESOLUTION, bytes([9]))]
    return _block(_INTERFACE, struct.pack("=HHI", _ETHERNET, 0, snap_bytes), options)


def packet(
    interface_number: int, time_ns: int, content: bytes, length: int, comment: str, direction: int, packet_id: int
) -> bytes:
    """A packet with a comment. time_ns: of CLOCK_REALTIME; length: of the packet on the wire; packet_id: equal ones belong
    to one packet in different places."""
    high, low = time_ns >> 32, time_ns & 0xFFFFFFFF
    body = struct.pack("=IIIII", interface_number, high, low, len(content), length) + _padded(content)
    options = [
        (_COMMENT, _text(comment)),
        (_FLAGS, struct.pack("=I", direction)),
        (_PACKET_ID, struct.pack("=Q", packet_id)),
    ]
    return _block(_PACKET, body, options)


def statistics(
    interface_number: int, start_ns: int, end_ns: int, received: int, lost: int, delivered: int, comment: str
) -> bytes:
    """At the end, of an interface: packets that were received, that were lost for lack of space, and that are in the file."""
    body = struct.pack("=III", interface_number, end_ns >> 32, end_ns & 0xFFFFFFFF)
    options = [
        (_COMMENT, _text(comment)),
        (_START, struct.pack("=II", start_ns >> 32, start_ns & 0xFFFFFFFF)),
        (_STOP, struct.pack("=II", end_ns >> 32, end_ns & 0xFFFFFFFF)),
        (_RECEIVED, struct.pack("=Q", received)),
        (_OS_DROPPED, struct.pack("=Q", lost)),
        (_DELIVERED, struct.pack("=Q", delivered)),
    ]
    return _block(_STATISTICS, body, options)


def _block(kind: int, body: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    content = body + b"".join(_option(code, value) for code, value in options) + _option(_END, b"")
    length = struct.pack("=I", 12 + len(content))
    return struct.pack("=I", kind) + length + content + length


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def _text(text: str) -> bytes:
    """Cut between two characters if it is too long for an option."""
    content = text.encode(errors="replace")
    return content if len(content) <= MAX_OPTION_BYTES else content[:MAX_OPTION_BYTES].decode(errors="ignore").encode()
