"""The failover machine's states and the transitions between them. `Failover` refuses any other transition.

state        | becomes      | when
-------------+--------------+--------------------------------------------------------------------------------------
BACKUP       | CANDIDATE    | the peer is alive and does not serve, and I am the better one; or it offers to hand over
             | ACTIVE       | every path silent for takeover_ns (and the vote is mine, where one is configured)
CANDIDATE    | ACTIVE       | the peer promised: it grants my claim
             | BACKUP       | the peer serves, claims a higher epoch, falls silent, or no longer offers
ACTIVE       | BACKUP       | my lease ran out; or the peer serves with a higher epoch
             | OFFERING     | switchover, maintenance, shutdown, or the preferred peer wants the VIPs back
             | FAULT        | a tracked interface has no carrier and the peer can serve
OFFERING     | BACKUP       | flows flushed and the peer has claimed: lease closed, claim granted
             | ACTIVE       | the peer did not answer in time or cannot serve any more
FAULT        | BACKUP       | every tracked interface has its carrier again
MAINTENANCE  | BACKUP       | the operator ends it
any          | FAULT, MAINTENANCE, STOPPED | carrier lost, operator, shutdown
"""

from __future__ import annotations

import enum

from sync.failover.types import Role


class State(enum.Enum):
    """States of the machine; others see the Role each belongs to."""

    BACKUP = "backup"
    CANDIDATE = "candidate"
    ACTIVE = "active"
    OFFERING = "offering"
    FAULT = "fault"
    MAINTENANCE = "maintenance"
    STOPPED = "stopped"


OUT_OF_SERVICE = frozenset({State.FAULT, State.MAINTENANCE, State.STOPPED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.BACKUP: frozenset({State.CANDIDATE, State.ACTIVE}) | OUT_OF_SERVICE,
    State.CANDIDATE: frozenset({State.ACTIVE, State.BACKUP}) | OUT_OF_SERVICE,
    State.ACTIVE: frozenset({State.BACKUP, State.OFFERING}) | OUT_OF_SERVICE,
    State.OFFERING: frozenset({State.BACKUP, State.ACTIVE}) | OUT_OF_SERVICE,
    State.FAULT: frozenset({State.BACKUP, State.MAINTENANCE, State.STOPPED}),
    State.MAINTENANCE: frozenset({State.BACKUP, State.FAULT, State.STOPPED}),
    State.STOPPED: frozenset(),
}

ROLES: dict[State, Role] = {
    State.BACKUP: Role.BACKUP,
    State.CANDIDATE: Role.BACKUP,
    State.ACTIVE: Role.ACTIVE,
    State.OFFERING: Role.ACTIVE,
    State.FAULT: Role.FAULT,
    State.MAINTENANCE: Role.MAINTENANCE,
    State.STOPPED: Role.LEFT,
}
