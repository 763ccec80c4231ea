"""The simulated world: time, network, threads, a witness, a gateway, clients, faults, and the rules that must always hold.

All times are integer nanoseconds of true time; each node's clock runs at its own offset and rate. Everything random comes
from one generator, so a seed replays exactly.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from bpf.constants import LEASE_HANDED_OVER_NS
from ctl.config.model import Config, Vip
from ctl.config.record_codec import Encoder
from ctl.network.network import InterfaceAddress
from ctl.network.vip_addresses import wanted
from ctl.state.epoch_file import EpochFile, EpochState
from ctl.state.store import FILE as FARMS_FILE
from ctl.state.store import Store
from sync.failover import types
from sync.failover.timing import Timing, check_timing
from sync.failover.types import FailoverConfig, Vote
from tests.sim.kernel import CONNECTIONS, connection
from tests.sim.links import endpoint
from tests.sim.loop import NodeLoop
from tests.sim.marks import marks_of_log
from tests.sim.node import CARRIER, DEGRADED, HEALTHY, MS, NO_CARRIER, PAIR_ID, STATE_DIR, Answered, Node, mark_of

STOP_AT = ("decision", "lease", "heartbeat", "advert", "addresses", "announce", "disk")
"""Effects after which a daemon may be stopped before its next one."""
FAULTS_UNTIL = 500 * MS
BLIND_FROM = 120 * MS
CONVERGED_WITHIN = 600 * MS
TIMES_MS = ((10, 30, 36), (10, 60, 70), (20, 90, 104), (30, 120, 135))
"""heartbeat, lease, takeover: which of them a node file has may change whenever its daemon is away."""
QUIET = 150 * MS
FLAPPING, MOST_MOVES = 450 * MS, 4
"""So few moves of the VIPs do carriers cause that flap in turn for this time, ten times and more."""


@dataclass(frozen=True)
class Profile:
    """What may go wrong in a history, and whether two nodes may ever answer at once."""

    name: str
    vote: Vote
    faults: tuple[str, ...]
    exclusive: bool  # never two open leases
    delay_ns: int = 2 * MS  # longest on the cluster link without a fault
    loss: float = 0.0  # on the cluster link
    drift_ppm: int = 500
    data_loss: float = 0.05  # of advertisements
    duplicates: float = 0.02  # messages that arrive a second time, up to 20 ms later
    most_faults: int = 6
    blind: bool = False  # the cluster link is cut before anything else goes wrong
    late_ns: int = 200 * MS  # so late the second node may start
    times: bool = False  # the node files say different times, and others after a restart
    reconciles: bool = False  # the daemons compare their kernel with what they need


PROCESS = (
    "crash",
    "crash",
    "pause",
    "pause",
    "pause_inside",
    "power",
    "crash_both",
    "pause_blind",
    "slow",
    "disk_full",
    "disk_read_only",
    "advert_cut",
    "carrier",
    "degraded",
    "forge",
    "switchover",
    "maintenance",
    "restart",
)
NETWORK = ("cut_both", "cut_cluster", "cut_data", "cut_one_way", "cut_vote", "lossy", "slow_net")

PROFILES = (
    Profile("process", Vote.NONE, PROCESS, exclusive=True, delay_ns=16 * MS),
    Profile("witness", Vote.WITNESS, PROCESS + NETWORK + NETWORK, exclusive=True, loss=0.02, times=True),
    Profile("gateway", Vote.GATEWAY, ("isolate", "isolate", "crash", "power", "switchover", "restart"), exclusive=True),
    Profile("flap", Vote.NONE, ("flap",), exclusive=True, most_faults=1),
    Profile("cut", Vote.NONE, PROCESS + NETWORK, exclusive=False, loss=0.02),
    Profile("blind", Vote.NONE, ("pause", "crash"), True, 4 * MS, data_loss=0.0, most_faults=1, blind=True),
    Profile("times", Vote.NONE, (*PROCESS, "crash", "restart", "crash_both"), True, 8 * MS, times=True),
    Profile(
        "blind_times", Vote.NONE, ("die",), True, 4 * MS, data_loss=0.0, most_faults=1, blind=True, late_ns=400 * MS, times=True
    ),
    Profile(
        "lost_notifications",
        Vote.NONE,
        ("address_lost", "address_lost", "address_lost", "crash", "pause", "pause_inside", "switchover", "carrier"),
        exclusive=True,
        delay_ns=4 * MS,
        reconciles=True,
    ),
)


def timing_of(times_ms: tuple[int, int, int]) -> Timing:
    timing = Timing.from_ms(*times_ms, failback_delay_ns=80 * MS, handover_timeout_ns=100 * MS)
    check_timing(timing)
    return timing


class Violation(AssertionError):
    """A rule was broken; the message names it, the time, and how to replay it."""


class Sight(logging.Handler):
    """What the daemons log, as history and marks. The running loop shows which node logs."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        loop = asyncio._get_running_loop()
        node = loop._daemon.node if isinstance(loop, NodeLoop) else None
        self.world.logged(node, record.getMessage())


