"""The fence: before the deadline everything is forwarded, after it no packet of a VIP is, and other packets always pass."""

from __future__ import annotations

import time

import pytest
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, Ether

from bpf.constants import LEASE_FOREVER_NS, LEASE_HANDED_OVER_NS, Mode, Protocol
from ctl.network.kernel.announcements import announcement
from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, V4, V6, Bed, Family
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
    quoted = network(family, family.vip, family.client) / transport(Protocol.TCP, 80, 40000)
    return {
        "new": bed.send(bytes(from_client(family, source_port=40002))).verdict,
        "forward": bed.send(bytes(from_client(family, flags="A"))).verdict,
        "reply": bed.send(bytes(reply), "out0").verdict,
        "half-open": bed.send(bytes(from_client(family, source_port=40001))).verdict,
        "half-open reply": bed.send(bytes(half_open), "out0").verdict,
        "unserved": bed.send(bytes(from_client(family, port=22))).verdict,
        "ping": bed.send(echo_request(family, family.vip)).verdict,
        "neighbour": bed.send(question).verdict,
        "ICMP error": bed.send(icmp_error(family, family.vip, quoted)).verdict,
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
    "ICMP error": "forward_icmp_error",
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
    """Without another write to the map, and exactly: the program reads the precise clock when the deadline is close."""
    bed.farm(family.vip, (family.far(11), 8080))
    packet = bytes(from_client(family))
    deadline = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + SECOND_NS // 5
    bed.plane.set_lease(deadline, 1)
    verdicts = set()
    while (before := time.clock_gettime_ns(time.CLOCK_MONOTONIC)) < deadline + 20_000_000:
        verdict = bed.send(packet).verdict
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if before >= deadline:
            assert verdict == "drop_fenced", f"{before - deadline} ns after the deadline"
        elif after < deadline:
            assert verdict == "forward_redirect", f"{deadline - after} ns before the deadline"
        verdicts.add(verdict)
    assert verdicts == {"forward_redirect", "drop_fenced"}


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


@pytest.mark.parametrize("deadline", [0, LEASE_HANDED_OVER_NS], ids=["expired", "handed over"])
def test_a_fenced_kernel_learns_from_an_announcement_and_cannot_answer_it(bed: Bed, family: Family, deadline: int) -> None:
    """Linux answers a gratuitous request for an address it owns, but no reply (arp_process in net/ipv4/arp.c)."""
    bed.farm(family.vip, (family.far(11), 8080))
    frame = announcement(family.vip, bytes.fromhex("020000000077"))
    assert bed.send(frame).frame == frame
    bed.plane.set_lease(deadline, 7)
    out = bed.send(frame)
    if family is V6:
        assert (out.verdict, out.frame) == ("pass_not_ours", frame)
        return
    expected = Ether(frame)
    expected[ARP].op, expected[ARP].hwdst = 2, "02:00:00:00:00:77"
    assert (out.verdict, out.frame) == ("pass_neighbour", bytes(expected))
    assert bed.send(arp(V4.vip, operation=2)).verdict == "pass_not_ip"


def probe(family: Family) -> bytes:
    """Is the VIP in use? (RFC 5227; RFC 4862 duplicate address detection)"""
    if family is V4:
        question = ARP(op=1, hwsrc=GATEWAY_MAC, psrc="0.0.0.0", pdst=V4.vip)
        return bytes(Ether(src=GATEWAY_MAC, dst="ff:ff:ff:ff:ff:ff") / question)
    packet = Ether(solicitation(V6.vip))
    packet[IPv6].src = "::"
    del packet[ICMPv6ND_NS].cksum
    return bytes(packet)


def asked_directly(family: Family) -> bytes:
    """A neighbour verifies its entry: to the address itself (RFC 4861 7.3)."""
    packet = Ether(arp(V4.vip) if family is V4 else solicitation(V6.vip))
    packet.dst = NODE_IN_MAC
    if family is V6:
        packet[IPv6].dst = V6.vip
        del packet[ICMPv6ND_NS].cksum
    return bytes(packet)


def hidden_question(extensions: int) -> bytes:
    """A solicitation behind extension headers, all of which Linux skips."""
    packet = Ether(solicitation(V6.vip))
    layers = packet[IPv6].copy()
    question = layers[ICMPv6ND_NS].copy()
    layers.remove_payload()
    for _ in range(extensions):
        layers = layers / IPv6ExtHdrDestOpt()
    del layers.nh, layers.plen
    return bytes(Ether(src=GATEWAY_MAC) / layers / question)


def test_no_question_for_a_vip_passes_a_closed_fence(bed: Bed, family: Family) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    questions = [probe(family), asked_directly(family)]
    if family is V6:
        questions += [hidden_question(1), hidden_question(4)]
    for question in questions:
        bed.plane.set_lease(LEASE_FOREVER_NS, 7)
        assert bed.send(question).verdict == "pass_neighbour"
        bed.plane.set_lease(0, 7)
        assert bed.send(question).verdict == "drop_fenced_neighbour"


def test_a_question_that_is_not_understood_does_not_pass(bed: Bed) -> None:
    """More extension headers than the program reads, but not more than Linux does."""
    bed.farm(V6.vip, (V6.far(11), 8080))
    assert bed.send(hidden_question(5)).verdict == "pass_not_ours"
    bed.plane.set_lease(0, 7)
    assert bed.send(hidden_question(5)).verdict == "drop_fenced_neighbour"


def tagged(frame: bytes, *tags: int, vlan: int = 0) -> bytes:
    """With these EtherTypes of tags in front, priority 5."""
    return frame[:12] + b"".join(tag.to_bytes(2, "big") + (5 << 13 | vlan).to_bytes(2, "big") for tag in tags) + frame[12:]


TAGS = {"802.1Q": (0x8100,), "802.1ad": (0x88A8,), "both": (0x88A8, 0x8100)}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_priority_tagged_frames_are_handled_like_untagged_ones(bed: Bed, family: Family, tags: tuple[int, ...]) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    question = arp(V4.vip) if family is V4 else solicitation(V6.vip)
    frames = [bytes(from_client(family)), question, echo_request(family, family.vip)]
    open_verdicts = ["forward_redirect", "pass_neighbour", "pass_vip_icmp"]
    for frame, verdict in zip(frames, open_verdicts, strict=True):
        untagged = bed.send(frame)
        out = bed.send(tagged(frame, *tags), tags=len(tags))
        assert (out.verdict, out.frame) == (untagged.verdict, untagged.frame) and out.verdict == verdict
    bed.plane.set_lease(0, 7)
    verdicts = [bed.send(tagged(frame, *tags), tags=len(tags)).verdict for frame in frames]
    assert verdicts == ["drop_fenced", "drop_fenced_neighbour", "drop_fenced"]


def test_more_priority_tags_than_are_removed_do_not_pass_a_closed_fence(bed: Bed, family: Family) -> None:
    """Linux would remove any number of them."""
    bed.farm(family.vip, (family.far(11), 8080))
    frame = tagged(bytes(from_client(family)), 0x8100, 0x8100, 0x8100)
    out = bed.send(frame)
    assert (out.verdict, out.frame) == ("pass_not_ip", frame)
    bed.plane.set_lease(0, 7)
    assert bed.send(frame).verdict == "drop_fenced"


@pytest.mark.parametrize("deadline", [0, LEASE_FOREVER_NS], ids=["fenced", "open"])
def test_frames_of_a_vlan_are_never_touched(bed: Bed, family: Family, deadline: int) -> None:
    bed.farm(family.vip, (family.far(11), 8080))
    bed.plane.set_lease(deadline, 7)
    inside = tagged(bytes(from_client(family)), 0x8100, vlan=10)
    for frame in (inside, tagged(inside, 0x8100), tagged(bytes(from_client(family)), 0x8100)[:17]):
        out = bed.send(frame)
        assert (out.verdict, out.frame) == ("pass_not_ip", frame)


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
