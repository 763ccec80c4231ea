"""The kernel's maps keep the contract of the data plane, and the fake plane's layouts are those of the compiler."""

from __future__ import annotations

import pytest

from tests.bpf.bed import FAMILIES, MAX_FLOWS, Bed, why_not
from tests.bpf.connections import establish
from tests.bpf.make_layouts import compiled
from tests.fakes import layouts
from tests.fakes.plane_contract import BACKENDS, CLIENTS, VIPS, PlaneContract, Subject

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def subject(paired_bed: Bed) -> Subject:
    families = {family.name: family for family in FAMILIES}

    def open_connections(name: str, count: int) -> None:
        family = families[name]
        assert (VIPS[name], CLIENTS[name], BACKENDS[name]) == (family.vip, family.client, family.far(11))
        paired_bed.farm(family.vip, (family.far(11), 8080))
        for port in range(40000, 40000 + count):
            establish(paired_bed, family, port)

    return Subject(paired_bed.plane, MAX_FLOWS, open_connections)


class TestKernelPlane(PlaneContract):
    pass


def test_the_fake_planes_layouts_are_those_of_the_compiler() -> None:
    assert layouts.to_text(compiled()) == layouts.FILE.read_text(), "out of date: run python -m tests.bpf.make_layouts as root"
