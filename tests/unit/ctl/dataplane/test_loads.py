"""What a sweep may conclude about the loads, while connections begin, end and move under it."""

from __future__ import annotations

import random

import numpy as np

from ctl.dataplane.loads import corrected_bases, loads_of
from tests.fakes.plane import LOAD


def columns(opened: int = 0, closed: int = 0, promoted: int = 0, base: int = 0) -> np.ndarray:
    return np.array([(opened, closed, promoted, base)], LOAD)


def corrected(before: np.ndarray, after: np.ndarray, counted: int) -> int:
    """The load after a correction."""
    after = after.copy()
    after["base"] = corrected_bases(before, after, np.array([counted]))
    return int(loads_of(after)[0])


def test_a_quiet_load_is_what_the_sweep_counted() -> None:
    now = columns(opened=9, closed=2, base=5)
    assert corrected(now, now, 7) == 7
    assert corrected(now, now, 40) == 40
    assert corrected(now, now, 0) == 0


def test_a_right_load_stays_while_connections_come_and_go() -> None:
    before = columns(opened=100, closed=90)
    after = columns(opened=120, closed=100, promoted=15)  # 10, then 20 connections
    for counted in range(10 - 10, 10 + 20 + 1):
        assert corrected(before, after, counted) == 20, "any count of a moment in between is compatible"


def test_a_wrong_load_is_wrong_by_the_changes_at_most() -> None:
    before, after = columns(opened=100, closed=90, base=1000), columns(opened=120, closed=100, base=1000)
    assert abs(corrected(before, after, 15) - 20) <= 30
    assert corrected(columns(closed=5), columns(closed=5), 3) == 3, "more ended than began: their begin was not counted"


def test_a_load_is_never_negative() -> None:
    assert loads_of(columns(closed=3)).tolist() == [0]


def test_sweeps_follow_the_truth_whatever_xdp_misses() -> None:
    """Evictions that nothing counts: at most the changes of one sweep remain wrong, and nothing once it is quiet."""
    chance = random.Random(1)
    truth, state = 0, columns()
    for _ in range(300):
        before = state.copy()
        counted = truth
        for _ in range(chance.randrange(20)):
            opens = chance.random() < 0.5 or not truth
            truth += 1 if opens else -1
            state["opened" if opens else "closed"] += np.uint64(1)
        state["base"] = corrected_bases(before, state, np.array([counted]))
        lost = min(truth, chance.randrange(5))
        assert abs(int(loads_of(state)[0]) - truth) <= 4 + 20
        truth -= lost
    state["base"] = corrected_bases(state.copy(), state, np.array([truth]))
    assert int(loads_of(state)[0]) == truth
