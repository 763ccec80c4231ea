"""Which flows expire: in all states, across the wrap of the tick, and always both directions together.

Entries of established flows may be a second older than their last packets, so they are kept a second longer.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.constants import RECENT_TICKS, REFRESH_SHIFT, TICK_SHIFT, FlowFlag, FlowState
from ctl.config.changes import change
from ctl.config.model import Config
from ctl.dataplane import expiry
from tests.fakes.plane import flow_dtype, key_dtype

SEEN, FIN, PEER_FIN, RST, REPLICATED = (
    FlowState.SEEN,
    FlowState.FIN_HERE | FlowState.SEEN,
    FlowState.FIN_THERE | FlowState.SEEN,
    FlowState.RST | FlowState.SEEN,
    FlowState.REPLICATED,
)
NOW = 1_000_000
IDLE_S, OPENING_S, CLOSING_S = 900, 240, 200


def of_all_farms(seconds: int) -> np.ndarray:
    return np.full(4096, expiry.to_ticks(seconds), np.uint32)


TIMEOUTS = expiry.Timeouts(of_all_farms(IDLE_S), of_all_farms(OPENING_S), of_all_farms(CLOSING_S), np.arange(4096) == 1)
"""Farm 1 is TCP, all others UDP."""


def ticks(seconds: float) -> int:
    return int(seconds * 1e9) >> TICK_SHIFT


def raw(address: str) -> np.void:
    return np.void(ipaddress.ip_address(address).packed)


def connection(forward: tuple[int, float], reply: tuple[int, float], now: int = NOW) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of a SNAT connection's two flows; each given as (state, seconds since its last packet)."""
    keys, values = np.zeros(2, key_dtype("v4")), np.zeros(2, flow_dtype("v4"))
    keys["protocol"] = 6
    keys[0] = (raw("192.0.2.1"), raw("10.0.0.1"), 40000, 80, 6, 0)
    keys[1] = (raw("10.0.1.1"), raw("10.0.0.9"), 8080, 50000, 6, 0)
    values["source"], values["destination"] = [raw("10.0.0.9"), raw("10.0.0.1")], [raw("10.0.1.1"), raw("192.0.2.1")]
    values["source_port"], values["destination_port"] = [50000, 80], [8080, 40000]
    values["flags"] = [FlowFlag.FORWARD, 0]
    values["state"] = [forward[0], reply[0]]
    values["last_seen"] = [(now - ticks(forward[1])) & 0xFFFFFFFF, (now - ticks(reply[1])) & 0xFFFFFFFF]
    values["farm"], values["backend"] = 1, 7
    return keys, values


def sweep(
    keys: np.ndarray, values: np.ndarray, now: int = NOW, timeouts: expiry.Timeouts = TIMEOUTS, embryonic: bool = False
) -> set[int]:
    """The rows that a sweep of the daemon deletes."""
    place = {key.tobytes(): row for row, key in enumerate(keys)}
    chosen = np.flatnonzero(expiry.candidates(values, now, timeouts, embryonic))
    pairs = expiry.opposite_keys(keys[chosen], values[chosen])
    rows = [place.get(key.tobytes(), -1) for key in pairs]
    found = np.array([row >= 0 for row in rows], bool)
    opposite = values[np.array(rows, int)]
    gone, pair_gone = expiry.expired(keys[chosen], values[chosen], found, opposite, now, timeouts, embryonic)
    return {*chosen[gone].tolist(), *(row for row, go in zip(rows, pair_gone, strict=True) if go)}


def test_forward_and_reply_flow_refer_to_each_other() -> None:
    keys, values = connection((SEEN, 0), (SEEN, 0))
    assert expiry.opposite_keys(keys, values).tobytes() == keys[::-1].tobytes()


@pytest.mark.parametrize(
    ("forward", "reply", "kept_s"),
    [
        (SEEN, SEEN, IDLE_S),
        (SEEN, 0, OPENING_S),
        (0, SEEN, OPENING_S),
        (FIN, PEER_FIN, IDLE_S),  # half-closed: the other end may be silent for as long as in any connection
        (PEER_FIN, FIN, IDLE_S),
        (FIN | PEER_FIN, FIN | PEER_FIN, CLOSING_S),
        (RST, RST, CLOSING_S),
        (SEEN, RST, CLOSING_S),
        (RST | FIN | PEER_FIN, RST, CLOSING_S),
    ],
)
@pytest.mark.parametrize("now", [NOW, 50, 2**32 - 1])
def test_idle_time_allowed_in_each_state(forward: int, reply: int, kept_s: int, now: int) -> None:
    for quiet in (1.0, 0.9):  # the more recent flow decides
        before, after = kept_s - 1, kept_s + 2
        assert sweep(*connection((forward, before), (reply, before + 5 * (quiet < 1)), now), now) == set()
        assert sweep(*connection((forward, after), (reply, after + 5 * (quiet < 1)), now), now) == {0, 1}


