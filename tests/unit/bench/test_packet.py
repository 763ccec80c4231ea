"""Which packets the part "packet" measures."""

from __future__ import annotations

from bench.packet import __main__ as part
from bench.packet import situations
from bench.suite.part import Plan
from bpf.constants import COUNTERS


def test_every_reason_for_a_drop_is_measured_or_explained() -> None:
    drops = {counter.name for counter in COUNTERS if counter.name.startswith("drop_")}
    assert situations.reasons() | situations.UNREACHABLE.keys() == drops
    assert not situations.reasons() & situations.UNREACHABLE.keys()


def test_targets_name_packets_that_a_quick_run_measures_too() -> None:
    for quick in (True, False):
        names = {each.name for each in situations.all_situations(quick) if part.is_wanted(Plan(quick=quick), each)}
        assert part.LIMITS.keys() <= names


def test_names_are_unique() -> None:
    names = [each.name for each in situations.all_situations()]
    assert len(set(names)) == len(names)
    assert next(situations.known()).name == situations.HIT


def test_a_packet_that_cannot_be_measured_has_a_reason() -> None:
    samples = part.Samples(next(situations.known()))
    assert samples.line().missing == {part.XLB: "no sample"}
    samples.add(30, 20)
    assert samples.line().ratios(part.XLB, part.BASE) == [1.5]
    samples.add("RuntimeError: the harness could not restore the packet", 20)
    assert samples.line().missing[part.XLB].startswith("RuntimeError")
