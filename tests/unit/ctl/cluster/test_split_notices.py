"""After a split brain the journal of the node that stayed active names what its peer discarded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import pytest

from ctl.cluster import split_notices
from ctl.cluster.peer_questions import PeerQuestions
from ctl.cluster.split_notices import SplitNotices
from ctl.errors import Code, XlbError
from tests.wait import wait_until_async

CONFLICT = {
    "kind": "configuration",
    "version": (2, 5),
    "winner": (3, 6),
    "path": "/var/lib/xlb/farms.conflict-2-5.jsonl",
    "what": "farm web removed",
}


def scene(test: Callable[[SplitNotices, list[str]], Awaitable[None]], refuse: list[str]) -> None:
    """lb1 notifies lb2; the first questions are refused with these codes."""

    async def run() -> None:
        questions = PeerQuestions("lb2")
        asked: list[str] = []

        async def ask(question: str, arguments: dict[str, Any]) -> Any:
            asked.append(question)
            if refuse:
                raise XlbError("not now", refuse.pop(0))
            return await questions.answer(question, msgpack.unpackb(msgpack.packb(arguments)))

        two = SplitNotices("lb2", "lb1", questions, ask)
        one = SplitNotices("lb1", "lb2", PeerQuestions("lb1"), ask)
        try:
            await test(one, asked)
        finally:
            await one.close()
            await two.close()

    asyncio.run(run())


def test_the_winner_names_what_was_discarded_and_where_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_notices, "PAUSE_S", 0.01)

    async def test(one: SplitNotices, _: list[str]) -> None:
        one.tell({"kind": "role"})
        one.tell(CONFLICT)
        await wait_until_async(lambda: len(caplog.records) == 2, "both lines")

    scene(test, [Code.PEER_UNREACHABLE, Code.PEER_UNREACHABLE, Code.PEER_SILENT])
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    said = {record.getMessage() for record in caplog.records}
    assert "split brain: lb1 was active too until now; lb2 stays active" in said
    assert (
        "split brain: lb1's configuration (2, 5) and this node's (3, 6) have a common origin only: this node's is in force, "
        "lb1 saved its own as /var/lib/xlb/farms.conflict-2-5.jsonl on lb1; discarded: farm web removed"
    ) in said


def test_a_peer_of_an_earlier_version_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(one: SplitNotices, asked: list[str]) -> None:
        one.tell(CONFLICT)
        await wait_until_async(lambda: asked and not one.pending, "the end of the telling")
        assert len(asked) == 1

    scene(test, [Code.UNCODED])
    assert not caplog.records
