"""Each counter has a case that increments it."""

from __future__ import annotations

import pytest

from bpf.constants import COUNTERS, Kind
from tests.bpf.bed import Bed, Family
from tests.bpf.verdicts import SITUATIONS, Case


@pytest.mark.parametrize(
    ("counter", "function"), [(c, f) for c, _, f in SITUATIONS], ids=[f"{c}-{n}" for c, n, _ in SITUATIONS]
)
def test_case(bed: Bed, family: Family, counter: str, function: Case) -> None:
    outcome = function(bed, family)
    assert outcome.moved.get(counter) == 1, outcome.moved


def test_every_counter_has_a_case() -> None:
    elsewhere = {"event_ring_full"}  # test_flow_events.py: only a program with a ring counts it
    elsewhere |= {"event_toa_inserted", "event_toa_skipped"}  # test_toa.py: a program with that feature
    elsewhere |= {"drop_no_headroom"}  # of a driver that leaves none: a test run always has 256 bytes
    elsewhere |= {"drop_unresolved", "drop_no_tunnel_source"}  # test_one_way.py: a program with modes dsr and ipip
    elsewhere |= {"drop_denied", "drop_rate", "drop_half_open"}  # test_limits.py: programs with those features
    elsewhere |= {"drop_farm_full", "drop_backend_full"}  # test_loads.py: the same
    elsewhere |= {"drop_snat_exhausted", "drop_reverse_conflict"}  # test_sources.py: all ports must be taken
    assert {counter for counter, _, _ in SITUATIONS} | elsewhere == {counter.name for counter in COUNTERS}


def test_counters_are_ordered_by_kind() -> None:
    kinds = [counter.kind for counter in COUNTERS]
    assert kinds == sorted(kinds, key=list(Kind).index)
    assert all(counter.name.startswith(counter.kind.value) for counter in COUNTERS)
