"""Faults of a node: what they add up to."""

from __future__ import annotations

from sync.failover.faults import MAX_FAULTS, Faults
from sync.failover.types import FaultChanged

FULL = FaultChanged("storage", "the state directory is full", disables=False)
NO_CARRIER = FaultChanged("carrier eth0", "no carrier on eth0")


def test_faults_begin_and_end_by_name() -> None:
    faults = Faults()
    assert not faults and not faults.disabling
    assert faults.changed(FULL) and not faults.changed(FULL)
    assert faults and not faults.disabling
    assert faults.changed(NO_CARRIER) and faults.disabling
    assert str(faults) == "no carrier on eth0, the state directory is full"
    assert faults.changed(FaultChanged("carrier eth0")) and not faults.changed(FaultChanged("carrier eth0"))
    assert faults.messages == ("the state directory is full",)


def test_the_number_of_faults_is_bounded_and_known_ones_still_change() -> None:
    faults = Faults()
    for number in range(MAX_FAULTS + 5):
        faults.changed(FaultChanged(f"carrier eth{number}", f"no carrier on eth{number}"))
    assert len(faults.messages) == MAX_FAULTS
    assert faults.changed(FaultChanged("carrier eth0"))