def test_tcp_is_opening_until_it_is_established_and_udp_until_it_is_answered() -> None:
    both = connection((SEEN, OPENING_S + 1), (SEEN, OPENING_S + 1))
    assert sweep(*both) == set()
    assert sweep(*both, embryonic=True) == {0, 1}, "the client has not answered the SYN-ACK"
    both[1]["farm"] = 2
    assert sweep(*both, embryonic=True) == set(), "a question and its answer"
    both[1]["state"] = [SEEN, 0]
    assert sweep(*both, embryonic=True) == {0, 1}


@given(st.floats(0, 1.2), st.sampled_from([SEEN, FIN, RST, 0]), st.integers(1, 1000))
def test_timeouts_shrink_linearly_from_60_percent_to_the_floor(fill: float, state: int, seconds: int) -> None:
    """pf's adaptive timeouts: unchanged, then between the farm's timeout and a minute, which is never raised."""
    limits = TIMEOUTS.under_pressure(fill)
    limit_s = {0: OPENING_S, RST: CLOSING_S}.get(state, IDLE_S)
    share = min(1.0, max(0.0, (fill - 0.6) / 0.4))
    expected = limit_s - (limit_s - expiry.FLOOR_S) * share + RECENT_TICKS * 2**TICK_SHIFT / 1e9
    gone = bool(sweep(*connection((state, seconds), (state, seconds)), timeouts=limits))
    if abs(seconds - expected) > 0.5:
        assert gone == (seconds > expected)
    if fill <= 0.6:
        assert limits is TIMEOUTS
    short = replace(TIMEOUTS, idle=of_all_farms(20)).under_pressure(fill)
    assert short.idle[1] == expiry.to_ticks(20), "a timeout below the floor stays"


def test_a_busy_flow_keeps_both_directions() -> None:
    assert sweep(*connection((SEEN, 5000), (SEEN, 1))) == set()
    assert sweep(*connection((SEEN, 1), (0, 5000))) == set()


def test_a_flow_without_its_reverse_flow_expires_alone() -> None:
    keys, values = connection((SEEN, 40), (SEEN, 40))
    assert sweep(keys[:1], values[:1]) == set(), "a candidate only after the farm's timeout"
    keys, values = connection((SEEN, 902), (SEEN, 0))
    assert sweep(keys[:1], values[:1]) == {0}


def test_a_reverse_flow_of_another_connection_is_kept() -> None:
    keys, values = connection((SEEN, 902), (SEEN, 1))
    values["destination_port"][1] = 40001  # the reply tuple belongs to another client now
    assert sweep(keys, values) == {0}


def test_a_packet_newer_than_the_clock_reading_does_not_expire() -> None:
    keys, values = connection((SEEN, 0), (SEEN, 0))
    values["last_seen"] = NOW + 3
    assert sweep(keys, values) == set()


def test_a_replicated_flow_gets_the_refresh_interval_on_top() -> None:
    slack = (1 << REFRESH_SHIFT << TICK_SHIFT) / 1e9
    assert sweep(*connection((REPLICATED, 900 + slack - 1), (REPLICATED, 900 + slack - 1))) == set()
    assert sweep(*connection((REPLICATED, 900 + slack + 2), (REPLICATED, 900 + slack + 2))) == {0, 1}


