"""The faults a pair must survive, and an observer that measures each: outage, connections, which node answered.

Decides what is measured and how. The test, the benchmark or the demo decides what a result should be.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.rig import VIP4, HeldConnections, Node, Rig
from tests.rig.capture import Capture, Spoken, last_turns, overlap_ms
from tests.rig.probes import PROBE_PORT, Acceptor, Probes
from tests.wait import wait_until

NS_PER_MS = 1_000_000
BEFORE_NS = 100 * NS_PER_MS
"""An outage may start shortly before the fault is known to have happened."""
FOR_EVER_NS = 1 << 62
MOST_STRAY = 8


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the active node. `heal` makes it a backup again; `moves`: its peer is active afterwards.

    splits: without a vote both nodes are active until the fault is healed; the cost of healing is not part of the fault.
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
    """What one fault cost. `noise_ms`: the outage the prober measured in the quiet time before the fault.

    last_ms, first_ms: from the fault to the last frame of the former active node and to the first of its successor; 0: none.
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
    stray: tuple[str, ...] = ()  # frames sent out of turn

    @property
    def harmless(self) -> bool:
        """No connection was lost and two nodes never answered at once, however long the outage was."""
        return not (self.broken or self.silent or self.wrong_bytes or self.both_ms)


class NotServing(AssertionError):
    """The active node lost the VIPs before the fault: on an overloaded machine its lease expired."""


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
        """tick: called repeatedly while the observer waits."""
        self.rig, self.held, self._tick = rig, held, tick
        self.struck_ns = 0
        self._broken_before, self._wrong_before = len(held.broken), held.wrong_bytes
        held.slowest_s = 0.0
        self.capture = capture(rig, vip)
        self.probes = Probes(rig.client.namespace, vip, PROBE_PORT, interval_ms)
        self._begun_ns = time.monotonic_ns()
        self._epochs_before = self._epochs()
        self._good_since(self._begun_ns, quiet_probes, "connections before the fault")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.probes.close()
        self.capture.close()

    def strike(self, fault: Fault, node: Node, good_after: int = 300) -> None:
        """Apply the fault to `node`, and wait until `good_after` new connections were made after a node became active."""
        role = node.call("cluster.status")["role"]
        if role != "active":
            raise NotServing(f"{node.name} is {role} already, before any fault\n{node.tail()}")
        self.struck_ns = time.monotonic_ns()
        fault.strike(self.rig, node)
        if fault.moves:
            successor = next(other for other in self.rig.nodes if other is not node)

            def is_active() -> bool:
                self._tick(self)
                return bool(successor.call("cluster.status")["role"] == "active")

            wait_until(is_active, f"{successor.name} takes over")
        self.good(good_after)

    def good(self, count: int) -> None:
        """Wait for `count` new connections that start from now on."""
        self._good_since(time.monotonic_ns(), count, "new connections after the fault")

    def _good_since(self, since_ns: int, count: int, what: str) -> None:
        def enough() -> bool:
            self._tick(self)
            probed = self.probes.so_far().between(since_ns, FOR_EVER_NS)
            return len(probed.began) - probed.failed >= count

        wait_until(enough, what)

    # What can be observed meanwhile.

    @property
    def speaker(self) -> str:
        """The node that sent the last frame as the VIP; empty: none yet."""
        return self.capture.last

    @property
    def silent_ms(self) -> float:
        """How long ago the last established connection was started."""
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
        """Stop the observation and return its result."""
        probed = self.probed = self.probes.stop()
        silent = self.rig.client.run(self.held.confirm())
        spoken = self.capture.stop()
        around = probed.between(self.struck_ns - BEFORE_NS, FOR_EVER_NS)
        quiet = probed.between(self._begun_ns, self.struck_ns - BEFORE_NS)
        last_ms, first_ms = self._turns(spoken)
        broken = len(self.held.broken) - self._broken_before
        both_ms = overlap_ms(spoken, len(self._epochs() - self._epochs_before))
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
            stray=tuple(self._described(each) for each in last_turns(spoken, MOST_STRAY)) if both_ms else (),
        )

    def _epochs(self) -> set[str]:
        return epochs_of(self.rig)

    def _described(self, frame: Spoken) -> str:
        return f"{(frame.at_ns - self.struck_ns) / NS_PER_MS:.1f} ms after the fault {frame.node} sent {frame.head.hex(' ', 2)}"

    def _turns(self, spoken: list[Spoken]) -> tuple[float, float]:
        if not spoken:
            return 0.0, 0.0
        first = spoken[0].node
        last_ns = max((each.at_ns for each in spoken if each.node == first), default=self.struck_ns)
        next_ns = min((each.at_ns for each in spoken if each.node != first), default=self.struck_ns)
        return (last_ns - self.struck_ns) / NS_PER_MS, (next_ns - self.struck_ns) / NS_PER_MS


def epochs_of(rig: Rig) -> set[str]:
    """Every epoch in which either daemon was active until now, by its log."""
    logs = (node.log.read_text(errors="replace") for node in rig.nodes if node.log.exists())
    return {epoch for log in logs for epoch in re.findall(r"(?:active|serving) with epoch (\d+): ", log)}


def capture(rig: Rig, *addresses: str, macs: Mapping[bytes, str] | None = None) -> Capture:
    """Captures of the frames that the client and the backends receive from these VIPs, from now on.

    macs: the nodes' names by MAC, if not those of now.
    """
    ports = ["client-eth0", *(f"{backend.name}-eth0" for backend in rig.backends if rig.layout.interfaces == 1)]
    nodes = {node.namespace.mac("eth0"): node.name for node in rig.nodes} if macs is None else macs
    return Capture(rig.switch, ports, nodes, *addresses)


class ProbeFarm:
    """A farm whose backends take the probes' connections. Use as a context manager around everything that probes."""

    def __init__(self, rig: Rig, serving: Node, vip: str = VIP4, acceptors: bool = True) -> None:
        """acceptors: False if another farm's exist already; they accept both families."""
        name = "probe6" if ":" in vip else "probe4"
        serving.call("farm.add", name=name, vip=vip, port=PROBE_PORT, health={"kind": "none"})
        for backend in rig.backends:
            address = backend.address6 if ":" in vip else backend.address4
            serving.call("backend.add", farm=name, address=address, port=PROBE_PORT)
        self._acceptors = [Acceptor(backend.namespace) for backend in rig.backends if acceptors]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
