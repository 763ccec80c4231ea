"""Which flow entries are idle, and how many connections each backend and farm has: columns in, masks and counts out.

Decides from the entries and a given tick. Must not know maps, file descriptors or the schedule.
A connection is idle if both its entries are, so a decision takes two steps: `candidates` checks the entry alone, then
`expired` checks it together with the entry of the other direction. A connection that is one way (modes dsr and ipip) has no
other entry: it is opening while it is in the embryonic map.

Idle timeouts (RFC 5382 REQ-5, RFC 4787 REQ-5):
* opening: until both directions were seen; of TCP until it is established;
* closing: FIN from both sides, or a RST;
* otherwise, half-closed connections included, the farm's idle timeout, which also limits the others.
The entry of an established connection is up to RECENT_TICKS older than its last packet, so it is deleted so much later.
The timeouts of established connections shrink while the map of established flows is filled: they are unchanged below
PRESSURE_FROM, then fall linearly to FLOOR_S when it is full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.constants import MAX_BACKENDS, MAX_FARMS, RECENT_TICKS, REFRESH_SHIFT, TICK_SHIFT, FlowFlag, FlowState
from bpf.dataplane import Array
from ctl.config.model import Config, Protocol

NO_FARM_S = 120
"""For connections of a deleted farm, whose timeout is unknown."""
PRESSURE_FROM = 0.6
LASTING_S = 20
"""Longer than a server repeats a SYN-ACK without an answer, at intervals of 1, 2, 4 and 8 s."""
FLOOR_S = 60
"""Also the time for which the source port of a closed connection is kept from other clients (bpf/program/select.h)."""

Mask = NDArray[np.bool_]
Ticks = NDArray[np.uint32]

_FINISHED = int(FlowState.FIN_HERE | FlowState.FIN_THERE)
_REFRESH_TICKS = 1 << REFRESH_SHIFT
"""Maximum age of a replicated entry's last_seen while its connection is busy on the peer, in addition to RECENT_TICKS."""


def to_ticks(seconds: int) -> int:
    """Rounded up, so that nothing expires early."""
    return -(-seconds * 1_000_000_000 >> TICK_SHIFT)


@dataclass(frozen=True, slots=True, eq=False)
class Timeouts:
    """In ticks, indexed by farm id. `handshake`: whether the farm's connections are established by a handshake (TCP)."""

    idle: Ticks
    opening: Ticks
    closing: Ticks
    handshake: Mask

    def under_pressure(self, fill: float) -> Timeouts:
        """With the map filled by this share, 0 to 1."""
        kept = min(1.0, max(0.0, (1.0 - fill) / (1.0 - PRESSURE_FROM)))
        if kept == 1.0:
            return self
        floor = to_ticks(FLOOR_S)

        def shrunk(limits: Ticks) -> Ticks:
            lowest = np.minimum(limits, floor)
            return np.asarray(np.ceil(lowest + (limits - lowest) * kept), np.uint32)

        return replace(self, idle=shrunk(self.idle), opening=shrunk(self.opening), closing=shrunk(self.closing))


def timeout_ticks(config: Config) -> Timeouts:
    """The timeouts of all farms."""
    idle, opening, closing = (np.full(MAX_FARMS, to_ticks(NO_FARM_S), np.uint32) for _ in range(3))
    handshake = np.zeros(MAX_FARMS, np.bool_)
    for farm in config.farms.values():
        idle[farm.id] = to_ticks(farm.idle_timeout)
        opening[farm.id] = to_ticks(min(farm.opening_timeout, farm.idle_timeout))
        closing[farm.id] = to_ticks(min(farm.closing_timeout, farm.idle_timeout))
        handshake[farm.id] = farm.protocol is Protocol.TCP
    return Timeouts(idle, opening, closing, handshake)


def is_one_way(values: Array) -> Mask:
    """Entries of connections whose replies do not pass this node, and that have no entry of the other direction."""
    return np.asarray((values["flags"] & int(FlowFlag.DSR | FlowFlag.IPIP)) != 0, np.bool_)


def age_ticks(last_seen: Array, now_tick: int) -> Ticks:
    """Ticks since last_seen; 0 for entries that a packet updated after the clock was read. Handles the 32-bit wrap."""
    age = (np.uint32(now_tick & 0xFFFFFFFF) - last_seen.astype(np.uint32)).astype(np.uint32)
    return np.where(age < 1 << 31, age, np.uint32(0)).astype(np.uint32)


def candidates(values: Array, now_tick: int, timeouts: Timeouts, embryonic: bool = False) -> Mask:
    """Entries whose connection may be idle. embryonic: they are in that map."""
    limits = _limits(values["state"], values, timeouts, embryonic)
    return np.asarray(age_ticks(values["last_seen"], now_tick) >= limits, np.bool_)


def without_slack(values: Array) -> Array:
    """The entries without the REPLICATED flag, and so without the additional timeout that the peer gives replicated entries."""
    stripped = values.copy()
    stripped["state"] &= ~np.uint8(FlowState.REPLICATED)
    return stripped


