"""An asyncio event loop on simulated time, one per daemon: the daemon's coroutines run unmodified, callback by callback.

Decides the order of one daemon's callbacks. When a timer fires, and how long a thread takes, the world decides. The callbacks
of a stopped daemon wait; those of a dead one never run. Work for threads runs at the end of its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.node import Daemon


class Killed(SystemExit):
    """The daemon died inside a call; asyncio passes this exception on."""


class NodeLoop(asyncio.AbstractEventLoop):
    """Implements what asyncio's tasks, futures, locks, queues and time-outs ask of a loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._world = daemon.world
        self._ready: deque[asyncio.Handle] = deque()
        self._draining = False  # a drain is scheduled or under way
        self.threads = 0  # that work now
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- time ---------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._daemon.now_ns() / 1e9

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        at = max(self._world.now, self._daemon.node.real(round(when * 1e9))) + self._world.timer_late()
        self._world.at(at, lambda: None if handle.cancelled() else self._add(handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        return self.call_at(self.time() + delay, callback, *args, context=context)

    # --- callbacks ----------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._add(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        return self.call_soon(callback, *args, context=context)

    def _add(self, handle: asyncio.Handle) -> None:
        if not self._daemon.alive:
            return
        self._ready.append(handle)
        if not self._draining:
            self._draining = True
            self._world.at(self._world.now, self.drain)

    def drain(self) -> None:
        """Run what is ready, until nothing is or the daemon stops."""
        daemon, ready = self._daemon, self._ready
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        self._draining = True
        try:
            while ready and daemon.alive and not daemon.stopped:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        except Killed:
            pass
        finally:
            self._draining = False
            asyncio._set_running_loop(before)

    def resume(self) -> None:
        """The daemon is continued."""
        if self._ready and not self._draining:
            self._draining = True
            self._world.at(self._world.now, self.drain)

    def discard(self) -> None:
        """The daemon is dead: nothing of it runs any more, and what its coroutines hold is given up now, not some day."""
        self._ready.clear()
        tasks, self._tasks = self._tasks, set()
        for task in sorted(tasks, key=lambda task: task.get_name()):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError, ValueError):  # it is the one that was killed while it ran
                task.get_coro().close()

    # --- futures, tasks, threads --------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:  # type: ignore[override]
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future, daemon = self.create_future(), self._daemon
        self.threads += 1

        def work() -> None:
            if not daemon.alive:
                return
            if daemon.stopped:
                daemon.when_continued(work)
                return
            self.threads -= 1
            try:
                result = func(*args)
            except Killed:
                return
            except Exception as error:
                self._add(asyncio.Handle(_set_exception, (future, error), self))
            else:
                self._add(asyncio.Handle(_set_result, (future, result), self))

        self._world.after(self._world.thread_time(), work)
        return future

    # --- the rest of the interface that is used -----------------------------------------------------------------

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._daemon.alive:
            self._world.fail(f"{self._daemon.node.name}: {context.get('message')}: {context.get('exception')!r}")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by a handle; the world finds it cancelled when its time comes."""

    def run(self, function: Callable[[], None]) -> None:
        """Run a function as the daemon: the loop is the running one meanwhile."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            contextvars.copy_context().run(function)
        finally:
            asyncio._set_running_loop(before)


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
