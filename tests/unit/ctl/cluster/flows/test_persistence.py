"""Persistence entries between two fake planes: what the peer has after which pass, and what it refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bpf.dataplane import PERSISTENT, Array
from ctl.cluster.flows.persistence import BATCH_ROWS, OVERLAP_TICKS, QUESTION, PersistenceReplica
from ctl.errors import Code, InvalidInput, XlbError
from tests.fakes.plane import FakePlane
from tests.wait import wait_until_async

FAMILIES = ("v4", "v6")
CLOCK_LEAD = 5000  # the peer's clock is ahead by this many ticks


class Pair:
    """Node A asks node B; `serving` is A's epoch."""

    def __init__(self) -> None:
        self.a, self.b = FakePlane(), FakePlane()
        self.b.tick += CLOCK_LEAD
        self.serving, self.wanted = 1, True
        self.asked: list[int] = []
        self.refusal: XlbError | None = None
        self.sender = PersistenceReplica(self.a, self._ask, lambda: self.serving, lambda: self.wanted)
        self.taker = PersistenceReplica(self.b, self._ask, lambda: 0, lambda: True)

    async def _ask(self, question: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        assert question == QUESTION and timeout_s > 0
        self.asked.append(len(arguments["entries"]) // PERSISTENT[arguments["family"]].itemsize)
        if self.refusal:
            raise self.refusal
        return await self.taker.take(arguments)

    def run(self) -> list[int]:
        """One pass; how many entries each question had."""
        self.asked = []
        asyncio.run(self.sender.run_once())
        return self.asked

    def pass_time(self, ticks: int) -> None:
        self.a.tick += ticks
        self.b.tick += ticks


def entry(family: str, number: int, backend: int, last_used: int, home: int = 0) -> Array:
    row = np.zeros(1, PERSISTENT[family])
    row["client"] = np.void(number.to_bytes(PERSISTENT[family]["client"].itemsize, "big"))
    row["farm"], row["home"], row["backend"], row["last_used"] = 1, home or backend, backend, last_used
    return row


def use(plane: FakePlane, family: str, number: int, backend: int = 7, ago: int = 0) -> None:
    plane.update_persistent(family, entry(family, number, backend, plane.tick - ago))


def ages(plane: FakePlane, family: str) -> dict[tuple[bytes, int], tuple[int, int, int]]:
    return {key: (home, backend, plane.tick - last) for key, (home, backend, last) in plane.persistent[family].items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_peer_has_every_entry_with_its_age(family: str) -> None:
    pair = Pair()
    for number in range(5):
        use(pair.a, family, number, backend=number + 1, ago=1000 * number)
    assert pair.run() == [5]
    assert ages(pair.b, family) == ages(pair.a, family) and len(ages(pair.b, family)) == 5


def test_later_passes_have_what_was_used_since() -> None:
    pair = Pair()
    use(pair.a, "v4", 1, ago=OVERLAP_TICKS + 1)
    use(pair.a, "v4", 2, ago=OVERLAP_TICKS + 1)
    assert pair.run() == [2]
    pair.pass_time(10)
    assert pair.run() == []
    use(pair.a, "v4", 2, backend=9)
    assert pair.run() == [1]
    assert ages(pair.b, "v4") == ages(pair.a, "v4")


def test_a_new_incarnation_of_the_peer_and_a_new_epoch_get_everything() -> None:
    pair = Pair()
    use(pair.a, "v6", 1)
    pair.run()
    pair.pass_time(100)
    pair.sender.new_peer()
    assert pair.run() == [1]
    pair.pass_time(100)
    pair.serving = 3
    assert pair.run() == [1]


def test_what_could_not_be_sent_is_sent_later() -> None:
    pair = Pair()
    use(pair.a, "v4", 1)
    pair.refusal = XlbError("gone", Code.PEER_UNREACHABLE)
    assert pair.run() == [1]
    pair.pass_time(1000)
    pair.refusal = None
    assert pair.run() == [1] and len(pair.b.persistent["v4"]) == 1


@pytest.mark.parametrize("code", [Code.PEER_VERSION, Code.UNCODED])
def test_a_peer_without_the_question_is_asked_once(code: Code) -> None:
    pair = Pair()
    use(pair.a, "v4", 1)
    pair.refusal = XlbError("unknown question", code)
    assert pair.run() == [1] and pair.run() == []
    pair.refusal = None
    pair.sender.new_peer()
    assert pair.run() == [1]


def test_a_backup_sends_nothing_but_what_it_had_when_it_left_service() -> None:
    pair = Pair()
    pair.serving = 0
    use(pair.a, "v4", 1, ago=OVERLAP_TICKS + 1)
    assert pair.run() == []
    pair.serving = 5
    assert pair.run() == [1]
    pair.pass_time(100)
    use(pair.a, "v4", 2)
    pair.serving = 0
    assert pair.run() == [1] and pair.run() == []
    assert len(pair.b.persistent["v4"]) == 2


def test_without_such_a_farm_nothing_is_read() -> None:
    pair = Pair()
    use(pair.a, "v4", 1)
    pair.wanted = False
    assert pair.run() == []


@pytest.mark.parametrize(("ago", "kept"), [(10, 7), (30, 9)], ids=["newer at the peer", "older at the peer"])
def test_the_peer_keeps_what_was_used_last(ago: int, kept: int) -> None:
    pair = Pair()
    use(pair.a, "v4", 1, backend=9, ago=20)
    use(pair.b, "v4", 1, backend=7, ago=ago)
    pair.run()
    ((home, backend, _),) = ages(pair.b, "v4").values()
    assert home == backend == kept


def test_a_map_that_cannot_be_read_is_complained_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair, passes = Pair(), 0

    def fail(family: str, since: int | None) -> list[Array]:
        nonlocal passes
        passes += 1
        raise OSError(12, "Cannot allocate memory")

    async def three_passes() -> None:
        monkeypatch.setattr("ctl.cluster.flows.persistence.PAUSE_S", 0.001)
        task = asyncio.ensure_future(pair.sender.run())
        await wait_until_async(lambda: passes >= 3, "three passes")
        task.cancel()

    monkeypatch.setattr(pair.sender, "_changed", fail)
    asyncio.run(three_passes())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the backends that clients keep cannot be replicated: [Errno 12] Cannot allocate memory"
    ]


def test_many_entries_travel_in_batches() -> None:
    pair = Pair()
    rows = np.zeros(BATCH_ROWS + 5, PERSISTENT["v4"])
    for number, row in enumerate(rows):
        row["client"], row["farm"], row["last_used"] = np.void(number.to_bytes(4, "big")), 1, pair.a.tick
    pair.a.update_persistent("v4", rows)
    assert pair.run() == [BATCH_ROWS, 5]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"family": "v5", "entries": b""},
        {"family": "v4", "entries": "text"},
        {"family": "v4", "entries": bytes(PERSISTENT["v4"].itemsize + 1)},
        {"family": "v4", "entries": bytes(PERSISTENT["v4"].itemsize * (BATCH_ROWS + 1))},
    ],
    ids=["nothing", "family", "type", "length", "too many"],
)
def test_malformed_entries_are_refused(arguments: dict[str, Any]) -> None:
    pair = Pair()
    with pytest.raises(InvalidInput):
        asyncio.run(pair.taker.take(arguments))
    assert not pair.b.persistent["v4"]


def test_entries_with_ids_that_no_map_has_are_left_out() -> None:
    pair = Pair()
    rows = np.concatenate([entry("v4", 1, 7, 0), entry("v4", 2, 1 << 20, 0)])
    rows["last_used"] = 1  # an age here
    assert asyncio.run(pair.taker.take({"family": "v4", "entries": rows.tobytes()})) == 1
