"""The progress of one hand-over."""

from __future__ import annotations

import pytest

from sync.failover.hand_over import HandOver
from sync.failover.types import FlushFlows


def test_only_the_last_flush_counts() -> None:
    hand_over = HandOver()
    assert hand_over.flush() == FlushFlows(1) and hand_over.flush() == FlushFlows(2)
    assert not hand_over.flows_flushed(1) and not hand_over.flushed
    assert hand_over.flows_flushed(2) and hand_over.flushed
    hand_over.flush()
    assert not hand_over.flushed


def test_a_request_is_late_from_its_deadline_until_it_ends() -> None:
    hand_over = HandOver()
    assert not hand_over.is_late(99)
    hand_over.begin("switchover", 50)
    assert not hand_over.is_late(49) and hand_over.is_late(50)
    assert hand_over.end() == "switchover" and hand_over.request == "" and not hand_over.is_late(50)


@pytest.mark.parametrize(
    ("request_", "leaves"), [("switchover", False), ("failback", False), ("maintenance", True), ("shutdown", True), ("", False)]
)
def test_which_requests_keep_a_node_from_becoming_active(request_: str, leaves: bool) -> None:
    hand_over = HandOver()
    hand_over.begin(request_, 0)
    assert hand_over.leaves_service is leaves
