"""Asks the kernel that the daemon's loop runs in time: SCHED_FIFO for the calling thread, and memory that is never paged out.

Decides the priority. A node that may not have them works, but late heartbeats under load may close its lease: it says so.
"""

from __future__ import annotations

import os

from ctl import memory

PRIORITY = 2
"""Low on purpose: above every ordinary process, below whatever else a site runs in real time."""


def run_in_time() -> tuple[bool, list[str]]:
    """(whether SCHED_FIFO was granted, one sentence for each thing that was refused). Call on the loop's thread.

    Threads and processes started afterwards are ordinary again (SCHED_RESET_ON_FORK, sched(7)).
    """
    refused = []
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
        granted = True
    except OSError as error:
        granted = False
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
    return granted, refused


def run_ordinarily() -> None:
    """Back to what a single node is."""
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return
    memory.unlock()