class World:
    """Two nodes and everything around them. `run` plays one history."""

    def __init__(self, seed: int, profile: Profile | None = None, faults: int | None = None) -> None:
        self.seed = seed
        rng = self.rng = random.Random(seed)
        self.profile = profile or PROFILES[seed % len(PROFILES)]
        self.now: int = 0
        self.heap: list[tuple[int, int, Callable[[], Any]]] = []
        self.order = 0
        self.history: list[str] = []
        self.marks: Counter[str] = Counter()
        self.violation: Violation | None = None
        failback = rng.random() < 0.2
        formed = timing_of(rng.choice(TIMES_MS) if self.profile.times else TIMES_MS[0])
        self.configs = [
            FailoverConfig(f"lb{i + 1}", f"lb{2 - i}", formed, priority, failback, self.profile.vote)
            for i, priority in enumerate(rng.choice(((100, 50), (50, 100))))
        ]
        self.cut: dict[tuple[int, str], bool] = {}  # (sender, path) or (node, "vote")
        self.bulk_arrives = [0, 0]
        self.captured: tuple[deque[bytes], deque[bytes]] = (deque(maxlen=500), deque(maxlen=500))  # by receiver
        self.loss = self.profile.loss
        self.slow_net = self.slow_process = 0
        self.witness_holder, self.witness_until = -1, 0
        self.epochs: dict[int, int] = {}  # served, and by which node
        self.announcer: Node | None = None  # the last
        self.traffic = True
        self.next_token = 0
        self.nodes = [Node(self, 0), Node(self, 1)]
        for node in self.nodes:  # the pair was made a while ago, when both had the same times
            EpochFile(STATE_DIR, node.disk).save(EpochState(0, 0, False, formed.lease_ns, formed.lease_ns))
            Store(STATE_DIR, node.disk).save(FIRST_RECORD)
        self.fault_count = rng.randint(1, self.profile.most_faults) if faults is None else faults

    def read_node_file(self, index: int) -> FailoverConfig:
        """What a daemon that starts finds; an administrator may have changed the times meanwhile."""
        if self.profile.times and self.rng.random() < 0.5:
            self.configs[index] = replace(self.configs[index], timing=timing_of(self.rng.choice(TIMES_MS)))
            self.note(self.nodes[index], f"lease {self.configs[index].timing.lease_ns // MS} ms in the node file")
            self.mark("node file with other times")
        return self.configs[index]

    # --- time -------------------------------------------------------------------------------------------------------

    def at(self, when: int, what: Callable[[], Any]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (when, self.order, what))

    def after(self, delay: int, what: Callable[[], Any]) -> None:
        self.at(self.now + delay, what)

    def run_until(self, end: int) -> None:
        """Play on. A daemon that is stopped inside an effect calls this, too: the rest of the world continues meanwhile."""
        heap = self.heap
        while heap and heap[0][0] <= end:
            when, _, what = heapq.heappop(heap)
            self.now = max(self.now, when)
            what()
            if self.violation is not None:
                raise self.violation
        self.now = max(self.now, end)

    def timer_late(self) -> int:
        if self.slow_process:
            return self.rng.randint(0, self.slow_process)
        return self.rng.randint(0, MS) if self.rng.random() < 0.95 else self.rng.randint(0, 5 * MS)

    def scheduled_late(self) -> int:
        """How long a thread that is ready waits for a processor."""
        return self.rng.randint(10_000, MS // 2) + (self.rng.randint(0, self.slow_process) if self.slow_process else 0)

    def thread_time(self) -> int:
        """How long work in a thread takes, an fsync included."""
        return self.rng.randint(MS // 5, 3 * MS) if self.rng.random() < 0.9 else self.rng.randint(3 * MS, 25 * MS)

    # --- what is seen -----------------------------------------------------------------------------------------------

    def mark(self, name: str) -> None:
        """This has happened; see `tests.sim.marks`."""
        self.marks[name] += 1

    def logged(self, node: Node | None, message: str) -> None:
        """A line for the operator."""
        self.note(node, message)
        for mark in marks_of_log(message):
            self.mark(mark)

    def note(self, node: Node | None, text: str) -> None:
        self.history.append(f"{self.now / MS:9.3f} ms {node.name if node else '   '} {text}")

    def fail(self, text: str) -> None:
        """A rule is broken. The history ends at the end of the present event: asyncio would keep an exception to itself."""
        when = f"at {self.now / MS:.3f} ms, profile {self.profile.name}"
        self.violation = self.violation or Violation(f"{text}\n  {when}; replay: python -m tests.sim --replay {self.seed}")

    # --- network ----------------------------------------------------------------------------------------------------

    def send(self, sender: int, path: str, kind: str, payload: Any) -> bool:
        rng = self.rng
        link = "cluster" if path == "bulk" else path
        if self.cut.get((sender, link)):
            return path != "bulk"  # a connection is missed, a datagram is not
        loss = self.loss if path != "data" else max(self.loss, self.profile.data_loss)
        if loss and rng.random() < loss:
            return True
        receiver = self.nodes[1 - sender]
        delay = 50_000 + int(rng.random() ** 4 * (2 * MS if path == "bulk" else self.profile.delay_ns))
        if self.slow_net and rng.random() < 0.5:
            delay += int(rng.random() * self.slow_net)
        arrives = self.now + delay
        if path == "bulk":  # one TCP connection: what is not lost with it stays in order
            arrives = self.bulk_arrives[sender] = max(arrives, self.bulk_arrives[sender] + 1)
        self.at(arrives, lambda: receiver.arrive(kind, payload))
        if path == "data":  # whoever listens there has it once it has arrived
            self.at(arrives + 1, lambda: self.captured[receiver.index].append(payload))
        if rng.random() < self.profile.duplicates:
            self.at(self.now + delay + int(rng.random() * 20 * MS), lambda: receiver.arrive(kind, payload))
        return True

    def ask_vote(self, node: Node, asked_ns: int) -> None:
        """The question travels, is answered there, and the answer travels back."""
        if self.cut.get((node.index, "vote")) or self.rng.random() < self.loss:
            return
        self.after(100_000 + int(self.rng.random() ** 4 * 2 * MS), lambda: self.answer_vote(node, asked_ns))

    def answer_vote(self, node: Node, asked_ns: int) -> None:
        granted = True
        if self.profile.vote is Vote.WITNESS:
            granted = self.witness_holder == node.index or self.now >= self.witness_until
            if granted:
                self.witness_holder = node.index
                self.witness_until = self.now + self.configs[node.index].timing.takeover_ns
        if not granted:
            self.mark("vote refused")
        elif not self.cut.get((node.index, "vote")):
            self.after(100_000 + int(self.rng.random() ** 4 * 2 * MS), lambda: node.arrive("vote", asked_ns))

    # --- rules ------------------------------------------------------------------------------------------------------

    def lease_written(self, node: Node, deadline_ns: int, epoch: int, was_open: bool) -> None:
        """The daemon has written its kernel's lease."""
        other = self.nodes[1 - node.index]
        if node.kernel_open():
            if not was_open and node.ready and node.daemon:
                if not node.daemon.replicator.complete:
                    self.mark("takeover while flow maps are not in step")
                if node.daemon.replicator.overtaken(node.daemon.now_ns()):
                    self.fail(f"{node.name} opens its lease before the flows it received are in its maps")
            if other.kernel_open() and self.profile.exclusive:
                epochs = f"{node.name} (epoch {epoch}) and {other.name} (epoch {other.kernel.lease()[1]})"
                self.fail(f"two open leases: {epochs}")
        if deadline_ns == LEASE_HANDED_OVER_NS:
            self.mark("hand-over marker set")
            if left := node.kernel.network.vips():
                self.fail(f"{node.name} forwards after a hand-over and still has {left}")
        elif not deadline_ns and node.kernel.forwards:
            self.mark("hand-over marker removed")
        node.kernel.forwards = deadline_ns == LEASE_HANDED_OVER_NS

    def took_over(self, node: Node) -> None:
        """The effects of a takeover are carried out."""
        epoch = node.kernel.lease()[1]
        if self.epochs.setdefault(epoch, node.index) != node.index:
            self.fail(f"epoch {epoch} is served by both nodes")
        if node.served_epochs and epoch <= node.served_epochs[-1]:
            self.fail(f"{node.name} went from epoch {node.served_epochs[-1]} to {epoch}")
        stored, _ = EpochFile(STATE_DIR, node.disk).load()
        if max(stored.reserved, stored.epoch) < epoch:
            self.fail(f"{node.name} serves with epoch {epoch}, which is not on its disk")
        node.served_epochs.append(epoch)
        if node.disk.full or node.disk.read_only:
            self.mark("takeover while the disk refuses")

    def addresses_added(self, node: Node) -> None:
        """VIPs have come onto the interfaces."""
        if not node.kernel_open():
            self.fail(f"{node.name} adds VIPs without a lease")

    def announced(self, node: Node, addresses: Sequence[InterfaceAddress]) -> None:
        """Gratuitous ARP and unsolicited neighbour advertisements left."""
        if not node.kernel_open():
            self.fail(f"{node.name} announces VIPs without a lease")
        self.announcer = node

    def advert_sent(self, node: Node, priority: int) -> None:
        """A VRRP advertisement left."""
        if priority and not node.kernel_open() and self.profile.exclusive and self.nodes[1 - node.index].kernel_open():
            self.fail(f"{node.name} advertises while {self.nodes[1 - node.index].name} has the lease")

    def accepted_change(self, node: Node, answered: Answered) -> None:
        """A client was answered that its change is stored."""
        node.answers.append(answered)
        self.mark("change on one node only" if answered.note else "change on both nodes")
        holders = [node] if answered.note else self.nodes
        for each in holders:
            stored = each.file(FARMS_FILE)
            if answered.note:  # it may have lost against the peer's before the answer came
                stored += b"".join(each.disk.matching("farms.conflict-"))
            if mark_of(answered.token) not in stored:
                self.fail(f"change {answered.token} is answered and not on the disk of {each.name}")

    def refused_change(self, node: Node, error: Exception) -> None:
        self.mark(f"change refused: {getattr(error, 'code', '')}")

    def request_refused(self, node: Node, name: str, error: Exception) -> None:
        self.note(node, f"refused {name}: {error}")
        self.mark(f"{name} refused")

    # --- clients ----------------------------------------------------------------------------------------------------

    def client_traffic(self) -> None:
        if not self.traffic:
            return
        rng = self.rng
        for node in self.nodes:
            if node.kernel_open():
                for _ in range(rng.randint(1, 3)):
                    self.client_packet(node, rng.randrange(CONNECTIONS))
        self.after(rng.randint(2 * MS, 10 * MS), self.client_traffic)

    def client_packet(self, node: Node, number: int) -> None:
        known = connection(number).key in node.kernel.flow_maps["flows", "v4"]
        if known and self.rng.random() < 0.3 and node.ready and node.daemon and not node.daemon.stopped:
            node.daemon.sweep(number)
        else:
            self.next_token += 1
            node.kernel.client_packet(number, self.next_token)

    def client_change(self) -> None:
        if not self.traffic or self.profile.reconciles:  # a change would put VIPs back by itself
            return
        node = self.rng.choice([n for n in self.nodes if n.serving] or self.nodes)
        self.next_token += 1
        if node.ready and node.daemon:
            node.daemon.spawn(node.daemon.change(self.next_token))
        self.after(self.rng.randint(5 * MS, 50 * MS), self.client_change)

    # --- faults -----------------------------------------------------------------------------------------------------

    def schedule_faults(self) -> None:
        if self.profile.blind:
            self.at(BLIND_FROM, self.blind)
        for _ in range(self.fault_count):
            name = self.rng.choice(self.profile.faults)
            when = self.rng.randint(2 * BLIND_FROM if self.profile.blind else 0, FAULTS_UNTIL - 50 * MS)
            self.at(when, lambda name=name: self.fault(name))  # type: ignore[misc]

    def blind(self) -> None:
        """Cut the cluster link once one node serves: two that start without it cannot know of each other."""
        if any(node.serving for node in self.nodes):
            self.fault_cut_cluster(self.nodes[0], FAULTS_UNTIL - self.now)
        elif self.now < FAULTS_UNTIL:
            self.after(MS, self.blind)

    def fault(self, name: str) -> None:
        rng = self.rng
        serving = [n for n in self.nodes if n.serving]
        node = rng.choice(serving) if serving and rng.random() < 0.7 else rng.choice(self.nodes)
        length = rng.choice((rng.randint(1 * MS, 40 * MS), rng.randint(21 * MS, 32 * MS), rng.randint(32 * MS, 250 * MS)))
        self.note(node, f"FAULT {name} for {length / MS:.1f} ms")
        getattr(self, f"fault_{name}")(node, length)

    def unless_replaced(self, node: Node, act: Callable[[], Any]) -> Callable[[], Any]:
        """Act only if the same incarnation is there as now."""
        incarnation = node.incarnations
        return lambda: node.incarnations == incarnation and act()

    def fault_crash(self, node: Node, length: int, power: bool = False) -> None:
        node.crash(power)
        self.after(length + (100 * MS if power else 0), self.unless_replaced(node, node.boot))

    def fault_die(self, node: Node, length: int) -> None:
        """It does not come back: two backups with one path left would not hear of each other."""
        node.crash(power=False)

    def fault_power(self, node: Node, length: int) -> None:
        self.fault_crash(node, length, power=True)

    def fault_crash_both(self, node: Node, length: int) -> None:
        """Both daemons die at once, and the one that is back first was not active before."""
        self.fault_crash(node, length + 100 * MS, power=True)
        self.fault_crash(self.nodes[1 - node.index], self.rng.randint(MS, 20 * MS))

    def fault_pause(self, node: Node, length: int) -> None:
        node.stop()
        self.after(length, self.unless_replaced(node, node.cont))

    def fault_pause_blind(self, node: Node, length: int) -> None:
        """One path is down, and the daemon is stopped for a little less than its lease."""
        self.fault_advert_cut(node, 100 * MS)
        self.fault_pause(node, self.rng.randint(20 * MS, 31 * MS))

    def fault_pause_inside(self, node: Node, length: int) -> None:
        """The daemon is stopped between two effects of one list; sometimes it dies there."""
        node.stop_at, node.stop_length = self.rng.choice(STOP_AT), length
        choice = self.rng.random()
        if choice < 0.4:
            self.fault_switchover(node, length)
        elif choice < 0.6:
            self.after(length // 2, self.unless_replaced(node, lambda: self.fault_crash(node, length, choice < 0.5)))

    def fault_address_lost(self, node: Node, length: int) -> None:
        """Another program removes the node's VIPs; the kernel may drop the notification."""
        node.kernel.network.present.clear()
        if self.rng.random() < 0.5:
            self.mark("notification lost")
        elif node.ready and node.daemon:
            node.daemon.notified()

    def fault_forge(self, node: Node, length: int) -> None:
        """Somebody on the data network advertises in the name of a node's peer: old words, or new ones without the keys."""
        stranger = endpoint(1 - node.index, b"stranger", self.rng.getrandbits(48) | 1, 0)
        end = self.now + 3 * length

        def inject() -> None:
            kinds = [stranger.advertisement(255)[0][0]]
            kinds += [self.rng.choice(self.captured[node.index])] if self.captured[node.index] else []
            node.arrive("injected", self.rng.choice(kinds))
            if self.now < end:
                self.after(self.rng.randint(MS, 10 * MS), inject)

        inject()

    def fault_slow(self, node: Node, length: int) -> None:
        self.slow_process = self.rng.choice((8 * MS, 15 * MS, 30 * MS))
        self.after(length, lambda: setattr(self, "slow_process", 0))

    def fault_disk_full(self, node: Node, length: int) -> None:
        node.disk.full = True
        self.after(length, lambda: setattr(node.disk, "full", False))

    def fault_disk_read_only(self, node: Node, length: int) -> None:
        node.disk.read_only = True
        self.after(length, lambda: setattr(node.disk, "read_only", False))

    def fault_carrier(self, node: Node, length: int) -> None:
        def change(up: bool) -> None:
            node.carrier_down = not up
            if node.daemon is not None:
                node.daemon.fault(CARRIER if up else NO_CARRIER)

        change(False)
        self.after(length, lambda: change(True))

    def fault_flap(self, node: Node, length: int) -> None:
        """The carriers of both nodes flap in turn: one of them always has it."""
        end, moves = min(self.now + FLAPPING, FAULTS_UNTIL), len(self.epochs)

        def swap(without: Node) -> None:
            for each in self.nodes:
                each.carrier_down = each is without
                if each.daemon is not None:
                    each.daemon.fault(NO_CARRIER if each is without else CARRIER)
            if self.now < end:
                self.after(self.rng.randint(30 * MS, 60 * MS), lambda: swap(self.nodes[1 - without.index]))
                return
            without.carrier_down = False
            if without.daemon is not None:
                without.daemon.fault(CARRIER)
            if len(self.epochs) - moves > MOST_MOVES:
                self.fail(f"{len(self.epochs) - moves} moves in {FLAPPING / MS:g} ms of flapping carriers")
            self.mark("carriers flapped")

        swap(node)

    def fault_degraded(self, node: Node, length: int) -> None:
        """A fault with which the node is still better than no active node."""

        def change(degraded: bool) -> None:
            node.degraded = degraded
            if node.daemon is not None:
                node.daemon.fault(DEGRADED if degraded else HEALTHY)

        change(True)
        self.after(length, lambda: change(False))

    def request(self, node: Node, name: str, event: types.Event) -> None:
        if node.ready and node.daemon:
            node.daemon.spawn(node.daemon.request(name, event))

    def fault_switchover(self, node: Node, length: int) -> None:
        self.request(node, "switchover", types.SwitchoverRequested())

    def fault_maintenance(self, node: Node, length: int) -> None:
        force = self.rng.random() < 0.3
        self.request(node, "maintenance", types.MaintenanceRequested(True, force))
        self.after(length, lambda: self.request(node, "maintenance", types.MaintenanceRequested(False)))

    def fault_restart(self, node: Node, length: int) -> None:
        if node.ready and node.daemon:
            node.daemon.spawn(node.daemon.shut_down())

    def shutdown_done(self, node: Node) -> None:
        """The process has ended; systemd starts it again."""
        self.mark("shutdown done")
        node.crash()
        self.after(self.rng.randint(1 * MS, 60 * MS), self.unless_replaced(node, node.boot))

    def sever(self, length: int, *links: tuple[int, str]) -> None:
        for link in links:
            self.cut[link] = True
        self.after(length, lambda: [self.cut.pop(link, None) for link in links])

    def fault_advert_cut(self, node: Node, length: int) -> None:
        self.sever(length, (0, "data"), (1, "data"))

    fault_cut_data = fault_advert_cut

    def fault_cut_cluster(self, node: Node, length: int) -> None:
        self.sever(length, (0, "cluster"), (1, "cluster"))

    def fault_cut_both(self, node: Node, length: int) -> None:
        links = [(i, path) for i in (0, 1) for path in ("cluster", "data")]
        if self.rng.random() < 0.5:
            links.append((node.index, "vote"))
        self.sever(length, *links)

    def fault_cut_one_way(self, node: Node, length: int) -> None:
        paths = self.rng.choice((("cluster",), ("data", "cluster")))
        self.sever(length, *((node.index, path) for path in paths))

    def fault_cut_vote(self, node: Node, length: int) -> None:
        self.sever(length, (node.index, "vote"))

    def fault_isolate(self, node: Node, length: int) -> None:
        """One node loses everything: the only kind of cut a gateway can decide."""
        if not any(self.cut.values()):
            self.sever(length, (0, "cluster"), (1, "cluster"), (0, "data"), (1, "data"), (node.index, "vote"))

    def fault_lossy(self, node: Node, length: int) -> None:
        self.loss = self.rng.choice((0.1, 0.3, 0.6))
        self.after(length, lambda: setattr(self, "loss", self.profile.loss))

    def fault_slow_net(self, node: Node, length: int) -> None:
        self.slow_net = self.rng.choice((10 * MS, 40 * MS, 150 * MS))
        self.after(length, lambda: setattr(self, "slow_net", 0))

    def heal(self) -> None:
        """Faults cease: every node runs, every link works."""
        self.note(None, "faults cease")
        self.cut.clear()
        self.loss, self.slow_net, self.slow_process = 0.0, 0, 0
        for node in self.nodes:
            node.stop_at = ""
            node.disk.full = node.disk.read_only = False
            node.carrier_down = node.degraded = False
            if not node.up:
                node.boot()
            elif node.daemon:
                node.cont()
                node.daemon.fault(CARRIER)
                node.daemon.fault(HEALTHY)
            self.end_maintenance(node)

    def end_maintenance(self, node: Node) -> None:
        """An operator puts the node back as soon as it can be asked: maintenance survives a restart."""
        if node.ready:
            self.request(node, "maintenance", types.MaintenanceRequested(False))
        else:
            self.after(MS, lambda: self.end_maintenance(node))

    # --- a history --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the whole history; raises Violation."""
        with self.watched():
            self.at(0, self.nodes[0].boot)
            late = self.rng.choice((0, self.rng.randint(0, self.profile.late_ns)))
            self.at(late, lambda: None if self.nodes[1].incarnations else self.nodes[1].boot())
            self.after(MS, self.client_traffic)
            self.after(60 * MS, self.client_change)
            self.schedule_faults()
            self.run_until(FAULTS_UNTIL)
            self.heal()
            self.run_until(self.now + QUIET)
            self.traffic = False
            self.converge()
            self.check_configuration()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What the product logs is seen by this world only; the daemons die when it ends."""
        logger, sight = logging.getLogger("ctl"), Sight(self)
        before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(sight)
        try:
            yield
        finally:
            logger.removeHandler(sight)
            logger.level, logger.propagate = before
            for node in self.nodes:
                if node.daemon is not None:
                    node.daemon.die()

    def converge(self) -> None:
        end = self.now + CONVERGED_WITHIN
        unsettled = self.unsettled()
        while unsettled:
            if self.now >= end:
                self.fail(f"not converged {CONVERGED_WITHIN / MS:g} ms after faults ceased: {unsettled}")
                raise self.violation or AssertionError
            self.run_until(self.now + 20 * MS)
            unsettled = self.unsettled()

    def unsettled(self) -> str:
        """Why the pair is not yet as it should be without faults; empty if it is."""
        if not all(node.ready for node in self.nodes):
            return "a daemon has not started"
        roles = sorted(node.pair.machine.role.value for node in self.nodes)
        if roles != ["active", "backup"] or [n.kernel_open() for n in self.nodes].count(True) != 1:
            return f"roles are {roles}"
        active, backup = self.nodes if self.nodes[0].serving else self.nodes[::-1]
        if not active.kernel_open():
            return f"{active.name} is active and its lease closed"
        epochs = active.pair.machine.epoch, backup.pair.machine.epoch
        if epochs[0] < max(self.epochs) or epochs[0] != epochs[1]:
            return f"epochs are {epochs}, {max(self.epochs)} was served"
        return self.unsettled_state(active, backup) or self.unsettled_addresses(active, backup)

    def unsettled_state(self, active: Node, backup: Node) -> str:
        assert active.daemon and backup.daemon
        heard = active.pair.heard
        if heard is None or not heard.in_step or heard.version != backup.daemon.replica.version:
            return f"{active.name} has not heard that {backup.name} is in step"
        sent, received = active.daemon.replicator.status(), backup.daemon.replicator.status()
        if not (sent.in_step and received.in_step) or active.kernel.events.backlog():
            return "the flow maps are not in step"
        if sent.lag_ms:
            return "flow changes are under way"
        if active.kernel.connections() != backup.kernel.connections():
            return "the flow maps differ"
        if active.file(FARMS_FILE) != backup.file(FARMS_FILE):
            return "the records on disk differ"
        if active.daemon.transaction.config != backup.daemon.transaction.config:
            return "the configurations in force differ"
        return ""

    def unsettled_addresses(self, active: Node, backup: Node) -> str:
        assert active.daemon
        vips = wanted(active.daemon.transaction.config)
        if active.kernel.network.addresses() != vips or backup.kernel.network.vips():
            return f"{active.name} should have the VIPs, and has {active.kernel.network.addresses() ^ vips}"
        if self.announcer is not active:
            return f"{active.name} has not announced last"
        return ""

    def check_configuration(self) -> None:
        """Every change that was answered is in the final configuration, or in a conflict that was saved."""
        final = self.nodes[0].file(FARMS_FILE)
        saved = b"".join(content for node in self.nodes for content in node.disk.matching("farms.conflict-"))
        for node in self.nodes:
            for answer in node.answers:
                here = mark_of(answer.token) in final
                if not here and mark_of(answer.token) not in saved:
                    self.fail(f"acknowledged change {answer.token} is lost ({node.name}: {answer.note})")
                if not here and not answer.note and self.profile.exclusive:
                    self.fail(f"change {answer.token}, acknowledged by both nodes, is not in the final configuration")
        if self.violation:
            raise self.violation


FIRST_RECORD = Encoder().encode(
    Config(generation=1, pair=PAIR_ID, hash_seed=7, vips=MappingProxyType({"10.9.0.1": Vip("10.9.0.1", 16, "eth0")}))
)
