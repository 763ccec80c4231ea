"""Asks the kernel that the daemon's loop runs in time: SCHED_FIFO for the calling thread, and memory that is never paged out.

Decides the priority. A node that may not have them works, but late heartbeats under load may close its lease: it says so.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from ctl import memory

PRIORITY = 2
"""Low on purpose: above every ordinary process, below whatever else a site runs in real time."""

WORKER_PRIORITY = 1

PERIOD_S, REST_S = 0.05, 0.005
"""So long of each period all workers of a node leave the processors to others."""

_granted = False


def run_in_time() -> tuple[bool, list[str]]:
    """(whether SCHED_FIFO was granted, one sentence for each thing that was refused). Call on the loop's thread.

    Processes and threads started afterwards are ordinary again (SCHED_RESET_ON_FORK, sched(7)); threads that run Python must
    not be, see `favour_this_thread`.
    """
    refused = []
    global _granted
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
        _granted = True
        for thread in _python_threads():
            _favour(thread)
    except OSError as error:
        _granted = False
        refused.append(
            f"no real-time scheduling ({error.strerror}): heartbeats may be late on a busy machine; "
            "give xlbd CAP_SYS_NICE or LimitRTPRIO, or raise cluster.lease_ms"
        )
    reason = memory.lock()
    if reason:
        refused.append(
            f"memory is not locked ({reason}): heartbeats may be late when memory is short; "
            "give xlbd CAP_IPC_LOCK or LimitMEMLOCK"
        )
    return _granted, refused


def favour_this_thread() -> None:
    """Let the calling thread go before ordinary processes, on a node that runs in time; what every worker thread begins with.

    A thread that holds the interpreter's lock holds up the loop, real-time or not. Beside busy processes a loop with an
    ordinary worker woke up to 26 ms late, with one at nice -20 up to 54 ms (nice counts within a session only, see
    autogroup in sched(7)), with a real-time one 0.3 ms.
    """
    if _granted:
        _favour(threading.get_native_id())


def rest() -> None:
    """Call between pieces of long work in a worker thread. Sleeps if it is time to leave the processor to ordinary processes.

    Where real-time threads leave them less than a twentieth of a second, the kernel runs those for 50 ms in a row (the fair
    server of Linux 6.8; before that, sched_rt_runtime_us of sched(7)) and no real-time thread meanwhile, the loop least of
    all. Measured with three busy workers on two busy processors: a loop 49 ms late, with these rests 0.9 ms.
    """
    if _granted:
        phase_s = time.monotonic() % PERIOD_S
        if phase_s < REST_S:
            time.sleep(REST_S - phase_s)


def _favour(thread: int) -> None:
    with contextlib.suppress(OSError):  # ended meanwhile
        os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(WORKER_PRIORITY))


def _python_threads() -> list[int]:
    """Those Python started, beside the calling one. ZeroMQ's set their own scheduling while they start: hands off."""
    threads = (thread.native_id for thread in threading.enumerate())
    return [number for number in threads if number is not None and number != threading.get_native_id()]


def run_ordinarily() -> None:
    """Back to what a single node is."""
    global _granted
    _granted = False
    for thread in (0, *_python_threads()):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    memory.unlock()
