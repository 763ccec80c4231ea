"""Numbers of epochs, claims and promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sync.failover.epochs import AHEAD, Claim, Epochs
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.types import Heartbeat, PersistEpoch, Role

BEAT = Heartbeat(22, 1, 0, Role.BACKUP, 1, 50, 30 * MS, 30 * MS)


def test_a_reserved_epoch_counts_as_spent_after_a_crash() -> None:
    assert Epochs(0, 4, 6).current == 6


def test_a_limit_is_stored_once_and_an_epoch_begins_when_it_is_on_disk() -> None:
    epochs = Epochs(0, 3, 0)
    assert epochs.reserve() == PersistEpoch(3, 3 + AHEAD) and epochs.reserve() is None
    with pytest.raises(AssertionError, match="on disk"):
        epochs.spend()
    epochs.persisted(2)
    assert epochs.reserved == 0
    epochs.persisted(3 + AHEAD)
    assert epochs.reserved == 4 and epochs.reserve() is None
    assert epochs.spend() == epochs.current == 4 and epochs.reserved == 0


@pytest.mark.parametrize("parity", [0, 1])
def test_reserved_epochs_have_the_parity_and_exceed_all_that_is_known(parity: int) -> None:
    epochs = Epochs(parity, 0, 0)
    for known in (0, 4, 9, 20, 5 * AHEAD, 5 * AHEAD + 1):
        persist = epochs.reserve(above=known)
        if persist:
            epochs.persisted(persist.reserved)
            epochs.reserve(above=known)
        assert known < epochs.reserved <= known + 2 and epochs.reserved % 2 == parity
    epochs.seen(5 * AHEAD + 31)
    epochs.seen(30)
    assert epochs.reserve() is None and epochs.current < epochs.reserved <= epochs.current + 2


def test_a_disk_that_refuses_prevents_no_takeover_for_hundreds_of_them() -> None:
    one, two = Epochs(0, 0, 0), Epochs(1, 0, 0)
    for epochs in (one, two):
        persist = epochs.reserve()
        assert persist
        epochs.persisted(persist.reserved)
    asked = 0
    for _ in range(AHEAD // 2 - 2):  # the VIPs move back and forth, and nothing is written any more
        for active, backup in ((one, two), (two, one)):
            asked += active.reserve() is not None
            backup.seen(active.spend())
    assert asked, "a node asks again long before the limit"
    epochs = Epochs(0, 0, AHEAD)
    assert epochs.reserve() == PersistEpoch(AHEAD, 2 * AHEAD) and epochs.reserved == 0, "after a crash it has to be written"


def test_an_orderly_stop_releases_what_has_not_begun() -> None:
    epochs = Epochs(0, 3, 0)
    epochs.reserve()
    epochs.persisted(3 + AHEAD)
    assert epochs.spend() == 4
    assert epochs.give_back() == PersistEpoch(4, 4) and epochs.reserved == 0


@pytest.mark.parametrize(
    ("fields", "known", "grants"),
    [
        ({"role": Role.ACTIVE, "epoch": 5}, 9, 5),
        ({"role": Role.ACTIVE, "epoch": 5, "claim": 8}, 5, 5),
        ({"claim": 6}, 5, 6),
        ({"claim": 5}, 5, 0),
        ({}, 5, 0),
    ],
)
def test_what_is_promised(fields: dict[str, Any], known: int, grants: int) -> None:
    claim = Claim()
    claim.grants = 3
    assert claim.promise(replace(BEAT, **fields), known) is (grants != 0)
    assert claim.grants == grants


def test_a_grant_counts_if_it_answers_this_claim_and_is_fresh() -> None:
    claim = Claim()
    claim.begin(4, 10 * MS)
    grant = replace(BEAT, grants=4, echo_boot=11, echo_sent_ns=12 * MS)
    assert claim.is_granted_by(grant, 11, 13 * MS, 30 * MS)
    changes: list[dict[str, Any]] = [{"grants": 2}, {"echo_boot": 12}, {"echo_sent_ns": 9 * MS}, {"echo_sent_ns": 14 * MS}]
    for wrong in changes:
        assert not claim.is_granted_by(replace(grant, **wrong), 11, 13 * MS, 30 * MS), wrong
    assert not claim.is_granted_by(grant, 11, 42 * MS, 30 * MS), "no lease is left of it"
    claim.withdraw()
    assert claim.epoch == 0
