"""The judge: observes one fault of a pair from outside, and does not know which pair it is.

It has the switch (a capture of every port), the client (new connections every millisecond in IPv4 and every five in IPv6, held
connections) and the MAC addresses of the nodes. It asks the pair only when it has come to rest.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing

from bench.failover.asker import Asker
from bench.failover.clients import FreshConnections, OldConnections
from bench.failover.subject import VIPS, Fault, Subject, let_pass
from bench.failover.verdict import NEVER_MS, Frame, PowerOn, Verdict, judge, judge_power_on, kind_of, moves
from tests.rig import Rig
from tests.rig.capture import Capture, Spoken
from tests.rig.probes import Acceptor, Probed, Probes
from tests.wait import wait_until

NS_PER_MS = 1_000_000
FOR_EVER_NS = 1 << 62
QUIET_PROBES = 200
"""New connections before a fault, which measure the noise of prober and machine."""
FRESH = 150
GOOD_AFTER = 200
"""New connections that must succeed after a fault before the observation ends."""
EVERY6_MS = 5.0
SUCCESSOR_S = 10.0
POWER_ON_S = 30.0
SETTLED_S = 30.0
MAX_UNREST = 10


class Unrest(Exception):
    """The pair was not at rest when the fault was to strike."""


def capture(rig: Rig) -> Capture:
    """From now on, every frame that leaves the switch by any port and that a node sent as a VIP."""
    ports = ["client-eth0", *(f"{node.name}-eth0" for node in rig.nodes), *(f"{backend.name}-eth0" for backend in rig.backends)]
    return Capture(rig.switch, ports, macs(rig), *VIPS.values())


def macs(rig: Rig) -> dict[bytes, str]:
    return {node.namespace.mac("eth0"): node.name for node in rig.nodes}


def frames_of(spoken: list[Spoken], nodes: dict[bytes, str]) -> list[Frame]:
    return [Frame(each.at_ns, each.node, kind_of(each.head, nodes.keys())) for each in spoken]


class Judge:
    """Of one pair; use as a context manager, between its start and its stop. connections: how many old ones are held."""

    def __init__(self, subject: Subject, connections: int) -> None:
        self.subject, self._rig = subject, subject.rig
        self._macs = macs(subject.rig)
        self._old = OldConnections(subject.rig.client, connections)
        self.unrest = 0

    def __enter__(self) -> Judge:
        self._acceptors = [Acceptor(backend.namespace) for backend in self._rig.backends]
        return self

    def __exit__(self, *_: object) -> None:
        self._old.close()
        for acceptor in self._acceptors:
            acceptor.close()

    def rest(self) -> str:
        """Wait until the pair is at rest and every old connection lives; returns the node that serves."""
        wait_until(self.subject.is_settled, f"{self.subject.name} serves and its backup is ready", SETTLED_S)
        if not self._old.is_whole:
            self._old.open()
        found = self.subject.serving()
        if len(found) != 1:
            raise Unrest(f"{' and '.join(found) or 'no node'} of {self.subject.name} serves")
        return found[0]

    def observe(self, fault: Fault) -> Verdict:
        """Strike the node that serves, and heal it. Repeats what the pair's own unrest spoiled."""
        for _ in range(MAX_UNREST):
            try:
                node = self.rest()
                verdict = self._observe(fault, node)
            except Unrest:
                self.unrest += 1
                continue
            self.subject.heal(fault, node)
            return verdict
        raise AssertionError(f"{self.subject.name} moved its VIPs {MAX_UNREST} times without a fault")

    def _observe(self, fault: Fault, node: str) -> Verdict:
        with ExitStack() as stack:
            seen = stack.enter_context(closing(capture(self._rig)))
            probes = stack.enter_context(closing(self._probes(4, 1.0)))
            stack.enter_context(closing(self._probes(6, EVERY6_MS)))
            stack.enter_context(closing(Asker(self._rig.client.namespace)))
            begun_ns = time.monotonic_ns()
            _good_since(probes, begun_ns, QUIET_PROBES, "connections before the fault")
            if self.subject.serving() != [node]:
                raise Unrest(node)
            fresh = stack.enter_context(closing(FreshConnections(self._rig.client.namespace)))
            wait_until(lambda: fresh.count >= FRESH, "fresh connections", every_s=0.005)
            struck_ns = time.monotonic_ns()
            self.subject.strike(fault, node)
            try:
                wait_until(lambda: seen.last not in ("", node), f"a successor of {node}", SUCCESSOR_S)
                _good_since(probes, time.monotonic_ns(), GOOD_AFTER, "connections after the fault", SUCCESSOR_S)
            except AssertionError:
                pass  # the verdict has it: no successor, or an outage without an end
            young, wrong_young = fresh.confirm()
            old, wrong_old = self._old.confirm()
            probed = probes.stop()
            frames = frames_of(seen.stop(), self._macs)
        quiet, around = probed.between(begun_ns, struck_ns), probed.between(struck_ns - 100 * NS_PER_MS, FOR_EVER_NS)
        return judge(frames, [*young, *old], struck_ns, around.outage_ms, quiet.outage_ms, wrong_young + wrong_old)

    def power_on(self, apart_s: float) -> PowerOn:
        """Start both nodes, which must be stopped, at nearly the same time."""
        with ExitStack() as stack:
            seen = stack.enter_context(closing(capture(self._rig)))
            probes = stack.enter_context(closing(self._probes(4, 2.0)))
            stack.enter_context(closing(self._probes(6, EVERY6_MS)))
            stack.enter_context(closing(Asker(self._rig.client.namespace)))
            began_ns = time.monotonic_ns()
            self.subject.power_on(apart_s)
            _good_since(probes, began_ns, GOOD_AFTER, "new connections", POWER_ON_S)
            wait_until(self.subject.is_settled, f"{self.subject.name} is at rest", SETTLED_S)
            _good_since(probes, time.monotonic_ns(), GOOD_AFTER, "new connections", POWER_ON_S)
            good = _good(probes.stop(), began_ns)
            return judge_power_on(frames_of(seen.stop(), self._macs), began_ns, int(good.began.min(initial=FOR_EVER_NS)))

    def stress(self, seconds: float) -> tuple[int, float]:
        """Let the pair run without a fault: how often its VIPs moved, and the longest outage of new connections in ms."""
        with ExitStack() as stack:
            self.rest()
            seen = stack.enter_context(closing(capture(self._rig)))
            probes = stack.enter_context(closing(self._probes(4, 2.0)))
            let_pass(seconds)
            probed = probes.stop()
            outage_ms = probed.outage_ms
            frames = frames_of(seen.stop(), self._macs)
        return moves(frames), outage_ms if outage_ms != NEVER_MS else seconds * 1000

    def _probes(self, family: int, every_ms: float) -> Probes:
        return Probes(self._rig.client.namespace, VIPS[family], interval_ms=every_ms)


def _good(probed: Probed, since_ns: int) -> Probed:
    """The attempts since then that succeeded."""
    since = probed.between(since_ns, FOR_EVER_NS)
    return Probed(since.began[since.took >= 0], since.took[since.took >= 0])


def _good_since(probes: Probes, since_ns: int, count: int, what: str, within_s: float = SUCCESSOR_S) -> None:
    wait_until(lambda: len(_good(probes.so_far(), since_ns).began) >= count, what, within_s)
