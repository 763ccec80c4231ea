"""Two failover machines joined by imaginary paths that can be cut; disks and flushes answer at once."""

from __future__ import annotations

from typing import TypeVar

from sync.failover import types as types
from sync.failover.machine import Failover
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.timing import Timing
from sync.failover.types import FailoverConfig, Vote

E = TypeVar("E")

TIMING = Timing.from_ms(10, 30, 36, failback_delay_ns=50 * MS, handover_timeout_ns=100 * MS)


class Pair:
    """Both machines, one clock, and paths that can be cut. Disks and flushes answer at once."""

    def __init__(
        self,
        vote: Vote = Vote.NONE,
        failback: bool = False,
        timing: Timing = TIMING,
        leases: tuple[types.Leases, types.Leases] = (types.Leases(), types.Leases()),
    ) -> None:
        """timing: of lb1; leases: what the two nodes have stored."""
        self.now = 0
        self.one = Failover(FailoverConfig("lb1", "lb2", timing, 100, failback, vote), 11, 0, 0, 0, leases=leases[0])
        self.two = Failover(FailoverConfig("lb2", "lb1", TIMING, 50, failback, vote), 22, 0, 0, 0, leases=leases[1])
        self.effects: dict[Failover, list[types.Effect]] = {self.one: [], self.two: []}
        self.cut: set[str] = set()  # paths
        self.dead: set[Failover] = set()
        self.flush, self.busy = True, False
        self.waiting: list[tuple[Failover, types.Effect]] = []
        self.order: list[str] = []
        for machine in (self.one, self.two):
            self.do(machine, machine.start())
        self.pass_ms(130)  # past the time in which silence does not count yet
        self.hear(self.two, types.StandingChanged(True, (1, 1)))
        self.pass_ms(20)

    def other(self, machine: Failover) -> Failover:
        return self.two if machine is self.one else self.one

    def hear(self, machine: Failover, event: types.Event) -> None:
        if machine not in self.dead:
            self.do(machine, machine.handle(event, self.now))

    def do(self, machine: Failover, effects: list[types.Effect]) -> None:
        """Carry effects out in the order in which both machines gave them."""
        self.waiting += [(machine, effect) for effect in effects]
        while self.waiting and not self.busy:
            whose, effect = self.waiting.pop(0)
            self.busy = True
            self.effects[whose].append(effect)
            self.carry_out(whose, effect)
            self.busy = False

    def carry_out(self, machine: Failover, effect: types.Effect) -> None:
        if isinstance(effect, types.SendHeartbeat) and "cluster" not in self.cut:
            self.hear(self.other(machine), types.HeartbeatHeard(effect.heartbeat))
        elif isinstance(effect, types.SendAdvert) and "data" not in self.cut:
            self.hear(self.other(machine), types.AdvertHeard(effect.priority))
        elif isinstance(effect, types.PersistEpoch):
            self.hear(machine, types.EpochPersisted(effect.reserved))
        elif isinstance(effect, types.PersistLeases):
            self.hear(machine, types.LeasesPersisted(effect.leases))
        elif isinstance(effect, types.FlushFlows) and self.flush:
            self.hear(machine, types.FlowsFlushed(effect.number))
        elif isinstance(effect, types.CloseLease | types.Serve):
            self.order.append(f"{machine.config.node} {'opens' if isinstance(effect, types.Serve) else 'closes'}")

    def pass_ms(self, ms: int) -> None:
        end = self.now + ms * MS
        while True:
            machines = [machine for machine in (self.one, self.two) if machine not in self.dead]
            wake = min((machine.next_wakeup_ns for machine in machines), default=end + 1)
            if wake > end:
                break
            self.now = max(self.now, wake)
            for machine in machines:
                if self.now >= machine.next_wakeup_ns:
                    self.hear(machine, types.Tick())
        self.now = end

    def messages(self, machine: Failover) -> list[str]:
        return [effect.why for effect in self.effects[machine] if isinstance(effect, types.RoleChanged)]

    def last(self, machine: Failover, kind: type[E]) -> E:
        return [effect for effect in self.effects[machine] if isinstance(effect, kind)][-1]

    def roles(self) -> tuple[str, str]:
        return self.one.role.value, self.two.role.value
