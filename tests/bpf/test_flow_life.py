"""What may end a connection, and which backend the first packets of a connection get when theirs is not there any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bpf.constants import BackendFlag, FlowState, Protocol, Scheduler
from bpf.dataplane import FlowEntry, PutBackend
from tests.bpf.bed import Bed, Family
from tests.bpf.connections import arriving, backend, client, establish, reply_tuple
from tests.bpf.packets import from_client

SEEN, FIN_HERE, FIN_THERE, RST = FlowState.SEEN, FlowState.FIN_HERE, FlowState.FIN_THERE, FlowState.RST
Sender = Callable[..., str]
ENDS = pytest.mark.parametrize("end", [client, backend], ids=["client", "backend"])


@pytest.fixture
def farm(bed: Bed, family: Family) -> Bed:
    """One backend, TCP and UDP."""
    bed.farm(family.vip, (family.far(11), 8080))
    bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP, farm=2)
    return bed


def states(bed: Bed, family: Family) -> tuple[int, int]:
    """Of the forward and the reply entry."""
    found = bed.flows("flows", family) | bed.flows("embryonic", family)
    return found[arriving(family)].state, found[reply_tuple(family)].state


def forward(bed: Bed, family: Family, flow_map: str, protocol: Protocol = Protocol.TCP) -> FlowEntry:
    return bed.flows(flow_map, family)[arriving(family, protocol=protocol)]


def connections(bed: Bed) -> int:
    return int(bed.plane.farm_traffic()[1]["connections"])


# --- FIN and RST are hints ----------------------------------------------------------------------------------


@ENDS
@pytest.mark.parametrize("goes_on", [client, backend], ids=["client-goes-on", "backend-goes-on"])
@pytest.mark.parametrize("payload", [b"", b"data"], ids=["ack", "data"])
def test_a_reset_that_an_end_ignored_changes_nothing(
    farm: Bed, family: Family, end: Sender, goes_on: Sender, payload: bytes
) -> None:
    establish(farm, family)
    end(farm, family, "R")
    assert states(farm, family) == (SEEN | RST, SEEN | RST)
    goes_on(farm, family, "A", payload=payload)
    assert states(farm, family) == (SEEN, SEEN)
    end(farm, family, "RA")
    assert states(farm, family) == (SEEN | RST, SEEN | RST), "the last word counts: a real RST is the answer to late segments"


def test_a_reset_keeps_what_is_known_of_fins(farm: Bed, family: Family) -> None:
    establish(farm, family)
    client(farm, family, "FA")
    backend(farm, family, "R")
    backend(farm, family, "A")
    assert states(farm, family) == (SEEN | FIN_HERE, SEEN | FIN_THERE)


def test_a_segment_that_is_dropped_says_once_what_it_says(farm: Bed, family: Family) -> None:
    """A SYN with a RST: the RST closes the connection, and the SYN does not then begin another one."""
    establish(farm, family)
    out = farm.send(bytes(from_client(family, flags="SR", ttl=1)))
    assert out.verdict == "drop_ttl_expired"
    assert not farm.flows("embryonic", family) and states(farm, family) == (SEEN | RST, SEEN | RST)


@ENDS
def test_a_sender_that_goes_on_after_a_fin_has_not_sent_it(farm: Bed, family: Family, end: Sender) -> None:
    establish(farm, family)
    other = backend if end is client else client
    end(farm, family, "FA")
    other(farm, family, "PA")
    end(farm, family, "A", payload=b"")
    assert sorted(states(farm, family)) == [SEEN | FIN_HERE, SEEN | FIN_THERE], "half-closed: acknowledgements continue"
    end(farm, family, "PA")
    assert states(farm, family) == (SEEN, SEEN)


def test_forged_fins_of_both_ends_are_revoked_too(farm: Bed, family: Family) -> None:
    establish(farm, family)
    client(farm, family, "FA")
    backend(farm, family, "FA")
    client(farm, family, "A", payload=b"")
    assert all(state & FIN_HERE and state & FIN_THERE for state in states(farm, family)), "the last acknowledgement"
    client(farm, family, "PA")
    backend(farm, family, "PA")
    assert states(farm, family) == (SEEN, SEEN)


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_a_forged_reset_and_a_forged_syn_leave_the_connection(bed: Bed, family: Family, scheduler: Scheduler) -> None:
    """The backend answers the SYN with an acknowledgement (RFC 5961), which shows that the connection is alive."""
    bed.farm(family.vip, (family.far(11), 8080), (family.far(12), 8080), scheduler=scheduler)
    client(bed, family)
    before = forward(bed, family, "embryonic")
    number = 11 if before.leaves.destination == family.far(11) else 12
    backend(bed, family, "SA", number=number)
    client(bed, family, "A")
    client(bed, family, "R")
    for _ in range(3):
        assert client(bed, family, "S") == "forward_redirect"
    assert backend(bed, family, "A", payload=b"", number=number) == "forward_redirect"
    after = forward(bed, family, "flows")
    assert (after.state, after.backend, after.leaves) == (SEEN, before.backend, before.leaves)
    assert bed.flows("embryonic", family) == {} and connections(bed) == 1


@pytest.mark.parametrize("end", ["RA", "FA"])
def test_a_tuple_reused_with_the_same_backend_begins_anew_with_its_answer(farm: Bed, family: Family, end: str) -> None:
    establish(farm, family)
    client(farm, family, end)
    backend(farm, family, end)
    closed = states(farm, family)
    client(farm, family, "S", payload=b"")
    assert states(farm, family) == closed, "a SYN alone shows nothing"
    backend(farm, family, "SA", payload=b"")
    assert states(farm, family) == (SEEN, SEEN) and connections(farm) == 2


def test_a_reset_half_open_connection_is_not_established_by_late_segments(farm: Bed, family: Family) -> None:
    client(farm, family)
    backend(farm, family, "SA")
    client(farm, family, "R")
    assert farm.flows("flows", family) == {} and states(farm, family) == (SEEN | RST, SEEN | RST)
    client(farm, family, "A")
    assert farm.flows("flows", family) == {}
    client(farm, family, "A")
    assert arriving(family) in farm.flows("flows", family)


# --- a backend that is not there any more --------------------------------------------------------------------


def two_backends(bed: Bed, family: Family, scheduler: Scheduler, slots: tuple[int, ...], protocol: Protocol) -> None:
    farm = 1 if protocol is Protocol.TCP else 2
    servers = ((family.far(11), 8080), (family.far(12), 8080))
    bed.farm(family.vip, *servers, scheduler=scheduler, slots=slots, protocol=protocol, farm=farm, first_backend=8)


def fail(bed: Bed, family: Family, protocol: Protocol = Protocol.TCP, scheduler: Scheduler = Scheduler.MAGLEV) -> None:
    """The check of backend 11 fails: it loses its slots, then it is marked."""
    two_backends(bed, family, scheduler, (1,), protocol)
    bed.plane.apply([PutBackend(8, family.far(11), 8080, BackendFlag.UNAVAILABLE)])


@pytest.mark.parametrize("scheduler", list(Scheduler))
@pytest.mark.parametrize("answered", [False, True])
def test_the_first_syn_after_a_failed_check_gets_another_backend(
    bed: Bed, family: Family, scheduler: Scheduler, answered: bool
) -> None:
    two_backends(bed, family, scheduler, (0,), Protocol.TCP)
    client(bed, family)
    if answered:
        backend(bed, family)
    assert forward(bed, family, "embryonic").backend == 8
    fail(bed, family, scheduler=scheduler)
    assert client(bed, family) == "forward_redirect"
    assert set(bed.flows("embryonic", family)) == {arriving(family), reply_tuple(family, number=12)}
    assert [entry.backend for entry in bed.flows("embryonic", family).values()] == [9, 9]
    assert backend(bed, family, number=12) == client(bed, family, "A") == "forward_redirect"
    assert forward(bed, family, "flows").backend == 9


def test_a_reused_port_of_a_connection_whose_backend_died_gets_another_backend(bed: Bed, family: Family) -> None:
    """Neither FIN nor RST: the backend is gone, and the client has restarted."""
    two_backends(bed, family, Scheduler.MAGLEV, (0,), Protocol.TCP)
    establish(bed, family)
    fail(bed, family)
    assert client(bed, family, "PA") == "forward_redirect"
    assert forward(bed, family, "flows").backend == 8, "a connection stays where it is; TCP finds out by itself"
    assert client(bed, family) == "forward_redirect"
    assert bed.flows("flows", family) == {}
    assert set(bed.flows("embryonic", family)) == {arriving(family), reply_tuple(family, number=12)}


def test_a_syn_without_an_answer_follows_the_present_backends(bed: Bed, family: Family) -> None:
    """Nobody marked the backend; the farm has others now. One that answered keeps its connection."""
    for answered in (True, False):
        two_backends(bed, family, Scheduler.MAGLEV, (0,), Protocol.TCP)
        bed.clear("embryonic", family)
        client(bed, family)
        if answered:
            backend(bed, family)
        two_backends(bed, family, Scheduler.MAGLEV, (1,), Protocol.TCP)
        client(bed, family)
        assert forward(bed, family, "embryonic").backend == (8 if answered else 9)


def test_round_robin_tries_the_next_backend_when_a_syn_is_sent_again(bed: Bed, family: Family) -> None:
    two_backends(bed, family, Scheduler.ROUNDROBIN, (0, 1), Protocol.TCP)
    client(bed, family)
    first = forward(bed, family, "embryonic").backend
    client(bed, family)
    assert forward(bed, family, "embryonic").backend == first, "a duplicate"
    bed.age("embryonic", family, 1)
    client(bed, family)
    assert forward(bed, family, "embryonic").backend == 17 - first
    assert connections(bed) == 2


def test_a_udp_flow_leaves_a_dead_backend_with_its_next_datagram(bed: Bed, family: Family) -> None:
    two_backends(bed, family, Scheduler.MAGLEV, (0,), Protocol.UDP)
    client(bed, family, protocol=Protocol.UDP)
    fail(bed, family, Protocol.UDP)
    client(bed, family, protocol=Protocol.UDP)
    assert forward(bed, family, "embryonic", Protocol.UDP).backend == 9
    assert len(bed.flows("embryonic", family)) == 2


# --- UDP that lasts ------------------------------------------------------------------------------------------


def test_udp_is_established_by_the_second_answer(farm: Bed, family: Family) -> None:
    """A client that asks once and then receives a stream: the peer must know the flow."""
    client(farm, family, protocol=Protocol.UDP)
    backend(farm, family, protocol=Protocol.UDP)
    assert farm.flows("flows", family) == {}
    assert backend(farm, family, protocol=Protocol.UDP) == "forward_redirect"
    assert set(farm.flows("flows", family)) == {
        arriving(family, protocol=Protocol.UDP),
        reply_tuple(family, protocol=Protocol.UDP),
    }
    assert farm.flows("embryonic", family) == {}
    assert backend(farm, family, protocol=Protocol.UDP) == "forward_redirect"


def test_udp_without_an_answer_is_never_established(farm: Bed, family: Family) -> None:
    for _ in range(3):
        farm.send(bytes(from_client(family, Protocol.UDP)))
    assert farm.flows("flows", family) == {}
