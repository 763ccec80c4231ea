"""The offset between the clocks of two nodes."""

from __future__ import annotations

import random

from sync.failover.clock import ClockEstimator
from sync.failover.timing import NS_PER_MS as MS


def test_the_best_sample_gives_the_offset_within_half_its_round_trip() -> None:
    rng, estimator, offset = random.Random(1), ClockEstimator(), 123_456_789
    for _ in range(100):
        sent = rng.randint(10**9, 10**10)
        there, held, back = rng.randint(50_000, 5 * MS), rng.randint(0, 10 * MS), rng.randint(50_000, 5 * MS)
        peer_sends = sent + there + held - offset
        estimator.heard(5, peer_sends, sent, held, sent + there + held + back)
        best = estimator.best
        assert best and abs(best.offset_ns - offset) <= best.round_trip_ns / 2


def test_nonsense_and_another_incarnation_give_no_offset() -> None:
    estimator = ClockEstimator()
    for sent, held in ((0, 0), (2_000, 0), (10, 5_000)):
        estimator.heard(5, 10, sent, held, 1_000)
    assert estimator.offset_ns is None
    estimator.heard(5, 10, 900, 0, 1_000)
    assert estimator.offset_ns == 940
    estimator.heard(6, 10, 0, 0, 1_000)
    assert estimator.offset_ns is None
