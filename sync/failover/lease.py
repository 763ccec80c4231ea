"""The lower layer of the failover machine: what a node says about itself, and its lease.

Decides when the lease may be extended and what each heartbeat carries; `handover.py` and `failover.py` build on it and
decide who serves. Must not know sockets, clocks, files or the kernel.

A lease needs a promise. The deadline is `sent + lease_ns` of a heartbeat which the peer acknowledged with `grants`: the
peer then stays closed until it has heard nothing for takeover_ns (see timing.py; which times are in force where two
nodes differ: agreement.py). Only when acknowledgements stay away for alone_ns while this node is awake does it extend by
itself: with a vote configured, from the moment it asked for a vote it then got; without one, from the moment it sends,
because the peer is probably dead (if it is cut off instead, both serve until the cut heals: two nodes without a vote
cannot know better).
"""

from __future__ import annotations

from collections import deque

from sync.failover.agreement import Agreement
from sync.failover.epochs import Epochs
from sync.failover.session import SessionGuard
from sync.failover.states import OUT_OF_SERVICE, ROLES, TRANSITIONS, State
from sync.failover.timing import NS_PER_MS, Timing
from sync.failover.types import (
    AskVote,
    CloseLease,
    Effect,
    ExtendLease,
    FailoverConfig,
    FlushFlows,
    Heartbeat,
    Leases,
    LeasesPersisted,
    Role,
    RoleChanged,
    SendAdvert,
    SendHeartbeat,
    Status,
    StopServing,
    Vote,
    VoteAnswered,
)

NEVER_NS = -(1 << 62)
LEAST_PRIORITY = 1
FAR_NS = 1 << 62
REMEMBERED_BEATS = 16
NO_LEASES = Leases()


class Lease:
    """State, lease, promises and heartbeats of one node."""

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
        """boot: random non-zero number of this run; epoch, reserved, leases: as last persisted (0, 0, none on a new node)."""
        self.config, self.boot = config, boot
        self._agreement = Agreement(config.timing, leases)
        self._told_ns = config.timing.lease_ns  # which lease of the peer has been spoken of, if another than this node's
        self.state = State.MAINTENANCE if maintenance else State.BACKUP
        self.why = "maintenance" if maintenance else f"{config.node} starts and listens"
        self.deadline_ns = 0
        self._epochs = Epochs(config.parity, epoch, reserved)
        self._now = self._last_event_ns = self._awake_since_ns = now_ns
        self._quiet_until_ns = now_ns + self.timing.start_wait_ns  # silence counts only from then on
        self._guard = SessionGuard()
        self._hailed_boot = 0  # the foreign run that was answered at once
        self._peer: Heartbeat | None = None
        self._peer_heard_ns = self._advert_heard_ns = NEVER_NS
        self._suspects_since_ns: int | None = None  # when this node, awake, found the end of silence near
        self._acked_ns = NEVER_NS  # when the last heartbeat that the peer acknowledged was sent
        self._followed = False  # the peer has acknowledged a heartbeat of this term
        self._sent_ns = NEVER_NS
        self._unacked_ns: deque[int] = deque(maxlen=REMEMBERED_BEATS)  # when heartbeats since then were sent
        self._next_beat_ns = now_ns
        self._sequence = 0
        self._claim = self._claim_since_ns = self._grants = 0
        self._vote_asked_ns = self._vote_since_ns = self._vote_question_ns = NEVER_NS
        self._announce_ns: list[int] = []
        self._in_step, self._version = False, (0, 0)
        self._down: set[str] = set()
        self._flush_number, self._flushed = 0, False
        self._request, self._request_until_ns = "", 0  # what the operator asked for and is not done
        self._settled_since_ns = now_ns  # since when this node could take the VIPs back
        self._out: list[Effect] = []

    # --- what others may ask ----------------------------------------------------------------------------------------

    @property
    def timing(self) -> Timing:
        """The times in force: the node file's as far as the peer knows of them, and no shorter than the peer's need."""
        return self._agreement.timing

    @property
    def role(self) -> Role:
        """What this node tells others it is."""
        return ROLES[self.state]

    @property
    def epoch(self) -> int:
        """The highest term this node knows of; its own when it serves."""
        return self._epochs.current

    @property
    def serving(self) -> bool:
        """Whether this node holds the lease, as far as it knows."""
        return self.state is State.ACTIVE or self.state is State.OFFERING

    @property
    def can_serve(self) -> bool:
        """Whether this node may become or stay active."""
        leaving = self._request in ("maintenance", "shutdown") and not self.serving
        return not self._down and self.state not in OUT_OF_SERVICE and not leaving

    @property
    def next_wakeup_ns(self) -> int:
        """When to send the next Tick at the latest."""
        timing, wake_ns = self.timing, self._next_beat_ns
        if self.state is State.STOPPED:
            return FAR_NS
        if self.serving:
            alone_ns = self._alone_at_ns
            return min(wake_ns, alone_ns if alone_ns > self._now else wake_ns, self.deadline_ns)
        silence_ns = max(self._silence_ends_ns, self._quiet_until_ns, self._awake_since_ns + timing.listen_ns)
        if self._suspects_since_ns is None:
            silence_ns = min(silence_ns, self._suspect_at_ns)
        else:
            silence_ns = max(silence_ns, self._suspects_since_ns + timing.heartbeat_ns)
        return min(wake_ns, silence_ns) if silence_ns > self._now else wake_ns

    def explain(self, now_ns: int) -> str:
        """One sentence: what this node does now, and why."""
        if not self.serving:
            return self.why
        carried = self._followed and now_ns - self._acked_ns < self.timing.alone_ns
        return f"{self.why}; heartbeats are {'' if carried else 'not '}acknowledged by {self.config.peer}"

    def status(self, now_ns: int) -> Status:
        """The machine as people see it at `now_ns`."""
        takeover_ns = self.timing.takeover_ns
        paths = {"cluster": now_ns - self._cluster_heard_ns < takeover_ns, "data": now_ns - self._advert_heard_ns < takeover_ns}
        heard_ns = max(self._peer_heard_ns, self._advert_heard_ns)
        return Status(
            node=self.config.node,
            role=self.role,
            epoch=self.epoch,
            lease_ns_left=max(0, self.deadline_ns - now_ns),
            why=self.explain(now_ns),
            peer=self.config.peer,
            peer_role=self._peer.role.value if self._peer else "",
            peer_alive=any(paths.values()),
            peer_silent_ns=now_ns - heard_ns if heard_ns != NEVER_NS else -1,
            paths=paths,
        )

    @property
    def peer_alive(self) -> bool:
        """Whether the cluster link has brought a heartbeat within takeover_ns, as of the last event."""
        return self._now - self._cluster_heard_ns < self.timing.takeover_ns

    @property
    def _cluster_heard_ns(self) -> int:
        """A peer that said it left counts as silent from then on."""
        left = self._peer is not None and self._peer.role is Role.LEFT
        return NEVER_NS if left else self._peer_heard_ns

    @property
    def _silence_ends_ns(self) -> int:
        return max(self._cluster_heard_ns, self._advert_heard_ns) + self.timing.takeover_ns

    @property
    def _suspect_at_ns(self) -> int:
        """From when on this node looks whether silence is silence: early enough that timers a little late cost nothing."""
        return self._silence_ends_ns - self.timing.heartbeat_ns * 3 // 2

    # --- lease ------------------------------------------------------------------------------------------------------

    def _extend(self, basis_ns: int, void_after_ns: int) -> None:
        deadline_ns = basis_ns + self.timing.lease_ns
        if deadline_ns > self.deadline_ns:
            self.deadline_ns = deadline_ns
            self._out.append(ExtendLease(deadline_ns, self.epoch, void_after_ns))

    def _acknowledged(self, beat: Heartbeat) -> None:
        """Count the lease from the heartbeat that the peer says it heard, if it promises to follow."""
        sent_ns = beat.echo_sent_ns
        if beat.grants == self.epoch and beat.echo_boot == self.boot and self._acked_ns < sent_ns <= self._now:
            self._acked_ns, self._followed = sent_ns, True
            while self._unacked_ns and self._unacked_ns[0] <= sent_ns:
                self._unacked_ns.popleft()
            self._extend(sent_ns, sent_ns + self.timing.lease_ns)

    @property
    def _alone_at_ns(self) -> int:
        """From when on missing acknowledgements mean that nobody acknowledges: one must have had time to come back."""
        if not self._unacked_ns:
            return FAR_NS
        timing = self.timing
        return max(self._acked_ns + timing.alone_ns, self._unacked_ns[0] + timing.answer_ns)

    def _extend_alone(self) -> None:
        now, timing = self._now, self.timing
        unheard = now >= self._alone_at_ns
        awake = now - self._awake_since_ns >= timing.alone_ns
        if unheard and awake and self.config.vote is Vote.NONE:
            self._extend(now, now + timing.alone_ns)

    def _step_down(self, state: State, why: str, handover: bool = False) -> None:
        """Close the lease first, then tell the others."""
        self._out += [CloseLease(handover), StopServing(), SendAdvert(0, self._now + self.timing.alone_ns)]
        self._out.append(FlushFlows(self._next_flush()))
        self.deadline_ns = 0
        self._announce_ns = []
        # Longer than a peer with the same times waits, so that the two do not take over at the same moment.
        self._quiet_until_ns = self._now + self.timing.takeover_ns + self.timing.alone_ns
        self._enter(state, why)
        self._reserve()
        self._send()

    def _next_flush(self) -> int:
        self._flush_number, self._flushed = self._flush_number + 1, False
        return self._flush_number

    def _enter(self, state: State, why: str) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        if state is not State.CANDIDATE:
            self._claim = 0
        if State.CANDIDATE not in (self.state, state):  # a candidate hears as well as a backup does
            self._suspects_since_ns = None
        self.state, self.why, self._settled_since_ns = state, why, self._now
        self._out.append(RoleChanged(ROLES[state], self.epoch, why))

    def _reserve(self, above: int = 0) -> None:
        """Have an unspent epoch on disk before it is needed, so that a takeover waits for no disk."""
        peer = self._peer
        persist = self._epochs.reserve(max(above, peer.epoch, peer.claim) if peer else above)
        if persist:
            self._out.append(persist)

    # --- what both leases may be ------------------------------------------------------------------------------------

    def _agree(self, beat: Heartbeat) -> None:
        """Learn the peer's lease and what it allows, and say once what follows for people."""
        agreement, config_ns = self._agreement, self.config.timing.lease_ns
        before_ns = agreement.own_ns
        agreement.heard(beat, self.boot, self._sequence)
        self._store_leases()
        if agreement.own_ns != before_ns:
            self._tell(f"lease_ms {_ms(config_ns)} is in force, {self.config.peer} waits for it")
        if beat.lease_ns != self._told_ns:
            self._told_ns = beat.lease_ns
            if beat.lease_ns != config_ns:
                self._tell(
                    f"{self.config.peer} has lease_ms {_ms(beat.lease_ns)}, this node {_ms(config_ns)}: takeovers here wait "
                    f"{_ms(self.timing.takeover_ns)} ms; make both node files equal"
                )

    def _tell_lease(self) -> None:
        agreement, config_ns = self._agreement, self.config.timing.lease_ns
        if agreement.own_ns < config_ns:
            known = (
                f"{self.config.peer} is known to wait for {_ms(agreement.own_ns)} only, which stays in force until it is heard"
            )
            self._tell(f"lease_ms is {_ms(config_ns)}, but {known}")

    def _tell(self, text: str) -> None:
        self._out.append(RoleChanged(ROLES[self.state], self.epoch, text))

    def _store_leases(self) -> None:
        persist = self._agreement.store()
        if persist:
            self._out.append(persist)

    def _leases_persisted(self, event: LeasesPersisted) -> None:
        self._agreement.stored(event.leases)
        self._store_leases()

    # --- heartbeats and votes ---------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Say everything about this node, then extend the lease where nobody but this node can."""
        now, timing, peer = self._now, self.timing, self._peer
        self._sequence += 1
        if now - self._sent_ns > timing.stall_ns:
            self._awake_since_ns = now  # whatever else happened meanwhile: the peer heard nothing
        self._sent_ns = now
        heartbeat = Heartbeat(
            boot=self.boot,
            sequence=self._sequence,
            sent_ns=now,
            role=ROLES[self.state],
            epoch=self.epoch,
            priority=self.config.priority,
            lease_ns=self._agreement.said_ns,
            allows_ns=self._agreement.allowed_ns,
            claim=self._claim,
            grants=self._grants,
            echo_boot=peer.boot if peer else 0,
            echo_sequence=peer.sequence if peer else 0,
            echo_sent_ns=peer.sent_ns if peer else 0,
            echo_held_ns=now - self._peer_heard_ns if peer else 0,
            version=self._version,
            in_step=self._in_step,
            can_serve=self.can_serve,
            offering=self.state is State.OFFERING,
            wants=self._wants(),
        )
        self._out.append(SendHeartbeat(heartbeat))
        if self.serving:
            self._next_beat_ns = now + timing.heartbeat_ns
            self._out.append(SendAdvert(self._advertised(), now + timing.alone_ns))
            self._extend_alone()
            self._unacked_ns.append(now)
        elif self._claim:
            self._next_beat_ns = now + timing.heartbeat_ns
        else:
            # Later than the active's next one, which is answered at once anyway.
            self._next_beat_ns = now + timing.heartbeat_ns * 3 // 2
        vote = self.config.vote
        if vote is Vote.GATEWAY or (vote is Vote.WITNESS and self.serving):
            self._ask_vote()

    def _advertised(self) -> int:
        """The priority of this node's advertisements.

        They carry no epoch. A peer that followed this term and fell silent may have begun a later one, and then has the newer
        connections: where the data network heals before the cluster link, it is to win whatever the configured priorities.
        """
        lost = self._followed and self._now - self._acked_ns >= self.timing.takeover_ns
        return LEAST_PRIORITY if lost else self.config.priority

    def _wants(self) -> bool:
        """Whether to ask the active peer for the VIPs: this node is the preferred one and has been ready for long."""
        peer, config = self._peer, self.config
        if not (config.failback and self._in_step and self.state is State.BACKUP and peer and peer.role is Role.ACTIVE):
            return False
        return config.priority > peer.priority and self._now - self._settled_since_ns >= config.timing.failback_delay_ns

    def _ask_vote(self) -> None:
        if self._now - self._vote_question_ns >= self.timing.heartbeat_ns // 2:
            self._vote_question_ns = self._now
            self._out.append(AskVote(self._now))

    def _vote_answered(self, event: VoteAnswered) -> None:
        timing = self.timing
        if not event.granted or not self._vote_asked_ns < event.asked_ns <= self._now:
            return
        if event.asked_ns - self._vote_asked_ns > 3 * timing.heartbeat_ns:
            self._vote_since_ns = event.asked_ns
        self._vote_asked_ns = event.asked_ns
        if not self.serving:
            if self._now >= self._silence_ends_ns:
                self._next_beat_ns = self._now  # silence is judged by a Tick only
        elif event.asked_ns >= self._acked_ns + timing.alone_ns:
            # A vote asked for while acknowledgements came may be older than the cut it is to decide.
            self._extend(event.asked_ns, event.asked_ns + timing.lease_ns)

    def _vote_basis_ns(self) -> int | None:
        """From when a lease may be counted as far as the vote goes; None: no vote now."""
        now, timing, vote = self._now, self.timing, self.config.vote
        if vote is Vote.NONE:
            return now
        held = vote is Vote.WITNESS or now - self._vote_since_ns >= timing.takeover_ns
        return self._vote_asked_ns if held and now - self._vote_asked_ns < timing.alone_ns else None

    def _late_text(self, since_ns: int) -> str:
        return f"{(self._now - since_ns) // NS_PER_MS} ms"


def _ms(duration_ns: int) -> int:
    """In whole milliseconds, as node files have them; rounded up."""
    return -(-duration_ns // NS_PER_MS)
