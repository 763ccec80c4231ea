"""One simulated node: a kernel and a disk that outlive its daemon, and daemons that run the product's own code.

A `Daemon` is one incarnation of xlbd's part in the pair, composed as `ctl.cluster.member` composes it: driver, effects, epoch
writer, addresses, flow replication, configuration transaction and replication. Only links, kernel, disk, threads and time are
simulated. Everything random comes from the world.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctl.cluster.config_replication import ConfigReplica
from ctl.cluster.driver import FailoverDriver, Standing
from ctl.cluster.effects import APPLY_BOUND_S, Sinks
from ctl.cluster.epoch_writer import EpochWriter
from ctl.cluster.flows.engine import ReplicationEngine
from ctl.cluster.flows.service import COMMANDS_PER_STEP, Command, Replicator
from ctl.cluster.peer_rpc import PeerLink
from ctl.config import changes
from ctl.config.changes import Committed
from ctl.errors import XlbError
from ctl.network.neighbours import NextHopKeeper
from ctl.network.vip_addresses import VipAddresses
from ctl.node.reconciler import Reconciler
from ctl.node.transaction import Transaction
from ctl.runtime.clock import Clock
from ctl.state.epoch_file import EpochFile
from ctl.state.store import Store
from sync.failover import heartbeat_codec
from sync.failover.types import Event, FailoverConfig, FaultChanged, Heartbeat, Role
from tests.fakes.plane import key_dtype
from tests.fakes.reconciler import reconciler_of
from tests.sim.disk import Disk
from tests.sim.kernel import FAMILY, Kernel, connection
from tests.sim.links import Links
from tests.sim.loop import Killed, NodeLoop

if TYPE_CHECKING:
    from tests.sim.world import World

MS = 1_000_000
Records = list[tuple[int, int | None]]  # key and value of each flow; None: deleted
COARSE_NS = 4 * MS
STATE_DIR, RUN_DIR = Path("/state"), Path("/run")
PAIR_ID = "5" * 32
CARRIER, NO_CARRIER = FaultChanged("carrier eth0"), FaultChanged("carrier eth0", "no carrier on eth0")
HEALTHY, DEGRADED = FaultChanged("settings"), FaultChanged("settings", "forwarding is switched off", disables=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """What a client of the control socket was answered about its change."""

    token: int
    note: str  # empty: it is on both disks


class Node:
    """Kernel, disk and daemon of one machine."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index, self.name = world, index, f"lb{index + 1}"
        rng = world.rng
        self.drift_ppm = rng.randint(-world.profile.drift_ppm, world.profile.drift_ppm)
        self.clock_offset = rng.randint(0, 10**12)
        self.coarse_phase = rng.randint(0, COARSE_NS - 1)
        self.disk = Disk(lambda: self.daemon_did("disk"))
        self.kernel = Kernel(self)
        self.daemon: Daemon | None = None
        self.incarnations = 0
        self.stop_at = ""  # after the next effect of this kind the daemon is stopped
        self.stop_length = 0
        self.served_epochs: list[int] = []
        self.answers: list[Answered] = []
        self.carrier_down = self.degraded = False

    # --- clocks -------------------------------------------------------------------------------------------------

    def local(self, real_ns: int) -> int:
        return self.clock_offset + real_ns + real_ns * self.drift_ppm // 1_000_000

    def real(self, local_ns: int) -> int:
        return (local_ns - self.clock_offset) * 1_000_000 // (1_000_000 + self.drift_ppm) + 1

    def kernel_open(self) -> bool:
        """Whether the program would serve VIPs now: it compares the lease with the coarse clock."""
        local = self.local(self.world.now)
        return local - (local + self.coarse_phase) % COARSE_NS < self.kernel.lease()[0]

    # --- what others may ask ------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether a daemon lives, stopped or not."""
        return self.daemon is not None and self.daemon.alive

    @property
    def ready(self) -> bool:
        """Whether the daemon takes part in the pair."""
        return self.up and self.daemon is not None and self.daemon.ready

    @property
    def serving(self) -> bool:
        return self.ready and self.pair.machine.serving

    @property
    def pair(self) -> FailoverDriver:
        assert self.daemon is not None
        return self.daemon.pair

    def file(self, name: str) -> bytes:
        """The content of a state file, empty when there is none."""
        path = STATE_DIR / name
        return self.disk.read(path) if self.disk.exists(path) else b""

    # --- life of the daemon -------------------------------------------------------------------------------------

    def boot(self) -> None:
        """A daemon starts."""
        self.incarnations += 1
        self.daemon = Daemon(self, self.world.read_node_file(self.index), self.world.rng.getrandbits(48) | 1)
        self.daemon.spawn(self.daemon.begin())

    def crash(self, power: bool = False) -> None:
        """The daemon dies; with `power` the kernel's state and unsynced names too. Writes on their way are lost."""
        if self.daemon is not None:
            self.daemon.die()
        self.incarnations += 1
        if power:
            if self.disk.power_cut():
                self.world.mark("power cut lost a file name")
            self.kernel = Kernel(self)
            self.clock_offset = -self.world.now + self.world.rng.randint(COARSE_NS, 10**9)

    def stop(self) -> None:
        """SIGSTOP."""
        if self.daemon is not None and self.daemon.alive:
            self.daemon.stopped = True

    def cont(self) -> None:
        """SIGCONT. A daemon that is stopped inside an effect must return from it before anything else of it runs."""
        if self.daemon is not None and self.daemon.alive and self.daemon.stopped and not self.daemon.inside:
            self.daemon.cont()

    def daemon_did(self, what: str) -> None:
        """An effect has reached kernel, network or disk. The world may want the daemon stopped before its next one."""
        daemon = self.daemon
        if self.stop_at != what or daemon is None or not daemon.alive or daemon.stopped:
            return
        self.stop_at = ""
        self.world.mark(f"stopped after {what}")
        daemon.stopped = daemon.inside = True
        self.world.run_until(self.world.now + self.stop_length)  # everything else continues
        daemon.inside = False
        if not daemon.alive:
            self.world.mark("died between two effects")
            raise Killed
        if daemon.stopped:
            daemon.cont()

    def arrive(self, kind: str, payload: Any) -> None:
        """A message arrives for whatever daemon is there."""
        if self.daemon is not None and self.daemon.alive:
            self.daemon.links.arrive(kind, payload)


