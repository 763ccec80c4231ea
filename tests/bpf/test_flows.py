"""The two entries of a connection: promotion, eviction of one of them, closing, reuse, full maps, port conflicts."""

from __future__ import annotations

import pytest

from bpf.constants import FlowState, Mode, Protocol, Scheduler
from bpf.dataplane import DeleteService, FlowEntry, FlowTuple
from ctl.dataplane.flow_hash import flow_hash, snat_candidates
from tests.bpf.bed import MAX_FLOWS, NODE_OUT_MAC, SEED, Bed, Family, backend_mac
from tests.bpf.connections import arriving, backend, client, establish, reply_tuple
from tests.bpf.packets import from_client, rewritten

PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())


@pytest.fixture
def farm(bed: Bed, family: Family) -> Bed:
    """One backend, TCP and UDP."""
    bed.farm(family.vip, (family.far(11), 8080))
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP, farm=2)
    return bed


def where(bed: Bed, family: Family) -> dict[str, set[FlowTuple]]:
    return {flow_map: set(bed.flows(flow_map, family)) for flow_map in ("flows", "embryonic")}


@PROTOCOLS
def test_promotion_needs_both_directions(farm: Bed, family: Family, protocol: Protocol) -> None:
    pair = {arriving(family, protocol=protocol), reply_tuple(family, protocol=protocol)}
    client(farm, family, "S", protocol=protocol)
    client(farm, family, "A", protocol=protocol)
    assert where(farm, family) == {"flows": set(), "embryonic": pair}
    backend(farm, family, protocol=protocol)
    assert where(farm, family) == {"flows": set(), "embryonic": pair}
    client(farm, family, "A", protocol=protocol)
    assert where(farm, family) == {"flows": pair, "embryonic": set()}


def test_a_repeated_syn_does_not_promote(farm: Bed, family: Family) -> None:
    client(farm, family)
    backend(farm, family)
    assert client(farm, family) == "forward_redirect"
    assert where(farm, family)["flows"] == set()


def test_one_question_and_one_answer_are_never_established(farm: Bed, family: Family) -> None:
    client(farm, family, protocol=Protocol.UDP)
    backend(farm, family, protocol=Protocol.UDP)
    assert where(farm, family)["flows"] == set()


@pytest.mark.parametrize("flags", ["S", "A"])
def test_an_evicted_reply_entry_is_made_again_with_the_same_backend(bed: Bed, family: Family, flags: str) -> None:
    """Round robin would have chosen the next one."""
    bed.farm(family.vip, (family.far(11), 8080), (family.far(12), 8080), scheduler=Scheduler.ROUNDROBIN)
    client(bed, family)
    (reply,) = [flow for flow, entry in bed.flows("embryonic", family).items() if not entry.forward]
    assert bed.plane.delete_flows("embryonic", family.name, bed.plane.encode_flow_keys(family.name, [reply])) == 1
    assert client(bed, family, flags) == "forward_redirect"
    assert where(bed, family)["embryonic"] == {arriving(family), reply}
    assert bed.plane.farm_traffic()[1]["connections"] == 1


def test_a_reply_tuple_lost_to_another_connection_is_not_shared(bed: Bed, family: Family) -> None:
    """Its reply entry evicted and its port taken meanwhile, a connection gets another port."""
    bed.farm(family.vip, (family.far(11), 8080))
    client(bed, family)
    reply = reply_tuple(family)
    keys = bed.plane.encode_flow_keys(family.name, [reply])
    bed.plane.delete_flows("embryonic", family.name, keys)
    bed.plane.update_flows(family.name, keys, bed.blank_flows(family, 1))
    assert client(bed, family, "S") == "forward_redirect"
    second = list(snat_candidates(40000, flow_hash(arriving(family), SEED)))[1]
    entry = bed.flows("embryonic", family)[arriving(family)]
    assert entry.leaves.source_port == second
    assert reply_tuple(family, second) in bed.flows("embryonic", family)


def test_a_flood_evicts_only_embryonic_connections(farm: Bed, family: Family) -> None:
    """Twice as many half-open connections as fit: the established one stays, and no insert fails."""
    establish(farm, family, 50000)
    for number in range(2200):
        assert client(farm, family, "S", 1024 + number) == "forward_redirect"
    assert where(farm, family)["flows"] == {arriving(family, 50000), reply_tuple(family, 50000)}
    assert 0 < len(where(farm, family)["embryonic"]) <= 2048
    assert client(farm, family, "A", 50000) == "forward_redirect"


def test_a_full_map_leaves_connections_working(farm: Bed, family: Family) -> None:
    farm.fill_flows(family)
    establish(farm, family)
    assert where(farm, family)["embryonic"] == {arriving(family), reply_tuple(family)}
    assert client(farm, family, "PA") == "forward_redirect"
    assert backend(farm, family, "PA") == "forward_redirect"


def test_a_map_with_space_for_one_entry_takes_neither(farm: Bed, family: Family) -> None:
    farm.fill_flows(family)
    spare = FlowTuple(family.far(200), family.client, 1, 1, Protocol.TCP)
    assert farm.plane.delete_flows("flows", family.name, farm.plane.encode_flow_keys(family.name, [spare])) == 1
    establish(farm, family)
    assert len(where(farm, family)["flows"]) == 2 * MAX_FLOWS - 1
    assert where(farm, family)["embryonic"] == {arriving(family), reply_tuple(family)}


