"""Two failover machines: hand-over, failback, carrier, maintenance and shutdown, and the log message of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sync.failover import types as types
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.types import Role
from tests.fakes.failover_pair import TIMING, Pair

CARRIER, NO_CARRIER = types.FaultChanged("carrier eth0"), types.FaultChanged("carrier eth0", "no carrier on eth0")
NOT_FULL, FULL = types.FaultChanged("storage"), types.FaultChanged("storage", "the state directory is full", disables=False)


def test_no_preemption_and_failback_only_in_step_and_after_a_while() -> None:
    for failback in (False, True):
        pair = Pair(failback=failback)
        pair.dead.add(pair.one)
        pair.pass_ms(80)
        pair.dead.clear()
        pair.hear(pair.one, types.StandingChanged(False, (1, 1)))
        pair.pass_ms(300)
        assert pair.roles() == ("backup", "active")
        pair.hear(pair.one, types.StandingChanged(True, (1, 1)))
        pair.pass_ms(40)
        assert pair.roles() == ("backup", "active")
        pair.pass_ms(60)
        assert pair.roles() == (("active", "backup") if failback else ("backup", "active"))
        if failback:
            assert any("handing over to lb1: failback" in why for why in pair.messages(pair.two))


def test_a_hand_over_closes_before_the_peer_opens() -> None:
    pair = Pair()
    pair.order.clear()
    pair.hear(pair.one, types.SwitchoverRequested())
    pair.pass_ms(1)
    assert pair.order == ["lb1 closes", "lb2 opens"]
    assert pair.roles() == ("backup", "active")
    assert types.CloseLease(handover=True) in pair.effects[pair.one]
    assert types.Completed("switchover") in pair.effects[pair.one]
    assert "handed over to lb2, epoch 3" in pair.messages(pair.one)
    assert "active with epoch 3: lb1 granted the claim" in pair.messages(pair.two)


def test_a_hand_over_waits_for_the_flows_and_gives_up_in_time() -> None:
    pair = Pair()
    pair.flush = False
    pair.hear(pair.one, types.SwitchoverRequested())
    pair.pass_ms(90)
    assert pair.one.serving and pair.one.why == "active with epoch 2, handing over to lb2: switchover"
    pair.pass_ms(20)
    assert pair.last(pair.one, types.Refused) == types.Refused("switchover", "lb2 did not claim within 100 ms")
    assert pair.one.why == "active with epoch 2: hand-over cancelled, lb2 did not claim within 100 ms"
    pair.pass_ms(50)
    assert pair.roles() == ("active", "backup")


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda pair: pair.cut.update(("cluster", "data")) or pair.pass_ms(40), "lb2 is not heard on the cluster link"),
        (
            lambda pair: pair.hear(pair.two, types.StandingChanged(False, (1, 1))),
            "lb2 is not in step yet: it lacks flows, or its program is not compiled yet",
        ),
        (lambda pair: pair.hear(pair.two, types.MaintenanceRequested(True)), "lb2 is maintenance and cannot become active"),
        (lambda pair: pair.hear(pair.two, NO_CARRIER), "lb2 is fault and cannot become active"),
        (lambda pair: pair.hear(pair.two, FULL), "lb2 reports a fault: see xlbctl doctor on lb2"),
    ],
)
def test_a_switchover_to_a_peer_that_cannot_become_active_is_refused(prepare: Callable[[Pair], object], why: str) -> None:
    pair = Pair()
    prepare(pair)
    if "heard" not in why:
        pair.pass_ms(20)
    pair.hear(pair.one, types.SwitchoverRequested())
    assert pair.last(pair.one, types.Refused) == types.Refused("switchover", why)
    assert pair.one.role is Role.ACTIVE


def test_a_backup_refuses_a_switchover_and_names_the_peer() -> None:
    pair = Pair()
    pair.hear(pair.two, types.SwitchoverRequested())
    assert pair.last(pair.two, types.Refused) == types.Refused("switchover", "lb2 is backup: request it on lb1")


def test_a_lost_carrier_moves_the_vips_at_once() -> None:
    pair = Pair()
    pair.hear(pair.one, NO_CARRIER)
    assert pair.roles() == ("fault", "active")
    assert "no carrier on eth0, and lb2 can become active" in pair.messages(pair.one)
    pair.hear(pair.one, CARRIER)
    pair.pass_ms(100)
    assert pair.roles() == ("backup", "active")


def test_a_node_listens_after_its_carrier_returns_before_silence_counts() -> None:
    pair = Pair()
    pair.hear(pair.one, NO_CARRIER)
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(500)
    assert pair.roles() == ("fault", "active")
    pair.hear(pair.one, CARRIER)
    pair.pass_ms(TIMING.takeover_ns // MS * 2)  # a bridge port that is learning, a connection that is being re-established
    assert pair.roles() == ("backup", "active")
    pair.cut.clear()
    pair.pass_ms(200)
    assert pair.roles() == ("backup", "active") and pair.one.why.startswith("lb2 is active")


def test_a_lost_carrier_is_ignored_while_the_peer_cannot_become_active() -> None:
    pair = Pair()
    pair.dead.add(pair.two)
    pair.pass_ms(100)
    pair.hear(pair.one, NO_CARRIER)
    pair.pass_ms(50)
    assert pair.one.role is Role.ACTIVE and "despite no carrier on eth0: lb2 cannot become active" in pair.one.why
    pair.dead.clear()
    pair.pass_ms(200)
    assert pair.roles() == ("fault", "active")


def test_a_fault_that_does_not_disable_hands_over_to_a_fit_peer_with_its_flows() -> None:
    pair = Pair()
    pair.hear(pair.one, FULL)
    pair.pass_ms(10)
    assert pair.roles() == ("backup", "active") and not pair.one.can_serve
    assert "active with epoch 2, handing over to lb2: fault" in pair.messages(pair.one)
    pair.dead.add(pair.two)
    pair.pass_ms(300)
    assert pair.one.role is Role.ACTIVE, "with the peer dead, a node with such a fault is better than none"


def test_a_node_with_a_fault_stays_active_until_its_peer_is_fit() -> None:
    pair = Pair()
    pair.hear(pair.two, FULL)
    pair.pass_ms(20)
    pair.hear(pair.one, FULL)
    pair.pass_ms(100)
    assert pair.roles() == ("active", "backup")
    assert pair.one.why == "active with epoch 2 despite the state directory is full: lb2 cannot become active"
    pair.hear(pair.two, NOT_FULL)
    pair.pass_ms(20)
    assert pair.roles() == ("backup", "active")


def test_a_hand_over_for_a_fault_that_fails_is_not_repeated_at_once() -> None:
    pair = Pair()
    pair.flush = False
    pair.hear(pair.one, FULL)
    pair.pass_ms(TIMING.handover_timeout_ns // MS + 50)
    offers = [text for text in pair.messages(pair.one) if "handing over to lb2: fault" in text]
    assert pair.roles() == ("active", "backup") and len(offers) == 1


def test_maintenance_hands_over_first_and_restores_the_state_on_exit() -> None:
    pair = Pair()
    pair.hear(pair.one, types.MaintenanceRequested(True))
    pair.pass_ms(5)
    assert pair.roles() == ("maintenance", "active")
    pair.dead.add(pair.two)
    pair.pass_ms(300)
    assert pair.roles()[0] == "maintenance"
    pair.hear(pair.one, types.MaintenanceRequested(False))
    pair.pass_ms(300)
    assert pair.one.role is Role.ACTIVE


def test_maintenance_of_the_last_node_needs_force() -> None:
    pair = Pair()
    pair.dead.add(pair.two)
    pair.pass_ms(50)
    pair.hear(pair.one, types.MaintenanceRequested(True))
    assert pair.last(pair.one, types.Refused) == types.Refused("maintenance", "lb2 is not heard on the cluster link")
    pair.hear(pair.one, types.MaintenanceRequested(True, force=True))
    assert pair.one.role is Role.MAINTENANCE and pair.one.deadline_ns == 0


def test_a_shutdown_hands_over_and_releases_its_unused_epoch() -> None:
    pair = Pair()
    pair.hear(pair.one, types.ShutdownRequested())
    pair.pass_ms(5)
    assert pair.one.role is Role.LEFT and pair.two.role is Role.ACTIVE
    assert pair.effects[pair.one][-2:] == [types.PersistEpoch(3, 3), types.Completed("shutdown")]
    assert pair.one.handle(types.Tick(), pair.now + 999 * MS) == []


def test_a_peer_that_left_counts_as_silent() -> None:
    pair = Pair()
    pair.hear(pair.two, types.StandingChanged(False, (1, 1)))
    pair.pass_ms(200)
    pair.hear(pair.one, types.ShutdownRequested())
    pair.pass_ms(16)
    assert pair.two.why == "active with epoch 3: lb1 shut down"
