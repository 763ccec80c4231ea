"""Two failover machines joined by an imaginary wire: what each does, and the sentence it gives for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sync import failover_types as types
from sync.failover import Failover
from sync.failover_types import FailoverConfig, Role, Vote
from sync.timing import NS_PER_MS as MS
from sync.timing import Timing

TIMING = Timing.from_ms(10, 30, 36, failback_delay_ns=50 * MS, handover_timeout_ns=100 * MS)


class Pair:
    """Both machines, one clock, and a wire that can be cut. Disks and flushes answer at once."""

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
        """Carry effects out in the order they came, whoever they came from."""
        self.waiting += [(machine, effect) for effect in effects]
        while self.waiting and not self.busy:
            who, effect = self.waiting.pop(0)
            self.busy = True
            self.effects[who].append(effect)
            self.carry_out(who, effect)
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
            self.order.append(f"{machine.config.node} {'serves' if isinstance(effect, types.Serve) else 'closes'}")

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

    def sentences(self, machine: Failover) -> list[str]:
        return [effect.why for effect in self.effects[machine] if isinstance(effect, types.RoleChanged)]

    def last(self, machine: Failover, kind: type) -> types.Effect:
        return [effect for effect in self.effects[machine] if isinstance(effect, kind)][-1]

    def roles(self) -> tuple[str, str]:
        return self.one.role.value, self.two.role.value


def test_the_preferred_of_two_that_start_serves_once_the_other_promised() -> None:
    pair = Pair()
    assert pair.roles() == ("active", "backup")
    assert pair.sentences(pair.one)[:2] == [
        "claiming epoch 2: lb2 is backup and ranks lower",
        "serving with epoch 2: lb2 granted it",
    ]
    assert pair.two.why == "lb1 serves with epoch 2"


def test_what_a_node_does_first_is_to_close_what_it_left_open() -> None:
    machine = Failover(FailoverConfig("lb1", "lb2", TIMING), 11, 5, 6, 0)
    effects = machine.start()
    assert effects[:2] == [types.CloseLease(), types.StopServing()]
    assert machine.epoch == 6 and types.PersistEpoch(6, 8) in effects


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
    assert pair.two.why == "serving with epoch 3: lb1 silent on every path for 36 ms"


@pytest.mark.parametrize("path", ["cluster", "data"])
def test_one_silent_path_changes_nothing(path: str) -> None:
    pair = Pair()
    pair.cut.add(path)
    pair.pass_ms(500)
    assert pair.roles() == ("active", "backup")


def test_a_lease_rests_on_the_heartbeat_that_was_acknowledged() -> None:
    pair = Pair()
    pair.pass_ms(100)
    sent = pair.last(pair.one, types.SendHeartbeat).heartbeat.sent_ns  # type: ignore[attr-defined]
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
    assert any("the lease ran out 5" in why and "lb2 may serve by now" in why for why in pair.sentences(pair.one))
    pair.pass_ms(20)
    assert pair.roles() == ("backup", "active") and pair.one.why == "lb2 serves with epoch 3"


def test_a_nap_too_short_to_be_noticed_makes_no_silence() -> None:
    """What arrived meanwhile is handed over a moment after the timer has fired."""
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    ends = pair.two._silence_ends_ns
    pair.pass_ms((ends - pair.now) // MS - 20)
    pair.dead.add(pair.two)
    pair.pass_ms(17)
    pair.dead.clear()
    pair.hear(pair.two, types.Tick())
    pair.pass_ms(4)
    pair.hear(pair.two, types.Tick())
    assert pair.now > ends and pair.two.role is Role.BACKUP
    pair.pass_ms(7)
    assert pair.two.role is Role.ACTIVE


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
            assert any("handing over to lb1: failback" in why for why in pair.sentences(pair.two))


def test_a_hand_over_closes_before_the_peer_opens() -> None:
    pair = Pair()
    pair.order.clear()
    pair.hear(pair.one, types.SwitchoverRequested())
    pair.pass_ms(1)
    assert pair.order == ["lb1 closes", "lb2 serves"]
    assert pair.roles() == ("backup", "active")
    assert types.CloseLease(handover=True) in pair.effects[pair.one]
    assert types.Completed("switchover") in pair.effects[pair.one]
    assert "handed over to lb2, epoch 3" in pair.sentences(pair.one)
    assert "serving with epoch 3: lb1 granted it" in pair.sentences(pair.two)


def test_a_hand_over_waits_for_the_flows_and_gives_up_in_time() -> None:
    pair = Pair()
    pair.flush = False
    pair.hear(pair.one, types.SwitchoverRequested())
    pair.pass_ms(90)
    assert pair.one.serving and pair.one.why == "serving with epoch 2 and handing over to lb2: switchover"
    pair.pass_ms(20)
    assert pair.last(pair.one, types.Refused) == types.Refused("switchover", "lb2 did not claim within 100 ms")
    assert pair.one.why == "serving with epoch 2: hand-over given up, lb2 did not claim within 100 ms"
    pair.pass_ms(50)
    assert pair.roles() == ("active", "backup")


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda pair: pair.cut.update(("cluster", "data")) or pair.pass_ms(40), "lb2 is not heard on the cluster link"),
        (lambda pair: pair.hear(pair.two, types.StandingChanged(False, (1, 1))), "lb2's flow table is not in step yet"),
        (lambda pair: pair.hear(pair.two, types.MaintenanceRequested(True)), "lb2 is maintenance and cannot serve"),
        (lambda pair: pair.hear(pair.two, types.CarrierChanged("eth0", False)), "lb2 is fault and cannot serve"),
    ],
)
def test_a_switchover_to_a_peer_that_cannot_serve_is_refused(prepare: Callable[[Pair], object], why: str) -> None:
    pair = Pair()
    prepare(pair)
    if "heard" not in why:
        pair.pass_ms(20)
    pair.hear(pair.one, types.SwitchoverRequested())
    assert pair.last(pair.one, types.Refused) == types.Refused("switchover", why)
    assert pair.one.role is Role.ACTIVE


def test_a_backup_refuses_a_switchover_and_names_the_other() -> None:
    pair = Pair()
    pair.hear(pair.two, types.SwitchoverRequested())
    assert pair.last(pair.two, types.Refused) == types.Refused("switchover", "lb2 is backup: ask lb1")


def test_a_lost_carrier_moves_the_vips_at_once() -> None:
    pair = Pair()
    pair.hear(pair.one, types.CarrierChanged("eth0", False))
    assert pair.roles() == ("fault", "active")
    assert "no carrier on eth0, and lb2 can serve" in pair.sentences(pair.one)
    pair.hear(pair.one, types.CarrierChanged("eth0", True))
    pair.pass_ms(100)
    assert pair.roles() == ("backup", "active")


def test_a_node_whose_carrier_returns_listens_before_it_believes_in_silence() -> None:
    pair = Pair()
    pair.hear(pair.one, types.CarrierChanged("eth0", False))
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(500)
    assert pair.roles() == ("fault", "active")
    pair.hear(pair.one, types.CarrierChanged("eth0", True))
    pair.pass_ms(TIMING.takeover_ns // MS * 2)  # a bridge port that learns, a connection that is being made again
    assert pair.roles() == ("backup", "active")
    pair.cut.clear()
    pair.pass_ms(200)
    assert pair.roles() == ("backup", "active") and pair.one.why.startswith("lb2 serves")


def test_a_lost_carrier_is_borne_while_the_peer_cannot_serve() -> None:
    pair = Pair()
    pair.dead.add(pair.two)
    pair.pass_ms(100)
    pair.hear(pair.one, types.CarrierChanged("eth0", False))
    pair.pass_ms(50)
    assert pair.one.role is Role.ACTIVE and "in spite of no carrier on eth0: lb2 cannot serve" in pair.one.why
    pair.dead.clear()
    pair.pass_ms(200)
    assert pair.roles() == ("fault", "active")


def test_maintenance_hands_over_first_and_ends_where_it_began() -> None:
    pair = Pair()
    pair.hear(pair.one, types.MaintenanceRequested(True))
    pair.pass_ms(5)
    assert pair.roles() == ("maintenance", "active")
    pair.dead.add(pair.two)
    pair.pass_ms(300)
    assert pair.one.role is Role.MAINTENANCE
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


def test_a_shutdown_hands_over_and_gives_its_unused_epoch_back() -> None:
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
    assert pair.two.why == "serving with epoch 3: lb1 has left"


def test_two_that_serve_are_healed_by_epoch() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(200)
    assert pair.roles() == ("active", "active")
    pair.cut.clear()
    pair.pass_ms(12)
    assert pair.roles() == ("backup", "active")
    assert "lb2 serves too, with the higher epoch 3" in pair.sentences(pair.one)


def test_without_a_cluster_link_the_later_of_two_that_serve_stays_whatever_the_priorities() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(200)
    pair.cut.remove("data")
    pair.pass_ms(12)
    assert pair.roles() == ("backup", "active")
    assert "lb2 advertises priority 50 and nothing else is heard" in pair.sentences(pair.one)


def test_a_higher_priority_makes_a_node_step_back_where_nothing_else_is_heard() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.pass_ms(200)
    pair.hear(pair.two, types.AdvertHeard(50))
    assert pair.two.role is Role.ACTIVE
    pair.hear(pair.two, types.AdvertHeard(51))
    assert (pair.two.role, pair.two.why) == (Role.BACKUP, "lb1 advertises priority 51 and nothing else is heard")


@pytest.mark.parametrize("first", ["cluster", "data"])
def test_who_stays_after_a_cut_tells_clients_again_where_the_vips_are(first: str) -> None:
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


def test_an_active_that_hears_of_a_later_term_begins_a_later_one_without_a_pause() -> None:
    pair = Pair()
    pair.hear(pair.one, types.StandingChanged(True, (9, 4)))
    assert pair.one.epoch == 10 and pair.one.role is Role.ACTIVE
    assert "epoch raised to 10: term 9 was known" in pair.sentences(pair.one)


def test_replayed_and_late_heartbeats_count_for_nothing() -> None:
    pair = Pair()
    beat = pair.last(pair.one, types.SendHeartbeat).heartbeat  # type: ignore[attr-defined]
    pair.dead.add(pair.one)
    pair.pass_ms(20)
    for late in (beat, replace(beat, boot=5, sequence=900), replace(beat, sequence=1)):
        pair.hear(pair.two, types.HeartbeatHeard(late))
    pair.pass_ms(20)
    assert pair.two.role is Role.ACTIVE


def test_an_old_grant_opens_nothing() -> None:
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


def test_names_decide_should_two_epochs_ever_be_equal() -> None:
    one = Failover(FailoverConfig("lb1", "lb2", TIMING), 11, 4, 4, 0)
    two = Failover(FailoverConfig("lb2", "lb1", TIMING), 22, 4, 4, 0)
    assert one._outranked(4) and not two._outranked(4)


def test_an_epoch_is_never_reused_after_a_crash() -> None:
    spent = set()
    epoch, reserved = 0, 0
    for _ in range(20):
        machine = Failover(FailoverConfig("lb1", "lb2", TIMING), 11, epoch, reserved, 0)
        effects = machine.start()
        (persist,) = [effect for effect in effects if isinstance(effect, types.PersistEpoch)]
        epoch, reserved = persist.epoch, persist.reserved
        assert reserved not in spent and reserved % 2 == 0
        spent.add(reserved)


def test_two_that_each_heard_a_dead_run_of_the_other_find_each_other() -> None:
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


def test_the_successor_announces_for_as_long_as_the_dead_may_be_heard() -> None:
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


SLOW = Timing.from_ms(40, 120, 140, handover_timeout_ns=100 * MS)
FORMED = types.Leases(TIMING.lease_ns, TIMING.lease_ns)
NOT_IN_FORCE = "lease_ms is 120, but lb2 is known to wait for 30 only, which stays in force until it is heard"


def raised() -> Pair:
    """An administrator has raised the times of lb1 only; lb1 serves."""
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
    assert pair.two.why == "serving with epoch 3: lb1 silent on every path for 130 ms"


def test_different_times_are_told_once_on_both_nodes() -> None:
    pair = raised()
    told = "lb1 has lease_ms 120, this node 30: takeovers here wait 131 ms; make both node files equal"
    assert pair.sentences(pair.two).count(told) == 1
    told = "lb2 has lease_ms 30, this node 120: takeovers here wait 140 ms; make both node files equal"
    assert pair.sentences(pair.one).count(told) == 1


def test_a_raised_lease_is_used_once_the_peer_waits_for_it_also_after_a_restart() -> None:
    pair = raised()
    told = pair.sentences(pair.one)
    assert told.index(NOT_IN_FORCE) < told.index("lease_ms 120 is in force, lb2 waits for it")
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
    assert machine.role is Role.ACTIVE and len(lent) > 10, "it serves alone, on the lease that the peer knows"


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
    late = replace(beat, echo_boot=22, echo_sequence=1)  # may have been sent by a run before the one that said 120
    for sequence, each in enumerate((beat, late), start=1):
        machine.handle(types.HeartbeatHeard(replace(each, sequence=sequence)), sequence * MS)
        assert machine.timing.takeover_ns > 120 * MS
    machine.handle(types.HeartbeatHeard(replace(late, sequence=3, echo_sequence=2)), 3 * MS)
    assert machine.timing == TIMING


def test_a_heartbeat_is_not_called_acknowledged_right_after_a_takeover_from_the_dead() -> None:
    pair = Pair()
    assert pair.one.explain(pair.now).endswith("heartbeats are acknowledged by lb2")
    pair.dead.add(pair.one)
    while pair.two.role is Role.BACKUP:
        pair.pass_ms(1)
    assert pair.two.explain(pair.now).endswith("heartbeats are not acknowledged by lb1")


def test_a_candidate_whose_peer_falls_silent_serves_as_soon_as_any_backup() -> None:
    pair = Pair()
    pair.cut |= {"cluster", "data"}
    pair.hear(pair.one, types.CarrierChanged("eth0", False))
    last = [effect for effect in pair.effects[pair.one] if isinstance(effect, types.SendHeartbeat)][-1]
    pair.hear(pair.two, types.HeartbeatHeard(replace(last.heartbeat, role=Role.FAULT, can_serve=False)))
    assert pair.two.role is Role.BACKUP
    assert pair.two.why.startswith("claiming epoch")
    pair.pass_ms(TIMING.takeover_ns // MS + 1)
    assert pair.two.role is Role.ACTIVE, pair.two.why
