"""The life cycle of a node: its parts started and stopped in order, and the kernel's notifications passed to them.

Decides that order. The parts are made in `ctl.node.composition`; what a change leads to is decided in
`ctl.node.running_configuration`, single node or pair in `ctl.cluster.membership`.
"""

from __future__ import annotations

import asyncio
import logging

from bpf.dataplane import DataPlane, PlaneError
from ctl.errors import XlbError
from ctl.events import catalogue
from ctl.events.catalogue import Severity
from ctl.network.network import Network, NetworkEvents
from ctl.node.parts import NodeParts
from ctl.runtime.systemd import watchdog_interval_s
from ctl.state.cluster_file import ClusterFile
from ctl.state.epoch_file import EpochFile
from ctl.state.lost_pair import why_orphaned
from ctl.state.node_file import NodeSettings
from ctl.version import package_version

log = logging.getLogger(__name__)


class Node:
    """Create on a running loop, `start`, and `stop` once."""

    def __init__(self, settings: NodeSettings, plane: DataPlane, network: Network, parts: NodeParts) -> None:
        self.parts = parts
        self._settings, self._plane, self._network = settings, plane, network

    @property
    def in_pair(self) -> bool:
        return self.parts.membership.member is not None

    @property
    def failed(self) -> asyncio.Future[str]:
        """Done, with the cause, once something vital has failed."""
        return self.parts.supervisor.failed

    async def start(self) -> None:
        """Serve the control socket at once, then make the kernel follow the stored configuration, then report ready.

        Raises XlbError when the node cannot do its work.
        """
        parts, settings = self.parts, self._settings
        if settings.notify.command:
            parts.hub.listen(parts.notify.put)
            parts.supervisor.run(parts.notify.run(), "notify")
        await parts.local.transaction.load()
        cluster = await asyncio.to_thread(ClusterFile(settings.node.state_dir).load)
        parts.api.start()
        if cluster is not None:
            parts.membership.fence()
        elif why := await asyncio.to_thread(self._why_orphaned):
            await parts.membership.refuse(why)
        else:
            parts.membership.open_lease()
        await parts.local.configuration.begin()
        await parts.local.reconciler.prepare()
        await parts.local.interfaces.attach()
        await parts.local.configuration.follow_addresses()
        self._network.watch(self._events())
        if cluster is not None:
            await parts.membership.begin(cluster)
        self._start_tasks()
        parts.local.next_hops.wake()
        parts.startup.complete()
        parts.notifier.ready(parts.summary.line())
        role, generation = parts.membership.role, parts.local.transaction.config.generation
        ready = catalogue.NODE_READY(
            f"ready: {parts.summary.line()}", role=role, version=package_version(), generation=generation
        )
        parts.hub.report(log, ready)

    def _why_orphaned(self) -> str:
        """Of a node without a cluster.json. Blocks."""
        file = EpochFile(self._settings.node.state_dir)
        epochs = file.load()[0] if file.exists() else None
        return why_orphaned(epochs, self.parts.local.transaction.config.pair, self._plane.lease()[1])

    def _start_tasks(self) -> None:
        parts = self.parts
        for name, job in (
            ("loop lag", parts.lag.run()),
            ("giving memory back", parts.tidier.run()),
            ("health checks", parts.local.checks.run()),
            ("reconciling", parts.local.reconciler.run()),
            ("announcing", parts.local.announcer.run()),
            ("neighbour keeping", parts.local.next_hops.run()),
            ("flow expiry", parts.local.sweeper.run()),
            ("planning", parts.local.configuration.run()),
            ("state directory", parts.state_watch.run()),
            ("sampling", parts.sampling.run()),
            ("reading of drops", parts.local.drops.run()),
        ):
            parts.supervisor.run(job, name, vital=True)
        interval_s = watchdog_interval_s()
        if interval_s is not None:
            parts.supervisor.run(self._feed_watchdog(interval_s), "watchdog", vital=True)

    async def _feed_watchdog(self, interval_s: float) -> None:
        while True:
            self.parts.notifier.alive()
            await asyncio.sleep(interval_s)

    async def stop(self, detach: bool) -> None:
        """Stop cleanly. Pins, programs and addresses stay and keep forwarding unless `detach`."""
        parts = self.parts
        parts.notifier.stopping()
        await parts.membership.shut_down()
        await parts.local.capture.stop()
        role = parts.membership.role
        parts.hub.report(log, catalogue.NODE_STOPPING(f"xlbd stops as {role} node", role=role))
        parts.hub.wake()
        await parts.notify.finish()
        await parts.api.close()
        await parts.pairing.close()
        await parts.supervisor.close()
        await parts.membership.end()
        self._network.close()
        parts.local.sweeper.close()
        await parts.local.commands.close()
        parts.local.checks.save_down()
        if detach:
            await self._detach()
        self._plane.close()
        parts.notifier.close()

    async def _detach(self) -> None:
        try:
            await self.parts.local.interfaces.detach()
            await asyncio.to_thread(self.parts.local.addresses.withdraw)
        except (PlaneError, XlbError) as error:
            log.error("%s", error)

    # --- the kernel's notifications ------------------------------------------------------------------------------

    def _events(self) -> NetworkEvents:
        return NetworkEvents(
            next_hops_changed=self._next_hops_changed,
            neighbour_lost=self.parts.local.next_hops.lost,
            routes_changed=self._routes_changed,
            link_changed=self._link_changed,
            changed=self.parts.local.reconciler.changed,
            overrun=self._overrun,
        )

    def _next_hops_changed(self) -> None:
        try:
            self._plane.bump_next_hops()
        except (PlaneError, OSError) as error:
            log.error("cached next hops could not be renewed: %s", error)

    def _routes_changed(self) -> None:
        self.parts.local.next_hops.wake()
        if self.parts.membership.member is not None:
            self.parts.membership.member.network_changed()

    def _link_changed(self, name: str, state: str) -> None:
        parts = self.parts
        if parts.membership.member is not None:
            parts.membership.member.link_changed(name, state)
        if name in self._settings.data.interfaces:
            severity = Severity.INFO if state in ("up", "new") else Severity.WARNING
            changed = catalogue.INTERFACE_CHANGED(f"interface {name} is {state}", severity, interface=name, state=state)
            parts.hub.report(log, changed)

    def _overrun(self) -> None:
        """The kernel dropped notifications."""
        self.parts.local.next_hops.wake()
        self.parts.local.reconciler.overrun()
