"""Frames in, verdict out: the judge of bench.failover finds outages, nodes that answer at once, and broken connections."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.failover.verdict import (
    AGES,
    LATER,
    NEVER_MS,
    NS_PER_MS,
    Connection,
    Frame,
    Kind,
    Verdict,
    age_of,
    judge,
    judge_power_on,
    kind_of,
    moves,
)

MACS = {b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"}
CLIENT, EVERYBODY = b"\2\0\0\0\0\x10", b"\xff" * 6
STRUCK = 1000 * NS_PER_MS
YOUNG, MIDDLE, OLD = AGES


def frames(*seen: tuple[float, str, Kind]) -> list[Frame]:
    """Times in ms after the fault."""
    return [Frame(STRUCK + round(ms * NS_PER_MS), node, kind) for ms, node, kind in seen]


def data(node: str, *times_ms: float) -> list[Frame]:
    return frames(*((ms, node, Kind.DATA) for ms in times_ms))


def verdict(*parts: list[Frame], connections: tuple[Connection, ...] = ()) -> Verdict:
    return judge([frame for part in parts for frame in part], connections, STRUCK, 3.0)


def ethernet(to: bytes, protocol: int, rest: bytes) -> bytes:
    return to + b"\2\0\0\0\0\1" + struct.pack("!H", protocol) + rest


def arp(to: bytes, operation: int) -> bytes:
    return ethernet(to, 0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + bytes(20))


def ipv6(header: int, kind: int) -> bytes:
    return ethernet(CLIENT, 0x86DD, bytes(6) + bytes([header, 255]) + bytes(32) + bytes([kind]) + bytes(9))


@pytest.mark.parametrize(
    "head, kind",
    [
        (ethernet(CLIENT, 0x0800, bytes(50)), Kind.DATA),
        (arp(EVERYBODY, 1), Kind.ARP),
        (arp(CLIENT, 2), Kind.ARP),
        (arp(b"\2\0\0\0\0\2", 2), Kind.REBUTTAL),
        (arp(b"\2\0\0\0\0\2", 1), Kind.ARP),  # it asks the other node for its address
        (ipv6(58, 136), Kind.NDP),
        (ipv6(58, 135), Kind.DATA6),
        (ipv6(6, 136), Kind.DATA6),
    ],
)
def test_kinds_of_frames(head: bytes, kind: Kind) -> None:
    assert kind_of(head, MACS) is kind


def test_a_clean_takeover() -> None:
    found = verdict(data("lb1", -5, 1, 20), data("lb2", 26, 30))
    assert (found.old, found.successor, found.wire_ms, found.both_answered_ms, found.harmless) == ("lb1", "lb2", 6.0, 0.0, True)


def test_a_node_that_still_answers_is_found_in_each_kind() -> None:
    before = data("lb1", -5, 20)
    for kind in (Kind.DATA, Kind.DATA6, Kind.ARP, Kind.NDP):
        found = verdict(before, data("lb2", 26), frames((26, "lb2", kind), (40, "lb1", kind)))
        assert found.both_ms[kind] == found.both_answered_ms == 14.0, kind
        assert not found.harmless
    assert verdict(before, data("lb2", 26), data("lb1", 27)).wire_ms == 6.0, "what comes later does not end the outage"


def test_a_rebuttal_is_counted_and_attracts_no_client() -> None:
    found = verdict(data("lb1", -5), data("lb2", 26), frames((26, "lb2", Kind.ARP), (27, "lb1", Kind.REBUTTAL)))
    assert (found.rebuttals, found.both_answered_ms, found.harmless) == (1, 0.0, True)


def test_an_announcement_before_data_is_part_of_the_outage() -> None:
    assert verdict(data("lb1", -5, 0), frames((2, "lb2", Kind.ARP)), data("lb2", 4)).wire_ms == 4.0


def test_without_a_successor_the_outage_has_no_end() -> None:
    found = verdict(data("lb1", -5))
    assert (found.successor, found.wire_ms, found.harmless) == ("", NEVER_MS, False)


def test_connections_are_counted_by_their_age_at_the_last_data_frame() -> None:
    last = STRUCK + 20 * NS_PER_MS
    born = {YOUNG: last - 9 * NS_PER_MS, MIDDLE: last - 99 * NS_PER_MS, OLD: 0, LATER: last + 1}
    held = tuple(Connection(at, "reset") for at in born.values())
    found = verdict(data("lb1", -5, 20), data("lb2", 26), connections=(*held, Connection(0)))
    assert found.broken == dict.fromkeys(born, 1)
    assert found.held == dict.fromkeys(born, 1) | {OLD: 2}
    assert (found.reasons, found.total_broken, found.harmless) == ({"reset": 4}, 4, False)


def test_power_on() -> None:
    seen = frames((5, "lb2", Kind.ARP), (6, "lb1", Kind.ARP), (7, "lb2", Kind.ARP), (8, "lb1", Kind.REBUTTAL))
    found = judge_power_on(seen, STRUCK, STRUCK + 9 * NS_PER_MS)
    assert (found.served_ms, found.both_answered_ms, found.moves) == (9.0, 1.0, 2)
    assert moves(data("lb1", 1) + data("lb2", 2)) == 0, "data alone is no announcement"


@given(st.lists(st.tuples(st.integers(-100, 100), st.sampled_from(["lb1", "lb2"]), st.sampled_from(list(Kind))), max_size=40))
def test_any_frames_have_a_verdict(seen: list[tuple[int, str, Kind]]) -> None:
    found = verdict(frames(*seen))
    assert found.wire_ms >= 0
    assert (found.successor == "") is (found.wire_ms == NEVER_MS)
    assert found.successor != found.old or not found.old
    one_node = len({node for ms, node, _ in seen if ms >= 0} | {found.old}) == 1
    assert not (one_node and found.both_answered_ms)


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_every_age_has_a_name(born: int, at: int) -> None:
    assert (age_of(born, at) == LATER) is (born > at)
