"""The daemon's sweep of one-way connections in the kernel's maps: what expires, what leaves its backend, what is counted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bpf.constants import Mode, Protocol
from ctl.config import model as farms
from ctl.config.model import Backend, Config, DrainThen, Farm, OnBackend
from ctl.dataplane import placement
from ctl.dataplane.kernel.sweeper import Sweeper, SweepResult
from tests.bpf.bed import Bed, Family
from tests.bpf.one_way import KINDS, PROTOCOLS, behind, farm
from tests.bpf.packets import from_client


@pytest.fixture
def bed(one_way_bed: Bed) -> Bed:
    return one_way_bed


@dataclass
class Removals:
    """A follower that records which connections the peer must remove."""

    keys: list[bytes] = field(default_factory=list)

    def removed(self, family: str, keys: Any) -> None:
        self.keys += [key.tobytes() for key in keys]

    def still_alive(self, family: str, keys: Any, values: Any) -> None:
        raise AssertionError("no other entry can keep one alive")


def configured(family: Family, kind: str, protocol: Protocol, *backends: int, **more: Any) -> Config:
    """What `farm` has written, as the sweeper reads it: backends by their numbers, with ids from 8 on."""
    place = behind(family, kind).far
    made = Farm(
        id=1,
        name="one",
        vip=family.vip,
        port=80,
        port_last=80,
        protocol=farms.Protocol.UDP if protocol == Protocol.UDP else farms.Protocol.TCP,
        mode=farms.Mode.DSR if kind == "dsr" else farms.Mode.IPIP,
        backends=tuple(Backend(id=8 + number - 11, address=place(number), port=80) for number in backends),
        **more,
    )
    return Config(farms={"one": made})


def swept(bed: Bed, config: Config, down: frozenset[int] | None = frozenset()) -> tuple[SweepResult, list[bytes]]:
    """One sweep as the daemon's, and the keys that replication hears of."""
    sweeper, removals = Sweeper(bed.plane, lambda: config, lambda: down), Removals()
    sweeper.follow_with(removals)
    result = sweeper._sweep()
    sweeper.close()
    return result, removals.keys


def open_both(bed: Bed, family: Family, kind: str, protocol: Protocol) -> None:
    """An established connection of port 40000, and an embryonic one of port 40001."""
    farm(bed, family, kind, protocol=protocol)
    bed.send(bytes(from_client(family, protocol)))
    bed.age("embryonic", family, 0.2)
    bed.send(bytes(from_client(family, protocol, "A")))
    bed.send(bytes(from_client(family, protocol, source_port=40001)))


def ports(bed: Bed, family: Family) -> tuple[list[int], list[int]]:
    """Of the clients of established and of embryonic connections."""
    one, other = ([entry.source_port for entry in bed.flows(name, family)] for name in ("flows", "embryonic"))
    return one, other


@KINDS
@PROTOCOLS
def test_idle_ones_expire_and_the_current_ones_are_counted(bed: Bed, family: Family, protocol: Protocol, kind: str) -> None:
    config = configured(family, kind, protocol, 11, idle_timeout_s=500, opening_timeout_s=50, closing_timeout_s=20)
    open_both(bed, family, kind, protocol)
    result, _ = swept(bed, config)
    assert (result.connections, result.expired, result.misplaced, result.unreplicated) == ({8: 2}, 0, 0, 0)
    for name in ("flows", "embryonic"):
        bed.age(name, family, 55)
    assert (swept(bed, config)[0].expired, ports(bed, family)) == (1, ([40000], []))
    bed.age("flows", family, 440)
    result, _ = swept(bed, config)
    assert (result.expired, result.connections) == (0, {8: 1})
    bed.age("flows", family, 10)
    result, heard = swept(bed, config)
    assert (result.expired, ports(bed, family), heard) == (1, ([], []), []), "the peer expires its own"


