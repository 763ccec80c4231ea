"""The bench of replication runs with both subjects, and each peer has every connection at the end."""

from __future__ import annotations

import shutil

import pytest

from bench.replication import subject
from bench.replication.conntrackd import Conntrackd
from bench.replication.pair import Pair

FLOWS = 3000


def test_both_subjects_replicate_the_same_connections() -> None:
    if not (shutil.which("conntrackd") and shutil.which("conntrack")):
        pytest.skip("conntrackd and conntrack are not installed")
    with Conntrackd((0, 0)) as conntrackd, Pair((0, 0)) as pair:
        subjects: tuple[subject.Subject, ...] = (pair, conntrackd)
        for each in subjects:
            cost = subject.stream(each, FLOWS)
            assert cost.missing == 0, each.name
            assert min(cost.figures()[name] for name in ("flows/s", "active us", "peer us", "bytes")) > 0
        assert pair.held() == conntrackd.held() == FLOWS
        assert conntrackd.active.entries() == FLOWS
