"""A case for each counter: what a node knows, and packets of which the last increments it, in every address family that allows
it."""

from __future__ import annotations

import time
from collections.abc import Callable

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf.constants import LEASE_HANDED_OVER_NS, Mode, Protocol, Scheduler, VipFlag
from bpf.dataplane import PutSlots
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, SMALL, UNRESOLVED, V4, V6, Bed, Family, Outcome
from tests.bpf.packets import (
    PAYLOAD,
    arp,
    echo_request,
    from_backend,
    from_client,
    icmp_error,
    network,
    solicitation,
    transport,
)

Case = Callable[[Bed, Family], Outcome]
SITUATIONS: list[tuple[str, str, Case]] = []


def case(counter: str) -> Callable[[Case], Case]:
    """The function's last packet moves `counter` by one."""

    def note(function: Case) -> Case:
        SITUATIONS.append((counter, function.__name__, function))
        return function

    return note


def serve(bed: Bed, family: Family, number: int = 11, **options: object) -> None:
    bed.farm(family.vip, (family.far(number), 8080), **options)  # type: ignore[arg-type]


def fence(bed: Bed) -> None:
    bed.plane.set_lease(time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 10_000_000, 1)


def neighbour_request(family: Family, target: str) -> bytes:
    return arp(target) if family is V4 else solicitation(target)


def large(family: Family, fragmentable: bool = False, **options: object) -> bytes:
    """Larger than SMALL_MTU."""
    packet = from_client(family, payload=bytes(1400), **options)  # type: ignore[arg-type]
    if family is V4:
        packet[IP].flags = "" if fragmentable else "DF"
    return bytes(packet)


# --- passed to the kernel ------------------------------------------------------------------------------------


@case("pass_not_ip")
def other_ethertype(bed: Bed, family: Family) -> Outcome:
    return bed.send(bytes(Ether(type=0x88CC) / Raw(bytes(60))))


@case("pass_not_ip")
def arp_for_someone_else(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(arp("10.1.0.77"))


@case("pass_not_ip")
def arp_reply_about_a_vip(bed: Bed, family: Family) -> Outcome:
    serve(bed, V4)
    return bed.send(arp(V4.vip, operation=2))


@case("pass_not_ours")
def to_the_node_itself(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, destination=family.near(1))))


@case("pass_not_ours")
def to_a_farms_port_elsewhere(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, destination=family.other_vip)))


