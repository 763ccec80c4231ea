"""The failover machine: which node of the pair is active, with which epoch, and until when.

Decides role, epoch and lease of one node from what it hears and when. Must not know sockets, clocks, files or the kernel:
`now_ns` is an argument, and what is to be done comes back as effects, to be carried out in order.

The machine holds parts with their own few fields: what it knows of its peer (peer_view.py), its lease (lease_clock.py), epochs,
claims and promises (epochs.py), the vote (vote.py), announcements (announcer.py), its faults (faults.py), requests and the
hand-over (hand_over.py), and which times are in force (agreement.py). Its state changes only by naming a cause: transitions.py
has the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sync.failover.agreement import Agreement
from sync.failover.announcer import Announcer
from sync.failover.epochs import Claim, Epochs
from sync.failover.faults import Faults
from sync.failover.hand_over import HandOver
from sync.failover.hold_down import HoldDown
from sync.failover.lease_clock import LeaseClock
from sync.failover.peer_view import PeerView, Wakefulness
from sync.failover.timing import FAR_NS, NEVER_NS, NS_PER_MS, Timing
from sync.failover.transitions import HOLDS_LEASE, OUT_OF_SERVICE, ROLES, Cause, State, transition
from sync.failover.types import (
    AdvertHeard,
    Announce,
    ApplyReplicated,
    Attention,
    CloseLease,
    Completed,
    Effect,
    EpochPersisted,
    Event,
    ExtendLease,
    FailoverConfig,
    FaultChanged,
    FlowsFlushed,
    Heartbeat,
    HeartbeatHeard,
    Leases,
    LeasesPersisted,
    MaintenanceRequested,
    Refused,
    Role,
    RoleChanged,
    SendAdvert,
    SendHeartbeat,
    Serve,
    ShutdownRequested,
    StandingChanged,
    Status,
    StopServing,
    SwitchoverRequested,
    Tick,
    Vote,
    VoteAnswered,
)
from sync.failover.vote import TieBreaker

LEAST_PRIORITY = 1
NO_LEASES = Leases()
RETIRED = {"maintenance": (State.MAINTENANCE, Cause.MAINTENANCE), "shutdown": (State.STOPPED, Cause.SHUTDOWN)}
"""Requests that end outside service: in which state, and for which cause."""


class Failover:
    """One node's machine. Feed it events with `handle`, carry out the effects, and send a Tick by `next_wakeup_ns`."""

    def __init__(
        self,
        config: FailoverConfig,
        boot: int,
        epoch: int,
        reserved: int,
        now_ns: int,
        maintenance: bool = False,
        leases: Leases = NO_LEASES,
    ) -> None:
        """boot: random non-zero number of this incarnation; epoch, reserved, leases: as last persisted, if ever."""
        self.config, self.boot = config, boot
        self._state = State.MAINTENANCE if maintenance else State.BACKUP
        self.why = "maintenance" if maintenance else f"{config.node} started, listening"
        self._agreement = Agreement(config.timing, leases, config.peer)
        self._epochs = Epochs(config.parity, epoch, reserved)
        self._claim = Claim()
        self._peer = PeerView(config.peer, now_ns + self.timing.start_wait_ns)
        self._awake = Wakefulness(now_ns)
        self._lease = LeaseClock()
        self._vote = TieBreaker(config.vote)
        self._announcer = Announcer()
        self._hand_over = HandOver()
        self._now = self._next_beat_ns = now_ns
        self._sequence = 0
        self._in_step, self._version = False, (0, 0)
        self._faults, self._hold_down = Faults(), HoldDown()
        self._relieve_from_ns = now_ns  # when a node with a fault may offer the VIPs again
        self._settled_since_ns = now_ns  # since when this node could take the VIPs back
        self._out: list[Effect] = []

    # --- what others may read ---------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state; changed by `_transition` only."""
        return self._state

    @property
    def timing(self) -> Timing:
        """The times in force: the node file's as far as the peer knows of them, and no shorter than the peer's need."""
        return self._agreement.timing

    @property
    def role(self) -> Role:
        """What this node is, as its heartbeats carry it."""
        return ROLES[self._state]

    @property
    def epoch(self) -> int:
        """The highest epoch this node knows; its own when it is active."""
        return self._epochs.current

    @property
    def deadline_ns(self) -> int:
        """When the lease ends; 0 while it is closed."""
        return self._lease.deadline_ns

    @property
    def serving(self) -> bool:
        """Whether this node holds the lease, as far as it knows."""
        return self._state in HOLDS_LEASE

    @property
    def can_serve(self) -> bool:
        """Whether this node is fit to become or stay active, as its heartbeats carry it."""
        return not self._faults and self._can_take_over

    @property
    def _can_take_over(self) -> bool:
        """Whether this node may become active because its peer cannot be: a fault that does not disable it is no obstacle."""
        leaving = self._hand_over.leaves_service and not self.serving
        return not self._faults.disabling and self._state not in OUT_OF_SERVICE and not leaving

    @property
    def peer_alive(self) -> bool:
        """Whether the cluster link has brought a heartbeat within takeover_ns, as of the last event."""
        return self._peer.is_alive(self._now, self.timing)

    @property
    def peer_heartbeat(self) -> Heartbeat | None:
        """The peer's last heartbeat that counted."""
        return self._peer.heartbeat

    @property
    def peer_advertises(self) -> bool:
        """Whether the data network has brought an advertisement of the peer within takeover_ns, as of the last event."""
        return self._peer.is_advertising(self._now, self.timing)

    @property
    def peer_boot(self) -> int:
        """The peer's present incarnation, 0 before it was heard: flows and requests of any other are late."""
        return self._peer.boot

    @property
    def next_wakeup_ns(self) -> int:
        """When to send the next Tick at the latest."""
        wake_ns = self._next_beat_ns
        if self._state is State.STOPPED:
            return FAR_NS
        if self.serving:
            alone_ns = self._lease.alone_at_ns(self.timing)
            return min(wake_ns, alone_ns if alone_ns > self._now else wake_ns, self.deadline_ns)
        look_ns = self._peer.next_look_ns(self._awake.since_ns, self.timing)
        return min(wake_ns, look_ns) if look_ns > self._now else wake_ns

    def explain(self, now_ns: int) -> str:
        """What this node does now, and why."""
        if not self.serving:
            return self.why
        carried = self._lease.is_carried(now_ns, self.timing)
        return f"{self.why}; heartbeats are {'' if carried else 'not '}acknowledged by {self.config.peer}"

    def status(self, now_ns: int) -> Status:
        """The machine as people see it at `now_ns`."""
        peer = self._peer
        paths = {"cluster": peer.is_alive(now_ns, self.timing), "data": peer.is_advertising(now_ns, self.timing)}
        return Status(
            node=self.config.node,
            role=self.role,
            epoch=self.epoch,
            lease_ns_left=max(0, self.deadline_ns - now_ns),
            why=self.explain(now_ns),
            peer=self.config.peer,
            peer_role=peer.heartbeat.role.value if peer.heartbeat else "",
            peer_alive=any(paths.values()),
            peer_silent_ns=now_ns - peer.last_heard_ns if peer.last_heard_ns != NEVER_NS else -1,
            paths=paths,
            can_serve=self.can_serve,
            faults=self._faults.messages,
            hold_down_ns=self._hold_down.left_ns(now_ns) if self.serving else 0,
        )

    # --- events -----------------------------------------------------------------------------------------------------

    def start(self, founding: bool = False) -> list[Effect]:
        """First effects of an incarnation: what an earlier one left open is closed.

        founding: this single node creates a pair; it stays active, and calls `found` next.
        """
        self._out = [] if founding else [CloseLease(), StopServing()]
        self._do(self._agreement.store())
        self._reserve()
        self._report(self._agreement.first_message())
        if not founding:
            self._send()
        return self._out

    def found(self, now_ns: int) -> list[Effect]:
        """Begin the pair's first epoch. Only when it is persisted, and no other node can have been active in this pair."""
        self._out = []
        self._now = self._awake.event_ns = max(now_ns, self._now)
        self._open(self._now, Cause.PAIR_CREATED)
        return self._out

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take in one event at `now_ns`; returns the effects. Never raises for anything a peer can send."""
        out: list[Effect] = []
        self._out = out
        self._now = max(now_ns, self._now)
        self._awake.event(self._now, self.timing)
        if self._state is State.STOPPED:
            return out
        if self.serving and self._lease.has_expired(self._now):
            # Never just extend: the peer may be active by now.
            self._transition(Cause.LEASE_EXPIRED, late_ms=(self._now - self.deadline_ns) // NS_PER_MS)
        _HANDLERS[type(event)](self, event)
        return out

    def _tick(self, event: Tick) -> None:
        now = self._now
        if self._hand_over.is_late(now):
            self._hand_over_timed_out()
        self._peer.look(now, self.timing)  # as a candidate, too: the peer may fall silent before it grants
        if self._state is State.CANDIDATE and not self.peer_alive:
            self._transition(Cause.LINK_SILENT)
        if self._state is State.BACKUP and not self._take_over_if_silent():
            self._claim_if_better()
        if self._announcer.take_due(now):
            self._do(Announce())
        if now >= self._next_beat_ns or (self.serving and self._awake.sent_ns < self._lease.alone_at_ns(self.timing) <= now):
            self._send()

    def _heartbeat(self, event: HeartbeatHeard) -> None:
        beat, peer = event.heartbeat, self._peer
        if peer.greet(beat.boot):
            self._next_beat_ns = self._now
        returns = not self.peer_alive
        if not peer.accept(beat, beat.echo_sequence if beat.echo_boot == self.boot else 0, self._now, self.timing):
            return
        self._agree(beat)
        if self.serving:
            self._active_hears(beat)
            if returns and self.serving:
                self._announcer.repeat(self._now, self.timing)  # clients may still send to the peer if it was active meanwhile
        elif self._state is State.CANDIDATE:
            self._candidate_hears(beat)
        else:
            self._follower_hears(beat)

    def _advertisement(self, event: AdvertHeard) -> None:
        now, timing = self._now, self.timing
        if event.priority == 0:
            self._peer.resigned()
            if self.serving:
                self._announcer.repeat(now, timing)  # a node that resigns was active
            return
        self._peer.advertised(now)
        if self.serving and now - self._peer.heard_ns >= timing.takeover_ns:
            # No epoch in an advertisement: RFC 9568 (6.4.3) decides by priority, then by address.
            if (event.priority, event.sender_is_greater) > (self._advertised_priority(), False):
                self._transition(Cause.ADVERTISEMENT_OUTRANKS, priority=event.priority)
            else:
                self._announcer.once(now)

    def _fault(self, event: FaultChanged) -> None:
        faults = self._faults
        if not faults.changed(event):
            return
        if faults and self.serving:
            if held_ns := self._hold_down.left_ns(self._now):
                self.why = self._message(Cause.FAULT_HELD, faults=faults, held_ms=held_ns // NS_PER_MS)
            elif faults.disabling and self._peer.can_become_active(self._now, self.timing):
                self._transition(Cause.FAULT, faults=faults)
            elif not self._offer_for_fault():
                self.why = self._message(Cause.FAULT_ALONE, faults=faults)
        elif faults.disabling and self._state not in OUT_OF_SERVICE:
            self._transition(Cause.FAULT, faults=faults)
            self._send()
        elif not faults.disabling and self._state is State.FAULT:
            # Nothing could be heard meanwhile, so silence means nothing: the peer may have been active for long.
            self._peer.ignore_silence_at_least_until(self._now + self.timing.start_wait_ns)
            self._transition(Cause.FAULT_ENDED, ended=event.name)
            self._send()

    def _offer_for_fault(self) -> bool:
        """Offer the VIPs to a fit peer, with its flows complete; a hand-over that failed is not repeated at once."""
        if self._state is not State.ACTIVE or self._now < self._relieve_from_ns or self._unable_peer():
            return False
        if self._hold_down.left_ns(self._now):
            return False
        self._relieve_from_ns = self._now + 2 * self.timing.handover_timeout_ns
        self._begin_hand_over("fault")
        return True

    def _vote_answered(self, event: VoteAnswered) -> None:
        now, timing, asked_ns = self._now, self.timing, event.asked_ns
        if not self._vote.answered(asked_ns, event.granted, now, timing):
            return
        if not self.serving:
            if now >= self._peer.silence_ends_ns(timing):
                self._next_beat_ns = now  # silence is judged by a Tick only
        elif self._lease.is_unacknowledged(asked_ns, timing):
            # A vote asked for while acknowledgements came may be older than the cut it is to decide.
            self._extend(asked_ns, asked_ns + timing.lease_ns)

    def _epoch_persisted(self, event: EpochPersisted) -> None:
        self._epochs.persisted(event.reserved)
        self._keep_ahead()
        self._claim_if_better()

    def _leases_persisted(self, event: LeasesPersisted) -> None:
        self._agreement.stored(event.leases)
        self._do(self._agreement.store())

    def _standing(self, event: StandingChanged) -> None:
        if event.in_step and not self._in_step:
            self._settled_since_ns = self._now
        self._in_step, self._version = event.in_step or self.serving, event.version
        if not self.serving:
            self._epochs.seen(event.version[0])
            self._reserve()
        self._keep_ahead()

    # --- transitions and effects ------------------------------------------------------------------------------------

    def _transition(self, cause: Cause, **facts: object) -> None:
        """Change the state as the row of `cause` has it. A node that leaves service closes its lease first, then reports."""
        row, before = transition(self._state, cause), self._state
        message = self._format(row.message, facts)
        leaves = before in HOLDS_LEASE and row.next not in HOLDS_LEASE
        if leaves:
            self._close_lease(handover=cause is Cause.HANDED_OVER)
            if cause is Cause.FAULT or self._hand_over.request == "fault":
                self._hold_down.left(self._now)
        if row.next is not State.CANDIDATE:
            self._claim.withdraw()
        if State.CANDIDATE not in (before, row.next):  # a candidate hears as well as a backup does
            self._peer.stop_looking()
        self._state, self.why, self._settled_since_ns = row.next, message, self._now
        self._report(message, row.attention, cause)
        if leaves:
            self._reserve()
            self._send()

    def _message(self, cause: Cause, **facts: object) -> str:
        """The message of the row of `cause` in the present state."""
        return self._format(transition(self._state, cause).message, facts)

    def _format(self, message: str, facts: dict[str, object]) -> str:
        config = self.config
        return message.format(node=config.node, peer=config.peer, epoch=self.epoch, claim=self._claim.epoch, **facts)

    def _report(self, message: str, attention: Attention = Attention.NONE, cause: Cause | None = None) -> None:
        """Have people read it; an empty message is none."""
        if message:
            self._do(RoleChanged(self.role, self.epoch, message, attention, cause.name.lower() if cause else ""))

    def _do(self, effect: Effect | None) -> None:
        if effect is not None:
            self._out.append(effect)

    def _open(self, basis_ns: int, cause: Cause, **facts: object) -> None:
        """Become active with the reserved epoch; the lease counts from `basis_ns`."""
        self._epochs.spend()
        self._transition(cause, **facts)
        self._lease.open(basis_ns)
        self._hold_down.opened(self._now)
        self._claim.grants = 0
        self._hand_over.end()
        self._in_step = True
        self._do(ApplyReplicated())
        self._send()
        self._extend(basis_ns, self._now + self.timing.alone_ns)
        self._do(Serve(self.epoch))
        self._announcer.repeat(self._now, self.timing)
        self._reserve()

    def _extend(self, basis_ns: int, void_after_ns: int) -> None:
        if self._lease.extend(basis_ns, self.timing):
            self._do(ExtendLease(self.deadline_ns, self.epoch, void_after_ns))

    def _close_lease(self, handover: bool) -> None:
        now, timing = self._now, self.timing
        self._out += [CloseLease(handover), StopServing(), SendAdvert(0, now + timing.alone_ns), self._hand_over.flush()]
        self._lease.close()
        self._announcer.cancel()
        # Longer than a peer with the same times waits, so that the two do not take over at the same moment.
        self._peer.ignore_silence_until(now + timing.takeover_ns + timing.alone_ns)

    def _reserve(self, above: int = 0) -> None:
        """Have an unspent epoch that is on disk, so that a takeover waits for none."""
        beat = self._peer.heartbeat
        self._do(self._epochs.reserve(max(above, beat.epoch, beat.claim) if beat else above))

    def _agree(self, beat: Heartbeat) -> None:
        """Learn the peer's lease and what it allows, and report once what follows for people."""
        agreement = self._agreement
        before_ns = agreement.own_ns
        agreement.heard(beat, self.boot, self._sequence)
        self._do(agreement.store())
        if agreement.own_ns != before_ns:
            self._report(agreement.in_force_message())
        self._report(agreement.difference_message(beat.lease_ns))

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send everything about this node, then extend the lease where no acknowledgement will."""
        now, timing = self._now, self.timing
        self._sequence += 1
        self._awake.sent(now, timing)
        self._do(SendHeartbeat(self._own_heartbeat()))
        if self.serving:
            self._next_beat_ns = now + timing.heartbeat_ns
            self._do(SendAdvert(self._advertised_priority(), now + timing.alone_ns))
            if self.config.vote is Vote.NONE and self._lease.is_alone(now, self._awake.since_ns, timing):
                self._extend(now, now + timing.alone_ns)
            self._lease.sent(now)
        elif self._claim.epoch:
            self._next_beat_ns = now + timing.heartbeat_ns
        else:
            # Later than the active's next one, which is answered at once anyway.
            self._next_beat_ns = now + timing.heartbeat_ns * 3 // 2
        if self._vote.asks_with_heartbeat(self.serving):
            self._do(self._vote.ask(now, timing))

    def _own_heartbeat(self) -> Heartbeat:
        now, heard = self._now, self._peer.heartbeat
        return Heartbeat(
            boot=self.boot,
            sequence=self._sequence,
            sent_ns=now,
            role=self.role,
            epoch=self.epoch,
            priority=self.config.priority,
            lease_ns=self._agreement.said_ns,
            allows_ns=self._agreement.allowed_ns,
            claim=self._claim.epoch,
            grants=self._claim.grants,
            echo_boot=heard.boot if heard else 0,
            echo_sequence=heard.sequence if heard else 0,
            echo_sent_ns=heard.sent_ns if heard else 0,
            echo_held_ns=now - self._peer.heard_ns if heard else 0,
            version=self._version,
            in_step=self._in_step,
            can_serve=self.can_serve,
            offering=self._state is State.OFFERING,
            wants=self._wants(),
        )

    def _advertised_priority(self) -> int:
        """The priority of this node's advertisements.

        They carry no epoch. A peer that followed this epoch and fell silent may have begun a later one, and then has the newer
        connections: where the data network heals before the cluster link, it is to win whatever the configured priorities.
        """
        return LEAST_PRIORITY if self._lease.has_lost_follower(self._now, self.timing) else self.config.priority

    def _wants(self) -> bool:
        """Whether to ask the active peer for the VIPs: this node is the preferred one and has been ready for long."""
        beat, config = self._peer.heartbeat, self.config
        if not (
            config.failback
            and self._in_step
            and self.can_serve
            and self._state is State.BACKUP
            and beat
            and beat.role is Role.ACTIVE
        ):
            return False
        return config.priority > beat.priority and self._now - self._settled_since_ns >= config.timing.failback_delay_ns

    def _active_hears(self, beat: Heartbeat) -> None:
        if beat.role is Role.ACTIVE:
            if self._is_outranked(beat.epoch):
                self._transition(Cause.PEER_OUTRANKS, peer_epoch=beat.epoch)
                self._follower_hears(beat)
            else:
                self._announcer.once(self._now)
                self._next_beat_ns = self._now  # the sooner it hears of this epoch, the sooner it closes
            return
        self._keep_ahead()
        if beat.grants == self.epoch and beat.echo_boot == self.boot:
            self._acknowledged(beat.echo_sent_ns)
        if self._faults.disabling and beat.can_serve and not self._hold_down.left_ns(self._now):
            self._transition(Cause.FAULT, faults=self._faults)
        elif self._state is State.OFFERING:
            self._continue_hand_over()
        elif beat.wants and not self._unable_peer():
            self._begin_hand_over("failback")
        elif self._faults:
            self._offer_for_fault()

    def _acknowledged(self, sent_ns: int) -> None:
        """Count the lease from the heartbeat that the peer heard and promises to follow."""
        if self._lease.acknowledge(sent_ns, self._now):
            self._extend(sent_ns, sent_ns + self.timing.lease_ns)

    def _is_outranked(self, epoch: int) -> bool:
        """Of two active nodes the higher epoch stays; names decide should two epochs ever be equal."""
        return (epoch, self.config.peer) > (self.epoch, self.config.node)

    def _keep_ahead(self) -> None:
        """If the peer or the configuration knows a later epoch, continue with a still later one, without closing the lease."""
        beat = self._peer.heartbeat
        known = max(self._version[0], beat.epoch if beat and beat.role is not Role.ACTIVE else 0)
        if not self.serving or known <= self.epoch:
            return
        self._reserve(known)
        if self._epochs.reserved > known:
            self._epochs.spend()
            self._do(ExtendLease(self.deadline_ns, self.epoch, self.deadline_ns))
            self._report(self._message(Cause.EPOCH_RAISED, known=known))
            self._reserve()

    def _candidate_hears(self, beat: Heartbeat) -> None:
        claim = self._claim.epoch
        if beat.role is Role.ACTIVE and not beat.offering:
            self._transition(Cause.PEER_ACTIVE, peer_epoch=beat.epoch)
        elif max(beat.claim, beat.epoch) > claim or self._epochs.reserved != claim:
            self._transition(Cause.EPOCH_KNOWN, known=max(beat.claim, beat.epoch, self.epoch))
        elif beat.role is Role.LEFT:
            self._transition(Cause.PEER_SHUT_DOWN)
        elif self._claim.is_granted_by(beat, self.boot, self._now, self.timing.lease_ns):
            self._open(beat.echo_sent_ns, Cause.PEER_GRANTS)
        elif beat.offering:
            self._send()  # until it closes, it needs acknowledgements like any active node
        if self._state is State.BACKUP:
            self._follower_hears(beat)

    def _follower_hears(self, beat: Heartbeat) -> None:
        """Neither active nor claiming: promise, or claim."""
        self._epochs.seen(beat.epoch)
        promised = self._claim.promise(beat, self.epoch)
        self._reserve()
        if not promised:
            self._claim_if_better()
            return
        if beat.role is Role.ACTIVE:
            self._peer_is_active(beat)
        if self._state is State.STOPPED:
            return
        if beat.offering and self._state is State.BACKUP and self.can_serve and self._epochs.reserved:
            self._claim_reserved(Cause.PEER_OFFERS)
        else:
            self._send()

    def _peer_is_active(self, beat: Heartbeat) -> None:
        if self._hand_over.request:
            self._finish_request()
        if self._state is State.BACKUP and self.why != self._message(Cause.PEER_ACTIVE, peer_epoch=beat.epoch):
            self._transition(Cause.PEER_ACTIVE, peer_epoch=beat.epoch)

    # --- claims and takeovers ---------------------------------------------------------------------------------------

    def _take_over_if_silent(self) -> bool:
        if not (self._can_take_over and self._peer.is_silent(self._now, self._awake.since_ns, self.timing)):
            return False
        self._reserve()
        basis_ns = self._vote.basis_ns(self._now, self.timing)
        if basis_ns is None:
            self._do(self._vote.ask(self._now, self.timing))
            return False
        if not self._epochs.reserved:
            return False
        if self._peer.left:
            self._open(basis_ns, Cause.PEER_SHUT_DOWN)
        else:
            self._open(basis_ns, Cause.PEER_SILENT, silent_ms=self.timing.takeover_ns // NS_PER_MS)
        return True

    def _claim_if_better(self) -> None:
        """Two nodes that are alive and not active rank themselves; the peer's grant makes a wrong guess harmless."""
        beat = self._peer.heartbeat
        if self._state is not State.BACKUP or not self._can_take_over or not self._epochs.reserved:
            return
        if beat is None or not self.peer_alive or beat.role in (Role.ACTIVE, Role.LEFT) or beat.claim:
            return
        # A peer in fault or maintenance cannot claim; one whose fault does not disable it can.
        mine = (self.can_serve, True, self._in_step, self._version, self.config.priority, self.config.node)
        can_claim = beat.can_serve or beat.role is Role.BACKUP
        theirs = (beat.can_serve, can_claim, beat.in_step, beat.version, beat.priority, self.config.peer)
        if mine > theirs:
            self._claim_reserved(Cause.PEER_RANKS_LOWER, peer_role=beat.role.value)

    def _claim_reserved(self, cause: Cause, **facts: object) -> None:
        self._claim.begin(self._epochs.reserved, self._now)
        self._transition(cause, **facts)
        self._send()

    # --- requests and the hand-over ---------------------------------------------------------------------------------

    def _unable_peer(self) -> str:
        return self._peer.inability(self._now, self.timing)

    def _begin_hand_over(self, request: str) -> None:
        self._hand_over.begin(request, self._now + self.timing.handover_timeout_ns)
        self._transition(Cause.HAND_OVER, request=request)
        self._do(self._hand_over.flush())
        self._send()

    def _continue_hand_over(self) -> None:
        beat = self._peer.heartbeat
        if unable := self._unable_peer():
            self._cancel_hand_over(Cause.PEER_UNABLE, unable)
        elif self._hand_over.flushed and beat and beat.claim > self.epoch:
            # The lease is closed before the grant leaves: effects are carried out in order.
            self._claim.grants = beat.claim
            self._transition(Cause.HANDED_OVER, peer_claim=beat.claim)

    def _cancel_hand_over(self, cause: Cause, reason: str) -> None:
        request = self._hand_over.end()
        self._transition(cause, reason=reason)
        self._do(Refused(request, reason))
        if request == "shutdown":
            self._retire(request)

    def _hand_over_timed_out(self) -> None:
        if self._state is State.OFFERING:
            timeout_ms = self.timing.handover_timeout_ns // NS_PER_MS
            self._cancel_hand_over(Cause.HAND_OVER_TIMEOUT, f"{self.config.peer} did not claim within {timeout_ms} ms")
        else:
            self._finish_request()

    def _flows_flushed(self, event: FlowsFlushed) -> None:
        if self._hand_over.flows_flushed(event.number) and self._state is State.OFFERING:
            self._continue_hand_over()

    def _busy_or_unable(self) -> str:
        """Why no hand-over can begin; empty if one can."""
        return "another hand-over is in progress" if self._hand_over.request else self._unable_peer()

    def _switchover(self, event: SwitchoverRequested) -> None:
        if not self.serving:
            self._do(Refused("switchover", f"{self.config.node} is {self.role.value}: request it on {self.config.peer}"))
        elif why := self._busy_or_unable():
            self._do(Refused("switchover", why))
        else:
            self._begin_hand_over("switchover")

    def _maintenance(self, event: MaintenanceRequested) -> None:
        if not event.on:
            self._end_maintenance()
        elif self.serving and not (why := self._busy_or_unable()):
            self._begin_hand_over("maintenance")
        elif self.serving and not event.force:
            self._do(Refused("maintenance", why))
        else:
            self._retire("maintenance")

    def _end_maintenance(self) -> None:
        requested = self._hand_over.request == "maintenance"
        if requested and self._state is State.OFFERING:
            self._cancel_hand_over(Cause.MAINTENANCE_ENDED, "maintenance cancelled")
        elif requested:
            self._hand_over.end()
        elif self._state is State.MAINTENANCE:
            if self._faults.disabling:
                self._transition(Cause.MAINTENANCE_ENDED_IN_FAULT, faults=self._faults)
            else:
                self._transition(Cause.MAINTENANCE_ENDED)
            self._send()
        self._do(Completed("maintenance"))

    def _shutdown(self, event: ShutdownRequested) -> None:
        if not self.serving or self._unable_peer():
            self._retire("shutdown")
        elif self._state is State.ACTIVE:
            self._begin_hand_over("shutdown")
        else:
            self._hand_over.request = "shutdown"  # the hand-over in progress is enough

    def _finish_request(self) -> None:
        """The peer is active, or was not in time: what the hand-over was for can happen now."""
        request = self._hand_over.end()
        if request in RETIRED:
            self._retire(request)
        else:
            self._do(Completed(request))

    def _retire(self, request: str) -> None:
        """Leave service, from whatever this node was."""
        self._hand_over.end()
        state, cause = RETIRED[request]
        if self._state is not state:
            was_active = self.serving
            self._transition(cause)
            if not was_active:
                self._send()
        if state is State.STOPPED:
            self._do(self._epochs.give_back())
        self._do(Completed(request))


_HANDLERS: dict[type, Callable[[Failover, Any], None]] = {
    Tick: Failover._tick,
    HeartbeatHeard: Failover._heartbeat,
    AdvertHeard: Failover._advertisement,
    FaultChanged: Failover._fault,
    VoteAnswered: Failover._vote_answered,
    EpochPersisted: Failover._epoch_persisted,
    LeasesPersisted: Failover._leases_persisted,
    StandingChanged: Failover._standing,
    FlowsFlushed: Failover._flows_flushed,
    SwitchoverRequested: Failover._switchover,
    MaintenanceRequested: Failover._maintenance,
    ShutdownRequested: Failover._shutdown,
}
