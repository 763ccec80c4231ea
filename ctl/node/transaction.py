"""The one way a configuration reaches the disk, the kernel's tables and the interfaces; also after a health transition.

validate → plan → save (fsync) → apply → addresses → answer. Changes are serialised by one lock with a bounded queue, and
run in a thread so that neither planning a big farm nor an fsync holds the loop. Decides the order and what undoing means;
what a change does is decided in `ctl.config.changes`, what the tables hold in `ctl.dataplane.planner`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bpf.dataplane import DataPlane, PlaneError
from ctl.config.model import Config
from ctl.dataplane import planner
from ctl.errors import Code, XlbError, code_of
from ctl.network.vip_addresses import VipAddresses
from ctl.state.store import Store

MAX_WAITING_CHANGES = 256
MAX_PLANNING_ROUNDS = 64

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Committed:
    """A change that was accepted; `old is new` when it changed nothing. `note`: what the person who asked should know."""

    old: Config
    new: Config
    note: str = ""


class Committer:
    """Holds the configuration in force and what the kernel's tables hold."""

    def __init__(self, config: Config, store: Store, plane: DataPlane, addresses: VipAddresses) -> None:
        self._config = config
        self._store = store
        self._plane = plane
        self._addresses = addresses
        self._state = planner.PlannerState()
        self._known = False  # whether _state is what the kernel holds
        self._lock = asyncio.Lock()
        self._waiting = 0

    @property
    def config(self) -> Config:
        return self._config

    @property
    def waiting(self) -> int:
        """Changes that wait for their turn."""
        return self._waiting

    async def commit(self, make: Callable[[Config], Config], down: frozenset[int]) -> Committed:
        """Put in force what `make` makes of the present configuration. `down`: ids of backends that failed their check.

        Raises InvalidInput or XlbError, with everything as it was.
        """
        if self._waiting >= MAX_WAITING_CHANGES:
            raise XlbError(f"{self._waiting} changes are waiting already; try again in a moment", Code.BUSY)
        self._waiting += 1
        try:
            async with self._lock:
                return await _uninterrupted(lambda: self._commit(make, down))
        finally:
            self._waiting -= 1

    async def replan(self, down: frozenset[int]) -> None:
        """Make the tables follow the configuration and `down`; they are read first when they are not known.

        Raises XlbError when the kernel refuses.
        """
        async with self._lock:
            await _uninterrupted(lambda: self._replan(self._config, down))

    async def store(self, config: Config) -> None:
        """Write what the peer sent; `adopt` puts it in force. Raises XlbError."""
        async with self._lock:
            await _uninterrupted(lambda: self._store.save(config))

    async def adopt(self, config: Config, down: frozenset[int]) -> Committed:
        """Run with a configuration that is on disk.

        Raises XlbError when the kernel refuses some of it; it is the configuration all the same, and `replan` tries again.
        """
        async with self._lock:
            old, self._config = self._config, config
            await _uninterrupted(lambda: self._follow_adopted(config, down))
            return Committed(old, config)

    def _follow_adopted(self, config: Config, down: frozenset[int]) -> None:
        self._replan(config, down)
        self._addresses.follow(config)

    async def follow_addresses(self) -> None:
        """Put back the VIPs' addresses that are missing."""
        async with self._lock:
            await _uninterrupted(lambda: self._addresses.follow(self._config))

    def _commit(self, make: Callable[[Config], Config], down: frozenset[int]) -> Committed:
        old = self._config
        new = make(old)
        if new is old:
            return Committed(old, old)
        self._addresses.check_devices(old, new)
        plan = planner.plan(self._state, new, down) if self._known else None
        self._store.save(new)
        try:
            if plan is not None:
                self._execute(plan)
            if plan is None or not plan.complete:
                self._replan(new, down)
            self._addresses.follow(new)
        except (XlbError, PlaneError, OSError) as error:
            self._undo(old, down, error)
            raise XlbError(f"{error}; nothing was changed", code_of(error, Code.KERNEL_REFUSED)) from error
        self._config = new
        return Committed(old, new)

    def _replan(self, config: Config, down: frozenset[int]) -> None:
        for _ in range(MAX_PLANNING_ROUNDS):
            if self._known:
                plan = planner.plan(self._state, config, down)
            else:
                plan = planner.replan_everything(config, down, self._plane.vips(), self._plane.services())
            self._execute(plan)
            if plan.complete:
                return
        raise XlbError(
            f"the slot table has no room for every farm after {MAX_PLANNING_ROUNDS} rounds; use fewer backends per farm",
            Code.LIMIT_EXCEEDED,
        )

    def _execute(self, plan: planner.Plan) -> None:
        self._known = False  # until all of it succeeded
        try:
            self._plane.apply(plan.operations)
        except PlaneError as error:
            raise XlbError(f"the kernel's tables refused the change: {error}", Code.KERNEL_REFUSED) from error
        self._state = plan.state
        self._known = True

    def _undo(self, old: Config, down: frozenset[int], cause: Exception) -> None:
        """Back to `old` on disk, in the tables and on the interfaces; each step is tried whatever became of the others."""
        log.error("a change failed and is taken back: %s", cause)
        self._known = False
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("state file", lambda: self._store.save(old)),
            ("tables", lambda: self._replan(old, down)),
            ("addresses", lambda: self._addresses.follow(old)),
        )
        for what, step in steps:
            try:
                step()
            except (XlbError, PlaneError, OSError) as error:
                log.error("could not put the %s back, restart xlbd when the cause is gone: %s", what, error)


async def _uninterrupted(work: Callable[[], T]) -> T:
    """Run in a thread, to its end even when the asking task is cancelled: a change is never left half done."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
