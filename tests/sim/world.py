"""The simulated world: time, network, disks' delays, a witness, a gateway, faults, and the rules that must always hold.

All times are integer nanoseconds of true time; each node's clock runs at its own offset and rate. Everything random comes
from one generator, so a seed replays exactly.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sync.config import config_sync
from sync.failover import types
from sync.failover.timing import Timing, check_timing
from sync.failover.types import FailoverConfig, Vote
from tests.sim.node import MS, Node

PAUSE_AT = (
    types.CloseLease,
    types.ExtendLease,
    types.SendHeartbeat,
    types.PersistEpoch,
    types.PersistLeases,
    types.Serve,
    config_sync.Store,
    config_sync.SendOffer,
)
FAULTS_UNTIL = 500 * MS
BLIND_FROM = 120 * MS
CONVERGED_WITHIN = 600 * MS
TIMES_MS = ((10, 30, 36), (10, 60, 70), (20, 90, 104), (30, 120, 135))
"""heartbeat, lease, takeover: which of them a node file has may change whenever its daemon is away."""
QUIET = 150 * MS


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
    most_faults: int = 6
    blind: bool = False  # the cluster link is cut before anything else goes wrong
    late_ns: int = 200 * MS  # so late the second node may start
    times: bool = False  # the node files say different times, and others after a restart


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
    "advert_cut",
    "carrier",
    "switchover",
    "maintenance",
    "restart",
)
NETWORK = ("cut_both", "cut_cluster", "cut_data", "cut_one_way", "cut_vote", "lossy", "slow_net")

PROFILES = (
    Profile("process", Vote.NONE, PROCESS, exclusive=True, delay_ns=16 * MS),
    Profile("witness", Vote.WITNESS, PROCESS + NETWORK + NETWORK, exclusive=True, loss=0.02, times=True),
    Profile("gateway", Vote.GATEWAY, ("isolate", "isolate", "crash", "power", "switchover", "restart"), exclusive=True),
    Profile("cut", Vote.NONE, PROCESS + NETWORK, exclusive=False, loss=0.02),
    Profile("blind", Vote.NONE, ("pause", "crash"), True, 4 * MS, data_loss=0.0, most_faults=1, blind=True),
    Profile("times", Vote.NONE, (*PROCESS, "crash", "restart", "crash_both"), True, 8 * MS, times=True),
    Profile(
        "blind_times", Vote.NONE, ("die",), True, 4 * MS, data_loss=0.0, most_faults=1, blind=True, late_ns=400 * MS, times=True
    ),
)


def timing_of(times_ms: tuple[int, int, int]) -> Timing:
    timing = Timing.from_ms(*times_ms, failback_delay_ns=80 * MS, handover_timeout_ns=100 * MS)
    check_timing(timing)
    return timing


class Violation(AssertionError):
    """A rule was broken; the text says which, when, and how to replay it."""


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
        failback = rng.random() < 0.2
        formed = timing_of(rng.choice(TIMES_MS) if self.profile.times else TIMES_MS[0])
        self.configs = [
            FailoverConfig(f"lb{i + 1}", f"lb{2 - i}", formed, priority, failback, self.profile.vote)
            for i, priority in enumerate(rng.choice(((100, 50), (50, 100))))
        ]
        self.cut: dict[tuple[int, str], bool] = {}  # (sender, path) or (node, "vote")
        self.bulk_arrives = [0, 0]
        self.loss = self.profile.loss
        self.slow_net = self.slow_process = 0
        self.witness_holder, self.witness_until = -1, 0
        self.terms: dict[int, int] = {}
        self.faulty = True
        self.traffic = True
        self.next_key = self.next_token = 0
        self.gaps: list[tuple[int, int]] = []  # (closed at, opened at) of the pair as a whole
        self.closed_at = -1
        self.nodes = [Node(self, 0), Node(self, 1)]
        for node in self.nodes:  # the pair was made a while ago, when both had the same times
            node.disk.leases = types.Leases(formed.lease_ns, formed.lease_ns)
        self.fault_count = rng.randint(1, self.profile.most_faults) if faults is None else faults

    def read_node_file(self, index: int) -> FailoverConfig:
        """What a daemon that starts is told; an administrator may have changed the times meanwhile."""
        if self.profile.times and self.rng.random() < 0.5:
            self.configs[index] = replace(self.configs[index], timing=timing_of(self.rng.choice(TIMES_MS)))
            self.note(self.nodes[index], f"lease {self.configs[index].timing.lease_ns // MS} ms in the node file")
        return self.configs[index]

    # --- time -------------------------------------------------------------------------------------------------------

    def at(self, when: int, what: Callable[[], Any]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (when, self.order, what))

    def after(self, delay: int, what: Callable[[], Any]) -> None:
        self.at(self.now + delay, what)

    def run_until(self, end: int) -> None:
        heap = self.heap
        while heap and heap[0][0] <= end:
            self.now, _, what = heapq.heappop(heap)
            what()
        self.now = end

    def tick_late(self) -> int:
        if self.slow_process:
            return self.rng.randint(0, self.slow_process)
        return self.rng.randint(0, MS) if self.rng.random() < 0.95 else self.rng.randint(0, 5 * MS)

    def fsync_time(self) -> int:
        return self.rng.randint(MS // 5, 3 * MS) if self.rng.random() < 0.9 else self.rng.randint(3 * MS, 25 * MS)

    def note(self, node: Node | None, text: str) -> None:
        self.history.append(f"{self.now / MS:9.3f} ms {node.name if node else '   '} {text}")

    def fail(self, text: str) -> None:
        when = f"at {self.now / MS:.3f} ms, profile {self.profile.name}"
        raise Violation(f"{text}\n  {when}; replay: python -m tests.sim --replay {self.seed}")

    # --- network ----------------------------------------------------------------------------------------------------

    def send(self, sender: int, path: str, kind: str, payload: Any) -> None:
        rng = self.rng
        link = "cluster" if path == "bulk" else path
        if self.cut.get((sender, link)):
            return
        loss = self.loss if path != "data" else max(self.loss, self.profile.data_loss)
        if loss and rng.random() < loss:
            return
        receiver = self.nodes[1 - sender]
        delay = 50_000 + int(rng.random() ** 4 * (2 * MS if path == "bulk" else self.profile.delay_ns))
        if self.slow_net and rng.random() < 0.5:
            delay += int(rng.random() * self.slow_net)
        arrives = self.now + delay
        if path == "bulk":  # one TCP connection: what is not lost with it stays in order
            arrives = self.bulk_arrives[sender] = max(arrives, self.bulk_arrives[sender] + 1)
        self.at(arrives, lambda: receiver.hear(kind, payload))
        if rng.random() < 0.02:
            self.at(self.now + delay + int(rng.random() * 20 * MS), lambda: receiver.hear(kind, payload))

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
                self.witness_until = self.now + node.failover.config.timing.takeover_ns
        if not self.cut.get((node.index, "vote")):
            self.after(100_000 + int(self.rng.random() ** 4 * 2 * MS), lambda: node.hear("vote", (asked_ns, granted)))

    # --- rules ------------------------------------------------------------------------------------------------------

    def lease_written(self, node: Node) -> None:
        if not node.kernel_open():
            return
        other = self.nodes[1 - node.index]
        if other.kernel_open() and self.profile.exclusive:
            self.fail(f"two open leases: {node.name} (epoch {node.kernel.epoch}) and {other.name} (epoch {other.kernel.epoch})")
        if self.closed_at >= 0:
            self.gaps.append((self.closed_at, self.now))
            self.closed_at = -1

    def lease_closed(self, node: Node) -> None:
        self.closed_at = self.now

    def term_begins(self, node: Node, epoch: int) -> None:
        if self.terms.setdefault(epoch, node.index) != node.index:
            self.fail(f"epoch {epoch} is served by both nodes")
        if node.served_epochs and epoch <= node.served_epochs[-1]:
            self.fail(f"{node.name} went from epoch {node.served_epochs[-1]} to {epoch}")
        if max(node.disk.reserved, node.disk.epoch) < epoch:
            self.fail(f"{node.name} serves with epoch {epoch}, which is not on its disk")
        node.served_epochs.append(epoch)

    # --- clients ----------------------------------------------------------------------------------------------------

    def client_traffic(self) -> None:
        if not self.traffic:
            return
        rng = self.rng
        for node in self.nodes:
            if node.kernel_open():
                for _ in range(rng.randint(1, 3)):
                    table, choice = node.kernel.table, rng.random()
                    if choice < 0.5 or not table:
                        self.next_key += 1
                        node.kernel.write(self.next_key, self.next_key, True)
                    else:
                        key = rng.choice(list(table)[-12:])
                        self.next_token += 1
                        node.kernel.write(key, None if choice > 0.8 else self.next_token, True)
        self.after(rng.randint(2 * MS, 10 * MS), self.client_traffic)

    def client_change(self) -> None:
        if not self.traffic:
            return
        node = self.rng.choice([n for n in self.nodes if n.up and n.failover.serving] or self.nodes)
        self.next_token += 1
        node.hear("change", (self.next_token, self.next_token))
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
        if any(node.up and node.failover.serving for node in self.nodes):
            self.fault_cut_cluster(self.nodes[0], FAULTS_UNTIL - self.now)
        elif self.now < FAULTS_UNTIL:
            self.after(MS, self.blind)

    def fault(self, name: str) -> None:
        rng = self.rng
        serving = [n for n in self.nodes if n.up and n.failover.serving]
        node = rng.choice(serving) if serving and rng.random() < 0.7 else rng.choice(self.nodes)
        length = rng.choice((rng.randint(1 * MS, 40 * MS), rng.randint(21 * MS, 32 * MS), rng.randint(32 * MS, 250 * MS)))
        self.note(node, f"FAULT {name} for {length / MS:.1f} ms")
        getattr(self, f"fault_{name}")(node, length)

    def fault_crash(self, node: Node, length: int, power: bool = False) -> None:
        node.crash(power)
        run = node.run
        self.after(length + (100 * MS if power else 0), lambda: node.boot() if node.run == run else None)

    def fault_die(self, node: Node, length: int) -> None:
        """It does not come back: two that stand by with one way left would not hear of each other."""
        node.crash(power=False)

    def fault_power(self, node: Node, length: int) -> None:
        self.fault_crash(node, length, power=True)

    def fault_crash_both(self, node: Node, length: int) -> None:
        """Both daemons die at once, and the one that is back first had no say before."""
        self.fault_crash(node, length + 100 * MS, power=True)
        self.fault_crash(self.nodes[1 - node.index], self.rng.randint(MS, 20 * MS))

    def fault_pause(self, node: Node, length: int) -> None:
        node.pause()
        run = node.run
        self.after(length, lambda: node.resume() if node.run == run else None)

    def fault_pause_blind(self, node: Node, length: int) -> None:
        """One path is down, and the daemon sleeps for a little less than its lease."""
        self.fault_advert_cut(node, 100 * MS)
        self.fault_pause(node, self.rng.randint(20 * MS, 31 * MS))

    def fault_pause_inside(self, node: Node, length: int) -> None:
        """The daemon sleeps between two effects of one list."""
        node.pause_at, node.pause_length = self.rng.choice(PAUSE_AT), length
        if self.rng.random() < 0.5:
            self.fault_switchover(node, length)

    def fault_slow(self, node: Node, length: int) -> None:
        self.slow_process = self.rng.choice((8 * MS, 15 * MS, 30 * MS))
        self.after(length, lambda: setattr(self, "slow_process", 0))

    def fault_carrier(self, node: Node, length: int) -> None:
        def change(up: bool) -> None:
            node.carrier_down = not up
            node.hear("carrier", up)

        change(False)
        self.after(length, lambda: change(True))

    def fault_switchover(self, node: Node, length: int) -> None:
        node.hear("request", types.SwitchoverRequested())

    def fault_maintenance(self, node: Node, length: int) -> None:
        node.hear("request", types.MaintenanceRequested(True, force=self.rng.random() < 0.3))
        self.after(length, lambda: node.hear("request", types.MaintenanceRequested(False)))

    def fault_restart(self, node: Node, length: int) -> None:
        node.hear("request", types.ShutdownRequested())

    def shutdown_done(self, node: Node) -> None:
        if node.up and node.finished:
            node.crash(False)
            run = node.run
            self.after(self.rng.randint(1 * MS, 60 * MS), lambda: node.boot() if node.run == run else None)

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
            node.pause_at = None
            if node.carrier_down:
                node.carrier_down = False
                node.hear("carrier", True)
            if not node.up:
                node.boot()
            elif node.paused:
                node.resume()
            node.hear("request", types.MaintenanceRequested(False))

    # --- a history --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the whole history; raises Violation."""
        self.at(0, self.nodes[0].boot)
        self.at(
            self.rng.choice((0, self.rng.randint(0, self.profile.late_ns))),
            lambda: None if self.nodes[1].up else self.nodes[1].boot(),
        )
        self.after(MS, self.client_traffic)
        self.after(60 * MS, self.client_change)
        self.schedule_faults()
        self.run_until(FAULTS_UNTIL)
        self.heal()
        self.run_until(self.now + QUIET)
        self.traffic = False
        self.converge()
        self.check_configuration()

    def converge(self) -> None:
        end = self.now + CONVERGED_WITHIN
        unsettled = self.unsettled()
        while unsettled:
            if self.now >= end:
                self.fail(f"not converged {CONVERGED_WITHIN / MS:g} ms after faults ceased: {unsettled}")
            self.run_until(self.now + 20 * MS)
            unsettled = self.unsettled()

    def unsettled(self) -> str:
        """Why the pair is not yet as it should be without faults; empty if it is."""
        roles = sorted(node.failover.role.value for node in self.nodes)
        if roles != ["active", "backup"] or [n.kernel_open() for n in self.nodes].count(True) != 1:
            return f"roles are {roles}"
        active, backup = self.nodes if self.nodes[0].failover.serving else self.nodes[::-1]
        if not active.kernel_open():
            return f"{active.name} is active and its lease closed"
        if active.failover.epoch < max(self.terms) or backup.failover.epoch != active.failover.epoch:
            return f"epochs are {active.failover.epoch} and {backup.failover.epoch}, {max(self.terms)} was served"
        if not (active.sender.in_step and backup.receiver.in_step) or active.kernel.ring:
            return "the flow tables are not in step"
        if active.sender.lag_ns(0) or active.kernel.table != backup.kernel.table:
            return "the flow tables differ" if not active.sender.lag_ns(0) else "flow changes are under way"
        if active.disk.document != backup.disk.document:
            return "the configurations differ"
        return ""

    def check_configuration(self) -> None:
        final = set(self.nodes[0].disk.document.body.split(b","))
        kept = {token for node in self.nodes for document in node.disk.conflicts for token in document.body.split(b",")}
        for node in self.nodes:
            for answer in node.answers:
                token = b"%d" % answer.request
                if answer.ok and token not in final and token not in kept:
                    self.fail(f"acknowledged change {answer.request} is lost ({node.name}: {answer.message})")
                if answer.ok and answer.on_peer and self.profile.exclusive and token not in final:
                    self.fail(f"change {answer.request}, acknowledged by both nodes, is only in a kept conflict")
