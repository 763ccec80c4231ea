"""Any bytes decode to a heartbeat or raise WireError, and no heartbeat makes the state machine raise."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sync.errors import WireError
from sync.failover import heartbeat_codec
from sync.failover import types as types
from sync.failover.machine import Failover
from sync.failover.timing import MAX_LEASE_NS, MIN_LEASE_NS, NS_PER_MS, Timing
from sync.failover.types import FailoverConfig, Heartbeat, Role, Vote

u63 = st.integers(0, (1 << 63) - 1)
number = st.integers(1, (1 << 63) - 1)
epoch = st.integers(0, (1 << 48) - 4096)  # a machine that answers one with its own next epoch stays within the wire's bound
flags = {name: st.booleans() for name in ("in_step", "can_serve", "offering", "wants")}
clocks = dict.fromkeys(("sent_ns", "echo_boot", "echo_sequence", "echo_sent_ns", "echo_held_ns"), u63)
epochs = dict.fromkeys(("epoch", "claim", "grants"), epoch)
more = {"role": st.sampled_from(Role), "priority": st.integers(0, 255), "version": st.tuples(epoch, u63)}
leases = {"lease_ns": st.integers(MIN_LEASE_NS, MAX_LEASE_NS), "allows_ns": st.integers(0, MAX_LEASE_NS)}
heartbeats = st.builds(Heartbeat, boot=number, sequence=number, **flags, **clocks, **epochs, **more, **leases)
SIMPLE = Heartbeat(7, 1, 5, Role.ACTIVE, 3, 100, 30 * NS_PER_MS, 30 * NS_PER_MS)


@given(heartbeats)
def test_heartbeats_survive_the_wire(heartbeat: Heartbeat) -> None:
    data = heartbeat_codec.encode(heartbeat)
    assert len(data) <= heartbeat_codec.MAX_BYTES
    assert heartbeat_codec.decode_control(data) == heartbeat


def harmless(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert isinstance(heartbeat_codec.decode_control(data), Heartbeat)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_harmless(data: bytes) -> None:
    harmless(data)


@settings(max_examples=500, deadline=None)
@given(heartbeats, st.data())
def test_damaged_heartbeats_are_harmless(heartbeat: Heartbeat, data: st.DataObject) -> None:
    packet = bytearray(heartbeat_codec.encode(heartbeat))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(packet) - 1))
        match data.draw(st.sampled_from(("flip", "cut", "insert", "repeat"))):
            case "flip":
                packet[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del packet[at : at + data.draw(st.integers(1, 9))]
            case "insert":
                packet[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case _:
                packet[at:at] = packet[: data.draw(st.integers(1, 20))]
        packet = packet or bytearray(b"\0")
    harmless(bytes(packet))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(heartbeats, st.data())
def test_fields_of_other_types_are_harmless(heartbeat: Heartbeat, data: st.DataObject) -> None:
    parts: list[Any] = msgpack.unpackb(heartbeat_codec.encode(heartbeat))
    for _ in range(data.draw(st.integers(1, 3))):
        parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(plain)
    harmless(msgpack.packb(parts))


def test_every_truncation_of_a_heartbeat_is_refused() -> None:
    data = heartbeat_codec.encode(SIMPLE)
    for length in range(len(data)):
        with pytest.raises(WireError):
            heartbeat_codec.decode_control(data[:length])
    with pytest.raises(WireError):
        heartbeat_codec.decode_control(data + b"\0")


def test_another_wire_version_is_named() -> None:
    parts = msgpack.unpackb(heartbeat_codec.encode(SIMPLE))
    parts[0] = 9
    with pytest.raises(WireError, match=r"wire version 9 is not 2: run the same version"):
        heartbeat_codec.decode_control(msgpack.packb(parts))


def test_true_is_not_one() -> None:
    for index in range(2):
        parts = msgpack.unpackb(heartbeat_codec.encode(SIMPLE))
        parts[index] = True
        with pytest.raises(WireError):
            heartbeat_codec.decode_control(msgpack.packb(parts))


@pytest.mark.parametrize("name", ["boot", "sequence"])
def test_a_number_that_counts_is_never_zero(name: str) -> None:
    zeroed: dict[str, Any] = {name: 0}
    with pytest.raises(WireError, match=f"{name}: 0 is not"):
        heartbeat_codec.decode_control(heartbeat_codec.encode(replace(SIMPLE, **zeroed)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_ns", MIN_LEASE_NS - 1),
        ("lease_ns", MAX_LEASE_NS + 1),
        ("lease_ns", True),
        ("lease_ns", 30e6),
        ("allows_ns", -1),
        ("allows_ns", MAX_LEASE_NS + 1),
        ("allows_ns", None),
    ],
)
def test_no_lease_out_of_bounds_is_taken(name: str, value: Any) -> None:
    with pytest.raises(WireError, match=f"{name}: .* is not an integer between"):
        heartbeat_codec.decode_control(heartbeat_codec.encode(replace(SIMPLE, **{name: value})))


def test_too_large_is_refused_before_it_is_read() -> None:
    for data in (b"\xdd" + b"\xff" * heartbeat_codec.MAX_BYTES, b"\xdd\xff\xff\xff\xff", b"\x91" * heartbeat_codec.MAX_BYTES):
        with pytest.raises(WireError):
            heartbeat_codec.decode_control(data)


gaps_ns = st.sampled_from((0, 1, 4, 9, 12, 21, 37)).map(lambda ms: ms * NS_PER_MS)
near = st.integers(-1, 2)  # epochs around the machine's own
peer_fields = st.fixed_dictionaries(
    {
        "role": st.sampled_from(Role),
        "epoch": near,
        "claim": near,
        "grants": near,
        "echo_ago_ns": st.integers(0, 40 * NS_PER_MS),
        **leases,
        **flags,
    }
)
events = st.one_of(
    peer_fields,
    peer_fields,
    st.builds(types.HeartbeatHeard, heartbeats),
    st.builds(types.AdvertHeard, st.integers(0, 255), st.booleans()),
    st.builds(types.FaultChanged, st.sampled_from(("eth0", "eth1")), st.sampled_from(("", "broken")), st.booleans()),
    st.builds(types.VoteAnswered, st.integers(0, 1000 * NS_PER_MS), st.booleans()),
    st.builds(types.StandingChanged, st.booleans(), st.tuples(st.integers(0, 9), st.integers(0, 9))),
    st.builds(types.FlowsFlushed, st.integers(0, 4)),
    st.builds(types.MaintenanceRequested, st.booleans(), st.booleans()),
    st.just(types.SwitchoverRequested()),
    st.just(types.Tick()),
    st.just(types.Tick()),
    st.just("persist"),
)


def heartbeat_of(machine: Failover, sequence: int, now: int, echo_ago_ns: int, **fields: Any) -> types.HeartbeatHeard:
    """A heartbeat of the peer that is valid at this time, or almost valid."""
    for name in ("epoch", "claim", "grants"):
        fields[name] = max(0, machine.epoch + fields[name])
    echo: dict[str, Any] = {"echo_boot": 99, "echo_sequence": sequence, "echo_sent_ns": max(0, now - echo_ago_ns)}
    return types.HeartbeatHeard(Heartbeat(7, sequence, now, priority=50, **echo, **fields))


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(Vote), st.booleans(), st.lists(st.tuples(events, gaps_ns), min_size=10, max_size=40))
def test_no_course_of_events_breaks_the_machine(vote: Vote, failback: bool, course: list[tuple[Any, int]]) -> None:
    """It never raises, its epoch never falls, its lease never exceeds lease_ns, and its own epochs are on disk."""
    timing = Timing.from_ms(10, 30, 36)
    machine = Failover(FailoverConfig("lb1", "lb2", timing, 100, failback, vote), boot=99, epoch=0, reserved=0, now_ns=0)
    on_disk, epoch_before, now = 0, 0, 0
    begun = machine.start()
    waiting = [effect.reserved for effect in begun if isinstance(effect, types.PersistEpoch)]
    (storing,) = (effect.leases for effect in begun if isinstance(effect, types.PersistLeases))
    serving_from_the_start: list[tuple[Any, int]] = [
        ("persist", 0),
        (types.Tick(), 109 * NS_PER_MS),
        (types.Tick(), 21 * NS_PER_MS),
    ]
    for sequence, (step, later) in enumerate([*serving_from_the_start, *course], start=1):
        now += later
        events_now = [heartbeat_of(machine, sequence, now, **step)] if isinstance(step, dict) else [step]
        if step == "persist":
            on_disk = max([on_disk, *waiting])
            events_now, waiting = [types.EpochPersisted(reserved) for reserved in waiting], []
            events_now.append(types.LeasesPersisted(storing))
        for event in events_now:
            for effect in machine.handle(event, now):
                if isinstance(effect, types.PersistEpoch):
                    waiting.append(effect.reserved)
                if isinstance(effect, types.PersistLeases):
                    storing = effect.leases
                if isinstance(effect, types.ExtendLease):
                    assert now < effect.deadline_ns <= now + timing.lease_ns
                    assert effect.epoch <= on_disk
                if isinstance(effect, types.SendHeartbeat):
                    assert heartbeat_codec.decode_control(heartbeat_codec.encode(effect.heartbeat)) == effect.heartbeat
            assert machine.epoch >= epoch_before
            epoch_before = machine.epoch
            assert machine.serving or machine.deadline_ns == 0
            assert machine.timing.takeover_ns >= timing.takeover_ns and machine.timing.lease_ns <= timing.lease_ns
            assert machine.explain(now)
