"""What the program that records packets writes of each kind of packet, and which of them its filter selects."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf.constants import COUNTERS, Mode, Protocol
from bpf.dataplane import CaptureFilter
from bpf.kernel.capture import CaptureMaps
from bpf.loading.loader import CAPTURE
from ctl.capture.record import Record, decode
from tests.bpf.bed import DROP, FAMILIES, REDIRECT, TX, V4, Family, Outcome, why_not
from tests.bpf.beds import TUNNEL_SOURCES
from tests.bpf.packets import arp, cut, from_backend, from_client, icmp_error, network, transport
from tests.bpf.tagged_bed import WIRINGS, Port, TaggedBed

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

FOREVER_NS = 2**64 - 1
FARM, BACKEND = 1, 8
NUMBERS = {counter.name: number for number, counter in enumerate(COUNTERS)}
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


class CapturingBed(TaggedBed):
    """maps: of the capture, which records everything unless a test says otherwise."""

    maps: CaptureMaps

    def seen(self, frame: bytes, side: str = "in0") -> tuple[Outcome, Record]:
        """Send one frame; it must be recorded, and truly."""
        outcome = self.send(frame, side)
        (record,) = self.records()
        assert record.verdict.name == outcome.verdict and record.action == outcome.action
        assert {each.name for each in record.events} == {name for name in outcome.moved if name.startswith("event_")}
        assert record.entered_ns < record.left_ns
        return outcome, record

    def records(self) -> list[Record]:
        return [decode(each) for each in self.maps.read()]

    def select(self, **fields: object) -> None:
        self.maps.record(CaptureFilter(**fields), FOREVER_NS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made() -> Iterator[CapturingBed]:
    with CapturingBed({CAPTURE: True, "vlans": True, "ipip": True}) as bed, CaptureMaps(bed.pins) as maps:
        bed.maps = maps
        yield bed


@pytest.fixture
def bed(made: CapturingBed) -> CapturingBed:
    made.plug(Port("in0"), Port("out0"))
    made.reset()
    made.maps.skip()
    made.select()
    return made


def serve(bed: CapturingBed, family: Family, protocol: int = Protocol.TCP, mode: Mode = Mode.SNAT) -> None:
    bed.farm(family.vip, (family.far(11), 8080), protocol=protocol, mode=mode)


@families
@pytest.mark.parametrize("protocol", list(Protocol), ids=lambda each: each.name.lower())
def test_both_directions_of_a_connection(bed: CapturingBed, family: Family, protocol: Protocol) -> None:
    serve(bed, family, protocol)
    there, back = from_client(family, protocol), from_backend(family, family.far(11), family.vip, 40000, protocol)
    known = from_client(family, protocol, "A")
    for packet, side, ways in ((there, "in0", (bed.in0, bed.out0)), (back, "out0", (bed.out0, bed.in0)), (known, "in0", None)):
        outcome, record = bed.seen(bytes(packet), side)
        assert outcome.action == REDIRECT and (record.farm, record.backend) == (FARM, BACKEND)
        assert ways in (None, (record.ingress, record.egress))
        assert record.before.content == bytes(packet) and record.after is not None and record.after.content == outcome.frame
        assert record.before.length == len(bytes(packet)) and record.changed
    assert [each.name for each in record.events] == ["event_promoted"]


@families
def test_a_refused_connection_shows_the_answer(bed: CapturingBed, family: Family) -> None:
    bed.farm(family.vip)
    outcome, record = bed.seen(bytes(from_client(family)))
    assert outcome.action == TX and record.after is not None and record.after.content == outcome.frame
    assert (record.verdict.name, record.farm, record.backend) == ("drop_no_backend", FARM, 0)
    assert [each.name for each in record.events] == ["event_reset_sent"] and record.egress == record.ingress == bed.in0


@families
def test_drops_name_the_farm_wherever_they_happen(bed: CapturingBed, family: Family) -> None:
    """Before it was looked for, at its port; after, with the backend; and at a port of no farm."""
    serve(bed, family)
    syn = bytes(from_client(family))
    bed.seen(syn)
    _, late = bed.seen(bytes(from_client(family, flags="A", ttl=1)))
    assert (late.verdict.name, late.farm, late.backend) == ("drop_ttl_expired", FARM, BACKEND)
    bed.plane.set_lease(0, 1)
    _, fenced = bed.seen(bytes(from_client(family, source_port=40001)))
    assert (fenced.verdict.name, fenced.farm, fenced.backend, fenced.after) == ("drop_fenced", FARM, 0, None)
    bed.plane.set_lease(FOREVER_NS, 1)
    guarded = from_client(family)
    guarded["TCP"].dport = 81
    outcome, record = bed.seen(bytes(Ether(bytes(guarded))))
    assert outcome.action == DROP and (record.verdict.name, record.farm) == ("drop_vip_guard", 0)


def test_what_the_kernel_gets_as_it_came_is_not_changed(bed: CapturingBed) -> None:
    serve(bed, V4)
    _, record = bed.seen(arp(V4.vip))
    assert record.verdict.name == "pass_neighbour" and not record.changed
    _, record = bed.seen(bytes(from_client(V4, destination="10.2.0.12")))
    assert record.verdict.name == "pass_not_ours" and not record.changed and record.farm == 0


@families
def test_an_error_and_fragments_follow_their_flow(bed: CapturingBed, family: Family) -> None:
    serve(bed, family, Protocol.UDP)
    frames = cut(from_client(family, Protocol.UDP, payload=bytes(2500)))
    for number, frame in enumerate(frames):
        outcome, record = bed.seen(frame)
        assert outcome.verdict == "forward_redirect" and (record.farm, record.backend) == (FARM, BACKEND), number
    sent = network(family, family.vip, family.client) / transport(Protocol.UDP, 80, 40000) / Raw(bytes(8))
    bed.select(client=ipaddress.ip_network(family.client), farm=FARM, backends=frozenset({BACKEND}))
    outcome, record = bed.seen(icmp_error(family, family.vip, sent))
    assert outcome.verdict == "forward_icmp_error" and (record.farm, record.backend) == (FARM, BACKEND)


@families
def test_a_tunnel_shows_the_outer_header(bed: CapturingBed, family: Family) -> None:
    bed.plane.set_tunnel_sources(TUNNEL_SOURCES["v4"], TUNNEL_SOURCES["v6"])
    bed.farm(family.vip, (family.far(11), 80), mode=Mode.IPIP)
    for flags in ("S", "A"):
        outcome, record = bed.seen(bytes(from_client(family, flags=flags)))
        assert record.after is not None and record.after.content == outcome.frame
        assert record.after.length == record.before.length + (20 if family is V4 else 40)
        assert (record.farm, record.backend) == (FARM, BACKEND)


@families
def test_tags_are_in_the_packet_before_and_after(bed: CapturingBed, family: Family) -> None:
    bed.plug(*WIRINGS["one interface"])
    serve(bed, family)
    for flags in ("S", "A"):
        bed.send(bytes(from_client(family, flags=flags)))
        (record,) = bed.records()
        assert record.after is not None
        tags = [packet.content[12:16].hex() for packet in (record.before, record.after)]
        assert tags[0].startswith("8100") and int(tags[0], 16) & 0xFFF == 100 and tags[1] == "810000c8"
        assert record.ingress == record.egress == bed.indexes["wire0"]


@families
def test_the_filter_selects_in_the_kernel(bed: CapturingBed, family: Family) -> None:
    """The client's packets, its replies also where they are dropped, and nothing of others."""
    serve(bed, family)
    client, other = (
        ipaddress.ip_network(family.client),
        ipaddress.ip_network("203.0.113.0/24" if family is V4 else "2001:db8:f::/48"),
    )
    there, back = bytes(from_client(family)), bytes(from_backend(family, family.far(11), family.vip, 40000))
    dying = from_backend(family, family.far(11), family.vip, 40000, ttl=1)
    sent = ((there, "in0"), (back, "out0"), (bytes(dying), "out0"))
    drop = frozenset({NUMBERS["drop_ttl_expired"]})
    for fields, verdicts in (
        ({"client": client}, ["forward_redirect", "forward_redirect", "drop_ttl_expired"]),
        ({"client": other}, []),
        ({"farm": FARM}, ["forward_redirect", "forward_redirect", "drop_ttl_expired"]),
        ({"farm": FARM + 1}, []),
        ({"backends": frozenset({BACKEND})}, ["forward_redirect", "forward_redirect", "drop_ttl_expired"]),
        ({"backends": frozenset({BACKEND + 1})}, []),
        ({"verdicts": drop, "client": client}, ["drop_ttl_expired"]),
    ):
        bed.reset()
        serve(bed, family)
        bed.select(**fields)
        matched = sum(each.matched for each in bed.maps.losses())
        for frame, side in sent:
            bed.send(frame, side)
        assert [each.verdict.name for each in bed.records()] == verdicts, fields
        assert sum(each.matched for each in bed.maps.losses()) - matched == len(verdicts)


def test_only_the_begin_is_kept_and_only_until_the_time_is_over(bed: CapturingBed) -> None:
    serve(bed, V4)
    bed.select(snap_bytes=60)
    _, record = bed.seen(bytes(from_client(V4, payload=bytes(500))))
    assert record.after is not None and record.before.length == record.after.length > 500
    assert len(record.before.content) == len(record.after.content) == 60
    bed.maps.record(CaptureFilter(), 1)
    assert bed.send(bytes(from_client(V4, flags="A"))).verdict == "forward_redirect" and bed.records() == []


def test_what_does_not_fit_is_counted_as_lost(bed: CapturingBed) -> None:
    serve(bed, V4)
    frame = bytes(from_client(V4, payload=bytes(1000)))
    bed.send(frame)
    losses = bed.maps.losses()
    sent = 6000
    for _ in range(sent):
        bed.inside(lambda: bed.plane.test_run(frame, bed.in0))
    lost, matched = (
        sum(getattr(each, name) for each in bed.maps.losses()) - sum(getattr(each, name) for each in losses)
        for name in ("lost", "matched")
    )
    read = 0
    while found := bed.records():
        read += len(found)
    assert matched == sent and lost > 0 and read == 1 + sent - lost
