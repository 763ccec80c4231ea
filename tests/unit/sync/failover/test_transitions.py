"""Every transition of the machine is a row, every row can happen, and docs/PROTOCOL.md shows the rows."""

from __future__ import annotations

import ast
import inspect
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from sync.failover import machine as machine_module
from sync.failover import types as types
from sync.failover.machine import Failover
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.timing import Timing
from sync.failover.transitions import TRANSITIONS, Cause, State, Transition, transition
from sync.failover.types import FailoverConfig, Role

TIMING = Timing.from_ms(10, 30, 36, handover_timeout_ns=100 * MS)
ALONE_MS = 60
"""Longer than the takeover time, shorter than a hand-over may take."""
WALKS, STEPS = 150, 120


class Node:
    """One machine, a disk that answers at once, and a peer that sends what the test asks for. Records which rows are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Transition] = []
        monkeypatch.setattr(machine_module, "transition", self.noted)
        self.machine = Failover(FailoverConfig("lb1", "lb2", TIMING, 100), 11, 0, 0, 0)
        self.now = self.sequence = self.flush = 0
        self.sent = types.Heartbeat(11, 0, 0, Role.BACKUP, 0, 0, 0, 0)
        self.messages: list[str] = []
        self.take(self.machine.start())

    def noted(self, state: State, cause: Cause) -> Transition:
        row = transition(state, cause)
        self.rows.append(row)
        return row

    def take(self, effects: list[types.Effect]) -> None:
        for effect in effects:
            match effect:
                case types.SendHeartbeat(heartbeat):
                    self.sent = heartbeat
                case types.FlushFlows(number):
                    self.flush = number
                case types.RoleChanged(why=why):
                    self.messages.append(why)
                case types.PersistEpoch(reserved=reserved):
                    self.handle(types.EpochPersisted(reserved))
                case types.PersistLeases(leases):
                    self.handle(types.LeasesPersisted(leases))

    def handle(self, event: types.Event) -> None:
        state, known = self.machine.state, len(self.rows)
        effects = self.machine.handle(event, self.now)
        for row in self.rows[known:]:
            assert row.state is state
            state = row.next
        assert self.machine.state is state, f"{event} changes the state without a row"
        self.take(effects)

    def beat(self, role: Role = Role.BACKUP, **fields: object) -> None:
        """A heartbeat of the peer, which has heard everything until now."""
        self.sequence += 1
        known: dict[str, Any] = {"epoch": 0, "can_serve": True, "in_step": True, **fields}
        echo: dict[str, Any] = {"echo_boot": 11, "echo_sequence": self.sent.sequence, "echo_sent_ns": self.sent.sent_ns}
        self.handle(
            types.HeartbeatHeard(
                types.Heartbeat(
                    22, self.sequence, self.now, role, priority=50, lease_ns=30 * MS, allows_ns=30 * MS, **known, **echo
                )
            )
        )

    def run(self, ms: int) -> None:
        """Let time pass, and the machine's timer fire, without anything from the peer."""
        end = self.now + ms * MS
        while self.machine.next_wakeup_ns <= end:
            self.now = max(self.now, self.machine.next_wakeup_ns)
            self.handle(types.Tick())
        self.now = end

    def alone(self) -> None:
        """An active node has not heard its peer for longer than the takeover time; others need not wait."""
        if self.machine.serving:
            self.run(ALONE_MS)


def candidate(node: Node) -> None:
    node.beat(in_step=False)


def active(node: Node) -> None:
    candidate(node)
    node.beat(grants=2)


def offering(node: Node) -> None:
    active(node)
    node.handle(types.MaintenanceRequested(True))


ARRANGE: dict[State, Callable[[Node], object]] = {
    State.BACKUP: lambda node: None,
    State.CANDIDATE: candidate,
    State.ACTIVE: active,
    State.OFFERING: offering,
    State.FAULT: lambda node: node.handle(types.FaultChanged("carrier eth0", "no carrier on eth0")),
    State.MAINTENANCE: lambda node: node.handle(types.MaintenanceRequested(True)),
}


