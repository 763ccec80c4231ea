"""Persistence: which backend a client gets again, for how long, and what happens while that backend takes no connections."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest

from bpf.constants import MAX_BACKENDS, TICK_SHIFT, AffinityFlag, Mode, Protocol, Scheduler
from bpf.dataplane import (
    PERSISTENT,
    Array,
    Operation,
    PutAffinity,
    PutBackendAffinity,
    PutBackendLimits,
    PutFarmLimits,
    PutSlots,
)
from bpf.maps.pinned_map import PinnedMap
from tests.bpf.bed import Bed, Family
from tests.bpf.packets import from_backend, from_client

TTL_S = 300
BACKENDS = (11, 12, 13, 14)
FIRST = 8  # the id of the first of them
PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
SCHEDULERS = pytest.mark.parametrize("scheduler", list(Scheduler), ids=lambda each: each.name.lower())
MODES = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.name.lower())


def ticks(seconds: float) -> int:
    return int(seconds * 1e9) >> TICK_SHIFT


def clear(bed: Bed, family: Family) -> None:
    bed.clear("embryonic", family)
    bed.clear("flows", family)


def start(
    bed: Bed,
    family: Family,
    *,
    ttl_s: float = TTL_S,
    prefix: int = 0,
    returns: bool = True,
    scheduler: Scheduler = Scheduler.ROUNDROBIN,
    protocol: int = Protocol.TCP,
    mode: Mode = Mode.SNAT,
) -> None:
    """A farm of four backends, one slot each, without a remembered client."""
    name = f"persistent_{family.name}"
    with_name = PinnedMap(bed.pins, name, bed.layouts.maps[name])
    for keys, _ in list(with_name.slices(4096)):
        with_name.remove(keys)
    with_name.close()
    port = 80 if mode in (Mode.DSR, Mode.IPIP) else 8080
    bed.farm(family.vip, *((family.far(n), port) for n in BACKENDS), scheduler=scheduler, protocol=protocol, mode=mode)
    flags = int(AffinityFlag.RETURN) if returns else 0
    bits = prefix or family.bits
    settings = PutAffinity(1, ticks(ttl_s), min(bits, 32), bits, flags)
    bed.plane.apply([settings, *(choosable(n) for n in BACKENDS), *limited()])


def limited(full: int = 0) -> list[Operation]:
    """Equal weights, and no limit but that of one backend, which has its connection."""
    ids = {n: FIRST + n - FIRST_NUMBER for n in BACKENDS}
    candidates = tuple(ids.values())
    farm = PutFarmLimits(1, backends_limited=bool(full), candidates_v4=candidates, candidates_v6=candidates)
    return [*(PutBackendLimits(number, 1, int(n == full)) for n, number in ids.items()), farm]


def choosable(number: int, is_open: bool = True, farm: int = 1) -> PutBackendAffinity:
    return PutBackendAffinity(FIRST + number - BACKENDS[0], farm, is_open)


def address(family: Family, more: int) -> str:
    return str(ipaddress.ip_address(family.client) + more)


def connect(bed: Bed, family: Family, port: int, source: str = "", protocol: int = Protocol.TCP) -> int:
    """A new connection; returns the number of its backend."""
    packet = from_client(family, protocol, source=source, source_port=port)
    assert bed.send(bytes(packet)).verdict == "forward_redirect"
    (found,) = [each for each in bed.flows("embryonic", family).values() if each.forward]
    bed.clear("embryonic", family)
    return FIRST_NUMBER + found.backend - FIRST


FIRST_NUMBER = BACKENDS[0]


def entries(bed: Bed, family: Family) -> list[Array]:
    return [row for rows in bed.plane.persistent_batches(family.name, 64) for row in rows]


def age(bed: Bed, family: Family, seconds: float) -> None:
    for rows in list(bed.plane.persistent_batches(family.name, 64)):
        rows["last_used"] -= ticks(seconds)
        bed.plane.update_persistent(family.name, rows)


@PROTOCOLS
@SCHEDULERS
@MODES
def test_a_client_keeps_its_backend(
    client_bed: Bed, family: Family, protocol: Protocol, scheduler: Scheduler, mode: Mode
) -> None:
    start(client_bed, family, scheduler=scheduler, protocol=protocol, mode=mode)
    first = connect(client_bed, family, 40000, protocol=protocol)
    assert {connect(client_bed, family, port, protocol=protocol) for port in range(40001, 40012)} == {first}
    others = {connect(client_bed, family, 40000, address(family, n), protocol) for n in range(1, 20)}
    assert others | {first} == set(BACKENDS)


def test_without_persistence_a_farm_in_the_same_program_has_none(client_bed: Bed, family: Family) -> None:
    start(client_bed, family)
    client_bed.plane.apply([PutAffinity(1)])
    assert {connect(client_bed, family, port) for port in range(40000, 40012)} == set(BACKENDS)
    assert not entries(client_bed, family)


def test_a_prefix_is_one_client(client_bed: Bed, family: Family) -> None:
    prefix = family.bits - 4
    start(client_bed, family, prefix=prefix)
    base = int(ipaddress.ip_address(family.client)) >> 4 << 4
    make = type(ipaddress.ip_address(family.client))
    same = {connect(client_bed, family, 40000 + n, str(make(base + n))) for n in range(16)}
    assert len(same) == 1
    beyond = [connect(client_bed, family, 40000, str(make(base + 16 * n))) for n in range(1, 5)]
    assert set(beyond) == set(BACKENDS)
    assert len(entries(client_bed, family)) == 5


@pytest.mark.parametrize(("idle_s", "kept"), [(0.9 * TTL_S, True), (1.1 * TTL_S, False)])
def test_an_entry_lives_as_long_as_configured_since_its_last_use(
    client_bed: Bed, family: Family, idle_s: float, kept: bool
) -> None:
    start(client_bed, family)
    first = connect(client_bed, family, 40000)
    age(client_bed, family, 0.9 * TTL_S)
    assert connect(client_bed, family, 40001) == first  # used: the time counts from now
    age(client_bed, family, idle_s)
    assert (connect(client_bed, family, 40002) == first) is kept


@pytest.mark.parametrize("mode", [Mode.SNAT, Mode.DSR, Mode.IPIP], ids=lambda mode: mode.name.lower())
def test_a_living_connection_keeps_the_entry(client_bed: Bed, family: Family, mode: Mode) -> None:
    start(client_bed, family, mode=mode)
    client_bed.send(bytes(from_client(family)))
    (row,) = entries(client_bed, family)
    number = FIRST_NUMBER + int(row["home"]) - FIRST
    if mode is Mode.SNAT:
        client_bed.send(bytes(from_backend(family, family.far(number), family.vip, 40000)), "out0")
    client_bed.send(bytes(from_client(family, flags="A")))
    age(client_bed, family, 0.9 * TTL_S)
    client_bed.age("flows", family, 3)
    client_bed.send(bytes(from_client(family, flags="A")))
    (row,) = entries(client_bed, family)
    assert client_bed.plane.now_tick() - int(row["last_used"]) < ticks(10)


def test_a_living_connection_makes_a_missing_entry_again(client_bed: Bed, family: Family) -> None:
    """As after a takeover by a node that has the flows alone."""
    start(client_bed, family)
    client_bed.send(bytes(from_client(family)))
    (row,) = entries(client_bed, family)
    number = FIRST_NUMBER + int(row["home"]) - FIRST
    client_bed.send(bytes(from_backend(family, family.far(number), family.vip, 40000)), "out0")
    client_bed.send(bytes(from_client(family, flags="A")))
    age(client_bed, family, 2 * TTL_S)
    client_bed.age("flows", family, 3)
    client_bed.send(bytes(from_client(family, flags="A")))
    assert {connect(client_bed, family, port) for port in range(41000, 41008)} == {number}


def out(bed: Bed, number: int, reason: str) -> None:
    """The backend takes no more connections; the others have its slot."""
    rest = tuple(FIRST + n - FIRST_NUMBER for n in BACKENDS if n != number)
    bed.plane.apply([PutSlots(1024, np.array((*rest, rest[0]), dtype=np.uint32)), choosable(number, False)])
    if reason == "removed":
        bed.plane.apply([choosable(number, False, 0)])


@pytest.mark.parametrize("reason", ["draining", "removed"])
@pytest.mark.parametrize("returns", [True, False], ids=["return", "follow"])
def test_while_its_backend_takes_no_connections_the_client_keeps_one_other(
    client_bed: Bed, family: Family, reason: str, returns: bool
) -> None:
    start(client_bed, family, returns=returns)
    first = connect(client_bed, family, 40000)
    out(client_bed, first, reason)
    meanwhile = {connect(client_bed, family, port) for port in range(40001, 40008)}
    assert len(meanwhile) == 1 and first not in meanwhile
    client_bed.plane.apply([choosable(first)])
    after = {connect(client_bed, family, port) for port in range(40008, 40012)}
    assert after == ({first} if returns and reason == "draining" else meanwhile)


def test_a_full_backend_is_passed_over_until_it_takes_connections_again(client_bed: Bed, family: Family) -> None:
    start(client_bed, family)
    first = connect(client_bed, family, 40000)
    client_bed.plane.apply(limited(first))
    assert first not in {connect(client_bed, family, port) for port in range(40001, 40005)}
    client_bed.plane.apply(limited())
    assert {connect(client_bed, family, port) for port in range(40005, 40009)} == {first}


def test_an_entry_of_another_farms_backend_is_not_used(client_bed: Bed, family: Family) -> None:
    """A farm's id may have had another meaning when the entry was made."""
    start(client_bed, family)
    row = np.zeros(1, PERSISTENT[family.name])
    row["client"], row["farm"] = np.void(ipaddress.ip_address(family.client).packed), 1
    row["home"] = row["backend"] = FIRST
    row["last_used"] = client_bed.plane.now_tick()
    others = np.array((FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 1), dtype=np.uint32)
    client_bed.plane.apply([PutSlots(1024, others), choosable(FIRST_NUMBER, True, 2)])
    client_bed.plane.update_persistent(family.name, row)
    chosen = {connect(client_bed, family, port) for port in range(40000, 40004)}
    assert len(chosen) == 1
    row["home"] = row["backend"] = MAX_BACKENDS + 7  # nor one of no backend
    client_bed.plane.update_persistent(family.name, row)
    assert len({connect(client_bed, family, port) for port in range(40004, 40008)}) == 1
