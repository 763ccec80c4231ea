"""Packets of an established flow use its copy, and no copy that has become wrong. See bpf/program/recent.family.h."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from bpf.constants import RECENT_TICKS, TICK_SHIFT
from bpf.dataplane import Array
from bpf.loading.compile import recent_sizes
from bpf.maps.mapped_array import MappedArray
from tests.bpf.bed import Bed, Family
from tests.bpf.connections import arriving, backend, client, establish
from tests.bpf.packets import from_client

MARK = b"\x02\xff\xff\xff\xff\xff"


@pytest.fixture
def marked(bed: Bed, family: Family) -> MappedArray:
    """The copies of a connection's flows, with a source MAC that its entries do not have."""
    bed.inside(lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    client(bed, family, "A")
    backend(bed, family, "A")
    copies = MappedArray(bed.plane._maps[f"recent_{family.name}"])
    flows = copies._values["flow"]
    flows["source_mac"][flows["last_seen"] != 0] = np.frombuffer(MARK, np.uint8)
    assert np.count_nonzero(flows["last_seen"]) == 2
    return copies


def uses_copy(bed: Bed, family: Family, flags: str = "A") -> bool:
    return bed.send(bytes(from_client(family, flags=flags))).frame[6:12] == MARK


def entry(bed: Bed, family: Family) -> tuple[Array, Array]:
    """The forward entry."""
    keys = bed.plane.encode_flow_keys(family.name, [arriving(family)])
    return keys, bed.plane.lookup_flows("flows", family.name, keys)[1]


def delete(bed: Bed, family: Family, copies: MappedArray) -> None:
    bed.plane.delete_flows("flows", family.name, entry(bed, family)[0])


def replace(bed: Bed, family: Family, copies: MappedArray) -> None:
    bed.plane.update_flows(family.name, *entry(bed, family))


def change_next_hops(bed: Bed, family: Family, copies: MappedArray) -> None:
    bed.plane.bump_next_hops()


def wait(bed: Bed, family: Family, copies: MappedArray) -> None:
    copies._values["flow"]["last_seen"] -= RECENT_TICKS


def finish(bed: Bed, family: Family, copies: MappedArray) -> None:
    assert not uses_copy(bed, family, "FA")


def reset_by_the_server(bed: Bed, family: Family, copies: MappedArray) -> None:
    backend(bed, family, "R")


def open_again(bed: Bed, family: Family, copies: MappedArray) -> None:
    client(bed, family, "R")
    client(bed, family, "S")


def test_a_packet_uses_the_copy_of_its_flow(bed: Bed, family: Family, marked: MappedArray) -> None:
    before = entry(bed, family)[1].copy()
    assert uses_copy(bed, family) and uses_copy(bed, family, "PA")
    assert entry(bed, family)[1] == before


@pytest.mark.parametrize(
    "change", [delete, replace, change_next_hops, wait, finish, reset_by_the_server, open_again], ids=lambda each: each.__name__
)
def test_a_change_ends_the_copy(
    bed: Bed, family: Family, marked: MappedArray, change: Callable[[Bed, Family, MappedArray], None]
) -> None:
    change(bed, family, marked)
    assert not uses_copy(bed, family)


def test_an_expired_lease_closes_the_copies_too(bed: Bed, family: Family, marked: MappedArray) -> None:
    bed.plane.set_lease(1 << TICK_SHIFT, 1)
    assert bed.send(bytes(from_client(family, flags="A"))).verdict == "drop_fenced"


@pytest.mark.parametrize(
    ("max_flows", "cpus", "sizes"),
    [(1 << 20, 2, (2, 17)), (1 << 20, 6, (8, 15)), (64, 1, (1, 6)), (1 << 20, 512, (512, 9)), (100, 3, (4, 6))],
)
def test_a_quarter_of_the_connections_have_copies(max_flows: int, cpus: int, sizes: tuple[int, int]) -> None:
    assert recent_sizes(max_flows, cpus) == sizes
