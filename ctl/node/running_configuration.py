"""The configuration this node runs with, and everything that follows it: maps, addresses, checks, neighbours, flows.

Decides what a change and a health transition lead to, and that what the kernel refuses is tried again. How a change is made is
decided in `ctl.node.transaction`. Must not know whether there is a peer, nor where a change came from.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from bpf.dataplane import PlaneError
from ctl.config.changes import Committed
from ctl.config.model import Config, OnBackend, Protocol
from ctl.dataplane.flow_selection import FlowSelection
from ctl.dataplane.kernel import program_features
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.errors import XlbError
from ctl.events.catalogue import FARM_DOWN, FARM_UP
from ctl.health.availability import Availability
from ctl.health.check_machine import Transition
from ctl.health.probes.runner import CheckRunner
from ctl.network.neighbours import NextHopKeeper
from ctl.node.transaction import Transaction
from ctl.runtime import memory
from ctl.runtime.event_hub import Report, log_only
from ctl.runtime.supervisor import Supervisor

REPLAN_RETRY_S = 5.0
PROGRAM_RETRY_S = 1 + program_features.RETRY_NS / 1e9
MANY_BACKENDS = 1000
"""A change of so many makes enough objects for a look at all of them to hold up the loop."""

log = logging.getLogger(__name__)


class RunningConfiguration:
    """Create on a running loop; `begin` once, then `run` as a task.

    changed: called after every change.
    """

    def __init__(
        self,
        transaction: Transaction,
        checks: CheckRunner,
        next_hops: NextHopKeeper,
        sweeper: Sweeper,
        supervisor: Supervisor,
        changed: Callable[[], None],
        next_step_s: Callable[[], float | None] = lambda: None,
        report: Report = log_only,
    ) -> None:
        """next_step_s: on the monotonic clock, when the maps are to be planned again without a change; None: never."""
        self._transaction = transaction
        self._checks, self._next_hops, self._sweeper = checks, next_hops, sweeper
        self._supervisor, self._changed = supervisor, changed
        self._replan_wanted = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        self._next_step_s = next_step_s
        self._step: asyncio.TimerHandle | None = None
        self._program_wanted = asyncio.Event()
        self._availability, self._report = Availability(), report

    async def begin(self) -> None:
        """Make the kernel's maps follow the loaded configuration as far as the program can. Raises XlbError if it refuses."""
        self._checks.configure(self._transaction.config)
        try:
            await self._transaction.complete_program()
        except XlbError:
            self._program_wanted.set()  # which logs it, and tries again later
        await self._transaction.replan()

    # --- changes ---------------------------------------------------------------------------------------------

    async def in_force(self, done: Committed) -> None:
        """Have everything follow a configuration that has come into force."""
        checks = self._checks.checks
        before = checks.unusable(done.new), checks.to_remember
        await self._checks.follow(done.new)
        self._tell_adopted(checks.take_arrived())
        if (checks.unusable(done.new), checks.to_remember) != before:
            self._replan_wanted.set()
        if self._transaction.awaits_program:
            self._program_wanted.set()
        before_change, after_change = changed_backends(done.old, done.new)
        if before_change or after_change:
            self._next_hops.wake()
        if len(after_change) >= MANY_BACKENDS:
            memory.settle()
        gone = before_change - after_change
        if gone := gone - kept_connections(done.old, done.new):  # draining lets them finish
            self._remove_flows(FlowSelection(backends=gone))
        if any(
            each.drain_until
            for name, farm in done.new.farms.items()
            if farm is not done.old.farms.get(name)
            for each in farm.backends
        ):
            self._sweeper.soon()
        self._plan_step()
        if self._availability.down:
            self._tell_availability()
        self._changed()

    # --- health ----------------------------------------------------------------------------------------------

    def health_changed(self, transition: Transition) -> None:
        """A backend went up or down."""
        self._replan_wanted.set()
        self._tell_availability(transition.farm)
        if not transition.up:
            # A UDP client would send to the dead backend until its flow expires. TCP notices and reconnects, and an
            # established connection may survive a failed check.
            farm = self._transaction.config.farms.get(transition.farm)
            policy = farm.on_backend_down if farm is not None else OnBackend.DEFAULT
            if policy is OnBackend.DEFAULT:
                self._remove_flows(FlowSelection(backends=frozenset({transition.backend_id}), protocol=Protocol.UDP))
            elif policy is not OnBackend.KEEP:  # which backends are to be left depends on the others
                self._sweeper.soon()

    def health_adopted(self, transitions: Sequence[Transition]) -> None:
        """The active node's checks have found other backends up or down. Flows of dead ones are removed there."""
        self._replan_wanted.set()
        self._tell_adopted(transitions)

    def _tell_adopted(self, transitions: Sequence[Transition]) -> None:
        for each in transitions:
            self._checks.tell(each)
        for farm in dict.fromkeys(each.farm for each in transitions):
            self._tell_availability(farm)

    def _tell_availability(self, farm: str = "") -> None:
        config = self._transaction.config
        for name, up in self._availability.judge(config, self._checks.checks.unusable(config), farm):
            if up:
                self._report(log, FARM_UP(f"farm {name}: a backend is up", farm=name))
            else:
                self._report(log, FARM_DOWN(f"farm {name}: no backend is up; see xlbctl farm show {name}", farm=name))

    async def run(self) -> None:
        """Make program and maps follow the configuration and the backends' health, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_with_maps())
            group.create_task(self._follow_with_program())

    async def _follow_with_maps(self) -> None:
        while True:
            await self._replan_wanted.wait()
            self._replan_wanted.clear()
            try:
                await self._transaction.replan()
                await asyncio.to_thread(self._checks.save_down)
            except XlbError as error:
                log.error("configuration and health are not in the maps yet, trying again in %g s: %s", REPLAN_RETRY_S, error)
                self.replan_later()
            self._plan_step()

    async def _follow_with_program(self) -> None:
        """Meanwhile the maps follow as far as the present program can."""
        loop, retry = asyncio.get_running_loop(), None
        while True:
            await self._program_wanted.wait()
            self._program_wanted.clear()
            if retry is not None:
                retry.cancel()
            try:
                await self._transaction.complete_program()
            except XlbError as error:
                log.error("farms are not served as configured, trying again in %g s: %s", PROGRAM_RETRY_S, error)
                retry = loop.call_later(PROGRAM_RETRY_S, self._program_wanted.set)

    def _plan_step(self) -> None:
        """A backend in slow start gets more of its weight later."""
        if self._step is not None:
            self._step.cancel()
            self._step = None
        if (when := self._next_step_s()) is not None:
            self._step = asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), self._replan_wanted.set)

    def replan_soon(self) -> None:
        """The program can run more of the configuration in force than the maps have."""
        self._replan_wanted.set()

    def replan_later(self) -> None:
        """The kernel refused the maps of the configuration in force; try again."""
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(REPLAN_RETRY_S, self._replan_wanted.set)

    def _remove_flows(self, selection: FlowSelection) -> None:
        self._supervisor.run(self._flush(selection), "flow removal")

    async def _flush(self, selection: FlowSelection) -> None:
        try:
            removed = await self._sweeper.flush(selection)
        except (PlaneError, OSError) as error:
            log.error("flows of removed or failed backends could not be removed: %s", error)
        else:
            log.debug("removed %d flow entries", removed)

    # --- addresses -------------------------------------------------------------------------------------------

    async def follow_addresses(self) -> None:
        """Make the interfaces carry the VIPs; on a backup, prepare what a takeover needs."""
        try:
            await self._transaction.follow_addresses()
        except (XlbError, OSError) as error:
            log.error("%s; the VIP cannot be reached until the cause is removed", error)


def kept_connections(old: Config, new: Config) -> frozenset[int]:
    """Ids of backends of `old` whose connections continue after a removal."""
    keeping = (
        farm for name, farm in new.farms.items() if farm.removed_policy is OnBackend.KEEP and farm is not old.farms.get(name)
    )
    return frozenset(each.id for farm in keeping if farm.name in old.farms for each in old.farms[farm.name].backends)


def changed_backends(old: Config, new: Config) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the backends of the farms that differ, before and after. A farm that no change touched is the same object."""

    def ids(of: Config, against: Config) -> frozenset[int]:
        changed = (farm for name, farm in of.farms.items() if against.farms.get(name) is not farm)
        return frozenset(backend.id for farm in changed for backend in farm.backends)

    return ids(old, new), ids(new, old)
