"""Beds for the packet tests: one program per kind of build and session, emptied before each test."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest

from tests.bpf.bed import FAMILIES, Bed, Family, why_not
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
def _single_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed() as bed:
        yield bed


@pytest.fixture(scope="session")
def _paired_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed({"replication": True}) as bed:
        yield bed


@pytest.fixture(scope="session")
def _client_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed(dict.fromkeys(("persistence", "quic", "toa", "dsr", "ipip", "loads"), True)) as bed:
        bed.plane.set_tunnel_sources("10.2.0.1", "fd02::1")
        yield bed


@pytest.fixture(scope="session")
def _tagged_bed() -> Iterator[TaggedBed]:
    if reason := why_not():
        pytest.skip(reason)
    with TaggedBed(dict.fromkeys(("vlans", "dsr", "ipip", "toa"), True)) as bed:
        yield bed


@pytest.fixture
def tagged_bed(_tagged_bed: TaggedBed) -> TaggedBed:
    """in0 is VLAN 100 of wire0, out0 VLAN 200 of wire1."""
    _tagged_bed.reset()
    _tagged_bed.plane.set_tunnel_sources("10.2.0.1", "fd02::1")
    _tagged_bed.plug(*WIRINGS["two interfaces"])
    return _tagged_bed


def _chosen(request: pytest.FixtureRequest, wiring: str, plain: str) -> Bed:
    """The bed of a test: the fixture `plain`, emptied, or the one with tags."""
    if wiring:
        tagged: TaggedBed = request.getfixturevalue("tagged_bed")
        tagged.plug(*WIRINGS[wiring])
        return tagged
    bed: Bed = request.getfixturevalue(plain)
    bed.reset()
    return bed


@pytest.fixture(scope="session")
def _limited_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed(dict.fromkeys(("lists", "rate", "half_open", "loads", "dsr", "ipip", "test_clock"), True)) as bed:
        yield bed


@pytest.fixture
def limited_bed(_limited_bed: Bed) -> Bed:
    """The program with every limit compiled in."""
    _limited_bed.reset()
    return _limited_bed


@pytest.fixture
def client_bed(request: pytest.FixtureRequest, wiring: str) -> Bed:
    """The program with what recognises a client compiled in (persistence, QUIC connection ids, TOA), and what it meets."""
    return _chosen(request, wiring, "_client_bed")


@pytest.fixture(scope="session")
def _one_way_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed({"replication": True, "dsr": True, "ipip": True}) as bed:
        yield bed


@pytest.fixture
def one_way_bed(request: pytest.FixtureRequest, wiring: str) -> Bed:
    """The program of a pair with the modes dsr and ipip compiled in."""
    return _chosen(request, wiring, "_one_way_bed")


@pytest.fixture
def bed(request: pytest.FixtureRequest, wiring: str) -> Bed:
    """The program as a node without a peer runs it."""
    return _chosen(request, wiring, "_single_bed")


@pytest.fixture
def paired_bed(_paired_bed: Bed) -> Bed:
    """The program with replication compiled in."""
    _paired_bed.reset()
    return _paired_bed


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen
