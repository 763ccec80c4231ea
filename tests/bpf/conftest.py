"""Beds for the packet tests: one program per kind of build and session, emptied before each test."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import pytest

from tests.bpf.bed import FAMILIES, Bed, Family, why_not
from tests.bpf.beds import Beds
from tests.bpf.tagged_bed import WIRINGS, TaggedBed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that is marked `vlans` also runs on frames with VLAN tags."""
    if "wiring" in metafunc.fixturenames and metafunc.definition.get_closest_marker("vlans"):
        metafunc.parametrize("wiring", ["plain", "tagged"], indirect=True)


@pytest.fixture
def wiring(request: pytest.FixtureRequest) -> str:
    """Of a tagged test: each case has another wiring. Empty: plain."""
    if getattr(request, "param", "plain") == "plain":
        return ""
    return sorted(WIRINGS)[zlib.crc32(request.node.name.encode()) % len(WIRINGS)]


@pytest.fixture(scope="session")
def beds() -> Iterator[Beds]:
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield Beds(stack)


@pytest.fixture
def tagged_bed(beds: Beds) -> TaggedBed:
    """in0 is VLAN 100 of wire0, out0 VLAN 200 of wire1."""
    return _tagged(beds, "two interfaces")


def _tagged(beds: Beds, wiring: str) -> TaggedBed:
    bed = beds("vlans", "dsr", "ipip", "toa")
    assert isinstance(bed, TaggedBed)
    bed.plug(*WIRINGS[wiring])
    return bed


@pytest.fixture
def bed(beds: Beds, wiring: str) -> Bed:
    """The program as a node without a peer runs it; or the one with tags, as the next two."""
    return _tagged(beds, wiring) if wiring else beds()


@pytest.fixture
def one_way_bed(beds: Beds, wiring: str) -> Bed:
    """The program of a pair with the modes dsr and ipip compiled in."""
    return _tagged(beds, wiring) if wiring else beds("replication", "dsr", "ipip")


@pytest.fixture
def client_bed(beds: Beds, wiring: str) -> Bed:
    """The program with what recognises a client compiled in (persistence, QUIC connection ids, TOA), and what it meets."""
    return _tagged(beds, wiring) if wiring else beds("persistence", "quic", "toa", "dsr", "ipip", "loads")


@pytest.fixture
def paired_bed(beds: Beds) -> Bed:
    """The program with replication compiled in."""
    return beds("replication")


@pytest.fixture
def limited_bed(beds: Beds) -> Bed:
    """The program with every limit compiled in."""
    return beds("lists", "rate", "half_open", "loads", "dsr", "ipip", "test_clock")


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen
