"""Connections that are counted: the loads themselves, the limits of farm and backend, leastconn. Both families, TCP and UDP."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from bpf.constants import BackendFlag, FarmFlag, Mode, Protocol, Scheduler
from bpf.dataplane import FlowTuple, PutBackend, PutBackendLimits, PutFarm, PutFarmLimits, PutSlots
from ctl.config.model import Config
from ctl.dataplane.kernel.sweeper import Sweeper
from ctl.dataplane.loads import loads_of
from tests.bpf.bed import MAX_FLOWS, Bed, Family
from tests.bpf.connections import arriving, client, establish
from tests.bpf.counted import FARM, FIRST, choose, serve
from tests.bpf.packets import from_backend, from_client

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
SERVED = "forward_redirect"


def load(bed: Bed, backend: int = FIRST) -> int:
    return int(loads_of(bed.plane._limits._view("backend_loads")._values[backend : backend + 1])[0])


def farm_load(bed: Bed) -> int:
    values = bed.plane.loads("farm")
    assert values is not None
    return int(loads_of(values)[FARM])


def opens(bed: Bed, family: Family, port: int, protocol: int = Protocol.TCP, flags: str = "S") -> str:
    return bed.send(bytes(from_client(family, protocol, flags, source_port=port))).verdict


def run(bed: Bed, family: Family, port: int, flags: str = "S") -> None:
    """As `opens`, many times as fast: what is counted is not looked at."""
    bed.inside(lambda: bed.plane.test_run(bytes(from_client(family, flags=flags, source_port=port)), bed.in0))


def backend_of(bed: Bed, family: Family, port: int, protocol: int = Protocol.TCP) -> int:
    found = bed.flows("flows", family) | bed.flows("embryonic", family)
    return found[arriving(family, port, protocol)].backend


def ends(bed: Bed, family: Family, port: int, protocol: int = Protocol.TCP) -> None:
    """A TCP connection is reset by its client; a UDP one is flushed, and a sweep counts."""
    if protocol == Protocol.TCP:
        opens(bed, family, port, flags="R")
    for flow_map in ("flows", "embryonic"):
        keys = bed.plane.encode_flow_keys(family.name, [arriving(family, port, protocol)])
        bed.plane.delete_flows(flow_map, family.name, keys)
    if protocol == Protocol.UDP:
        sweep(bed)


def sweep(bed: Bed) -> None:
    """As the daemon's sweeper: what it counts is the truth."""
    sweeper = Sweeper(bed.plane, Config)
    sweeper._sweep()
    sweeper.close()


# --- the counts ---------------------------------------------------------------------------------------------


@PROTOCOLS
@pytest.mark.parametrize("mode", [Mode.SNAT, Mode.DNAT], ids=["snat", "dnat"])
def test_a_connection_counts_from_its_first_packet(limited_bed: Bed, family: Family, protocol: Protocol, mode: Mode) -> None:
    bed = limited_bed
    serve(bed, family, protocol=protocol, mode=mode)
    assert opens(bed, family, 40000, protocol) == SERVED
    assert (load(bed), farm_load(bed)) == (1, 1)
    opens(bed, family, 40000, protocol)
    assert load(bed) == 1, "a retransmission is the same connection"
    opens(bed, family, 40001, protocol)
    assert (load(bed), farm_load(bed)) == (2, 2)


def test_a_reset_ends_a_connection_and_a_later_segment_revokes_it(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family)
    establish(bed, family)
    for flags, expected in (("R", 0), ("R", 0), ("A", 1), ("RA", 0)):
        client(bed, family, flags)
        assert load(bed) == farm_load(bed) == expected
    client(bed, family, "S")
    bed.send(bytes(from_backend(family, family.far(11), family.vip, 40000, flags="SA")), "out0")
    assert load(bed) == 1, "the tuple is used again"


def test_fins_of_both_ends_end_a_connection(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family)
    establish(bed, family)
    client(bed, family, "FA", payload=b"")
    assert load(bed) == 1
    bed.send(bytes(from_backend(family, family.far(11), family.vip, 40000, flags="FA", payload=b"")), "out0")
    assert load(bed) == 0
    client(bed, family, "A", payload=b"")
    assert load(bed) == 0, "the last ACK revokes nothing"