@KINDS
@pytest.mark.parametrize("flags", ["FA", "R"])
def test_closed_ones_expire_earlier(bed: Bed, family: Family, kind: str, flags: str) -> None:
    config = configured(family, kind, Protocol.TCP, 11, idle_timeout_s=500, closing_timeout_s=20)
    farm(bed, family, kind)
    for each in ("S", "A", flags):
        bed.send(bytes(from_client(family, flags=each, payload=b"")))
    bed.age("flows", family, 15)
    assert (swept(bed, config)[0].connections, ports(bed, family)[0]) == ({}, [40000])
    bed.age("flows", family, 10)
    swept(bed, config)
    assert ports(bed, family)[0] == []


@KINDS
@PROTOCOLS
def test_a_removed_backend_and_a_reached_deadline_end_them(
    bed: Bed, family: Family, protocol: Protocol, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both maps; the peer hears of the established one. A backup leaves it to the active node."""
    monkeypatch.setattr(placement, "GONE_AFTER_S", 0.0)
    removed = configured(family, kind, protocol, 12)
    drained = configured(family, kind, protocol, 11, 12)
    first = replace(drained.farms["one"].backends[0], draining=True, drain_until=1, drain_then=DrainThen.CUT)
    ended = replace(drained.farms["one"], backends=(first, *drained.farms["one"].backends[1:]))
    kept = replace(removed.farms["one"], on_backend_removed=OnBackend.KEEP)
    for config in (removed, Config(farms={"one": ended})):
        open_both(bed, family, kind, protocol)
        assert swept(bed, config, None)[0].misplaced == 0
        assert swept(bed, Config(farms={"one": kept}))[0].misplaced == 0
        ((key, _),) = bed.raw("flows", family)
        result, heard = swept(bed, config)
        assert (result.misplaced, ports(bed, family), heard) == (2, ([], []), [key[0].tobytes()])


@KINDS
@PROTOCOLS
def test_datagrams_leave_a_backend_that_is_down(bed: Bed, family: Family, protocol: Protocol, kind: str) -> None:
    config = configured(family, kind, protocol, 11, 12)
    open_both(bed, family, kind, protocol)
    assert swept(bed, config, frozenset({9}))[0].misplaced == 0
    assert swept(bed, config, frozenset({8}))[0].misplaced == (2 if protocol == Protocol.UDP else 0)
    stays = ([], []) if protocol == Protocol.UDP else ([40000], [40001])
    assert ports(bed, family) == stays
    ends = replace(config.farms["one"], on_backend_down=OnBackend.RESET)
    swept(bed, Config(farms={"one": ends}), frozenset({8}))
    assert ports(bed, family) == ([], [])


@pytest.mark.parametrize("why", ["idle", "down"])
@pytest.mark.parametrize("kind", ["dsr", "ipip"])
def test_the_sweep_leaves_an_entry_of_another_connection_with_the_tuple_of_answers(
    bed: Bed, family: Family, kind: str, why: str
) -> None:
    """From the backend to the client: what a dnat connection of the same client to the same server has as its reply."""
    config = configured(family, kind, Protocol.TCP, 11, 12, opening_timeout_s=20, on_backend_down=OnBackend.RESET)
    farm(bed, family, kind)
    bed.farm(family.vip, (family.far(11), 80), port=81, farm=2, first_backend=30, mode=Mode.DNAT)
    server = Backend(id=30, address=family.far(11), port=80)
    other = Farm(id=2, name="two", vip=family.vip, port=81, port_last=81, backends=(server,))
    for port in (80, 81):
        bed.send(bytes(from_client(family, port=port)))
    assert len(bed.flows("embryonic", family)) == 3
    if why == "idle":
        bed.age("embryonic", family, 30)
    swept(bed, Config(farms={**config.farms, "two": other}), frozenset({8} if why == "down" else ()))
    assert {entry.farm for entry in bed.flows("embryonic", family).values()} == {2}
    assert len(bed.flows("embryonic", family)) == 2
