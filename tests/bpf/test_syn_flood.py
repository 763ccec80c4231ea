"""Ten times more SYNs from random sources than the map of embryonic connections holds."""

from __future__ import annotations

import random

import pytest

from bpf.constants import Scheduler
from tests.bpf.bed import Bed, Family, why_not
from tests.bpf.connections import arriving
from tests.bpf.counted import serve
from tests.bpf.packets import from_backend, from_client

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

HELD = range(30000, 30020)
CAPACITY = 1024
"""Connections that the smallest map of embryonic connections holds."""
BACKENDS = 3


def flood(bed: Bed, family: Family, count: int, seed: int) -> None:
    """SYNs from random sources; one frame whose source and port are overwritten."""
    chance = random.Random(seed)
    frame = bytearray(bytes(from_client(family, source="198.18.0.0" if family.bits == 32 else "2001:db8:ff::", payload=b"")))
    at = 26 if family.bits == 32 else 22
    width = 2 if family.bits == 32 else 6  # the last bytes of the address: it stays a client's
    end = at + family.bits // 8

    def run() -> None:
        for _ in range(count):
            frame[end - width : end] = chance.randbytes(width)
            frame[end + family.bits // 8 : end + family.bits // 8 + 2] = chance.randrange(1024, 65536).to_bytes(2, "big")
            bed.plane.test_run(bytes(frame), bed.in0)

    bed.inside(run)


def backend_of(bed: Bed, family: Family, port: int) -> tuple[str, int]:
    """Address of the connection's backend, and the port that it sees."""
    found = bed.flows("flows", family) | bed.flows("embryonic", family)
    entry = found[arriving(family, port)]
    return entry.leaves.destination, entry.leaves.source_port


def syn(bed: Bed, family: Family, port: int) -> tuple[str, int]:
    assert bed.send(bytes(from_client(family, source_port=port))).verdict == "forward_redirect"
    return backend_of(bed, family, port)


def answer(bed: Bed, family: Family, server: tuple[str, int], flags: str = "SA") -> str:
    return bed.send(bytes(from_backend(family, server[0], family.vip, server[1], flags=flags)), "out0").verdict


def ack(bed: Bed, family: Family, port: int) -> str:
    return bed.send(bytes(from_client(family, flags="A", source_port=port))).verdict


@pytest.mark.parametrize("scheduler", list(Scheduler), ids=lambda scheduler: scheduler.name.lower())
def test_a_flood_leaves_held_connections_whole_and_new_clients_connect(
    limited_bed: Bed, family: Family, scheduler: Scheduler
) -> None:
    bed = limited_bed
    serve(bed, family, (1,) * BACKENDS, scheduler=scheduler)
    for port in HELD:
        server = syn(bed, family, port)
        assert answer(bed, family, server) == "forward_redirect"
        assert ack(bed, family, port) == "forward_redirect"
    before = bed.flows("flows", family)
    assert len(before) == 2 * len(HELD)
    flood(bed, family, 5 * CAPACITY, 1)
    fresh = {port: syn(bed, family, port) for port in range(40000, 40005)}
    for server in fresh.values():
        assert answer(bed, family, server) == "forward_redirect"
    flood(bed, family, 5 * CAPACITY, 2)
    bed.clear("embryonic", family)  # the kernel keeps those that were answered; the worst case is that it keeps none
    for port, server in fresh.items():
        assert ack(bed, family, port) == "forward_redirect"
        assert backend_of(bed, family, port) == server, "derived again: the backend has the connection"
        assert answer(bed, family, server, "A") == "forward_redirect"
        assert ack(bed, family, port) == "forward_redirect"
    after = bed.flows("flows", family)
    assert {key: after[key].leaves for key in before} == {key: entry.leaves for key, entry in before.items()}
    assert after.keys() >= {arriving(family, port) for port in fresh}, "established"
