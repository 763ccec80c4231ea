"""Requests to the tie-breaker, and from when a lease may rest on its answers."""

from __future__ import annotations

import pytest

from sync.failover.timing import NS_PER_MS as MS
from sync.failover.timing import Timing
from sync.failover.types import AskVote, Vote
from sync.failover.vote import TieBreaker

TIMING = Timing.from_ms(10, 30, 36)


def test_without_a_vote_a_lease_counts_from_now() -> None:
    assert TieBreaker(Vote.NONE).basis_ns(77 * MS, TIMING) == 77 * MS


@pytest.mark.parametrize(
    ("kind", "of_active", "of_backup"), [(Vote.NONE, False, False), (Vote.GATEWAY, True, True), (Vote.WITNESS, True, False)]
)
def test_which_heartbeats_come_with_a_question(kind: Vote, of_active: bool, of_backup: bool) -> None:
    vote = TieBreaker(kind)
    assert (vote.asks_with_heartbeat(active=True), vote.asks_with_heartbeat(active=False)) == (of_active, of_backup)


def test_questions_are_half_a_heartbeat_apart() -> None:
    vote = TieBreaker(Vote.GATEWAY)
    answers = [vote.ask(ms * MS, TIMING) for ms in (100, 104, 105, 109)]
    assert answers == [AskVote(100 * MS), None, AskVote(105 * MS), None]


def test_only_a_later_question_that_is_granted_counts() -> None:
    vote = TieBreaker(Vote.WITNESS)
    assert vote.answered(100 * MS, True, 101 * MS, TIMING)
    assert not vote.answered(100 * MS, True, 102 * MS, TIMING)
    assert not vote.answered(90 * MS, True, 102 * MS, TIMING)
    assert not vote.answered(103 * MS, True, 102 * MS, TIMING), "from the future"
    assert not vote.answered(102 * MS, False, 103 * MS, TIMING)
    assert vote.basis_ns(103 * MS, TIMING) == 100 * MS


def test_a_vote_of_a_witness_counts_at_once_and_for_half_a_lease() -> None:
    vote = TieBreaker(Vote.WITNESS)
    assert vote.basis_ns(0, TIMING) is None
    vote.answered(100 * MS, True, 101 * MS, TIMING)
    assert vote.basis_ns(101 * MS, TIMING) == vote.basis_ns(114 * MS, TIMING) == 100 * MS
    assert vote.basis_ns(115 * MS, TIMING) is None


def test_a_gateway_must_have_answered_for_the_takeover_time() -> None:
    vote = TieBreaker(Vote.GATEWAY)
    for ms in range(100, 140, 10):
        vote.answered(ms * MS, True, ms * MS, TIMING)
        assert vote.basis_ns(ms * MS + MS, TIMING) is None
    assert vote.basis_ns(136 * MS, TIMING) == 130 * MS
    vote.answered(161 * MS, True, 161 * MS, TIMING)
    assert vote.basis_ns(161 * MS, TIMING) is None, "31 ms without an answer: the series starts again"