def test_a_connection_that_moves_to_another_backend(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family, (1, 1))
    opens(bed, family, 40000)
    first = backend_of(bed, family, 40000)
    other = FIRST + 1 if first == FIRST else FIRST
    bed.plane.apply(
        [
            PutSlots(1024, bed.ids(other, other)),
            PutBackend(first, family.far(11 + first - FIRST), 8080, BackendFlag.UNAVAILABLE),
        ]
    )
    opens(bed, family, 40000)
    assert (load(bed, first), load(bed, other), farm_load(bed)) == (0, 1, 1)


@PROTOCOLS
def test_a_sweep_finds_what_nobody_counted(limited_bed: Bed, family: Family, protocol: Protocol) -> None:
    """Entries that the kernel evicted, that the daemon removed, and that the peer replicated."""
    bed = limited_bed
    serve(bed, family, protocol=protocol)
    for port in range(40000, 40006):
        opens(bed, family, port, protocol)
    keys = bed.plane.encode_flow_keys(family.name, [arriving(family, port, protocol) for port in (40000, 40001)])
    bed.plane.delete_flows("embryonic", family.name, keys)
    assert load(bed) == 6
    sweep(bed)
    assert (load(bed), farm_load(bed)) == (4, 4)
    flows = bed.blank_flows(family, 3)
    flows["flags"], flows["farm"], flows["backend"] = 1, FARM, FIRST
    flows["last_seen"] = bed.plane.now_tick()
    replicated = [FlowTuple(family.client, family.vip, port, 80, protocol) for port in (50000, 50001, 50002)]
    bed.plane.update_flows(family.name, bed.plane.encode_flow_keys(family.name, replicated), flows)
    sweep(bed)
    assert (load(bed), farm_load(bed)) == (7, 7)


# --- limits -------------------------------------------------------------------------------------------------


@PROTOCOLS
def test_a_full_farm_refuses(limited_bed: Bed, family: Family, protocol: Protocol) -> None:
    bed = limited_bed
    serve(bed, family, (1, 1), protocol=protocol, max_connections=3)
    assert [opens(bed, family, 40000 + n, protocol) for n in range(5)] == [SERVED] * 3 + ["drop_farm_full"] * 2
    assert opens(bed, family, 40001, protocol) == SERVED, "what is open stays"
    refused = bed.send(bytes(from_client(family, protocol, source_port=40009)))
    answer = "event_reset_sent" if protocol == Protocol.TCP else "event_unreachable_sent"
    assert refused.moved == {"drop_farm_full": 1, answer: 1}, "as without a backend"
    bed.plane.apply([PutFarm(FARM, int(FarmFlag.SILENT))])
    assert bed.send(bytes(from_client(family, protocol, source_port=40010))).moved == {"drop_farm_full": 1}
    ends(bed, family, 40000, protocol)
    assert opens(bed, family, 40003, protocol) == SERVED


@PROTOCOLS
@pytest.mark.parametrize("scheduler", list(Scheduler), ids=lambda scheduler: scheduler.name.lower())
def test_a_full_backend_gets_no_more(limited_bed: Bed, family: Family, protocol: Protocol, scheduler: Scheduler) -> None:
    bed = limited_bed
    serve(bed, family, (1, 1, 1), (2, 4, 1), protocol, scheduler)
    verdicts = [opens(bed, family, 40000 + n, protocol) for n in range(10)]
    assert verdicts == [SERVED] * 7 + ["drop_backend_full"] * 3
    assert [load(bed, FIRST + n) for n in range(3)] == [2, 4, 1]
    refused = bed.send(bytes(from_client(family, protocol, source_port=40020)))
    answer = "event_reset_sent" if protocol == Protocol.TCP else "event_unreachable_sent"
    assert refused.moved == {"drop_backend_full": 1, answer: 1}
    there = next(port for port in range(40000, 40007) if backend_of(bed, family, port, protocol) == FIRST + 1)
    ends(bed, family, there, protocol)
    assert opens(bed, family, 40030, protocol) == SERVED
    assert backend_of(bed, family, 40030, protocol) == FIRST + 1


