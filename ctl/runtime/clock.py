"""The clock of leases, timers and flow ages, as an argument: what runs on simulated time in the tests receives another one."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns the present time in nanoseconds of CLOCK_MONOTONIC, the clock that the event loop and the data plane use too."""

monotonic_ns: Clock = time.monotonic_ns
