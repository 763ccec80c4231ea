"""The source towards the backend: which port a new connection gets, when one is given to another client, and who is hidden."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bpf.constants import FIRST_SNAT_PORT, EventType, FlowFlag, FlowState, Mode, Protocol
from bpf.dataplane import Array, FlowEntry, FlowTuple, PutFarm, PutMembers
from ctl.dataplane.flow_hash import flow_hash, snat_candidates, snat_sources
from tests.bpf.bed import NODE_IN_MAC, NODE_OUT_MAC, SEED, TX, Bed, Family, backend_mac, near_mac, why_not
from tests.bpf.connections import arriving, backend, client, establish, reply_tuple
from tests.bpf.packets import NAT_MODES, from_backend, from_client, rewritten
from tests.wait import wait_until

SEEN = FlowState.SEEN
BOTH_FIN = FlowState.SEEN | FlowState.FIN_HERE | FlowState.FIN_THERE
PROTOCOLS = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())


@pytest.fixture(scope="module")
def _wide_bed() -> Iterator[Bed]:
    if reason := why_not():
        pytest.skip(reason)
    with Bed(max_flows=1 << 16) as bed:
        yield bed


@pytest.fixture
def wide_bed(_wide_bed: Bed) -> Bed:
    """A node whose map holds a connection for each port."""
    _wide_bed.reset()
    return _wide_bed


def take_ports(bed: Bed, family: Family, ports: Array, protocol: int = Protocol.TCP, vip: str = "", state: int = SEEN) -> None:
    """Reply entries of other connections to the backend."""
    first = FlowTuple(family.far(11), vip or family.vip, 8080, 0, protocol)
    keys = np.repeat(bed.plane.encode_flow_keys(family.name, [first]), len(ports))
    keys["destination_port"] = ports
    values = bed.blank_flows(family, len(ports))
    values["state"], values["last_seen"] = state, bed.plane.now_tick()
    assert bed.plane.update_flows(family.name, keys, values) == len(ports)


def entry(bed: Bed, family: Family, port: int = 40000) -> FlowEntry:
    return bed.flows("embryonic", family)[arriving(family, port)]


# --- few ports are free --------------------------------------------------------------------------------------


@PROTOCOLS
@pytest.mark.parametrize("mode", NAT_MODES)
def test_without_any_free_port_the_client_is_refused(wide_bed: Bed, family: Family, protocol: Protocol, mode: Mode) -> None:
    wide_bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode)
    seen = family.client if mode is Mode.DNAT else family.vip
    take_ports(wide_bed, family, np.arange(FIRST_SNAT_PORT, 65536), protocol, seen)
    out = wide_bed.send(bytes(from_client(family, protocol)))
    verdict = "drop_reverse_conflict" if mode is Mode.DNAT else "drop_snat_exhausted"
    event = "event_reset_sent" if protocol is Protocol.TCP else "event_unreachable_sent"
    assert (out.action, out.moved) == (TX, {verdict: 1, event: 1})


def test_with_63000_ports_in_use_one_in_a_hundred_is_refused_at_most(wide_bed: Bed, family: Family) -> None:
    """0.23 % are expected: 256 candidates, of which 97.66 % are taken."""
    wide_bed.farm(family.vip, (family.far(11), 8080))
    taken = np.random.default_rng(7).permutation(np.arange(FIRST_SNAT_PORT, 65536))[:63000]
    take_ports(wide_bed, family, taken)
    refused = 0
    for number, port in enumerate(taken[:1000].tolist()):
        refused += client(wide_bed, family, port=port) == "drop_snat_exhausted"
        if number % 50 == 0:  # their own entries take ports too
            wide_bed.clear("embryonic", family)
    assert refused <= 10


def test_a_retransmission_tries_other_ports(wide_bed: Bed, family: Family) -> None:
    """The candidates that depend on the connection alone are taken."""
    wide_bed.farm(family.vip, (family.far(11), 8080))
    fixed = list(snat_candidates(40000, flow_hash(arriving(family), SEED)))
    take_ports(wide_bed, family, np.array(fixed))
    chosen = set()

    def tries_another() -> bool:
        client(wide_bed, family)
        chosen.add(entry(wide_bed, family).leaves.source_port)
        wide_bed.clear("embryonic", family)
        return len(chosen) > 1

    wait_until(tries_another, "another port, a tick later")
    assert not chosen & set(fixed)


# --- parity and privileged ports (RFC 4787 REQ-3a, REQ-4) -----------------------------------------------------


def seen_port(bed: Bed, family: Family, client_port: int, protocol: int = Protocol.TCP) -> int:
    """The port from which the backend sees a new connection of the client."""
    bed.clear("embryonic", family)
    assert client(bed, family, port=client_port, protocol=protocol) == "forward_redirect"
    return bed.flows("embryonic", family)[arriving(family, client_port, protocol)].leaves.source_port


@PROTOCOLS
@pytest.mark.parametrize("client_port", [1, 123, 511, 1023, 1024, 65535])
def test_the_backend_sees_the_clients_own_port(bed: Bed, family: Family, client_port: int, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    assert seen_port(bed, family, client_port, protocol) == client_port
    answer = from_backend(family, family.far(11), family.vip, client_port, protocol)
    assert bed.send(bytes(answer), "out0").verdict == "forward_redirect"


def test_the_guard_does_not_drop_replies_to_a_privileged_port(bed: Bed, family: Family) -> None:
    """A second farm, and other listeners of the node, may own the same port of the SNAT address: the flow decides."""
    bed.farm(family.vip, (family.far(12), 8080), port=993, farm=2)
    bed.farm(family.vip, (family.far(11), 8080))
    assert seen_port(bed, family, 993) == 993
    answer = from_backend(family, family.far(11), family.vip, 993)
    assert bed.send(bytes(answer), "out0").verdict == "forward_redirect"
    assert bed.send(bytes(from_backend(family, family.far(13), family.vip, 995)), "out0").verdict == "drop_vip_guard"


@PROTOCOLS
@pytest.mark.parametrize("client_port", [40000, 40001, 1023, 80])
def test_a_taken_port_is_replaced_by_one_of_its_parity_and_range(
    wide_bed: Bed, family: Family, client_port: int, protocol: Protocol
) -> None:
    wide_bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    take_ports(wide_bed, family, np.array([client_port]), protocol)
    fixed = list(snat_candidates(client_port, flow_hash(arriving(family, client_port, protocol), SEED)))
    assert seen_port(wide_bed, family, client_port, protocol) == fixed[1]
    take_ports(wide_bed, family, np.array(fixed), protocol)
    port = seen_port(wide_bed, family, client_port, protocol)
    assert port not in fixed and port % 2 == client_port % 2
    assert port >= 1024 if client_port >= 1024 else 512 <= port < 1024


def test_parity_is_given_up_before_a_client_is_refused(wide_bed: Bed, family: Family) -> None:
    wide_bed.farm(family.vip, (family.far(11), 8080))
    take_ports(wide_bed, family, np.arange(FIRST_SNAT_PORT, 65536, 2))
    assert seen_port(wide_bed, family, 40000) % 2 == 1
    assert seen_port(wide_bed, family, 40001) == 40001


def test_a_privileged_client_gets_the_other_parity_and_then_a_high_port(wide_bed: Bed, family: Family) -> None:
    wide_bed.farm(family.vip, (family.far(11), 8080))
    take_ports(wide_bed, family, np.arange(513, 1024, 2))
    other = seen_port(wide_bed, family, 1023)
    assert 512 <= other < 1024 and other % 2 == 0
    take_ports(wide_bed, family, np.arange(512, 1024))
    high = seen_port(wide_bed, family, 1023)
    assert high >= 1024 and high % 2 == 1


def test_a_client_that_is_not_privileged_never_gets_a_privileged_port(wide_bed: Bed, family: Family) -> None:
    wide_bed.farm(family.vip, (family.far(11), 8080))
    take_ports(wide_bed, family, np.arange(FIRST_SNAT_PORT, 65536))
    assert client(wide_bed, family) == "drop_snat_exhausted"


# --- ports of closed connections -----------------------------------------------------------------------------


def closed_first(bed: Bed, family: Family, *flags: str) -> str:
    """A connection from port 40000 that has ended; returns the address of another client."""
    bed.farm(family.vip, (family.far(11), 8080))
    establish(bed, family)
    for end in flags:
        client(bed, family, end)
        backend(bed, family, end)
    return family.client[:-1] + "8"


def other_port(bed: Bed, family: Family, other: str) -> int:
    assert bed.send(bytes(from_client(family, source=other))).verdict == "forward_redirect"
    flow = FlowTuple(other, family.vip, 40000, 80, Protocol.TCP)
    return (bed.flows("embryonic", family) | bed.flows("flows", family))[flow].leaves.source_port


@pytest.mark.parametrize("flags", [("FA",), ("R",)], ids=["fin", "rst"])
def test_the_port_of_a_closed_connection_rests(bed: Bed, family: Family, flags: tuple[str, ...]) -> None:
    other = closed_first(bed, family, *flags)
    bed.age("flows", family, 58)
    assert other_port(bed, family, other) != 40000
    assert reply_tuple(family) in bed.flows("flows", family)


def test_its_own_client_may_reuse_it_at_once(bed: Bed, family: Family) -> None:
    closed_first(bed, family, "FA")
    client(bed, family, "S")
    backend(bed, family, "SA")
    assert bed.flows("flows", family)[arriving(family)].leaves.source_port == 40000


def test_ports_that_rested_are_as_good_as_free(wide_bed: Bed, family: Family) -> None:
    """All ports belong to closed connections: the new one takes the first that closed a minute ago."""
    wide_bed.farm(family.vip, (family.far(11), 8080))
    take_ports(wide_bed, family, np.arange(FIRST_SNAT_PORT, 65536), state=BOTH_FIN)
    wide_bed.age("flows", family, 61)
    assert client(wide_bed, family) == "forward_redirect"
    assert entry(wide_bed, family).leaves.source_port == list(snat_candidates(40000, flow_hash(arriving(family), SEED)))[1]


@pytest.mark.parametrize("state", [BOTH_FIN, SEEN | FlowState.RST], ids=["fin", "rst"])
def test_without_a_free_port_a_closed_connection_ends(wide_bed: Bed, family: Family, state: int) -> None:
    wide_bed.farm(family.vip, (family.far(11), 8080))
    take_ports(wide_bed, family, np.arange(FIRST_SNAT_PORT, 65536))
    spare = list(snat_candidates(40000, flow_hash(arriving(family), SEED)))[3]
    take_ports(wide_bed, family, np.array([spare]), state=state)
    assert client(wide_bed, family) == "forward_redirect"
    assert entry(wide_bed, family).leaves.source_port == spare
    assert reply_tuple(family, spare) not in wide_bed.flows("flows", family)


def test_the_evicted_connection_loses_both_entries_and_the_peer_hears_of_it(paired_bed: Bed, family: Family) -> None:
    """In the small map the ports are those of embryonic connections: 5 s of silence end one of them."""
    other = closed_first(paired_bed, family, "FA")
    paired_bed.age("flows", family, 61)
    candidates = list(snat_candidates(40000, flow_hash(FlowTuple(other, family.vip, 40000, 80, Protocol.TCP), SEED)))
    moved = candidates[1]
    keys, values = next(iter(paired_bed.plane.flow_batches("flows", family.name, 64)))
    forward = values["flags"] & FlowFlag.FORWARD != 0
    paired_bed.clear("flows", family)
    keys["destination_port"][~forward] = moved
    values["source_port"][forward] = moved
    paired_bed.plane.update_flows(family.name, keys, values)
    client(paired_bed, family, port=39999)  # any other connection
    holder = from_client(family, source=family.client[:-1] + "9")
    paired_bed.send(bytes(holder))  # takes the client's own port
    reader = paired_bed.plane.flow_events(family.name)
    assert reader is not None
    with reader:
        reader.read(1 << 20)
        assert other_port(paired_bed, family, other) == moved
        (event,) = reader.read(1 << 20)
    assert event["type"] == EventType.REMOVED
    assert arriving(family) not in paired_bed.flows("flows", family)


def test_a_flood_of_embryonic_connections_does_not_keep_every_port(bed: Bed, family: Family) -> None:
    """Their ports are taken from them after 5 s."""
    bed.farm(family.vip, (family.far(11), 8080))
    for port in snat_candidates(40000, flow_hash(arriving(family), SEED)):
        client(bed, family, port=port) if port != 40000 else None
    bed.send(bytes(from_client(family, source=family.client[:-1] + "8")))
    bed.age("embryonic", family, 6)
    assert client(bed, family) == "forward_redirect"


# --- several addresses ---------------------------------------------------------------------------------------


def test_several_addresses_are_used_side_by_side(bed: Bed, family: Family) -> None:
    addresses = (family.vip, family.other_vip, family.snat)
    bed.farm(family.vip, (family.far(11), 8080))
    bed.plane.apply([PutFarm(1, 0, addresses)])
    seen = set()
    for port in range(40000, 40030):
        packet = from_client(family, source_port=port)
        source = next(snat_sources(port, flow_hash(arriving(family, port), SEED), addresses))
        out = bed.send(bytes(packet))
        assert out.frame == rewritten(packet, source, (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
        answer = from_backend(family, family.far(11), *source)
        assert bed.send(bytes(answer), "out0").verdict == "forward_redirect"
        seen.add(source[0])
    assert seen == set(addresses)


# --- dnat ----------------------------------------------------------------------------------------------------


@PROTOCOLS
def test_two_vips_to_one_dnat_backend_from_one_client_port(bed: Bed, family: Family, protocol: Protocol) -> None:
    """The second connection reaches the backend from another port, and each client side gets its own answers."""
    for farm, vip in ((1, family.vip), (2, family.other_vip)):
        bed.farm(vip, (family.far(11), 8080), mode=Mode.DNAT, farm=farm, protocol=protocol)
    assert bed.send(bytes(from_client(family, protocol))).verdict == "forward_redirect"
    second = from_client(family, protocol, destination=family.other_vip)
    mixed = flow_hash(FlowTuple(family.client, family.other_vip, 40000, 80, protocol), SEED)
    port = list(snat_candidates(40000, mixed))[1]
    expected = rewritten(second, (family.client, port), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
    assert bed.send(bytes(second)).frame == expected
    for vip, seen in ((family.vip, 40000), (family.other_vip, port)):
        answer = from_backend(family, family.far(11), family.client, seen, protocol)
        out = bed.send(bytes(answer), "out0").frame
        assert out == rewritten(answer, (vip, 80), (family.client, 40000), (NODE_IN_MAC, "02:00:00:00:01:fe"))


@pytest.mark.parametrize("number", [11, 12], ids=["itself", "another"])
@PROTOCOLS
def test_a_backend_that_is_a_client_of_its_own_farm_is_hidden(
    bed: Bed, family: Family, number: int, protocol: Protocol
) -> None:
    """Backend 11 connects; with its own address the backend chosen would answer it directly."""
    bed.farm(family.vip, (family.near(number), 8080), mode=Mode.DNAT, protocol=protocol)
    bed.plane.apply([PutMembers(1, frozenset({family.near(11), family.near(12)}))])
    packet = from_client(family, protocol, source=family.near(11))
    out = bed.send(bytes(packet))
    expected = rewritten(packet, (family.vip, 40000), (family.near(number), 8080), (NODE_IN_MAC, near_mac(number)))
    assert (out.verdict, out.frame) == ("forward_tx", expected)
    answer = from_backend(family, family.near(number), family.vip, 40000, protocol)
    answered = bed.send(bytes(answer))
    assert answered.frame == rewritten(answer, (family.vip, 80), (family.near(11), 40000), (NODE_IN_MAC, near_mac(11)))


def test_other_clients_of_a_dnat_farm_keep_their_address(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT)
    bed.plane.apply([PutMembers(1, frozenset({family.far(11)})), PutMembers(2, frozenset({family.client}))])
    client(bed, family)
    assert entry(bed, family).leaves.source == family.client
    bed.plane.apply([PutMembers(1, frozenset({family.client}))])
    bed.clear("embryonic", family)
    client(bed, family)
    assert entry(bed, family).leaves.source == family.vip
    bed.plane.apply([PutMembers(1, frozenset())])
    bed.clear("embryonic", family)
    client(bed, family)
    assert entry(bed, family).leaves.source == family.client