@case("pass_not_ours")
def solicitation_or_ping_for_someone_else(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(solicitation(V6.other_vip) if family is V6 else echo_request(V4, V4.other_vip))


@case("pass_neighbour")
def neighbour_asks_for_a_vip(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(neighbour_request(family, family.vip))


@case("pass_neighbour")
def neighbour_asks_for_a_snat_address(bed: Bed, family: Family) -> Outcome:
    bed.farm(family.snat, (family.far(11), 8080))
    return bed.send(neighbour_request(family, family.snat))


@case("pass_vip_icmp")
def ping_to_a_vip(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(echo_request(family, family.vip))


@case("pass_vip_icmp")
def icmp_error_about_no_flow(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(icmp_error(family, family.vip, network(family, family.vip, family.client) / transport(6, 1, 2)))


@case("pass_vip_open")
def unserved_port_of_an_open_vip(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, flags=VipFlag.OPEN)
    return bed.send(bytes(from_client(family, port=22)))


@case("pass_vip_open")
def other_protocol_to_an_open_vip(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, flags=VipFlag.OPEN)
    return bed.send(other_protocol(family))


@case("pass_unresolved")
def unresolved_neighbour(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, UNRESOLVED)
    return bed.send(bytes(from_client(family)))


@case("pass_too_big")
def too_big_but_may_be_fragmented(bed: Bed, family: Family) -> Outcome:
    serve(bed, V4, SMALL)
    return bed.send(large(V4, fragmentable=True))


# --- sent on -------------------------------------------------------------------------------------------------


@case("forward_tx")
def backend_on_the_same_interface(bed: Bed, family: Family) -> Outcome:
    bed.farm(family.vip, (family.near(11), 8080))
    return bed.send(bytes(from_client(family)))


@case("forward_redirect")
def backend_on_the_other_interface(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family)))


@case("forward_icmp_error")
def icmp_error_from_the_client_about_a_reply(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    bed.send(bytes(from_client(family)))
    reply = network(family, family.vip, family.client) / transport(6, 80, 40000) / Raw(PAYLOAD)
    return bed.send(icmp_error(family, family.vip, reply))


@case("forward_too_big")
def too_big_and_reported_to_the_sender(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, SMALL)
    return bed.send(large(family))


# --- dropped -------------------------------------------------------------------------------------------------


@case("pass_handed_over")
def new_connection_when_handed_over(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    bed.plane.set_lease(LEASE_HANDED_OVER_NS, 7)
    return bed.send(bytes(from_client(family)))


@case("drop_fenced")
def new_connection_when_fenced(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    fence(bed)
    return bed.send(bytes(from_client(family)))


@case("drop_fenced")
def ping_when_fenced(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    fence(bed)
    return bed.send(echo_request(family, family.vip))


@case("drop_fenced_neighbour")
def neighbour_asks_when_fenced(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    fence(bed)
    return bed.send(neighbour_request(family, family.vip))


@case("drop_vip_guard")
def unserved_port(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, port=22)))


@case("drop_vip_guard")
def unserved_protocol(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, Protocol.UDP)))


@case("drop_vip_guard")
def packet_to_a_snat_address(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    bed.farm(family.snat, (family.far(11), 8080), port=99, farm=2)
    return bed.send(bytes(from_client(family, destination=family.snat)))


@case("drop_no_backend")
def farm_without_backends(bed: Bed, family: Family) -> Outcome:
    bed.farm(family.vip)
    return bed.send(bytes(from_client(family)))


@case("drop_not_compiled")
def mode_that_the_program_does_not_have(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, mode=Mode.DSR)
    return bed.send(bytes(from_client(family)))


@case("drop_not_compiled")
def midstream_in_a_mode_that_the_program_does_not_have(bed: Bed, family: Family) -> Outcome:
    """Its connection may be held back until the program has the mode, so it gets no reset."""
    serve(bed, family, mode=Mode.IPIP, scheduler=Scheduler.ROUNDROBIN)
    outcome = bed.send(bytes(from_client(family, flags="A")))
    assert not outcome.moved.keys() - {"drop_not_compiled"} and bed.flows("embryonic", family) == {}
    return outcome


@case("drop_no_flow")
def midstream_of_a_round_robin_farm(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, scheduler=Scheduler.ROUNDROBIN)
    return bed.send(bytes(from_client(family, flags="A")))


@case("drop_ttl_expired")
def last_hop(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, ttl=1)))


@case("drop_ttl_expired")
def no_hop_at_all(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, ttl=0)))


def fragment(family: Family, offset: int, more: int) -> bytes:
    inner = transport(Protocol.UDP, 40000, 80) / Raw(PAYLOAD)
    ethernet = Ether(src=GATEWAY_MAC, dst=NODE_IN_MAC)
    if family is V4:
        packet = ethernet / IP(src=V4.client, dst=V4.vip, proto=17, flags=more, frag=offset)
    else:
        packet = ethernet / IPv6(src=V6.client, dst=V6.vip) / IPv6ExtHdrFragment(nh=17, offset=offset, m=more)
    return bytes(packet / Raw(bytes(inner)))


@case("drop_martian")
def from_no_host(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, source="127.0.0.1" if family is V4 else "::1")))


@case("drop_no_flow")
def reply_of_a_connection_that_is_gone(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, mode=Mode.DNAT)
    return bed.send(bytes(from_backend(family, family.far(11), family.client, 40000)), "out0")


@case("drop_fragment")
def last_fragment(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, protocol=Protocol.UDP)
    return bed.send(fragment(family, 185, 0))


