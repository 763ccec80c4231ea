"""The configuration state machine: when it answers, and which version wins."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sync.config.config_sync import (
    CONFIRM_TIMEOUT_NS,
    EMPTY,
    MAX_HISTORY,
    OFFER_AGAIN_NS,
    Adopt,
    Answer,
    ConfigSync,
    Document,
    Effect,
    KeepConflict,
    SendOffer,
    SendVersion,
    Store,
    Why,
)

BASE = Document((1, 5), (), b"base")


def outcomes(effects: Sequence[Effect]) -> list[tuple[int, bool, bool, Why | None]]:
    """The answers among `effects`, without their messages."""
    return [(each.request, each.ok, each.on_peer, each.why) for each in effects if isinstance(each, Answer)]


def active(epoch: int = 1, peer: tuple[int, int] | None = (1, 5)) -> ConfigSync:
    machine = ConfigSync(BASE, "lb2")
    machine.serve(epoch)
    if peer:
        machine.peer_has(peer, 0)
    return machine


def test_a_change_is_answered_when_both_disks_have_it() -> None:
    machine = active()
    new = Document((1, 6), (), b"new")
    assert machine.change(1, b"new", 0) == [Store(new)]
    assert machine.stored((1, 6), 1) == [Adopt(new), SendOffer(new)]
    assert machine.peer_has((1, 6), 2) == [Answer(1, True, True, "stored on both nodes")]
    assert not machine.busy


def test_the_answer_names_an_absent_or_silent_peer() -> None:
    machine = active(peer=None)
    machine.change(1, b"new", 0)
    assert machine.stored((1, 6), 1)[1] == Answer(1, True, False, "stored on this node only: lb2 is absent")
    machine = active()
    machine.change(1, b"new", 0)
    machine.stored((1, 6), 1)
    assert machine.peer_gone() == [Answer(1, True, False, "stored on this node only: lb2 is absent")]
    machine = active()
    machine.change(1, b"new", 0)
    machine.stored((1, 6), 1)
    assert machine.tick(CONFIRM_TIMEOUT_NS)[0] == Answer(1, True, False, "stored on this node; lb2 has not confirmed it")


def test_one_change_at_a_time_and_only_on_the_active_node() -> None:
    machine = active()
    machine.change(1, b"new", 0)
    assert outcomes(machine.change(2, b"other", 0)) == [(2, False, False, Why.BUSY)]
    backup = ConfigSync(BASE, "lb1")
    assert outcomes(backup.change(3, b"x", 0)) == [(3, False, False, Why.NOT_SERVING)]
    late = active(epoch=1)
    late.offered(Document((4, 9), ((1, 5),), b"later"))
    late.stored((4, 9), 1)
    assert not late.change(4, b"x", 2)[0].ok  # type: ignore[union-attr]


def test_a_disk_that_refuses_changes_nothing() -> None:
    machine = active()
    machine.change(1, b"new", 0)
    refused = machine.store_failed((1, 6), "No space left on device")
    assert outcomes(refused) == [(1, False, False, Why.NOT_STORED)]
    assert machine.document == BASE and not machine.busy


def test_a_peer_that_is_behind_gets_the_whole_configuration_and_again() -> None:
    machine = active(peer=None)
    assert machine.peer_has((0, 0), 0) == [SendOffer(BASE)]
    assert machine.peer_has((0, 0), 1) == []
    assert machine.tick(OFFER_AGAIN_NS) == [SendOffer(BASE)]


def test_an_offer_is_confirmed_only_from_the_disk() -> None:
    backup = ConfigSync(EMPTY, "lb1")
    backup.peer_has((1, 5), 0)
    assert backup.offered(BASE) == [Store(BASE)]
    assert backup.offered(BASE) == [SendVersion((0, 0))]
    assert backup.stored((1, 5), 1) == [Adopt(BASE), SendVersion((1, 5))]


def test_the_first_offer_heard_is_confirmed_and_not_offered_back() -> None:
    """The peer has on its disk what it offers, also if nothing else was heard of it."""
    machine = ConfigSync(BASE, "lb1")
    new = Document((1, 6), (), b"new")
    machine.peer_has((1, 5), 0)
    assert machine.offered(new) == [Store(new)]
    assert machine.stored((1, 6), 1) == [Adopt(new), SendVersion((1, 6))]


def test_the_later_epoch_wins_a_split_brain_and_the_loser_is_saved() -> None:
    loser = active(epoch=1, peer=None)
    for number in range(3):
        loser.change(number + 1, b"loser", 0)
        loser.stored((1, 6 + number), 0)
    winner = Document((2, 6), ((1, 5),), b"winner")
    assert loser.offered(winner) == [KeepConflict(Document((1, 8), (), b"loser"), (2, 6)), Store(winner)]


def test_an_ancestor_is_replaced_without_a_message() -> None:
    behind = ConfigSync(BASE, "lb1")
    assert behind.offered(Document((2, 8), ((1, 7),), b"later")) == [Store(Document((2, 8), ((1, 7),), b"later"))]


def test_a_change_in_progress_is_not_lost_when_the_peer_falls_silent() -> None:
    machine = active()
    machine.change(1, b"mine", 0)
    machine.stored((1, 6), 1)
    assert machine.offered(Document((2, 7), ((1, 6),), b"built on mine"))[0] == Answer(1, True, True, "stored on both nodes")
    machine = active()
    machine.change(1, b"mine", 0)
    machine.stored((1, 6), 1)
    answer, kept, *_ = machine.offered(Document((2, 6), ((1, 5),), b"other"))
    assert outcomes([answer]) == [(1, False, False, Why.OVERTAKEN)]
    assert isinstance(kept, KeepConflict)
    machine = active()
    machine.change(1, b"mine", 0)
    (answer,) = machine.serve(0)
    assert isinstance(answer, Answer) and not answer.ok and "no longer active" in answer.message


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200))
def test_every_earlier_document_is_an_ancestor(steps: list[int]) -> None:
    document, epoch, line = EMPTY, 1, [EMPTY]
    for step in steps:
        epoch += step
        document = document.successor(epoch, b"")
        line.append(document)
    assert len(document.history) <= MAX_HISTORY
    known = {epoch for epoch, _ in (*document.history, document.version)}
    for earlier in line:
        assert document.builds_on(earlier.version) == (earlier.version[0] in known or earlier is EMPTY)
        assert earlier is document or not earlier.builds_on(document.version)


def test_a_conflicting_version_is_no_ancestor() -> None:
    trunk = BASE.successor(1, b"a").successor(2, b"b")
    branch = BASE.successor(1, b"a").successor(1, b"c")
    assert not trunk.builds_on(branch.version) and not branch.builds_on(trunk.version)
    assert trunk.builds_on(BASE.version) and branch.builds_on(BASE.version)
