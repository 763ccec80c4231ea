"""Whether the kernel's wall clock is synchronised: adjtimex(2), which Python does not offer. Reads only."""

from __future__ import annotations

import ctypes
import os
import struct

_TIMEX_BYTES = 208
_STATUS_OFFSET = 40  # after modes, offset, freq, maxerror and esterror (64-bit ABI)
_STA_UNSYNC = 0x40
_TIME_ERROR = 5

_libc = ctypes.CDLL(None, use_errno=True)


def clock_is_synchronised() -> bool:
    """Whether a service such as chrony or systemd-timesyncd synchronises the clock. Raises OSError."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: read only
    state = _libc.adjtimex(timex)
    if state < 0:
        raise OSError(ctypes.get_errno(), f"adjtimex: {os.strerror(ctypes.get_errno())}")
    (status,) = struct.unpack_from("i", timex, _STATUS_OFFSET)
    return state != _TIME_ERROR and not status & _STA_UNSYNC
