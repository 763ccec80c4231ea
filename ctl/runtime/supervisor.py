"""Starts and stops the daemon's background tasks, and handles their failures.

Decides that a failed task is logged, and that the failure of a vital task stops the daemon; systemd restarts it.
Must not know what the tasks do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Supervisor:
    """Create on a running loop; `close` once. `failed`: the reason to stop the daemon, once a vital task has failed."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, job: Coroutine[Any, Any, None], name: str, vital: bool = False) -> None:
        """Run a job in the background. The failure of a `vital` job stops the daemon."""
        task = asyncio.get_running_loop().create_task(job, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, vital))

    def give_up(self, why: str) -> None:
        """Stop the daemon because a vital part has failed."""
        if not self.failed.done():
            self.failed.set_result(why)

    async def close(self) -> None:
        """Cancel every task and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None], vital: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("task failed: %s", task.get_name(), exc_info=task.exception())
        if vital:
            self.give_up(f"{task.get_name()} failed ({task.exception()!r})")
