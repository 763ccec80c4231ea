"""A running node: ties configuration, data plane, network, health checks and control socket together.

Decides what follows from what: a change wakes the checks and the neighbour keeper, a transition replans, a new link is
attached again. How each thing is done stands in the file it is taken from. Plane, network and attacher are arguments, so
that tests build a node on fakes; the daemon gives it the kernel's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from bpf.attach import Attachment
from bpf.constants import LEASE_FOREVER_NS
from bpf.tables import DataPlane, PlaneError
from ctl import memory
from ctl.api import ApiServer
from ctl.checks import CheckRunner, load_down, own_probe
from ctl.cluster import ClusterCommands
from ctl.clusterfile import ClusterFile, ClusterSettings
from ctl.commit import Committed, Committer
from ctl.errors import XlbError
from ctl.flows import FlowSelection
from ctl.health import HealthChecks, Transition
from ctl.looplag import LoopLag
from ctl.model import Config
from ctl.model import Protocol as Transport
from ctl.network import Network, NetworkEvents
from ctl.nexthops import NextHopKeeper
from ctl.nodefile import NodeSettings
from ctl.notify import Notifier, watchdog_interval_s
from ctl.pair_config import PairConfiguration
from ctl.replica import ConfigReplica
from ctl.sources import OwnSources
from ctl.store import Store
from ctl.sweep import Sweeper
from ctl.vips import VipAddresses

if TYPE_CHECKING:
    from ctl.pair_member import PairMember

ROLE_SINGLE = "single"
SINGLE_EPOCH = 0
CONTROL_SOCKET = "control.sock"
REPLAN_RETRY_S = 5.0
MANY_BACKENDS = 1000
"""A change of so many makes enough objects for a look at all of them to hold up the loop."""

log = logging.getLogger(__name__)


class Attacher(Protocol):
    """Puts the program on interfaces and takes it off. Both raise PlaneError with the remedy."""

    def attach(self, interfaces: Sequence[str]) -> Mapping[str, Attachment]: ...

    def detach(self, interfaces: Sequence[str]) -> Sequence[str]:
        """Returns those that had it; one that is gone, or carries another program, is left as it is."""

    def report_flows(self, on: bool) -> None:
        """Have the program report flow changes for a peer, or not. It is replaced in place if need be; tables stay."""


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
        from ctl.handlers import Dispatcher

        run_dir = settings.node.run_dir
        self.settings = settings
        self.plane = plane
        self.network = network
        self.origin = origin
        self.started_s = time.monotonic()
        self.attachments: dict[str, Attachment] = {}
        self.member: PairMember | None = None
        self.lag = LoopLag()
        self.addresses = VipAddresses(network, run_dir)
        self.sources = OwnSources(network, lambda: self.config)
        self.checks = CheckRunner(HealthChecks(load_down(run_dir)), run_dir, self._transition, own_probe(self.sources))
        self.sweeper = Sweeper(plane, lambda: self.config)
        self.next_hops = NextHopKeeper(network, lambda: self.config)
        self.started = asyncio.Event()
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.tidier = memory.Tidier()
        self.cluster = ClusterCommands(self)
        self.dispatcher = Dispatcher(self)
        self.api = ApiServer(run_dir / CONTROL_SOCKET, self.dispatcher.dispatch, self.tidier.soon)
        self._attacher = attacher
        self._notifier = notifier or Notifier("")
        self._store = Store(settings.node.state_dir)
        self._committer = Committer(Config(), self._store, plane, self.addresses)
        self.replica: ConfigReplica | None = None  # of a pair
        self._tasks: set[asyncio.Task[None]] = set()
        self._replan_wanted = asyncio.Event()

    @property
    def config(self) -> Config:
        return self._committer.config

    @property
    def pair_config(self) -> PairConfiguration | None:
        """The configuration's way to the peer; None on a single node."""
        return self.member.configuration if self.member is not None else None

    @property
    def role(self) -> str:
        """single, or what the pair made of this node."""
        return ROLE_SINGLE if self.member is None else self.member.role.value

    @property
    def epoch(self) -> int:
        """The highest term of leadership this node knows of; 0 on a single node."""
        return SINGLE_EPOCH if self.member is None else self.member.pair.machine.epoch

    @property
    def waiting_changes(self) -> int:
        return self._committer.waiting

    # --- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve the control socket at once, then make the kernel follow the stored configuration, then say ready.

        Raises XlbError when the node cannot do its work.
        """
        config = await asyncio.to_thread(self._load)
        cluster = await asyncio.to_thread(ClusterFile(self.settings.node.state_dir).load)
        self._committer = Committer(config, self._store, self.plane, self.addresses)
        self.api.start()
        self.plane.set_hash_seed(config.hash_seed)
        if cluster is None:
            self.plane.set_lease(LEASE_FOREVER_NS, SINGLE_EPOCH)
        else:
            self._fence()
            self.addresses.pair(serving=False)  # before anything is added: that would also be announced
        self.checks.configure(config)
        await self._committer.replan(self.checks.checks.down)
        await asyncio.to_thread(self._attach, self.settings.data.interfaces)
        await self._follow_addresses()
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
            ("planning", self._replan_when_wanted()),
        ):
            self._spawn(job, name, vital=True)
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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.member is not None:
            await self.member.end()
        self.network.close()
        self.sweeper.close()
        self.checks.save_down()
        if detach:
            await asyncio.to_thread(self._detach)
        self.plane.close()
        self._notifier.close()

    # --- the pair --------------------------------------------------------------------------------------------

    async def enter_pair(self, cluster: ClusterSettings) -> None:
        """Become half of a pair in the running daemon; cluster.json is the caller's business.

        The pair's creator goes on serving without a pause, as its first active node: call it before the other can be serving.
        Who joins begins fenced, and its addresses go. Raises XlbError with the node single.
        """
        if self.member is not None:
            raise XlbError(f"this node is in a pair with {self.member.cluster.peer.name} already; leave it first")
        self._make_member(cluster)  # refused before anything is changed
        try:
            await asyncio.to_thread(self._attacher.report_flows, True)
        except PlaneError as error:
            raise XlbError(str(error)) from error
        try:
            await self._begin_pair(cluster, cluster.creator)
        except BaseException:
            await self._become_single()
            raise
        self._notifier.status(self.summary())

    async def leave_pair(self) -> None:
        """Become single in the running daemon: a lease that never runs out, addresses on the interfaces.

        The peer must have left before, and a node that does not serve must have no VIPs that somebody else serves.
        """
        if self.member is not None:
            await self._become_single()
            self._notifier.status(self.summary())

    async def _begin_pair(self, cluster: ClusterSettings, founding: bool) -> None:
        member = self._make_member(cluster)
        self.addresses.pair(serving=founding)
        await self._follow_addresses()  # makes ready what a takeover needs
        await member.begin(founding)
        self.member = member

    def _make_member(self, cluster: ClusterSettings) -> PairMember:
        from ctl.pair_member import PairMember  # a single node needs none of it

        return PairMember(self, cluster)

    async def _become_single(self) -> None:
        member, self.member = self.member, None
        if member is not None:
            member.pair.stop()
        self.plane.set_lease(LEASE_FOREVER_NS, SINGLE_EPOCH)
        if member is not None:
            await member.end()
        self.addresses.unpair()
        await self._follow_addresses()

    def _fence(self) -> None:
        """What an earlier run left open for longer than any lease of a pair is closed at once; a shorter one runs out."""
        deadline_ns, epoch = self.plane.lease()
        if deadline_ns > time.monotonic_ns() + self.settings.cluster.lease_ms * 1_000_000:
            self.plane.set_lease(0, epoch)

    def role_changed(self) -> None:
        """The pair made something else of this node: what the service manager shows follows."""
        self._notifier.status(self.summary())

    def summary(self) -> str:
        """One line for systemd and the log."""
        config = self.config
        interfaces = ", ".join(f"{name} ({each.mode})" for name, each in sorted(self.attachments.items()))
        serves = f"{len(config.farms)} farms on {len(config.vips)} VIPs"
        return f"{self.role} node {self.settings.node.name} serves {serves}; XDP on {interfaces or 'no interface'}"

    def _load(self) -> Config:
        report = self._store.load()
        if report.message:
            log.warning("%s", report.message)
        if report.config.hash_seed:
            return report.config
        config = replace(report.config, hash_seed=1 + secrets.randbelow(2**32 - 1))
        self._store.save(config)
        return config

    def _attach(self, interfaces: Sequence[str]) -> None:
        try:
            attached = self._attacher.attach(interfaces)
        except PlaneError as error:
            raise XlbError(str(error)) from error
        self.attachments.update(attached)
        for name, attachment in attached.items():
            log.info("XDP on %s is %s%s", name, attachment.mode, f": {attachment.reason}" if attachment.reason else "")
        for sentence in self.network.keep_frames_whole([name for name, each in attached.items() if each.mode == "generic"]):
            log.info("%s", sentence)

    def _detach(self) -> None:
        try:
            for name in self._attacher.detach(self.settings.data.interfaces):
                log.info("XDP was taken off %s", name)
            self.addresses.withdraw()
        except (PlaneError, XlbError) as error:
            log.error("%s", error)

    def _start_watchdog(self) -> None:
        interval_s = watchdog_interval_s()
        if interval_s is not None:
            self._spawn(self._feed_watchdog(interval_s), "watchdog", vital=True)

    async def _feed_watchdog(self, interval_s: float) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(interval_s)

    def _spawn(self, job: Coroutine[Any, Any, None], name: str, vital: bool = False) -> None:
        """Run beside everything else. A `vital` part that fails ends the daemon: its successor starts afresh."""
        task = asyncio.get_running_loop().create_task(job, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, vital))

    def _ended(self, task: asyncio.Task[None], vital: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("failed: %s", task.get_name(), exc_info=task.exception())
        if vital:
            self.give_up(f"{task.get_name()} failed ({task.exception()!r})")

    def give_up(self, why: str) -> None:
        """Something without which this daemon is of no use has failed: it ends, and its successor starts afresh."""
        if not self.failed.done():
            self.failed.set_result(why)

    # --- changes ---------------------------------------------------------------------------------------------

    async def commit(self, make: Callable[[Config], Config]) -> Committed:
        """Put a change in force, in a pair on both nodes; see `Committer.commit` and `ConfigReplica.change`."""
        if self.replica is not None:
            return await self.replica.change(make)
        return await self.commit_here(make)

    async def commit_here(self, make: Callable[[Config], Config]) -> Committed:
        """Put a change in force on this node, whatever the peer has."""
        done = await self._committer.commit(make, self.checks.checks.down)
        if done.new is not done.old:
            await self._follow(done)
        return done

    async def put(self, config: Config) -> Committed:
        """Put a whole configuration in force on this node."""
        return await self.commit_here(lambda _: config)

    async def store(self, config: Config) -> None:
        """Write the peer's configuration; see `Committer.store`."""
        await self._committer.store(config)

    async def adopt(self, config: Config) -> None:
        """Run with the peer's configuration, which is on disk. What this kernel refuses is logged and tried again."""
        old = self.config
        if config.hash_seed != old.hash_seed:
            self.plane.set_hash_seed(config.hash_seed)
        try:
            await self._committer.adopt(config, self.checks.checks.down)
        except (XlbError, PlaneError, OSError) as error:
            log.error("the peer's configuration %d is not in force here, trying again: %s", config.generation, error)
            asyncio.get_running_loop().call_later(REPLAN_RETRY_S, self._replan_wanted.set)
        await self._follow(Committed(old, config))

    async def _follow(self, done: Committed) -> None:
        before = self.checks.checks.down
        await self.checks.follow(done.new)
        if self.checks.checks.down != before:
            self._replan_wanted.set()
        before_change, after_change = changed_backends(done.old, done.new)
        if before_change or after_change:
            self.next_hops.wake()
        if len(after_change) >= MANY_BACKENDS:
            memory.settle()
        gone = before_change - after_change
        if gone:  # what was removed serves no longer; draining is how one lets connections finish
            self._spawn(self._flush(FlowSelection(backends=gone)), "flow removal")
        self._notifier.status(self.summary())

    def _transition(self, transition: Transition) -> None:
        self._replan_wanted.set()
        if not transition.up:
            # A UDP client would talk to the dead backend for as long as it goes on; TCP notices and connects anew, and
            # a connection may outlive a failed check.
            selection = FlowSelection(backends=frozenset({transition.backend_id}), protocol=Transport.UDP)
            self._spawn(self._flush(selection), "flow removal")

    async def _flush(self, selection: FlowSelection) -> None:
        try:
            removed = await self.sweeper.flush(selection)
        except (PlaneError, OSError) as error:
            log.error("flows of removed or failed backends could not be removed: %s", error)
        else:
            log.debug("removed %d flow entries", removed)

    async def _replan_when_wanted(self) -> None:
        while True:
            await self._replan_wanted.wait()
            self._replan_wanted.clear()
            try:
                await self._committer.replan(self.checks.checks.down)
                await asyncio.to_thread(self.checks.save_down)
            except XlbError as error:
                log.error("health changes are not in force yet, trying again in %g s: %s", REPLAN_RETRY_S, error)
                asyncio.get_running_loop().call_later(REPLAN_RETRY_S, self._replan_wanted.set)

    # --- the kernel's events ---------------------------------------------------------------------------------

    def _events(self) -> NetworkEvents:
        return NetworkEvents(
            next_hops_changed=self._next_hops_changed,
            neighbour_lost=self.next_hops.lost,
            routes_changed=self.next_hops.wake,
            link_changed=self._link_changed,
            address_lost=self._address_lost,
        )

    def _next_hops_changed(self) -> None:
        try:
            self.plane.bump_next_hops()
        except (PlaneError, OSError) as error:
            log.error("cached next hops could not be renewed: %s", error)

    def _link_changed(self, name: str, state: str) -> None:
        if self.member is not None:
            self.member.link_changed(name, state)
        if name not in self.settings.data.interfaces:
            if state == "new" and any(vip.device == name for vip in self.config.vips.values()):
                self._spawn(self._follow_addresses(), "addresses")
            return
        log.log(logging.INFO if state in ("up", "new") else logging.WARNING, "interface %s is %s", name, state)
        if state == "gone":
            self.attachments.pop(name, None)
        elif state == "new":
            self._spawn(self._reattach(name), f"attaching {name}")

    async def _reattach(self, name: str) -> None:
        try:
            await asyncio.to_thread(self._attach, (name,))
        except XlbError as error:
            log.error("interface %s came back, but: %s", name, error)
        await self._follow_addresses()

    def _address_lost(self, _index: int, address: str) -> None:
        if address in self.config.vips and self.addresses.serving:
            log.warning("vip %s was removed from its interface by somebody else; putting it back", address)
            self._spawn(self._follow_addresses(), "addresses")

    async def _follow_addresses(self) -> None:
        try:
            await self._committer.follow_addresses()
        except (XlbError, OSError) as error:
            log.error("%s; the VIP cannot be reached until its interface is there", error)


def changed_backends(old: Config, new: Config) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the backends of the farms that differ, before and after. A farm that no change touched is the same object."""

    def ids(of: Config, against: Config) -> frozenset[int]:
        changed = (farm for name, farm in of.farms.items() if against.farms.get(name) is not farm)
        return frozenset(backend.id for farm in changed for backend in farm.backends)

    return ids(old, new), ids(new, old)