def only_reply_is_busy(values: Array, opposite: Array, now_tick: int) -> Mask:
    """Forward entries whose reply entry, in `opposite`, is newer. Events to the peer report forward packets only."""
    newer = age_ticks(opposite["last_seen"], now_tick) < age_ticks(values["last_seen"], now_tick)
    newer &= ~is_one_way(values)
    return np.asarray(newer & ((values["flags"] & int(FlowFlag.FORWARD)) != 0), np.bool_)


def opposite_keys(keys: Array, values: Array) -> Array:
    """The key of the opposite direction of each entry: its rewritten tuple with source and destination exchanged."""
    opposite = np.zeros_like(keys)
    opposite["source"], opposite["destination"] = values["destination"], values["source"]
    opposite["source_port"], opposite["destination_port"] = values["destination_port"], values["source_port"]
    opposite["protocol"] = keys["protocol"]
    return opposite


def is_opposite(keys: Array, opposite: Array) -> Mask:
    """Row by row, whether `opposite` leads back to `keys`. An entry of another connection may have taken its key."""
    return _same_keys(opposite_keys(keys, opposite), keys)


def expired(
    keys: Array,
    values: Array,
    found: Mask,
    opposite: Array,
    now_tick: int,
    timeouts: Timeouts,
    embryonic: bool = False,
) -> tuple[Mask, Mask]:
    """Which of the candidates to delete, and for which to delete the entry of the opposite direction too.

    keys, values: the candidates. found: whether an entry exists under each one's `opposite_keys`. opposite: those entries (any
    value if not found). timeouts: `timeout_ticks`. An opposite entry of another connection is ignored.
    """
    one_way = is_one_way(values)
    ours = found & is_opposite(keys, opposite) & ~one_way
    here, there = values["state"], np.where(ours, opposite["state"], 0).astype(np.uint8)
    state = here | (there & int(FlowState.RST | FlowState.REPLICATED))
    state |= np.where(there & int(FlowState.FIN_HERE), int(FlowState.FIN_THERE), 0).astype(np.uint8)
    state |= np.where(there & int(FlowState.FIN_THERE), int(FlowState.FIN_HERE), 0).astype(np.uint8)
    both_seen = (here & np.where(one_way, here, there) & int(FlowState.SEEN)) != 0
    state = np.where(both_seen, state, state & ~np.uint8(FlowState.SEEN)).astype(np.uint8)
    age = age_ticks(values["last_seen"], now_tick)
    age = np.where(ours, np.minimum(age, age_ticks(opposite["last_seen"], now_tick)), age)
    gone = np.asarray(age >= _limits(state, values, timeouts, embryonic), np.bool_)
    return gone, gone & ours


def count_connections(values: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Current connections by backend id and by farm id."""
    current = is_current(values)
    backends = np.minimum(values["backend"][current], MAX_BACKENDS - 1)
    farms = np.minimum(values["farm"][current], MAX_FARMS - 1)
    return np.bincount(backends, minlength=MAX_BACKENDS), np.bincount(farms, minlength=MAX_FARMS)


def is_current(values: Array) -> Mask:
    """Forward entries of connections that have not ended."""
    return np.asarray(((values["flags"] & int(FlowFlag.FORWARD)) != 0) & ~_is_closed(values["state"]), np.bool_)


def lasting(values: Array, found: Mask, opposite: Array) -> Mask:
    """Which embryonic forward entries have a connection that lasted. found, opposite: the entries of the other direction.

    Its client sent after an answer, or the answers to a datagram continued for LASTING_S. It is not in the map of established
    flows because that is full, or because its next packet moves it there; until then no peer has it.
    """
    forward, reply = values["last_seen"].astype(np.int64), opposite["last_seen"].astype(np.int64)
    found = found & ~is_one_way(values)
    answered = found & ((values["state"] & opposite["state"] & int(FlowState.SEEN)) != 0) & ~_is_closed(values["state"])
    return np.asarray(answered & ((forward > reply) | (reply - forward >= to_ticks(LASTING_S))), np.bool_)


def _limits(state: Any, values: Array, timeouts: Timeouts, embryonic: bool) -> Ticks:
    """Idle timeout in ticks by state; SEEN means both directions if both are known."""
    row = np.minimum(values["farm"], len(timeouts.idle) - 1)
    replicated = (state & int(FlowState.REPLICATED)) != 0
    opening = ((state & int(FlowState.SEEN)) == 0) & ~replicated
    if embryonic:
        opening |= timeouts.handshake[row] | is_one_way(values)
    limit = np.where(opening, timeouts.opening[row], timeouts.idle[row])
    limit = np.where(_is_closed(state), timeouts.closing[row], limit)
    limit = limit + np.where(replicated, _REFRESH_TICKS, 0)
    return np.asarray(limit if embryonic else limit + RECENT_TICKS, np.uint32)


def _is_closed(state: Any) -> Any:
    """Like is_closed in bpf/program/flow.h."""
    return ((state & int(FlowState.RST)) != 0) | ((state & _FINISHED) == _FINISHED)


def _same_keys(one: Array, other: Array) -> Mask:
    """Compare row by row, byte by byte."""
    if not len(one):
        return np.zeros(0, np.bool_)
    rows = [np.ascontiguousarray(each).view(np.uint8).reshape(len(each), -1) for each in (one, other)]
    return np.asarray((rows[0] == rows[1]).all(axis=1), np.bool_)
