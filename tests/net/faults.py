"""The faults a pair must survive, and an observer that says what each cost: outage, connections, who answered.

Decides what is measured and how; what a result should be is the business of the test, the benchmark or the demo.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.rig import VIP4, HeldConnections, Node, Rig
from tests.rig.capture import Capture, Spoken, last_turns, overlap_ms
from tests.rig.probes import PROBE_PORT, Acceptor, Probes
from tests.wait import wait_until

NS_PER_MS = 1_000_000
BEFORE_NS = 100 * NS_PER_MS
"""An outage may begin a little before the fault is known to have struck."""
FOR_EVER_NS = 1 << 62
MOST_STRAY = 8


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the node that serves. `heal` makes it a backup again, `moves`: the other node serves afterwards.

    splits: without a vote both serve until it is healed, as nobody hears one of them; what the healing costs is no part of it.
    """

    name: str
    strike: Callable[[Rig, Node], None]
    heal: Callable[[Rig, Node], None] = lambda rig, node: None
    moves: bool = True
    splits: bool = False


def _mend(rig: Rig, node: Node) -> None:
    rig.mend_all(node.name)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("cut", lambda rig, node: rig.cut_off(node.name), _mend, splits=True),
        Fault("silent cut", lambda rig, node: rig.cut_off(node.name, silently=True), _mend, splits=True),
        Fault("kill -9", lambda rig, node: node.kill(), lambda rig, node: _start_again(node)),
        Fault("SIGSTOP", lambda rig, node: node.signal(signal.SIGSTOP), lambda rig, node: node.signal(signal.SIGCONT)),
        Fault("switchover", lambda rig, node: _switch_over(node)),
        Fault("SIGTERM", lambda rig, node: _stop(node), lambda rig, node: _start_again(node)),
    )
}


def _start_again(node: Node) -> None:
    node.start()


def _switch_over(node: Node) -> None:
    node.call("cluster.switchover")


