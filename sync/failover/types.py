"""The vocabulary of the failover machine: its events, its effects, and its configuration.

Decides nothing. Times are nanoseconds of the own node's CLOCK_MONOTONIC unless a name says otherwise.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from sync.failover.timing import Timing


class Role(enum.StrEnum):
    """What a node is, as its heartbeats carry it. LEFT: it closed its lease and stops."""

    ACTIVE = "active"
    BACKUP = "backup"
    FAULT = "fault"
    MAINTENANCE = "maintenance"
    LEFT = "left"


class Attention(enum.Enum):
    """What a message asks of an operator; the value names the log level."""

    NONE = "INFO"  # planned, or over
    ACT = "WARNING"  # service continues, and an operator should look
    HARM = "ERROR"  # both nodes answered clients


class Vote(enum.StrEnum):
    """What breaks the tie when the two nodes cannot hear each other.

    NONE: nothing; a cut makes both active until it heals (split brain). GATEWAY: a node that reaches the gateway may be
    active; right when reachability is transitive. WITNESS: a third party that grants the vote to one node at a time.
    """

    NONE = "none"
    GATEWAY = "gateway"
    WITNESS = "witness"


@dataclass(frozen=True, slots=True)
class FailoverConfig:
    """One node's part in the pair. `node` and `peer` are names and must differ, as must the priorities."""

    node: str
    peer: str
    timing: Timing
    priority: int = 100
    failback: bool = False
    vote: Vote = Vote.NONE

    @property
    def parity(self) -> int:
        """0 or 1: this node uses the even or the odd epochs, so no epoch ever belongs to two nodes."""
        return int(self.node > self.peer)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Everything a node reports about itself, complete each time: a lost heartbeat loses nothing.

    `grants` is a promise: "I follow the node that is active with, or claims, this epoch; my lease is closed, and I will not
    open one until I have heard nothing for takeover_ns since your heartbeat `echo_sequence`". The leases are explained in
    `sync.failover.agreement`.
    """

    boot: int  # random number of the sender's incarnation
    sequence: int
    sent_ns: int  # the sender's clock
    role: Role
    epoch: int  # highest epoch the sender knows; its own when it is active
    priority: int
    lease_ns: int  # how long the sender's kernel may answer after a heartbeat was sent
    allows_ns: int  # the lease of the receiver that the sender waits for, also after a restart; 0: not on its disk yet
    claim: int = 0  # epoch for which the sender asks the receiver's promise
    grants: int = 0
    echo_boot: int = 0  # boot, sequence and clock of the receiver's heartbeat that the sender heard last
    echo_sequence: int = 0
    echo_sent_ns: int = 0
    echo_held_ns: int = 0  # how long ago the sender heard it
    version: tuple[int, int] = (0, 0)  # configuration: epoch, generation
    in_step: bool = False  # the sender has every replicated flow
    can_serve: bool = False
    offering: bool = False  # the active sender wants to hand over: it waits for a claim
    wants: bool = False  # the backup sender asks for a hand-over


@dataclass(frozen=True, slots=True)
class Leases:
    """What a restart must know of both nodes' leases; 0: not stored yet. See `sync.failover.agreement`."""

    own_ns: int = 0  # the longest that the peer is known to wait for
    peer_ns: int = 0  # the longest that the peer may use


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """The timer fired. Everything that had arrived before must be handed over first, else silence is judged wrongly."""


@dataclass(frozen=True, slots=True)
class HeartbeatHeard:
    """A heartbeat of the authenticated peer arrived on the cluster link."""

    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class AdvertHeard:
    """A VRRP advertisement of the peer arrived on the data network. `sender_is_greater`: by address, RFC 9568 6.4.3."""

    priority: int
    sender_is_greater: bool = False


@dataclass(frozen=True, slots=True)
class FaultChanged:
    """Something about this node broke, or works again; see `sync.failover.faults`.

    message: what is wrong, for people; empty: the fault of this name has ended. disables: this node could not answer clients;
    otherwise it is active if its peer cannot be.
    """

    name: str
    message: str = ""
    disables: bool = True


@dataclass(frozen=True, slots=True)
class VoteAnswered:
    """The tie-breaker answered the AskVote of `asked_ns`. A gateway that does not answer gives no event."""

    asked_ns: int
    granted: bool = True


@dataclass(frozen=True, slots=True)
class EpochPersisted:
    """The PersistEpoch with this `reserved` is on disk (fsync done)."""

    reserved: int