def entries(bed: Bed, family: Family) -> tuple[FlowEntry, FlowEntry]:
    found = bed.flows("flows", family) | bed.flows("embryonic", family)
    return found[arriving(family)], found[reply_tuple(family)]


def test_fin_and_rst_are_written_to_both_entries(farm: Bed, family: Family) -> None:
    establish(farm, family)
    client(farm, family, "FA")
    forward, reply = entries(farm, family)
    assert forward.state == FlowState.SEEN | FlowState.FIN_HERE
    assert reply.state == FlowState.SEEN | FlowState.FIN_THERE
    backend(farm, family, "FA")
    assert all(entry.state == FlowState.SEEN | FlowState.FIN_HERE | FlowState.FIN_THERE for entry in entries(farm, family))
    backend(farm, family, "R")
    assert all(entry.state & FlowState.RST for entry in entries(farm, family))


def test_a_half_open_connection_records_its_reset_too(farm: Bed, family: Family) -> None:
    client(farm, family)
    backend(farm, family, "RA")
    assert all(entry.state & FlowState.RST for entry in entries(farm, family))


@pytest.mark.parametrize("end", [("FA", "FA"), ("R", "")], ids=["fin", "rst"])
def test_a_syn_on_a_closed_connection_starts_a_new_one(bed: Bed, family: Family, end: tuple[str, str]) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    client(bed, family, end[0])
    if end[1]:
        backend(bed, family, end[1])
        assert client(bed, family, "A", payload=b"") == "forward_redirect", "late segments still take the old path"
    bed.farm(family.vip, (family.far(12), 8080), first_backend=40)
    assert client(bed, family) == "forward_redirect"
    assert where(bed, family) == {"flows": set(), "embryonic": {arriving(family), reply_tuple(family, number=12)}}
    assert all(entry.state & ~FlowState.SEEN == 0 and entry.backend == 40 for entry in bed.flows("embryonic", family).values())
    assert bed.plane.farm_traffic()[1]["connections"] == 2


def test_a_syn_on_a_reset_half_open_connection_starts_a_new_one(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    client(bed, family)
    backend(bed, family, "RA")
    assert client(bed, family) == "forward_redirect"
    forward, reply = entries(bed, family)
    assert (forward.state, reply.state) == (FlowState.SEEN, 0)
    assert bed.plane.farm_traffic()[1]["connections"] == 2


def test_a_new_connection_over_the_same_tuple_counts_for_its_own_farm(bed: Bed, family: Family) -> None:
    """The farm was replaced meanwhile by one with the same server: the reply entry found must not count for the old one."""
    bed.farm(family.vip, (family.far(11), 8080))
    client(bed, family)
    backend(bed, family, "RA")
    bed.farm(family.vip, (family.far(11), 8080), farm=2)
    client(bed, family)
    assert [(entry.farm, entry.backend) for entry in entries(bed, family)] == [(2, 16), (2, 16)]
    backend(bed, family)
    assert bed.plane.farm_traffic()[2]["packets_out"] == 1


def test_a_syn_on_a_live_connection_keeps_its_backend(farm: Bed, family: Family) -> None:
    establish(farm, family)
    assert client(farm, family, "S") == "forward_redirect"
    assert where(farm, family)["flows"] == {arriving(family), reply_tuple(family)}


def test_a_taken_port_moves_a_connection_to_the_next_candidate(bed: Bed, family: Family) -> None:
    """Two clients with the same source port, one backend: the second leaves by another port, and both get their replies."""
    bed.farm(family.vip, (family.far(11), 8080))
    other = str(family.client[:-1] + "8")
    client(bed, family)
    packet = from_client(family, source=other)
    port = list(snat_candidates(40000, flow_hash(FlowTuple(other, family.vip, 40000, 80, Protocol.TCP), SEED)))[1]
    expected = rewritten(packet, (family.vip, port), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
    assert bed.send(bytes(packet)).frame == expected
    found = bed.flows("embryonic", family)
    assert found[reply_tuple(family, 40000)].leaves.destination == family.client
    assert found[reply_tuple(family, port)].leaves.destination == other


def test_a_port_taken_by_an_established_connection_is_not_reused(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    other = str(family.client[:-1] + "8")
    bed.send(bytes(from_client(family, source=other)))
    assert reply_tuple(family) not in bed.flows("embryonic", family)
    assert bed.flows("flows", family)[reply_tuple(family)].leaves.destination == family.client


def test_dnat_keeps_even_a_privileged_port(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT)
    client(bed, family, port=123)
    leaves = bed.flows("embryonic", family)[arriving(family, 123)].leaves
    assert (leaves.source, leaves.source_port) == (family.client, 123)


def test_last_seen_follows_the_clock(farm: Bed, family: Family) -> None:
    establish(farm, family)
    ((keys, values),) = farm.plane.flow_batches("flows", family.name, 64)
    values["last_seen"] = 5
    farm.plane.update_flows(family.name, keys, values)
    client(farm, family, "A")
    forward, reply = entries(farm, family)
    assert 0 <= farm.plane.now_tick() - forward.last_seen_tick <= 3
    assert reply.last_seen_tick == 5


def test_an_existing_connection_outlives_its_farm(farm: Bed, family: Family) -> None:
    establish(farm, family)
    farm.plane.apply([DeleteService(key) for key in farm.plane.services()])
    assert client(farm, family, "A") == "forward_redirect"
    assert backend(farm, family, "A") == "forward_redirect"
    assert client(farm, family, "S", 40001) == "drop_vip_guard"
