"""Results of checks on their way to the backup: nothing is lost, and what is missing is noticed."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctl.health.results import BATCH, FOLLOW_MS, SAY_MS, Inbox, Outbox, Result, State, packed, unpacked


def result(number: int, state: State = State.DOWN) -> Result:
    return Result(number, "10.0.0.1", 80, state, 500, "refused", None)


def over_the_link(message: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(message))


def test_times_travel_as_ages() -> None:
    there = over_the_link(packed(result(7), 1500))
    assert unpacked(there, 90_000) == Result(7, "10.0.0.1", 80, State.DOWN, 89_000, "refused", None)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        [1, "a", 1, "up", None, ""],
        ["1", "a", 1, "up", None, "", None],
        [1, "a", 1, "sideways", None, "", None],
        [1, "a", 1, "up", -1, "", None],
        [1, "a", 1, "up", None, "", 1 << 60],
        [1, "a", 1, "up", None, None, None],
    ],
)
def test_malformed_results_are_refused(values: object) -> None:
    with pytest.raises(ValueError, match=r"expected|not a valid"):
        unpacked(values, 0)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"stream": "", "number": 1, "results": []},
        {"stream": "a", "number": "1", "results": []},
        {"stream": "a", "number": 1},
    ],
)
def test_malformed_messages_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Inbox().receive(message, 0)


def test_a_later_version_may_append() -> None:
    assert unpacked([*packed(result(1), 1000), "more"], 1000) == result(1)


def test_a_snapshot_is_complete_after_its_last_message() -> None:
    outbox, inbox = Outbox(), Inbox()
    outbox.begin("s", range(2 * BATCH + 1))
    sizes = []
    while outbox.is_due(False, 0):
        assert not inbox.is_current(0)
        ids = outbox.take(())
        sizes.append(len(inbox.receive(outbox.message(map(result, ids), 0), 0) or ()))
    assert sizes == [BATCH, BATCH, 1]
    assert inbox.is_current(FOLLOW_MS - 1) and not inbox.is_current(FOLLOW_MS)
    assert not outbox.is_due(False, SAY_MS - 1) and outbox.is_due(False, SAY_MS) and outbox.is_due(True, 1)


STEPS = ("turn", "send", "lose message", "lose answer", "restart")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=60))
def test_a_current_receiver_knows_what_was_acknowledged(steps: list[tuple[str, int]]) -> None:
    """Whatever is lost: a receiver that is current, and has acknowledged everything, has every state."""
    truth = dict.fromkeys(range(6), State.UP)
    news: dict[int, None] = {}
    outbox, inbox, known, streams = Outbox(), Inbox(), dict[int, State](), 0

    def send(lost: str) -> None:
        nonlocal streams, inbox
        if not outbox.is_open:
            streams += 1
            news.clear()
            outbox.begin(f"stream {streams}", truth)
        ids = outbox.take(() if outbox.sends_snapshot else list(news))
        if not set(ids) - set(news):
            for each in ids:
                del news[each]
        message = over_the_link(outbox.message([result(each, truth[each]) for each in ids], 0))
        if lost == "lose message":
            outbox.restart()
            return
        found = inbox.receive(message, 0)
        known.update({found_one.backend_id: found_one.state for found_one in found or ()})
        if found is None or lost == "lose answer":
            outbox.restart()

    for step, number in steps:
        if step == "turn":
            truth[number] = State.DOWN if truth[number] is State.UP else State.UP
            news[number] = None
        elif step == "restart":
            inbox, known = Inbox(), {}
        else:
            send(step)
    for _ in range(4):
        send("")
    assert inbox.is_current(0) and known == truth
