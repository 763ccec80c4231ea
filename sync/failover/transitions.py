"""States of the failover machine, and every transition between them as a row: (state, cause) → next state, message.

Decides which state follows which, and the message that people read. Must not know when a cause occurs: `sync.failover.machine`
does. The machine changes its state only by naming a cause; a cause without a row is a bug and raises. The table in
docs/PROTOCOL.md is printed from the rows (`python -m docs.make_tables`).

A row whose next state is its state changes nothing but the message.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sync.failover.types import Attention, Role


class State(enum.Enum):
    """States of the machine; others see the Role each belongs to."""

    BACKUP = "backup"
    CANDIDATE = "candidate"
    ACTIVE = "active"
    OFFERING = "offering"
    FAULT = "fault"
    MAINTENANCE = "maintenance"
    STOPPED = "stopped"


HOLDS_LEASE = (State.ACTIVE, State.OFFERING)
OUT_OF_SERVICE = (State.FAULT, State.MAINTENANCE, State.STOPPED)

ROLES: dict[State, Role] = {
    State.BACKUP: Role.BACKUP,
    State.CANDIDATE: Role.BACKUP,
    State.ACTIVE: Role.ACTIVE,
    State.OFFERING: Role.ACTIVE,
    State.FAULT: Role.FAULT,
    State.MAINTENANCE: Role.MAINTENANCE,
    State.STOPPED: Role.LEFT,
}


class Cause(enum.Enum):
    """What makes the machine change its state; the value explains it in the documents."""

    PAIR_CREATED = "this node creates the pair"
    PEER_SILENT = "every heartbeat path silent for the takeover time, and this node holds the vote where one is configured"
    PEER_SHUT_DOWN = "the peer shut down; a takeover also needs a silent data network, and the vote where one is configured"
    PEER_OFFERS = "the active peer offers a hand-over"
    PEER_RANKS_LOWER = "neither node is active, both are alive, and this node ranks higher"
    PEER_GRANTS = "the peer grants the claim"
    PEER_ACTIVE = "the peer is active; of a candidate: and does not offer a hand-over"
    EPOCH_KNOWN = "the peer claims or knows a higher epoch, or the claimed epoch is no longer reserved"
    LINK_SILENT = "no heartbeat on the cluster link for the takeover time"
    LEASE_EXPIRED = "the lease expired before it was extended"
    PEER_OUTRANKS = "the peer is active with a higher epoch"
    ADVERTISEMENT_OUTRANKS = (
        "VRRP advertisement of higher priority, or of equal priority and a higher address, and no heartbeat "
        "on the cluster link for the takeover time"
    )
    EPOCH_RAISED = "the peer or a configuration knows a later epoch; this node continues with a still later one"
    HAND_OVER = (
        "switchover, maintenance or shutdown is requested, the preferred peer asks for the VIPs, or this node has a fault that "
        "does not disable it; the peer can become active"
    )
    HANDED_OVER = "the peer has all flow changes and claims an epoch: the lease is closed, then the claim granted"
    PEER_UNABLE = "the peer cannot become active any more"
    HAND_OVER_TIMEOUT = "the peer does not claim in time"
    FAULT = "this node has a fault that disables it (of an active node: and the peer can become active)"
    FAULT_ALONE = "this node has a fault, but the peer cannot become active"
    FAULT_HELD = "this node has a fault, and left service because of one not long ago"
    FAULT_ENDED = "no disabling fault is left"
    MAINTENANCE = "maintenance is requested; of an active node: forced, without a hand-over"
    MAINTENANCE_ENDED = "maintenance is ended or cancelled"
    MAINTENANCE_ENDED_IN_FAULT = "maintenance is ended while this node has a disabling fault"
    SHUTDOWN = "shutdown is requested; of an active node: the peer cannot become active"


ATTENTION = {
    Cause.PEER_SILENT: Attention.ACT,
    Cause.LEASE_EXPIRED: Attention.ACT,
    Cause.PEER_OUTRANKS: Attention.HARM,
    Cause.ADVERTISEMENT_OUTRANKS: Attention.ACT,
    Cause.PEER_UNABLE: Attention.ACT,
    Cause.HAND_OVER_TIMEOUT: Attention.ACT,
    Cause.FAULT: Attention.ACT,
    Cause.FAULT_ALONE: Attention.ACT,
    Cause.FAULT_HELD: Attention.ACT,
    Cause.MAINTENANCE_ENDED_IN_FAULT: Attention.ACT,
}
"""Causes after which an operator should look; the others are planned, or need nothing."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One row. `message` is a format string: `{node}`, `{peer}`, `{epoch}` and `{claim}` are always given."""

    state: State
    cause: Cause
    next: State
    message: str

    @property
    def attention(self) -> Attention:
        """What the transition asks of an operator."""
        return ATTENTION.get(self.cause, Attention.NONE)


def _rows(states: tuple[State, ...], cause: Cause, then: State, message: str) -> tuple[Transition, ...]:
    return tuple(Transition(state, cause, then, message) for state in states)


_BACKUP, _CANDIDATE, _FAULT = (State.BACKUP,), (State.CANDIDATE,), (State.FAULT,)
_MAINTENANCE, _OFFERING, _ACTIVE = (State.MAINTENANCE,), (State.OFFERING,), (State.ACTIVE,)
_HELD = "active with epoch {epoch} despite {faults}: held down for {held_ms} ms more, having left because of a fault before"
_WITHDRAWN = "claim of epoch {claim} withdrawn: "

