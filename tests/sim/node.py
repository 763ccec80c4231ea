"""One simulated node: a kernel that outlives its daemon, a disk, and a daemon that runs the real machines.

Does what `ctl` will do with effects, as plainly as possible. Everything random comes from the world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from sync.config import config_sync
from sync.failover import machine, types
from sync.failover.types import Role
from sync.flows import receiver, sender, stream

if TYPE_CHECKING:
    from tests.sim.world import World

MS = 1_000_000
Records = list[tuple[int, int | None]]  # key and value of each flow; None: deleted
COARSE_NS = 4 * MS
RING_RECORDS = 8
SLICE_KEYS = 6
INBOX = 4000


class Kernel:
    """Lease, flow table and ring: what stays when the daemon dies."""

    def __init__(self) -> None:
        self.deadline_ns = 0
        self.epoch = 0
        self.table: dict[int, int] = {}
        self.ring: list[tuple[int, int | None]] = []
        self.ring_lost = False

    def write(self, key: int, value: int | None, report: bool) -> None:
        if value is None:
            self.table.pop(key, None)
        else:
            self.table[key] = value
        if report:
            if len(self.ring) >= RING_RECORDS:
                self.ring_lost = True
            else:
                self.ring.append((key, value))


class Disk:
    """Durable values, and writes on their way that a crash loses. One write at a time, in order."""

    def __init__(self) -> None:
        self.epoch, self.reserved = 0, 0
        self.leases = types.Leases()
        self.document = config_sync.EMPTY
        self.conflicts: list[config_sync.Document] = []
        self.busy_until = 0


class Node:
    """Kernel, disk and daemon of one machine."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index, self.name = world, index, f"lb{index + 1}"
        rng = world.rng
        self.drift_ppm = rng.randint(-world.profile.drift_ppm, world.profile.drift_ppm)
        self.clock_offset = rng.randint(0, 10**12)
        self.coarse_phase = rng.randint(0, COARSE_NS - 1)
        self.kernel, self.disk = Kernel(), Disk()
        self.run = 0  # counts daemon starts; 0: never
        self.up = self.paused = self.holding = False
        self.inbox: list[tuple[str, Any]] = []
        self.cut_effects: list[Any] = []  # effects a pause hit in the middle
        self.pause_at: type | None = None  # the next list with such an effect is cut there
        self.pause_length = 0
        self.served_epochs: list[int] = []
        self.answers: list[config_sync.Answer] = []
        self.tick_scheduled = -1
        self.carrier_down = False
        self.log: list[str] = []

    # --- clocks -----------------------------------------------------------------------------------------------------

    def local(self, real_ns: int) -> int:
        return self.clock_offset + real_ns + real_ns * self.drift_ppm // 1_000_000

    def real(self, local_ns: int) -> int:
        return (local_ns - self.clock_offset) * 1_000_000 // (1_000_000 + self.drift_ppm) + 1

    def kernel_open(self) -> bool:
        local = self.local(self.world.now)
        return local - (local + self.coarse_phase) % COARSE_NS < self.kernel.deadline_ns

    # --- life of the daemon -----------------------------------------------------------------------------------------

    def boot(self) -> None:
        world = self.world
        self.run += 1
        self.up, self.paused, self.holding = True, False, False
        self.inbox, self.cut_effects, self.pause_at = [], [], None
        boot = world.rng.getrandbits(48) | 1
        now = self.local(world.now)
        config = world.read_node_file(self.index)
        epoch = max(self.disk.epoch, self.disk.document.version[0])
        self.failover = machine.Failover(config, boot, epoch, self.disk.reserved, now, leases=self.disk.leases)
        limits = stream.Limits(window_blocks=8, queued_records=64, retry_ns=40 * MS)
        self.sender = sender.Sender(boot, 7, limits)
        self.receiver = receiver.Receiver(7, limits)
        self.config: config_sync.ConfigSync = config_sync.ConfigSync(self.disk.document, world.nodes[1 - self.index].name)
        self.peer_alive = False
        self.marked: set[int] | None = None
        self.slice_keys: list[int] = []
        self.standing: tuple[bool, tuple[int, int]] = (False, (0, 0))
        self.finished = False
        self.perform(self.failover.start())
        self.update_standing()
        if self.carrier_down:
            self.hear("carrier", False)
        self.schedule_tick()

    def crash(self, power: bool) -> None:
        """The daemon dies; with `power` the kernel's state too. Writes on their way are lost."""
        self.up = False
        self.run += 1
        self.inbox, self.cut_effects = [], []
        if power:
            self.kernel = Kernel()
            self.clock_offset = -self.world.now + self.world.rng.randint(COARSE_NS, 10**9)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        if not (self.up and self.paused):
            return
        self.paused = False
        effects, self.cut_effects = self.cut_effects, []
        self.perform(effects)
        if self.world.rng.random() < 0.5:
            self.drain()
        else:
            # The sockets' own threads slept too: what waits in them arrives a moment after the timer fired.
            self.holding = True
            run = self.run
            self.world.after(self.world.rng.randint(0, 4 * MS), lambda: self.drain() if self.run == run else None)
        self.tick()

    def drain(self) -> None:
        if self.paused:
            return
        self.holding = False
        inbox, self.inbox = self.inbox, []
        for kind, payload in inbox:
            self.hear(kind, payload)

    # --- input ------------------------------------------------------------------------------------------------------

    def hear(self, kind: str, payload: Any) -> None:
        """Something arrived for the daemon."""
        if not self.up:
            return
        if self.paused or self.holding:
            if len(self.inbox) < INBOX:
                self.inbox.append((kind, payload))
            return
        _INPUTS[kind](self, payload)
        self.update_standing()
        self.schedule_tick()

    def event(self, event: types.Event) -> None:
        if self.up and not self.paused:
            self.perform(self.failover.handle(event, self.local(self.world.now)))

    def hear_beat(self, beat: types.Heartbeat) -> None:
        self.event(types.HeartbeatHeard(beat))
        if self.up and not self.paused:
            self.receiver.set_peer(self.failover.peer_boot)
            self.watch_peer()
            if self.peer_alive:
                self.perform(self.config.peer_has(beat.version, self.local(self.world.now)))

    def hear_block(self, block: stream.Block) -> None:
        self.perform(self.receiver.block(block, self.local(self.world.now)))

    def hear_ack(self, ack: stream.Acknowledgement) -> None:
        self.perform(self.sender.acknowledged(ack, self.local(self.world.now)))

    def hear_slice(self, payload: tuple[int, list[tuple[int, int]], bool]) -> None:
        session, records, last = payload
        self.perform(self.sender.slice_read(session, 4, len(records), records, last, self.local(self.world.now)))  # type: ignore[arg-type]

    def hear_stored(self, payload: tuple[str, Any]) -> None:
        kind, value = payload
        if kind == "epoch":
            self.event(types.EpochPersisted(value))
        elif kind == "leases":
            self.event(types.LeasesPersisted(value))
        else:
            self.perform(self.config.stored(value, self.local(self.world.now)))

    def hear_change(self, payload: tuple[int, int]) -> None:
        """A client wants a configuration change: `token` is added to the set that stands for a configuration."""
        request, token = payload
        body = self.config.document.body + b"%d," % token
        self.perform(self.config.change(request, body, self.local(self.world.now)))

    def tick(self) -> None:
        if not self.up or self.paused:
            return
        now = self.local(self.world.now)
        if now >= self.failover.next_wakeup_ns:
            self.event(types.Tick())
            if self.up and not self.paused:
                self.watch_peer()
                self.read_ring()
                self.perform(self.sender.tick(now))
                self.perform(self.config.tick(now))
                self.update_standing()
        self.schedule_tick()

    def schedule_tick(self) -> None:
        if not self.up or self.paused:
            return
        wake = self.real(self.failover.next_wakeup_ns)
        now = self.world.now
        if now < self.tick_scheduled <= wake + MS:
            return
        self.tick_scheduled = max(now + 1, wake) + self.world.tick_late()
        self.world.at(self.tick_scheduled, self.tick)

    def watch_peer(self) -> None:
        alive = self.failover.peer_alive
        if alive == self.peer_alive:
            return
        self.peer_alive = alive
        if alive:
            if self.failover.serving:
                self.perform(self.sender.start(self.failover.epoch, self.local(self.world.now)))
        else:
            self.sender.stop()
            self.perform(self.config.peer_gone())

    def update_standing(self) -> None:
        if not self.up or self.paused:
            return
        standing = (self.receiver.in_step, self.config.stored_version)
        if standing != self.standing:
            self.standing = standing
            self.event(types.StandingChanged(*standing))

    def read_ring(self) -> None:
        kernel, now = self.kernel, self.local(self.world.now)
        records, kernel.ring = kernel.ring, []
        lost, kernel.ring_lost = kernel.ring_lost, False
        if records:
            self.perform(self.sender.changes(4, len(records), records, now))  # type: ignore[arg-type]
        if lost:
            self.perform(self.sender.overflow(now))

    # --- effects ----------------------------------------------------------------------------------------------------

    def perform(self, effects: Iterable[Any]) -> None:
        effects = list(effects)
        kinds = [type(effect) for effect in effects] if self.pause_at and not self.paused else []
        if self.pause_at in kinds:
            cut = kinds.index(self.pause_at) + self.world.rng.randint(0, 1)
            self.pause_at = None
            self.do(effects[:cut])
            self.pause()
            self.cut_effects += effects[cut:]
            run = self.run
            self.world.after(self.pause_length, lambda: self.resume() if self.run == run else None)
            return
        self.do(effects)

    def do(self, effects: list[Any]) -> None:
        for number, effect in enumerate(effects):
            if self.paused:  # a nested list of effects was cut: the rest comes after it
                self.cut_effects += effects[number:]
                return
            _EFFECTS[type(effect)](self, effect)

    def write_disk(self, write: Callable[[], None], done: tuple[str, Any] | None) -> None:
        world, disk, run = self.world, self.disk, self.run
        disk.busy_until = max(disk.busy_until, world.now) + world.fsync_time()

        def finish() -> None:
            if self.run == run:
                write()
                if done:
                    self.hear("stored", done)

        world.at(disk.busy_until, finish)

    def do_extend(self, effect: types.ExtendLease) -> None:
        if self.local(self.world.now) <= effect.void_after_ns:
            self.kernel.deadline_ns, self.kernel.epoch = effect.deadline_ns, effect.epoch
            self.world.lease_written(self)

    def do_close(self, effect: types.CloseLease) -> None:
        if self.kernel_open():
            self.world.lease_closed(self)
        self.kernel.deadline_ns = 0

    def do_persist(self, effect: types.PersistEpoch) -> None:
        def write() -> None:
            self.disk.epoch, self.disk.reserved = effect.epoch, effect.reserved

        self.write_disk(write, ("epoch", effect.reserved))

    def do_persist_leases(self, effect: types.PersistLeases) -> None:
        self.write_disk(lambda: setattr(self.disk, "leases", effect.leases), ("leases", effect.leases))

    def do_serve(self, effect: types.Serve) -> None:
        self.world.term_begins(self, effect.epoch)
        self.receiver.set_serving(True)
        self.perform(self.config.serve(effect.epoch))
        self.watch_peer()
        if self.peer_alive:
            self.perform(self.sender.start(effect.epoch, self.local(self.world.now)))

    def do_stop_serving(self, effect: types.StopServing) -> None:
        self.receiver.set_serving(False)
        self.perform(self.config.serve(0))

    def do_flush(self, effect: types.FlushFlows) -> None:
        self.read_ring()
        self.perform(self.sender.flush(effect.number))

    def do_flushed(self, effect: sender.Flushed) -> None:
        """What comes of an effect waits until the effects before it are carried out."""
        run = self.run
        self.world.after(0, lambda: self.hear("flushed", effect.number) if self.run == run else None)

    def do_role(self, effect: types.RoleChanged) -> None:
        self.world.note(self, f"{effect.role.value} epoch {effect.epoch}: {effect.why}")
        if effect.role is Role.ACTIVE and self.config.epoch:
            self.perform(self.config.serve(effect.epoch))

    def do_apply(self, effect: receiver.Apply) -> None:
        kernel = self.kernel
        for key, value in cast(Records, effect.block.payload):
            if not effect.only_absent:
                kernel.write(key, value, report=False)
            elif value is not None and key not in kernel.table:
                kernel.write(key, value, report=True)
            if self.marked is not None:
                self.marked.add(key)
        self.perform(self.receiver.applied(effect.block))

    def do_mark(self, effect: receiver.BeginMark) -> None:
        self.marked = set()
        self.sender.stop()
        self.kernel.ring.clear()

    def do_sweep(self, effect: receiver.SweepUnmarked) -> None:
        if self.marked is not None:
            for key in [key for key in self.kernel.table if key not in self.marked]:
                del self.kernel.table[key]
        self.marked = None
        self.perform(self.receiver.applied(effect.block))

    def do_read_slice(self, effect: sender.ReadSlice) -> None:
        """The slice is read from the kernel a moment later, and arrives another moment later, as from a thread."""
        if effect.first:
            self.slice_keys = sorted(self.kernel.table)
        keys, self.slice_keys = self.slice_keys[:SLICE_KEYS], self.slice_keys[SLICE_KEYS:]
        last, run, world = not self.slice_keys, self.run, self.world

        def read() -> None:
            if self.run == run:
                records = [(key, self.kernel.table[key]) for key in keys if key in self.kernel.table]
                world.after(
                    world.rng.randint(0, 3 * MS),
                    lambda: self.hear("slice", (effect.session, records, last)) if self.run == run else None,
                )

        world.after(world.rng.randint(0, 2 * MS), read)

    def do_store(self, effect: config_sync.Store) -> None:
        def write() -> None:
            self.disk.document = effect.document

        self.write_disk(write, ("document", effect.document.version))

    def do_conflict(self, effect: config_sync.KeepConflict) -> None:
        self.write_disk(lambda: self.disk.conflicts.append(effect.document), None)

    def send(self, path: str, kind: str, payload: Any) -> None:
        self.world.send(self.index, path, kind, payload)

    def do_advert(self, effect: types.SendAdvert) -> None:
        if self.local(self.world.now) <= effect.void_after_ns:
            self.send("data", "advert", effect.priority)

    def do_answer(self, effect: config_sync.Answer) -> None:
        self.answers.append(effect)

    def do_completed(self, effect: types.Completed) -> None:
        if effect.request == "shutdown":
            self.finished = True
            self.world.after(1, lambda: self.world.shutdown_done(self))


