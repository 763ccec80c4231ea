"""Beds for the packet tests: one program per kind of build and session, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.bed import FAMILIES, Bed, Family, why_not


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
def client_bed(_client_bed: Bed) -> Bed:
    """The program with what recognises a client compiled in (persistence, QUIC connection ids, TOA), and what it meets."""
    _client_bed.reset()
    return _client_bed


@pytest.fixture(scope="session")
def _one_way_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed({"replication": True, "dsr": True, "ipip": True}) as bed:
        yield bed


@pytest.fixture
def one_way_bed(_one_way_bed: Bed) -> Bed:
    """The program of a pair with the modes dsr and ipip compiled in."""
    _one_way_bed.reset()
    return _one_way_bed


@pytest.fixture
def bed(_single_bed: Bed) -> Bed:
    """The program as a node without a peer runs it."""
    _single_bed.reset()
    return _single_bed


@pytest.fixture
def paired_bed(_paired_bed: Bed) -> Bed:
    """The program with replication compiled in."""
    _paired_bed.reset()
    return _paired_bed


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen
