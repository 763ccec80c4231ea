"""Columns of maps: port ranges become prefixes, and addresses and flows survive encoding."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import columns
from bpf.constants import FlowFlag
from bpf.dataplane import FlowTuple
from tests.fakes.plane import flow_dtype, key_dtype

PORTS = st.integers(0, 65535)


@given(st.tuples(PORTS, PORTS).map(sorted))
def test_prefixes_cover_the_range_and_nothing_else(ports: list[int]) -> None:
    first, last = ports
    prefixes = columns.port_prefixes(first, last)
    following = first
    for port, length in prefixes:
        size = 1 << (16 - length)
        assert port == following and port % size == 0
        following = port + size
    assert following == last + 1


@given(st.tuples(PORTS, PORTS).map(sorted))
def test_prefixes_are_the_fewest(ports: list[int]) -> None:
    """No two adjacent prefixes can be merged, and there are at most two per bit."""
    prefixes = columns.port_prefixes(*ports)
    assert len(prefixes) <= 30
    for (port, length), (_, next_length) in itertools.pairwise(prefixes):
        assert not (length == next_length and port % (1 << (17 - length)) == 0)


def test_the_widest_ranges() -> None:
    assert columns.port_prefixes(0, 65535) == [(0, 0)]
    assert columns.port_prefixes(80, 80) == [(80, 16)]
    assert len(columns.port_prefixes(1, 65534)) == 30


@pytest.mark.parametrize("ports", [(-1, 5), (5, 4), (0, 65536)])
def test_an_invalid_range_is_refused(ports: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is not a range of ports"):
        columns.port_prefixes(*ports)


@given(st.ip_addresses())
def test_decoded_addresses_are_canonical(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    raw = columns.address_bytes(str(address))
    assert raw == address.packed
    assert ipaddress.ip_address(columns.address_text(raw)) == address
    assert columns.family_of(str(address)) == f"v{address.version}"


def test_a_wrong_address_is_named() -> None:
    with pytest.raises(ValueError, match=r"'10\.0\.0\.256' is not an IP address"):
        columns.address_bytes("10.0.0.256")


def test_short_addresses_are_padded_at_the_end() -> None:
    column = columns.address_column(["10.0.0.1", "2001:db8::1"], 16)
    assert column[0].tobytes() == b"\x0a\x00\x00\x01" + bytes(12)
    assert column[1].tobytes() == ipaddress.ip_address("2001:db8::1").packed


def tuples(version: Literal[4, 6]) -> st.SearchStrategy[FlowTuple]:
    addresses = st.ip_addresses(v=version).map(lambda address: columns.address_text(address.packed))
    return st.builds(FlowTuple, addresses, addresses, PORTS, PORTS, st.sampled_from([6, 17]))


@given(st.one_of(st.lists(tuples(4), min_size=1, max_size=5), st.lists(tuples(6), min_size=1, max_size=5)))
def test_flow_keys_decode_to_what_was_encoded(flows: list[FlowTuple]) -> None:
    family = columns.family_of(flows[0].source)
    keys = columns.encode_flow_keys(flows, key_dtype(family))
    values = np.zeros(len(flows), flow_dtype(family))
    for name in ("source", "destination", "source_port", "destination_port"):
        values[name] = keys[name]
    values["flags"] = FlowFlag.FORWARD
    values["backend"] = 7
    entries = columns.decode_flows("embryonic", keys, values)
    assert [entry.arrives for entry in entries] == [entry.leaves for entry in entries] == flows
    assert all(entry.embryonic and entry.forward and entry.backend == 7 for entry in entries)


def test_keys_hold_ports_in_network_order() -> None:
    (key,) = columns.encode_flow_keys([FlowTuple("10.0.0.1", "10.0.0.2", 0x1234, 80, 6)], key_dtype("v4"))
    assert key.tobytes() == bytes.fromhex("0a000001 0a000002 1234 0050 06 000000")


def test_the_wrong_address_family_is_refused() -> None:
    with pytest.raises(ValueError, match="key's address family"):
        columns.encode_flow_keys([FlowTuple("10.0.0.1", "2001:db8::1", 1, 2, 6)], key_dtype("v4"))