TRANSITIONS: tuple[Transition, ...] = (
    *_rows(_BACKUP, Cause.PEER_ACTIVE, State.BACKUP, "{peer} is active with epoch {peer_epoch}"),
    *_rows(_BACKUP, Cause.PEER_OFFERS, State.CANDIDATE, "claiming epoch {claim}: {peer} offers a hand-over"),
    *_rows(_BACKUP, Cause.PEER_RANKS_LOWER, State.CANDIDATE, "claiming epoch {claim}: {peer} is {peer_role} and ranks lower"),
    *_rows(
        _BACKUP,
        Cause.PEER_SILENT,
        State.ACTIVE,
        "active with epoch {epoch}: {peer} silent on every heartbeat path for {silent_ms} ms",
    ),
    *_rows(_BACKUP, Cause.PEER_SHUT_DOWN, State.ACTIVE, "active with epoch {epoch}: {peer} shut down"),
    *_rows(_BACKUP, Cause.PAIR_CREATED, State.ACTIVE, "active with epoch {epoch}: {node} creates the pair"),
    *_rows(_CANDIDATE, Cause.PEER_GRANTS, State.ACTIVE, "active with epoch {epoch}: {peer} granted the claim"),
    *_rows(_CANDIDATE, Cause.PEER_ACTIVE, State.BACKUP, _WITHDRAWN + "{peer} is active with epoch {peer_epoch}"),
    *_rows(_CANDIDATE, Cause.EPOCH_KNOWN, State.BACKUP, _WITHDRAWN + "epoch {known} is known"),
    *_rows(_CANDIDATE, Cause.PEER_SHUT_DOWN, State.BACKUP, _WITHDRAWN + "{peer} shut down"),
    *_rows(_CANDIDATE, Cause.LINK_SILENT, State.BACKUP, "{peer} fell silent before it granted epoch {claim}"),
    *_rows(_ACTIVE, Cause.HAND_OVER, State.OFFERING, "active with epoch {epoch}, handing over to {peer}: {request}"),
    *_rows(_OFFERING, Cause.HANDED_OVER, State.BACKUP, "handed over to {peer}, epoch {peer_claim}"),
    *_rows(_OFFERING, Cause.PEER_UNABLE, State.ACTIVE, "active with epoch {epoch}: hand-over cancelled, {reason}"),
    *_rows(_OFFERING, Cause.HAND_OVER_TIMEOUT, State.ACTIVE, "active with epoch {epoch}: hand-over cancelled, {reason}"),
    *_rows(_OFFERING, Cause.MAINTENANCE_ENDED, State.ACTIVE, "active with epoch {epoch}: hand-over cancelled, {reason}"),
    *_rows(HOLDS_LEASE, Cause.LEASE_EXPIRED, State.BACKUP, "lease expired {late_ms} ms ago, {peer} may be active by now"),
    *_rows(HOLDS_LEASE, Cause.PEER_OUTRANKS, State.BACKUP, "{peer} is active too, with the higher epoch {peer_epoch}"),
    *_rows(
        HOLDS_LEASE,
        Cause.ADVERTISEMENT_OUTRANKS,
        State.BACKUP,
        "{peer} advertises priority {priority} while the cluster link is silent",
    ),
    *_rows(HOLDS_LEASE, Cause.FAULT, State.FAULT, "{faults}, and {peer} can become active"),
    *_rows(_ACTIVE, Cause.EPOCH_RAISED, State.ACTIVE, "epoch raised to {epoch}: epoch {known} is known"),
    *_rows(_OFFERING, Cause.EPOCH_RAISED, State.OFFERING, "epoch raised to {epoch}: epoch {known} is known"),
    *_rows(
        _ACTIVE,
        Cause.FAULT_ALONE,
        State.ACTIVE,
        "active with epoch {epoch} despite {faults}: {peer} cannot become active",
    ),
    *_rows(
        _OFFERING,
        Cause.FAULT_ALONE,
        State.OFFERING,
        "active with epoch {epoch} despite {faults}: {peer} cannot become active",
    ),
    *_rows(_ACTIVE, Cause.FAULT_HELD, State.ACTIVE, _HELD),
    *_rows(_OFFERING, Cause.FAULT_HELD, State.OFFERING, _HELD),
    *_rows((*_BACKUP, *_CANDIDATE), Cause.FAULT, State.FAULT, "{faults}"),
    *_rows(_FAULT, Cause.FAULT_ENDED, State.BACKUP, "fault ended: {ended}"),
    *_rows((*_BACKUP, *_CANDIDATE, *_FAULT), Cause.MAINTENANCE, State.MAINTENANCE, "maintenance"),
    *_rows(HOLDS_LEASE, Cause.MAINTENANCE, State.MAINTENANCE, "maintenance: lease closed"),
    *_rows(_MAINTENANCE, Cause.MAINTENANCE_ENDED, State.BACKUP, "maintenance ended"),
    *_rows(_MAINTENANCE, Cause.MAINTENANCE_ENDED_IN_FAULT, State.FAULT, "maintenance ended, {faults}"),
    *_rows((*_BACKUP, *_CANDIDATE, *_FAULT, *_MAINTENANCE), Cause.SHUTDOWN, State.STOPPED, "shutdown"),
    *_rows(HOLDS_LEASE, Cause.SHUTDOWN, State.STOPPED, "shutdown: lease closed"),
)

_BY_STATE_AND_CAUSE = {(row.state, row.cause): row for row in TRANSITIONS}


def transition(state: State, cause: Cause) -> Transition:
    """The row of `cause` in `state`. Raises LookupError where there is none: the machine must not have named it."""
    row = _BY_STATE_AND_CAUSE.get((state, cause))
    if row is None:
        raise LookupError(f"no transition from {state.name} for {cause.name}")
    return row
