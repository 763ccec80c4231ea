"""Two failover machines whose node files differ: which lease is in force, and which messages follow."""

from __future__ import annotations

from dataclasses import replace

from sync.failover import types as types
from sync.failover.machine import Failover
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.timing import Timing
from sync.failover.types import FailoverConfig, Role
from tests.fakes.failover_pair import TIMING, Pair

SLOW = Timing.from_ms(40, 120, 140, handover_timeout_ns=100 * MS)
FORMED = types.Leases(TIMING.lease_ns, TIMING.lease_ns)
NOT_IN_FORCE = "lease_ms is 120, but lb2 waits for 30 only, which stays in force until it is heard"


def raised() -> Pair:
    """An administrator has raised the times of lb1 only; lb1 is active."""
    pair = Pair(timing=SLOW, leases=(FORMED, FORMED))
    pair.pass_ms(300)
    assert pair.roles() == ("active", "backup")
    return pair


def test_a_peer_with_a_longer_lease_is_waited_for() -> None:
    pair = raised()
    assert pair.one.deadline_ns > pair.now + 60 * MS
    pair.dead.add(pair.one)
    while pair.two.role is Role.BACKUP:
        pair.pass_ms(1)
        assert pair.now < pair.one.deadline_ns + 60 * MS
    assert pair.now > pair.one.deadline_ns + 4 * MS
    assert pair.two.why == "active with epoch 3: lb1 silent on every heartbeat path for 130 ms"


def test_different_times_are_reported_once_on_both_nodes() -> None:
    pair = raised()
    message = "lb1 has lease_ms 120, this node 30: takeovers here wait 131 ms; make both node files equal"
    assert pair.messages(pair.two).count(message) == 1
    message = "lb2 has lease_ms 30, this node 120: takeovers here wait 140 ms; make both node files equal"
    assert pair.messages(pair.one).count(message) == 1


def test_a_raised_lease_is_used_once_the_peer_waits_for_it_also_after_a_restart() -> None:
    pair = raised()
    messages = pair.messages(pair.one)
    assert messages.index(NOT_IN_FORCE) < messages.index("lease_ms 120 is in force, lb2 waits for it")
    assert pair.last(pair.two, types.PersistLeases) == types.PersistLeases(types.Leases(30 * MS, 120 * MS))
    assert pair.last(pair.one, types.PersistLeases) == types.PersistLeases(types.Leases(120 * MS, 30 * MS))


def test_a_raised_lease_is_not_used_while_the_peer_does_not_know_of_it() -> None:
    machine = Failover(FailoverConfig("lb1", "lb2", SLOW), 11, 0, 0, 0, leases=FORMED)
    assert NOT_IN_FORCE in [effect.why for effect in machine.start() if isinstance(effect, types.RoleChanged)]
    machine.handle(types.EpochPersisted(2), 1 * MS)
    now, lent = 0, []
    while now < 900 * MS:
        now = max(now + MS, machine.next_wakeup_ns)
        lent += [effect for effect in machine.handle(types.Tick(), now) if isinstance(effect, types.ExtendLease)]
        assert machine.deadline_ns <= now + 30 * MS
    assert machine.role is Role.ACTIVE and len(lent) > 10, "it is active alone, with the lease that the peer knows"


def test_what_the_peer_may_use_is_waited_for_after_a_restart_without_having_heard_it() -> None:
    machine = Failover(FailoverConfig("lb2", "lb1", TIMING), 22, 0, 0, 0, leases=types.Leases(30 * MS, 120 * MS))
    machine.start()
    machine.handle(types.EpochPersisted(1), 1 * MS)
    now = 0
    while machine.role is Role.BACKUP:
        now = max(now + MS, machine.next_wakeup_ns)
        machine.handle(types.Tick(), now)
    assert now >= 3 * 130 * MS


def test_a_lease_that_was_lowered_again_is_believed_with_proof_only() -> None:
    machine = Failover(FailoverConfig("lb2", "lb1", TIMING), 22, 0, 0, 0, leases=types.Leases(30 * MS, 120 * MS))
    beat = types.Heartbeat(11, 1, 0, Role.BACKUP, 0, 100, 30 * MS, 120 * MS)
    machine.start()
    late = replace(beat, echo_boot=22, echo_sequence=1)  # may have been sent by an incarnation before the one that sent 120
    for sequence, each in enumerate((beat, late), start=1):
        machine.handle(types.HeartbeatHeard(replace(each, sequence=sequence)), sequence * MS)
        assert machine.timing.takeover_ns > 120 * MS
    machine.handle(types.HeartbeatHeard(replace(late, sequence=3, echo_sequence=2)), 3 * MS)
    assert machine.timing == TIMING