@dataclass(frozen=True, slots=True)
class LeasesPersisted:
    """The PersistLeases with these is on disk (fsync done)."""

    leases: Leases


@dataclass(frozen=True, slots=True)
class StandingChanged:
    """The flow map is complete or no longer complete, or the configuration has another version."""

    in_step: bool
    version: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FlowsFlushed:
    """Everything the FlushFlows of this number covered is acknowledged by the peer."""

    number: int


@dataclass(frozen=True, slots=True)
class SwitchoverRequested:
    """An operator wants the peer to be active."""


@dataclass(frozen=True, slots=True)
class MaintenanceRequested:
    """An operator takes this node out of service or puts it back. `force`: even when the peer cannot take over."""

    on: bool
    force: bool = False


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """The daemon is to stop: hand over if possible, then close the lease."""


Event = (
    Tick
    | HeartbeatHeard
    | AdvertHeard
    | FaultChanged
    | VoteAnswered
    | EpochPersisted
    | LeasesPersisted
    | StandingChanged
    | FlowsFlushed
    | SwitchoverRequested
    | MaintenanceRequested
    | ShutdownRequested
)

# --- effects: to be carried out in order, each before the next ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Send on the cluster link."""

    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class SendAdvert:
    """Send a VRRP advertisement; priority 0 resigns. Not after `void_after_ns`: a node that slept may have lost the lease."""

    priority: int
    void_after_ns: int


@dataclass(frozen=True, slots=True)
class ExtendLease:
    """Write (deadline, epoch) to the kernel's lease. Not after `void_after_ns`: the heartbeat it rests on left too late."""

    deadline_ns: int
    epoch: int
    void_after_ns: int


@dataclass(frozen=True, slots=True)
class CloseLease:
    """Write deadline 0 to the kernel's lease, now. `handover`: the peer opens at once."""

    handover: bool = False


@dataclass(frozen=True, slots=True)
class PersistEpoch:
    """Store both numbers with fsync, then report EpochPersisted(reserved). Retry until the disk accepts it."""

    epoch: int
    reserved: int


@dataclass(frozen=True, slots=True)
class PersistLeases:
    """Store both with fsync, then report LeasesPersisted(leases). Retry until the disk accepts it."""

    leases: Leases


@dataclass(frozen=True, slots=True)
class ApplyReplicated:
    """Apply every flow block that has been received, before the next effect."""


@dataclass(frozen=True, slots=True)
class Serve:
    """The lease is open: add the VIPs and announce them."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Send gratuitous ARP and unsolicited neighbour advertisements for every VIP again."""


@dataclass(frozen=True, slots=True)
class StopServing:
    """Remove the VIPs; the lease is closed already."""


@dataclass(frozen=True, slots=True)
class FlushFlows:
    """Read pending flow changes, send them, and report FlowsFlushed(number) once the peer has acknowledged all."""

    number: int


@dataclass(frozen=True, slots=True)
class AskVote:
    """Ask the tie-breaker; a witness is to grant only one node for takeover_ns from when it answers."""

    asked_ns: int


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """The node's role, state or epoch changed, or people should know something; `why` is the message.

    cause: name of the transition's cause (`sync.failover.transitions.Cause`); empty: no transition.
    """

    role: Role
    epoch: int
    why: str
    attention: Attention = Attention.NONE
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """An operator's request cannot be met; nothing changed."""

    request: str
    why: str


@dataclass(frozen=True, slots=True)
class Completed:
    """An operator's request is done."""

    request: str


Effect = (
    SendHeartbeat
    | SendAdvert
    | ExtendLease
    | CloseLease
    | PersistEpoch
    | PersistLeases
    | ApplyReplicated
    | Serve
    | Announce
    | StopServing
    | FlushFlows
    | AskVote
    | RoleChanged
    | Refused
    | Completed
)


@dataclass(frozen=True, slots=True)
class Status:
    """What `cluster status` shows of the machine."""

    node: str
    role: Role
    epoch: int
    lease_ns_left: int
    why: str
    peer: str
    peer_role: str  # empty: never heard
    peer_alive: bool
    peer_silent_ns: int  # -1: never heard
    paths: dict[str, bool] = field(default_factory=dict)  # heartbeat path to "heard within the takeover time in force"
    can_serve: bool = True
    hold_down_ns: int = 0  # how much longer an active node stays active whatever its faults
    faults: tuple[str, ...] = ()
