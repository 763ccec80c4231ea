"""Real-time scheduling of the daemon's loop: SCHED_FIFO for the calling thread, and locked memory.

Decides the priority. A node without these privileges works, but late heartbeats under load may expire its lease; it logs a
warning.
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
"""Deliberately low: above every ordinary process, below other real-time processes of a site."""

WORKER_PRIORITY = 1

PERIOD_S, REST_S = 0.02, 0.004
"""In each period, no thread of a busy node runs Python for REST_S; all nodes of one machine rest at the same time. This is more
than the 5 % that the kernel requires, because a system call that reads 4,096 connections continues for 2 ms of it."""

BUSY_SHARE = 0.5
"""Share of one processor; a node that uses less need not rest."""

_interpreter = ctypes.PyDLL(None)  # its functions run with the interpreter lock held

_granted = False


def run_in_time() -> tuple[bool, list[str]]:
    """Request SCHED_FIFO and locked memory; return whether SCHED_FIFO is granted, and one message per refusal.

    Call it on the loop's thread. Processes and threads started later are not real-time (SCHED_RESET_ON_FORK, sched(7)); threads
    that run Python must be, see `favour_this_thread`. If SCHED_FIFO is granted, run `rest_when_busy`.
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
    """Give the calling thread real-time priority, on a node with real-time scheduling. Each thread that runs Python calls it
    first.

    A thread that holds the interpreter lock delays the loop, real-time or not. Next to busy processes a loop with an
    ordinary worker woke up to 26 ms late, with one at nice -20 up to 54 ms (nice counts within a session only, see
    autogroup in sched(7)), with a real-time one 0.3 ms.
    """
    if _granted:
        _favour(threading.get_native_id())


def worker_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor whose threads have all started, with real-time priority on a node with real-time scheduling.

    Starting a thread waits for its first step, and an ordinary thread needs a free processor for that: with busy real-time
    workers the loop waited 60 ms.
    """
    pool = ThreadPoolExecutor(count, name, initializer=favour_this_thread)
    together = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(together.wait)
    together.wait()
    return pool


async def rest_when_busy() -> None:
    """Pause all Python threads of this process for a part of each period while the process is busy. Run until cancelled.

    If real-time threads leave less than 50 ms of each second to other threads, the kernel throttles them, the loop included
    (sched_rt_runtime_us of sched(7); the fair server of Linux 6.8), for up to 50 ms in a row. To avoid that, the loop
    sleeps while it holds the interpreter lock, so workers pause without further action; a worker without the lock, usually
    in a system call, ends that call and then waits. Call it on the loop's thread, on a node with real-time scheduling.
    """
    used_s = time.process_time()
    while True:
        await asyncio.sleep(PERIOD_S - time.monotonic() % PERIOD_S)
        before_s, used_s = used_s, time.process_time()
        if used_s - before_s > BUSY_SHARE * PERIOD_S:
            hold_interpreter(REST_S - time.monotonic() % PERIOD_S)


def hold_interpreter(seconds: float) -> None:
    """Sleep with the interpreter lock held, so that no other thread of this process runs Python."""
    if seconds > 0:
        _interpreter.usleep(int(seconds * 1e6))


def _favour(thread: int) -> None:
    with contextlib.suppress(OSError):  # the thread has ended
        os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(WORKER_PRIORITY))


def _python_threads() -> list[int]:
    """Threads started by Python, without the calling one. ZeroMQ's threads set their own scheduling and are not included."""
    threads = (thread.native_id for thread in threading.enumerate())
    return [number for number in threads if number is not None and number != threading.get_native_id()]


def run_ordinarily() -> None:
    """Return to ordinary scheduling and unlocked memory, as on a single node."""
    global _granted
    _granted = False
    for thread in (0, *_python_threads()):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    memory.unlock()
