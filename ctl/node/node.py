"""A running node: its parts put together, begun and ended in order, alone or as half of a pair.

Decides that order, and which part hears of what the kernel reports. What follows from a change stands in
`ctl.node.running_configuration`, how each thing is done in the file it is taken from. Plane, network and attacher are
arguments, so that tests build a node on fakes; the daemon gives it the kernel's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpf.constants import LEASE_FOREVER_NS
from bpf.dataplane import DataPlane, PlaneError
from ctl.api.server import ApiServer
from ctl.cluster.pair_configuration import PairConfiguration
from ctl.cluster.pairing.create_join import ClusterCommands
from ctl.config.model import Config
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.kernel.xdp_interfaces import Attacher, DataInterfaces
from ctl.errors import Code, XlbError
from ctl.health.check_machine import HealthChecks
from ctl.health.probes.runner import CheckRunner, load_down, own_probe
from ctl.health.probes.source_addresses import OwnSources
from ctl.network.neighbours import NextHopKeeper
from ctl.network.network import Network, NetworkEvents
from ctl.network.vip_addresses import VipAddresses
from ctl.node.running_configuration import RunningConfiguration
from ctl.runtime import memory
from ctl.runtime.loop_lag import LoopLag
from ctl.runtime.supervisor import Supervisor
from ctl.runtime.systemd import Notifier, watchdog_interval_s
from ctl.state.cluster_file import ClusterFile, ClusterSettings
from ctl.state.node_file import NodeSettings
from ctl.state.store import Store

if TYPE_CHECKING:
    from ctl.cluster.member import PairMember

ROLE_SINGLE = "single"
SINGLE_EPOCH = 0
CONTROL_SOCKET = "control.sock"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """How the data plane came to be, for `status`."""

    pins: str  # "adopted" | "built" | "upgraded" | "replaced"
    took_ms: float


class Node:
    """Create on a running loop, `start`, and `stop` once."""

    def __init__(
        self,
        settings: NodeSettings,
        plane: DataPlane,
        network: Network,
        attacher: Attacher,
        origin: Origin,
        notifier: Notifier | None = None,
    ) -> None:
        # Imported here: the handlers know the node, and the node only needs their table.
        from ctl.api.commands.dispatcher import Dispatcher

        run_dir = settings.node.run_dir
        self.settings = settings
        self.plane = plane
        self.network = network
        self.origin = origin
        self.started_s = time.monotonic()
        self.started = asyncio.Event()
        self.member: PairMember | None = None
        self._notifier = notifier or Notifier("")
        self.supervisor = Supervisor()
        self.lag = LoopLag()
        self.tidier = memory.Tidier()
        self.addresses = VipAddresses(network, run_dir)
        self.sources = OwnSources(network, lambda: self.config)
        self.checks = CheckRunner(
            HealthChecks(load_down(run_dir)),
            run_dir,
            lambda transition: self.configuration.health_changed(transition),
            own_probe(self.sources),
        )
        self.sweeper = Sweeper(plane, lambda: self.config)
        self.next_hops = NextHopKeeper(network, lambda: self.config)
        self.configuration = RunningConfiguration(
            Store(settings.node.state_dir),
            plane,
            self.addresses,
            self.checks,
            self.next_hops,
            self.sweeper,
            self.supervisor,
            self.show_summary,
        )
        self.interfaces = DataInterfaces(
            settings.data.interfaces, attacher, network, self.supervisor, self.configuration.follow_addresses
        )
        self.cluster = ClusterCommands(self)
        self.dispatcher = Dispatcher(self)
        self.api = ApiServer(run_dir / CONTROL_SOCKET, self.dispatcher.dispatch, self.tidier.soon)

    @property
    def config(self) -> Config:
        return self.configuration.config

    @property
    def pair_config(self) -> PairConfiguration | None:
        """The configuration's way to the peer; None on a single node."""
        return self.member.configuration if self.member is not None else None

    @property
    def role(self) -> str:
        """single, or what the pair made of this node."""
        return ROLE_SINGLE if self.member is None else self.member.role.value

    # --- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve the control socket at once, then make the kernel follow the stored configuration, then say ready.

        Raises XlbError when the node cannot do its work.
        """
        await self.configuration.load()
        cluster = await asyncio.to_thread(ClusterFile(self.settings.node.state_dir).load)
        self.api.start()
        if cluster is None:
            self.plane.set_lease(LEASE_FOREVER_NS, SINGLE_EPOCH)
        else:
            self._fence()
            self.addresses.pair(serving=False)  # before anything is added: that would also be announced
        await self.configuration.begin()
        await self.interfaces.attach()
        await self.configuration.follow_addresses()
        for sentence in await asyncio.to_thread(self.network.enable_forwarding, self.settings.data.interfaces):
            log.info("%s", sentence)
        self.network.watch(self._events())
        if cluster is not None:
            await self._begin_pair(cluster, founding=False)
        for name, job in (
            ("loop lag", self.lag.run()),
            ("giving memory back", self.tidier.run()),
            ("health checks", self.checks.run()),
            ("neighbour keeping", self.next_hops.run()),
            ("flow expiry", self.sweeper.run()),
            ("planning", self.configuration.run()),
        ):
            self.supervisor.run(job, name, vital=True)
        self.next_hops.wake()
        self._start_watchdog()
        self.started.set()
        self._notifier.ready(self.summary())
        log.info("ready: %s", self.summary())

    async def stop(self, detach: bool) -> None:
        """End cleanly. Pins, programs and addresses stay and keep serving unless `detach`."""
        self._notifier.stopping()
        if self.member is not None:
            await self.member.shut_down()
        await self.api.close()
        await self.cluster.close()
        await self.supervisor.close()
        if self.member is not None:
            await self.member.end()
        self.network.close()
        self.sweeper.close()
        self.checks.save_down()
        if detach:
            await self._detach()
        self.plane.close()
        self._notifier.close()

    async def _detach(self) -> None:
        try:
            await self.interfaces.detach()
            await asyncio.to_thread(self.addresses.withdraw)
        except (PlaneError, XlbError) as error:
            log.error("%s", error)

    def _start_watchdog(self) -> None:
        interval_s = watchdog_interval_s()
        if interval_s is not None:
            self.supervisor.run(self._feed_watchdog(interval_s), "watchdog", vital=True)

    async def _feed_watchdog(self, interval_s: float) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(interval_s)

    # --- the pair --------------------------------------------------------------------------------------------

    async def enter_pair(self, cluster: ClusterSettings) -> None:
        """Become half of a pair in the running daemon; cluster.json is the caller's business.

        The pair's creator goes on serving without a pause, as its first active node: call it before the other can be serving.
        Who joins begins fenced, and its addresses go. Raises XlbError with the node single.
        """
        if self.member is not None:
            raise XlbError(
                f"this node is in a pair with {self.member.cluster.peer.name} already; leave it first", Code.PAIR_EXISTS
            )
        self._make_member(cluster)  # refused before anything is changed
        await self.interfaces.report_flows()
        try:
            await self._begin_pair(cluster, cluster.creator)
        except BaseException:
            await self._become_single()
            raise
        self.show_summary()

    async def leave_pair(self) -> None:
        """Become single in the running daemon: a lease that never runs out, addresses on the interfaces.

        The peer must have left before, and a node that does not serve must have no VIPs that somebody else serves.
        """
        if self.member is not None:
            await self._become_single()
            self.show_summary()

    async def _begin_pair(self, cluster: ClusterSettings, founding: bool) -> None:
        member = self._make_member(cluster)
        self.addresses.pair(serving=founding)
        await self.configuration.follow_addresses()  # makes ready what a takeover needs
        await member.begin(founding)
        self.member = member

    def _make_member(self, cluster: ClusterSettings) -> PairMember:
        from ctl.cluster.member import PairMember  # a single node needs none of it

        return PairMember(self, cluster)

    async def _become_single(self) -> None:
        member, self.member = self.member, None
        if member is not None:
            member.pair.stop()
        self.plane.set_lease(LEASE_FOREVER_NS, SINGLE_EPOCH)
        if member is not None:
            await member.end()
        self.addresses.unpair()
        await self.configuration.follow_addresses()

    def _fence(self) -> None:
        """What an earlier run left open for longer than any lease of a pair is closed at once; a shorter one runs out."""
        deadline_ns, epoch = self.plane.lease()
        if deadline_ns > time.monotonic_ns() + self.settings.cluster.lease_ms * 1_000_000:
            self.plane.set_lease(0, epoch)

    # --- what others see -------------------------------------------------------------------------------------

    def summary(self) -> str:
        """One line for systemd and the log."""
        config = self.config
        interfaces = ", ".join(f"{name} ({each.mode})" for name, each in sorted(self.interfaces.attachments.items()))
        serves = f"{len(config.farms)} farms on {len(config.vips)} VIPs"
        return f"{self.role} node {self.settings.node.name} serves {serves}; XDP on {interfaces or 'no interface'}"

    def show_summary(self) -> None:
        """Role or configuration have changed: what the service manager shows follows."""
        self._notifier.status(self.summary())

    # --- the kernel's events ---------------------------------------------------------------------------------

    def _events(self) -> NetworkEvents:
        return NetworkEvents(
            next_hops_changed=self._next_hops_changed,
            neighbour_lost=self.next_hops.lost,
            routes_changed=self.next_hops.wake,
            link_changed=self._link_changed,
            address_lost=self.configuration.address_lost,
        )

    def _next_hops_changed(self) -> None:
        try:
            self.plane.bump_next_hops()
        except (PlaneError, OSError) as error:
            log.error("cached next hops could not be renewed: %s", error)

    def _link_changed(self, name: str, state: str) -> None:
        if self.member is not None:
            self.member.link_changed(name, state)
        if name in self.settings.data.interfaces:
            self.interfaces.changed(name, state)
        elif state == "new":
            self.configuration.interface_came(name)
