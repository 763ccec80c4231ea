"""Frames of VLANs, handled on the interface below the VLAN device; the tests marked `vlans` in other modules run so too."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from bpf.constants import LEASE_HANDED_OVER_NS, MAX_INTERFACES, Mode, Protocol, VipFlag
from bpf.dataplane import PlaneError, Vlan
from tests.bpf.bed import (
    DROP,
    GATEWAY_MAC,
    NODE_IN_MAC,
    NODE_OUT_MAC,
    PASS,
    SMALL,
    SMALL_MTU,
    TX,
    UNRESOLVED,
    V4,
    Bed,
    Family,
    backend_mac,
    why_not,
)
from tests.bpf.packets import arp, echo_request, from_backend, from_client, rewritten, solicitation
from tests.bpf.tagged_bed import AD, PRIORITY, WIRINGS, Port, Q, TaggedBed

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def tagged(frame: bytes, *tags: tuple[int, int], priority: int = PRIORITY) -> bytes:
    """With these tags, (protocol, VLAN), in front."""
    words = (protocol.to_bytes(2, "big") + (priority << 13 | number).to_bytes(2, "big") for protocol, number in tags)
    return frame[:12] + b"".join(words) + frame[12:]


def question(family: Family, target: str) -> bytes:
    return arp(target) if family is V4 else solicitation(target)


@pytest.mark.parametrize("priority", [0, 3, 7])
def test_what_goes_to_the_kernel_is_as_it_came(tagged_bed: TaggedBed, family: Family, priority: int) -> None:
    bed, wire0 = tagged_bed, tagged_bed.indexes["wire0"]
    bed.farm(family.vip, (family.far(11), 8080))
    bed.farm(family.other_vip, (family.far(11), 8080), flags=VipFlag.OPEN, farm=2)
    for frame, verdict in (
        (question(family, family.vip), "pass_neighbour"),
        (question(family, family.near(1)), "pass_not_ip" if family is V4 else "pass_not_ours"),
        (echo_request(family, family.vip), "pass_vip_icmp"),
        (bytes(from_client(family, destination=family.near(1))), "pass_not_ours"),
        (bytes(from_client(family, destination=family.other_vip, port=81)), "pass_vip_open"),
    ):
        whole = tagged(frame, (Q, 100), priority=priority)
        out = bed.run(whole, wire0, tags=1)
        assert (out.verdict, out.frame) == (verdict, whole)


def test_after_a_hand_over_the_kernel_forwards_to_the_peer(tagged_bed: TaggedBed, family: Family) -> None:
    tagged_bed.farm(family.vip, (family.far(11), 8080))
    tagged_bed.plane.set_lease(LEASE_HANDED_OVER_NS, 7)
    frame = bytes(from_client(family))
    out = tagged_bed.send(frame)
    assert (out.verdict, out.frame) == ("pass_handed_over", frame)


def test_what_the_fast_path_gives_to_the_kernel_has_its_tag(tagged_bed: TaggedBed, family: Family) -> None:
    """A known flow: after a hand-over as it came, and rewritten where the kernel is to fragment it."""
    bed = tagged_bed
    bed.farm(family.vip, (family.far(SMALL), 8080), protocol=Protocol.UDP)
    short, long = (from_client(family, Protocol.UDP, payload=bytes(length)) for length in (20, SMALL_MTU))
    answer = from_backend(family, family.far(SMALL), family.vip, 40000, Protocol.UDP, source_mac=backend_mac(SMALL))
    for packet, side in ((short, "in0"), (answer, "out0"), (short, "in0"), (short, "in0")):
        assert bed.send(bytes(packet), side).verdict == "forward_redirect"
    assert len(bed.flows("flows", family)) == 2
    out = bed.send(bytes(long))
    if family is V4:
        expected = rewritten(long, (family.vip, 40000), (family.far(SMALL), 8080), None, hops=0)
        assert (out.verdict, out.frame) == ("pass_too_big", expected)
    else:
        assert out.verdict == "forward_too_big"
    bed.plane.set_lease(LEASE_HANDED_OVER_NS, 7)
    out = bed.send(bytes(short))
    assert (out.verdict, out.frame) == ("pass_handed_over", bytes(short))
    bed.plane.set_lease(0, 7)
    assert bed.send(bytes(short)).verdict == "drop_fenced"


def test_a_fenced_node_learns_from_a_tagged_announcement(tagged_bed: TaggedBed) -> None:
    tagged_bed.farm(V4.vip, (V4.far(11), 8080))
    tagged_bed.plane.set_lease(0, 7)
    assert tagged_bed.send(arp(V4.vip)).verdict == "drop_fenced_neighbour"
    request = Ether(arp(V4.vip))
    request.psrc = V4.vip
    out = tagged_bed.send(bytes(request))
    assert out.verdict == "pass_neighbour" and Ether(out.frame).op == 2


@pytest.mark.parametrize(
    "tags",
    [((Q, 101),), ((AD, 100),), ((Q, 100), (Q, 200)), ((Q, 101), (Q, 100)), ((Q, 0), (Q, 101)), ((Q, 0), (Q, 100), (Q, 200))],
    ids=str,
)
@pytest.mark.parametrize("deadline", [0, LEASE_HANDED_OVER_NS])
def test_another_vlan_is_the_kernels(
    tagged_bed: TaggedBed, family: Family, tags: tuple[tuple[int, int], ...], deadline: int
) -> None:
    """Also one of the same number and another protocol, and a VLAN in a VLAN, fenced or not."""
    tagged_bed.farm(family.vip, (family.far(11), 8080))
    tagged_bed.plane.set_lease(deadline, 7)
    for frame in (tagged(bytes(from_client(family)), *tags), tagged(question(family, family.vip), *tags)):
        out = tagged_bed.run(frame, tagged_bed.indexes["wire0"])
        assert (out.verdict, out.frame) == ("pass_not_ip", frame)


@pytest.mark.parametrize("tags", [(), ((Q, 0),)], ids=str)
def test_untagged_frames_of_an_interface_that_is_only_below_vlans_are_the_kernels(
    tagged_bed: TaggedBed, family: Family, tags: tuple[tuple[int, int], ...]
) -> None:
    bed, wire0 = tagged_bed, tagged_bed.indexes["wire0"]
    bed.farm(family.vip, (family.far(11), 8080))
    bed.plane.set_lease(0, 7)
    frames = [tagged(frame, *tags) for frame in (bytes(from_client(family)), question(family, family.vip))]
    for frame in frames:
        out = bed.run(frame, wire0)
        assert (out.verdict, out.frame) == ("pass_not_ip", frame)
    bed.plane.set_vlans([Vlan(bed.in0, wire0, 100)], [wire0])
    assert bed.run(frames[0], wire0, tags=len(tags)).verdict == "drop_fenced"


@pytest.mark.parametrize(
    "tags", [((Q, 0), (Q, 100)), ((AD, 0), (Q, 0), (Q, 100)), ((Q, 100), (Q, 0)), ((Q, 0), (Q, 100), (Q, 0))], ids=str
)
def test_priority_tags_around_the_vlans_own(tagged_bed: TaggedBed, family: Family, tags: tuple[tuple[int, int], ...]) -> None:
    """Linux removes them, so the fence must; the kernel gets them back."""
    bed, wire0 = tagged_bed, tagged_bed.indexes["wire0"]
    bed.farm(family.vip, (family.far(11), 8080))
    packet = from_client(family)
    plain = bed.send(bytes(packet)).frame
    out = bed.run(tagged(bytes(packet), *tags), wire0, tags=len(tags))
    assert (out.verdict, out.frame) == ("forward_redirect", tagged(plain, (AD, 200), priority=0))
    ping = tagged(echo_request(family, family.vip), *tags)
    out = bed.run(ping, wire0, tags=len(tags))
    assert (out.verdict, out.frame) == ("pass_vip_icmp", ping)
    bed.plane.set_lease(0, 7)
    assert bed.run(ping, wire0, tags=len(tags)).verdict == "drop_fenced"


def test_more_tags_than_are_removed_do_not_pass_a_closed_fence(tagged_bed: TaggedBed, family: Family) -> None:
    bed, wire0 = tagged_bed, tagged_bed.indexes["wire0"]
    bed.farm(family.vip, (family.far(11), 8080))
    frame = tagged(bytes(from_client(family)), (Q, 100), (Q, 0), (Q, 0), (Q, 0))
    out = bed.run(frame, wire0)
    assert (out.verdict, out.frame) == ("pass_not_ip", frame)
    bed.plane.set_lease(0, 7)
    assert bed.run(frame, wire0).verdict == "drop_fenced"


def test_frames_too_short_for_their_tags_pass(tagged_bed: TaggedBed) -> None:
    frame = tagged(bytes(from_client(V4)), (Q, 100), (Q, 0))
    for length in range(14, 23):
        cut = frame[:length]
        out = tagged_bed.run(cut, tagged_bed.indexes["wire0"], tags=2 if length == 22 else 0)
        assert (out.verdict.split("_")[0], out.frame) == ("pass", cut)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda protocol: protocol.name.lower())
def test_every_wiring(tagged_bed: TaggedBed, family: Family, protocol: Protocol, wiring: str) -> None:
    bed = tagged_bed
    bed.plug(*WIRINGS[wiring])
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol)
    out, back = (family.vip, 40000), (family.vip, 80)
    for flags in ("S", "A", "A"):
        packet = from_client(family, protocol, flags)
        there = rewritten(packet, out, (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
        answer = from_backend(family, family.far(11), family.vip, 40000, protocol)
        here = rewritten(answer, back, (family.client, 40000), (NODE_IN_MAC, GATEWAY_MAC))
        for frame, side, expected in ((packet, "in0", there), (answer, "out0", here)):
            sent = bed.send(bytes(frame), side)
            assert (sent.verdict, sent.frame) == ("forward_redirect", expected)
    assert len(bed.flows("flows", family)) == 2


def test_in_and_out_by_one_vlan(tagged_bed: TaggedBed, family: Family) -> None:
    tagged_bed.farm(family.vip, (family.near(11), 8080), protocol=Protocol.UDP)
    out = tagged_bed.send(bytes(from_client(family, Protocol.UDP)))
    assert (out.verdict, out.action) == ("forward_tx", TX)


def test_a_connection_survives_a_vlan_device_with_another_index(tagged_bed: TaggedBed, family: Family) -> None:
    """Its flows have the index of the old one until the FIB is asked again."""
    bed, index = tagged_bed, tagged_bed.indexes
    bed.farm(family.vip, (family.far(11), 8080))
    packet = from_client(family)
    before = bed.send(bytes(packet))
    bed.plane.set_vlans([Vlan(index["in0"], index["wire1"], 100)], [])
    assert bed.run(tagged(bytes(packet), (Q, 100)), index["wire0"]).verdict == "pass_not_ip"
    bed.plug(Port("wire1", 300), Port("wire0", 100))
    after = bed.send(bytes(packet))
    assert (after.verdict, after.frame) == (before.verdict, before.frame)


def test_the_dnat_reply_of_no_flow_is_looked_up_from_the_vlan_device(tagged_bed: TaggedBed, family: Family) -> None:
    tagged_bed.farm(family.vip, (family.far(11), 8080), protocol=Protocol.UDP, mode=Mode.DNAT)
    frame = bytes(from_backend(family, family.far(11), family.client, 5000, Protocol.UDP))
    assert tagged_bed.send(frame, "out0").verdict == "drop_no_flow"


def test_an_expired_hop_limit_is_reported_from_the_address_of_the_vlan_device(tagged_bed: TaggedBed, family: Family) -> None:
    """As of any interface: Linux before 6.7 does not tell it."""
    tagged_bed.farm(family.vip, (family.far(11), 8080))
    out = tagged_bed.send(bytes(from_client(family, ttl=1)))
    report = Ether(out.frame)
    assert (out.verdict, out.action) == ("drop_ttl_expired", TX)
    assert (report.src, report.dst, report.payload.src) == (NODE_IN_MAC, GATEWAY_MAC, family.near(1))


def test_a_drop_without_an_answer_stays_one(tagged_bed: TaggedBed, family: Family) -> None:
    tagged_bed.farm(family.vip, (family.far(11), 8080))
    assert tagged_bed.send(bytes(from_client(family, port=81))).action == DROP


def test_the_kernel_resolves_and_forwards_by_the_vlan(tagged_bed: TaggedBed, family: Family) -> None:
    tagged_bed.farm(family.vip, (family.far(UNRESOLVED), 8080))
    packet = from_client(family)
    out = tagged_bed.send(bytes(packet))
    assert (out.verdict, out.action) == ("pass_unresolved", PASS)
    assert out.frame == rewritten(packet, (family.vip, 40000), (family.far(UNRESOLVED), 8080), None, hops=0)


# --- the maps ------------------------------------------------------------------------------------------------


def test_the_maps_have_what_was_written_last(tagged_bed: TaggedBed) -> None:
    bed, index = tagged_bed, tagged_bed.indexes
    wanted = {Vlan(index["in0"], index["wire0"], 7), Vlan(index["out0"], index["wire0"], 4094, AD)}
    generation = int(bed.plane._read_one("globals")["next_hop_generation"])
    bed.plane.set_vlans(wanted, [])
    assert bed.plane.vlans() == wanted
    assert int(bed.plane._read_one("globals")["next_hop_generation"]) != generation
    bed.plane.set_vlans([], [])
    assert bed.plane.vlans() == frozenset()
    packet = bytes(from_client(V4, destination=V4.near(1)))
    assert bed.run(packet, index["wire0"]).verdict == "pass_not_ip", "no VLAN is left, and the interface was never named"
    bed.plane.set_vlans([], [index["wire0"]])
    assert bed.run(packet, index["wire0"]).verdict == "pass_not_ours"


def test_a_build_without_vlans_has_none(bed: Bed) -> None:
    assert bed.plane.vlans() == frozenset()
    with pytest.raises(PlaneError, match="built without VLANs"):
        bed.plane.set_vlans([], [])


def test_an_interface_with_a_large_index_is_balanced_as_it_is(tagged_bed: TaggedBed) -> None:
    tagged_bed.plane.set_vlans([], [MAX_INTERFACES + 5])
    assert tagged_bed.plane.vlans() == frozenset()


def test_the_mtu_is_that_of_the_vlan_device(tagged_bed: TaggedBed) -> None:
    """Its own, whatever the interface below permits."""
    tagged_bed.farm(V4.vip, (V4.far(11), 8080))
    packet = from_client(V4, payload=bytes(1500))
    packet[IP].flags = "DF"
    assert tagged_bed.send(bytes(packet)).verdict == "forward_too_big"
    assert tagged_bed.send(bytes(from_client(V4, payload=bytes(1500 - 40)))).verdict == "forward_redirect"
