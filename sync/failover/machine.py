"""Which node of the pair serves: the failover machine (states and transitions: states.py).

Decides role, epoch and lease of one node from what it hears and when. Must not know sockets, clocks, files or the
kernel: `now_ns` is an argument, and what is to be done comes back as effects, to be carried out in order.

Three layers: lease.py (what a node says, and how long it may serve), handover.py (leaving service on request), and this
file (whom to follow, when to claim, when to take over).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sync.failover.handover import Handover
from sync.failover.lease import NEVER_NS
from sync.failover.states import State
from sync.failover.timing import NS_PER_MS
from sync.failover.types import (
    AdvertHeard,
    Announce,
    ApplyReplicated,
    CarrierChanged,
    CloseLease,
    Effect,
    EpochPersisted,
    Event,
    ExtendLease,
    FlowsFlushed,
    Heartbeat,
    HeartbeatHeard,
    LeasesPersisted,
    MaintenanceRequested,
    Role,
    RoleChanged,
    Serve,
    ShutdownRequested,
    StandingChanged,
    StopServing,
    SwitchoverRequested,
    Tick,
    VoteAnswered,
)

ANNOUNCE_AFTER_HEARTBEATS = (1, 5, 25)
ANNOUNCE_AFTER_MS = (1500, 4000)
"""The kernel of a node that died may for three seconds go on asking for neighbours in the name of an IPv6 VIP."""


class Failover(Handover):
    """One node's machine. Feed it events with `handle`, carry out the effects, and send a Tick by `next_wakeup_ns`."""

    @property
    def peer_boot(self) -> int:
        """The present run of the peer, 0 before it was heard: flows and requests of any other run are late."""
        return self._guard.boot

    def start(self, founding: bool = False) -> list[Effect]:
        """First effects of a run: whatever a run before left open is closed.

        founding: this node serves alone and begins a pair; it goes on serving, and calls `found` next.
        """
        self._out = [] if founding else [CloseLease(), StopServing()]
        self._store_leases()
        self._reserve()
        self._tell_lease()
        if not founding:
            self._send()
        return self._out

    def found(self, now_ns: int) -> list[Effect]:
        """Begin the pair's first term. Only when its epoch is persisted, and no other node can have served in this pair."""
        self._out = []
        self._now = self._last_event_ns = max(now_ns, self._now)
        self._open(self._now, f"{self.config.node} founds the pair")
        return self._out

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take in one event at `now_ns`; returns the effects. Never raises for anything a peer can send."""
        out: list[Effect] = []
        self._out = out
        now = self._now = max(now_ns, self._now)
        if now - self._last_event_ns > self.timing.stall_ns:
            self._awake_since_ns = now
        self._last_event_ns = now
        if self.state is State.STOPPED:
            return out
        if self.serving and now >= self.deadline_ns:
            # Never just extend: the peer may have taken over meanwhile.
            late = self._late_text(self.deadline_ns)
            self._step_down(State.BACKUP, f"the lease ran out {late} ago, {self.config.peer} may serve by now")
        _HANDLERS[type(event)](self, event)
        return out

    def _tick(self, event: Tick) -> None:
        now = self._now
        if self._request and now >= self._request_until_ns:
            self._request_timed_out()
        if self._suspects_since_ns is None and now >= self._suspect_at_ns:
            self._suspects_since_ns = now  # as a candidate, too: who would grant may fall silent
        if self.state is State.CANDIDATE and not self.peer_alive:
            self._enter(State.BACKUP, f"{self.config.peer} fell silent before it granted epoch {self._claim}")
        if self.state is State.BACKUP and not self._take_over_by_silence():
            self._claim_if_better()
        if self._announce_ns and now >= self._announce_ns[0]:
            del self._announce_ns[0]
            self._out.append(Announce())
        if now >= self._next_beat_ns or (self.serving and self._sent_ns < self._alone_at_ns <= now):
            self._send()

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def _heartbeat(self, event: HeartbeatHeard) -> None:
        beat = event.heartbeat
        if beat.boot != self._guard.boot:
            if beat.boot != self._hailed_boot:  # once: two that refuse each other must not answer each answer
                self._hailed_boot = beat.boot
                self._next_beat_ns = self._now  # a new run must hear this node before it can prove that it is new
            if self._now - self._peer_heard_ns >= self.timing.start_wait_ns:
                self._guard.forget()
        if not self._guard.accept(beat.boot, beat.sequence, beat.echo_sequence if beat.echo_boot == self.boot else 0):
            return
        returns = not self.peer_alive
        self._peer, self._peer_heard_ns, self._suspects_since_ns = beat, self._now, None
        self._agree(beat)
        if self.serving:
            self._active_hears(beat)
            if returns and self.serving:
                self._announce_soon()  # it may have served meanwhile, and clients may still send to it
        elif self.state is State.CANDIDATE:
            self._candidate_hears(beat)
        else:
            self._follower_hears(beat)

    def _active_hears(self, beat: Heartbeat) -> None:
        if beat.role is Role.ACTIVE:
            if self._outranked(beat.epoch):
                self._step_down(State.BACKUP, f"{self.config.peer} serves too, with the higher epoch {beat.epoch}")
                self._follower_hears(beat)
            else:
                self._announce_ns = [self._now]
                self._next_beat_ns = self._now  # the sooner it hears of this epoch, the sooner it closes
            return
        self._keep_ahead()
        self._acknowledged(beat)
        if self._down and beat.can_serve:
            self._step_down(State.FAULT, f"no carrier on {self._down_text()}, and {self.config.peer} can serve")
        elif self.state is State.OFFERING:
            self._continue_offer()
        elif beat.wants and not self._unable_peer():
            self._offer("failback")

    def _outranked(self, epoch: int) -> bool:
        """Of two that serve the higher epoch stays; names decide should two epochs ever be equal."""
        return (epoch, self.config.peer) > (self.epoch, self.config.node)

    def _keep_ahead(self) -> None:
        """If the peer or the configuration knows of a later term than this one, begin a still later one without a pause."""
        peer = self._peer
        above = max(self._version[0], peer.epoch if peer and peer.role is not Role.ACTIVE else 0)
        if not self.serving or above <= self.epoch:
            return
        if self._epochs.reserved > above:
            self._epochs.spend()
            self._out.append(ExtendLease(self.deadline_ns, self.epoch, self.deadline_ns))
            self._out.append(RoleChanged(self.role, self.epoch, f"epoch raised to {self.epoch}: term {above} was known"))
        self._reserve(above)

    def _candidate_hears(self, beat: Heartbeat) -> None:
        claim, peer = self._claim, self.config.peer
        if beat.role is Role.ACTIVE and not beat.offering:
            self._yield(beat, f"{peer} serves with epoch {beat.epoch}")
        elif max(beat.claim, beat.epoch) > claim or self._epochs.reserved != claim:
            self._yield(beat, f"epoch {max(beat.claim, beat.epoch, self.epoch)} is known")
        elif beat.role is Role.LEFT:
            self._yield(beat, f"{peer} has left")
        elif self._granted(beat):
            self._open(beat.echo_sent_ns, f"{peer} granted it")
        elif beat.offering:
            self._send()  # until it closes, it needs acknowledgements like any active

    def _granted(self, beat: Heartbeat) -> bool:
        """Whether the peer promised after it heard this very claim, and the promise is fresh enough to serve on."""
        if beat.grants != self._claim or beat.echo_boot != self.boot:
            return False
        return self._claim_since_ns <= beat.echo_sent_ns <= self._now < beat.echo_sent_ns + self.timing.lease_ns

    def _yield(self, beat: Heartbeat, why: str) -> None:
        self._enter(State.BACKUP, f"claim of epoch {self._claim} withdrawn: {why}")
        self._follower_hears(beat)

    def _follower_hears(self, beat: Heartbeat) -> None:
        """Not serving and not claiming: promise, or claim."""
        self._epochs.seen(beat.epoch)
        self._grants = beat.epoch if beat.role is Role.ACTIVE else beat.claim if beat.claim > self.epoch else 0
        self._reserve()
        if not self._grants:
            self._claim_if_better()
            return
        if beat.role is Role.ACTIVE:
            self._peer_serves(beat)
        if self.state is State.STOPPED:
            return
        if beat.offering and self.state is State.BACKUP and self.can_serve and self._epochs.reserved:
            self._claim_epoch(f"{self.config.peer} offers to hand over")
        else:
            self._send()

    def _peer_serves(self, beat: Heartbeat) -> None:
        why = f"{self.config.peer} serves with epoch {beat.epoch}"
        if self._request:
            self._finish_request()
        if self.state is State.BACKUP and self.why != why:
            self.why, self._settled_since_ns = why, self._now
            self._out.append(RoleChanged(self.role, self.epoch, why))

    # --- elections --------------------------------------------------------------------------------------------------

    def _take_over_by_silence(self) -> bool:
        now, timing = self._now, self.timing
        left = self._peer is not None and self._peer.role is Role.LEFT
        if self._suspects_since_ns is None:
            return False
        # What arrived while this node slept, for however short a time, is handed over a moment after its timer fires.
        looked_ns = NEVER_NS if left else self._suspects_since_ns + timing.heartbeat_ns
        listened = now >= max(self._awake_since_ns + timing.listen_ns, self._quiet_until_ns, looked_ns)
        if not (self.can_serve and listened and now >= self._silence_ends_ns):
            return False
        self._reserve()
        basis_ns = self._vote_basis_ns()
        if basis_ns is None:
            self._ask_vote()
        elif self._epochs.reserved:
            text = "has left" if left else f"silent on every path for {self._late_text(now - timing.takeover_ns)}"
            self._open(basis_ns, f"{self.config.peer} {text}")
            return True
        return False

    def _claim_if_better(self) -> None:
        """Two that are alive and do not serve rank themselves; the peer's grant makes a wrong guess harmless."""
        peer = self._peer
        if self.state is not State.BACKUP or not self.can_serve or not self._epochs.reserved:
            return
        if peer is None or not self.peer_alive or peer.role in (Role.ACTIVE, Role.LEFT) or peer.claim:
            return
        mine = (True, self._in_step, self._version, self.config.priority, self.config.node)
        theirs = (peer.can_serve, peer.in_step, peer.version, peer.priority, self.config.peer)
        if mine > theirs:
            self._claim_epoch(f"{self.config.peer} is {peer.role.value} and ranks lower")

    def _claim_epoch(self, why: str) -> None:
        self._claim, self._claim_since_ns = self._epochs.reserved, self._now
        self._enter(State.CANDIDATE, f"claiming epoch {self._claim}: {why}")
        self._send()

    def _open(self, basis_ns: int, why: str) -> None:
        """Become active with the reserved epoch; the lease counts from `basis_ns`."""
        now, timing = self._now, self.timing
        self._epochs.spend()
        self._enter(State.ACTIVE, f"serving with epoch {self.epoch}: {why}")
        self._in_step, self._acked_ns, self._grants, self._request = True, basis_ns, 0, ""
        self._unacked_ns.clear()
        self._followed = False
        self._out.append(ApplyReplicated())
        self._send()
        self._extend(basis_ns, now + timing.alone_ns)
        self._out.append(Serve(self.epoch))
        self._announce_soon()
        self._reserve()

    def _announce_soon(self) -> None:
        waits_ns = [count * self.timing.heartbeat_ns for count in ANNOUNCE_AFTER_HEARTBEATS]
        waits_ns += [wait_ms * NS_PER_MS for wait_ms in ANNOUNCE_AFTER_MS]
        self._announce_ns = sorted(self._now + wait_ns for wait_ns in waits_ns)

    # --- everything else that happens to this node ------------------------------------------------------------------

    def _advert(self, event: AdvertHeard) -> None:
        if event.priority == 0:
            self._advert_heard_ns = NEVER_NS
            if self.serving:
                self._announce_soon()  # who resigns has served
            return
        self._advert_heard_ns, self._suspects_since_ns = self._now, None
        if self.serving and self._now - self._peer_heard_ns >= self.timing.takeover_ns:
            # No epoch in an advertisement: RFC 9568 (6.4.3) decides by priority, then by address.
            if (event.priority, event.sender_is_greater) > (self._advertised(), False):
                self._step_down(
                    State.BACKUP, f"{self.config.peer} advertises priority {event.priority} and nothing else is heard"
                )
            else:
                self._announce_ns = [self._now]

    def _carrier(self, event: CarrierChanged) -> None:
        (self._down.discard if event.up else self._down.add)(event.interface)
        peer, text = self._peer, f"no carrier on {self._down_text()}"
        if self._down and self.serving:
            if peer and self.peer_alive and peer.role is Role.BACKUP and peer.can_serve:
                self._step_down(State.FAULT, f"{text}, and {self.config.peer} can serve")
            else:
                self.why = f"serving with epoch {self.epoch} in spite of {text}: {self.config.peer} cannot serve"
        elif self._down and self.state in (State.BACKUP, State.CANDIDATE):
            self._enter(State.FAULT, text)
            self._send()
        elif not self._down and self.state is State.FAULT:
            # Silence says nothing about the time in which nothing could be heard: the peer may have served for long.
            self._quiet_until_ns = max(self._quiet_until_ns, self._now + self.timing.start_wait_ns)
            self._enter(State.BACKUP, "every tracked interface has its carrier again")
            self._send()

    def _down_text(self) -> str:
        return ", ".join(sorted(self._down))

    def _epoch_persisted(self, event: EpochPersisted) -> None:
        self._epochs.persisted(event.reserved)
        self._keep_ahead()
        self._claim_if_better()

    def _standing(self, event: StandingChanged) -> None:
        if event.in_step and not self._in_step:
            self._settled_since_ns = self._now
        self._in_step, self._version = event.in_step or self.serving, event.version
        if not self.serving:
            self._epochs.seen(event.version[0])
            self._reserve()
        self._keep_ahead()


_HANDLERS: dict[type, Callable[[Failover, Any], None]] = {
    Tick: Failover._tick,
    HeartbeatHeard: Failover._heartbeat,
    AdvertHeard: Failover._advert,
    CarrierChanged: Failover._carrier,
    VoteAnswered: Failover._vote_answered,
    EpochPersisted: Failover._epoch_persisted,
    LeasesPersisted: Failover._leases_persisted,
    StandingChanged: Failover._standing,
    FlowsFlushed: Failover._flows_flushed,
    SwitchoverRequested: Failover._switchover,
    MaintenanceRequested: Failover._maintenance,
    ShutdownRequested: Failover._shutdown,
}
