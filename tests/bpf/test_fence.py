"""The fence: before the deadline everything is forwarded, after it no packet of a VIP is, and other packets always pass."""

from __future__ import annotations

import time

import pytest

from bpf.constants import LEASE_FOREVER_NS, LEASE_HANDED_OVER_NS, Mode, Protocol
from ctl.network.kernel.announcements import announcement
from tests.bpf.bed import V4, V6, Bed, Family
from tests.bpf.connections import establish
from tests.bpf.packets import arp, echo_request, from_backend, from_client, icmp_error, network, solicitation, transport

SECOND_NS = 1_000_000_000


def lease(bed: Bed, seconds: float) -> None:
    bed.plane.set_lease(time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * SECOND_NS), 7)


def everything(bed: Bed, family: Family) -> dict[str, str]:
    """The verdicts on one packet of every kind that concerns a VIP."""
    question = arp(V4.vip) if family is V4 else solicitation(V6.vip)
    reply = from_backend(family, family.far(11), family.vip, 40000, flags="A")
    half_open = from_backend(family, family.far(11), family.vip, 40001)
    return {
        "new": bed.send(bytes(from_client(family, source_port=40002))).verdict,
        "forward": bed.send(bytes(from_client(family, flags="A"))).verdict,
        "reply": bed.send(bytes(reply), "out0").verdict,
        "half-open": bed.send(bytes(from_client(family, source_port=40001))).verdict,
        "half-open reply": bed.send(bytes(half_open), "out0").verdict,
        "unserved": bed.send(bytes(from_client(family, port=22))).verdict,
        "ping": bed.send(echo_request(family, family.vip)).verdict,
        "neighbour": bed.send(question).verdict,
    }


def prepare(bed: Bed, family: Family, mode: Mode = Mode.SNAT) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=mode)
    if mode is Mode.SNAT:
        establish(bed, family)
    bed.send(bytes(from_client(family, source_port=40001)))


OPEN = {
    "new": "forward_redirect",
    "forward": "forward_redirect",
    "reply": "forward_redirect",
    "half-open": "forward_redirect",
    "half-open reply": "forward_redirect",
    "unserved": "drop_vip_guard",
    "ping": "pass_vip_icmp",
    "neighbour": "pass_neighbour",
}
CLOSED = {kind: "drop_fenced_neighbour" if kind == "neighbour" else "drop_fenced" for kind in OPEN}


def test_an_open_lease_forwards(bed: Bed, family: Family) -> None:
    prepare(bed, family)
    lease(bed, 60)
    assert everything(bed, family) == OPEN


def test_an_expired_lease_fences_everything_of_a_vip(bed: Bed, family: Family) -> None:
    prepare(bed, family)
    before = bed.map_state(family)
    lease(bed, -0.01)
    assert everything(bed, family) == CLOSED
    assert bed.map_state(family) == before
    lease(bed, 60)
    assert everything(bed, family) == OPEN


def test_a_fresh_node_holds_no_lease(bed: Bed, family: Family) -> None:
    prepare(bed, family)
    bed.plane.set_lease(0, 0)
    assert everything(bed, family) == CLOSED


def test_packets_for_a_vip_that_was_handed_over_go_to_the_kernel(bed: Bed, family: Family) -> None:
    prepare(bed, family)
    before = bed.map_state(family)
    bed.plane.set_lease(LEASE_HANDED_OVER_NS, 7)
    assert everything(bed, family) == {
        kind: "drop_fenced_neighbour" if kind == "neighbour" else "pass_handed_over" for kind in OPEN
    }
    assert bed.map_state(family) == before


def test_a_reply_that_keeps_its_client_is_not_handed_over(bed: Bed, family: Family) -> None:
    """The kernel would forward it to the client as it is: from the backend's address, which the client never asked."""
    prepare(bed, family, Mode.DNAT)
    reply = bytes(from_backend(family, family.far(11), family.client, 40001))
    assert bed.send(reply, "out0").verdict == "forward_redirect"
    bed.plane.set_lease(LEASE_HANDED_OVER_NS, 7)
    assert bed.send(reply, "out0").verdict == "drop_fenced"


def test_the_deadline_of_a_single_node_never_comes(bed: Bed, family: Family) -> None:
    prepare(bed, family)
    bed.plane.set_lease(LEASE_FOREVER_NS, 1)
    assert everything(bed, family) == OPEN


def test_a_deadline_passes_by_itself(bed: Bed, family: Family) -> None:
    """Without another write to the map: the program detects it within two steps of the coarse clock."""
    bed.farm(family.vip, (family.far(11), 8080))
    packet = bytes(from_client(family))
    deadline = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + SECOND_NS // 5
    bed.plane.set_lease(deadline, 1)
    assert bed.send(packet).verdict == "forward_redirect"
    while (now := time.clock_gettime_ns(time.CLOCK_MONOTONIC)) < deadline + 20_000_000:
        verdict = bed.send(packet).verdict
        if now < deadline - 20_000_000:
            assert verdict == "forward_redirect" or time.clock_gettime_ns(time.CLOCK_MONOTONIC) >= deadline
    assert bed.send(packet).verdict == "drop_fenced"


def test_dnat_replies_are_fenced_though_no_vip_is_in_them(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080), mode=Mode.DNAT)
    bed.send(bytes(from_client(family)))
    reply = bytes(from_backend(family, family.far(11), family.client, 40000))
    assert bed.send(reply, "out0").verdict == "forward_redirect"
    lease(bed, -1)
    assert bed.send(reply, "out0").verdict == "drop_fenced"


def test_a_snat_address_is_fenced_too(bed: Bed, family: Family) -> None:
    bed.farm(family.snat, port=1, farm=2)
    bed.farm(family.vip, (family.far(11), 8080), snat=family.snat)
    bed.send(bytes(from_client(family)))
    lease(bed, -1)
    assert bed.send(bytes(from_backend(family, family.far(11), family.snat, 40000)), "out0").verdict == "drop_fenced"
    question = arp(family.snat) if family is V4 else solicitation(family.snat)
    assert bed.send(question).verdict == "drop_fenced_neighbour"


def test_an_announcement_passes_a_closed_fence(bed: Bed, family: Family) -> None:
    """After a hand-over, the node must learn the new MAC of the VIP, or its kernel queues packets for a second."""
    bed.farm(family.vip, (family.far(11), 8080))
    lease(bed, -1)
    frame = announcement(family.vip, "02:00:00:00:00:77")
    assert bed.send(frame).verdict == ("pass_neighbour" if family is V4 else "pass_not_ours")


@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
def test_traffic_of_others_is_never_touched(bed: Bed, family: Family, protocol: Protocol) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    lease(bed, -1)
    packets = [
        bytes(from_client(family, protocol, destination=family.other_vip)),
        bytes(from_client(family, protocol, destination=family.near(1))),
        bytes(from_backend(family, family.far(11), family.client, 5000, protocol)),
        echo_request(family, family.near(1)),
        arp("10.1.0.1"),
        solicitation("fd01::1"),
    ]
    for packet in packets:
        outcome = bed.send(packet)
        assert outcome.verdict in ("pass_not_ours", "pass_not_ip")
        assert outcome.frame == packet


def test_an_icmp_error_about_a_flow_is_fenced(bed: Bed, family: Family) -> None:
    prepare(bed, family)
    error = icmp_error(family, family.vip, network(family, family.vip, family.client) / transport(6, 80, 40000))
    assert bed.send(error).verdict == "forward_icmp_error"
    lease(bed, -1)
    assert bed.send(error).verdict == "drop_fenced"
