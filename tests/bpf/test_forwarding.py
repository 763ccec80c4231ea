"""Frames of working connections, byte for byte: every mode, family, protocol, wiring and scheduler, and the replies."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from bpf.constants import FlowFlag, Mode, Protocol, Scheduler
from bpf.dataplane import FlowTuple
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC, REDIRECT, TX, V4, Bed, Family, backend_mac, near_mac
from tests.bpf.packets import NAT_MODES, PAYLOAD, from_backend, from_client, rewritten

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
MODES = pytest.mark.parametrize("mode", NAT_MODES, ids=lambda mode: mode.name.lower())


@pytest.mark.vlans
@PROTOCOLS
@MODES
@pytest.mark.parametrize("side", ["far", "near"])
def test_both_directions_of_a_connection(bed: Bed, family: Family, protocol: Protocol, mode: Mode, side: str) -> None:
    backend = family.far(11) if side == "far" else family.near(11)
    bed.farm(family.vip, (backend, 8080), protocol=protocol, mode=mode, snat=family.snat)
    seen_by_backend = (family.snat if mode is Mode.SNAT else family.client, 40000)
    out_mac, in_mac = (NODE_OUT_MAC, backend_mac(11)) if side == "far" else (NODE_IN_MAC, near_mac(11))

    first = from_client(family, protocol)
    out = bed.send(bytes(first))
    assert out.frame == rewritten(first, seen_by_backend, (backend, 8080), (out_mac, in_mac))
    assert (out.verdict, out.action) == (("forward_redirect", REDIRECT) if side == "far" else ("forward_tx", TX))

    answer = from_backend(family, backend, *seen_by_backend, protocol, source_mac=in_mac, node_mac=out_mac)
    back = bed.send(bytes(answer), "out0" if side == "far" else "in0")
    assert back.frame == rewritten(answer, (family.vip, 80), (family.client, 40000), (NODE_IN_MAC, GATEWAY_MAC))

    again = from_client(family, protocol, "A", payload=PAYLOAD * 3)
    out = bed.send(bytes(again))
    assert out.frame == rewritten(again, seen_by_backend, (backend, 8080), (out_mac, in_mac))
    assert out.moved.get("event_promoted") == 1
    lasting = bed.send(bytes(again))
    assert lasting.frame == out.frame
    assert "event_promoted" not in lasting.moved


@PROTOCOLS
def test_snat_uses_the_vip_unless_the_farm_names_another_address(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    first = from_client(family, protocol)
    expected = rewritten(first, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
    assert bed.send(bytes(first)).frame == expected


def test_ipv4_options_are_kept(bed: Bed) -> None:
    from scapy.layers.inet import IPOption_RR

    bed.farm(V4.vip, (V4.far(11), 8080))
    first = from_client(V4, options=[IPOption_RR(length=39, routers=["0.0.0.0"] * 9)])
    out = bed.send(bytes(first))
    assert out.frame == rewritten(first, (V4.vip, 40000), (V4.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))


def test_counts_by_farm_and_backend(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), farm=3, first_backend=21)
    first = bytes(from_client(family))
    answer = bytes(from_backend(family, family.far(11), family.vip, 40000))
    bed.send(first)
    bed.send(answer, "out0")
    bed.send(first)
    for row in (bed.plane.farm_traffic()[3], bed.plane.backend_traffic()[21]):
        assert (row["packets_in"], row["bytes_in"]) == (2, 2 * len(first))
        assert (row["packets_out"], row["bytes_out"]) == (1, len(answer))
        assert (row["connections"], row["drops"]) == (1, 0)


def test_drops_count_for_a_known_farm(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), farm=3)
    bed.send(bytes(from_client(family, ttl=1)))
    bed.send(bytes(from_client(family, port=81)))
    assert bed.plane.farm_traffic()[3]["drops"] == 1


@pytest.mark.parametrize("scheduler", [Scheduler.MAGLEV, Scheduler.SOURCE], ids=["maglev", "source"])
def test_hash_schedulers_keep_a_tuple_on_its_slot(bed: Bed, family: Family, scheduler: Scheduler) -> None:
    backends = [(family.far(number), 8080) for number in (11, 12, 13)]
    bed.farm(family.vip, *backends, scheduler=scheduler, slots=(0, 1, 2, 1, 0, 2, 2))
    chosen = []
    for _ in range(2):
        bed.clear("embryonic", family)
        for port in range(2000, 2040):
            bed.send(bytes(from_client(family, source_port=port)))
        forward = [entry for entry in bed.flows("embryonic", family).values() if entry.forward]
        chosen.append({entry.arrives.source_port: entry.backend for entry in forward})
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0].values())) == (1 if scheduler is Scheduler.SOURCE else 3)


def test_round_robin_takes_turns(bed: Bed, family: Family) -> None:
    backends = [(family.far(number), 8080) for number in (11, 12, 13)]
    bed.farm(family.vip, *backends, scheduler=Scheduler.ROUNDROBIN, slots=(0, 1, 2, 2, 1, 2), farm=2)
    for port in range(2000, 2060):
        bed.send(bytes(from_client(family, source_port=port)))
    shares = Counter(entry.backend for entry in bed.flows("embryonic", family).values() if entry.forward)
    assert shares == {16: 10, 17: 20, 18: 30}


def test_round_robin_is_exact_over_all_cpus(bed: Bed, family: Family) -> None:
    """Two CPUs open connections at the same time: each slot is used once per turn, whichever of them takes it."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    bed.farm(family.vip, *((family.far(number), 8080) for number in (11, 12, 13)), scheduler=Scheduler.ROUNDROBIN)
    frames = [bytes(from_client(family, source_port=port)) for port in range(20000, 20240)]  # fewer than a flood of SYNs has

    def run(cpu: int, chosen: list[bytes]) -> None:
        bed.namespace.enter()
        os.sched_setaffinity(0, {cpu})
        for frame in chosen:
            bed.plane.test_run(frame, bed.in0)

    with ThreadPoolExecutor(len(cpus)) as threads:
        list(threads.map(run, cpus, [frames[n :: len(cpus)] for n in range(len(cpus))]))
    assert set(bed.plane.backend_traffic()["connections"][8:11].tolist()) == {80}