def silent(node: Node) -> None:
    node.beat(Role.ACTIVE, epoch=1)
    node.run(200)


def shut_down(node: Node) -> None:
    node.beat(Role.LEFT, in_step=False)
    if node.machine.state is State.BACKUP:
        node.run(200)


def silent_link(node: Node) -> None:
    node.run(30)
    node.handle(types.AdvertHeard(50))
    node.run(15)


def expired(node: Node) -> None:
    node.now += 100 * MS
    node.handle(types.Tick())


def outranking_advertisement(node: Node) -> None:
    node.run(ALONE_MS)
    node.handle(types.AdvertHeard(255))


def handed_over(node: Node) -> None:
    node.handle(types.FlowsFlushed(node.flush))
    node.beat(claim=3)


def fault_alone(node: Node) -> None:
    node.run(ALONE_MS)
    node.handle(types.FaultChanged("carrier eth0", "no carrier on eth0"))


def fault_held(node: Node) -> None:
    node.machine._hold_down.left(node.machine._now)
    node.machine._hold_down.opened(node.machine._now)
    node.handle(types.FaultChanged("carrier eth0", "no carrier on eth0"))


def maintenance(node: Node) -> None:
    node.alone()
    node.handle(types.MaintenanceRequested(True, force=True))


def maintenance_ended_in_fault(node: Node) -> None:
    node.handle(types.FaultChanged("carrier eth0", "no carrier on eth0"))
    node.handle(types.MaintenanceRequested(False))


def shutdown(node: Node) -> None:
    node.alone()
    node.handle(types.ShutdownRequested())


PROVOKE: dict[Cause, Callable[[Node], object]] = {
    Cause.PAIR_CREATED: lambda node: node.take(node.machine.found(0)),
    Cause.PEER_SILENT: silent,
    Cause.PEER_SHUT_DOWN: shut_down,
    Cause.PEER_OFFERS: lambda node: node.beat(Role.ACTIVE, epoch=1, offering=True),
    Cause.PEER_RANKS_LOWER: lambda node: node.beat(in_step=False),
    Cause.PEER_GRANTS: lambda node: node.beat(grants=2),
    Cause.PEER_ACTIVE: lambda node: node.beat(Role.ACTIVE, epoch=1),
    Cause.EPOCH_KNOWN: lambda node: node.beat(claim=3),
    Cause.LINK_SILENT: silent_link,
    Cause.LEASE_EXPIRED: expired,
    Cause.PEER_OUTRANKS: lambda node: node.beat(Role.ACTIVE, epoch=3),
    Cause.ADVERTISEMENT_OUTRANKS: outranking_advertisement,
    Cause.EPOCH_RAISED: lambda node: node.handle(types.StandingChanged(True, (9, 1))),
    Cause.HAND_OVER: lambda node: node.handle(types.SwitchoverRequested()),
    Cause.HANDED_OVER: handed_over,
    Cause.PEER_UNABLE: lambda node: node.beat(can_serve=False),
    Cause.HAND_OVER_TIMEOUT: lambda node: node.run(110),
    Cause.FAULT: lambda node: node.handle(types.FaultChanged("carrier eth0", "no carrier on eth0")),
    Cause.FAULT_ALONE: fault_alone,
    Cause.FAULT_HELD: fault_held,
    Cause.FAULT_ENDED: lambda node: node.handle(types.FaultChanged("carrier eth0")),
    Cause.MAINTENANCE: maintenance,
    Cause.MAINTENANCE_ENDED: lambda node: node.handle(types.MaintenanceRequested(False)),
    Cause.MAINTENANCE_ENDED_IN_FAULT: maintenance_ended_in_fault,
    Cause.SHUTDOWN: shutdown,
}


def name(row: Transition) -> str:
    return f"{row.state.value} {row.cause.name}"


@pytest.mark.parametrize("row", TRANSITIONS, ids=name)
def test_every_row_happens_and_gives_its_message(row: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    ARRANGE[row.state](node)
    assert node.machine.state is row.state
    node.rows.clear()
    node.messages.clear()
    PROVOKE[row.cause](node)
    assert row in node.rows
    pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(row.message))
    assert any(re.fullmatch(pattern, message) for message in [*node.messages, node.machine.why])


