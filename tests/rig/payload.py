"""Bytes that name their place: each 8-byte word of a stream holds the connection's number and the word's position.

So a byte that is lost, repeated, or belongs to another connection is detected. Decides nothing else.
"""

from __future__ import annotations

import numpy as np


def payload(connection: int, offset: int, length: int) -> bytes:
    """`length` bytes of the endless stream of `connection` (below 2**24), from byte `offset` on."""
    first = offset // 8
    words = np.arange(first, (offset + length + 7) // 8, dtype=np.uint64) | np.uint64(connection << 40)
    start = offset - first * 8
    return words.tobytes()[start : start + length]


def count_wrong(connection: int, offset: int, received: bytes) -> int:
    """How many of `received`, which should be at `offset`, differ from the stream."""
    expected = payload(connection, offset, len(received))
    if expected == received:
        return 0
    return int(np.count_nonzero(np.frombuffer(expected, np.uint8) != np.frombuffer(received, np.uint8)))