class Flows(Replicator):
    """Remembers what a takeover waits for."""

    applying_since_ns: int | None = None

    def apply_pending(self, done: Callable[[], None]) -> None:
        self.applying_since_ns = self._now_ns()

        def applied() -> None:
            self.applying_since_ns = None
            done()

        super().apply_pending(applied)

    @property
    def only_adds(self) -> bool:
        """Whether flows of the peer may only be added: this node is active."""
        return self._engine.receiver.serving

    def overtaken(self, now_ns: int) -> bool:
        """Whether received flows are not in the maps yet, and the time to wait for them is not over."""
        since_ns = self.applying_since_ns
        return since_ns is not None and now_ns - since_ns < APPLY_BOUND_S * 1e9


class SimWorker:
    """Implements `ctl.cluster.flows.service.Worker`: a thread of the simulated daemon."""

    def __init__(self, daemon: Daemon, engine: ReplicationEngine, failed: Callable[[Exception], None], now_ns: Clock) -> None:
        self._daemon, self._engine, self._failed, self._now_ns = daemon, engine, failed, now_ns
        self._commands: deque[Command] = deque()
        self._due = -1
        self._closed = False
        self._wake(0)

    def put(self, command: Command) -> None:
        self._commands.append(command)
        self._wake(0)

    def close(self) -> None:
        self._closed = True

    def _wake(self, wait_ns: int) -> None:
        world = self._daemon.world
        due = world.now + wait_ns + world.scheduled_late()
        if world.now <= self._due <= due:
            return
        self._due = due
        world.at(due, lambda: self._run(due))

    def _run(self, due: int) -> None:
        daemon = self._daemon
        if due != self._due or self._closed or not daemon.alive:
            return
        if daemon.stopped:
            daemon.when_continued(lambda: self._run(due))
            return
        self._due = -1
        try:
            for _ in range(min(COMMANDS_PER_STEP, len(self._commands))):
                self._commands.popleft()(self._now_ns())
            wait_ns = self._engine.step(self._now_ns())
        except Exception as error:
            daemon.world.fail(f"{daemon.node.name}: the flow worker failed: {error!r}")
            self._failed(error)
            return
        self._wake(0 if self._commands else wait_ns)