def test_a_state_and_a_cause_have_one_row() -> None:
    assert len({(row.state, row.cause) for row in TRANSITIONS}) == len(TRANSITIONS)
    assert {row.cause for row in TRANSITIONS} == set(Cause)
    assert {row.state for row in TRANSITIONS} == set(State) - {State.STOPPED}


def test_a_cause_without_a_row_is_refused() -> None:
    rows = {(row.state, row.cause) for row in TRANSITIONS}
    for state in State:
        for cause in Cause:
            if (state, cause) not in rows:
                with pytest.raises(LookupError, match=f"{state.name} for {cause.name}"):
                    transition(state, cause)


def test_the_state_is_set_from_a_row_only() -> None:
    setters = {
        function.name: ast.unparse(node.value)
        for function in ast.walk(ast.parse(inspect.getsource(machine_module)))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in ast.walk(ast.Tuple(node.targets))
        if isinstance(target, ast.Attribute) and target.attr == "_state" and isinstance(target.ctx, ast.Store)
    }
    assert set(setters) == {"__init__", "_transition"}
    assert setters["_transition"].startswith("(row.next,")


def test_no_course_of_events_changes_the_state_without_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[Transition] = set()
    for seed in range(WALKS):
        rng, node = random.Random(seed), Node(monkeypatch)
        for _ in range(STEPS):
            step(node, rng)
        used.update(node.rows)
    assert len(used) > len(TRANSITIONS) // 2


def step(node: Node, rng: random.Random) -> None:
    """Feed one random event; `Node.handle` compares the state change with the rows."""
    node.run(rng.choice((0, 1, 5, 12)))
    match rng.choice(("beat", "beat", "beat", "time", "event")):
        case "beat":
            claim, epoch = rng.choice((0, 0, node.machine.epoch + 1)), max(0, node.machine.epoch + rng.choice((-1, 0, 0, 0, 2)))
            flags = {flag: rng.random() < 0.8 for flag in ("can_serve", "in_step")} | {"offering": rng.random() < 0.2}
            granted = rng.choice((0, node.sent.claim or node.sent.epoch))
            node.beat(rng.choice((Role.BACKUP, Role.BACKUP, *Role)), epoch=epoch, claim=claim, grants=granted, **flags)
        case "time":
            node.now += rng.choice((20, 40, 150)) * MS
            node.handle(types.Tick())
        case _:
            node.handle(
                rng.choice(
                    (
                        types.AdvertHeard(rng.choice((0, 50, 255))),
                        types.FaultChanged(*rng.choice((("carrier eth0", "no carrier on eth0"), ("carrier eth0",)))),
                        types.FaultChanged("storage", rng.choice(("", "full")), disables=False),
                        types.FlowsFlushed(node.flush),
                        types.MaintenanceRequested(rng.random() < 0.4, force=rng.random() < 0.3),
                        types.SwitchoverRequested(),
                        types.StandingChanged(rng.random() < 0.8, (node.machine.epoch, 1)),
                    )
                )
            )


def test_levels_follow_what_an_operator_must_do() -> None:
    """What is planned or over is information; two active nodes are an error."""
    levels = {cause: Transition(State.ACTIVE, cause, State.BACKUP, "").attention.value for cause in Cause}
    assert levels[Cause.PEER_OUTRANKS] == "ERROR"
    for cause in (Cause.PEER_SILENT, Cause.LEASE_EXPIRED, Cause.FAULT, Cause.FAULT_ALONE, Cause.HAND_OVER_TIMEOUT):
        assert levels[cause] == "WARNING"
    for cause in (
        Cause.PEER_GRANTS,
        Cause.HANDED_OVER,
        Cause.MAINTENANCE,
        Cause.SHUTDOWN,
        Cause.PEER_SHUT_DOWN,
        Cause.PAIR_CREATED,
    ):
        assert levels[cause] == "INFO"
    assert list(levels.values()).count("ERROR") == 1
