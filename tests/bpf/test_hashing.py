"""ctl/dataplane/flow_hash.py against the kernel program: the slot and the SNAT port of hundreds of random connections."""

from __future__ import annotations

import ipaddress
import random

import pytest

from bpf.constants import FIRST_SNAT_PORT, FIXED_SNAT_CANDIDATES, Protocol, Scheduler
from bpf.dataplane import FlowTuple
from ctl.dataplane.flow_hash import client_hash, flow_hash, snat_candidates
from tests.bpf.bed import V4, Bed, Family
from tests.bpf.packets import from_client

SLOTS = tuple(random.Random(4).choices(range(7), k=61))


def random_clients(family: Family, count: int) -> list[tuple[str, int]]:
    chance = random.Random(5)
    low, high = (0x0B000001, 0x7EFFFFFE) if family is V4 else (0x2000 << 112, (0x4000 << 112) - 1)
    make = ipaddress.IPv4Address if family is V4 else ipaddress.IPv6Address
    return [(str(make(chance.randint(low, high))), chance.randint(1, 65535)) for _ in range(count)]


@pytest.mark.parametrize("scheduler", [Scheduler.MAGLEV, Scheduler.SOURCE], ids=["maglev", "source"])
def test_slots_and_ports(bed: Bed, family: Family, scheduler: Scheduler) -> None:
    backends = [(family.far(number), 8080) for number in range(11, 18)]
    for protocol in Protocol:
        bed.farm(family.vip, *backends, slots=SLOTS, scheduler=scheduler, protocol=protocol, farm=int(protocol) % 8)
    for seed in (0, 0xFFFFFFFF, 0x12345678):
        bed.plane.set_hash_seed(seed)
        bed.clear("embryonic", family)
        taken: set[tuple[int, int, int]] = set()
        for number, (address, port) in enumerate(random_clients(family, 60)):
            protocol = list(Protocol)[number % 2]
            bed.send(bytes(from_client(family, protocol, source=address, source_port=port)))
            flow = FlowTuple(address, family.vip, port, 80, protocol)
            mixed = flow_hash(flow, seed)
            slot = SLOTS[(mixed if scheduler is Scheduler.MAGLEV else client_hash(address, seed)) % len(SLOTS)]
            wanted = next(each for each in snat_candidates(port, mixed) if (slot, protocol, each) not in taken)
            taken.add((slot, protocol, wanted))
            leaves = bed.flows("embryonic", family)[flow].leaves
            assert (leaves.destination, leaves.source_port) == (family.far(11 + slot), wanted)


@pytest.mark.parametrize("client_port", [0, 1023, 40000])
def test_every_fixed_candidate_in_order(bed: Bed, family: Family, client_port: int) -> None:
    """With each candidate taken in turn, the program moves on to the next of the sequence."""
    bed.farm(family.vip, (family.far(11), 8080))
    flow = FlowTuple(family.client, family.vip, client_port, 80, Protocol.TCP)
    for port in snat_candidates(client_port, flow_hash(flow, 0x5EED)):
        bed.send(bytes(from_client(family, source_port=client_port)))
        assert bed.flows("embryonic", family)[flow].leaves.source_port == port
        bed.clear("embryonic", family)
        keys = bed.plane.encode_flow_keys(family.name, [FlowTuple(family.far(11), family.vip, 8080, port, Protocol.TCP)])
        bed.plane.update_flows(family.name, keys, bed.blank_flows(family, 1))
    assert bed.send(bytes(from_client(family, source_port=client_port))).verdict == "forward_redirect"


def test_candidates() -> None:
    assert next(snat_candidates(1024, 1)) == 1024
    assert next(snat_candidates(1023, 1)) == 1023
    assert 0 not in snat_candidates(0, 1)
    assert len(list(snat_candidates(1024, 1))) == FIXED_SNAT_CANDIDATES
    for client_port, least, most, count in ((0, FIRST_SNAT_PORT, 65535, 20000), (65535, FIRST_SNAT_PORT, 65535, 20000),
                                            (1, 512, 1023, 256), (1022, 512, 1023, 256)):  # fmt: skip
        ports = [port for seed in range(8000) for port in list(snat_candidates(client_port, seed))[-7:]]
        assert least <= min(ports) and max(ports) <= most
        assert {port % 2 for port in ports} == {client_port % 2}
        assert len(set(ports)) >= count
