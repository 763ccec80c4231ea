"""The next hop's cache: filled by the routes, used while its generation is the global one, asked again after it."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.l2 import Ether

from tests.bpf.bed import NODE_OUT_MAC, UNRESOLVED, Bed, Family, backend_mac
from tests.bpf.connections import establish
from tests.bpf.packets import from_backend, from_client, rewritten

NEW_MAC = "02:00:00:00:02:77"


def destination_mac(bed: Bed, family: Family) -> str:
    return str(Ether(bed.send(bytes(from_client(family, flags="A"))).frame).dst)


def move(bed: Bed, family: Family, mac: str) -> None:
    bed.namespace.ip(f"neigh replace {family.far(11)} lladdr {mac} dev out0 nud permanent")


@pytest.mark.vlans
def test_the_cache_holds_until_the_generation_moves(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    move(bed, family, NEW_MAC)
    try:
        assert destination_mac(bed, family) == backend_mac(11)
        bed.plane.bump_next_hops()
        assert destination_mac(bed, family) == NEW_MAC
    finally:
        move(bed, family, backend_mac(11))


def test_without_a_generation_nothing_is_cached(bed: Bed, family: Family) -> None:
    """Before the first write to `globals`: generation 0 means "never resolved" on both sides."""
    bed.plane._write_one("globals", next_hop_generation=0)
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    move(bed, family, NEW_MAC)
    try:
        assert destination_mac(bed, family) == NEW_MAC
    finally:
        move(bed, family, backend_mac(11))


def test_an_entry_from_the_peer_has_no_next_hop_yet(bed: Bed, family: Family) -> None:
    """What replication brings carries no MACs; both directions find theirs."""
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    rows: list[tuple[Any, Any]] = list(bed.plane.flow_batches("flows", family.name, 64))
    for keys, values in rows:
        for field in ("destination_mac", "source_mac", "interface", "next_hop_generation", "mtu"):
            values[field] = 0
        bed.plane.update_flows(family.name, keys, values)
    packet = from_client(family, flags="A")
    expected = rewritten(packet, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
    assert bed.send(bytes(packet)).frame == expected
    assert bed.send(bytes(from_backend(family, family.far(11), family.vip, 40000)), "out0").verdict == "forward_redirect"


@pytest.mark.vlans
def test_an_unresolved_packet_keeps_hop_and_macs(bed: Bed, family: Family) -> None:
    """The kernel forwards it: it takes the hop off and writes the MACs."""
    bed.farm(family.vip, (family.far(UNRESOLVED), 8080))
    for ttl in (64, 2):
        packet = from_client(family, ttl=ttl)
        out = bed.send(bytes(packet))
        assert out.verdict == "pass_unresolved"
        assert out.frame == rewritten(packet, (family.vip, 40000), (family.far(UNRESOLVED), 8080), None, hops=0)
    assert bed.plane.farm_traffic()[1]["packets_in"] == 2


def test_the_lowest_ttl_that_is_forwarded(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    packet = from_client(family, ttl=2)
    expected = rewritten(packet, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
    assert bed.send(bytes(packet)).frame == expected


def test_a_larger_mtu_is_noticed_without_a_new_generation(bed: Bed, family: Family) -> None:
    """A packet longer than the cached MTU makes the program look up the FIB again."""
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    for keys, values in list(bed.plane.flow_batches("flows", family.name, 64)):
        values["mtu"] = 60
        bed.plane.update_flows(family.name, keys, values)
    assert bed.send(bytes(from_client(family, flags="A"))).verdict == "forward_redirect"
    (row,) = [v for _, values in bed.plane.flow_batches("flows", family.name, 64) for v in values if v["flags"] & 1]
    assert row["mtu"] == 1500