class Daemon:
    """One incarnation of xlbd. `alive`: not killed. `stopped`: by SIGSTOP."""

    def __init__(self, node: Node, config: FailoverConfig, boot: int) -> None:
        self.node, self.world, self.config, self.boot = node, node.world, config, boot
        self.alive, self.stopped, self.ready = True, False, False
        self.inside = False  # stopped between two effects of one list
        self.loop = NodeLoop(self)  # type: ignore[abstract]  # unused parts of the interface are left out
        self.links = Links(self)
        self._when_continued: list[Callable[[], None]] = []
        self._spawned: list[Coroutine[Any, Any, None]] = []

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC of this machine."""
        return self.node.local(self.world.now)

    # --- signals ------------------------------------------------------------------------------------------------

    def die(self) -> None:
        if not self.alive:
            return
        if self.loop.threads:
            self.world.mark("work in a thread lost in a crash")
        if self.ready and self.replicator.status().swept_entries:
            self.world.mark("stale flows swept")
        self.alive = self.ready = False
        self.loop.discard()
        for work in self._spawned:
            with contextlib.suppress(RuntimeError, ValueError):
                work.close()

    def cont(self) -> None:
        self.stopped = False
        waiting, self._when_continued = self._when_continued, []
        for each in waiting:
            self.world.after(self.world.scheduled_late(), each)
        if self.world.rng.random() < 0.5:
            # The sockets' own threads were stopped too: what waits in them arrives a moment after the timer fired.
            self.links.holding = True
            self.world.after(self.world.rng.randint(0, 4 * MS), self.links.release)
        self.loop.resume()

    def when_continued(self, act: Callable[[], None]) -> None:
        self._when_continued.append(act)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task of the daemon; an error is a broken rule."""

        async def checked() -> None:
            try:
                await work
            except Exception as error:
                self.world.fail(f"{self.node.name}: {error!r}")

        self._spawned.append(work)
        self.loop.create_task(checked())

    # --- composition, as in ctl.cluster.member and ctl.node -----------------------------------------------------

    async def begin(self) -> None:
        """Take part in the pair."""
        node, kernel, disk, now_ns = self.node, self.node.kernel, self.node.disk, self.now_ns
        file = EpochFile(STATE_DIR, disk)
        stored, warning = await asyncio.to_thread(file.load)
        if warning:
            self.world.fail(f"{node.name} starts with a damaged file: {warning}")
        self.addresses = VipAddresses(kernel.network, RUN_DIR, disk, lambda: kernel.lease()[0] > now_ns())
        self.addresses.pair(serving=False)
        self.transaction = Transaction(
            Store(STATE_DIR, disk), kernel, self.addresses, lambda _: frozenset(), self._in_force, self._kernel_refused
        )
        await self.transaction.load()
        await self.transaction.replan()
        await self.transaction.follow_addresses()
        epochs = EpochWriter(file, replace(stored, epoch=max(stored.epoch, self.transaction.config.epoch)), thread=_NO_THREAD)
        self.replicator = Flows(
            kernel,
            self.links.send_flows,
            self.boot,
            lambda: self.pair.clock.offset_ns,
            lambda: len(kernel.flow_maps["flows", FAMILY]) // 2,
            self._step_changed,
            lambda engine, failed, clock: SimWorker(self, engine, failed, clock),
            now_ns,
        )
        peer = self.config.peer
        self.replica = ConfigReplica(self.transaction, PAIR_ID, peer, STATE_DIR, self.serving_epoch, disk, now_ns)
        self.peer_link = PeerLink(peer, self.links.send_configuration, _answer_nothing, self.replica.heard)
        sinks = Sinks(kernel, self.addresses, self.links, self.replicator, epochs, served=self._served)
        self.pair = FailoverDriver(self.config, sinks, self._standing, self._gave_up, self.boot, now_ns)
        self.pair.start()
        self.ready = True
        if self.world.profile.reconciles:
            self.reconciler = self._reconciler()
            self.spawn(self.reconciler.run())
        if node.carrier_down:
            self.pair.fault_changed(NO_CARRIER)
        if node.degraded:
            self.pair.fault_changed(DEGRADED)
        self.replica.connect(self.peer_link)
        await self.transaction.record_with(self.replica, self.replica.start)
        self.links.open(
            {
                "heartbeat": self._heartbeat,
                "advert": lambda priority: self.pair.advert_heard(priority, False),
                "vote": self.pair.vote_answered,
                "flows": self.replicator.message,
                "configuration": self.peer_link.received,
            }
        )

    def _reconciler(self) -> Reconciler:
        """It keeps VIPs; the simulated kernel has no program, sysctls or neighbours to keep."""

        def fault(name: str, message: str, disables: bool) -> None:
            self.pair.fault_changed(FaultChanged(name, message, disables))

        next_hops = NextHopKeeper(self.node.kernel.network, lambda: self.transaction.config)
        return reconciler_of(self.node.kernel.network, self.transaction, self.addresses, next_hops, fault)

    def notified(self) -> None:
        """The kernel reports a change of an address."""
        if self.stopped:
            self.when_continued(self.notified)
        elif self.world.profile.reconciles:
            self.loop.run(self.reconciler.changed)

    def serving_epoch(self) -> int:
        """The epoch this node serves in; 0: it does not."""
        machine = self.pair.machine
        return machine.epoch if machine.serving else 0

    def _heartbeat(self, data: bytes) -> None:
        message = heartbeat_codec.decode_control(data)
        assert isinstance(message, Heartbeat)
        self.pair.heartbeat_heard(message)

    def _standing(self) -> Standing:
        version, heard = self.replica.version, self.pair.heard
        return self.replicator.complete and (heard is None or version >= heard.version), version

    def _step_changed(self, in_step: bool, why: str) -> None:
        self.world.logged(self.node, f"flow maps {'in step' if in_step else 'not in step'}: {why}")
        self.pair.update_standing()

    def _served(self) -> None:
        self.world.took_over(self.node)

    def _gave_up(self, why: str) -> None:
        self.world.fail(f"{self.node.name} gave up: {why}")

    async def _in_force(self, done: Committed) -> None:
        """Checks and neighbours would follow."""
        if not self.node.serving:
            self.world.mark("configuration of the peer adopted")

    def _kernel_refused(self) -> None:
        self.world.fail(f"{self.node.name}: the kernel refused a configuration")

    # --- what clients, operators and the kernel do --------------------------------------------------------------

    def sweep(self, number: int) -> None:
        """The expiry sweep removes a connection."""
        each = connection(number)
        keys = np.frombuffer(each.key + each.reply_key, key_dtype(FAMILY))
        self.node.kernel.delete_flows("flows", FAMILY, keys)
        self.replicator.removed(FAMILY, keys[:1])

    async def change(self, token: int) -> None:
        """A client of the control socket adds a farm, or a VIP."""
        noun, arguments = change_of(token)
        try:
            done = await self.transaction.commit(lambda config: changes.change(config, f"{noun}.add", arguments))
        except XlbError as error:
            self.world.refused_change(self.node, error)
        else:
            self.world.accepted_change(self.node, Answered(token, done.note))

    async def request(self, name: str, event: Event) -> None:
        """An operator's request."""
        try:
            await asyncio.wait_for(self.pair.requests.ask(name, lambda: self.pair.handle(event)), 10.0)
        except (XlbError, TimeoutError) as error:
            self.world.request_refused(self.node, name, error)
        else:
            self.world.mark(f"{name} done")

    async def shut_down(self) -> None:
        """SIGTERM: the process ends, and is started again."""
        try:
            await self.pair.shut_down()
        except XlbError:
            self.world.mark("shutdown without a hand-over")
        self.world.shutdown_done(self.node)

    def fault(self, fault: FaultChanged) -> None:
        if self.ready:
            self.loop.call_soon(self.pair.fault_changed, fault)

    @property
    def role(self) -> Role:
        return self.pair.machine.role


def change_of(token: int) -> tuple[str, dict[str, Any]]:
    """The change of this number: every fourth adds a VIP."""
    if token % 4 == 0:
        return "vip", {"address": f"10.9.{token >> 8 & 255}.{token & 255}/16", "device": "eth0"}
    return "farm", {"name": f"t{token}", "vip": "10.9.0.1", "port": 1 + token % 65535}


def mark_of(token: int) -> bytes:
    """What a record contains that has the change of this number."""
    return b'"10.9.%d.%d"' % (token >> 8 & 255, token & 255) if token % 4 == 0 else b'"t%d"' % token


async def _answer_nothing(command: str, arguments: dict[str, Any]) -> Any:
    raise XlbError(f"nothing answers {command}")


class _NoThread:
    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None: ...


_NO_THREAD: Any = _NoThread()  # the simulated loop runs what is given to any executor
