"""The clock by which the data plane judges the lease and the age of connections. Knows nothing of what it is compared with."""

from __future__ import annotations

import time

CLOCK_MONOTONIC_COARSE = 6
"""clock_gettime(2); the module time does not name it."""


def coarse_step_ns() -> int:
    """Step of this kernel's coarse clock, in nanoseconds: a second / HZ."""
    return round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * 1e9)
