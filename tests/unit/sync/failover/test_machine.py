"""Two failover machines: which one is active and until when, epochs, healing, and the log message of each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sync.failover import types as types
from sync.failover.epochs import AHEAD
from sync.failover.machine import Failover
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.types import FailoverConfig, Role, Vote
from tests.fakes.failover_pair import TIMING, Pair


def test_the_preferred_of_two_that_start_is_active_once_the_peer_promised() -> None:
    pair = Pair()
    assert pair.roles() == ("active", "backup")
    assert pair.messages(pair.one)[:2] == [
        "claiming epoch 2: lb2 is backup and ranks lower",
        "active with epoch 2: lb2 granted the claim",
    ]
    assert pair.two.why == "lb1 is active with epoch 2"


def test_a_starting_node_first_closes_the_lease_it_left_open() -> None:
    machine = Failover(FailoverConfig("lb1", "lb2", TIMING), 11, 5, 6, 0)
    effects = machine.start()
    assert effects[:2] == [types.CloseLease(), types.StopServing()]
    assert machine.epoch == 6 and types.PersistEpoch(6, 6 + AHEAD) in effects


def test_promotion_happens_in_the_right_order() -> None:
    pair = Pair()
    kinds = [type(effect) for effect in pair.effects[pair.one]]
    applied, lease, serve = kinds.index(types.ApplyReplicated), kinds.index(types.ExtendLease), kinds.index(types.Serve)
    assert applied < lease < serve < kinds.index(types.Announce)


def test_the_backup_takes_over_when_all_is_silent_and_not_before() -> None:
    pair = Pair()
    pair.dead.add(pair.one)
    heard = pair.now
    deadline = pair.one.deadline_ns
    while pair.two.role is Role.BACKUP:
        pair.pass_ms(1)
        assert pair.now < heard + 60 * MS
    assert pair.now > deadline + 4 * MS
    assert pair.two.why == "active with epoch 3: lb1 silent on every heartbeat path for 36 ms"


@pytest.mark.parametrize("path", ["cluster", "data"])
def test_one_silent_path_changes_nothing(path: str) -> None:
    pair = Pair()
    pair.cut.add(path)
    pair.pass_ms(500)
    assert pair.roles() == ("active", "backup")


def test_a_lease_rests_on_the_heartbeat_that_was_acknowledged() -> None:
    pair = Pair()
    pair.pass_ms(100)
    sent = pair.last(pair.one, types.SendHeartbeat).heartbeat.sent_ns
    assert pair.one.deadline_ns == sent + 30 * MS
    assert "acknowledged by lb2" in pair.one.explain(pair.now)
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(14)
    assert pair.one.deadline_ns == sent + 30 * MS
    pair.pass_ms(10)
    assert pair.one.deadline_ns > sent + 30 * MS
    assert "not acknowledged by lb2" in pair.one.explain(pair.now)


def test_a_node_that_slept_past_its_lease_steps_back_and_does_not_extend() -> None:
    pair = Pair()
    pair.dead.add(pair.one)
    pair.pass_ms(80)
    assert pair.two.role is Role.ACTIVE
    pair.dead.clear()
    before = len(pair.effects[pair.one])
    pair.hear(pair.one, types.Tick())
    after = pair.effects[pair.one][before:]
    assert after[:2] == [types.CloseLease(), types.StopServing()]
    assert not [effect for effect in after if isinstance(effect, types.ExtendLease)]
    assert any("lease expired 5" in why and "lb2 may be active by now" in why for why in pair.messages(pair.one))
    pair.pass_ms(20)
    assert pair.roles() == ("backup", "active") and pair.one.why == "lb2 is active with epoch 3"


def test_a_pause_too_short_to_detect_is_not_taken_for_silence() -> None:
    """Heartbeats that arrived in the pause are delivered just after the timer has fired."""
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    ends = pair.now - pair.two.status(pair.now).peer_silent_ns + TIMING.takeover_ns
    pair.pass_ms((ends - pair.now) // MS - 20)
    pair.dead.add(pair.two)
    pair.pass_ms(17)
    pair.dead.clear()
    pair.hear(pair.two, types.Tick())
    pair.pass_ms(4)
    pair.hear(pair.two, types.Tick())
    assert pair.now > ends and pair.roles()[1] == "backup"
    pair.pass_ms(7)
    assert pair.two.role is Role.ACTIVE


def test_two_active_nodes_are_healed_by_epoch() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(200)
    assert pair.roles() == ("active", "active")
    pair.cut.clear()
    pair.pass_ms(12)
    assert pair.roles() == ("backup", "active")
    assert "lb2 is active too, with the higher epoch 3" in pair.messages(pair.one)


def test_without_a_cluster_link_the_later_of_two_active_nodes_stays_whatever_the_priorities() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(200)
    pair.cut.remove("data")
    pair.pass_ms(12)
    assert pair.roles() == ("backup", "active")
    assert "lb2 advertises priority 50 while the cluster link is silent" in pair.messages(pair.one)


def test_a_higher_priority_makes_a_node_step_back_where_nothing_else_is_heard() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(200)
    pair.hear(pair.two, types.AdvertHeard(50))
    assert pair.two.role is Role.ACTIVE
    pair.hear(pair.two, types.AdvertHeard(51))
    assert (pair.two.role, pair.two.why) == (Role.BACKUP, "lb1 advertises priority 51 while the cluster link is silent")


@pytest.mark.parametrize("first", ["cluster", "data"])
def test_the_node_that_stays_after_a_cut_announces_the_vips_again(first: str) -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(1000)
    pair.effects[pair.two].clear()
    pair.cut.remove(first)
    pair.pass_ms(300)
    assert sum(isinstance(effect, types.Announce) for effect in pair.effects[pair.two]) >= 3


def test_with_a_vote_a_node_that_lost_peer_and_vote_lets_its_lease_run_out() -> None:
    for vote in (Vote.GATEWAY, Vote.WITNESS):
        pair = Pair(vote)
        pair.cut |= {"cluster", "data"}
        pair.pass_ms(200)
        assert pair.roles() == ("backup", "backup"), vote
        for _ in range(100):
            pair.pass_ms(1)
            for effect in pair.effects[pair.two]:
                if isinstance(effect, types.AskVote) and effect.asked_ns > pair.now - 2 * MS:
                    pair.hear(pair.two, types.VoteAnswered(effect.asked_ns))
        assert pair.roles() == ("backup", "active"), vote


def test_an_active_that_hears_of_a_later_epoch_continues_with_a_still_later_one() -> None:
    pair = Pair()
    pair.hear(pair.one, types.StandingChanged(True, (9, 4)))
    assert pair.one.epoch == 10 and pair.one.role is Role.ACTIVE
    assert "epoch raised to 10: epoch 9 is known" in pair.messages(pair.one)


def test_replayed_and_late_heartbeats_are_ignored() -> None:
    pair = Pair()
    beat = pair.last(pair.one, types.SendHeartbeat).heartbeat
    pair.dead.add(pair.one)
    pair.pass_ms(20)
    for late in (beat, replace(beat, boot=5, sequence=900), replace(beat, sequence=1)):
        pair.hear(pair.two, types.HeartbeatHeard(late))
    pair.pass_ms(20)
    assert pair.two.role is Role.ACTIVE


def test_an_old_grant_opens_no_lease() -> None:
    machine = Failover(FailoverConfig("lb1", "lb2", TIMING), 11, 0, 0, 0)
    machine.start()
    machine.handle(types.EpochPersisted(2), 1 * MS)
    peer = types.Heartbeat(22, 1, 0, Role.BACKUP, 0, 50, TIMING.lease_ns, 0)
    machine.handle(types.HeartbeatHeard(peer), 2 * MS)
    assert machine.why == "claiming epoch 2: lb2 is backup and ranks lower"
    grant = replace(peer, grants=2, echo_boot=11)
    for sequence, (asked_ms, now_ms, boot) in enumerate(((1, 3, 11), (3, 33, 11), (40, 35, 11), (34, 36, 12)), start=2):
        stale = replace(grant, sequence=sequence, echo_boot=boot, echo_sequence=sequence, echo_sent_ns=asked_ms * MS)
        machine.handle(types.HeartbeatHeard(stale), now_ms * MS)
        assert machine.role is Role.BACKUP, (asked_ms, now_ms)
    effects = machine.handle(types.HeartbeatHeard(replace(grant, sequence=9, echo_sequence=9, echo_sent_ns=34 * MS)), 37 * MS)
    assert types.ExtendLease(64 * MS, 2, 52 * MS) in effects


def test_node_names_break_a_tie_of_epochs() -> None:
    for node, peer, role in (("lb1", "lb2", Role.BACKUP), ("lb2", "lb1", Role.ACTIVE)):
        machine = Failover(FailoverConfig(node, peer, TIMING), 11, 4, 4, 0)
        machine.start()
        machine.handle(types.EpochPersisted(6 - machine.config.parity), 0)
        machine.found(0)
        beat = types.Heartbeat(22, 1, 0, Role.ACTIVE, machine.epoch, 50, TIMING.lease_ns, 0)
        machine.handle(types.HeartbeatHeard(beat), 1 * MS)
        assert machine.role is role


def test_an_epoch_is_never_reused_after_a_crash() -> None:
    spent = set()
    epoch, reserved = 0, 0
    for _ in range(20):
        machine = Failover(FailoverConfig("lb1", "lb2", TIMING), 11, epoch, reserved, 0)
        effects = machine.start()
        (persist,) = [effect for effect in effects if isinstance(effect, types.PersistEpoch)]
        epoch, reserved = persist.epoch, persist.reserved
        machine.handle(types.EpochPersisted(reserved), 0)
        machine.found(0)
        assert machine.epoch not in spent and machine.epoch % 2 == 0 and machine.epoch <= reserved
        spent.add(machine.epoch)


def test_two_nodes_that_each_heard_a_dead_incarnation_of_their_peer_find_each_other() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    for machine in (pair.one, pair.two):
        dead = types.Heartbeat(
            77, 900, 0, Role.BACKUP, 0, 50, TIMING.lease_ns, 0, echo_boot=machine.boot, echo_sequence=1 << 40
        )
        pair.hear(machine, types.HeartbeatHeard(dead))
        assert machine.peer_boot == 77
    pair.pass_ms(50)
    pair.cut.clear()
    pair.pass_ms(200)
    assert (pair.one.peer_boot, pair.two.peer_boot) == (22, 11)
    assert sorted(pair.roles()) == ["active", "backup"]


def test_a_new_active_node_announces_while_its_dead_peer_may_still_be_heard() -> None:
    pair = Pair()
    pair.dead.add(pair.one)
    pair.pass_ms(40)
    assert pair.two.role is Role.ACTIVE
    at_ms = []
    for waited_ms in range(0, 6000, 5):
        pair.effects[pair.two].clear()
        pair.pass_ms(5)
        at_ms += [waited_ms] * any(isinstance(effect, types.Announce) for effect in pair.effects[pair.two])
    assert len(at_ms) == 5
    assert at_ms[2] < 300 and 1450 < at_ms[3] < 1550 and 3950 < at_ms[4] < 4050


def test_a_heartbeat_is_not_called_acknowledged_right_after_a_takeover_from_the_dead() -> None:
    pair = Pair()
    assert pair.one.explain(pair.now).endswith("heartbeats are acknowledged by lb2")
    pair.dead.add(pair.one)
    while pair.two.role is Role.BACKUP:
        pair.pass_ms(1)
    assert pair.two.explain(pair.now).endswith("heartbeats are not acknowledged by lb1")


def test_a_candidate_whose_peer_falls_silent_takes_over_as_soon_as_any_backup() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.hear(pair.one, types.FaultChanged("carrier eth0", "no carrier on eth0"))
    last = [effect for effect in pair.effects[pair.one] if isinstance(effect, types.SendHeartbeat)][-1]
    pair.hear(pair.two, types.HeartbeatHeard(replace(last.heartbeat, role=Role.FAULT, can_serve=False)))
    assert pair.roles()[1] == "backup"
    assert pair.two.why.startswith("claiming epoch")
    pair.pass_ms(TIMING.takeover_ns // MS + 1)
    assert pair.two.role is Role.ACTIVE, pair.two.why
