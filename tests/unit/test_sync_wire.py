"""No bytes, however made, do anything but become a message or a WireError."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync import wire
from sync.configsync import MAX_HISTORY, Document
from sync.errors import WireError
from sync.failover_types import Heartbeat, Role
from sync.replication import Acknowledgement, Block, Kind

u63 = st.integers(0, (1 << 63) - 1)
boot = st.integers(1, (1 << 63) - 1)
version = st.tuples(u63, u63)
text = st.text(max_size=60)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    epochs = sorted(draw(st.sets(u63, min_size=1, max_size=6)))
    generations = [draw(u63) for _ in epochs]
    *history, newest = zip(epochs, generations, strict=True)
    return Document(newest, tuple(history), draw(st.binary(max_size=40)))


small = st.integers(0, 255)
flags = {name: st.booleans() for name in ("in_step", "can_serve", "offering", "wants")}
counts = dict.fromkeys(
    ("sent_ns", "epoch", "claim", "grants", "echo_boot", "echo_sequence", "echo_sent_ns", "echo_held_ns"), u63
)
heartbeats = st.builds(
    Heartbeat, boot=boot, sequence=boot, role=st.sampled_from(Role), priority=small, version=version, **flags, **counts
)
control = st.one_of(
    heartbeats,
    st.builds(wire.Hello, text, text, u63),
    st.builds(wire.Offer, documents()),
    st.builds(wire.Stored, version),
    st.builds(wire.Forward, boot, boot, st.binary(max_size=50)),
    st.builds(wire.ForwardAnswer, boot, boot, st.binary(max_size=50)),
)
kinds, families, counted = st.sampled_from(Kind), st.sampled_from((0, 4, 6)), st.integers(0, 65536)
blocks = st.builds(Block, boot, boot, boot, u63, kinds, u63, u63, families, counted, st.binary(max_size=80))
bulk = blocks | st.builds(Acknowledgement, boot, boot, u63, u63, st.booleans(), st.booleans(), st.booleans(), text)


@given(control)
def test_control_messages_survive_the_wire(message: wire.Control) -> None:
    assert wire.decode_control(wire.encode(message)) == message


@given(bulk)
def test_bulk_messages_survive_the_wire(message: wire.Bulk) -> None:
    assert wire.decode_bulk(wire.encode(message)) == message


def harmless(data: bytes) -> None:
    for decode in (wire.decode_control, wire.decode_bulk):
        with contextlib.suppress(WireError):
            decode(data)


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_harmless(data: bytes) -> None:
    harmless(data)


@settings(max_examples=1500, deadline=None)
@given(control | bulk, st.data())
def test_damaged_messages_are_harmless(message: wire.Control | wire.Bulk, data: st.DataObject) -> None:
    packet = bytearray(wire.encode(message))
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


@settings(max_examples=1500, deadline=None)
@given(control | bulk, st.data())
def test_fields_of_other_types_are_harmless(message: wire.Control | wire.Bulk, data: st.DataObject) -> None:
    parts: list[Any] = msgpack.unpackb(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(plain)
    harmless(msgpack.packb(parts))


@given(control, bulk)
def test_sockets_are_not_mixed_up(one: wire.Control, other: wire.Bulk) -> None:
    with pytest.raises(WireError, match="does not belong here"):
        wire.decode_bulk(wire.encode(one))
    with pytest.raises(WireError, match="does not belong here"):
        wire.decode_control(wire.encode(other))


@given(blocks, st.data())
def test_a_changed_block_has_a_wrong_checksum(block: Block, data: st.DataObject) -> None:
    parts: list[Any] = msgpack.unpackb(wire.encode(block))
    names = [field.name for field in fields(Block)]
    name = data.draw(st.sampled_from(("session", "sequence", "epoch", "layout", "clock_ns", "count", "payload")))
    value = getattr(block, name)
    parts[2 + names.index(name)] = value + b"x" if name == "payload" else value - 1 if value > 1 else value + 1
    with pytest.raises(WireError, match=r"wrong checksum|not an integer"):
        wire.decode_bulk(msgpack.packb(parts))


def test_every_truncation_of_a_message_is_refused() -> None:
    message = Heartbeat(7, 1, 5, Role.ACTIVE, 3, 100)
    data = wire.encode(message)
    for length in range(len(data)):
        with pytest.raises(WireError):
            wire.decode_control(data[:length])
    with pytest.raises(WireError):
        wire.decode_control(data + b"\0")


def test_another_wire_version_is_named() -> None:
    parts = msgpack.unpackb(wire.encode(wire.Stored((1, 2))))
    parts[0] = 9
    with pytest.raises(WireError, match=r"wire version 9 is not 1: run the same version"):
        wire.decode_control(msgpack.packb(parts))


def test_true_is_not_one() -> None:
    parts = msgpack.unpackb(wire.encode(wire.Stored((1, 2))))
    parts[0] = True
    with pytest.raises(WireError):
        wire.decode_control(msgpack.packb(parts))
    parts = msgpack.unpackb(wire.encode(Heartbeat(7, 1, 5, Role.ACTIVE, 3, 100)))
    parts[6] = True
    with pytest.raises(WireError, match="not an integer"):
        wire.decode_control(msgpack.packb(parts))


def test_a_history_must_rise_and_end() -> None:
    document = Document((5, 9), tuple((epoch, epoch) for epoch in range(5)), b"")
    assert wire.decode_control(wire.encode(wire.Offer(document))) == wire.Offer(document)
    for history in (((5, 1),), ((3, 1), (2, 2)), tuple((epoch, 1) for epoch in range(-MAX_HISTORY - 1, 0))):
        with pytest.raises(WireError):
            wire.decode_control(wire.encode(wire.Offer(replace(document, history=history))))


def test_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="exceed the bound"):
        wire.decode_bulk(b"\xc6" + b"\xff" * wire.MAX_BULK_BYTES)
    with pytest.raises(WireError):
        wire.decode_bulk(b"\xdd\xff\xff\xff\xff")
    with pytest.raises(WireError):
        wire.decode_control(b"\x91" * 100_000)
    with pytest.raises(ValueError, match="exceeds the bound"):
        wire.encode(wire.Forward(1, 1, b"x" * wire.MAX_CONTROL_BYTES))
