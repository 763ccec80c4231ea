"""Which flow entries are idle, and how many connections each backend and farm has: columns in, masks and counts out.

Decides from what the entries say and the tick it is given. Must not know tables, file descriptors or when it is asked.
A connection is idle when both its entries are, so a decision takes two steps: `candidates` by the entry alone, then
`expired` with the other direction's entry beside it.

How long a silent connection is kept, by its state (compare nf_conntrack's and IPVS's defaults):
* reset: 10 s, for segments still under way;
* FIN from both sides: 30 s. The last ACK may get lost, and 30 s cover seven retransmissions of a FIN that begin at 200 ms;
  a server's own TIME-WAIT (60 s) needs no help from here;
* FIN from one side: 120 s of silence; the other side may go on sending for as long as it likes;
* seen in one direction only: 30 s;
* else the farm's idle timeout, which also bounds all the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.constants import MAX_BACKENDS, MAX_FARMS, REFRESH_SHIFT, TICK_SHIFT, FlowFlag, FlowState
from bpf.dataplane import Array
from ctl.config.model import Config

RESET_S = 10
FINISHED_S = 30
HALF_CLOSED_S = 120
HALF_OPEN_S = 30
NO_FARM_S = 120
"""For connections of a farm that was deleted and whose timeout nobody knows any more."""

Mask = NDArray[np.bool_]
Ticks = NDArray[np.uint32]

_FINISHED = int(FlowState.FIN_HERE | FlowState.FIN_THERE)
_REFRESH_TICKS = 1 << REFRESH_SHIFT
"""How stale a replicated entry's last_seen may be although its connection is busy on the peer."""


def to_ticks(seconds: int) -> int:
    """Rounded up, so that nothing expires early."""
    return -(-seconds * 1_000_000_000 >> TICK_SHIFT)


def timeout_ticks(config: Config) -> Ticks:
    """Idle timeout in ticks, indexed by farm id."""
    timeouts = np.full(MAX_FARMS, to_ticks(NO_FARM_S), np.uint32)
    for farm in config.farms.values():
        timeouts[farm.id] = to_ticks(farm.idle_timeout)
    return timeouts


def age_ticks(last_seen: Array, now_tick: int) -> Ticks:
    """Ticks since; 0 for entries a packet touched after the clock was read. Right across the wrap of 32 bits."""
    age = (np.uint32(now_tick & 0xFFFFFFFF) - last_seen.astype(np.uint32)).astype(np.uint32)
    return np.where(age < 1 << 31, age, np.uint32(0)).astype(np.uint32)


def candidates(values: Array, now_tick: int, timeouts: Ticks) -> Mask:
    """Entries silent for so long that their connection may be idle."""
    limits = _limits(values["state"], values["farm"], timeouts)
    return np.asarray(age_ticks(values["last_seen"], now_tick) >= limits, np.bool_)


def without_slack(values: Array) -> Array:
    """The entries as if this node had made them all: what a peer keeps only for the slack's sake is then a candidate here."""
    stripped = values.copy()
    stripped["state"] &= ~np.uint8(FlowState.REPLICATED)
    return stripped


def only_reply_is_busy(values: Array, pairs: Array, now_tick: int) -> Mask:
    """Forward entries whose reply entry, in `pairs`, is the newer one. Events tell the peer of forward packets only."""
    newer = age_ticks(pairs["last_seen"], now_tick) < age_ticks(values["last_seen"], now_tick)
    return np.asarray(newer & ((values["flags"] & int(FlowFlag.FORWARD)) != 0), np.bool_)


def pair_keys(keys: Array, values: Array) -> Array:
    """The key of the other direction of each entry: what it leaves with, turned round."""
    pairs = np.zeros_like(keys)
    pairs["source"], pairs["destination"] = values["destination"], values["source"]
    pairs["source_port"], pairs["destination_port"] = values["destination_port"], values["source_port"]
    pairs["protocol"] = keys["protocol"]
    return pairs


def expired(keys: Array, values: Array, found: Mask, pairs: Array, now_tick: int, timeouts: Ticks) -> tuple[Mask, Mask]:
    """Which of the candidates to delete, and for which the other direction's entry too.

    Args: the candidates; whether an entry lies under each one's `pair_keys`; those entries (any value where none was
    found); the present tick; `timeout_ticks`. An entry found there that belongs to another connection is left alone and
    counts as none.
    """
    ours = found & _same_keys(pair_keys(keys, pairs), keys)
    here, there = values["state"], np.where(ours, pairs["state"], 0).astype(np.uint8)
    state = here | (there & int(FlowState.RST | FlowState.REPLICATED))
    state |= np.where(there & int(FlowState.FIN_HERE), int(FlowState.FIN_THERE), 0).astype(np.uint8)
    state |= np.where(there & int(FlowState.FIN_THERE), int(FlowState.FIN_HERE), 0).astype(np.uint8)
    both_seen = (here & there & int(FlowState.SEEN)) != 0
    state = np.where(both_seen, state, state & ~np.uint8(FlowState.SEEN)).astype(np.uint8)
    age = age_ticks(values["last_seen"], now_tick)
    age = np.where(ours, np.minimum(age, age_ticks(pairs["last_seen"], now_tick)), age)
    gone = np.asarray(age >= _limits(state, values["farm"], timeouts), np.bool_)
    return gone, gone & ours


def count_connections(values: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Current connections by backend id and by farm id: forward entries that are not over."""
    state = values["state"]
    over = ((state & int(FlowState.RST)) != 0) | ((state & _FINISHED) == _FINISHED)
    current = ((values["flags"] & int(FlowFlag.FORWARD)) != 0) & ~over
    backends = np.minimum(values["backend"][current], MAX_BACKENDS - 1)
    farms = np.minimum(values["farm"][current], MAX_FARMS - 1)
    return np.bincount(backends, minlength=MAX_BACKENDS), np.bincount(farms, minlength=MAX_FARMS)


def _limits(state: Any, farm: Array, timeouts: Ticks) -> Ticks:
    """Ticks of silence after which an entry in such a state is idle; SEEN means both directions where that is known."""
    limit = timeouts[np.minimum(farm, len(timeouts) - 1)]
    replicated = (state & int(FlowState.REPLICATED)) != 0
    finished = state & _FINISHED
    for applies, seconds in (
        (((state & int(FlowState.SEEN)) == 0) & ~replicated, HALF_OPEN_S),
        (finished != 0, HALF_CLOSED_S),
        (finished == _FINISHED, FINISHED_S),
        ((state & int(FlowState.RST)) != 0, RESET_S),
    ):
        limit = np.where(applies, np.minimum(limit, to_ticks(seconds)), limit)
    return np.asarray(limit + np.where(replicated, _REFRESH_TICKS, 0), np.uint32)


def _same_keys(one: Array, other: Array) -> Mask:
    """Byte by byte, row by row."""
    if not len(one):
        return np.zeros(0, np.bool_)
    rows = [np.ascontiguousarray(each).view(np.uint8).reshape(len(each), -1) for each in (one, other)]
    return np.asarray((rows[0] == rows[1]).all(axis=1), np.bool_)