def test_a_retransmission_to_a_full_backend_stays_there(limited_bed: Bed, family: Family) -> None:
    bed = limited_bed
    serve(bed, family, (1,), (1,))
    assert opens(bed, family, 40000) == SERVED
    assert opens(bed, family, 40000) == SERVED
    assert opens(bed, family, 40001) == "drop_backend_full"


# --- leastconn ----------------------------------------------------------------------------------------------


def shares(bed: Bed, count: int) -> list[int]:
    return [load(bed, FIRST + n) for n in range(count)]


@PROTOCOLS
def test_leastconn_is_exact(limited_bed: Bed, family: Family, protocol: Protocol) -> None:
    bed = limited_bed
    serve(bed, family, (1, 2, 3), protocol=protocol, scheduler=Scheduler.LEASTCONN)
    for n in range(60):
        assert opens(bed, family, 40000 + n, protocol) == SERVED
    assert shares(bed, 3) == [10, 20, 30]


def test_a_midstream_segment_is_reset(limited_bed: Bed, family: Family) -> None:
    serve(limited_bed, family, (1, 1), scheduler=Scheduler.LEASTCONN)
    outcome = limited_bed.send(bytes(from_client(family, flags="A")))
    assert outcome.moved == {"drop_no_flow": 1, "event_reset_sent": 1}


def test_leastconn_stays_even_while_backends_come_and_go(limited_bed: Bed, family: Family) -> None:
    """Opens and closes in random order; a backend that returns is filled up to its share and not beyond."""
    bed, chance, weights = limited_bed, random.Random(7), (1, 2, 1, 4)
    serve(bed, family, weights, scheduler=Scheduler.LEASTCONN)
    usable: list[int] = [0, 1, 2, 3]
    open_ports: list[int] = []
    port = 10000
    for step in range(1200):
        if step % 200 == 150:
            usable.remove(chance.choice(usable))
            choose(bed, weights, (0, 0, 0, 0), usable=tuple(usable))
        if step % 200 == 0:
            bed.set_clock(time.clock_gettime(time.CLOCK_MONOTONIC) + step)  # or else it is a flood
            usable = [0, 1, 2, 3]
            choose(bed, weights, (0, 0, 0, 0), usable=tuple(usable))
        if len(open_ports) < 2 * MAX_FLOWS and (len(open_ports) < 40 or chance.random() < 0.55):
            before = shares(bed, 4)
            port += 1
            run(bed, family, port)
            (chosen,) = (n for n, was in enumerate(before) if load(bed, FIRST + n) > was)
            cost = {n: (before[n] + 1) / weights[n] for n in usable}
            assert cost[chosen] == min(cost.values()), f"{chosen} of {usable} at loads {before}"
            open_ports.append(port)
        else:
            run(bed, family, open_ports.pop(chance.randrange(len(open_ports))), "R")
    assert sum(shares(bed, 4)) == len(open_ports) == farm_load(bed)


def test_of_many_backends_the_least_of_a_sample_is_chosen(limited_bed: Bed, family: Family) -> None:
    """More than are compared: the candidates are in the slots, from one that the hash chooses."""
    bed = limited_bed
    serve(bed, family, (1,), scheduler=Scheduler.LEASTCONN)
    count = 40
    ids = tuple(range(20, 20 + count))
    bed.plane.apply([PutBackend(number, family.far(11 + number % 9), 8000 + number) for number in ids])
    bed.farm(
        family.vip,
        *((family.far(11 + n % 9), 8000 + n) for n in range(count)),
        scheduler=Scheduler.LEASTCONN,
        first_backend=20,
    )
    bed.plane.apply([*(PutBackendLimits(number, 1, 0) for number in ids), PutFarmLimits(FARM)])
    for n in range(4 * count):
        run(bed, family, 20000 + n)
    found = Counter(load(bed, number) for number in ids)
    assert sum(each * times for each, times in found.items()) == 4 * count
    assert min(found) >= 3 and max(found) <= 5, found