@MODES
@PROTOCOLS
def test_a_port_range_keeps_the_offset(bed: Bed, family: Family, protocol: Protocol, mode: Mode) -> None:
    bed.farm(family.vip, (family.far(11), 30000), port=10001, port_last=10999, protocol=protocol, mode=mode)
    seen = (family.vip if mode is Mode.SNAT else family.client, 40000)
    for port in (10001, 10500, 10999):
        first = from_client(family, protocol, port=port, source_port=40000)
        out = bed.send(bytes(first))
        assert out.frame == rewritten(first, seen, (family.far(11), 30000 + port - 10001), (NODE_OUT_MAC, backend_mac(11)))
    for port in (10000, 11000):
        assert bed.send(bytes(from_client(family, protocol, port=port))).verdict == "drop_vip_guard"


def test_an_exact_port_is_preferred_to_a_range(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(12), 9000), port=85, farm=2)
    bed.farm(family.vip, (family.far(11), 8000), port=80, port_last=89, farm=1)
    first = from_client(family, port=85)
    assert bed.send(bytes(first)).frame == rewritten(
        first, (family.vip, 40000), (family.far(12), 9000), (NODE_OUT_MAC, backend_mac(12))
    )


def test_a_midstream_packet_is_derived_again(bed: Bed, family: Family) -> None:
    backends = [(family.far(number), 8080) for number in (11, 12, 13)]
    bed.farm(family.vip, *backends)
    first = bed.send(bytes(from_client(family)))
    bed.clear("embryonic", family)
    again = bed.send(bytes(from_client(family, flags="A")))
    assert again.verdict == "forward_redirect"
    assert again.frame[:12] == first.frame[:12]  # the same backend's MAC
    (entry,) = [entry for entry in bed.flows("embryonic", family).values() if entry.forward]
    assert entry.arrives == FlowTuple(family.client, family.vip, 40000, 80, Protocol.TCP)
    _, values = next(iter(bed.plane.flow_batches("embryonic", family.name, 64)))
    assert all(flags & FlowFlag.DERIVED for flags in values["flags"])
