"""Asks the kernel that the daemon's loop runs in time: SCHED_FIFO for the calling thread, and memory that is never paged out.

Decides the priority. A node that may not have them works, but late heartbeats under load may close its lease: it says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ctl.runtime import memory

PRIORITY = 2
"""Low on purpose: above every ordinary process, below whatever else a site runs in real time."""

WORKER_PRIORITY = 1

PERIOD_S, REST_S = 0.02, 0.004
"""So long of each period no thread of a busy node runs Python; all nodes of one machine rest at the same time. More than the
twentieth that the kernel asks for, because a system call that reads 4,096 connections goes on for 2 ms of it."""

BUSY_SHARE = 0.5
"""Of one processor: a node that used less in a period leaves others enough."""

_interpreter = ctypes.PyDLL(None)  # functions called by way of it keep the interpreter's lock

_granted = False


def run_in_time() -> tuple[bool, list[str]]:
    """(whether SCHED_FIFO was granted, one sentence for each thing that was refused). Call on the loop's thread.

    Processes and threads started afterwards are ordinary again (SCHED_RESET_ON_FORK, sched(7)); threads that run Python must
    not be, see `favour_this_thread`; and `rest_when_busy` is to run then.
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
            f"real-time scheduling refused ({error.strerror}): heartbeats may be late on a busy machine; "
            "give xlbd CAP_SYS_NICE or LimitRTPRIO, or raise cluster.lease_ms"
        )
    reason = memory.lock()
    if reason:
        refused.append(
            f"memory locking refused ({reason}): heartbeats may be late when memory is short; "
            "give xlbd CAP_IPC_LOCK or LimitMEMLOCK"
        )
    return _granted, refused


def favour_this_thread() -> None:
    """Let the calling thread go before ordinary processes, on a node that runs in time; what a thread that runs Python does
    first.

    A thread that holds the interpreter's lock holds up the loop, real-time or not. Beside busy processes a loop with an
    ordinary worker woke up to 26 ms late, with one at nice -20 up to 54 ms (nice counts within a session only, see
    autogroup in sched(7)), with a real-time one 0.3 ms.
    """
    if _granted:
        _favour(threading.get_native_id())


def worker_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor whose threads all run already, favoured if this node runs in time.

    Whoever starts a thread waits for its first step, and that an ordinary thread takes when the processors are free: beside
    busy real-time workers the loop waited 60 ms.
    """
    pool = ThreadPoolExecutor(count, name, initializer=favour_this_thread)
    together = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(together.wait)
    together.wait()
    return pool


async def rest_when_busy() -> None:
    """Until cancelled: stop every thread of this process that runs Python for a moment of each period, while it is busy.

    Where real-time threads leave others less than a twentieth of a second, the kernel stops them at the end of it, the loop
    too (sched_rt_runtime_us of sched(7); the fair server of Linux 6.8): up to 50 ms in a row. Here the loop
    sleeps with the interpreter's lock in its hand, so that no worker has to think of it; what runs without the lock, a
    system call mostly, ends soon and then waits. Call on the loop's thread, on a node that runs in time.
    """
    used_s = time.process_time()
    while True:
        await asyncio.sleep(PERIOD_S - time.monotonic() % PERIOD_S)
        before_s, used_s = used_s, time.process_time()
        if used_s - before_s > BUSY_SHARE * PERIOD_S:
            hold_interpreter(REST_S - time.monotonic() % PERIOD_S)


def hold_interpreter(seconds: float) -> None:
    """Sleep so that no other thread of this process runs Python meanwhile."""
    if seconds > 0:
        _interpreter.usleep(int(seconds * 1e6))


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