@case("drop_malformed")
def truncated_header(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family))[: 14 + family.header_bytes + 12])


@case("drop_malformed")
def udp_length_beyond_the_packet(bed: Bed, family: Family) -> Outcome:
    serve(bed, family, protocol=Protocol.UDP)
    packet = from_client(family, Protocol.UDP)
    packet[UDP].len = 8 + len(PAYLOAD) + 1
    return bed.send(bytes(packet))


@case("drop_ipv6_extension")
def too_many_extensions(bed: Bed, family: Family) -> Outcome:
    serve(bed, V6)
    ip = IPv6(src=V6.client, dst=V6.vip) / IPv6ExtHdrHopByHop()
    for _ in range(4):
        ip /= IPv6ExtHdrDestOpt()
    return bed.send(bytes(Ether(dst=NODE_IN_MAC) / ip / transport(6, 40000, 80, "S")))


@case("drop_ipv6_extension")
def source_route(bed: Bed, family: Family) -> Outcome:
    serve(bed, V6)
    ip = IPv6(src=V6.client, dst=V6.vip) / IPv6ExtHdrRouting(type=2, segleft=1, addresses=[V6.other_vip])
    return bed.send(bytes(Ether(dst=NODE_IN_MAC) / ip / transport(6, 40000, 80, "S")))


def other_protocol(family: Family) -> bytes:
    ip = IP(src=V4.client, dst=V4.vip, proto=132) if family is V4 else IPv6(src=V6.client, dst=V6.vip, nh=132)
    return bytes(Ether(dst=NODE_IN_MAC) / ip / Raw(bytes(20)))


@case("drop_protocol")
def neither_tcp_nor_udp(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(other_protocol(family))


@case("drop_no_route")
def backend_behind_no_route(bed: Bed, family: Family) -> Outcome:
    bed.farm(family.vip, (family.unroutable, 8080))
    return bed.send(bytes(from_client(family)))


@case("drop_too_big")
def too_big_and_itself_an_error(bed: Bed, family: Family) -> Outcome:
    """An ICMP error that quotes so much that it does not fit either."""
    serve(bed, family, SMALL)
    bed.send(bytes(from_client(family)))
    reply = network(family, family.vip, family.client) / transport(6, 80, 40000) / Raw(bytes(1400))
    return bed.send(icmp_error(family, family.vip, reply))


@case("drop_internal")
def empty_slot(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    bed.plane.apply([PutSlots(1024, bed.ids(0))])
    return bed.send(bytes(from_client(family)))


@case("drop_internal")
def backend_beyond_the_map(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    bed.plane.apply([PutSlots(1024, bed.ids(1 << 20))])
    return bed.send(bytes(from_client(family)))


@case("event_reset_sent")
def segment_that_cannot_be_forwarded(bed: Bed, family: Family) -> Outcome:
    bed.farm(family.vip)
    return bed.send(bytes(from_client(family)))


@case("event_unreachable_sent")
def datagram_that_cannot_be_forwarded(bed: Bed, family: Family) -> Outcome:
    bed.farm(family.vip, protocol=Protocol.UDP)
    return bed.send(bytes(from_client(family, Protocol.UDP)))


@case("event_time_exceeded_sent")
def last_hop_reported(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return bed.send(bytes(from_client(family, ttl=1)))


# --- events --------------------------------------------------------------------------------------------------


def establish(bed: Bed, family: Family) -> Outcome:
    bed.send(bytes(from_client(family)))
    bed.send(bytes(from_backend(family, family.far(11), family.vip, 40000)), "out0")
    return bed.send(bytes(from_client(family, flags="A")))


@case("event_promoted")
def client_answers(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    return establish(bed, family)


@case("event_flow_table_full")
def client_answers_a_full_map(bed: Bed, family: Family) -> Outcome:
    serve(bed, family)
    bed.fill_flows(family)
    outcome = establish(bed, family)
    assert outcome.verdict == "forward_redirect"
    assert "event_promoted" not in outcome.moved
    return outcome
