"""The fake plane keeps the contract of the data plane."""

from __future__ import annotations

import numpy as np
import pytest

from bpf.constants import EventType, FlowFlag, FlowState, Protocol
from bpf.dataplane import FlowTuple
from tests.fakes.flows import put
from tests.fakes.layouts import LAYOUTS, MAPS
from tests.fakes.plane import FakePlane, flow_dtype
from tests.fakes.plane_contract import BACKENDS, CLIENTS, VIPS, PlaneContract, Subject

MAX_FLOWS = 64


@pytest.fixture
def subject() -> Subject:
    plane = FakePlane(MAX_FLOWS)

    def establish(family: str, count: int) -> None:
        ports = range(40000, 40000 + count)
        keys = plane.encode_flow_keys(
            family, [FlowTuple(CLIENTS[family], VIPS[family], port, 80, Protocol.TCP) for port in ports]
        )
        reply_keys = plane.encode_flow_keys(
            family, [FlowTuple(BACKENDS[family], VIPS[family], 8080, port, Protocol.TCP) for port in ports]
        )
        forward, reply = (np.zeros(count, flow_dtype(family)) for _ in range(2))
        for column, mirrored in (("source", "destination"), ("source_port", "destination_port")):
            forward[column], forward[mirrored] = reply_keys[mirrored], reply_keys[column]
            reply[column], reply[mirrored] = keys[mirrored], keys[column]
        forward["flags"] = FlowFlag.FORWARD
        forward["state"] = reply["state"] = FlowState.SEEN
        put(plane, family, EventType.ESTABLISHED, (keys, forward, reply_keys, reply))

    return Subject(plane, MAX_FLOWS, establish)


class TestFakePlane(PlaneContract):
    pass


def test_the_layouts_describe_every_map_of_the_fake() -> None:
    assert set(LAYOUTS.maps) == set(MAPS)
    for name, layout in LAYOUTS.maps.items():
        if not name.startswith("events_"):
            assert (layout.key_dtype.itemsize, layout.value_dtype.itemsize) == (layout.key_size, layout.value_size), name
