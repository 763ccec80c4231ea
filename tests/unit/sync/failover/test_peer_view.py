"""One node's view of its peer: incarnations, heartbeat paths, silence and capabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sync.failover.peer_view import PeerView, Wakefulness
from sync.failover.timing import NS_PER_MS as MS
from sync.failover.timing import Timing
from sync.failover.types import Heartbeat, Role

TIMING = Timing.from_ms(10, 30, 36)
BEAT = Heartbeat(22, 1, 0, Role.BACKUP, 1, 50, 30 * MS, 30 * MS, can_serve=True, in_step=True)
AWAKE_NS = -1000 * MS


def heard_at(ms: int, beat: Heartbeat = BEAT) -> PeerView:
    peer = PeerView("lb2", quiet_until_ns=0)
    assert peer.accept(beat, 0, ms * MS, TIMING)
    return peer


def test_a_peer_is_alive_for_the_takeover_time_after_its_last_heartbeat() -> None:
    peer = heard_at(100)
    assert peer.is_alive(135 * MS, TIMING) and not peer.is_alive(136 * MS, TIMING)
    assert not PeerView("lb2", 0).is_alive(0, TIMING)


def test_a_peer_that_left_is_not_alive() -> None:
    assert not heard_at(100, replace(BEAT, role=Role.LEFT)).is_alive(100 * MS, TIMING)


def test_a_refused_heartbeat_changes_nothing() -> None:
    peer = heard_at(100)
    for late in (BEAT, replace(BEAT, boot=5, sequence=9)):
        assert not peer.accept(late, 0, 110 * MS, TIMING)
        assert (peer.heartbeat, peer.heard_ns, peer.boot) == (BEAT, 100 * MS, 22)


def test_another_incarnation_is_followed_with_proof_or_after_a_long_silence() -> None:
    restarted = replace(BEAT, boot=5)
    assert heard_at(100).accept(restarted, 1, 101 * MS, TIMING)
    start_wait_ms = TIMING.start_wait_ns // MS
    assert not heard_at(100).accept(restarted, 0, (99 + start_wait_ms) * MS, TIMING)
    assert heard_at(100).accept(restarted, 0, (100 + start_wait_ms) * MS, TIMING)


def test_each_foreign_incarnation_is_greeted_once() -> None:
    peer = heard_at(100)
    assert [peer.greet(boot) for boot in (22, 5, 5, 6, 22)] == [False, True, False, True, False]


def test_silence_counts_from_the_path_that_was_heard_last() -> None:
    peer = heard_at(100)
    peer.advertised(120 * MS)
    assert peer.silence_ends_ns(TIMING) == 156 * MS and peer.last_heard_ns == 120 * MS
    assert peer.is_advertising(155 * MS, TIMING) and not peer.is_advertising(156 * MS, TIMING)
    peer.resigned()
    assert peer.silence_ends_ns(TIMING) == 136 * MS


def test_silence_counts_only_after_listening_for_one_heartbeat() -> None:
    peer = heard_at(100)
    peer.look(120 * MS, TIMING)  # too early: the end of the silence is 16 ms away
    assert not peer.is_silent(200 * MS, AWAKE_NS, TIMING)
    peer.look(134 * MS, TIMING)
    assert not peer.is_silent(143 * MS, AWAKE_NS, TIMING)
    assert peer.is_silent(144 * MS, AWAKE_NS, TIMING)
    peer.stop_looking()
    assert not peer.is_silent(200 * MS, AWAKE_NS, TIMING)


def test_a_heartbeat_or_an_advertisement_ends_the_listening() -> None:
    inputs: list[Callable[[PeerView], object]] = [
        lambda peer: peer.accept(replace(BEAT, sequence=2), 0, 135 * MS, TIMING),
        lambda peer: peer.advertised(135 * MS),
    ]
    for hear in inputs:
        peer = heard_at(100)
        peer.look(134 * MS, TIMING)
        hear(peer)
        assert not peer.is_silent(400 * MS, AWAKE_NS, TIMING)


def test_a_peer_that_left_needs_no_listening() -> None:
    peer = heard_at(100, replace(BEAT, role=Role.LEFT))
    peer.look(101 * MS, TIMING)
    assert peer.is_silent(101 * MS, AWAKE_NS, TIMING)


def test_a_node_that_slept_or_must_be_quiet_does_not_infer_a_peer_failure() -> None:
    peer = heard_at(100)
    peer.look(125 * MS, TIMING)
    assert not peer.is_silent(140 * MS, 121 * MS, TIMING) and peer.is_silent(141 * MS, 121 * MS, TIMING)
    peer.ignore_silence_until(150 * MS)
    peer.ignore_silence_at_least_until(145 * MS)
    assert not peer.is_silent(149 * MS, AWAKE_NS, TIMING) and peer.is_silent(150 * MS, AWAKE_NS, TIMING)
    peer.ignore_silence_until(145 * MS)
    assert peer.is_silent(145 * MS, AWAKE_NS, TIMING)


def test_the_timer_fires_when_listening_starts_and_when_silence_counts() -> None:
    peer = heard_at(100)
    assert peer.next_look_ns(AWAKE_NS, TIMING) == 121 * MS
    peer.look(130 * MS, TIMING)
    wake_ns = peer.next_look_ns(AWAKE_NS, TIMING)
    assert wake_ns == 140 * MS and peer.is_silent(wake_ns, AWAKE_NS, TIMING)
    assert peer.next_look_ns(125 * MS, TIMING) == 145 * MS


@pytest.mark.parametrize(
    ("fields", "now_ms", "inability", "can_become_active"),
    [
        ({}, 101, "", True),
        ({}, 136, "lb2 is not heard on the cluster link", False),
        ({"in_step": False}, 101, "lb2 is not in step yet: it lacks flows, or its program is not compiled yet", True),
        ({"can_serve": False}, 101, "lb2 reports a fault: see xlbctl doctor on lb2", False),
        ({"role": Role.FAULT}, 101, "lb2 is fault and cannot become active", False),
        ({"role": Role.ACTIVE}, 101, "lb2 is active and cannot become active", False),
    ],
)
def test_what_a_peer_can_do(fields: dict[str, object], now_ms: int, inability: str, can_become_active: bool) -> None:
    peer = heard_at(100, replace(BEAT, **fields))  # type: ignore[arg-type]
    assert peer.inability(now_ms * MS, TIMING) == inability
    assert peer.can_become_active(now_ms * MS, TIMING) is can_become_active


def test_a_peer_that_was_never_heard_has_no_capabilities() -> None:
    peer = PeerView("lb2", 0)
    assert peer.inability(0, TIMING) == "lb2 is not heard on the cluster link" and not peer.can_become_active(0, TIMING)


def test_a_pause_of_more_than_two_heartbeats_is_a_sleep() -> None:
    awake = Wakefulness(0)
    awake.sent(5 * MS, TIMING)
    assert awake.since_ns == 5 * MS, "before the first heartbeat no peer could have answered"
    for ms in (20, 40):
        awake.event(ms * MS, TIMING)
        assert awake.since_ns == 5 * MS
    awake.sent(41 * MS, TIMING)
    assert awake.since_ns == 41 * MS, "36 ms without a heartbeat"
    awake.event(62 * MS, TIMING)
    assert awake.since_ns == 62 * MS, "22 ms without an event"