_INPUTS: dict[str, Callable[[Node, Any], None]] = {
    "beat": Node.hear_beat,
    "advert": lambda node, priority: node.event(types.AdvertHeard(priority)),
    "block": Node.hear_block,
    "ack": Node.hear_ack,
    "slice": Node.hear_slice,
    "offer": lambda node, document: node.perform(node.config.offered(document)),
    "version": lambda node, version: node.perform(node.config.peer_has(version, node.local(node.world.now))),
    "stored": Node.hear_stored,
    "flushed": lambda node, number: node.event(types.FlowsFlushed(number)),
    "change": Node.hear_change,
    "vote": lambda node, answer: node.event(types.VoteAnswered(*answer)),
    "carrier": lambda node, up: node.event(types.CarrierChanged("eth0", up)),
    "request": lambda node, event: node.event(event),
}

_EFFECTS: dict[type, Callable[[Node, Any], None]] = {
    types.SendHeartbeat: lambda node, effect: node.send("cluster", "beat", effect.heartbeat),
    types.SendAdvert: Node.do_advert,
    types.ExtendLease: Node.do_extend,
    types.CloseLease: Node.do_close,
    types.PersistEpoch: Node.do_persist,
    types.PersistLeases: Node.do_persist_leases,
    types.ApplyReplicated: lambda node, effect: None,
    types.Serve: Node.do_serve,
    types.Announce: lambda node, effect: None,
    types.StopServing: Node.do_stop_serving,
    types.FlushFlows: Node.do_flush,
    types.AskVote: lambda node, effect: node.world.ask_vote(node, effect.asked_ns),
    types.RoleChanged: Node.do_role,
    types.Refused: lambda node, effect: node.world.note(node, f"refused {effect.request}: {effect.why}"),
    types.Completed: Node.do_completed,
    sender.SendBlock: lambda node, effect: node.send("bulk", "block", effect.block),
    receiver.SendAcknowledgement: lambda node, effect: node.send("bulk", "ack", effect.acknowledgement),
    sender.ReadSlice: Node.do_read_slice,
    sender.Flushed: Node.do_flushed,
    receiver.BeginMark: Node.do_mark,
    receiver.Apply: Node.do_apply,
    receiver.SweepUnmarked: Node.do_sweep,
    stream.StepChanged: lambda node, effect: node.world.note(node, f"in step {effect.in_step}: {effect.why}"),
    config_sync.Store: Node.do_store,
    config_sync.KeepConflict: Node.do_conflict,
    config_sync.Adopt: lambda node, effect: None,
    config_sync.SendOffer: lambda node, effect: node.send("cluster", "offer", effect.document),
    config_sync.SendVersion: lambda node, effect: node.send("cluster", "version", effect.version),
    config_sync.Answer: Node.do_answer,
}
