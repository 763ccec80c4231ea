"""Whether the kernel holds its wall clock to be right: adjtimex(2), which Python does not offer. Reads, sets nothing."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

_TIMEX_BYTES = 208
_MAX_ERROR_OFFSET, _STATUS_OFFSET = 24, 40  # after modes, offset and freq; after maxerror and esterror (64-bit ABI)
_STA_UNSYNC = 0x40
_TIME_ERROR = 5

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ClockState:
    """synchronised: something, e.g. chrony or systemd-timesyncd, keeps the clock right, to within `max_error_ms`."""

    synchronised: bool
    max_error_ms: float


def clock_state() -> ClockState:
    """What the kernel says. Raises OSError."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: read only
    state = _libc.adjtimex(timex)
    if state < 0:
        raise OSError(ctypes.get_errno(), f"adjtimex: {os.strerror(ctypes.get_errno())}")
    (max_error_us,) = struct.unpack_from("q", timex, _MAX_ERROR_OFFSET)
    (status,) = struct.unpack_from("i", timex, _STATUS_OFFSET)
    return ClockState(state != _TIME_ERROR and not status & _STA_UNSYNC, max_error_us / 1000)