def test_timeouts_by_farm() -> None:
    config = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    config = change(config, "farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80, "idle_timeout_s": 20})
    config = change(config, "farm.add", {"name": "dns", "vip": "10.0.0.1", "port": 53, "proto": "udp"})
    config = change(config, "farm.add", {"name": "db", "vip": "10.0.0.1", "port": 5432, "idle_timeout_s": 3600})
    config = change(config, "farm.set", {"name": "db", "opening_timeout_s": 10, "closing_timeout_s": 5})
    config = change(config, "farm.add", {"name": "ssh", "vip": "10.0.0.1", "port": 22})
    timeouts = expiry.timeout_ticks(config)
    by_farm = {
        name: [int(limits[farm.id]) for limits in (timeouts.idle, timeouts.opening, timeouts.closing)]
        for name, farm in config.farms.items()
    }
    expected = {"web": (20, 20, 20), "dns": (300, 120, 240), "db": (3600, 10, 5), "ssh": (7440, 240, 240)}
    assert by_farm == {name: [expiry.to_ticks(seconds) for seconds in each] for name, each in expected.items()}
    assert [timeouts.handshake[farm.id] for farm in config.farms.values()] == [True, False, True, True]
    assert timeouts.idle[4000] == expiry.to_ticks(expiry.NO_FARM_S)
    assert config.farms["web"].id == 1
    assert sweep(*connection((SEEN, 22), (SEEN, 22)), timeouts=timeouts) == {0, 1}
    assert sweep(*connection((FIN, 22), (PEER_FIN, 22)), timeouts=timeouts) == {0, 1}, "the farm's timeout bounds the others"


def test_ticks_are_rounded_up() -> None:
    assert expiry.to_ticks(1) == 15 and 15 << TICK_SHIFT >= 1_000_000_000


def test_connections_are_counted_once_and_only_while_open() -> None:
    parts = [connection((SEEN, 0), (SEEN, 0)), connection((FIN, 0), (PEER_FIN, 0)), connection((RST, 0), (RST, 0))]
    parts.append(connection((FIN | PEER_FIN, 0), (FIN | PEER_FIN, 0)))
    backends, farms = expiry.count_connections(np.concatenate([values for _, values in parts]))
    assert backends[7] == 2 == backends.sum() and farms[1] == 2 == farms.sum()


def test_no_rows_at_all() -> None:
    keys, values = np.zeros(0, key_dtype("v6")), np.zeros(0, flow_dtype("v6"))
    assert sweep(keys, values) == set()
    assert expiry.count_connections(values)[0].sum() == 0


@pytest.mark.parametrize(
    ("forward", "reply", "lasts"),
    [
        ((SEEN, 5), (SEEN, 5), False),  # a question and its answer, or a SYN and its SYN-ACK
        ((SEEN, 5), (SEEN, 1), False),
        ((SEEN, 40), (SEEN, 1), True),  # one datagram, and a stream of answers
        ((SEEN, 1), (SEEN, 3), True),  # the client continued; the map of established flows is full
        ((SEEN, 40), (0, 1), False),
        ((RST, 1), (RST, 3), False),
    ],
)
def test_connections_that_last_are_found_among_the_embryonic(
    forward: tuple[int, float], reply: tuple[int, float], lasts: bool
) -> None:
    _, values = connection(forward, reply)
    assert expiry.lasting(values[:1], np.array([True]), values[1:]).tolist() == [lasts]
    assert expiry.lasting(values[:1], np.array([False]), values[1:]).tolist() == [False]


@pytest.mark.parametrize("flag", [FlowFlag.DSR, FlowFlag.IPIP, FlowFlag.IPIP | FlowFlag.OTHER_FAMILY])
@pytest.mark.parametrize(
    ("state", "farm", "embryonic", "limit_s"),
    [
        (SEEN, 1, True, OPENING_S),
        (SEEN, 2, True, OPENING_S),  # one datagram, or several of one moment
        (SEEN, 1, False, IDLE_S),
        (SEEN, 2, False, IDLE_S),
        (FIN, 1, False, CLOSING_S),
        (RST, 1, False, CLOSING_S),
    ],
)
def test_a_connection_that_is_one_way(flag: int, state: int, farm: int, embryonic: bool, limit_s: int) -> None:
    for age_s, expected in ((limit_s - 1, set()), (limit_s + 2, {0})):
        keys, values = connection((state | FlowState.FIN_THERE, age_s), (SEEN, 0))
        values["flags"][0] |= flag
        values["farm"] = farm
        # row 1 is not its reply, although it looks like one
        assert sweep(keys, values, embryonic=embryonic) == expected
        assert not expiry.only_reply_is_busy(values[:1], values[1:], NOW).any()
        assert not expiry.lasting(values[:1], np.array([True]), values[1:]).any()
        counted = expiry.count_connections(values[:1])[0][7]
        assert counted == (limit_s != CLOSING_S)
