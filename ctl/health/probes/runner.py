"""Runs the due health checks of `ctl.health.check_machine`, which limits how many run at a time, and reports transitions.

Schedules I/O only. run_dir/health.json keeps the ids of backends that are down across a restart of the daemon; without it, a
restarted daemon would send new connections to a dead backend until its first check fails. The kernel's slot map cannot
replace the file, because it does not distinguish "down" from "weight 0".
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ctl.config.model import CheckKind, Config, format_endpoint
from ctl.errors import XlbError
from ctl.events.catalogue import BACKEND_CHANGED, Severity
from ctl.health.check_machine import HealthChecks, Probe, Transition
from ctl.health.probes.probe import ProbeFailed, probe
from ctl.health.probes.source_addresses import OwnSources
from ctl.health.probes.vip_connect import Path as VipPath
from ctl.runtime.commands import CommandFailed, Commands
from ctl.runtime.event_hub import Report, log_only

PROBES_PER_TURN = 16  # started before the loop gets a turn
FARMS_PER_TURN = 32
FILE_NAME = "health.json"

RunProbe = Callable[[Probe], Awaitable[None]]
"""Ask a backend. Raises ProbeFailed with the reason."""

log = logging.getLogger(__name__)


class CheckRunner:
    """One task for the schedule, one short-lived task per probe."""

    def __init__(
        self,
        checks: HealthChecks,
        run_dir: Path,
        changed: Callable[[Transition], None],
        run_probe: RunProbe | None = None,
        follows: Callable[[], bool] = lambda: False,
        report: Report = log_only,
    ) -> None:
        """follows: whether the peer checks, and this node adopts its results."""
        self.checks = checks
        self._path = run_dir / FILE_NAME
        self._changed = changed
        self._run_probe = run_probe or _probe
        self._follows, self._report = follows, report
        self._wake = asyncio.Event()
        self._following = asyncio.Lock()
        self._probes: set[asyncio.Task[None]] = set()

    def configure(self, config: Config) -> None:
        """Apply a new configuration."""
        self.checks.configure(config, now_ms())
        self._wake.set()

    async def follow(self, config: Config) -> None:
        """Like `configure`, but yields to the loop between farms; configurations are applied in the order of the calls."""
        async with self._following:
            for number, _ in enumerate(self.checks.configure_in_steps(config, now_ms()), 1):
                if number % FARMS_PER_TURN == 0:
                    await asyncio.sleep(0)
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled; cancels running probes too."""
        try:
            while True:
                self._wake.clear()
                self.checks.follows = self._follows()
                for due in self.checks.due(now_ms(), PROBES_PER_TURN):
                    task = asyncio.get_running_loop().create_task(self._probe(due))
                    self._probes.add(task)
                    task.add_done_callback(self._done)
                await self._rest()
        finally:
            for task in self._probes:
                task.cancel()
            await asyncio.gather(*self._probes, return_exceptions=True)

    async def _rest(self) -> None:
        """Sleep until a probe is due, the configuration changes or a probe ends."""
        next_due = self.checks.next_due_ms()
        wait_s = None if next_due is None else max(0.0, (next_due - now_ms()) / 1000)
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _done(self, task: asyncio.Task[None]) -> None:
        self._probes.discard(task)
        self._wake.set()

    async def _probe(self, due: Probe) -> None:
        error = ""
        try:
            await self._run_probe(due)
        except ProbeFailed as failure:
            error = str(failure)
        except Exception as failure:  # a bug must not end this check permanently
            log.exception("health check of %s port %d failed with an internal error", due.address, due.port)
            error = f"internal error of the check ({type(failure).__name__})"
        transition = self.checks.finish(due, not error, error, now_ms())
        if transition is not None:
            self.tell(transition)
            self._changed(transition)

    def tell(self, transition: Transition) -> None:
        """Report that a backend went up or down, here or on the active node."""
        farm, backend = transition.farm, format_endpoint(transition.address, transition.port)
        state, why = "up" if transition.up else "down", transition.reason
        text = f"farm {farm}: backend {backend} is {state}: {why}"
        severity = Severity.INFO if transition.up else Severity.WARNING
        self._report(log, BACKEND_CHANGED(text, severity, farm=farm, backend=backend, state=state, why=why))

    def save_down(self) -> None:
        """Save which backends must get no connections for the next incarnation. Blocks briefly; logs errors."""
        temporary = self._path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(sorted(self.checks.to_remember)))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("cannot write %s: %s", self._path, error.strerror)


async def _probe(due: Probe) -> None:
    await probe(due.check, due.address, due.port)


def own_probe(sources: OwnSources, commands: Commands, tunnel_sources: Sequence[str] = ()) -> RunProbe:
    """Probes with a source address that receives the answer. tunnel_sources: of outer packets, at most one per family."""

    async def run(due: Probe) -> None:
        if due.check.kind is CheckKind.COMMAND:
            environment = {"XLB_FARM": due.farm, "XLB_ADDRESS": due.address, "XLB_PORT": str(due.port)}
            try:
                await commands.run(due.check.command, environment, due.check.timeout_ms)
            except CommandFailed as failure:
                raise ProbeFailed(str(failure)) from None
            return
        try:
            source = await sources.towards(due.address)
            if due.vip:
                outer = next((each for each in tunnel_sources if (":" in each) == (":" in due.address)), source)
                path = VipPath(due.vip, due.is_tunnel, outer)
                source = await sources.instead_of_vip(due.vip)
        except XlbError as error:
            raise ProbeFailed(str(error)) from None
        await probe(due.check, due.address, due.port, source, path if due.vip else None)

    return run


def load_down(run_dir: Path) -> frozenset[int]:
    """The backends that were down when the last daemon stopped; empty if unknown."""
    try:
        return frozenset(int(number) for number in json.loads((run_dir / FILE_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return frozenset()


def now_ms() -> int:
    """The event loop's clock, which all health states use."""
    return int(asyncio.get_running_loop().time() * 1000)
