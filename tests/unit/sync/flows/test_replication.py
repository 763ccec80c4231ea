"""The sender's and the receiver's state machine of flow replication, block by block."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sync.flows import receiver, sender
from sync.flows.receiver import Apply, BeginMark, Receiver, SendAcknowledgement, SweepUnmarked
from sync.flows.sender import Flushed, ReadPart, SendBlock, Sender
from sync.flows.stream import Acknowledgement, Block, Kind, Limits, StepChanged
from tests.sim.mutations import Mutation, applied

Effects = Sequence[sender.Effect | receiver.Effect]
LIMITS = Limits(window_blocks=4, queued_records=20, retry_ns=1000)
BOOT = 7


def blocks(effects: Effects) -> list[Block]:
    return [effect.block for effect in effects if isinstance(effect, SendBlock)]


def kinds(effects: Effects) -> list[Kind]:
    return [block.kind for block in blocks(effects)]


def acks(effects: Effects) -> list[Acknowledgement]:
    return [effect.acknowledgement for effect in effects if isinstance(effect, SendAcknowledgement)]


def started() -> Sender:
    """A sender whose BEGIN is acknowledged and which has asked for the first slice."""
    sender = Sender(BOOT, 1, LIMITS)
    assert kinds(sender.start(3, 0)) == [Kind.BEGIN]
    assert sender.acknowledged(Acknowledgement(BOOT, 1, 1, 5), 1) == [ReadPart(1, first=True)]
    return sender


def in_step() -> Sender:
    sender = started()
    assert kinds(sender.part_read(1, 4, 2, b"ab", True, 2)) == [Kind.SNAPSHOT, Kind.END]
    effects = sender.acknowledged(Acknowledgement(BOOT, 1, 3, 7, in_step=True), 3)
    assert [type(effect) for effect in effects] == [StepChanged] and sender.in_step
    return sender


def block(sequence: int, kind: Kind = Kind.DELTA, session: int = 1, layout: int = 1, epoch: int = 3, boot: int = BOOT) -> Block:
    return Block(boot, session, sequence, epoch, kind, layout, 0, 4, 1, b"x")


def following() -> Receiver:
    receiver = Receiver(1, LIMITS)
    receiver.set_peer(BOOT)
    effects = receiver.block(block(1, Kind.BEGIN), 0)
    assert isinstance(effects[0], BeginMark) and acks(effects)[0] == Acknowledgement(BOOT, 1, 1, 5)
    return receiver


def test_only_begin_is_sent_before_it_is_acknowledged() -> None:
    sender = Sender(BOOT, 1, LIMITS)
    sender.start(3, 0)
    assert sender.changes(4, 1, b"x", 1) == []


def test_a_slice_goes_before_the_changes_read_since_it_was_asked_for() -> None:
    sender = started()
    assert sender.changes(4, 1, b"newer", 2) == []
    sent = blocks(sender.part_read(1, 4, 2, b"slice", False, 3))
    assert [block.payload for block in sent] == [b"slice", b"newer"]
    assert [block.sequence for block in sent] == [2, 3]


def test_the_order_of_a_slice_and_changes_is_seen() -> None:
    """The simulated node reads a slice in the step that asks for it, so its histories cannot show this mistake."""
    loop = "while self._queue and self._sent < self._limit"
    mutation = Mutation(
        "put a slice behind changes", "sync.flows.sender", "", "", f"{loop} and not self._part_requested:", f"{loop}:"
    )
    with applied(mutation), pytest.raises(AssertionError):
        test_a_slice_goes_before_the_changes_read_since_it_was_asked_for()


def test_changes_go_before_the_next_slice() -> None:
    sender = started()
    sender.part_read(1, 4, 1, b"slice", False, 2)
    effects = sender.acknowledged(Acknowledgement(BOOT, 1, 2, 6), 3)
    assert ReadPart(1, first=False) not in effects  # one is in progress already
    assert sender.changes(4, 1, b"live", 4) == []
    assert [block.payload for block in blocks(sender.part_read(1, 4, 1, b"second", False, 5))] == [b"second", b"live"]


def test_credit_bounds_unacknowledged_blocks() -> None:
    sender = in_step()
    sent = [block for number in range(8) for block in blocks(sender.changes(4, 1, b"%d" % number, 4))]
    assert [block.sequence for block in sent] == [4, 5, 6, 7]
    assert [block.sequence for block in blocks(sender.acknowledged(Acknowledgement(BOOT, 1, 5, 9), 5))] == [8, 9]
    assert blocks(sender.acknowledged(Acknowledgement(BOOT, 1, 5, 900), 5)) == []  # no credit beyond the window


def test_too_many_changes_start_a_new_snapshot() -> None:
    machine = in_step()
    effects: list[sender.Effect] = []
    for _ in range(30):
        effects += machine.changes(4, 1, b"x", 4)
    assert next(effect for effect in effects if isinstance(effect, StepChanged)) == StepChanged(
        False, "sending a new snapshot: the queue of changes is full"
    )
    assert machine.session == 2 and not machine.in_step and machine.resyncs == 1


def test_a_full_ring_and_a_peer_that_lost_the_stream_start_a_new_snapshot() -> None:
    for effects in (in_step().overflow(5), in_step().acknowledged(Acknowledgement(BOOT, 1, 0, 1, unknown=True), 5)):
        assert isinstance(effects[0], StepChanged) and not effects[0].in_step
        assert [(block.kind, block.session) for block in blocks(effects)] == [(Kind.BEGIN, 2)]


def test_a_gap_and_a_stall_send_again() -> None:
    sender = in_step()
    for number in range(3):
        sender.changes(4, 1, b"%d" % number, 4)
    again = blocks(sender.acknowledged(Acknowledgement(BOOT, 1, 4, 8, gap=True), 5))
    assert [block.sequence for block in again] == [5, 6]
    assert sender.tick(500) == []
    assert [block.sequence for block in blocks(sender.tick(1100))] == [5, 6]


def test_foreign_and_impossible_acknowledgements_are_ignored() -> None:
    sender = in_step()
    sender.changes(4, 1, b"x", 4)
    for ack in (Acknowledgement(BOOT, 9, 4, 9), Acknowledgement(8, 1, 4, 9), Acknowledgement(BOOT, 1, 99, 999)):
        assert sender.acknowledged(ack, 5) == []
        assert sender.lag_ns(104) == 100


def test_a_flush_is_reported_when_all_before_it_is_applied() -> None:
    sender = in_step()
    assert sender.flush(1) == [Flushed(1)]
    sender.changes(4, 1, b"x", 4)
    assert sender.flush(2) == []
    sender.changes(4, 1, b"y", 4)
    assert Flushed(2) in sender.acknowledged(Acknowledgement(BOOT, 1, 4, 9), 5)


def test_a_flush_survives_a_new_snapshot() -> None:
    sender = in_step()
    sender.changes(4, 1, b"x", 4)
    sender.flush(2)
    sender.overflow(5)
    sender.acknowledged(Acknowledgement(BOOT, 2, 1, 5), 6)
    sender.part_read(2, 4, 0, b"", True, 7)
    assert Flushed(2) in sender.acknowledged(Acknowledgement(BOOT, 2, 2, 6, in_step=True), 8)


def test_lag_and_share_measure_what_the_peer_lacks() -> None:
    sender = in_step()
    assert sender.lag_ns(50) == 0 and sender.protected(1000) == 1.0
    assert sender.protected(1000, 250) == 0.75, "flows that no block ever had"
    sender.changes(4, 10, b"x", 40)
    assert sender.lag_ns(50) == 10 and sender.protected(1000) == 0.99
    sender.stop()
    assert sender.protected(1000) == 0.0


def test_a_refusal_is_reported_and_ends_the_stream() -> None:
    sender = started()
    refusal = acks(Receiver(2, LIMITS).block(block(1, Kind.BEGIN), 0))[0]
    effects = sender.acknowledged(refusal, 2)
    assert effects == [
        StepChanged(False, "the peer refuses the flows: flow layout 0x1, expected 0x2: install the same version on both nodes"),
    ]
    assert not sender.running and sender.changes(4, 1, b"x", 3) == []


def test_blocks_are_applied_in_order_and_once() -> None:
    receiver = following()
    assert receiver.block(block(2, Kind.SNAPSHOT), 1) == [Apply(block(2, Kind.SNAPSHOT))]
    assert acks(receiver.applied(block(2, Kind.SNAPSHOT)))[0].sequence == 2
    assert [ack.gap for ack in acks(receiver.block(block(4), 1000))] == [True]
    assert acks(receiver.block(block(5), 1001)) == []  # complaints are limited
    assert [ack.gap for ack in acks(receiver.block(block(2), 2000))] == [False]
    assert receiver.applied(block(2)) == []


def test_end_deletes_stale_entries_and_puts_the_receiver_in_step() -> None:
    receiver = following()
    assert receiver.block(block(2, Kind.END), 1) == [SweepUnmarked(block(2, Kind.END))]
    assert not receiver.in_step
    effects = receiver.applied(block(2, Kind.END))
    assert isinstance(effects[0], StepChanged) and acks(effects)[0].in_step and receiver.in_step


def test_a_block_of_an_unknown_stream_is_reported_as_unknown() -> None:
    receiver = Receiver(1, LIMITS)
    receiver.set_peer(BOOT)
    assert acks(receiver.block(block(5), 0)) == [Acknowledgement(BOOT, 1, 0, 1, unknown=True)]


def test_streams_of_an_earlier_incarnation_session_or_epoch_are_ignored() -> None:
    receiver = following()
    receiver.block(block(1, Kind.BEGIN, session=4, epoch=6), 1)
    for late in (
        block(1, Kind.BEGIN, session=3, epoch=6),
        block(1, Kind.BEGIN, session=5, epoch=5),
        block(1, Kind.BEGIN, session=9, boot=6),
    ):
        assert not [effect for effect in receiver.block(late, 2) if isinstance(effect, BeginMark)]
    assert receiver.block(block(2, session=4, epoch=6), 3) == [Apply(block(2, session=4, epoch=6))]


def test_an_active_node_accepts_late_deltas_only_and_needs_a_new_stream_afterwards() -> None:
    receiver = following()
    receiver.set_serving(True)
    assert receiver.block(block(2), 1) == [Apply(block(2), only_absent=True)]
    assert receiver.block(block(3, Kind.END), 1) == [] and receiver.block(block(1, Kind.BEGIN, session=2), 1) == []
    receiver.set_serving(False)
    assert receiver.in_step  # its own map is the newest until a stream starts
    assert acks(receiver.block(block(3), 2000))[0].unknown
    assert isinstance(receiver.block(block(1, Kind.BEGIN), 2001)[0], StepChanged) and not receiver.in_step
