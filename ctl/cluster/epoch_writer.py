"""Writes the epoch file, one write at a time in a thread of its own, and retries until the disk takes it.

Decides only what to skip: when newer numbers came while the disk was busy, the ones between are never needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from ctl.runtime.realtime_scheduling import worker_threads
from ctl.state.epoch_file import EpochFile, EpochState
from sync.failover.types import Leases

RETRY_S = 0.1
RETRY_MAX_S = 5.0

log = logging.getLogger(__name__)


class EpochWriter:
    """Create on a running loop; `state` is what the disk holds or will hold next."""

    def __init__(self, file: EpochFile, state: EpochState, thread: Executor | None = None) -> None:
        """thread: where the file is written, one write at a time; one of its own by default."""
        self._file = file
        self.state = state
        self._done: list[Callable[[], None]] = []
        self._dirty = False
        self._task: asyncio.Task[None] | None = None
        self._thread = thread or worker_threads(1, "xlb-epoch")

    def save(self, epoch: int, reserved: int, done: Callable[[], None]) -> None:
        """Store both numbers; `done` is called on the loop once they, or newer ones, are on disk."""
        self.state = replace(self.state, epoch=epoch, reserved=reserved)
        self._done.append(done)
        self._begin()

    def save_leases(self, leases: Leases, done: Callable[[], None]) -> None:
        """Store both leases; `done` as with `save`."""
        self.state = replace(self.state, lease_ns=leases.own_ns, peer_lease_ns=leases.peer_ns)
        self._done.append(done)
        self._begin()

    def set_maintenance(self, on: bool) -> None:
        """A restart is to find the node in or out of service as it is now."""
        if on != self.state.maintenance:
            self.state = replace(self.state, maintenance=on)
            self._begin()

    async def idle(self) -> None:
        """Wait until everything is on disk."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> None:
        """What is not on disk by now is given up."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        self._dirty = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write(), name="storing the epoch")

    async def _write(self) -> None:
        loop, delay_s = asyncio.get_running_loop(), RETRY_S
        try:
            while self._dirty:
                self._dirty = False
                state, done, self._done = self.state, self._done, []
                try:
                    await loop.run_in_executor(self._thread, self._file.save, state)
                except OSError as error:
                    if delay_s == RETRY_S:
                        log.error("cannot store %s: %s; trying again", self._file.path, error)
                    self._dirty, self._done = True, done + self._done
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, RETRY_MAX_S)
                    continue
                delay_s = RETRY_S
                for each in done:
                    each()
        finally:
            self._task = None
