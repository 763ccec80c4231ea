"""With changed node files, late messages and crashes, no node uses a lease that its peer would not wait for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from sync.failover.agreement import Agreement
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.timing import Timing, smallest_takeover_ns
from sync.failover.types import Heartbeat, Leases, Role
from tests.sim.mutations import Mutation, applied

TIMES_MS = ((10, 30, 36), (20, 60, 70), (40, 120, 140))
COURSES, STEPS = 4000, 100


class Node:
    """One node's agreement, its disk with the write in progress, and what may still arrive."""

    def __init__(self, name: str, rng: random.Random, leases: Leases) -> None:
        self.name, self.rng, self.disk = name, rng, leases
        self.boot = 0
        self.arriving: list[Heartbeat] = []
        self.start()

    def start(self) -> None:
        """Start after a crash: a write in progress may have completed, and the node file may have changed."""
        if self.boot and self.pending and self.rng.random() < 0.5:
            self.disk = self.pending
        self.timing = Timing.from_ms(*self.rng.choice(TIMES_MS))
        self.agreement = Agreement(self.timing, self.disk, "peer")
        self.boot, self.sequence = self.rng.getrandbits(48) | 1, 0
        self.heard: dict[int, int] = {}  # the last of each incarnation
        self.last: tuple[int, int] = (0, 0)
        self.pending: Leases | None = None
        self.store()

    def store(self) -> None:
        effect = self.agreement.store()
        if effect:
            assert self.pending is None
            self.pending = effect.leases

    def send(self, other: Node) -> None:
        self.sequence += 1
        leases: dict[str, Any] = {"lease_ns": self.agreement.said_ns, "allows_ns": self.agreement.allowed_ns}
        echo: dict[str, Any] = {"echo_boot": self.last[0], "echo_sequence": self.last[1]}
        other.arriving.append(Heartbeat(self.boot, self.sequence, 0, Role.BACKUP, 0, 100, **leases, **echo))

    def hear(self) -> None:
        if not self.arriving:
            return
        late = self.rng.random() < 0.4
        beat = self.arriving[self.rng.randrange(len(self.arriving)) if late else -1]
        if beat.sequence > self.heard.get(beat.boot, 0):
            self.heard[beat.boot] = beat.sequence
            self.last = (beat.boot, beat.sequence)
            self.agreement.heard(beat, self.boot, self.sequence)
            self.store()

    def disk_is_done(self) -> None:
        if self.pending:
            self.disk, self.pending = self.pending, None
            self.agreement.stored(self.disk)
            self.store()

    def waits_for(self) -> Iterator[int]:
        """Which lease of the peer it waits for: now, and after a crash now."""
        yield self.agreement.peer_ns
        yield self.disk.peer_ns
        if self.pending:
            yield self.pending.peer_ns


def play(seed: int) -> tuple[Node, Node]:
    """Play a history and check after every event that each node waits for the lease its peer may use."""
    rng = random.Random(seed)
    formed_ns = Timing.from_ms(*rng.choice(TIMES_MS)).lease_ns
    one, two = (Node(name, rng, Leases(formed_ns, formed_ns)) for name in ("lb1", "lb2"))
    weights = (2, 3, rng.choice((0.2, 0.7, 2)), rng.choice((0.2, 0.5, 1)))
    for step in range(STEPS):
        node, other = rng.choice(((one, two), (two, one)))
        match rng.choices(("send", "hear", "disk", "start"), weights)[0]:
            case "send":
                node.send(other)
            case "hear":
                node.hear()
            case "disk":
                node.disk_is_done()
            case _:
                node.start()
        for user, waiter in ((one, two), (two, one)):
            used_ns = user.agreement.timing.lease_ns
            assert used_ns <= min(waiter.waits_for()), f"seed {seed}, step {step}: {user.name} uses {used_ns // MS} ms"
            assert waiter.agreement.timing.takeover_ns >= smallest_takeover_ns(used_ns)
    return one, two


def test_no_node_uses_a_lease_that_its_peer_would_not_wait_for() -> None:
    for seed in range(COURSES):
        play(seed)


def test_two_nodes_that_hear_each_other_use_the_leases_of_their_node_files() -> None:
    for seed in range(200):
        one, two = play(seed)
        for _ in range(8):
            for node, other in ((one, two), (two, one)):
                node.send(other)
                other.arriving = other.arriving[-1:]
                other.rng = random.Random(0)
                other.hear()
                other.disk_is_done()
                other.disk_is_done()
        for node, other in ((one, two), (two, one)):
            assert node.agreement.timing.lease_ns == node.timing.lease_ns == other.agreement.peer_ns
            assert node.disk == Leases(node.timing.lease_ns, other.timing.lease_ns) and node.pending is None


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (
            "use a lease that the peer did not allow",
            "min(timing.lease_ns, stored.own_ns or timing.lease_ns)",
            "timing.lease_ns",
        ),
        ("forget the peer's lease", "stored.peer_ns or timing.lease_ns", "timing.lease_ns"),
        ("allow what is not on disk", "return min(certain)", "return self.peer_ns"),
        (
            "send a shorter lease too early",
            "return max(self._config.lease_ns, self._stored.own_ns)",
            "return self._config.lease_ns",
        ),
        (
            "believe a shorter lease without proof",
            "if beat.lease_ns > self.peer_ns or (echoes_this and beat.echo_sequence > self._since):",
            "if True:",
        ),
        (
            "believe an echo of what was sent before",
            "(echoes_this and beat.echo_sequence > self._since)",
            "echoes_this",
        ),
        ("take what an earlier incarnation was allowed", "if echoes_this and beat.allows_ns >=", "if beat.allows_ns >="),
        ("forget the write in progress", "+ ([self._storing.peer_ns] if self._storing else [])", ""),
    ],
)
def test_a_broken_rule_is_found(name: str, old: str, new: str) -> None:
    with applied(Mutation(name, "sync.failover.agreement", "", "", old, new)), pytest.raises(AssertionError, match="seed"):
        test_no_node_uses_a_lease_that_its_peer_would_not_wait_for()