def _stop(node: Node) -> None:
    assert node.stop() == 0, node.tail()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one fault cost. `noise_ms`: the outage the prober saw in the quiet time before, when nothing was wrong.

    last_ms, first_ms: from the fault to the last frame of the node that served and to the first of its successor; 0: none.
    """

    outage_ms: float
    noise_ms: float
    slowest_ms: float
    failed: int
    probes: int
    broken: int
    silent: int
    wrong_bytes: int
    stalled_ms: float
    both_ms: float
    last_ms: float
    first_ms: float
    stray: tuple[str, ...] = ()  # what was said out of turn

    @property
    def harmless(self) -> bool:
        """Nothing was lost and never did two nodes answer, however long the outage was."""
        return not (self.broken or self.silent or self.wrong_bytes or self.both_ms)


class NotServing(AssertionError):
    """The node to be struck gave the VIPs away by itself: on an overloaded machine its lease expired."""


class Observer:
    """Probes, captures and held connections around one fault. Use as a context manager; `strike` once, then `cost`.

    held: connections that are open through the pair. The probes need a farm of `Acceptor`s.
    """

    def __init__(
        self,
        rig: Rig,
        held: HeldConnections,
        vip: str = VIP4,
        interval_ms: float = 1.0,
        quiet_probes: int = 500,
        tick: Callable[[Observer], None] = lambda observer: None,
    ) -> None:
        """tick: called again and again while something is waited for."""
        self.rig, self.held, self._tick = rig, held, tick
        self.struck_ns = 0
        self._broken_before, self._wrong_before = len(held.broken), held.wrong_bytes
        held.slowest_s = 0.0
        self.capture = capture(rig, vip)
        self.probes = Probes(rig.client.namespace, vip, PROBE_PORT, interval_ms)
        self._begun_ns = time.monotonic_ns()
        self._terms_before = self._terms()
        self._good_since(self._begun_ns, quiet_probes, "connections before the fault")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.probes.close()
        self.capture.close()

    def strike(self, fault: Fault, node: Node, good_after: int = 300) -> None:
        """Let it happen to `node`, and wait until `good_after` new connections have been made since somebody serves."""
        role = node.call("cluster.status")["role"]
        if role != "active":
            raise NotServing(f"{node.name} is {role} already, before any fault\n{node.tail()}")
        self.struck_ns = time.monotonic_ns()
        fault.strike(self.rig, node)
        if fault.moves:
            successor = next(other for other in self.rig.nodes if other is not node)

            def serves() -> bool:
                self._tick(self)
                return bool(successor.call("cluster.status")["role"] == "active")

            wait_until(serves, f"{successor.name} takes over")
        self.good(good_after)

    def good(self, count: int) -> None:
        """Wait for so many new connections that begin from now on."""
        self._good_since(time.monotonic_ns(), count, "new connections after the fault")

    def _good_since(self, since_ns: int, count: int, what: str) -> None:
        def enough() -> bool:
            self._tick(self)
            probed = self.probes.so_far().between(since_ns, FOR_EVER_NS)
            return len(probed.began) - probed.failed >= count

        wait_until(enough, what)

    # What can be seen meanwhile.

    @property
    def speaker(self) -> str:
        """The node whose frame as the VIP came last; empty: none yet."""
        return self.capture.last

    @property
    def silent_ms(self) -> float:
        """How long ago the last new connection began that has come about."""
        probed = self.probes.so_far()
        good = probed.began[probed.took >= 0]
        return (time.monotonic_ns() - int(good.max(initial=self._begun_ns))) / NS_PER_MS

    @property
    def outage_ms(self) -> float:
        """The longest outage since the fault, so far; 0 before."""
        if not self.struck_ns:
            return 0.0
        ended = self.probes.so_far().between(self.struck_ns - BEFORE_NS, FOR_EVER_NS).outage_ms
        return max(self.silent_ms, ended if ended != float("inf") else 0.0)

    def cost(self) -> Cost:
        """End the observation and say what came of it."""
        probed = self.probed = self.probes.stop()
        silent = self.rig.client.run(self.held.confirm())
        spoken = self.capture.stop()
        around = probed.between(self.struck_ns - BEFORE_NS, FOR_EVER_NS)
        quiet = probed.between(self._begun_ns, self.struck_ns - BEFORE_NS)
        last_ms, first_ms = self._turns(spoken)
        broken = len(self.held.broken) - self._broken_before
        both_ms = overlap_ms(spoken, len(self._terms() - self._terms_before))
        return Cost(
            outage_ms=around.outage_ms,
            noise_ms=quiet.outage_ms,
            slowest_ms=around.slowest_ms,
            failed=around.failed,
            probes=len(around.began),
            broken=broken,
            silent=silent - len(self.held.broken),
            wrong_bytes=self.held.wrong_bytes - self._wrong_before,
            stalled_ms=self.held.slowest_s * 1000,
            both_ms=both_ms,
            last_ms=last_ms,
            first_ms=first_ms,
            stray=tuple(self._said(each) for each in last_turns(spoken, MOST_STRAY)) if both_ms else (),
        )

    def _terms(self) -> set[str]:
        """Every epoch that either daemon has served with, by its log."""
        logs = (node.log.read_text(errors="replace") for node in self.rig.nodes if node.log.exists())
        return {epoch for log in logs for epoch in re.findall(r"(?:active|serving) with epoch (\d+): ", log)}

    def _said(self, frame: Spoken) -> str:
        return f"{(frame.at_ns - self.struck_ns) / NS_PER_MS:.1f} ms after the fault {frame.node} said {frame.head.hex(' ', 2)}"

    def _turns(self, spoken: list[Spoken]) -> tuple[float, float]:
        if not spoken:
            return 0.0, 0.0
        first = spoken[0].node
        last_ns = max((each.at_ns for each in spoken if each.node == first), default=self.struck_ns)
        next_ns = min((each.at_ns for each in spoken if each.node != first), default=self.struck_ns)
        return (last_ns - self.struck_ns) / NS_PER_MS, (next_ns - self.struck_ns) / NS_PER_MS


def capture(rig: Rig, *addresses: str) -> Capture:
    """What the client and the backends get to hear of either node as these VIPs, from now on."""
    ports = ["client-eth0", *(f"{backend.name}-eth0" for backend in rig.backends if rig.layout.interfaces == 1)]
    return Capture(rig.switch, ports, {node.namespace.mac("eth0"): node.name for node in rig.nodes}, *addresses)


class ProbeFarm:
    """A farm whose backends take the probes' connections. Use as a context manager around everything that probes."""

    def __init__(self, rig: Rig, serving: Node, vip: str = VIP4, acceptors: bool = True) -> None:
        """acceptors: False where another farm's are there already; they take both families."""
        name = "probe6" if ":" in vip else "probe4"
        serving.call("farm.add", name=name, vip=vip, port=PROBE_PORT)
        for backend in rig.backends:
            address = backend.address6 if ":" in vip else backend.address4
            serving.call("backend.add", farm=name, address=address, port=PROBE_PORT)
        self._acceptors = [Acceptor(backend.namespace) for backend in rig.backends if acceptors]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
